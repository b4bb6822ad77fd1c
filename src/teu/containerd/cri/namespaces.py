# SPDX-License-Identifier: Apache-2.0
"""A pod's namespaces without a process: made by a thread that ends, held by bind mounts of them. A daemon that is
killed leaves them as they are. Called by `pods`, on threads.

No thread may have a user namespace of its own. Where a pod has one, a process makes the namespaces that it owns, and
ends as soon as they are held.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from teu.containerd.core.errors import Error, FailedPrecondition, InvalidArgument
from teu.containerd.cri.users import Maps, Range, obstacle
from teu.linux import netlink, netns
from teu.linux.mounts import MNT_DETACH, MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, mount, new_filesystem, umount2
from teu.linux.namespaces import TYPES, setns, unshare
from teu.linux.trees import is_mount_root
from teu.oci.runtime_spec import sysctl_name

NETWORKS = "/run/netns"
SHARED_MEMORY = 64 << 20  # bytes, as of containerd's pods
# Of the namespaces that a pod may have for itself, what begins like these belongs to which.
_OWNERS = {
    "net.": "network",
    "kernel.shm": "ipc",
    "kernel.msg": "ipc",
    "kernel.sem": "ipc",
    "fs.mqueue.": "ipc",
}
# Of unshare(1) and nsenter(1).
_OPTIONS = {"user": "--user", "network": "--net", "ipc": "--ipc", "uts": "--uts"}
# What containerd's pods may do since version 2: privileged ports and pings need no capability there.
UNPRIVILEGED = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}


def check_sysctls(sysctls: Mapping[str, str], own: set[str]) -> None:
    """That each belongs to a namespace of the pod's own, which `own` has by the specification's names: the rest is the
    host's. Raises InvalidArgument."""
    for given in sysctls:
        name = sysctl_name(given)
        kind = next((kind for begin, kind in _OWNERS.items() if name.startswith(begin)), "")
        if not kind:
            raise InvalidArgument(f"sysctl {given} is of no namespace, so that it would change the host's")
        if kind not in own:
            raise InvalidArgument(f"sysctl {given} would change the host's: the pod has no {kind} namespace of its own")


Inside = Callable[[str, str, Sequence[int]], None]  # writes a value into a file, with descriptors that its path needs


def _write(name: str, value: str, inside: Inside | None = None) -> None:
    place = "sys/" + sysctl_name(name).translate({ord("."): "/", ord("/"): "."})
    try:
        try:
            _put(f"/proc/{place}", value, inside)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # A host that is a container itself may have its own read only, as systemd's: in a new proc it is not.
            descriptor = new_filesystem("proc", "proc", [])
            try:
                _put(f"/proc/self/fd/{descriptor}/{place}", value, inside, (descriptor,))
            finally:
                os.close(descriptor)
    except OSError as error:
        raise InvalidArgument(f"sysctl {name} cannot be {value!r}: {os.strerror(error.errno or 0)}") from None


def _put(path: str, value: str, inside: Inside | None, needed: Sequence[int] = ()) -> None:
    try:
        with open(path, "w") as file:
            file.write(value)
    except PermissionError:
        if inside is None:
            raise
        inside(path, value, needed)


def _set_up(kinds: set[str], hostname: str, sysctls: Mapping[str, str], inside: Inside | None = None) -> None:
    """What new namespaces begin with, for the thread that is in them. `inside` writes what only their own root may."""
    if "network" in kinds:
        inner = netlink.Socket()
        try:
            inner.send([netlink.set_up(1)])
        finally:
            inner.close()
        for name, value in UNPRIVILEGED.items():
            _write(name, value)
    if "uts" in kinds:
        socket.sethostname(hostname)
    for name, value in sysctls.items():
        _write(name, value, inside)


def _hold(namespace: str, path: str) -> None:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    mount(namespace, path, None, MS_BIND)


