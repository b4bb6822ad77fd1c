# SPDX-License-Identifier: Apache-2.0
"""The container's root file system: mounts, devices, masks, and the pivot into it.

Called by teu.runc.container_init in the container's first process, in its new mount namespace,
while the host's tree can still be seen. Every place inside the root is a descriptor that
teu.linux.mounts opened within the root; see there for why.

A bind mount without any attribute keeps those of its source; with one, those that are not given are off, as with
runc. Access times, and options longer than fsconfig(2) takes, go by mount(2). What a user namespace may not mount,
and a bind whose source an earlier mount makes, comes from the parent on request. Without a mount namespace nothing is
mounted.
"""

from __future__ import annotations

import errno
import os

from teu.linux import inside, mounts
from teu.linux.inside import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS
from teu.linux.mounts import (
    AT_FDCWD,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
)
from teu.linux.syscalls import PROC_SUPER_MAGIC, fstatfs_type
from teu.runc import mount_options
from teu.runc.errors import InvalidSpec, RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from teu.runc.mount_options import MountOptions

_PROPAGATION = {
    "": mounts.MS_SLAVE | mounts.MS_REC,
    "private": mounts.MS_PRIVATE,
    "rprivate": mounts.MS_PRIVATE | mounts.MS_REC,
    "slave": mounts.MS_SLAVE,
    "rslave": mounts.MS_SLAVE | mounts.MS_REC,
    "shared": mounts.MS_SHARED,
    "rshared": mounts.MS_SHARED | mounts.MS_REC,
    "unbindable": mounts.MS_UNBINDABLE,
    "runbindable": mounts.MS_UNBINDABLE | mounts.MS_REC,
}

# Places in /proc where a file may be put (lxcfs and the like). Anywhere else in /proc a mount would
# hide what the runtime itself, and the masks, rely on.
_PROC_ALLOWED = (
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
)


# File systems that the kernel does not mount with a label, or that have one of their own.
_UNLABELLED = ("proc", "sysfs", "mqueue")


def clean(path: str) -> str:
    """An absolute path without "." and "..", by the letters alone."""
    return os.path.normpath("/" + path.lstrip("/"))


def is_bind(mount: dict[str, Any], options: MountOptions) -> bool:
    return options.bind or mount.get("type") == "bind"


def open_bind_source(mount: dict[str, Any], options: MountOptions, bundle: str) -> int:
    """A detached copy of a bind mount's source. Relative sources are relative to the bundle."""
    source = mount.get("source") or ""
    if not source:
        raise InvalidSpec(f"mounts: {mount['destination']}: a bind mount needs a source")
    path = source if source.startswith("/") else f"{bundle}/{source}"
    try:
        return mounts.open_tree(AT_FDCWD, path, options.recursive_bind)
    except OSError as error:
        raise OSError(error.errno, _mount_failure(mount, error)) from None


def _mount_failure(mount: dict[str, Any], error: OSError) -> str:
    source = mount.get("source") or mount.get("type") or ""
    return f'error mounting "{source}" to rootfs at "{mount["destination"]}": {error.strerror}'


def enter_propagation(spec: dict[str, Any], rootfs: str) -> int:
    """Make the new mount namespace's tree what rootfsPropagation says; give a descriptor of the attached root."""
    propagation = (spec.get("linux") or {}).get("rootfsPropagation") or ""
    flags = _PROPAGATION[propagation]
    mounts.mount(None, "/", None, flags)
    if propagation not in ("", "slave", "rslave", "private", "rprivate"):
        _make_parent_private(rootfs)
    tree = mounts.open_tree(AT_FDCWD, rootfs, recursive=True)
    place = os.open(rootfs, os.O_PATH | os.O_CLOEXEC)
    mounts.move_mount(tree, place, rootfs)
    os.close(place)
    return tree


def _make_parent_private(path: str) -> None:
    """pivot_root refuses a root whose parent mount is shared, and the attached root must not spread to the host."""
    while True:
        try:
            mounts.mount(None, path, None, mounts.MS_PRIVATE)
            return
        except OSError as error:
            if error.errno != errno.EINVAL or path == "/":
                raise
        path = os.path.dirname(path)


class CgroupView:
    """How the container sees the cgroups: mounted anew in its cgroup namespace, or path bound from the host."""

    __slots__ = ("namespaced", "path")

    def __init__(self, namespaced: bool, path: str) -> None:
        self.namespaced = namespaced
        self.path = path


