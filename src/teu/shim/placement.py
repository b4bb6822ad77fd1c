# SPDX-License-Identifier: Apache-2.0
"""Where the shim and its containers stand in systemd's tree.

    SLICE/                       from a cgroupsPath "slice:prefix:name", else teu.slice
      teu-<id>.scope             (or prefix-name.scope) transient, Delegate=yes
        shim/                    this process, and the runtime while it runs
        container/               the container; a further one of a group is in container-<id>/

The runtime is given the container's place as a plain cgroupfs path, by rewriting linux.cgroupsPath in the
bundle's config.json.  A sandbox's shim has its scope, teu-<sandbox id>.scope, from the start; all of its
containers are in container-<id>/ there.  The path is left as it is when the caller has the runtime talk to
systemd itself (option SystemdCgroup), and when it is a plain path that the caller chose: containerd's own default,
"/<namespace>/<id>", counts as no choice.  Without systemd nothing is done at all.  Where the runtime options name
a cgroup for the shim (ShimCgroup), it goes there, and there is no scope.

Where the slice in "slice:prefix:name" is a path, as "/system.slice/web.service:teu:<id>", that is the cgroup of a unit
which delegates it (Delegate=yes): there is no scope, and shim/ and container/ are in prefix-name/ there.

At shutdown a scope ends before the daemons and the network, as teu.slice says for all that is in it (a scope that is
elsewhere is ordered after that slice), and before the mounts that its container uses, as the scope itself says.

Where another unit has the scope's name already it is teu-<namespace>-<id>.scope.
"""

from __future__ import annotations

import os
import time

from teu.linux.cgroup_files import text
from teu.oci import jsontext
from teu.shim.cgroup import mount_point, path_of
from teu.systemd import host
from teu.systemd.bus import Bus, BusError
from teu.systemd.scope import UNIT_EXISTS, patiently, start_scope, systemd_is_running, unit_cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any

    from teu.systemd.scope import Property
else:
    import _signal as signal  # signal is 0.9 MiB more (see teu.linux.sockets)

DEFAULT_SLICE = "teu.slice"
# for the sockets of shims and of the terminals that they ask for
SOCKET_FOLDER = "/run/teu/s"

# Annotations of the container's spec that the shim knows.
NAME_ANNOTATION = "io.teu.name"  # for the unit's description
STOP_TIMEOUT_ANNOTATION = "io.teu.stop-timeout"  # seconds from the stop signal to SIGKILL; below 0: no limit
STOP_SIGNAL_ANNOTATION = "org.opencontainers.image.stopSignal"
GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")

STOP_TIMEOUT = 10.0
# The signal by which systemd asks the scope to end. It goes to every process of the scope; a process that does not ask
# for it ignores it. The container's own processes get the stop signal that was chosen for them, from the shim.
STOP_REQUEST = signal.SIGURG
NEVER = float("inf")
USEC_INFINITY = (1 << 64) - 1
EXITED_SUFFIX = "-exited.scope"
# how long to wait for the scope of the same container's last shim to go
LEAVING_ATTEMPTS, LEAVING_SECONDS = 200, 0.005


def stop_timeout(notes: dict[str, str]) -> float:
    """Seconds between the stop signal and SIGKILL; infinity for a container that is never killed."""
    try:
        seconds = float(notes[STOP_TIMEOUT_ANNOTATION])
    except (KeyError, ValueError):
        return STOP_TIMEOUT
    return seconds if seconds >= 0 else NEVER


def read_spec(bundle: str) -> dict[str, Any]:
    """The bundle's config.json; {} if there is none. ValueError, in words for a client, where it is no JSON object."""
    try:
        spec = jsontext.loads(jsontext.read_file(os.path.join(bundle, "config.json")), own=True)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{bundle}/config.json: {error}") from None
    if not isinstance(spec, dict):
        raise ValueError(f"{bundle}/config.json: not a JSON object")
    return spec


def write_spec(bundle: str, spec: dict[str, Any]) -> None:
    path = os.path.join(bundle, "config.json")
    with open(path + ".new", "wb") as file:
        file.write(jsontext.to_ascii(spec))
    os.chmod(path + ".new", os.stat(path).st_mode & 0o777)
    os.rename(path + ".new", path)


def add_variables(spec: dict[str, Any], variables: list[bytes]) -> None:
    """Let the first process have these, NAME=VALUE each. What is not as the specification has it stays as it is: the
    runtime finds words for that."""
    process = spec.get("process")
    known = process.get("env") or [] if isinstance(process, dict) else None
    if isinstance(process, dict) and isinstance(known, list):
        process["env"] = known + [os.fsdecode(one) for one in variables]


