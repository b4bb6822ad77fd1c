# SPDX-License-Identifier: Apache-2.0
"""Applies a layer's entries to a directory tree. Called by `worker`, with the tree opened as a descriptor.

Every path of an entry is resolved by the kernel within the tree (openat2, RESOLVE_IN_ROOT): symbolic links in it are
followed, as in the container, but never out of it. Names that climb above the root are refused, and so are whiteouts
of the root itself and hard links to what is outside.

Whiteouts (OCI image-spec, "layer"): `.wh.NAME` removes NAME of the layers below; `.wh..wh..opq` removes all that its
directory holds from below. On an overlay mount the kernel turns removals into its own whiteouts in the upper layer.
"""

from __future__ import annotations

import contextlib
import os
import stat

from teu.containerd.layers import files
from teu.linux import trees, writeback
from teu.linux.inside import open_in_root
from teu.oci import tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.oci.tar import Entry, Source

WRITEBACK_AT = 4 << 20  # files of this size begin to be written back at once

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_CACHED = 512  # open parent directories: layers are not always sorted, and a shell allows 1024 descriptors


class LayerError(ValueError):
    """The layer asks for what no layer may."""


class Parent:
    """An open directory that entries are put into."""

    __slots__ = ("fd", "identity", "inherits")

    def __init__(self, fd: int) -> None:
        found = os.fstat(fd)
        self.fd = fd
        self.identity = (found.st_dev, found.st_ino)  # two paths may lead to one directory
        self.inherits = bool(found.st_mode & stat.S_ISGID)  # new files get its group


def clean(name: str) -> str:
    """The name without `.`, doubled slashes and a leading slash; LayerError when it climbs above the root."""
    if "\0" in name:
        raise LayerError(f"entry {tar.short(name)!r} has a zero byte in its name")
    if ".." not in name and "//" not in name and "/." not in name and name[:1] not in ("/", "."):
        return name.rstrip("/")
    parts: list[str] = []
    for part in name.split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            if not parts:
                raise LayerError(f"entry {tar.short(name)!r} climbs out of the layer's root")
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


