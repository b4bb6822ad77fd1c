# SPDX-License-Identifier: Apache-2.0
"""Containers that write to the journal themselves, by a bound socket of the host's: their messages have its name.

What is sent there (sd_journal_send(3), syslog(3)) has the fields that the sender chose, and those that journald knows
of its process: the unit among them, but not the container. So journald is told to add CONTAINER_NAME and the like to
all that comes from the container's scope, as the driver journald gives them to its standard output; other containers
cost nothing. A declared container stands in its service, for which LogExtraFields= does the same
(cli/declared/translate.py).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from teu.linux import cgroup_files
from teu.systemd import logfields

if TYPE_CHECKING:
    from teu.engine.containers.model import Container

_NOTE = "journal-unit"  # in the container's runtime folder: a link to the name of the unit that was told of


def writes_itself(container: Container) -> bool:
    """Whether one of journald's sockets is bound into it, by itself or in a folder."""
    sources = {point.source.rstrip("/") for point in container.mounts if point.type == "bind"}
    return any(path == source or path.startswith(source + "/") for source in sources for path in logfields.SOCKETS)


def begin(container: Container, pid: int) -> None:
    """The container is about to start, and its first process stands in its unit. Raises OSError."""
    if not writes_itself(container):
        return
    unit = next((part for part in reversed(cgroup_files.own(pid).split("/")) if part.endswith(".scope")), "")
    if unit:
        note = f"{container.runtime_directory}/{_NOTE}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(note)
        os.symlink(unit, note)
        logfields.put(unit, _fields(container))


def renamed(container: Container) -> None:
    """It has another name from now on. Raises OSError."""
    unit = _noted(container)
    if unit:
        logfields.put(unit, _fields(container))


def end(container: Container) -> None:
    """It has ended. Idempotent; never fails."""
    unit = _noted(container)
    if unit:
        logfields.drop(unit)


def _noted(container: Container) -> str:
    try:
        return os.readlink(f"{container.runtime_directory}/{_NOTE}")
    except OSError:
        return ""


def _fields(container: Container) -> dict[str, str]:
    return {
        "CONTAINER_NAME": container.name,
        "CONTAINER_ID": container.id[:12],
        "CONTAINER_ID_FULL": container.id,
        "IMAGE_NAME": container.config.image,
    }
