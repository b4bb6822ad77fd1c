# SPDX-License-Identifier: Apache-2.0
"""A container's cgroup by one of runc's two drivers: plain paths (cgroupfs), or a systemd unit.

Life cycle: `plan` says where the cgroup will be and touches nothing, so that its answer can be
written down before anything exists; `create` makes it and moves the first process in; `apply` sets
the limits; `delete` removes it, however far the creation had come. `load` takes a plan from the
state on disk.

The systemd driver makes a transient scope (or, for a name in `.slice`, a slice) and repeats in its
unit properties those limits that systemd knows, so that `systemctl show` and `daemon-reload` agree
with the kernel; then it writes all limits to the cgroup itself, as the other driver does.
"""

from __future__ import annotations

import os

from teu.linux import cgroups as files
from teu.linux.cgroup_files import UINT64_MAX, CgroupError, mountpoint
from teu.runc import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.systemd.bus import Bus

    Resources = dict[str, Any]
    Property = tuple[str, str, Any]

CGROUPFS = "cgroupfs"
SYSTEMD = "systemd"
# The driver of a rootless container that has no cgroup: none can be made, and no limit needs one.
NONE = "none"

USEC_INFINITY = UINT64_MAX


def plan(cgroups_path: str, container_id: str, systemd: bool, rootless: bool) -> dict[str, str]:
    """Where a container's cgroup will be: `driver`, `path`, and for systemd `scope`, `slice`, `bus`.

    A place that is another's already is refused here, while there is nothing yet to take back.
    """
    planned = locate(cgroups_path, container_id, systemd, rootless)
    path = planned["path"]
    if path and os.path.isdir(path):
        if files.is_frozen(path):
            raise CgroupError(f"container's cgroup unexpectedly frozen: {path}: thaw it, or choose another")
        inside = files.pids(path)
        if inside:
            raise CgroupError(f"container's cgroup is not empty: {len(inside)} process(es) found in {path}")
    return planned


def locate(cgroups_path: str, container_id: str, systemd: bool, rootless: bool) -> dict[str, str]:
    """What `plan` answers, whether it is in use or not."""
    if not systemd:
        if rootless and not cgroups_path:
            try:
                return {"driver": CGROUPFS, "path": files.locate("", container_id)}
            except CgroupError:
                return {"driver": NONE, "path": ""}
        return {"driver": CGROUPFS, "path": files.locate(cgroups_path, container_id)}
    default = "user.slice" if rootless else "system.slice"
    slice_name, prefix, name = default, "runc", container_id
    if cgroups_path:
        parts = cgroups_path.split(":")
        if len(parts) != 3:
            raise CgroupError(
                f'linux.cgroupsPath: with systemd it has the form "slice:prefix:name", not {cgroups_path!r}'
            )
        slice_name, prefix, name = parts[0] or default, parts[1], parts[2]
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    if "/" in unit:
        raise CgroupError(f"linux.cgroupsPath: {unit!r} cannot be a unit's name")
    parent = expand_slice(slice_name)
    if rootless:
        parent = user_manager_cgroup() + parent
    path = f"{mountpoint()}{parent if parent != '/' else ''}/{unit}"
    bus = "user" if rootless else "system"
    return {"driver": SYSTEMD, "path": path, "scope": unit, "slice": slice_name, "bus": bus}


def expand_slice(name: str) -> str:
    """The cgroup of a slice: a-b.slice is /a.slice/a-b.slice (systemd.slice(5))."""
    stem = name.removesuffix(".slice")
    if stem == name or not stem or "/" in name:
        raise CgroupError(f"linux.cgroupsPath: {name!r} is not the name of a slice")
    if stem == "-":
        return "/"
    path, prefix = "", ""
    for part in stem.split("-"):
        if not part:
            raise CgroupError(f"linux.cgroupsPath: {name!r} is not the name of a slice")
        path += f"/{prefix}{part}.slice"
        prefix += f"{part}-"
    return path