class Unpacker:
    def __init__(self, root: int, *, fresh: bool) -> None:
        """`fresh`: the tree is empty, so there is nothing below that a whiteout could remove."""
        self._root = root
        self._fresh = fresh
        self._files = files.Files()
        self._parents: dict[str, Parent] = {}
        self._times: list[tuple[str, int]] = []  # of directories, to be set when nothing is put into them any more
        self._unpacked: set[int] = set()  # hashes of this layer's own paths: an opaque directory keeps them
        self.count = 0

    def run(self, source: Source) -> None:
        """Apply all entries. When one fails, those before it are there, and the first that failed is told."""
        try:
            for entry, stored in tar.entries(source):
                try:
                    self._one(entry, stored, source)
                except OSError as error:
                    told = files.explained(error, entry)
                    raise told from (error if told is not error else None)
                self.count += 1
        except (OSError, ValueError):
            self._files.settle()
            raise
        self._files.settle()
        for path, moment in reversed(self._times):
            self._set_directory_time(path, moment)
        self._forget()

    def _set_directory_time(self, path: str, moment: int) -> None:
        parent, base = self._split(path)
        try:
            if base:
                os.utime(base, ns=(moment, moment), dir_fd=self._parent(parent).fd, follow_symlinks=False)
            else:
                os.utime(f"/proc/self/fd/{self._root}", ns=(moment, moment))
        except (FileNotFoundError, NotADirectoryError):
            pass  # a later entry or whiteout removed it

    # Paths

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        parent, _, base = path.rpartition("/")
        return parent, base

    def _forget(self) -> None:
        self._files.settle()  # they need the descriptors
        for parent in self._parents.values():
            os.close(parent.fd)
        self._parents.clear()

    def _parent(self, path: str) -> Parent:
        """The directory `path`, made with its ancestors where the layer forgot them."""
        found = self._parents.get(path)
        if found is not None:
            return found
        try:
            fd = open_in_root(self._root, path, _DIRECTORY)
        except FileNotFoundError:
            if self._files.settle():
                return self._parent(path)  # it may be among the files that were not made yet
            fd = self._make_directories(path)
        except NotADirectoryError as error:
            raise LayerError(f"{tar.short(path)!r} is not a directory, but the layer has entries in it") from error
        if len(self._parents) >= _CACHED:
            self._forget()
        found = self._parents[path] = Parent(fd)
        return found

    def _make_directories(self, path: str) -> int:
        """Open `path`, with what is missing of it made, which begins below the nearest folder that is there."""
        missing: list[str] = []
        upper = path
        while True:
            upper, base = self._split(upper)
            missing.append(base)
            try:
                fd = open_in_root(self._root, upper, _DIRECTORY)
                break
            except FileNotFoundError:
                if not upper:
                    raise
        for base in reversed(missing):
            above = fd
            try:
                with contextlib.suppress(FileExistsError):  # a link to nowhere: the open says so
                    os.mkdir(base, 0o755, dir_fd=above)
                fd = os.open(base, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
            finally:
                os.close(above)
        return fd

    def _remove(self, parent: int, base: str) -> bool:
        """Whatever `base` is, with all that is in it; False when there was nothing."""
        self._files.settle()  # some may be in it
        try:
            os.unlink(base, dir_fd=parent)
            self._forget_all_but(parent)
            return True
        except FileNotFoundError:
            return False
        except IsADirectoryError:
            pass
        trees.remove_tree(f"/proc/self/fd/{parent}/{base}")
        self._forget_all_but(parent)
        return True

    def _forget_all_but(self, keep: int) -> None:
        """A directory or a link on the way may be gone: look every parent up again, but the one in use."""
        for path in [path for path, parent in self._parents.items() if parent.fd != keep]:
            os.close(self._parents.pop(path).fd)

    # Entries

    # Small files with new names are made by threads (`files`), in whatever order; everything else happens here, in the
    # layer's order. Nobody can tell: a new name changes no path that was found before, and whatever may depend on such
    # a file settles first: its name again, a hard link, a directory's attributes, a removal, a path that is not found.

    def _one(self, entry: Entry, stored: int, source: Source) -> None:
        path = clean(entry.name)
        parent_path, base = self._split(path)
        if not base:
            if entry.type != tar.DIRECTORY:
                raise LayerError(f"entry {tar.short(entry.name)!r} would replace the root directory")
            self._attributes_of_root(entry)
            return
        if base.startswith(".wh."):
            self._whiteout(entry, parent_path, base)
            if stored:
                source.skip(stored)
            return
        above = self._parent(parent_path)
        parent, inherits = above.fd, above.inherits
        if not self._fresh:
            self._unpacked.add(hash(path))
        kind = entry.type
        if kind == tar.HARD_LINK or self._files.waits_for(above.identity, base):
            self._files.settle()
        if kind == tar.REGULAR:
            if stored > files.FILE_LIMIT or entry.sparse is not None or _exists(parent, base):
                self._file(entry, stored, source, parent, base, inherits)
            else:
                data = files.content(stored, source)
                self._files.add(files.NewFile(entry, parent, base, inherits, data), above.identity)
        elif kind == tar.DIRECTORY:
            self._directory(entry, path, parent, base)
        elif kind == tar.SYMLINK:
            self._replace(parent, base, lambda: os.symlink(entry.link, base, dir_fd=parent))
            self._attributes(entry, parent, base, inherits, mode=False)
        elif kind == tar.HARD_LINK:
            self._hard_link(entry, parent, base)
        elif kind in (tar.CHARACTER, tar.BLOCK_DEVICE, tar.FIFO):
            node = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[kind]
            device = os.makedev(entry.devmajor, entry.devminor) if kind != tar.FIFO else 0
            if kind == tar.CHARACTER and device == 0:
                raise LayerError(f"entry {tar.short(entry.name)!r} is a device 0:0: for overlayfs a whiteout")
            self._replace(parent, base, lambda: os.mknod(base, entry.mode | node, device, dir_fd=parent))
            self._attributes(entry, parent, base, inherits, mode=True)
        else:
            raise LayerError(f"entry {tar.short(entry.name)!r} has the unknown type {kind!r}")

    def _replace(self, parent: int, base: str, make: object) -> None:
        """Call `make`; when something is in its way, remove that and call it again."""
        try:
            make()  # type: ignore[operator]
        except FileExistsError:
            self._remove(parent, base)
            make()  # type: ignore[operator]

    def _file(self, entry: Entry, stored: int, source: Source, parent: int, base: str, inherits: bool) -> None:
        try:
            fd = os.open(base, files.CREATE, entry.mode, dir_fd=parent)
        except FileExistsError:
            self._remove(parent, base)
            fd = os.open(base, files.CREATE, entry.mode, dir_fd=parent)
        try:
            if entry.sparse is not None:
                self._sparse(fd, entry, stored, source)
            else:
                files.write(fd, source.pieces(stored))
            files.finish(fd, entry, inherits)
            if stored >= WRITEBACK_AT:
                writeback.start(fd)
        finally:
            os.close(fd)

    def _sparse(self, fd: int, entry: Entry, stored: int, source: Source) -> None:
        assert entry.sparse is not None
        os.ftruncate(fd, entry.size)
        for offset, length in entry.sparse:
            if offset < 0 or length < 0 or offset + length > entry.size or length > stored:
                raise tar.TarError(f"entry {tar.short(entry.name)!r} has a bad sparse map")
            stored -= length
            os.lseek(fd, offset, os.SEEK_SET)
            files.write(fd, source.pieces(length))
        source.skip(stored)

    def _directory(self, entry: Entry, path: str, parent: int, base: str) -> None:
        try:
            os.mkdir(base, entry.mode, dir_fd=parent)
        except FileExistsError:
            self._files.settle()  # files in it get its group and its default ACL as they were
            found = os.stat(base, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                self._remove(parent, base)
                os.mkdir(base, entry.mode, dir_fd=parent)
        # through a descriptor: chmod of a name would follow a link
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            if entry.xattrs:
                files.set_xattrs(fd, entry.xattrs)
        finally:
            os.close(fd)
        if entry.mode & stat.S_ISGID and path in self._parents:
            self._forget()
        self._times.append((path, entry.mtime))

    def _attributes_of_root(self, entry: Entry) -> None:
        self._files.settle()
        fd = os.open(f"/proc/self/fd/{self._root}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            if entry.xattrs:
                files.set_xattrs(fd, entry.xattrs)
        finally:
            os.close(fd)
        self._forget()
        self._times.append(("", entry.mtime))

    def _attributes(self, entry: Entry, parent: int, base: str, inherits: bool, *, mode: bool) -> None:
        if inherits or entry.uid or entry.gid:
            os.chown(base, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            if mode and entry.mode & 0o6000:
                os.chmod(base, entry.mode, dir_fd=parent)
        if entry.xattrs:
            files.set_xattrs(f"/proc/self/fd/{parent}/{base}", entry.xattrs)
        os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _hard_link(self, entry: Entry, parent: int, base: str) -> None:
        target = clean(entry.link)
        directory, name = self._split(target)
        if not name:
            raise LayerError(f"entry {tar.short(entry.name)!r} is a hard link to the root directory")
        try:
            source = self._parents[directory].fd if directory in self._parents else -1
            opened = open_in_root(self._root, directory, _DIRECTORY) if source < 0 else -1
        except OSError as error:
            raise _bad_link(entry, error) from error
        try:
            from_fd = source if source >= 0 else opened

            def make() -> None:
                os.link(name, base, src_dir_fd=from_fd, dst_dir_fd=parent, follow_symlinks=False)

            try:
                make()
            except FileExistsError:
                same = os.stat(name, dir_fd=from_fd, follow_symlinks=False)
                here = os.stat(base, dir_fd=parent, follow_symlinks=False)
                if (same.st_dev, same.st_ino) == (here.st_dev, here.st_ino):
                    return
                os.unlink(base, dir_fd=parent)
                make()
        except (FileNotFoundError, PermissionError) as error:
            raise _bad_link(entry, error) from error
        finally:
            if opened >= 0:
                os.close(opened)

    # Whiteouts

    def _whiteout(self, entry: Entry, parent_path: str, base: str) -> None:
        if base == ".wh..wh..opq":
            if not self._fresh:
                self._opaque(parent_path)
            return
        if base.startswith(".wh..wh."):
            return  # what aufs kept for itself
        name = base[len(".wh.") :]
        if name in ("", ".", ".."):
            raise LayerError(f"entry {tar.short(entry.name)!r} is a whiteout of the root or of nothing")
        if self._fresh:
            return
        try:
            parent = self._parents.get(parent_path) or Parent(open_in_root(self._root, parent_path, _DIRECTORY))
        except (FileNotFoundError, NotADirectoryError):
            return
        self._parents.setdefault(parent_path, parent)
        self._remove(parent.fd, name)

    def _opaque(self, top: str) -> None:
        """Remove what `top` holds, except what this layer has put there."""
        waiting = [top]
        while waiting:
            path = waiting.pop()
            try:
                fd = open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                for name in os.listdir(fd):
                    below = f"{path}/{name}" if path else name
                    if hash(below) not in self._unpacked:
                        self._remove(fd, name)
                    elif stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                        waiting.append(below)
            finally:
                os.close(fd)


def _bad_link(entry: Entry, error: OSError) -> LayerError:
    name, link = tar.short(entry.name), tar.short(entry.link)
    return LayerError(f"entry {name!r} is a hard link to {link!r}: {error.strerror}")


def _exists(parent: int, base: str) -> bool:
    return os.access(base, os.F_OK, dir_fd=parent, follow_symlinks=False)
