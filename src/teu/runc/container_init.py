# SPDX-License-Identifier: Apache-2.0
"""The container's first process, from clone until it executes teu-runc-init.

Called by teu.runc.launch in the cloned child. It is Python inside the container's new namespaces,
so: everything is imported before (launch imports this module before it clones), imports are
switched off before the root is entered, and any failure goes to the parent as one message.
If the parent dies, this process dies: by PR_SET_PDEATHSIG, and at the next wait for its word.
"""

from __future__ import annotations

import fcntl
import os
import sys
from _socket import (
    AF_INET,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOL_SOCKET,
    sethostname,
    socket,
)
from struct import pack, unpack

from teu.linux import inside, mounts
from teu.linux.cgroup_files import mountpoint
from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
from teu.linux.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_PARENT,
    clone,
    setns,
    unshare,
)
from teu.linux.syscalls import (
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    NR_setdomainname,
    fstatfs_type,
    prctl,
    syscall,
)
from teu.oci import runtime_spec
from teu.runc import devices, hooks, process, rootfs
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SIGKILL = 9
_DOTS_AND_SLASHES = {ord("."): "/", ord("/"): "."}
_DEVPTS_SUPER_MAGIC = 0x1CD1
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


class Plan:
    """What the parent prepared; all of it is plain data and descriptors that survive the clone."""

    spec: dict[str, Any]
    id: str
    bundle: str
    rootfs: str
    sync: socket  # the child's end
    parent_sync: socket  # closed here
    first_flags: int = 0  # of the first clone
    second_flags: int = -1  # of the second one, where a user or pid namespace is joined; -1: there is none
    early_joins: list[tuple[int, int]]  # (flag, descriptor) before the second clone: user, pid
    joins: list[tuple[int, int]]  # the others
    late_flags: int = 0  # to unshare once the parent has set things up: cgroup, time
    user_namespace: bool = False  # the container has one of its own, made or joined
    setgroups: bool = True  # whether setgroups(2) is possible there
    sources: dict[int, int]  # mount index -> detached tree
    nodes: dict[str, int]  # path of a device -> detached mount of its node
    asked: set[int]  # of those that the parent opens when we get there
    procfs: int = -1  # the host's /proc, O_PATH
    program: int = -1
    fifo: int = -1
    last_step: process.LastStep
    no_pivot: bool = False
    cgroup_path: str = ""
    state: dict[str, Any]  # for createContainer hooks


def main(plan: Plan) -> None:
    """Never returns."""
    try:
        _prepare(plan)
    except BaseException as error:  # the parent tells every error, whatever it was
        number, text = 0, str(error)
        if isinstance(error, OSError) and error.errno is not None:
            number, text = 0, _os_error_text(error)
        try:
            plan.sync.send(b"E" + pack("I", number) + text.encode("utf-8", "replace")[:4000])
        except OSError:
            pass
    finally:
        os._exit(1)


def _os_error_text(error: OSError) -> str:
    text = error.strerror or str(error)
    if error.filename is not None:
        text = f"{error.filename}: {text}"
    head, colon, tail = text.rpartition(": ")
    return head + colon + (tail if tail[1:2].isupper() else tail[:1].lower() + tail[1:])


def _await(plan: Plan) -> None:
    if plan.sync.recv(1) != b"g":
        os._exit(1)


def _become_root(plan: Plan) -> None:
    if plan.setgroups:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _prepare(plan: Plan) -> None:
    prctl(PR_SET_PDEATHSIG, _SIGKILL)
    os.umask(0)
    plan.parent_sync.close()
    _await(plan)  # the id maps are written; cgroup and devices of the network are there
    prctl(PR_SET_DUMPABLE, 0)
    if plan.second_flags >= 0:
        for flag, fd in plan.early_joins:
            setns(fd, flag)
            if flag == CLONE_NEWUSER:
                _become_root(plan)
        pid = clone(plan.second_flags | CLONE_PARENT)
        if pid:
            plan.sync.send(b"P" + pack("I", pid))
            os._exit(0)
        prctl(PR_SET_PDEATHSIG, _SIGKILL)
        prctl(PR_SET_DUMPABLE, 0)
        _await(plan)
    if plan.user_namespace:
        _become_root(plan)
        prctl(PR_SET_PDEATHSIG, _SIGKILL)  # a change of identity clears it
        prctl(PR_SET_DUMPABLE, 0)
    os.setsid()
    for flag, fd in plan.joins:
        setns(fd, flag)
        os.close(fd)
    if plan.late_flags & CLONE_NEWCGROUP:
        unshare(CLONE_NEWCGROUP)
    _set_names(plan.spec)
    if (plan.first_flags | max(plan.second_flags, 0)) & CLONE_NEWNET:
        _loopback_up()
    console, home = _enter_root(plan)
    if plan.late_flags & CLONE_NEWTIME:
        # in effect from the next execve on, which is teu-runc-init's
        unshare(CLONE_NEWTIME)
        _write_time_offsets(plan)
    _become_program(plan, console, home)


