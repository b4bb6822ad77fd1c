# SPDX-License-Identifier: Apache-2.0
"""A result as one tree of files: each platform's below a folder of its own, or all in one, with files of our own among
them. session.fsutil sends it, `archive` makes a tar of it. The snapshots are only read."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from teu.api.buildkit.fsutil import raw_pb2
from teu.buildkit.core import errors
from teu.buildkit.session.fsutil import Folder
from teu.oci import tar
from teu.oci.fsutil import GO_CHARACTER, GO_DEVICE, GO_DIR, GO_FIFO, GO_SYMLINK, GO_TYPE, go_mode, permissions

FOLDER_MODE, FILE_MODE = 0o040755, 0o100600


def order(path: bytes) -> list[bytes]:
    """Entries stand in the order of their paths' parts."""
    return path.split(b"/")


@dataclass
class Root:
    """One tree within the whole: below `prefix` ("" is the top), an open folder or nothing, and files by their names,
    which take the place of files of the tree."""

    prefix: bytes
    folder: int | None
    files: Mapping[bytes, bytes] = field(default_factory=dict)


class Whole:
    """session.fsutil.Tree. `epoch`: the time of all that is in it (seconds since 1970)."""

    def __init__(self, roots: Sequence[Root], epoch: int | None, now: int) -> None:
        """now: the time of files of our own, nanoseconds since 1970."""
        self._roots = sorted(roots, key=lambda root: root.prefix)
        self._time = epoch * 1_000_000_000 if epoch is not None else None
        self._now = now

    def entries(self) -> Iterator[Any]:
        last: Any = None
        for entry in heapq.merge(*map(self._placed, self._roots), key=lambda entry: order(entry.path)):
            if last is not None and entry.path == last.path:
                if entry.mode & GO_DIR and last.mode & GO_DIR:
                    continue
                raise errors.InvalidArgument(
                    f"cannot overwrite {os.fsdecode(entry.path)} of one platform with that of another when the option "
                    "platform-split is disabled"
                )
            last = entry
            if self._time is not None:
                entry.modTime = self._time
            yield entry

    def _placed(self, root: Root) -> Iterator[Any]:
        """The entries of one of them, where they stand in the whole."""
        if root.prefix:
            yield self._made(root.prefix, FOLDER_MODE, b"")
        for entry in self._below(root):
            if root.prefix:
                entry.path = root.prefix + b"/" + entry.path
                if entry.linkname and not entry.mode & GO_SYMLINK:
                    entry.linkname = root.prefix + b"/" + entry.linkname
            yield entry

    def _made(self, path: bytes, mode: int, data: bytes) -> Any:
        time = self._time if self._time is not None else self._now
        return raw_pb2.Stat(path=path, mode=go_mode(mode), size=len(data), modTime=time)

    def _below(self, root: Root) -> Iterator[Any]:
        """The tree's entries and our own files, in one order."""
        own = sorted(root.files)
        if root.folder is not None:
            for entry in Folder(root.folder).entries():
                while own and order(own[0]) < order(entry.path):
                    yield self._made(own[0], FILE_MODE, root.files[own.pop(0)])
                top = entry.path.split(b"/", 1)[0]
                if top in root.files:
                    continue
                yield entry
        for name in own:
            yield self._made(name, FILE_MODE, root.files[name])

    def read(self, path: bytes) -> Iterator[bytes]:
        for root in self._roots:
            if root.prefix and not path.startswith(root.prefix + b"/"):
                continue
            inner = path[len(root.prefix) + 1 :] if root.prefix else path
            if inner in root.files:
                yield root.files[inner]
                return
            if root.folder is not None and (root.prefix or len(self._roots) == 1 or _has(root.folder, inner)):
                yield from Folder(root.folder).read(inner)
                return


def _has(folder: int, path: bytes) -> bool:
    try:
        os.stat(path, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def archive(whole: Whole) -> Iterator[bytes]:
    """A tar of it."""
    for entry in whole.entries():
        header = _header(entry)
        if header is None:
            continue
        yield tar.pack(header)
        if header.type != tar.REGULAR:
            continue
        left = header.size
        for data in whole.read(entry.path):
            data = data[:left]  # it grew meanwhile
            left -= len(data)
            yield data
        while left:  # or it shrank
            part = bytes(min(left, 1 << 16))
            left -= len(part)
            yield part
        yield bytes(-header.size % 512)
    yield bytes(1024)


def _header(entry: Any) -> tar.Entry | None:
    """None for what a tar cannot hold, a socket."""
    header = tar.Entry()
    header.name = os.fsdecode(entry.path)
    header.mode, header.uid, header.gid, header.mtime = permissions(entry.mode), entry.uid, entry.gid, entry.modTime
    kind = entry.mode & GO_TYPE
    if kind == GO_DIR:
        header.type, header.name = tar.DIRECTORY, header.name + "/"
    elif kind == GO_SYMLINK:
        header.type, header.link = tar.SYMLINK, os.fsdecode(entry.linkname)
    elif kind == GO_FIFO:
        header.type = tar.FIFO
    elif kind & GO_DEVICE:
        header.type = tar.CHARACTER if kind & GO_CHARACTER else tar.BLOCK_DEVICE
        header.devmajor, header.devminor = entry.devmajor, entry.devminor
    elif kind:
        return None
    elif entry.linkname:
        header.type, header.link = tar.HARD_LINK, os.fsdecode(entry.linkname)
    else:
        header.size = entry.size
        header.xattrs = {key: bytes(value) for key, value in entry.xattrs.items()} or None
    return header
