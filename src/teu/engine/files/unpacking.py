# SPDX-License-Identifier: Apache-2.0
"""A tar archive from standard input into a folder of a container. Called by the visitor.

Names in the archive are below that folder. They are looked up part by part from descriptors, so a path may be as long
as it likes; a link on the way leads where it leads in the container, never out of it. Holes stay holes: no more is
written than has come.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat

from teu.engine.files.paths import CHUNK, NoPlace, Refused, is_pseudo, look_up
from teu.linux import inside, trees
from teu.oci import tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.engine.files.paths import Asked
    from teu.oci.archive import Stream
    from teu.oci.tar import Entry

_FOLDER = os.O_PATH | os.O_DIRECTORY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}
_KNOWN = {tar.REGULAR, tar.DIRECTORY, tar.SYMLINK, tar.HARD_LINK, *_NODES}
HEAD = 8  # bytes that tell a compression
CACHED = 100  # folders that are kept open


class Input:
    """Standard input without its compression. What that needs is imported here: before the process is confined."""

    def __init__(self) -> None:
        self._head = b""
        while len(self._head) < HEAD and (more := os.read(0, HEAD - len(self._head))):
            self._head += more
        self._inflated: Stream | None = None
        from teu.oci import image_spec  # 16 ms, which the other verbs of the visitor do without

        if kind := image_spec.compression_of(self._head):
            import bz2  # noqa: F401
            import lzma  # noqa: F401
            import zlib  # noqa: F401

            if kind == "zstd":
                import zstandard  # noqa: F401
            from teu.oci import archive

            self._inflated = archive.decompressed(self)

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes of what comes in, as it comes in."""
        if self._head:
            head, self._head = self._head, b""
            if 0 <= size < len(head):
                head, self._head = head[:size], head[size:]
            return head
        return os.read(0, CHUNK if size < 0 else size)

    def next_chunk(self) -> bytes:
        if self._inflated is None:
            return self.read(CHUNK)
        try:
            return bytes(self._inflated.read(CHUNK))
        except OSError:
            raise
        except Exception as error:
            raise tar.TarError(str(error)) from None


def unpack(root: int, archive: Input, options: Asked) -> None:
    """Extract the archive into the folder options["path"].

    Missing, Refused, TarError, OSError."""
    path = posixpath.normpath("/" + options["path"]).replace("//", "/")
    target = look_up(root, path)
    if not stat.S_ISDIR(os.fstat(target).st_mode):
        raise NoPlace("extraction point is not a directory")
    if is_pseudo(target):
        raise NoPlace(f"{path} is the kernel's in this container: no place for files")
    if trees.mount_number(target) == trees.mount_number(root):
        if options["readonly"]:
            raise NoPlace("container rootfs is marked read-only")
    elif os.fstatvfs(target).f_flag & os.ST_RDONLY:
        raise NoPlace("mounted volume is marked read-only")
    source = tar.Source(archive.next_chunk)
    worker = _Unpacker(root, target, inside.real_path(root, path), options["replace"], options["owner"])
    worker.run(source, options.get("top", False))
    while archive.next_chunk():
        pass  # what pads the archive