def annotations_of(spec: dict[str, Any]) -> dict[str, str]:
    found = spec.get("annotations")
    return found if isinstance(found, dict) else {}


def group_of(spec: dict[str, Any], container: str) -> str:
    """The group whose containers share one shim; a container without one is its own."""
    found = annotations_of(spec)
    for name in GROUP_ANNOTATIONS:
        if found.get(name):
            return found[name]
    return container


def scope_name(cgroups_path: str, container: str) -> tuple[str, str]:
    """Slice and unit for a cgroupsPath, see the module's text."""
    parts = cgroups_path.split(":")
    if len(parts) != 3:
        return DEFAULT_SLICE, f"teu-{container}.scope"
    slice_name, prefix, name = parts
    return slice_name or DEFAULT_SLICE, f"{prefix}-{name}.scope" if prefix else f"{name}.scope"


class Placement:
    """The scope that a shim stands in.

    Its methods are for a process that is made for them (see Loop.in_fork): they return what is to be kept."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self.unit = ""
        self.folder = ""
        self._used = False
        self._chosen = False  # whether the caller has chosen the shim's cgroup
        self._description = ""
        self._slice = ""

    def join(self, pids: list[int], chosen: str) -> None:
        """Bring the shim and its processes into a cgroup that the caller chose (ShimCgroup): no scope is made then.

        OSError if there is no such cgroup."""
        self._chosen = True
        for pid in [*pids, os.getpid()]:
            with open(os.path.join(mount_point(), chosen.lstrip("/"), "cgroup.procs"), "w") as file:
                file.write(str(pid))

    def join_unit(self, pids: list[int], spec: dict[str, Any], container: str) -> bool:
        """Bring the shim and its processes into the cgroup of a unit, where the spec names the path of one, and point
        the spec at the container's cgroup there; whether it does. OSError if there is no such cgroup, or not for us."""
        wanted = (spec.get("linux") or {}).get("cgroupsPath") or ""
        parts = wanted.rsplit(":", 2)  # a unit's name may have colons
        if len(parts) != 3 or not parts[0].startswith("/"):
            return False
        parent, prefix, name = parts
        self._chosen = True
        above = mount_point() + parent
        self.folder = f"{above}/{prefix}-{name}"
        os.stat(above)
        os.makedirs(f"{self.folder}/shim", exist_ok=True)
        for pid in [*pids, os.getpid()]:
            with open(f"{self.folder}/shim/cgroup.procs", "w") as file:
                file.write(str(pid))
        for folder in (above, self.folder):
            _hand_down(folder)
        leaf = f"container-{container}" if self._used else "container"
        self._used = True
        spec["linux"]["cgroupsPath"] = f"{self.folder.removeprefix(mount_point())}/{leaf}"
        return True

    def place(self, pids: list[int], spec: dict[str, Any], container: str, systemd_cgroup: bool) -> bool:
        """Bring the shim, the first of `pids`, and its processes into its scope if it is in none yet, and point
        the spec at the container's cgroup; whether that changed the spec.  OSError if systemd refuses."""
        if not systemd_is_running():
            return False
        wanted = (spec.get("linux") or {}).get("cgroupsPath") or ""
        if not self.unit and not self._chosen:
            self._enter([*pids, os.getpid()], wanted, container, spec, systemd_cgroup)
        default = wanted in ("", f"/{self._namespace}/{container}", f"{self._namespace}/{container}")
        if not self.folder or systemd_cgroup or not (default or wanted.count(":") == 2):
            return False
        leaf = f"container-{container}" if self._used else "container"
        self._used = True
        spec.setdefault("linux", {})["cgroupsPath"] = self.folder.removeprefix(mount_point()) + "/" + leaf
        return True

    def place_sandbox(self, shim: int, spec: dict[str, Any], sandbox: str) -> None:
        """Bring the shim of a sandbox into its scope, which the sandbox's containers will share.  OSError if systemd
        refuses."""
        if not systemd_is_running():
            return
        linux = spec.get("linux")
        wanted = linux.get("cgroupsPath") if isinstance(linux, dict) else ""
        self._enter([shim], wanted if isinstance(wanted, str) else "", sandbox, spec, False, "Sandbox")
        self._used = True

    def _enter(
        self,
        pids: list[int],
        wanted: str,
        container: str,
        spec: dict[str, Any],
        systemd_cgroup: bool,
        kind: str = "Container",
    ) -> None:
        notes = annotations_of(spec)
        self._slice, unit = scope_name(wanted, container)
        name = notes.get(NAME_ANNOTATION) or notes.get("io.kubernetes.cri.container-name")
        self._description = f"{kind} {name} ({container[:12]})" if name else f"{kind} {container}"
        candidates = [unit, f"teu-{self._namespace}-{container}.scope"]
        if systemd_cgroup:
            # The runtime makes the scope that cgroupsPath names; the shim's must be another.
            candidates = [f"teu-{container}.scope", f"teu-{self._namespace}-{container}.scope"]
            if unit in candidates:
                candidates = [f"teu-shim-{container}.scope"]
        # systemd's own patience must outlast the container's.
        patience = (stop_timeout(notes) + 30) * 1e6
        properties: list[Property] = [
            ("TimeoutStopUSec", "t", int(patience) if patience < USEC_INFINITY else USEC_INFINITY),
            ("KillSignal", "i", int(STOP_REQUEST)),
            ("After", "as", [DEFAULT_SLICE, *host.mounted(host.bound(spec))]),
        ]
        self.unit = patiently(lambda: self._start_one(candidates, pids, properties))
        folder = path_of(pids[0])
        if os.path.basename(folder) != self.unit:
            return  # systemd does not use the version 2 hierarchy here
        self.folder = folder
        os.mkdir(os.path.join(folder, "shim"))
        for pid in pids:
            with open(os.path.join(folder, "shim", "cgroup.procs"), "w") as file:
                file.write(str(pid))
        _hand_down(folder)

    def _start_one(self, units: list[str], pids: list[int], properties: list[Property]) -> str:
        """Start the first of these scopes whose name is free; its name."""
        with Bus() as bus:
            for unit in units[:-1]:
                try:
                    self._start(bus, unit, pids, properties)
                    return unit
                except BusError as error:
                    if error.name != UNIT_EXISTS:
                        raise
            self._start(bus, units[-1], pids, properties)
        return units[-1]

    def _start(self, bus: Bus, unit: str, pids: list[int], properties: list[Property]) -> None:
        """Start the scope; wait a little for the unit of a shim that is just ending."""
        for attempt in range(LEAVING_ATTEMPTS):
            try:
                start_scope(
                    bus, unit, pids=pids, slice_name=self._slice, description=self._description, properties=properties
                )
                return
            except BusError as error:
                if error.name != UNIT_EXISTS:
                    raise
                if _stands_in(pids[0], unit):
                    return  # an earlier request, whose answer was lost, has made it
                if attempt + 1 == LEAVING_ATTEMPTS or _in_use(bus, unit):
                    raise
            time.sleep(LEAVING_SECONDS)

    def leave(self, shim: int) -> str:
        """Move `shim` on to another scope, so that the one being stopped can end while the shim still
        answers for its exited container.  The new unit; OSError if systemd does not allow it (the host is
        going down)."""
        unit = self.unit.removesuffix(".scope") + EXITED_SUFFIX
        patiently(lambda: self._start_exited(unit, shim))
        return unit

    def _start_exited(self, unit: str, shim: int) -> None:
        with Bus() as bus:
            try:
                start_scope(
                    bus,
                    unit,
                    pids=[shim],
                    slice_name=self._slice,
                    delegate=False,
                    description=self._description + ", exited",
                )
            except BusError as error:
                if error.name != UNIT_EXISTS or not _stands_in(shim, unit):
                    raise

    def state(self) -> tuple[Any, ...]:
        """What place() found out, for restore() in the shim."""
        return self.unit, self.folder, self._used, self._chosen, self._description, self._slice

    def restore(self, state: tuple[Any, ...]) -> None:
        self.unit, self.folder, self._used, self._chosen, self._description, self._slice = state


def _hand_down(folder: str) -> None:
    """Have the controllers of a cgroup in those below it, too."""
    with open(os.path.join(folder, "cgroup.controllers")) as file:
        controllers = file.read().split()
    for controller in controllers:
        try:
            with open(os.path.join(folder, "cgroup.subtree_control"), "w") as file:
                file.write("+" + controller)
        except OSError:
            pass  # where a limit needs this controller, the runtime tells that it is not there


def _stands_in(pid: int, unit: str) -> bool:
    """Whether a process is in the cgroup of a unit."""
    return os.path.basename(path_of(pid)) == unit


def _in_use(bus: Bus, unit: str) -> bool:
    """Whether a scope has a container in it, or is none of ours."""
    try:
        folder = mount_point() + unit_cgroup(bus, unit)
        leaves = [name for name in os.listdir(folder) if name.startswith("container")]
        if not os.path.isdir(os.path.join(folder, "shim")):
            return bool(leaves) or "populated 1" in text(folder, "cgroup.events")
        return any("populated 1" in text(os.path.join(folder, leaf), "cgroup.events") for leaf in leaves)
    except OSError:
        return False  # the process has ended meanwhile
