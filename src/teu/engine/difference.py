# SPDX-License-Identifier: Apache-2.0
"""`diff`: what a container has changed (0), added (1) and deleted (2) against its image.

The overlay's upper folder is the answer already: what is in it is changed where a lower layer has it too,
else added; a whiteout is a deletion.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from teu.engine import rootfs
from teu.engine.errors import EngineError
from teu.linux import inside

if TYPE_CHECKING:
    from teu.engine.container import Container
    from teu.engine.engine import Engine

CHANGED, ADDED, DELETED = 0, 1, 2

# Places for mounts, which the runtime makes in the root; they are nobody's change.
MADE_BY_RUNTIME = {
    "/dev", "/dev/console", "/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/sys", "/etc/hostname", "/etc/hosts",
    "/etc/resolv.conf", "/sbin/docker-init",
}  # fmt: skip


def changes(engine: Engine, container: Container) -> list[dict[str, Any]]:
    upper, lowers = "", []
    for mount in rootfs.snapshot_mounts(engine, container):
        if mount.type == "bind":
            upper = mount.source  # an image without layers: all is new
        for option in mount.options:
            if option.startswith("upperdir="):
                upper = option[9:]
            elif option.startswith("lowerdir="):
                lowers = option[9:].split(":")
    if not upper:
        raise EngineError("the snapshotter does not keep a container's changes apart; diff is not possible")
    roots = [os.open(lower, os.O_PATH | os.O_DIRECTORY) for lower in lowers]
    found: dict[str, int] = {}
    try:
        _walk(upper, "", roots, found)
    finally:
        for root in roots:
            os.close(root)
    kept: dict[str, int] = {}
    for path, kind in found.items():
        if path in MADE_BY_RUNTIME:
            continue
        if kind == CHANGED and os.path.isdir(upper + path) and not os.path.islink(upper + path):
            below = [other for other in found if other.startswith(path + "/")]
            if below and all(other in MADE_BY_RUNTIME for other in below):
                continue
        kept[path] = kind
    return [{"Path": path, "Kind": kept[path]} for path in sorted(kept)]


def _walk(upper: str, folder: str, lowers: list[int], found: dict[str, int]) -> None:
    opaque = _opaque(upper + folder) if folder else False
    for entry in os.scandir(upper + folder or "/"):
        path = f"{folder}/{entry.name}"
        info = entry.stat(follow_symlinks=False)
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            found[path] = DELETED
            continue
        known = [] if opaque else _having(lowers, path)
        found[path] = CHANGED if known else ADDED
        if stat.S_ISDIR(info.st_mode):
            _walk(upper, path, known, found)


def _opaque(path: str) -> bool:
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            if os.getxattr(path, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False


def _having(lowers: list[int], path: str) -> list[int]:
    """The layers that show this path: down to the first whiteout or opaque parent."""
    result = []
    for root in lowers:
        try:
            descriptor = inside.open_in_root(root, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            continue
        info = os.fstat(descriptor)
        os.close(descriptor)
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            break
        result.append(root)
    return result