class Surroundings:
    """What all mounts of one container share.

    root: the attached root. bundle: where relative sources of bind mounts are. label: see `mount_label`.
    ask: gets from the parent, which has more rights, a "proc" or "sysfs", or "bind:INDEX"; None where it gives none.
    later: descriptors of tmpfs mounts that are to be read-only. They are filled before (mount points,
    device nodes), so `seal` makes them read-only at the end.
    """

    __slots__ = ("ask", "bundle", "cgroup", "label", "later", "root", "user_namespace")

    def __init__(
        self,
        root: int,
        bundle: str,
        cgroup: CgroupView,
        label: str,
        ask: Callable[[str], int] | None,
        user_namespace: bool,
    ) -> None:
        self.root = root
        self.bundle = bundle
        self.cgroup = cgroup
        self.label = label
        self.ask = ask
        self.user_namespace = user_namespace
        self.later: list[int] = []


def mount_all(around: Surroundings, spec: dict[str, Any], sources: dict[int, int], asked: set[int]) -> None:
    """All of `mounts`, in order. sources: index -> detached tree that the parent opened already; asked: the indices of
    those that the parent opens only now."""
    for index, mount in enumerate(spec.get("mounts") or ()):
        options = mount_options.parse(mount.get("options") or [])
        try:
            source = around.ask(f"bind:{index}") if index in asked and around.ask is not None else sources.get(index)
            mount_one(around, mount, options, source)
        except OSError as error:
            text = error.strerror or str(error)
            if not text.startswith("error mounting"):
                text = _mount_failure(mount, error)
            raise OSError(error.errno, text) from None


def mount_label(spec: dict[str, Any]) -> str:
    """linux.mountLabel; "" without SELinux, where no file system knows the option."""
    label: str = (spec.get("linux") or {}).get("mountLabel") or ""
    if not label:
        return ""
    from teu.linux import selinux  # 0.02 ms, and few hosts have it

    return label if selinux.enabled() else ""


def seal(later: list[int]) -> None:
    """Make the tmpfs mounts that `mount_all` left writable read-only."""
    for tree in later:
        mounts.mount_setattr(tree, mounts.MOUNT_ATTR_RDONLY, 0)
        os.close(tree)


def mount_one(around: Surroundings, mount: dict[str, Any], options: MountOptions, source: int | None) -> None:
    """One of `mounts`. source: the detached tree of a bind mount, where the parent has opened it."""
    destination = clean(mount["destination"])
    if destination == "/":
        raise InvalidSpec('mounts: destination "/" is the root itself')
    if options.remount:
        _remount(around.root, destination, options)
        return
    kind = mount.get("type") or ("bind" if options.bind else "")
    if is_bind(mount, options):
        tree, target = _bind(around, mount, options, destination, source)
    elif kind in ("cgroup", "cgroup2"):
        tree, target, options = _cgroups(around, options, destination)
    else:
        tree, target = _filesystem(around, mount, options, destination)
    try:
        if around.label and kind == "mqueue":
            _set_label(tree, around.label)
        if kind == "tmpfs" and options.tmpcopyup:
            _copy_up(around.root, target, destination, tree)
        if kind == "tmpfs" and options.attr_set & MOUNT_ATTR_RDONLY:
            around.later.append(os.dup(tree))
        if is_bind(mount, options):
            _set_bind_attributes(tree, options, around.user_namespace)
        else:
            attributes = options.attr_set & ~(MOUNT_ATTR_RDONLY if kind == "tmpfs" else 0)
            if attributes or options.attr_clr:
                mounts.mount_setattr(tree, attributes, options.attr_clr)
        _set_recursive_attributes(tree, options)
        mounts.move_mount(tree, target, destination)
        _set_propagation(tree, options)
    finally:
        os.close(target)
        os.close(tree)


def _bind(
    around: Surroundings, mount: dict[str, Any], options: MountOptions, destination: str, source: int | None
) -> tuple[int, int]:
    """(the source's detached tree, the place to mount it)."""
    tree = open_bind_source(mount, options, around.bundle) if source is None else source
    is_directory = _is_directory(tree)
    target = _open_target(around.root, destination, "dir" if is_directory else "file", tree)
    if _is_directory(target) != is_directory:
        os.close(target)
        # dockerd looks for these words, and gives its user a hint
        raise OSError(errno.ENOTDIR, f"{_mount_failure(mount, OSError(errno.ENOTDIR, 'not a directory'))}")
    return tree, target


def _is_directory(fd: int) -> bool:
    return os.stat(fd).st_mode & 0o170000 == 0o040000


