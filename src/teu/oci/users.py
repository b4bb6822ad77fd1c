# SPDX-License-Identifier: Apache-2.0
"""User names to numbers, by a root's own /etc/passwd and /etc/group. Called by the engine and the builder, before a
process is started; what cannot be is a ValueError, with Docker's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HIGHEST = (1 << 31) - 1
_DIGITS_MAX = 10


class User(NamedTuple):
    """Whose process it is: numbers, all supplementary groups (of them `gid`, too), and the home directory by
    /etc/passwd; "" where that has no entry."""

    uid: int
    gid: int
    groups: list[int]
    home: str


Files = tuple[bytes, bytes]


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
    number = int(text) if len(text) <= _DIGITS_MAX else HIGHEST + 1
    if number > HIGHEST:
        raise ValueError(f"uids and gids must be in range 0-{HIGHEST}")
    return number


def lookup(found: Files, specification: str, extra_groups: Sequence[str] | None = None) -> User:
    """`user`, `uid`, `user:group`, … and --group-add's groups, by the content of /etc/passwd and /etc/group; "" is
    uid 0. Raises ValueError, with Docker's words, for a name that is not there and a number above HIGHEST."""
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
        raise ValueError(f"unable to find user {user_part}: no matching entries in passwd file")
    uid = _number(entry[2]) if entry else number
    gid = _number(entry[3]) if entry else 0
    home = entry[5] if entry and len(entry) > 5 else ""
    groups: list[int] = []
    if group_part:
        gid = _group(group, group_part)
        if gid is None:
            raise ValueError(f"unable to find group {group_part}: no matching entries in group file")
    elif entry:
        for parts in group:
            members = parts[3].split(",") if len(parts) > 3 else []
            if entry[0] in members and (known := _number(parts[2])) is not None and known not in groups:
                groups.append(known)
    for name in extra_groups or ():
        extra = _group(group, name)
        if extra is None:
            raise ValueError(f"Unable to find group {name}: no matching entries in group file")
        if extra not in groups:
            groups.append(extra)
    # The group is among the supplementary ones, too: else a program that gives up its group (setgid) would no longer
    # be kept from what that group may not do (CVE-2022-36109).
    if (gid or 0) not in groups:
        groups.insert(0, gid or 0)
    return User(uid or 0, gid or 0, groups, home)


def memberships(found: Files, name: str) -> list[int]:
    """The groups that /etc/group has the user of that name or number in, whatever its own group is. Raises ValueError
    for a number above HIGHEST."""
    passwd, group = _lines(found[0], 4), _lines(found[1], 3)
    known = next((parts[0] for parts in passwd if name in (parts[0], parts[2])), name)
    numbers = [_number(parts[2]) for parts in group if len(parts) > 3 and known in parts[3].split(",")]
    return [number for number in numbers if number is not None]


def _group(group: list[list[str]], name: str) -> int | None:
    for parts in group:
        if parts[0] == name:
            return _number(parts[2])
    return _number(name)