def _set_names(spec: dict[str, Any]) -> None:
    if spec.get("hostname"):
        sethostname(spec["hostname"])
    if spec.get("domainname"):
        name = os.fsencode(spec["domainname"])
        syscall("setdomainname", NR_setdomainname, name, len(name))


def _loopback_up() -> None:
    control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        request = fcntl.ioctl(control.fileno(), _SIOCGIFFLAGS, pack("16sH22x", b"lo", 0))
        flags = int.from_bytes(request[16:18], sys.byteorder) | _IFF_UP
        fcntl.ioctl(control.fileno(), _SIOCSIFFLAGS, pack("16sH22x", b"lo", flags))
    finally:
        control.close()


def _enter_root(plan: Plan) -> tuple[int, str]:
    """Build the root and make it "/". Gives the terminal (or -1) and the user's home."""
    spec = plan.spec
    linux = spec.get("linux") or {}
    flags = plan.first_flags | max(plan.second_flags, 0)
    own_mounts = bool(flags & CLONE_NEWNS) or any(flag == CLONE_NEWNS for flag, _ in plan.joins)
    propagation = linux.get("rootfsPropagation") or ""
    if own_mounts:
        null = rootfs.open_null()
        root = rootfs.enter_propagation(spec, plan.rootfs)
        namespaced = _has_cgroup_namespace(plan)
        # In the host's cgroup namespace /proc/self/cgroup names a place in the whole tree, so the container sees all of
        # it. The container of an ordinary user sees only its own cgroup.
        whole = not namespaced and not plan.user_namespace
        view = rootfs.CgroupView(namespaced, mountpoint() if whole else plan.cgroup_path)
        label = rootfs.mount_label(spec)
        around = rootfs.Surroundings(root, plan.bundle, view, label, _asker(plan), plan.user_namespace)
        rootfs.mount_all(around, spec, plan.sources, plan.asked)
        if _makes_devices(spec):
            devices.create_all(root, spec, plan.user_namespace, plan.nodes)
            devices.create_links(root)
    else:
        root = os.open(plan.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    console = _open_console(plan, root, own_mounts) if (spec.get("process") or {}).get("terminal") else -1
    plan.sync.send(b"H")
    _await(plan)  # prestart and createRuntime hooks have run
    os.fchdir(root)  # runc's hooks run here, and a hook that fills the root expects it here
    # our pid as the host sees it
    hooks.run_all(spec, "createContainer", {**plan.state, "pid": int(os.readlink("self", dir_fd=plan.procfs))})
    if (spec.get("process") or {}).get("cwd"):
        _make_working_directory(root, spec["process"]["cwd"])
    _write_sysctls(plan, linux.get("sysctl") or {})
    user = (spec.get("process") or {}).get("user") or {}
    home = process.home_of(root, user.get("uid", 0))
    if own_mounts:
        rootfs.readonly_paths(root, linux.get("readonlyPaths") or [])
        rootfs.mask_paths(root, linux.get("maskedPaths") or [], null, label)
        os.close(null)
        rootfs.seal(around.later)
        if (spec.get("root") or {}).get("readonly"):
            rootfs.make_readonly(root)
    # From here on Python would look for its modules among the container's files: it must not look at all.
    sys.meta_path.clear()
    sys.path.clear()
    sys.path_hooks.clear()
    if not own_mounts:
        os.fchdir(root)
        os.chroot(".")
        os.chdir("/")
    elif plan.no_pivot:
        rootfs.move_root(root, propagation)
    else:
        rootfs.pivot(root, propagation)
    os.close(root)
    _reopen_null(plan)
    return console, home


def _reopen_null(plan: Plan) -> None:
    """Where stdio is the host's /dev/null, take the container's own: criu cannot save what lies outside."""
    device = os.makedev(1, 3)
    own = -1
    for number in range(3):
        try:
            status = os.fstat(number)
        except OSError:
            continue
        if status.st_rdev != device or status.st_mode & 0o170000 != 0o020000:
            continue
        if own < 0:
            try:
                place = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                return
            try:
                if os.fstat(place).st_rdev != device:
                    return
                own = os.open(f"self/fd/{place}", os.O_RDWR | os.O_CLOEXEC, dir_fd=plan.procfs)
            except OSError:
                return
            finally:
                os.close(place)
        os.dup2(own, number)
    if own >= 0:
        os.close(own)


def _asker(plan: Plan) -> Callable[[str], int] | None:
    """How to get a file system from the parent, which is privileged where we are not."""
    # processes that share the pid namespace would see the parent's helper
    shared = any(flag == CLONE_NEWPID for flag, _ in plan.early_joins)
    if not plan.asked and (not plan.user_namespace or shared):
        return None

    def ask(kind: str) -> int:
        plan.sync.send(b"M" + os.fsencode(kind))
        data, control, _, _ = plan.sync.recvmsg(1, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
        if data != b"g":
            os._exit(1)
        for level, of, body in control:
            if level == SOL_SOCKET and of == SCM_RIGHTS:
                return int(unpack("i", body[:4])[0])
        raise OSError(1, f"mount {kind}: operation not permitted")

    return ask


def _has_cgroup_namespace(plan: Plan) -> bool:
    joined = (*plan.joins, *plan.early_joins)
    return bool(plan.late_flags & CLONE_NEWCGROUP) or any(flag == CLONE_NEWCGROUP for flag, _ in joined)


def _makes_devices(spec: dict[str, Any]) -> bool:
    """Not where the bundle brings a /dev of its own by a bind mount, as runc."""
    for mount in spec.get("mounts") or ():
        if rootfs.clean(mount["destination"]) == "/dev" and (
            mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options") or ())
        ):
            return False
    return True


def _make_working_directory(root: int, cwd: str) -> None:
    try:
        os.close(inside.make_in_root(root, cwd))
    except OSError:
        pass  # a read-only root, or a link to nowhere: the last step tells the error of chdir


def _write_sysctls(plan: Plan, values: dict[str, str]) -> None:
    """Write through a procfs that only we can see: the container's own may be anything (CVE-2025-52881).

    Where none may be mounted (a user namespace with a masked /proc around it), the host's, opened before.
    """
    if not values:
        return
    try:
        procfs = mounts.new_filesystem("proc", "proc", [])
    except OSError:
        procfs = os.dup(plan.procfs)
    try:
        for key, value in values.items():
            path = "sys/" + runtime_spec.sysctl_name(key).translate(_DOTS_AND_SLASHES)
            try:
                fd = inside.openat2(procfs, path, os.O_WRONLY, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
                try:
                    os.write(fd, os.fsencode(value))
                finally:
                    os.close(fd)
            except OSError as error:
                raise OSError(error.errno, f"sysctl {key}: {error.strerror}") from None
    finally:
        os.close(procfs)


def _write_time_offsets(plan: Plan) -> None:
    offsets = (plan.spec.get("linux") or {}).get("timeOffsets") or {}
    if not offsets:
        return
    text = "".join(
        f"{clock} {offset.get('secs') or 0} {offset.get('nanosecs') or 0}\n" for clock, offset in offsets.items()
    )
    if plan.user_namespace and not any(flag == CLONE_NEWPID for flag, _ in plan.early_joins):
        # Not being dumpable, our own files belong to the host's root. No other process is in our namespaces yet.
        prctl(PR_SET_DUMPABLE, 1)
    try:
        fd = os.open("self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC, dir_fd=plan.procfs)
    finally:
        prctl(PR_SET_DUMPABLE, 0)
    try:
        os.write(fd, os.fsencode(text))
    except OSError as error:
        raise OSError(error.errno, f"linux.timeOffsets: {error.strerror}") from None
    finally:
        os.close(fd)


def _open_console(plan: Plan, root: int, own_mounts: bool) -> int:
    """A terminal of the container's devpts, put on /dev/console; its master goes to the parent.

    The slave is reached through the master and bound by descriptor: no path of the container is
    trusted (CVE-2025-52565). In the host's mount namespace nothing is mounted in the container's root:
    there it is a terminal of the host's devpts, and no /dev/console.
    """
    if own_mounts:
        try:
            master = inside.open_in_root(root, "dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        except OSError as error:
            raise RuncError(f"process.terminal needs a devpts at /dev/pts: {error.strerror}") from None
        if fstatfs_type(master) != _DEVPTS_SUPER_MAGIC or os.fstat(master).st_rdev != os.makedev(5, 2):
            raise RuncError("/dev/pts/ptmx is not a terminal multiplexer of a devpts")
    else:
        master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    os.fchown(slave, ((plan.spec["process"].get("user") or {}).get("uid")) or 0, -1)
    if own_mounts:
        _put_console(root, slave)
    plan.sync.sendmsg([b"C"], [(SOL_SOCKET, SCM_RIGHTS, pack("i", master))])
    os.close(master)
    _await(plan)
    return slave


def _put_console(root: int, slave: int) -> None:
    parent = inside.make_in_root(root, "dev")
    try:
        try:
            target = inside.openat2(parent, "console", os.O_PATH | os.O_NOFOLLOW, RESOLVE_BENEATH)
            if os.stat(target).st_mode & 0o170000 == 0o120000:
                os.close(target)
                os.unlink("console", dir_fd=parent)
                raise FileNotFoundError
        except FileNotFoundError:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open("console", flags, 0o600, dir_fd=parent))
            target = inside.openat2(parent, "console", os.O_PATH | os.O_NOFOLLOW, RESOLVE_BENEATH)
        tree = mounts.open_tree(slave, "")
        mounts.move_mount(tree, target, "/dev/console")
        os.close(tree)
        os.close(target)
    finally:
        os.close(parent)


def _become_program(plan: Plan, console: int, home: str) -> None:
    sync = plan.sync.fileno()
    env = process.environment(plan.spec["process"], home)
    data = plan.last_step.records(env, (sync, plan.fifo, console, plan.procfs, -1))
    records = process.sealed(b"teu-runc-records", data)
    for fd in (sync, plan.fifo, console, plan.procfs, records):
        if fd >= 0:
            os.set_inheritable(fd, True)
    os.execve(plan.program, ["teu-runc-init", str(records)], {})