def _cgroups(around: Surroundings, options: MountOptions, destination: str) -> tuple[int, int, MountOptions]:
    """(the tree of cgroups, the place to mount it, the options that it gets)."""
    target = _open_target(around.root, destination, "dir", None)
    tree = _cgroup_tree(around.cgroup, options)
    if tree < 0:
        # The container of an ordinary user who has no cgroup: it must not see the user's other cgroups.
        return _empty_folder(), target, mount_options.parse(["ro"])
    return tree, target, options


def _filesystem(
    around: Surroundings, mount: dict[str, Any], options: MountOptions, destination: str
) -> tuple[int, int]:
    """(a new file system, the place to mount it)."""
    kind = mount.get("type") or ""
    existed = inside.exists_in_root(around.root, destination)
    target = _open_target(around.root, destination, "dir", None, kind)
    data = [_unquoted(option) for option in options.data]
    if around.label and kind not in _UNLABELLED:
        data.append(f"context={around.label}")
    if kind == "tmpfs" and existed and not any(entry.startswith("mode=") for entry in data):
        # the folder that was there keeps its mode, as users expect
        data.append(f"mode={os.stat(target).st_mode & 0o7777:o}")
    if not kind:
        raise InvalidSpec("mounts: a mount that is no bind needs a type")
    try:
        return mounts.new_filesystem(kind, mount.get("source") or kind, data), target
    except OSError as error:
        # the kernel shows no user namespace more of proc or sysfs than is visible around it
        if error.errno != errno.EPERM or around.ask is None or kind not in ("proc", "sysfs") or data:
            raise
        return around.ask(kind), target


def _set_recursive_attributes(tree: int, options: MountOptions) -> None:
    if options.recursive_set or options.recursive_clr:
        mounts.mount_setattr(tree, options.recursive_set, options.recursive_clr, recursive=True)


def _set_propagation(tree: int, options: MountOptions) -> None:
    for propagation, recursive in options.propagation:
        mounts.mount_setattr(tree, 0, 0, propagation, recursive=recursive)


def _remount(root: int, destination: str, options: MountOptions) -> None:
    """`remount`: other attributes for what an earlier entry, say, has mounted there."""
    if options.data:
        raise InvalidSpec(f"mounts: {destination}: remount cannot change {','.join(options.data)}")
    target = inside.open_in_root(root, destination)
    try:
        mounts.mount_setattr(target, options.attr_set, options.attr_clr)
        _set_recursive_attributes(target, options)
        _set_propagation(target, options)
    finally:
        os.close(target)


# What a bind mount inherits from its source as long as no attribute is given: statvfs(3)'s flag -> mount_setattr's.
_LOCKABLE = (
    (os.ST_RDONLY, MOUNT_ATTR_RDONLY),
    (os.ST_NOSUID, MOUNT_ATTR_NOSUID),
    (os.ST_NODEV, MOUNT_ATTR_NODEV),
    (os.ST_NOEXEC, MOUNT_ATTR_NOEXEC),
)
_TIMES = os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RELATIME
_INHERITED = MOUNT_ATTR_NOSYMFOLLOW | sum(attribute for _, attribute in _LOCKABLE)


def _set_bind_attributes(tree: int, options: MountOptions, user_namespace: bool) -> None:
    """The attributes of a bind mount, as runc: none given, those of its source stay; else what is not given is off.

    But what the host has locked away from a user namespace (ro, nosuid, nodev, noexec) stays on there,
    and to ask for it to be off is EPERM, also where the host's root opened the source. So is to ask for other access
    times than the host's.
    """
    if not options.attributes:
        return
    clear = options.attr_clr
    implied = _INHERITED & ~options.attr_set & ~clear
    if user_namespace:
        implied &= MOUNT_ATTR_NOSYMFOLLOW
        had = _lockable(tree)
        times = os.fstatvfs(tree).f_flag & _TIMES
    try:
        mounts.mount_setattr(tree, options.attr_set, clear | implied)
    except PermissionError:
        # locked by a user namespace around us
        mounts.mount_setattr(tree, options.attr_set, clear | implied & MOUNT_ATTR_NOSYMFOLLOW)
    if user_namespace and (had & clear & ~_lockable(tree) or os.fstatvfs(tree).f_flag & _TIMES != times):
        raise PermissionError(errno.EPERM, "operation not permitted")


def _lockable(tree: int) -> int:
    flags = os.fstatvfs(tree).f_flag
    return sum(attribute for flag, attribute in _LOCKABLE if flags & flag)


