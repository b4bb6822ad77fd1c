# SPDX-License-Identifier: Apache-2.0
"""Files of a container as a description or as a tar archive on standard output. Called by the visitor.

Folders may be as deep as they like, and may change meanwhile: nothing recurses, and what has gone is left out. Files
with several names are told once; the other names are hard links to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from time import gmtime

from teu.engine.files.paths import CHUNK, Missing, is_pseudo, located
from teu.linux import inside, trees
from teu.oci import tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.engine.files.paths import Description

# Go's os.FileMode, which the API uses
GO_MODES = (
    (stat.S_ISDIR, 1 << 31),
    (stat.S_ISLNK, 1 << 27),
    (stat.S_ISBLK, 1 << 26),
    (stat.S_ISFIFO, 1 << 25),
    (stat.S_ISSOCK, 1 << 24),
    (stat.S_ISCHR, 1 << 26 | 1 << 21),
)
GO_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))
YEARS = (-62135596800, 253402300799)  # seconds of the years 1 to 9999: all that the API's form of a moment can say
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_BENEATH = inside.RESOLVE_BENEATH | inside.RESOLVE_NO_SYMLINKS
_CAPABILITY = "security.capability"
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")


def write(data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def describe(root: int, path: str) -> Description:
    found, place, name = located(root, path)
    info = os.fstat(found)
    mode = stat.S_IMODE(info.st_mode) & 0o777
    for test, bit in GO_MODES:
        if test(info.st_mode):
            mode |= bit
    for kernel, bit in GO_BITS:
        if info.st_mode & kernel:
            mode |= bit
    moment = min(max(info.st_mtime_ns // 10**9, YEARS[0]), YEARS[1])
    year, month, day, hour, minute, second, *_ = gmtime(moment)
    return {
        "name": name,
        "size": info.st_size,
        "mode": mode,
        "mtime": f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{info.st_mtime_ns % 10**9:09}Z",
        "linkTarget": inside.real_path(root, place) if stat.S_ISLNK(info.st_mode) else "",
    }


def pack(root: int, path: str, whole: bool, attributes: bool = False) -> None:
    """A tar of the path on stdout. whole: one file system only, and without the root itself, as export wants it.
    attributes: with users' extended attributes and ACLs, which docker's archives do not have."""
    found, _, name = located(root, path)
    packer = _Packer(root, whole, attributes)
    status = os.fstat(found)
    if not whole:
        packer.top(found, name, status)
    if stat.S_ISDIR(status.st_mode) and not is_pseudo(found):
        packer.below(found, "" if whole else name)
    packer.end()


class _Packer:
    def __init__(self, root: int, whole: bool, attributes: bool) -> None:
        self._whole = whole
        self._attributes = attributes
        self._pending = bytearray()
        self._links: dict[tuple[int, int], str] = {}
        self._devices = (-1, -1)
        try:
            devices = inside.open_in_root(root, "dev", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return
        self._devices = trees.identity(devices)
        os.close(devices)

    def top(self, found: int, name: str, status: os.stat_result) -> None:
        link = os.readlink("", dir_fd=found) if stat.S_ISLNK(status.st_mode) else ""
        content = -1
        if stat.S_ISREG(status.st_mode):
            content = os.open(str(found), _FILE & ~os.O_NOFOLLOW | os.O_CLOEXEC)
        elif self._attributes and stat.S_ISDIR(status.st_mode):
            content = os.open(str(found), _DIRECTORY & ~os.O_NOFOLLOW | os.O_CLOEXEC)
        self._add(name, status, link, content)

    def below(self, top: int, label: str) -> None:
        prefix = f"{label}/" if label and label != "/" else label
        for path, folder, name, status in trees.walk(top, mounts=not self._whole, enter=self._enter):
            content, link = -1, ""
            try:
                if stat.S_ISREG(status.st_mode):
                    content, status = self._open(folder, name, status)
                elif stat.S_ISLNK(status.st_mode):
                    link = os.readlink(name, dir_fd=folder).decode("utf-8", "surrogateescape")
                elif self._attributes and stat.S_ISDIR(status.st_mode):
                    content = inside.openat2(folder, os.fsdecode(name), _DIRECTORY, _BENEATH)
            except (FileNotFoundError, NotADirectoryError, Missing):
                continue  # it went away meanwhile, or is something else now
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.EINVAL):
                    continue  # it is something else now
                raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
            self._add(prefix + path.decode("utf-8", "surrogateescape"), status, link, content)

    def _enter(self, mount: int) -> bool:
        """What is mounted in the container is in its archive, but for what the runtime mounts in each: the kernel's
        file systems and the devices. Those are nobody's files, and could not be unpacked by an ordinary user."""
        return not is_pseudo(mount) and trees.identity(mount) != self._devices

    def _open(self, folder: int, name: bytes, status: os.stat_result) -> tuple[int, os.stat_result]:
        """A regular file; -1 for what is mounted over one and is no file of the container's."""
        text = os.fsdecode(name)
        try:
            content = inside.openat2(folder, text, _FILE, _BENEATH | inside.RESOLVE_NO_XDEV)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            if self._whole:
                return -1, status
            content = inside.openat2(folder, text, _FILE, _BENEATH)
            if is_pseudo(content):
                os.close(content)
                raise Missing from None
        now = os.fstat(content)
        if not stat.S_ISREG(now.st_mode):
            os.close(content)
            raise Missing
        return content, now

    def _add(self, name: str, status: os.stat_result, link: str, content: int) -> None:
        try:
            self._write(name, status, link, content)
        finally:
            if content >= 0:
                os.close(content)

    def _write(self, name: str, status: os.stat_result, link: str, content: int) -> None:
        mode = status.st_mode
        if stat.S_ISSOCK(mode):
            return  # a socket is of use to its process only
        entry = tar.Entry()
        entry.name, entry.mode = name, stat.S_IMODE(mode)
        entry.uid, entry.gid, entry.mtime = status.st_uid, status.st_gid, status.st_mtime_ns
        if content >= 0:
            entry.xattrs = _users(content) if self._attributes else _capability(content)
        if stat.S_ISDIR(mode):
            entry.type = tar.DIRECTORY
            entry.name = name if name.endswith("/") else name + "/"
        else:
            identity = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and (first := self._links.setdefault(identity, name)) is not name:
                entry.type, entry.link = tar.HARD_LINK, first
            elif stat.S_ISREG(mode):
                if content >= 0:
                    entry.size = status.st_size
            elif stat.S_ISLNK(mode):
                entry.type, entry.link = tar.SYMLINK, link
            elif stat.S_ISFIFO(mode):
                entry.type = tar.FIFO
            else:
                entry.type = tar.CHARACTER if stat.S_ISCHR(mode) else tar.BLOCK_DEVICE
                entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        self._pending += tar.pack(entry)
        if entry.size:
            self._data(content, entry.size)
        if len(self._pending) >= CHUNK:
            self._flush()

    def _data(self, content: int, size: int) -> None:
        left = size
        while left:
            data = os.read(content, min(left, CHUNK))
            if not data:
                data = bytes(min(left, CHUNK))  # it shrank while it was read: the header is written
            left -= len(data)
            if len(self._pending) + len(data) > CHUNK:
                self._flush()
            self._pending += data
        self._pending += bytes(-size % tar.BLOCK)

    def _flush(self) -> None:
        write(self._pending)
        self._pending = bytearray()

    def end(self) -> None:
        self._pending += tar.END
        self._flush()


def _users(content: int) -> dict[str, bytes] | None:
    """Not those of a host's security or of an overlay, which mean nothing elsewhere."""
    try:
        names = os.listxattr(content)
    except OSError:
        return None
    found = {}
    for name in names:
        if name.startswith("user.") or name in (_CAPABILITY, *_ACLS):
            with contextlib.suppress(OSError):
                found[name] = os.getxattr(content, name)
    return found or None


def _capability(content: int) -> dict[str, bytes] | None:
    try:
        return {_CAPABILITY: os.getxattr(content, _CAPABILITY)}
    except OSError:
        return None
