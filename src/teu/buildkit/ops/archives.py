# SPDX-License-Identifier: Apache-2.0
"""ADD of a local archive: whether a file is one, and unpacking it.

The folder that it is unpacked into is the root for all that is in it: links on the way lead nowhere else, a name with
".." is refused.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from teu.buildkit.core import errors
from teu.buildkit.ops.copying import Owner
from teu.buildkit.ops.roots import FOLDER, NODE, Root
from teu.linux.inside import make_in_root, open_in_root
from teu.linux.trees import remove_tree
from teu.oci import archive, tar

CHUNK = 1 << 20
IMPLIED_MODE = 0o755  # of folders that the archive does not name itself
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}
_KNOWN = {tar.REGULAR, tar.DIRECTORY, tar.SYMLINK, tar.HARD_LINK, *_NODES}
TIMES_MAX = 1_000_000  # folders whose times are set at the end


class _File:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, size: int = -1, /) -> bytes:
        return os.read(self._descriptor, CHUNK if size < 0 else min(size, CHUNK))


@contextmanager
def opened(root: Root, real: str) -> Iterator[Iterator[tuple[tar.Entry, int, tar.Source]] | None]:
    """The entries of the archive that a real path is; None where it is none."""
    try:
        place = root.open(real, NODE)
    except OSError:
        yield None
        return
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            yield None
            return
        descriptor = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(place)
    try:
        stream = archive.decompressed(_File(descriptor))
        source = tar.Source(lambda: bytes(stream.read(CHUNK)))
        found = tar.entries(source)
        try:
            first = next(found, None)
        except OSError:
            raise
        except Exception:  # each compression has errors of its own
            first = None
        if first is None:
            yield None
            return

        def entries() -> Iterator[tuple[tar.Entry, int, tar.Source]]:
            yield (*first, source)
            for entry, stored in found:
                yield entry, stored, source

        yield entries()
    finally:
        os.close(descriptor)


class Unpacking:
    """An archive into the folder of an open descriptor."""

    def __init__(self, folder: int, owner: Owner | None, check: Callable[[], None]) -> None:
        self._root = folder
        self._owner = owner
        self._check = check
        self._times: list[tuple[str, int]] = []

    def run(self, entries: Iterator[tuple[tar.Entry, int, tar.Source]]) -> None:
        """Raises errors.Error, OSError."""
        try:
            for entry, stored, source in entries:
                self._check()
                left = self._one(entry, stored, source)
                source.skip(left)
        except tar.TarError as error:
            raise errors.Error(f"unpack: {error}") from None
        except OSError:
            raise
        except errors.Error:
            raise
        except Exception as error:  # each compression has errors of its own
            raise errors.Error(f"unpack: {error}") from None
        for path, moment in reversed(self._times):
            try:
                descriptor = open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError:
                continue  # a later entry replaced it
            try:
                os.utime(descriptor, ns=(moment, moment))
            finally:
                os.close(descriptor)

    def _name(self, text: str) -> str:
        """A name in the archive as a path below the folder; "" for the folder itself."""
        found = posixpath.normpath(text.lstrip("/") or ".")
        if found == ".." or found.startswith("../"):
            raise errors.Error(f"invalid tar entry: {tar.short(text)} leads out of the folder that it is unpacked to")
        return "" if found == "." else found

    def _one(self, entry: tar.Entry, stored: int, source: tar.Source) -> int:
        """How many bytes of its data are left in the source."""
        if entry.type not in _KNOWN:
            return stored
        path = self._name(entry.name)
        if not path:
            if entry.type == tar.DIRECTORY:
                self._attributes(self._root, entry)
                self._times.append((".", entry.mtime))
            return stored
        above, name = posixpath.split(path)
        parent = self._parent(above)
        try:
            if entry.type == tar.DIRECTORY:
                self._folder(parent, name, path, entry)
                return stored
            self._clear(parent, name)
            if entry.type == tar.HARD_LINK:
                self._link(parent, name, entry)
                return stored
            made = self._make(parent, name, entry, stored, source)
            try:
                self._attributes(made, entry)
                os.utime(f"/proc/self/fd/{made}", ns=(entry.mtime, entry.mtime))
            finally:
                os.close(made)
            return 0 if entry.type == tar.REGULAR else stored
        finally:
            os.close(parent)

    def _parent(self, above: str) -> int:
        if not above:
            return os.open(".", FOLDER, dir_fd=self._root)
        try:
            return open_in_root(self._root, above, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            os.close(make_in_root(self._root, above, "dir", IMPLIED_MODE))
            return open_in_root(self._root, above, os.O_RDONLY | os.O_DIRECTORY)

    def _clear(self, parent: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            try:
                os.rmdir(name, dir_fd=parent)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                remove_tree(f"/proc/self/fd/{parent}/{name}")

    def _folder(self, parent: int, name: str, path: str, entry: tar.Entry) -> None:
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(name, dir_fd=parent)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            pass
        made = os.open(name, FOLDER, dir_fd=parent)
        try:
            self._attributes(made, entry)
        finally:
            os.close(made)
        if len(self._times) < TIMES_MAX:
            self._times.append((path, entry.mtime))

    def _link(self, parent: int, name: str, entry: tar.Entry) -> None:
        above, own = posixpath.split(self._name(entry.link))
        folder = self._parent(above)
        try:
            os.link(own or ".", name, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(folder)

    def _make(self, parent: int, name: str, entry: tar.Entry, stored: int, source: tar.Source) -> int:
        if entry.type == tar.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent)
        elif entry.type in _NODES:
            os.mknod(name, _NODES[entry.type] | 0o600, os.makedev(entry.devmajor, entry.devminor), dir_fd=parent)
        else:
            made = os.open(name, _CREATE, 0o600, dir_fd=parent)
            try:
                self._contents(made, entry, stored, source)
            except BaseException:
                os.close(made)
                raise
            return made
        return os.open(name, NODE, dir_fd=parent)

    def _contents(self, made: int, entry: tar.Entry, stored: int, source: tar.Source) -> None:
        if entry.sparse is None:
            for piece in source.pieces(stored):
                _write(made, piece)
            return
        left = stored
        for offset, length in entry.sparse:
            os.lseek(made, offset, os.SEEK_SET)
            for piece in source.pieces(min(length, left)):
                _write(made, piece)
            left -= min(length, left)
        source.skip(left)
        os.ftruncate(made, entry.size)

    def _attributes(self, made: int, entry: tar.Entry) -> None:
        place = f"/proc/self/fd/{made}"
        owner = self._owner or Owner(entry.uid, entry.gid)
        os.chown(place, owner.uid, owner.gid)
        if entry.type != tar.SYMLINK:
            os.chmod(place, entry.mode & 0o7777)
        for key, value in (entry.xattrs or {}).items():
            try:
                os.setxattr(place, key, value)
            except OSError:
                pass  # this file system has none such


def _write(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]