def connect(bus: str) -> Bus:
    """The bus of the manager that keeps our units: PID 1's, or the user's own."""
    from teu.systemd.bus import Bus, own_uid  # 1.8 ms, which cgroupfs does without

    if bus == "system":
        return Bus()
    # The manager's own socket needs no message bus; the bus is for where only that can be reached.
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{own_uid()}"
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")
    choices = [f"{runtime}/systemd/private"]
    if address.startswith("unix:path="):
        choices.append(address.removeprefix("unix:path=").partition(",")[0])
    choices.append(f"{runtime}/bus")
    reason = ""
    for path in choices:
        try:
            return Bus(path)
        except OSError as error:
            reason = error.strerror or str(error)
    raise CgroupError(
        f"cannot reach the user's systemd manager in {runtime}: {reason}: log in with a session "
        "(or `loginctl enable-linger`), or leave --systemd-cgroup out"
    )


def user_manager_cgroup() -> str:
    """The cgroup of the user's systemd manager, below which its slices are."""
    with connect("user") as bus:
        return manager_property(bus, "ControlGroup")


def manager_property(bus: Bus, name: str) -> str:
    from teu.systemd.scope import MANAGER  # 1.8 ms, as above

    arguments = (MANAGER[2], name)
    properties = "org.freedesktop.DBus.Properties"
    return str(bus.call(MANAGER[0], MANAGER[1], properties, "Get", "ss", arguments)[0][1])


def create(
    cgroups_path: str,
    container_id: str,
    systemd: bool,
    resources: Resources | None,
    pid: int,
    rootless: bool,
    annotations: dict[str, str] | None = None,
    record: dict[str, str] | None = None,
) -> Cgroup:
    """Make the cgroup and move `pid` into it. With cgroupfs, pid 0 moves no process.

    `record` is the answer of an earlier `plan`, which is asked anew without it. CgroupError says
    what is in the way; nothing is left then.
    """
    cgroup = Cgroup(record or plan(cgroups_path, container_id, systemd, rootless))
    if cgroup.driver == SYSTEMD:
        cgroup.start_unit(container_id, pid, resources or {}, annotations or {})
        try:
            files.create(cgroup.path, resources)
        except BaseException:
            cgroup.delete()
            raise
        return cgroup
    if cgroup.driver == NONE:
        return cgroup
    try:
        made = files.create(cgroup.path, resources)
        try:
            if pid:
                files.attach(cgroup.path, pid)
        except BaseException:
            for directory in reversed(made):
                os.rmdir(directory)
            raise
    except (OSError, CgroupError) as error:
        if rootless and not cgroups_path and not wants_limits(resources):
            return Cgroup({"driver": NONE, "path": ""})
        hint = ""
        if rootless and not cgroups_path:
            hint = ": rootless needs no limits + no cgrouppath when no permission is granted for cgroups"
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        reason = reason[:1].lower() + reason[1:]
        raise CgroupError(f"unable to apply cgroup configuration: {cgroup.path}: {reason}{hint}") from error
    return cgroup


def wants_limits(resources: Resources | None) -> bool:
    """Whether any limit needs a controller."""
    kinds = ("memory", "cpu", "pids", "blockIO", "hugepageLimits", "rdma", "unified")
    return any(_is_set((resources or {}).get(kind)) for kind in kinds)


def _is_set(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_is_set(member) for member in value.values())
    return bool(value)


def load(record: dict[str, str]) -> Cgroup:
    """The cgroup of a container from its state on disk."""
    return Cgroup(record)


