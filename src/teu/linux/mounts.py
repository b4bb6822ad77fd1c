# SPDX-License-Identifier: Apache-2.0
"""Mounts. Called by all that mount: by teu.runc for everything inside a root file system, by descriptor.

Two rules make the mount races of other runtimes impossible here:
a path inside a root is opened once (teu.linux.inside), and from then on it is a
descriptor; a mount is made detached (fsmount, open_tree) and put on such a descriptor (move_mount).
No path is looked up twice, and /proc/self/fd is not needed.
"""

from __future__ import annotations

import errno
import os
from struct import pack

from teu.linux.namespaces import CLONE_NEWNS, setns, unshare
from teu.linux.syscalls import (
    NR_fsconfig,
    NR_fsmount,
    NR_fsopen,
    NR_mount,
    NR_mount_setattr,
    NR_move_mount,
    NR_open_tree,
    NR_pivot_root,
    NR_umount2,
    buffer,
    syscall,
)

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSCONFIG_STRING_MAX = 255
MOUNT_DATA_MAX = 4095

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x00
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2). teu-runc uses it for propagation and MS_MOVE alone, where file systems and binds go by descriptor
    (below); what works outside a container's tree mounts what a snapshotter or a volume says with it.

    OSError as of mount(2)."""
    syscall(
        f"mount {target}",
        NR_mount,
        os.fsencode(source) if source is not None else None,
        os.fsencode(target),
        os.fsencode(kind) if kind is not None else None,
        flags,
        os.fsencode(data) if data is not None else None,
    )


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2); OSError as of it."""
    syscall(f"umount {target}", NR_umount2, os.fsencode(target), flags)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2): `new` becomes the root of this mount namespace, and the old root is mounted on `old`. Raises
    OSError."""
    syscall("pivot_root", NR_pivot_root, os.fsencode(new), os.fsencode(old))


def open_tree(directory: int, path: str, recursive: bool = False, nofollow: bool = False) -> int:
    """A detached copy of the mount at path (all mounts below it too, if recursive). path "": directory itself."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    if recursive:
        flags |= AT_RECURSIVE
    if nofollow:
        flags |= AT_SYMLINK_NOFOLLOW
    if not path:
        flags |= AT_EMPTY_PATH
    return syscall(f"open_tree {path}" if path else "open_tree", NR_open_tree, directory, os.fsencode(path), flags)


def move_mount(tree: int, target: int, what: str = "") -> None:
    """Put a detached mount on the place that the descriptor target names."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    syscall(f"move_mount {what}" if what else "move_mount", NR_move_mount, tree, b"", target, b"", flags)


def mount_setattr(
    tree: int,
    attr_set: int,
    attr_clr: int = 0,
    propagation: int = 0,
    userns: int = 0,
    recursive: bool = False,
) -> None:
    """Change flags, propagation or id map of the mount (or the whole tree) that the descriptor names."""
    attributes = buffer(pack("QQQQ", attr_set, attr_clr, propagation, userns))
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    syscall("mount_setattr", NR_mount_setattr, tree, b"", flags, attributes, 32)


def new_filesystem(kind: str, source: str, data: list[str], attributes: int = 0) -> int:
    """A detached mount of a new file system. data: "key=value" or "flag" each. Errors carry the kernel's own words."""
    if any(len(os.fsencode(text.partition("=")[2])) > FSCONFIG_STRING_MAX for text in (f"source={source}", *data)):
        tree = _mounted_elsewhere(kind, source, ",".join(data))
        if attributes:
            mount_setattr(tree, attributes)
        return tree
    context = syscall(f"fsopen {kind}", NR_fsopen, os.fsencode(kind), 1)
    try:
        try:
            if source:
                _fsconfig(context, FSCONFIG_SET_STRING, "source", source)
            for option in data:
                key, equals, value = option.partition("=")
                _fsconfig(context, FSCONFIG_SET_STRING if equals else FSCONFIG_SET_FLAG, key, value if equals else None)
            _fsconfig(context, FSCONFIG_CMD_CREATE, None, None)
        except OSError as error:
            words = _context_messages(context)
            raise OSError(error.errno, f"mount {kind}{' (' + words + ')' if words else ''}: {error.strerror}") from None
        return syscall(f"fsmount {kind}", NR_fsmount, context, 1, attributes)
    finally:
        os.close(context)


def _mounted_elsewhere(kind: str, source: str, data: str) -> int:
    """new_filesystem by mount(2): fsconfig(2) takes no longer value than 255 bytes, and an overlay's folders can be.

    mount(2) wants a place, so the mount is made in a mount namespace that lives only until it is taken out. What
    refers to relative paths is looked up from the current folder, as ever.
    """
    if len(os.fsencode(data)) > MOUNT_DATA_MAX:
        raise OSError(errno.E2BIG, f"mount {kind}: its options are longer than {MOUNT_DATA_MAX} bytes")
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    ours = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNS)
        try:
            mount(None, "/", None, MS_REC | MS_PRIVATE)
            try:
                mount(source, "/proc", kind, 0, data)
            except OSError as error:
                raise OSError(error.errno, f"mount {kind}: {os.strerror(error.errno or 0)} (options {data})") from None
            return open_tree(AT_FDCWD, "/proc")
        finally:
            setns(ours, CLONE_NEWNS)
            os.fchdir(here)
    finally:
        os.close(ours)
        os.close(here)


def _fsconfig(context: int, command: int, key: str | None, value: str | None) -> None:
    syscall(
        f"option {key}={value}" if value is not None else f"option {key}" if key else "create",
        NR_fsconfig,
        context,
        command,
        os.fsencode(key) if key is not None else None,
        os.fsencode(value) if value is not None else None,
        0,
    )


def _context_messages(context: int) -> str:
    """What the file system says about the failure: lines "e tmpfs: Bad value for 'mode'"."""
    found = []
    for _ in range(16):
        try:
            line = os.read(context, 4096)
        except OSError:
            break
        if line[:2] == b"e ":
            found.append(line[2:].decode("utf-8", "replace").strip())
    return "; ".join(found)