@contextmanager
def _process(kinds: set[str], maps: Maps) -> Iterator[int]:
    """The pid of a process in new namespaces, of which one is a user namespace that owns the others. FailedPrecondition
    where the kernel gives none."""
    options = [_OPTIONS[kind] for kind in sorted(kinds)]
    with subprocess.Popen(
        ["/usr/bin/unshare", *options, "/usr/bin/cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        # It gives back what it reads once it is in its namespaces.
        with suppress(BrokenPipeError):
            process.stdin.write(b"x")
        if not process.stdout.read(1):
            told = process.stderr.read().decode(errors="replace").strip().rpartition(": ")[2]
            raise FailedPrecondition(f"the kernel gives no user namespace: {told}")
        for name, ids in (("uid_map", maps.uids), ("gid_map", maps.gids)):
            try:
                with open(f"/proc/{process.pid}/{name}", "w") as file:
                    file.write(f"0 {ids.host} {ids.length}\n")
            except OSError as error:
                told = os.strerror(error.errno or 0)
                raise InvalidArgument(f"userns_options: the ids {ids.text} cannot be mapped: {told}") from None
        yield process.pid
        process.stdin.close()


def _as_root_of(paths: Mapping[str, str]) -> Inside:
    """A writer of files that only the root of a pod's user namespace may write. OSError."""
    entered = [f"{_OPTIONS[kind]}={paths[kind]}" for kind in ("user", "ipc") if kind in paths]

    def write(path: str, value: str, needed: Sequence[int]) -> None:
        command = ["/usr/bin/nsenter", *entered, "/usr/bin/tee", path]
        done = subprocess.run(command, input=value.encode(), capture_output=True, pass_fds=needed, check=False)
        if done.returncode:
            raise PermissionError(1, "Operation not permitted", path)

    return write


def _make_owned(paths: Mapping[str, str], hostname: str, sysctls: Mapping[str, str], maps: Maps) -> None:
    with _process(set(paths), maps) as pid, ExitStack() as opened:
        entered = []
        for kind, path in paths.items():
            flag, name = TYPES[kind]
            _hold(f"/proc/{pid}/ns/{name}", path)
            if kind != "user":
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, descriptor)
                entered.append((descriptor, flag))

        def body() -> None:
            for descriptor, flag in entered:
                setns(descriptor, flag)
            _set_up(set(paths), hostname, sysctls, _as_root_of(paths))

        netns.in_thread(body)


def make(paths: Mapping[str, str], hostname: str, sysctls: Mapping[str, str], maps: Maps | None = None) -> None:
    """New namespaces, of the types that `paths` names (network, ipc, uts; user with `maps` alone), each held at its
    path. OSError, InvalidArgument for a sysctl or for ids that the kernel does not take, and FailedPrecondition where
    it has no user namespaces; then none is left."""

    def body() -> None:
        flags = 0
        for kind in paths:
            flags |= TYPES[kind][0]
        unshare(flags)
        _set_up(set(paths), hostname, sysctls)
        thread = threading.get_native_id()
        for kind, path in paths.items():
            _hold(f"/proc/self/task/{thread}/ns/{TYPES[kind][1]}", path)

    if not paths:
        return
    try:
        if maps is None:
            netns.in_thread(body)
        else:
            _make_owned(paths, hostname, sysctls, maps)
    except BaseException:
        for path in paths.values():
            drop(path)
        raise


def user_obstacle(folder: str) -> str:
    """Why pods cannot have user namespaces over files in a folder; "" if they can."""
    try:
        with _process({"user"}, Maps(Range(1, 1), Range(1, 1))) as pid:
            descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return obstacle(folder, descriptor)
            finally:
                os.close(descriptor)
    except (Error, OSError) as error:
        return error.message if isinstance(error, Error) else str(error)


def drop(path: str) -> None:
    """Let go of a namespace that is held at a path; nothing where there is none. Whoever is in it keeps it."""
    with suppress(OSError):
        while is_mount_root(path):
            umount2(path, MNT_DETACH)
    with suppress(FileNotFoundError):
        os.unlink(path)


def held(path: str) -> bool:
    """Whether a namespace is held at a path: none is after a reboot."""
    return bool(path) and is_mount_root(path)


def make_shared_memory(path: str, maps: Maps | None = None) -> None:
    """The tmpfs that is /dev/shm of all containers of a pod, whose root owns it. OSError."""
    os.makedirs(path, 0o755, exist_ok=True)
    if not is_mount_root(path):
        owner = f",uid={maps.uids.host},gid={maps.gids.host}" if maps else ""
        mount("shm", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"mode=1777,size={SHARED_MEMORY}{owner}")
