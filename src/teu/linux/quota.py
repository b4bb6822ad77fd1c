# SPDX-License-Identifier: Apache-2.0
"""How much may be written below a folder: project quotas of ext4 and xfs. Called by teu-containerd's snapshotter
overlayfs for what containers write, and by teud's volume driver local.

A folder that is limited has a project of its own: a number in its inode, which everything that is made below it
inherits, so that the file system counts it all, whoever writes; statfs(2) in there, and so df, shows the limit as the
size.

The numbers are nobody's to remember: a file system knows which ones its files and its limits have, and one that is not
free of both is never given. So a project is taken as soon as its folder's inode says so, which the file system's own
journal keeps, and is free again when its limit and the last of its files have gone: nothing is left over by a daemon
that dies anywhere in between, as long as folders are removed by `release` and then `trees.remove_tree`.

Of the kernel: ioctl_xfs_fsgetxattr(2); quotactl_fd(2), since 5.14, with the commands of xfs (Q_X...), which ext4
takes as well.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from teu.linux import trees
from teu.linux.syscalls import NR_quotactl_fd, buffer, syscall

FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FS_XFLAG_PROJINHERIT = 0x200
_FSXATTR = struct.Struct("=5I8x")  # fsxattr: xflags, extsize, nextents, projid, cowextsize

PRJQUOTA = 2
Q_XGETQUOTA, Q_XSETQLIM, Q_XGETQSTAT = 0x5803, 0x5804, 0x5805
FS_QUOTA_PDQ_ACCT, FS_QUOTA_PDQ_ENFD = 0x10, 0x20
FS_DQUOT_VERSION, FS_PROJ_QUOTA = 1, 2
FS_DQ_BSOFT, FS_DQ_BHARD = 0x4, 0x8
# fs_disk_quota: version, flags, fieldmask, id; hard and soft limit of blocks, of inodes; blocks and inodes used
_DISK_QUOTA = struct.Struct("=bbHI6Q56x")
BLOCK = 512

# Of our projects. Whoever else gives numbers begins at the other end (docker at 1, kubelet at 1048577).
FIRST, COUNT = 0x54000000, 1 << 24
TRIES = 64
LOCK = "/run/teu/projects.lock"
# Numbers that an administrator has given, in use or not: projid(5), projects(5).
NAMES, FOLDERS = "/etc/projid", "/etc/projects"
_NONE = (errno.ENOSYS, errno.ESRCH, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)


class NoQuota(Exception):
    """Nothing can be limited there: why not, and what to do."""


class _Mount(NamedTuple):
    point: str
    kind: str
    source: str


def check(path: str) -> None:
    """Whether a limit below `path` would hold. Raises NoQuota, OSError."""
    with _opened(os.path.realpath(path)) as folder:
        _check(folder, path)


def limit(path: str, size: int) -> None:
    """What is in the folder may have `size` bytes, at least 1; all that is there and all that comes. A folder that has
    a limit gets this one in its place. On disk with the file system's next commit. Raises NoQuota, OSError."""
    with _opened(path) as folder:
        _check(folder, path)
        project = _project(folder)
        if not project:
            with _alone():
                project = _free(folder)
                _join_all(folder, project)
                _join(folder, project)  # the last one: what was cut short is begun anew
        _set_limit(folder, project, size)


def release(path: str) -> None:
    """The folder has no limit any more; before it is removed, so that its project is nobody's afterwards. Nothing where
    it has none, and where there is no folder. Raises OSError."""
    try:
        with _opened(path) as folder:
            if project := _project(folder):
                _set_limit(folder, project, 0)
    except (FileNotFoundError, NotADirectoryError, NoQuota):
        pass
    except OSError as error:
        if error.errno not in _NONE:  # what is mounted without quotas now has none that could be in the way
            raise


@contextmanager
def _opened(path: str) -> Iterator[int]:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


@contextmanager
def _alone() -> Iterator[None]:
    """No other program of ours takes a project meanwhile."""
    os.makedirs(os.path.dirname(LOCK), mode=0o755, exist_ok=True)
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


# -- the folder's side ---------------------------------------------------------------------------


def _attributes(file: int) -> tuple[int, ...]:
    return _FSXATTR.unpack(fcntl.ioctl(file, FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))


def _project(folder: int) -> int:
    """Which of our projects begins here; 0 for none, for one of others, and for one that began further up."""
    flags, _, _, project, _ = _attributes(folder)
    if not (flags & FS_XFLAG_PROJINHERIT and FIRST <= project < FIRST + COUNT):
        return 0
    above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return project if _attributes(above)[3] != project else 0
    finally:
        os.close(above)