def _stands_in(pid: int, unit: str) -> bool:
    """Whether a process is in the cgroup of a unit, in systemd's hierarchy."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            return any(line.rstrip("\n").endswith(f"/{unit}") for line in file)
    except FileNotFoundError:
        return False


class Cgroup:
    """One container's cgroup. It holds no resource, only the knowledge where things are."""

    __slots__ = ("driver", "path", "record", "_bus", "_started_here")

    def __init__(self, record: dict[str, str]) -> None:
        self.record = record
        self.driver = record["driver"]
        self.path = record["path"]
        self._bus: Bus | None = None
        self._started_here = False

    # -- the unit --

    def bus(self) -> Bus:
        if self._bus is None:
            self._bus = connect(self.record.get("bus", "system"))
        return self._bus

    def start_unit(self, container_id: str, pid: int, resources: Resources, annotations: dict[str, str]) -> None:
        """Start the transient unit, with `pid` in it, and wait until systemd has done so."""
        from teu.systemd import scope  # 1.8 ms, as above
        from teu.systemd.bus import BusError

        unit = self.record["scope"]
        is_slice = unit.endswith(".slice")
        properties: list[Property] = [("Description", "s", f"teu-runc container {container_id}")]
        if is_slice:
            properties.append(("Wants", "as", [self.record["slice"]]))
        else:
            properties += [("Slice", "s", self.record["slice"]), ("Delegate", "b", True)]
            properties.append(("PIDs", "au", [pid]))
        # A controller that is joined later does not count what was used before.
        accounting = ("MemoryAccounting", "CPUAccounting", "IOAccounting", "TasksAccounting")
        properties += [(name, "b", True) for name in accounting]
        properties.append(("DefaultDependencies", "b", False))
        from teu.runc import systemd_properties  # 0.1 ms

        # With the start, because each later change of a property costs systemd a file. Not so the limits:
        # they come when the runtime itself has left the first process.
        properties += systemd_properties.from_devices(device_rules(resources))
        self._started_here = True
        if annotations:
            properties += systemd_properties.from_annotations(annotations)
        group = (resources.get("unified") or {}).get("memory.oom.group")
        if group in ("0", "1") and not is_slice and self.systemd_version() >= 253:
            # A scope's OOM policy cannot be changed once it runs.
            properties.append(("OOMPolicy", "s", "kill" if group == "1" else "continue"))

        def start() -> None:
            try:
                bus = self.bus()
                try:
                    scope.start_transient_unit(bus, unit, properties, mode="replace")
                except BusError as error:
                    # In the second case it was asked before, when the answer was lost.
                    if error.name == scope.UNIT_EXISTS and (is_slice or _stands_in(pid, unit)):
                        return
                    if error.name != scope.UNIT_EXISTS:
                        raise
                    # What is left of a failed container of the same name.
                    scope.reset_failed_unit(bus, unit)
                    scope.start_transient_unit(bus, unit, properties, mode="replace")
            except OSError as error:
                if scope.is_away(error):
                    self._bus = None  # the next attempt connects anew
                raise

        try:
            scope.patiently(start)
        except BusError as error:
            raise CgroupError(f"systemd does not start the unit {unit}: {error}") from error

    def systemd_version(self) -> int:
        digits = ""
        for letter in manager_property(self.bus(), "Version").lstrip("v"):
            if not letter.isdigit():
                break
            digits += letter
        return int(digits or 0)

    # -- processes --

    def open(self) -> int:
        """A descriptor of the directory, for clone3."""
        return files.open_directory(self.path)

    def add(self, pid: int, sub: str = "") -> None:
        """Move a process into the cgroup, or into one below it."""
        if self.driver == NONE:
            return
        path = os.path.normpath(f"{self.path}/{sub}") if sub else self.path
        if path != self.path and not path.startswith(self.path + "/"):
            raise CgroupError(f"bad sub cgroup path: {sub} is not a sub cgroup path of the container's cgroup")
        if self.driver == SYSTEMD and self.record.get("bus") == "user":
            # The user may not take the process out of its own session's scope; its manager may.
            from teu.systemd.scope import MANAGER  # 1.8 ms, as above

            below = path[len(self.path) :] or "/"
            self.bus().call(*MANAGER, "AttachProcessesToUnit", "ssau", (self.record["scope"], below, [pid]))
            return
        if not os.path.isdir(path):
            raise CgroupError(f"cgroup {path} does not exist")
        files.attach(path, pid)

    def pids(self) -> list[int]:
        return files.pids(self.path) if self.path else []

    def kill(self) -> None:
        if self.path:
            files.kill(self.path)

    def freeze(self) -> None:
        if not self.path:
            raise CgroupError("cannot pause: the container runs without a cgroup of its own (rootless)")
        files.freeze(self.path)

    def thaw(self) -> None:
        if self.path:
            files.thaw(self.path)

    def frozen(self) -> bool:
        return bool(self.path) and files.is_frozen(self.path)

    def oom_kills(self) -> int:
        return files.oom_kills(self.path) if self.path else 0

    def delegate(self, uid: int, gid: int = -1) -> None:
        """Give the cgroup to the container's root user (runtime-spec, "Cgroup ownership")."""
        if self.path:
            files.delegate(self.path, uid, gid)

    # -- limits --

    def apply(self, resources: Resources | None, devices: bool = True, rootless: bool = False) -> None:
        """Set the limits of `linux.resources`, and, with `devices`, who may use which device."""
        resources = resources or {}
        if self.driver == NONE:
            if wants_limits(resources):
                raise CgroupError("linux.resources: no cgroup could be made, so nothing can be limited")
            return
        if self.driver == SYSTEMD:
            from teu.runc import systemd_properties  # 0.1 ms
            from teu.systemd import scope  # 1.8 ms, as above
            from teu.systemd.bus import BusError

            memory = resources.get("memory") or {}
            if memory.get("checkBeforeUpdate"):
                # Else the kernel would kill processes, and systemd remove the unit, before the files refuse the limit.
                files.check_usage(self.path, memory.get("limit") or 0, memory.get("swap") or 0)
            cpu = resources.get("cpu") or {}
            if cpu.get("idle") == 1 and cpu.get("shares"):
                log.warning("unable to apply both CPUWeight and CpuIdle to systemd, ignoring CPUWeight")
            properties, resources = systemd_properties.from_resources(resources, self.systemd_version)
            if devices and not self._started_here:
                properties += systemd_properties.from_devices(device_rules(resources))
            if properties:
                try:
                    scope.set_unit_properties(self.bus(), self.record["scope"], properties)
                except BusError as error:
                    raise CgroupError(f"systemd refuses the limits of {self.record['scope']}: {error}") from error
        if devices:
            from teu.linux import bpf  # 0.1 ms
            from teu.linux.namespaces import in_user_namespace  # 0.4 ms where they are not loaded

            try:
                bpf.set_devices(self.path, device_rules(resources))
            except (bpf.BpfError, OSError):
                # In a user namespace there is no right to load it, and mknod is impossible anyway.
                if not rootless and not in_user_namespace():
                    raise
        files.set_resources(self.path, resources)

    # -- the end --

    def delete(self) -> None:
        """Remove the cgroup, all below it, and the unit. No error when there is none."""
        if self.driver == SYSTEMD:
            self.stop_unit()
        if self.path:
            files.remove(self.path)

    def stop_unit(self) -> None:
        from teu.systemd import scope  # 1.8 ms, as above

        try:
            bus = self.bus()
        except (OSError, CgroupError):
            # Without systemd there is no unit; the directory is removed all the same.
            return
        scope.stop_unit(bus, self.record["scope"])
        scope.reset_failed_unit(bus, self.record["scope"])

    def close(self) -> None:
        if self._bus is not None:
            self._bus.close()
            self._bus = None


def device_rules(resources: Resources) -> list[dict[str, Any]]:
    """The rules of the spec, behind them the devices that every container has."""
    from teu.linux.bpf import DEFAULT_RULES  # 0.1 ms

    return [*(resources.get("devices") or []), *DEFAULT_RULES]
