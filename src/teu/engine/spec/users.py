# SPDX-License-Identifier: Apache-2.0
"""User names to numbers, by the container's own /etc/passwd and /etc/group. Called by start and exec."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from teu.engine.core.errors import BadRequest
from teu.engine.files import rootfs
from teu.linux import inside
from teu.oci.users import Files, User, lookup

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine

CACHE_SIZE = 256

_cache: dict[str, Files] = {}


def files(engine: Engine, container: Container) -> Files:
    """passwd and group. Of a container that nobody has touched yet they are the image's."""
    pristine = not container.started_once and not container.touched and not container.mounts
    if pristine and container.chain_id in _cache:
        return _cache[container.chain_id]
    with rootfs.opened(engine, container, readonly=True) as root:
        found = (inside.read_file(root, "/etc/passwd"), inside.read_file(root, "/etc/group"))
    if pristine:
        if len(_cache) >= CACHE_SIZE:
            _cache.clear()
        _cache[container.chain_id] = found
    return found


def find(engine: Engine, container: Container, specification: str, extra: list[str] | None = None) -> User:
    try:
        return lookup(files(engine, container), specification, extra)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    except OSError as error:
        raise BadRequest(f"the container's user database cannot be read: {os.strerror(error.errno or 0)}") from error