def _join(file: int, project: int) -> None:
    flags, extent, extents, _, copied = _attributes(file)
    if stat.S_ISDIR(os.fstat(file).st_mode):
        flags |= FS_XFLAG_PROJINHERIT
    fcntl.ioctl(file, FS_IOC_FSSETXATTR, _FSXATTR.pack(flags, extent, extents, project, copied))


def _join_all(folder: int, project: int) -> None:
    """What is in the folder already. Links, devices and sockets, which have no content, are not counted."""
    for _, above, name, status in trees.walk(folder, mounts=False):
        if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            continue
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
        except FileNotFoundError:
            continue
        try:
            _join(file, project)
        finally:
            os.close(file)


# -- the file system's side ----------------------------------------------------------------------


def _quotactl(file: int, command: int, id: int, data: object) -> None:
    """quotactl_fd(2) for the file system that the open file is on. Raises OSError, NoQuota for who may not."""
    try:
        syscall("quotactl_fd", NR_quotactl_fd, file, command << 8 | PRJQUOTA, id, data)
    except PermissionError:
        raise NoQuota("only root of the host may have to do with quotas: run the daemon as that") from None


def _quota(file: int, project: int) -> tuple[int, ...]:
    """The fields of the project's fs_disk_quota; zeros where the file system has never heard of it."""
    data = buffer(bytes(_DISK_QUOTA.size))
    try:
        _quotactl(file, Q_XGETQUOTA, project, data)
    except FileNotFoundError:
        return (0,) * 10
    return _DISK_QUOTA.unpack(bytes(data)[: _DISK_QUOTA.size])


def _set_limit(file: int, project: int, size: int) -> None:
    mask = FS_DQ_BHARD | FS_DQ_BSOFT
    blocks = -(-size // BLOCK)
    data = buffer(_DISK_QUOTA.pack(FS_DQUOT_VERSION, FS_PROJ_QUOTA, mask, project, blocks, 0, 0, 0, 0, 0))
    _quotactl(file, Q_XSETQLIM, project, data)


def _free(file: int) -> int:
    """A project that no file and no limit of the file system has, and no administrator has set aside."""
    given = _given()
    for _ in range(TRIES):
        project = FIRST + int.from_bytes(os.urandom(3), "little") % COUNT
        if project not in given and not any(_quota(file, project)[4:]):
            return project
    raise OSError(errno.EUSERS, f"no free project among {FIRST} to {FIRST + COUNT - 1}")


def _given() -> set[int]:
    """NAME:ID a line, or ID:FOLDER."""
    found = set()
    for path, place in ((NAMES, 1), (FOLDERS, 0)):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in lines:
            field = line.partition(":")[2 * place].strip()
            if not line.startswith("#") and field.isdecimal():
                found.add(int(field))
    return found


def _check(folder: int, path: str) -> None:
    state = buffer(bytes(256))  # fs_quota_stat: version, flags in the second 16 bits
    flags = 0
    try:
        _quotactl(folder, Q_XGETQSTAT, 0, state)
        flags = int.from_bytes(bytes(state)[2:4], "little")
    except PermissionError:
        raise NoQuota(
            f"{path}: only root of the host may set quotas, and this is not the host's user namespace"
        ) from None
    except OSError as error:
        if error.errno not in _NONE:
            raise
    if not flags & FS_QUOTA_PDQ_ENFD:
        raise NoQuota(_why(_mount_of(folder), path, bool(flags & FS_QUOTA_PDQ_ACCT)))


def _why(mount: _Mount, path: str, counted: bool) -> str:
    if mount.kind not in ("ext4", "xfs"):
        kind = mount.kind or "a file system of an unknown kind"
        return f"{path} is on {kind}, which has no project quotas: put it on ext4 or xfs, mounted with prjquota"
    if not os.path.isdir("/proc/sys/fs/quota"):
        return f"{path}: this kernel has no quotas (CONFIG_QUOTA): boot one of the distribution's"
    where = f"the {mount.kind} at {mount.point} ({mount.source})"
    option = "mount it with the option prjquota"
    if mount.point == "/":
        option = "boot with rootflags=prjquota on the kernel's command line"
    if counted:
        return f"{path}: {where} counts for projects, but limits none: {option}"
    if mount.kind == "ext4":
        return (
            f"{path}: {where} is without project quotas: while it is not mounted, run"
            f" `tune2fs -O project,quota -Q prjquota {mount.source}`, then {option}"
        )
    return f"{path}: {where} is without project quotas: {option}, which a remount does not do"


def _mount_of(file: int) -> _Mount:
    """Where the file system of the open file is mounted, the shortest of several; empty fields where nobody knows."""
    device = os.fstat(file).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = _Mount("", "", "")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            before, _, after = line.partition(" - ")
            fields, rest = before.split(" "), after.split(" ")
            if fields[2] == wanted and (not found.point or len(fields[4]) < len(found.point)):
                found = _Mount(fields[4], rest[0], rest[1])
    return found
