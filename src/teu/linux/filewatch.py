# SPDX-License-Identifier: Apache-2.0
"""Notice when files are written to or replaced, by inotify(7). Called by what follows the host's
resolv.conf."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from posix import uname

from teu.linux.syscalls import syscall

_INIT, _ADD, _REMOVE = {"x86_64": (294, 254, 255)}.get(uname().machine, (26, 27, 28))
IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_ONLYDIR = 0x8, 0x80, 0x100, 0x200, 0x01000000
_CHANGES = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_ONLYDIR


class FileWatch:
    """Of files by their paths, whether they are there or not. A link is watched with what it leads to."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Raises OSError."""
        self._paths = list(paths)
        self._descriptor = syscall("inotify_init1", _INIT, os.O_CLOEXEC)
        self._watches: set[int] = set()
        try:
            self._follow()
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Nothing is noticed any more."""
        os.close(self._descriptor)
        self._descriptor = -1

    def fileno(self) -> int:
        """To wait in poll(2) for."""
        return self._descriptor

    def _follow(self) -> None:
        """Folders are watched, as a file that is replaced is another one; those that are not there are not."""
        for path in self._paths:
            for one in (path, os.path.realpath(path)):
                folder = os.fsencode(os.path.dirname(one))
                with contextlib.suppress(FileNotFoundError):
                    self._watches.add(syscall("inotify_add_watch", _ADD, self._descriptor, folder, _CHANGES))

    def rouse(self) -> None:
        """Let another thread's `wait` return: the kernel tells it that a watch is no more."""
        for watch in list(self._watches):
            with contextlib.suppress(OSError):  # its folder is no more
                syscall("inotify_rm_watch", _REMOVE, self._descriptor, watch)

    def wait(self) -> None:
        """Until something happened in the files' folders, which may be to another file."""
        os.read(self._descriptor, 1 << 16)
        self._follow()
