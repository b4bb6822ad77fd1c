# SPDX-License-Identifier: Apache-2.0
"""Whole trees of files: walking and removing them. Called by the daemons for folders that others filled.

What is below may have been made to hurt: folders thousands deep, names that are no text, links to anywhere, mounts that
were left. So nothing here recurses, no path is put together from names, no link is followed, no more
than two folders are open at once, and nothing is ever removed across a mount: not even a bind mount of the same file
system, which st_dev cannot tell and os.path.ismount does not see.
"""

from __future__ import annotations

import errno
import os
import stat

from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from teu.linux.mounts import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    MNT_DETACH,
    UMOUNT_NOFOLLOW,
    umount2,
)
from teu.linux.syscalls import NR_statx, buffer, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AT_NO_AUTOMOUNT = 0x800
STATX_ATTR_MOUNT_ROOT = 0x2000
STATX_MNT_ID = 0x1000
STACKED_MAX = 1000  # so many mounts on one place are believed

# How mountinfo writes what would end a field; its own sign comes last.
_ESCAPED = ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\043", b"#"), (b"\\134", b"\\"))
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def is_mount_root(path: str | bytes | int) -> bool:
    """Is something mounted exactly here? A path (a link at its end is not followed) or a descriptor; the kernel is
    asked (statx, STATX_ATTR_MOUNT_ROOT). False where there is nothing."""
    status = buffer(bytes(256))
    flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT
    try:
        if isinstance(path, int):
            syscall("statx", NR_statx, path, b"\0", flags | AT_EMPTY_PATH, 0, status)
        else:
            syscall("statx", NR_statx, AT_FDCWD, os.fsencode(path) + b"\0", flags, 0, status)
    except (FileNotFoundError, NotADirectoryError):
        return False
    data = bytes(status)
    if not int.from_bytes(data[56:64], "little") & STATX_ATTR_MOUNT_ROOT:  # stx_attributes_mask
        raise OSError(errno.ENOSYS, "this kernel does not tell where mounts are (statx, STATX_ATTR_MOUNT_ROOT)")
    return bool(int.from_bytes(data[8:16], "little") & STATX_ATTR_MOUNT_ROOT)


def mount_number(descriptor: int) -> int:
    """Which mount an open file or folder is on: the kernel's number, which its neighbours on the same mount share."""
    status = buffer(bytes(256))
    syscall("statx", NR_statx, descriptor, b"\0", AT_NO_AUTOMOUNT | AT_EMPTY_PATH, STATX_MNT_ID, status)
    return int.from_bytes(bytes(status)[144:152], "little")


