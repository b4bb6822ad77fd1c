# SPDX-License-Identifier: Apache-2.0
"""What several plugins want of one request, put together. Called by `plugins`.

Each thing that can be changed has one owner: the plugin that has set it. A second plugin that sets it too is a
conflict, and the request fails; unless it takes what the first has set away. Names that begin with a dash do so.

What one plugin has changed the next one is shown as if it had been asked for so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from teu.api.nri.v1alpha1 import nri_pb2 as nri

MEMORY = {
    "limit": nri.MemLimit,
    "reservation": nri.MemReservation,
    "swap": nri.MemSwapLimit,
    "kernel": nri.MemKernelLimit,
    "kernel_tcp": nri.MemTCPLimit,
    "swappiness": nri.MemSwappiness,
    "disable_oom_killer": nri.MemDisableOomKiller,
    "use_hierarchy": nri.MemUseHierarchy,
}
CPU = {
    "shares": nri.CPUShares,
    "quota": nri.CPUQuota,
    "period": nri.CPUPeriod,
    "realtime_runtime": nri.CPURealtimeRuntime,
    "realtime_period": nri.CPURealtimePeriod,
    "cpus": nri.CPUSetCPUs,
    "mems": nri.CPUSetMems,
}
# Of LinuxContainerAdjustment, what is set as a whole; which of them a LinuxContainer shows, too.
WHOLE = {
    "oom_score_adj": nri.OomScoreAdj,
    "io_priority": nri.IoPriority,
    "seccomp_policy": nri.SeccompPolicy,
    "scheduler": nri.LinuxSched,
    "memory_policy": nri.MemoryPolicy,
}
RDT = {"clos_id": nri.RdtClosID, "schemata": nri.RdtSchemata, "enable_monitoring": nri.RdtEnableMonitoring}
HOOKS = ("prestart", "create_runtime", "create_container", "start_container", "poststart", "poststop")

Claim = Callable[..., None]  # of a field, and of a key of it


class Conflict(ValueError):
    """Two plugins want the same thing, or one wants what cannot be."""


def removal(key: str) -> str | None:
    """What a name takes away; None for one that does not."""
    return key[1:] if key.startswith("-") else None


class Owners:
    """By whom what of which container has been set: an OwningPlugins."""

    def __init__(self) -> None:
        self.message = nri.OwningPlugins()

    def _known(self, id: str, field: int, key: str | None) -> tuple[Any, Any]:
        owners = self.message.owners[id]
        return (owners.simple, field) if key is None else (owners.compound[field].owners, key)

    def claim(self, id: str, plugin: str, field: int, key: str | None = None) -> None:
        """Set it for a plugin. Raises Conflict."""
        known, name = self._known(id, field, key)
        if name in known:
            other = known[name]
            cleared = removal(other)
            if cleared != plugin:
                what = nri.Field.Name(field) + (f" {key}" if key is not None else "")
                told = f'plugins "{plugin}" and "{cleared or other}" both tried to set {what}'
                raise Conflict(told)
        known[name] = plugin

    def clear(self, id: str, plugin: str, field: int, key: str | None = None) -> None:
        """A plugin takes it away: it may set it."""
        known, name = self._known(id, field, key)
        known[name] = f"-{plugin}"

    def share(self, id: str, plugin: str, field: int) -> None:
        """A plugin has added to it, as others may."""
        simple = self.message.owners[id].simple
        simple[field] = f"{simple[field]},{plugin}" if field in simple else plugin


def _fields(given: Any, table: dict[str, int], claim: Claim, targets: Iterable[Any]) -> None:
    """Claim what is set in a message, and set it in others of its type."""
    for descriptor, value in given.ListFields():
        claim(table[descriptor.name])
        for target in targets:
            if isinstance(value, str):
                setattr(target, descriptor.name, value)
            else:
                getattr(target, descriptor.name).CopyFrom(value)


def resources(given: Any, claim: Claim, targets: list[Any]) -> None:
    """Claim what LinuxResources ask for, and set it in others. Raises Conflict."""
    for name, table in (("memory", MEMORY), ("cpu", CPU)):
        if given.HasField(name):
            _fields(getattr(given, name), table, claim, [getattr(target, name) for target in targets])
    for limit in given.hugepage_limits:
        claim(nri.HugepageLimits, limit.page_size)
        for target in targets:
            kept = [one for one in target.hugepage_limits if one.page_size != limit.page_size]
            del target.hugepage_limits[:]
            target.hugepage_limits.extend([*kept, limit])
    for key, value in sorted(given.unified.items()):
        claim(nri.CgroupsUnified, key)
        for target in targets:
            target.unified[key] = value
    for name, field in (("blockio_class", nri.BlockioClass), ("rdt_class", nri.RdtClass), ("pids", nri.PidsLimit)):
        if given.HasField(name):
            claim(field)
            for target in targets:
                getattr(target, name).CopyFrom(getattr(given, name))


class Updates:
    """What is to be changed of containers that are there."""

    def __init__(self, owners: Owners, creating: str = "", asked: Any = None) -> None:
        """`creating`: the id of a container that is not there yet; `asked`: an UpdateContainerRequest, of which the
        resources are what the next plugin is shown."""
        self._owners = owners
        self._creating = creating
        self._asked = asked
        self._changes: dict[str, Any] = {}

    def apply(self, updates: Iterable[Any], plugin: str) -> None:
        """The ContainerUpdates of one plugin. Raises Conflict."""
        for update in updates:
            id = update.container_id
            if id == self._creating:
                raise Conflict(f'plugin "{plugin}" asked update of "{id}" during creation')
            known = self._changes.get(id)
            changed = nri.ContainerUpdate(container_id=id, ignore_failure=update.ignore_failure)
            if known is not None:
                changed.CopyFrom(known)
                changed.ignore_failure = known.ignore_failure and update.ignore_failure
            targets = [changed.linux.resources]
            shown = None
            if self._asked is not None and self._asked.container.id == id:
                shown = nri.LinuxResources()
                shown.CopyFrom(self._asked.linux_resources)
                targets.append(shown)

            def claim(field: int, key: str | None = None, id: str = id) -> None:
                self._owners.claim(id, plugin, field, key)

            try:
                if update.linux.resources.devices:
                    raise Conflict(f'plugin "{plugin}" asked for other devices of "{id}", which is there already')
                resources(update.linux.resources, claim, targets)
            except Conflict:
                if not update.ignore_failure:
                    raise
                continue
            self._changes[id] = changed
            if shown is not None:
                self._asked.linux_resources.CopyFrom(shown)

    def others(self) -> list[Any]:
        """The changes of all containers but the one that was asked for."""
        own = self._asked.container.id if self._asked is not None else ""
        return [change for id, change in self._changes.items() if id != own]

    def own(self) -> Any:
        """The change of the one that was asked for; None where no plugin has one."""
        return self._changes.get(self._asked.container.id)


class Creation:
    """What is to become of a container that is being made: `adjust` is the ContainerAdjustment, `request` what the next
    plugin is shown."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.id = request.container.id
        self.adjust = nri.ContainerAdjustment()
        self.owners = Owners()
        self.updates = Updates(self.owners, creating=self.id)
        self.evictions: list[Any] = []

    def apply(self, answer: Any, plugin: str) -> None:
        """The CreateContainerResponse of one plugin. Raises Conflict."""
        if answer.HasField("adjust"):
            self._adjust(answer.adjust, plugin)
        self.updates.apply(answer.update, plugin)
        self.evictions += answer.evict

    def _adjust(self, given: Any, plugin: str) -> None:
        shown, collected = self.request.container, self.adjust

        def claim(field: int, key: str | None = None) -> None:
            self.owners.claim(self.id, plugin, field, key)

        def clear(field: int, key: str | None = None) -> None:
            self.owners.clear(self.id, plugin, field, key)

        self._map(given.annotations, collected.annotations, shown.annotations, nri.Annotations, plugin)
        self._list(given.mounts, collected.mounts, shown.mounts, nri.Mounts, "destination", plugin)
        self._environment(given.env, plugin)
        if given.args:
            words = list(given.args)
            if not words[0]:
                clear(nri.Args)
                words = words[1:]
            claim(nri.Args)
            collected.args[:] = words
            shown.args[:] = words
        self._hooks(given.hooks, plugin)
        if given.HasField("linux"):
            self._linux(given.linux, plugin, claim, clear)
        for limit in given.rlimits:
            claim(nri.Rlimits, limit.type)
            collected.rlimits.append(limit)
            kept = [one for one in shown.rlimits if one.type != limit.type]
            del shown.rlimits[:]
            shown.rlimits.extend([*kept, limit])
        for device in given.CDI_devices:
            claim(nri.CdiDevices, device.name)
            collected.CDI_devices.append(device)

    def _linux(self, given: Any, plugin: str, claim: Claim, clear: Claim) -> None:
        shown, collected = self.request.container.linux, self.adjust.linux
        self._list(given.devices, collected.devices, shown.devices, nri.Devices, "path", plugin)
        if given.HasField("resources"):
            resources(given.resources, claim, [collected.resources, shown.resources])
            for target in (collected.resources, shown.resources):
                target.devices.extend(given.resources.devices)
        if given.cgroups_path:
            claim(nri.CgroupsPath)
            collected.cgroups_path = shown.cgroups_path = given.cgroups_path
        for name, field in WHOLE.items():
            if given.HasField(name):
                claim(field)
                getattr(collected, name).CopyFrom(getattr(given, name))
                if name in shown.DESCRIPTOR.fields_by_name:
                    getattr(shown, name).CopyFrom(getattr(given, name))
        for one in given.namespaces:
            gone = removal(one.type)
            claim(nri.Namespace, gone or one.type)
            collected.namespaces.append(one)
            kept = [known for known in shown.namespaces if known.type != (gone or one.type)]
            del shown.namespaces[:]
            shown.namespaces.extend(kept if gone else [*kept, one])
        self._map(given.sysctl, collected.sysctl, shown.sysctl, nri.Sysctl, plugin)
        self._map(given.net_devices, collected.net_devices, shown.net_devices, nri.LinuxNetDevices, plugin)
        if given.HasField("rdt"):
            if given.rdt.remove:
                for field in RDT.values():
                    clear(field)
                collected.rdt.CopyFrom(nri.LinuxRdt(remove=True))
                shown.ClearField("rdt")
            wanted = nri.LinuxRdt()
            wanted.CopyFrom(given.rdt)
            wanted.remove = False
            _fields(wanted, RDT, claim, [collected.rdt, shown.rdt])

    def _map(self, given: Any, collected: Any, shown: Any, field: int, plugin: str) -> None:
        """Of a map that is named by what it changes."""
        gone = {key for name in given if (key := removal(name)) is not None}
        for key in sorted(gone):
            if key in collected:
                del collected[key]
                self.owners.clear(self.id, plugin, field, key)
            self._take(shown, key)
            _put(collected, f"-{key}", None)
        for key in sorted(given):
            if removal(key) is None:
                self.owners.claim(self.id, plugin, field, key)
                self._take(collected, f"-{key}")
                _put(collected, key, given[key])
                _put(shown, key, given[key])

    @staticmethod
    def _take(known: Any, key: str) -> None:
        if key in known:
            del known[key]

    def _list(self, given: Any, collected: Any, shown: Any, field: int, name: str, plugin: str) -> None:
        """Of a list whose entries are named."""
        gone = {key: one for one in given if (key := removal(getattr(one, name))) is not None}
        added = [one for one in given if removal(getattr(one, name)) is None]
        names = {getattr(one, name) for one in added}
        for key in gone.keys() & {getattr(one, name) for one in collected}:
            self.owners.clear(self.id, plugin, field, key)
        for one in added:
            self.owners.claim(self.id, plugin, field, getattr(one, name))
        ends = gone.keys() | names
        kept = [one for one in collected if getattr(one, name).removeprefix("-") not in ends]
        kept += [one for key, one in gone.items() if key not in names]
        del collected[:]
        collected.extend([*kept, *added])
        kept = [one for one in shown if getattr(one, name) not in ends]
        del shown[:]
        shown.extend([*kept, *added])

    def _environment(self, given: Any, plugin: str) -> None:
        container = self.request.container
        shown = [nri.KeyValue(key=one.partition("=")[0], value=one.partition("=")[2]) for one in container.env]
        self._list(given, self.adjust.env, shown, nri.Env, "key", plugin)
        container.env[:] = [f"{one.key}={one.value}" for one in shown]

    def _hooks(self, given: Any, plugin: str) -> None:
        any_of_them = False
        for name in HOOKS:
            if added := getattr(given, name):
                getattr(self.adjust.hooks, name).extend(added)
                getattr(self.request.container.hooks, name).extend(added)
                any_of_them = True
        if any_of_them:
            self.owners.share(self.id, plugin, nri.OciHooks)


def _put(known: Any, key: str, value: Any) -> None:
    """Set an entry of a map of texts, or of messages."""
    if isinstance(value, str):
        known[key] = value
    elif value is not None:
        known[key].CopyFrom(value)
    else:
        try:
            known[key] = ""
        except (TypeError, ValueError):  # of messages
            known[key].SetInParent()
