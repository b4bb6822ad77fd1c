# SPDX-License-Identifier: Apache-2.0
"""`diff`: what a container has changed (0), added (1) and deleted (2) against its image.

The overlay's upper folder is the answer already: what is in it is changed where a lower layer has it too,
else added; a whiteout is a deletion. The container may be at work in it meanwhile, and may have made it as deep as it
likes: it is walked by descriptors, and what vanishes is left out.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from teu.engine.core.errors import EngineError
from teu.engine.files import snapshots
from teu.linux import inside, trees

if TYPE_CHECKING:
    from typing import TypedDict

    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine

    class Change(TypedDict):
        """One path: CHANGED, ADDED or DELETED."""

        Path: str
        Kind: int


CHANGED, ADDED, DELETED = 0, 1, 2

# Places for mounts, which are made in every container's root; they are nobody's change.
MADE_BY_RUNTIME = {
    b"dev",
    b"dev/console",
    b"dev/mqueue",
    b"dev/pts",
    b"dev/shm",
    b"proc",
    b"sys",
    b"etc/hostname",
    b"etc/hosts",
    b"etc/resolv.conf",
    b"sbin/docker-init",
}
PATH_PART = 2048  # bytes of a path that is looked up at once: below the kernel's limit, 4096
_BENEATH = inside.RESOLVE_BENEATH | inside.RESOLVE_NO_SYMLINKS


def changes(engine: Engine, container: Container) -> list[Change]:
    """The API's, sorted by path. Raises EngineError."""
    upper, lowers = _layers(engine, container)
    if not upper:
        raise EngineError("the snapshotter does not keep a container's changes apart; diff is not possible")
    with contextlib.ExitStack() as opened:
        top, *roots = [_opened(path, opened) for path in (upper, *lowers)]
        found = dict(_changes(top, roots))
    # A folder that has changed by the runtime's places in it alone is nobody's change, either.
    told: set[bytes] = set()
    made: set[bytes] = set()
    for path in found:
        parents = made if path in MADE_BY_RUNTIME else told
        above = path.rpartition(b"/")[0]
        while above and above not in parents:
            parents.add(above)
            above = above.rpartition(b"/")[0]
    return [
        {"Path": "/" + path.decode("utf-8", "surrogateescape"), "Kind": found[path]}
        for path in sorted(found)
        if path not in MADE_BY_RUNTIME and not (found[path] == CHANGED and path in made and path not in told)
    ]


def _layers(engine: Engine, container: Container) -> tuple[str, list[str]]:
    """The folder of the container's own files, and those of its image's layers, the topmost first."""
    upper, lowers = "", []
    for mount in snapshots.mounts(engine, container):
        if mount.type == "bind":
            upper = mount.source  # an image without layers: all is new
        for option in mount.options:
            if option.startswith("upperdir="):
                upper = option[9:]
            elif option.startswith("lowerdir="):
                lowers = option[9:].split(":")
    return upper, lowers


def _opened(path: str, opened: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


def _changes(top: int, lowers: list[int]) -> Iterator[tuple[bytes, int]]:
    showing = {b"": lowers}  # of each folder: the layers whose files are seen in it
    for path, folder, name, status in trees.walk(top):
        if _is_whiteout(status):
            yield path, DELETED
            continue
        known = _having(showing[path.rpartition(b"/")[0]], path)
        yield path, CHANGED if known else ADDED
        if stat.S_ISDIR(status.st_mode):
            showing[path] = [] if known and _opaque(folder, name) else known


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _opaque(folder: int, name: bytes) -> bool:
    path = f"/proc/self/fd/{folder}/".encode() + name
    for mark in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            if os.getxattr(path, mark, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False


def _having(lowers: list[int], path: bytes) -> list[int]:
    """The layers that show this path: down to the first whiteout."""
    result = []
    for root in lowers:
        try:
            status = _status(root, path)
        except OSError:
            continue
        if _is_whiteout(status):
            break
        result.append(root)
    return result


def _status(root: int, path: bytes) -> os.stat_result:
    here = os.dup(root)
    try:
        parts = path.split(b"/")
        while parts:
            piece = [parts.pop(0)]
            length = len(piece[0])
            while parts and length + len(parts[0]) < PATH_PART:
                length += len(parts[0]) + 1
                piece.append(parts.pop(0))
            below = inside.openat2(here, os.fsdecode(b"/".join(piece)), os.O_PATH | os.O_NOFOLLOW, _BENEATH)
            os.close(here)
            here = below
        return os.fstat(here)
    finally:
        os.close(here)
