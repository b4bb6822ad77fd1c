# SPDX-License-Identifier: Apache-2.0
"""What both ends of fsutil's protocol agree on: its packets' kinds, modes as Go has them, and the order of paths.

Called by the builder's sessions and by `teu build`, which is their other end. teu.buildkit.session.fsutil tells the
protocol.
"""

from __future__ import annotations

import os
import stat as modes

STAT, REQ, DATA, FIN, ERR = range(5)  # kinds of packets

# Go's os.FileMode.
GO_DIR, GO_SYMLINK, GO_DEVICE, GO_FIFO, GO_SOCKET = 1 << 31, 1 << 27, 1 << 26, 1 << 25, 1 << 24
GO_SETUID, GO_SETGID, GO_CHARACTER, GO_STICKY, GO_IRREGULAR = 1 << 23, 1 << 22, 1 << 21, 1 << 20, 1 << 19
GO_TYPE = GO_DIR | GO_SYMLINK | GO_DEVICE | GO_FIFO | GO_SOCKET | GO_CHARACTER | GO_IRREGULAR

PATH_MAX, NAME_MAX = 4095, 255
CHUNK = 32 << 10  # bytes of a DATA packet, as fsutil itself has it


_GO_MODES: dict[int, int] = {}  # those that were seen


def go_mode(mode: int) -> int:
    """A file's mode as Go has it. A socket counts as a file, as fsutil's sender has it."""
    found = _GO_MODES.get(mode)
    if found is None:
        found = _GO_MODES[mode] = _go_mode(mode)
    return found


def _go_mode(mode: int) -> int:
    result = mode & 0o777
    kind = modes.S_IFMT(mode)
    result |= {
        modes.S_IFDIR: GO_DIR,
        modes.S_IFLNK: GO_SYMLINK,
        modes.S_IFBLK: GO_DEVICE,
        modes.S_IFCHR: GO_DEVICE | GO_CHARACTER,
        modes.S_IFIFO: GO_FIFO,
    }.get(kind, 0)
    for bit, go in ((modes.S_ISUID, GO_SETUID), (modes.S_ISGID, GO_SETGID), (modes.S_ISVTX, GO_STICKY)):
        if mode & bit:
            result |= go
    return result


def permissions(mode: int) -> int:
    """The bits for chmod of a mode as Go has it."""
    result = mode & 0o777
    for bit, go in ((modes.S_ISUID, GO_SETUID), (modes.S_ISGID, GO_SETGID), (modes.S_ISVTX, GO_STICKY)):
        if mode & go:
            result |= bit
    return result


class Order:
    """That paths are such as a walk finds them."""

    def __init__(self) -> None:
        self._last: list[bytes] = []
        self._folders: list[bytes] = []

    def check(self, path: bytes, folder: bool) -> list[bytes]:
        """The path's names; ValueError where the path may not come, or not now. folder: paths in it may follow."""
        names: list[bytes] = path.split(b"/")
        if len(path) > PATH_MAX or b"\0" in path:
            raise ValueError(f"invalid path of {len(path)} bytes")
        if b"" in names or b"." in names or b".." in names or max(map(len, names)) > NAME_MAX:
            raise ValueError(f"invalid path {os.fsdecode(path)!r}")
        if names <= self._last:
            raise ValueError(f"changes out of order: {os.fsdecode(path)!r}")
        parent = path[: -len(names[-1]) - 1]
        while self._folders and self._folders[-1] != parent:
            self._folders.pop()
        if parent and not self._folders:
            raise ValueError(f"changes out of order: {os.fsdecode(path)!r} is in no folder that was told")
        self._last = names
        if folder:
            self._folders.append(path)
        return names
