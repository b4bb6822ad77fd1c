# SPDX-License-Identifier: Apache-2.0
"""User names to numbers, by the container's own /etc/passwd and /etc/group. Called by start and exec."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.core.errors import BadRequest
from teu.engine.core.kinds import natural
from teu.engine.files import rootfs
from teu.linux import inside

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine

HIGHEST = (1 << 31) - 1
CACHE_SIZE = 256


class User(NamedTuple):
    uid: int
    gid: int
    groups: list[int]
    home: str


Files = tuple[bytes, bytes]

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


def _lines(data: bytes, fields: int) -> list[list[str]]:
    result = []
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        parts = line.strip().split(":")
        if len(parts) >= fields and not line.lstrip().startswith("#"):
            result.append(parts)
    return result


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit():
        return None
    number = natural(text, 10)
    if number is None or number > HIGHEST:
        raise BadRequest(f"uids and gids must be in range 0-{HIGHEST}")
    return number


def lookup(found: Files, specification: str, extra_groups: list[str] | None = None) -> User:
    """`user`, `uid`, `user:group`, … and --group-add's groups."""
    passwd, group = _lines(found[0], 4), _lines(found[1], 3)
    user_part, _, group_part = specification.partition(":")
    number = _number(user_part)
    entry = None
    for parts in passwd:
        if not user_part and parts[2] == "0" or user_part and parts[0] == user_part:
            entry = parts
            break
    if entry is None and number is not None:
        entry = next((parts for parts in passwd if parts[2] == str(number)), None)
    if entry is None and number is None and user_part:
        raise BadRequest(f"unable to find user {user_part}: no matching entries in passwd file")
    uid = _number(entry[2]) if entry else number
    gid = _number(entry[3]) if entry else 0
    home = entry[5] if entry and len(entry) > 5 else ""
    groups: list[int] = []
    if group_part:
        gid = _group(group, group_part)
        if gid is None:
            raise BadRequest(f"unable to find group {group_part}: no matching entries in group file")
    elif entry:
        for parts in group:
            members = parts[3].split(",") if len(parts) > 3 else []
            if entry[0] in members and (known := _number(parts[2])) is not None and known not in groups:
                groups.append(known)
    for name in extra_groups or ():
        extra = _group(group, name)
        if extra is None:
            raise BadRequest(f"Unable to find group {name}: no matching entries in group file")
        if extra not in groups:
            groups.append(extra)
    # The group is among the supplementary ones, too: else a program that gives up its group (setgid) would no longer
    # be kept from what that group may not do (CVE-2022-36109).
    if (gid or 0) not in groups:
        groups.insert(0, gid or 0)
    return User(uid or 0, gid or 0, groups, home)


def _group(group: list[list[str]], name: str) -> int | None:
    for parts in group:
        if parts[0] == name:
            return _number(parts[2])
    return _number(name)


def find(engine: Engine, container: Container, specification: str, extra: list[str] | None = None) -> User:
    try:
        return lookup(files(engine, container), specification, extra)
    except OSError as error:
        raise BadRequest(f"the container's user database cannot be read: {os.strerror(error.errno or 0)}") from error