def _open_target(root: int, destination: str, kind: str, tree: int | None, filesystem: str = "") -> int:
    """The place of a mount as a descriptor; made where it is missing; refused where it must not be."""
    if destination in ("/proc", "/sys") and (filesystem in ("proc", "sysfs") or tree is not None):
        # A link here would put the real procfs elsewhere, and leave a forged one in its place.
        os.close(inside.make_in_root(root, destination, kind))
        try:
            target = inside.openat2(root, destination[1:], os.O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
        except OSError:
            raise RuncError(f'filesystem "{filesystem or "bind"}" must be mounted on ordinary directory') from None
        if kind == "dir" and not _is_directory(target):
            os.close(target)
            raise RuncError(f'filesystem "{filesystem or "bind"}" must be mounted on ordinary directory')
        if destination == "/proc" and tree is not None and fstatfs_type(tree) != PROC_SUPER_MAGIC:
            os.close(target)
            raise RuncError('"/proc" cannot be mounted because it is inside /proc')
        return target
    target = inside.make_in_root(root, destination, kind)
    if fstatfs_type(target) == PROC_SUPER_MAGIC and filesystem != "proc":
        # The opened place is asked, not the path: a link may have led here (CVE-2025-52881).
        in_proc = _path_in_proc(root, target)
        source_is_proc = tree is not None and fstatfs_type(tree) == PROC_SUPER_MAGIC
        if in_proc not in _PROC_ALLOWED and not source_is_proc:
            os.close(target)
            raise RuncError(f'"{destination}" cannot be mounted because it is inside /proc')
    return target


def _path_in_proc(root: int, target: int) -> str:
    """Which of the allowed places in the container's /proc target is; "" for none of them."""
    status = os.stat(target)
    for name in _PROC_ALLOWED:
        try:
            fd = inside.open_in_root(root, "proc/" + name)
        except OSError:
            continue
        other = os.stat(fd)
        os.close(fd)
        if (status.st_dev, status.st_ino) == (other.st_dev, other.st_ino):
            return name
    return ""


def _cgroup_tree(cgroup: CgroupView, options: MountOptions) -> int:
    """The cgroup tree as the container may see it; -1 where it may see none."""
    if cgroup.namespaced:
        try:
            return mounts.new_filesystem("cgroup2", "cgroup", options.data)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EBUSY):
                raise
    # In the host's cgroup namespace nothing is mounted anew: that would set the options of the host's own mount
    # (nsdelegate).
    if cgroup.path:
        try:
            return mounts.open_tree(AT_FDCWD, cgroup.path, True)
        except FileNotFoundError:
            pass
    return -1


def _unquoted(option: str) -> str:
    """As mount(2) reads a label that has commas: context="system_u:object_r:container_file_t:s0:c1,c2"."""
    key, equals, value = option.partition("=")
    if key.endswith("context") and len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return key + equals + value


def _set_label(tree: int, label: str) -> None:
    """Of the root of a file system that cannot be mounted with one, as runc does for mqueue."""
    from teu.linux import selinux  # 0.02 ms, and few hosts have it

    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    try:
        os.setxattr(folder, selinux.XATTR, os.fsencode(label))
    except OSError as error:
        raise OSError(error.errno, f"the label {label}: {error.strerror}") from None
    finally:
        os.close(folder)


def _empty_folder(label: str = "") -> int:
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    data = ["nr_blocks=1", "nr_inodes=1"]
    if label:
        data.append(f"context={label}")
    return mounts.new_filesystem("tmpfs", "tmpfs", data, attributes)


def _copy_up(root: int, target: int, destination: str, tree: int) -> None:
    """tmpcopyup: fill the new tmpfs with what its place held. Both sides by descriptor, links never followed."""
    source = inside.openat2(root, destination[1:], os.O_RDONLY | os.O_DIRECTORY, RESOLVE_IN_ROOT)
    try:
        status = os.stat(source)
        to = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
        try:
            os.fchown(to, status.st_uid, status.st_gid)
            _copy_folder(source, to)
        finally:
            os.close(to)
    finally:
        os.close(source)


