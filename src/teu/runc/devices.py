# SPDX-License-Identifier: Apache-2.0
"""Device nodes and links of the container's /dev. Called by teu.runc.container_init before the pivot."""

from __future__ import annotations

import errno
import os

from teu.linux import mounts
from teu.linux.mounts import AT_FDCWD
from teu.runc.errors import InvalidSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_S_IFCHR = 0o020000
_S_IFBLK = 0o060000
_S_IFIFO = 0o010000
_KINDS = {"c": _S_IFCHR, "u": _S_IFCHR, "b": _S_IFBLK, "p": _S_IFIFO}

# the specification's "Default Devices"
DEFAULT = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)

_LINKS = (
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
)


def create_all(root: int, spec: dict[str, Any], bind: bool) -> None:
    """The default devices and linux.devices; by mknod, or (bind: in a user namespace) by the host's own nodes."""
    given = {device["path"]: device for device in (spec.get("linux") or {}).get("devices") or ()}
    for path, major, minor in DEFAULT:
        if path not in given:
            _create(root, {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666}, bind)
    for device in given.values():
        _create(root, device, bind)


def _create(root: int, device: dict[str, Any], bind: bool) -> None:
    path = os.path.normpath("/" + device["path"].lstrip("/"))
    if path == "/":
        raise InvalidSpec("linux.devices: a device needs a path")
    if path in ("/dev/ptmx", "/dev/pts/ptmx"):
        return  # the link to the container's own devpts stands there
    parent_path, _, name = path.rpartition("/")
    parent = mounts.make_in_root(root, parent_path or "/")
    try:
        if bind:
            _bind(root, parent, name, device, path)
        else:
            _mknod(root, parent, name, device, path)
    except OSError as error:
        raise OSError(error.errno, f"error creating device {path}: {error.strerror}") from None
    finally:
        os.close(parent)


def _mknod(root: int, parent: int, name: str, device: dict[str, Any], path: str) -> None:
    mode = device.get("fileMode")
    kind = _KINDS[device["type"]]
    number = os.makedev(device.get("major") or 0, device.get("minor") or 0) if kind != _S_IFIFO else 0
    wanted = kind | (0o666 if mode is None else mode & 0o7777)
    try:
        os.mknod(name, wanted, number, dir_fd=parent)
    except FileExistsError:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if status.st_mode & 0o170000 == kind and status.st_rdev == number:
            return
        # An image's own /dev/null may be anything; what the specification promises stands there.
        os.unlink(name, dir_fd=parent)
        os.mknod(name, wanted, number, dir_fd=parent)
    except PermissionError:
        # nested in a container or user namespace after all
        _bind(root, parent, name, device, path)
        return
    os.chown(name, device.get("uid") or 0, device.get("gid") or 0, dir_fd=parent, follow_symlinks=False)


def _bind(root: int, parent: int, name: str, device: dict[str, Any], path: str) -> None:
    try:
        os.close(
            os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=parent)
        )
    except FileExistsError:
        pass
    target = mounts.openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, mounts.RESOLVE_BENEATH)
    try:
        tree = mounts.open_tree(AT_FDCWD, path)
        try:
            mounts.move_mount(tree, target, path)
        finally:
            os.close(tree)
    finally:
        os.close(target)


def create_links(root: int) -> None:
    """/dev/fd, stdin, stdout, stderr, core, and ptmx to the container's own devpts."""
    links: tuple[tuple[str, str], ...] = _LINKS
    if os.path.exists("/proc/kcore"):
        links = (*links, ("/proc/kcore", "dev/core"))
    os.close(mounts.make_in_root(root, "dev"))
    dev = mounts.open_in_root(root, "dev")
    try:
        for to, place in links:
            name = place.rpartition("/")[2]
            try:
                os.symlink(to, name, dir_fd=dev)
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
        try:
            os.unlink("ptmx", dir_fd=dev)
        except (FileNotFoundError, IsADirectoryError):
            pass
        os.symlink("pts/ptmx", "ptmx", dir_fd=dev)
    finally:
        os.close(dev)
