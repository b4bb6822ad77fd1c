# SPDX-License-Identifier: Apache-2.0
"""A pod's namespaces without a process: made by a thread that ends, held by bind mounts of them. A daemon that is
killed leaves them as they are. Called by `pods`, on threads."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress

from teu.containerd.core.errors import InvalidArgument
from teu.linux import netlink, netns
from teu.linux.mounts import MNT_DETACH, MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, mount, umount2
from teu.linux.namespaces import TYPES, unshare
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


def _write(name: str, value: str) -> None:
    path = "/proc/sys/" + sysctl_name(name).translate({ord("."): "/", ord("/"): "."})
    try:
        with open(path, "w") as file:
            file.write(value)
    except OSError as error:
        raise InvalidArgument(f"sysctl {name} cannot be {value!r}: {os.strerror(error.errno or 0)}") from None


def make(paths: Mapping[str, str], hostname: str, sysctls: Mapping[str, str]) -> None:
    """New namespaces, of the types that `paths` names (network, ipc, uts), each held at its path. OSError, and
    InvalidArgument for a sysctl that the kernel does not take; then none is left."""

    def body() -> None:
        flags = 0
        for kind in paths:
            flags |= TYPES[kind][0]
        unshare(flags)
        if "network" in paths:
            inner = netlink.Socket()
            try:
                inner.send([netlink.set_up(1)])
            finally:
                inner.close()
            for name, value in UNPRIVILEGED.items():
                _write(name, value)
        if "uts" in paths:
            socket.sethostname(hostname)
        for name, value in sysctls.items():
            _write(name, value)
        thread = threading.get_native_id()
        for kind, path in paths.items():
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
            mount(f"/proc/self/task/{thread}/ns/{TYPES[kind][1]}", path, None, MS_BIND)

    if not paths:
        return
    try:
        netns.in_thread(body)
    except BaseException:
        for path in paths.values():
            drop(path)
        raise


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


def make_shared_memory(path: str) -> None:
    """The tmpfs that is /dev/shm of all containers of a pod. OSError."""
    os.makedirs(path, 0o755, exist_ok=True)
    if not is_mount_root(path):
        mount("shm", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"mode=1777,size={SHARED_MEMORY}")