def _copy_attributes(source: int, to: int, status: os.stat_result) -> None:
    os.fchown(to, status.st_uid, status.st_gid)
    os.fchmod(to, status.st_mode & 0o7777)
    _copy_xattrs(source, to)
    os.utime(to, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_folder(source: int, to: int) -> None:
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = status.st_mode & 0o170000
        if kind == 0o040000:
            os.mkdir(name, 0o700, dir_fd=to)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below, below_to = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=to)
            _copy_folder(below, below_to)
            _copy_attributes(below, below_to, status)
            os.close(below)
            os.close(below_to)
        elif kind == 0o100000:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=source)
            copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=to)
            while os.sendfile(copy, file, None, 1 << 24):
                pass
            _copy_attributes(file, copy, status)
            os.close(file)
            os.close(copy)
        elif kind == 0o120000:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=to)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=to, follow_symlinks=False)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=to)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=to, follow_symlinks=False)


def _copy_xattrs(source: int, to: int) -> None:
    try:
        for name in os.listxattr(source):
            try:
                os.setxattr(to, name, os.getxattr(source, name))
            except OSError:
                continue
    except OSError:
        pass


# -- masks -----------------------------------------------------------------------------------------


def open_null() -> int:
    """The host's /dev/null, and nothing that merely has its name (CVE-2025-31133)."""
    fd = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.stat(fd)
    if status.st_mode & 0o170000 != 0o020000 or status.st_rdev != os.makedev(1, 3):
        os.close(fd)
        raise RuncError("/dev/null of the host is not the null device")
    return fd


def mask_paths(root: int, paths: list[str], null: int, label: str = "") -> None:
    """Files get the null device on top, folders an empty read-only tmpfs with that label. What is not there needs
    no mask.
    """
    empty = -1
    for path in dict.fromkeys(paths):
        try:
            target = inside.open_in_root(root, path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            if os.stat(target).st_mode & 0o170000 == 0o040000:
                if empty < 0:
                    tree = empty = _empty_folder(label)
                else:
                    tree = mounts.open_tree(empty, "")
            else:
                tree = mounts.open_tree(null, "")
            try:
                mounts.move_mount(tree, target, path)
            finally:
                if tree != empty:
                    os.close(tree)
        except OSError as error:
            raise OSError(error.errno, f"can't mask path {path}: {error.strerror}") from None
        finally:
            os.close(target)
    if empty >= 0:
        os.close(empty)


def readonly_paths(root: int, paths: list[str]) -> None:
    """Each path bound on itself, read-only with all that is mounted below it."""
    for path in dict.fromkeys(paths):
        try:
            target = inside.open_in_root(root, path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            tree = mounts.open_tree(target, "", recursive=True)
            try:
                mounts.mount_setattr(tree, MOUNT_ATTR_RDONLY, recursive=True)
                mounts.move_mount(tree, target, path)
            finally:
                os.close(tree)
        except OSError as error:
            raise OSError(error.errno, f"can't make {path} read-only: {error.strerror}") from None
        finally:
            os.close(target)


def make_readonly(root: int) -> None:
    mounts.mount_setattr(root, MOUNT_ATTR_RDONLY)


# -- into it ---------------------------------------------------------------------------------------


def pivot(root: int, propagation: str) -> None:
    """Make root the root. The old one goes on top of the new one and is unmounted from there: no folder needed."""
    old = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(root)
    mounts.pivot_root(".", ".")
    os.fchdir(old)
    # or the unmounting would reach the host through shared mounts
    mounts.mount(None, ".", None, mounts.MS_SLAVE | mounts.MS_REC)
    mounts.umount2(".", mounts.MNT_DETACH)
    os.close(old)
    os.chdir("/")
    if propagation:
        mounts.mount(None, "/", None, _PROPAGATION[propagation])


def move_root(root: int, propagation: str) -> None:
    """--no-pivot: for a root on a ramdisk. The host's full /proc and /sys are taken away first."""
    here = os.readlink(f"/proc/self/fd/{root}")
    for line in _mount_points():
        if not (line + "/").startswith(here + "/"):
            try:
                mounts.umount2(line, mounts.MNT_DETACH)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue  # it has been unmounted with the mount above it
                if error.errno not in (errno.EINVAL, errno.EPERM):
                    raise
                mounts.mount("tmpfs", line, "tmpfs", 0)
    os.fchdir(root)
    mounts.mount(".", "/", None, mounts.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    if propagation:
        mounts.mount(None, "/", None, _PROPAGATION[propagation])


def _mount_points() -> list[str]:
    """Of every proc and sysfs, and of whatever lies at or below /proc and /sys."""
    points = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            point = os.fsdecode(line.split(b" ")[4].replace(b"\\040", b" "))
            kind = line.partition(b" - ")[2].split(b" ")[0]
            if kind in (b"proc", b"sysfs") or f"{point}/".startswith(("/proc/", "/sys/")):
                points.append(point)
    return sorted(set(points), key=len)
