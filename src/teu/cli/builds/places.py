# SPDX-License-Identifier: Apache-2.0
"""Paths below an open folder, opened name by name through no link. Called by sending and receiving.

As openat2's RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS have it; that would be one call, but loading ctypes for it takes
a tenth of a build whose steps are cached. The folder that was opened last is kept: neighbours come together."""

from __future__ import annotations

import errno
import os

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Places:
    """A folder, from which paths lead. `close` it; the folder itself is the caller's."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._kept = ("", -1)

    def parent(self, path: str) -> tuple[int, str]:
        """The open folder that a path is in, good until the next call, and its name there. OSError: NotADirectoryError
        where the way leads through a link or a file."""
        folder, _, name = path.rpartition("/")
        if not folder:
            return self._folder, self._checked(name)
        if self._kept[1] < 0 or self._kept[0] != folder:
            opened = self._open(folder)
            self.close()
            self._kept = (folder, opened)
        return self._kept[1], self._checked(name)

    def _open(self, folder: str) -> int:
        here = self._folder
        try:
            for name in folder.split("/"):
                inner = os.open(self._checked(name), _FOLDER, dir_fd=here)
                if here != self._folder:
                    os.close(here)
                here = inner
        except BaseException:
            if here != self._folder:
                os.close(here)
            raise
        return here

    @staticmethod
    def _checked(name: str) -> str:
        if name in ("", ".", ".."):
            raise OSError(errno.EINVAL, "not the name of a file", name)
        return name

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        """A descriptor of what is at a path; ELOOP where that is a link."""
        parent, name = self.parent(path)
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent)

    def close(self) -> None:
        if self._kept[1] >= 0:
            os.close(self._kept[1])
            self._kept = ("", -1)
