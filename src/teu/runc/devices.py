# SPDX-License-Identifier: Apache-2.0
"""Device nodes and links of the container's /dev. Called by teu.runc.container_init before the pivot.

In a user namespace nobody may make device nodes: there the parent makes those of `linux.devices` in the state folder,
and they are bound.
"""

from __future__ import annotations

import errno
import os

from teu.linux import inside, mounts
from teu.linux.mounts import AT_FDCWD
from teu.runc.errors import InvalidSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_S_IFCHR = 0o020000
_S_IFBLK = 0o060000
_S_IFIFO = 0o010000
_KINDS = {"c": _S_IFCHR, "u": _S_IFCHR, "b": _S_IFBLK, "p": _S_IFIFO}

# a node can be no program
_ATTRIBUTES = mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NOEXEC

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


def open_nodes(spec: dict[str, Any], folder: str) -> dict[str, int]:
    """linux.devices for a user namespace, where mknod is not permitted, made outside: path -> detached mount of a node.

    folder is the container's state: the nodes stand there until their mounts are in place, and remove_nodes() then
    takes them away. Owners are those of the id maps.
    Without maps (another's namespace), and where we may not mknod either, there are none: the host's own are bound.
    """
    linux = spec.get("linux") or {}
    nodes: dict[str, int] = {}
    if not linux.get("uidMappings"):
        return nodes
    for index, device in enumerate(linux["devices"]):
        place = f"{folder}/device{index}"
        mode = device.get("fileMode")
        kind = _KINDS[device["type"]]
        number = os.makedev(device.get("major") or 0, device.get("minor") or 0) if kind != _S_IFIFO else 0
        try:
            os.mknod(place, kind | (0o666 if mode is None else mode & 0o7777), number)
        except PermissionError:
            return nodes
        os.chown(place, _on_host(linux["uidMappings"], device, "uid"), _on_host(linux["gidMappings"], device, "gid"))
        os.chmod(place, 0o666 if mode is None else mode & 0o7777)  # whatever our umask is
        tree = mounts.open_tree(AT_FDCWD, place)
        mounts.mount_setattr(tree, _ATTRIBUTES, mounts.MOUNT_ATTR_NODEV)
        nodes[device["path"]] = tree
    return nodes


def remove_nodes(count: int, folder: str) -> None:
    """What open_nodes() left in the state's folder."""
    for index in range(count):
        os.unlink(f"{folder}/device{index}")


def _on_host(maps: list[dict[str, int]], device: dict[str, Any], name: str) -> int:
    wanted = int(device.get(name) or 0)
    for one in maps:
        if one["containerID"] <= wanted < one["containerID"] + one["size"]:
            return one["hostID"] + wanted - one["containerID"]
    raise InvalidSpec(f"linux.devices: {device['path']}: {name} {wanted} is not in the container's id maps")


def create_all(root: int, spec: dict[str, Any], bind: bool, nodes: dict[str, int]) -> None:
    """The default devices and linux.devices; by mknod, or (bind: in a user namespace) by nodes, or the host's own."""
    given = {device["path"]: device for device in (spec.get("linux") or {}).get("devices") or ()}
    for path, major, minor in DEFAULT:
        if path not in given:
            default = {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666}
            _create(root, default, bind, replace=True)
    for device in given.values():
        _create(root, device, bind, nodes.get(device["path"], -1))


def _create(root: int, device: dict[str, Any], bind: bool, node: int = -1, replace: bool = False) -> None:
    path = os.path.normpath("/" + device["path"].lstrip("/"))
    if path == "/":
        raise InvalidSpec("linux.devices: a device needs a path")
    if path in ("/dev/ptmx", "/dev/pts/ptmx"):
        return  # the link to the container's own devpts stands there
    parent_path, _, name = path.rpartition("/")
    parent = inside.make_in_root(root, parent_path or "/")
    try:
        if bind:
            _bind(parent, name, path, node)
        else:
            _mknod(parent, name, device, path, replace)
    except OSError as error:
        raise OSError(error.errno, f"error creating device {path}: {error.strerror}") from None
    finally:
        os.close(parent)


def _mknod(parent: int, name: str, device: dict[str, Any], path: str, replace: bool) -> None:
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
        if not replace:
            # runtime-spec, "Devices": an error. The file that is there stays
            raise OSError(errno.EEXIST, "another file is in its place") from None
        # An image's own /dev/null may be anything; what the specification promises stands there.
        os.unlink(name, dir_fd=parent)
        os.mknod(name, wanted, number, dir_fd=parent)
    except PermissionError:
        # nested in a container or user namespace after all
        _bind(parent, name, path)
        return
    os.chown(name, device.get("uid") or 0, device.get("gid") or 0, dir_fd=parent, follow_symlinks=False)


def _bind(parent: int, name: str, path: str, node: int = -1) -> None:
    try:
        os.close(
            os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=parent)
        )
    except FileExistsError:
        pass
    target = inside.openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, inside.RESOLVE_BENEATH)
    try:
        tree = node if node >= 0 else mounts.open_tree(AT_FDCWD, path)
        try:
            mounts.mount_setattr(tree, _ATTRIBUTES)
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
    os.close(inside.make_in_root(root, "dev"))
    dev = inside.open_in_root(root, "dev")
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