def unmount(path: str | bytes) -> None:
    """Unmount everything that is stacked at path; nothing where there is none. OSError where something stays.

    The file system itself is not asked, so it may be one whose server has gone."""
    place = os.fsencode(path)
    for _ in range(STACKED_MAX):
        try:
            umount2(os.fsdecode(place), MNT_DETACH | UMOUNT_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            if error.errno == errno.EINVAL and not is_mount_root(place):
                return
            raise
    raise OSError(errno.EBUSY, "mounts come as fast as they are taken away", os.fsdecode(place))


def mounts_below(path: str) -> list[str]:
    """Where something is mounted at path or anywhere below it, as this thread's mount namespace has it."""
    top = os.path.realpath(path)
    found = []
    with open("/proc/thread-self/mountinfo", "rb") as file:
        for line in file:
            field = line.split(b" ")[4]
            for escaped, letter in _ESCAPED:
                field = field.replace(escaped, letter)
            place = os.fsdecode(field)
            if place == top or place.startswith(top + "/"):
                found.append(place)
    return found


def remove_tree(path: str | bytes | os.PathLike[str]) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing where there is none.

    What cannot be removed stays, with the folders that lead to it, and everything beside it goes; then the first
    OSError is raised. A mount is such a thing: EBUSY, and what is in it is not touched."""
    path = os.fsencode(path).rstrip(b"/")
    above, name = os.path.split(path)
    try:
        folder = os.open(above or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        _Removal(folder, path).run(name)
    finally:
        os.close(folder)


def discard_tree(path: str) -> None:
    """remove_tree where no caller waits for the end: the log says what stays."""
    try:
        remove_tree(path)
    except OSError as error:
        import logging  # 13 ms and 2 MB

        logging.getLogger("teu.linux.trees").warning("%s is not all removed: %s", path, error.strerror)


class _Removal:
    def __init__(self, above: int, path: bytes) -> None:
        self._above = above
        self._path = path
        self._problem: OSError | None = None

    def run(self, name: bytes) -> None:
        if self._leaf(self._above, name):
            self._folders(name)
        if self._problem is not None:
            raise self._problem

    def _leaf(self, folder: int, name: bytes) -> bool:
        """Remove one that has nothing in it. True: it is a folder with something in it."""
        try:
            try:
                os.unlink(name, dir_fd=folder)
            except IsADirectoryError:
                os.rmdir(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return True
            self._failed(error, name)
        return False

    def _failed(self, error: OSError, name: bytes) -> None:
        if self._problem is None:
            number = errno.EBUSY if error.errno == errno.EXDEV else error.errno or errno.EIO
            reason = "a mount is in the way of the removal" if number == errno.EBUSY else os.strerror(number)
            self._problem = OSError(number, f"{reason}: {os.fsdecode(name)}", os.fsdecode(self._path))

    def _enter(self, folder: int, name: bytes) -> int:
        way = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
        try:
            return openat2(folder, os.fsdecode(name), _FOLDER, way)
        except FileNotFoundError:
            return -1
        except OSError as error:
            self._failed(error, name)
            return -1

    def _folders(self, name: bytes) -> None:
        here = self._enter(self._above, name)
        if here < 0:
            return
        # The way down: each folder's name, which it is, and those of its folders that are still to be emptied.
        way = [(name, identity(here), self._contents(here))]
        try:
            while True:
                name, _, todo = way[-1]
                if todo:
                    inner = todo.pop()
                    below = self._enter(here, inner)
                    if below >= 0:
                        os.close(here)
                        here = below
                        way.append((inner, identity(here), self._contents(here)))
                    continue
                way.pop()
                if not way:
                    break
                here = up(here, way[-1][1])
                self._emptied(here, name)
        finally:
            os.close(here)
        self._emptied(self._above, name)

    def _contents(self, folder: int) -> list[bytes]:
        """Remove what is no folder; the names of the folders that have something in them."""
        try:
            names = [os.fsencode(name) for name in os.listdir(folder)]
        except OSError as error:
            self._failed(error, b".")
            return []
        return [name for name in names if self._leaf(folder, name)]

    def _emptied(self, folder: int, name: bytes) -> None:
        try:
            os.rmdir(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._failed(error, name)


def walk(
    top: int,
    mounts: bool = True,
    enter: Callable[[int], bool] | None = None,
    skip: Callable[[bytes], bool] | None = None,
) -> Iterator[tuple[bytes, int, bytes, os.stat_result]]:
    """Everything below the open folder `top`, a folder before what is in it, names in order: (path below top, the
    folder that it is in, its name there, its status). The folder's descriptor is good until the next step.

    No link is followed. Without `mounts` what is in a mount below is left out; with `enter`, where that says no to the
    mount, which is open. What is in a folder whose path `skip` says yes to is left out. What vanishes or is moved away
    meanwhile is left out from there on."""
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    here = os.open(".", _FOLDER | os.O_CLOEXEC, dir_fd=top)
    # The way down: what each folder is, how long its path is, and what in it is still to come.
    way, path = [(identity(here), 0, _names(here))], b""
    try:
        while way:
            _, length, todo = way[-1]
            path = path[:length]
            if not todo:
                way.pop()
                if way:
                    try:
                        here = up(here, way[-1][0])
                    except OSError as error:
                        if error.errno not in (errno.ESTALE, errno.ENOENT):
                            raise
                        nearest = _again(top, path, way)
                        os.close(here)
                        here = nearest
                continue
            name = todo.pop()
            inner = path + b"/" + name if path else name
            try:
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield inner, here, name, status
            if not stat.S_ISDIR(status.st_mode) or (skip is not None and skip(inner)):
                continue
            try:
                try:
                    below = openat2(here, os.fsdecode(name), _FOLDER, resolve | RESOLVE_NO_XDEV)
                except OSError as error:
                    if error.errno != errno.EXDEV or not mounts:
                        raise
                    below = openat2(here, os.fsdecode(name), _FOLDER, resolve)
                    if enter is not None and not enter(below):
                        os.close(below)
                        continue
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                    continue
                raise
            os.close(here)
            here, path = below, inner
            way.append((identity(here), len(path), _names(here)))
    finally:
        os.close(here)


def _again(top: int, path: bytes, way: list[tuple[tuple[int, int], int, list[bytes]]]) -> int:
    """The deepest folder of the way that is still where it was, found from the top; the way ends there."""
    names = path.split(b"/")
    here = os.open(".", _FOLDER | os.O_CLOEXEC, dir_fd=top)
    for count, (expected, _, _) in enumerate(way[1:], 1):
        try:
            below = openat2(here, os.fsdecode(names[count - 1]), _FOLDER, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        except OSError:
            del way[count:]
            break
        if identity(below) != expected:
            os.close(below)
            del way[count:]
            break
        os.close(here)
        here = below
    return here


def _names(folder: int) -> list[bytes]:
    """The last one first: they are taken from the end."""
    return sorted((os.fsencode(name) for name in os.listdir(folder)), reverse=True)


def identity(folder: int) -> tuple[int, int]:
    """What an open file is, whatever its name."""
    status = os.fstat(folder)
    return status.st_dev, status.st_ino


def up(folder: int, expected: tuple[int, int]) -> int:
    """The folder above, in place of `folder`, which is closed; OSError ESTALE where it is not the one of before."""
    above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    if identity(above) != expected:
        os.close(above)
        raise OSError(errno.ESTALE, "a folder was moved away while it was being walked")
    os.close(folder)
    return above