class _Unpacker:
    def __init__(self, root: int, target: int, path: str, replace: bool, owner: list[int] | None) -> None:
        self._root = root
        self._path = path
        self._replace = replace
        self._owner = owner
        self._folders = {"": target}

    def run(self, source: tar.Source, top: bool) -> None:
        times: list[tuple[str, int]] = []
        for entry, stored in tar.entries(source):
            name = _clean(entry.name, "path")
            if self._owner is not None:
                entry.uid, entry.gid = self._owner
            try:
                if top and not name and entry.type == tar.DIRECTORY:
                    self._top(entry)
                    times.append((name, entry.mtime))
                data = self._extract(entry, name, stored, source)
            except OSError as error:
                raise OSError(error.errno, os.strerror(error.errno or 0), tar.short(name)) from None
            if not data:
                source.skip(stored)
            if entry.type == tar.DIRECTORY and name:
                times.append((name, entry.mtime))
        for name, mtime in reversed(times):
            try:
                os.utime(str(self._folder(name, make=False)), ns=(mtime, mtime))
            except (FileNotFoundError, NotADirectoryError):
                continue  # the archive has replaced it, or the container has

    # -- folders ----------------------------------------------------------------------------------------

    def _folder(self, path: str, make: bool = True) -> int:
        """A folder of the archive, open; made with those above it where they are missing."""
        known = path
        while known not in self._folders:
            known = posixpath.dirname(known)
        if known == path:
            return self._folders[path]
        here = os.dup(self._folders[known])
        place = posixpath.join(self._path, known)
        try:
            for part in path[len(known) :].strip("/").split("/"):
                below, place = self._step(here, part, place, make)
                os.close(here)
                here = below
        except BaseException:
            os.close(here)
            raise
        if len(self._folders) >= CACHED:
            self._forget()
        self._folders[path] = here
        return here

    def _step(self, here: int, part: str, place: str, make: bool) -> tuple[int, str]:
        """The folder `part` of an open folder, and where it is in the container, if a link has told."""
        for _ in range(2):
            try:
                return os.open(part, _FOLDER | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here), posixpath.join(place, part)
            except FileNotFoundError:
                if not make:
                    raise
                try:
                    os.mkdir(part, 0o755, dir_fd=here)
                except FileExistsError:
                    pass  # somebody else made it meanwhile
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                break
        link = os.stat(part, dir_fd=here, follow_symlinks=False)
        if not stat.S_ISLNK(link.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), part)
        place = inside.real_path(self._root, posixpath.join(place, part))
        return inside.open_in_root(self._root, place, _FOLDER), place

    def _forget(self) -> None:
        """All open folders but the target: the archive has changed what they were, or they are many."""
        for path in [path for path in self._folders if path]:
            os.close(self._folders.pop(path))

    # -- entries ----------------------------------------------------------------------------------------

    def _extract(self, entry: Entry, name: str, stored: int, source: tar.Source) -> bool:
        """Whether the entry's data was read."""
        if not name:
            return False  # the folder itself is as it is, as for docker
        if entry.type not in _KNOWN:
            raise tar.TarError(f"entry {tar.short(name)!r} has the unknown type {entry.type!r}")
        above, base = posixpath.split(name)
        link = (-1, "")
        if entry.type == tar.HARD_LINK:
            directory, target = posixpath.split(_clean(entry.link, "hard link"))
            try:
                link = os.dup(self._folder(directory, make=False)), target
                os.stat(target, dir_fd=link[0], follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                words = f"{tar.short(name)!r} is a hard link to {tar.short(entry.link)!r}, which is not there"
                raise Refused(words) from None
        folder = self._folder(above)
        try:
            self._make_room(folder, base, entry, name)
            if entry.type == tar.REGULAR:
                self._file(folder, base, entry, stored, source)
                return True
            if entry.type == tar.DIRECTORY:
                self._directory(folder, base, entry)
            elif entry.type == tar.SYMLINK:
                os.symlink(entry.link, base, dir_fd=folder)
                os.chown(base, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
                os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=folder, follow_symlinks=False)
            elif entry.type == tar.HARD_LINK:
                os.link(link[1], base, src_dir_fd=link[0], dst_dir_fd=folder, follow_symlinks=False)
            else:
                self._node(folder, base, entry)
        finally:
            if link[0] >= 0:
                os.close(link[0])
        return False

    def _make_room(self, folder: int, base: str, entry: Entry, name: str) -> None:
        try:
            old = os.stat(base, dir_fd=folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(old):
            if entry.type == tar.DIRECTORY:
                return
            if not self._replace:
                raise Refused(f"cannot overwrite directory {tar.short(name)!r} with non-directory")
            trees.remove_tree(f"{folder}/{base}")
        else:
            if entry.type == tar.DIRECTORY and not self._replace:
                raise Refused(f"cannot overwrite non-directory {tar.short(name)!r} with directory")
            os.unlink(base, dir_fd=folder)
            if not stat.S_ISLNK(old):
                return
        # What was looked up through it is looked up anew; but the folder that is being worked in stays open.
        for path in [path for path, opened in self._folders.items() if path and opened != folder]:
            os.close(self._folders.pop(path))

    def _file(self, folder: int, base: str, entry: Entry, stored: int, source: tar.Source) -> None:
        file = os.open(base, _CREATE, 0o600, dir_fd=folder)
        try:
            if entry.sparse is not None:
                os.ftruncate(file, entry.size)
                for offset, length in entry.sparse:
                    if offset < 0 or length < 0 or offset + length > entry.size or length > stored:
                        raise tar.TarError(f"entry {tar.short(entry.name)!r} has a bad sparse map")
                    stored -= length
                    os.lseek(file, offset, os.SEEK_SET)
                    _copy(source, length, file)
                source.skip(stored)
            else:
                _copy(source, stored, file)
            self._finish(file, entry)
        finally:
            os.close(file)

    def _top(self, entry: Entry) -> None:
        # its name in /proc/self/fd, where we are: what was looked up is not open
        folder = os.open(str(self._folder("")), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._finish(folder, entry)
        finally:
            os.close(folder)

    def _directory(self, folder: int, base: str, entry: Entry) -> None:
        try:
            os.mkdir(base, 0o700, dir_fd=folder)
        except FileExistsError:
            pass
        made = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            self._finish(made, entry)
        finally:
            os.close(made)

    def _node(self, folder: int, base: str, entry: Entry) -> None:
        kind = _NODES[entry.type]
        device = os.makedev(entry.devmajor, entry.devminor) if entry.type != tar.FIFO else 0
        os.mknod(base, kind | 0o600, device, dir_fd=folder)
        node = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if stat.S_IFMT(os.fstat(node).st_mode) != kind:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), base)  # the container has put another there
            # a call that takes no O_PATH descriptor, takes its name in /proc/self/fd, where we are
            os.chown(str(node), entry.uid, entry.gid)
            os.chmod(str(node), entry.mode)
            os.utime(str(node), ns=(entry.mtime, entry.mtime))
        finally:
            os.close(node)

    def _finish(self, file: int, entry: Entry) -> None:
        """Owner, mode, attributes and time of an open file or folder."""
        os.fchown(file, entry.uid, entry.gid)
        os.fchmod(file, entry.mode)
        for attribute, value in (entry.xattrs or {}).items():
            try:
                os.setxattr(file, attribute, value)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):  # not here, or not for us, as for docker
                    raise
        os.utime(file, ns=(entry.mtime, entry.mtime))


def _copy(source: tar.Source, length: int, file: int) -> None:
    for piece in source.pieces(length):
        view = piece
        while view:
            view = view[os.write(file, view) :]


def _clean(name: str, what: str) -> str:
    """A name of the archive without ".", doubled slashes and a leading slash; "" for the folder itself."""
    clean = posixpath.normpath(name.lstrip("/") or ".")
    if clean == ".." or clean.startswith("../"):
        raise Refused(f"invalid {what} in the archive: {tar.short(name)!r} leads out of the folder")
    return "" if clean == "." else clean
