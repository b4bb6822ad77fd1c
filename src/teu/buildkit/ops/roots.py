# SPDX-License-Identifier: Apache-2.0
"""Paths in the root of a step, which any image or context may have filled: what leads where, and opening it.

A path is first made a real one: links and ".." are followed inside of the root, as far as it exists
(linux.inside.real_path). What is opened then is opened without following any link, below the root.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator

from teu.buildkit.core import errors
from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2, real_path
from teu.linux.trees import remove_tree
from teu.oci.patterns import BadPattern, has_wildcards, wildcard

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_WAY = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_PATH_MAX = 4000


class PathError(errors.Error):
    """Something cannot be done with a path, told as Go tells it: "lstat /a: no such file or directory"."""

    def __init__(self, what: str, path: str, number: int) -> None:
        words = os.strerror(number)
        super().__init__(f"{what} {path}: {words[:1].lower()}{words[1:]}")
        self.number = number


def clean(path: str) -> str:
    """Absolute, without "." and ".."; a "/" or "/." at its end stays, for it says that a folder is meant."""
    found = posixpath.normpath("/" + path)
    found = found[1:] if found.startswith("//") else found
    if path.endswith("/."):
        return found + ("." if found == "/" else "/.")
    if path.endswith("/") and found != "/":
        return found + "/"
    return found


def plain(path: str) -> str:
    """The same without what is at its end."""
    return clean(path).removesuffix("/.").rstrip("/") or "/"


class Root:
    """A mounted root. A context manager."""

    def __init__(self, place: str) -> None:
        self.descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def real(self, path: str, follow: bool = True) -> str:
        """Where the path leads; without `follow` its last name is taken as it is."""
        path = plain(path)
        if follow or path == "/":
            return real_path(self.descriptor, path)
        above, name = posixpath.split(path)
        return posixpath.join(real_path(self.descriptor, above), name)

    def open(self, real: str, flags: int = FOLDER) -> int:
        """Open a real path. OSError."""
        here = os.open(".", FOLDER, dir_fd=self.descriptor)
        rest = os.fsencode(real.strip("/"))
        while rest:
            step = rest
            if len(step) > _PATH_MAX:
                step = rest[: rest.rindex(b"/", 0, _PATH_MAX)]
            rest = rest[len(step) + 1 :]
            try:
                below = openat2(here, os.fsdecode(step), FOLDER if rest else flags, _WAY)
            finally:
                os.close(here)
            here = below
        return here

    def parent(self, real: str) -> tuple[int, str]:
        """(the folder of a real path, open; its last name). "." for the root itself."""
        above, name = posixpath.split(real)
        return self.open(above), name or "."

    def status(self, real: str, what: str = "lstat") -> os.stat_result:
        """Raises PathError."""
        try:
            folder, name = self.parent(real)
            try:
                return os.stat(name, dir_fd=folder, follow_symlinks=False)
            finally:
                os.close(folder)
        except OSError as error:
            raise PathError(what, real, _number(error)) from None

    def find(self, real: str) -> os.stat_result | None:
        """The status; None where there is nothing."""
        try:
            return self.status(real)
        except PathError as error:
            if error.number in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def remove(self, folder: int, name: str) -> None:
        """Remove what has this name, with all that is in it; nothing where there is none."""
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            remove_tree(f"/proc/self/fd/{folder}/{name}")

    # Wildcards

    def matches(self, pattern: str, follow: bool) -> list[str]:
        """The real paths that a pattern of path.Match stands for, in order. A link is not gone through where a name of
        the pattern has wildcards, nor after it."""
        names = [name for name in plain(pattern).split("/") if name]
        fixed = []
        for name in names:
            if has_wildcards(name):
                break
            fixed.append(name)
        rest = names[len(fixed) :]
        if not rest:
            return ["/" + "/".join(names)]
        try:
            expressions = [wildcard(name) for name in rest]
        except BadPattern:
            return []
        base = self.real("/" + "/".join(fixed), follow)
        status = self.status(base)
        if not stat.S_ISDIR(status.st_mode):
            return []
        found: list[str] = []
        todo: list[tuple[str, int]] = [(base, 0)]
        while todo:
            path, depth = todo.pop()
            if depth == len(expressions):
                found.append(path)
                continue
            below = [
                (posixpath.join(path, name), depth + 1)
                for name in self._names(path)
                if expressions[depth].fullmatch(name)
            ]
            todo += reversed(below)
        return found

    def _names(self, real: str) -> Iterator[str]:
        try:
            folder = self.open(real)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                return
            raise PathError("open", real, _number(error)) from None
        try:
            yield from sorted(os.listdir(folder), key=os.fsencode)
        finally:
            os.close(folder)


def _number(error: OSError) -> int:
    if error.errno in (errno.ELOOP, errno.EXDEV):
        return errno.ENOTDIR  # a link where a folder was: it is not gone through
    return error.errno or errno.EIO
