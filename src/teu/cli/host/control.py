# SPDX-License-Identifier: Apache-2.0
"""Is systemd here, and are the control groups those of version 2? Called by `report`."""

from __future__ import annotations

from teu.cli.host.finding import ERROR, OK, WARNING, Finding, exists, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = "/sys/fs/cgroup"
# Controller: what is missed without it, and what on the kernel's command line brings it.
CONTROLLERS = {
    "cpu": ("--cpus and --cpu-shares", ""),
    "cpuset": ("--cpuset-cpus", "cgroup_enable=cpuset"),
    "io": ("--device-read-bps and their kin", ""),
    "memory": ("--memory", "cgroup_enable=memory"),
    "pids": ("--pids-limit", ""),
}
SOCKETS = (
    ("teu-containerd.socket", "teu-containerd", "/run/teu/containerd.sock"),
    ("teud.socket", "teu", "/run/teu/teud.sock"),
)
HOW_TO_BOOT = "add {} to GRUB_CMDLINE_LINUX in /etc/default/grub (on a Raspberry Pi to /boot/firmware/cmdline.txt), "
HOW_TO_BOOT += "run update-grub, and reboot"


def systemd(root: str) -> Iterator[Finding]:
    """systemd as PID 1, and its bus."""
    if not exists(root, "/run/systemd/system"):
        yield Finding(
            ERROR,
            "systemd",
            "PID 1 is not systemd, which makes each container's scope",
            "boot this host with systemd (Debian: apt-get install systemd-sysv), then reboot",
        )
        return
    if not exists(root, "/run/dbus/system_bus_socket"):
        yield Finding(
            ERROR,
            "systemd",
            "the system bus is not there, by which scopes are asked for",
            "apt-get install dbus, then systemctl start dbus.socket",
        )
        return
    yield Finding(OK, "systemd", "is PID 1, and its bus answers at /run/dbus/system_bus_socket")


def mounted(root: str) -> str:
    """The file system at /sys/fs/cgroup, or "" where nothing is mounted there: cgroup2 is the unified tree."""
    kind = ""
    for line in read(root, "/proc/self/mounts").splitlines():
        words = line.split(" ")
        if len(words) > 2 and words[1] == ROOT:
            kind = words[2]
    return kind


def cgroups(root: str) -> Iterator[Finding]:
    """Version 2 alone, and the controllers that limits need."""
    kind = mounted(root)
    if kind != "cgroup2":
        hybrid = exists(root, f"{ROOT}/unified/cgroup.procs")
        what = (
            "version 1 with an empty tree of version 2 (hybrid)" if hybrid else "version 1" if kind else "not mounted"
        )
        yield Finding(
            ERROR,
            "cgroup",
            f"the control groups are {what}; Teu knows version 2 alone",
            HOW_TO_BOOT.format("systemd.unified_cgroup_hierarchy=1"),
        )
        return
    there = read(root, f"{ROOT}/cgroup.controllers").split()
    yield Finding(OK, "cgroup", f"version 2 at {ROOT}, with {' '.join(there) or 'no controllers'}")
    held = version1(root)
    for name, (missed, option) in CONTROLLERS.items():
        if name in there:
            continue
        if name in held:
            text, remedy = "is held by a mount of cgroup version 1", HOW_TO_BOOT.format("cgroup_no_v1=all")
        elif f"cgroup_disable={name}" in read(root, "/proc/cmdline").split():
            text = "is switched off on the kernel's command line"
            remedy = f"take cgroup_disable={name} away there, and reboot"
        else:
            text = "is not offered by this kernel"
            remedy = HOW_TO_BOOT.format(option) if option else "boot a kernel that has it, such as Debian's"
        yield Finding(WARNING, f"cgroup {name}", f"the controller {name} {text}; {missed} will be refused", remedy)


def version1(root: str) -> set[str]:
    """The controllers that a hierarchy of version 1 has taken (proc/cgroups: name, hierarchy, ...), in version 2's
    names."""
    held = set()
    for line in read(root, "/proc/cgroups").splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdigit() and words[1] != "0":
            held.add({"blkio": "io"}.get(words[0], words[0]))
    return held


def sockets(root: str) -> Iterator[Finding]:
    """The sockets by which systemd starts the daemons."""
    for unit, package, path in SOCKETS:
        if not exists(root, f"/usr/lib/systemd/system/{unit}"):
            yield Finding(WARNING, unit, "is not installed", f"apt-get install {package}")
        elif not exists(root, path):
            yield Finding(ERROR, unit, f"nobody listens at {path}", f"systemctl enable --now {unit}")
        else:
            yield Finding(OK, unit, f"is at {path}")
