# SPDX-License-Identifier: Apache-2.0
"""Pods and containers as plugins of the Node Resource Interface see them, and what plugins want of them, done. Loaded
by `nri` with the first plugin."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.nri.v1alpha1 import nri_pb2 as nri
from teu.containerd.core.errors import Error, NotFound, Unknown
from teu.containerd.core.version import advertised
from teu.containerd.cri import adjust, spec
from teu.containerd.cri.containers import Containers, answered
from teu.containerd.cri.images import Image, Images
from teu.containerd.cri.nri import Gate
from teu.containerd.cri.records import CREATED, KIND_LABEL, NAMESPACE, RUNNING, Container, Pod, Records
from teu.containerd.cri.resize import Resizes, merged
from teu.containerd.nri.plugin import Plugin, Runtime
from teu.containerd.nri.plugins import Plugins
from teu.containerd.state import Context
from teu.oci import jsontext

log = logging.getLogger("teu.containerd.cri")
T = TypeVar("T")
Json = dict[str, Any]

_STATES = {CREATED: nri.CONTAINER_CREATED, RUNNING: nri.CONTAINER_RUNNING, cri.CONTAINER_EXITED: nri.CONTAINER_STOPPED}


class Plugged:
    """The plugins, and who is told what of them."""

    def __init__(
        self,
        context: Context,
        records: Records,
        images: Images,
        containers: Containers,
        resizes: Resizes,
        gate: Gate,
    ) -> None:
        self._context = context
        self._records = records
        self._images = images
        self._containers = containers
        self._resizes = resizes
        self._gate = gate
        self._later: set[asyncio.Task[list[Any]]] = set()  # changes under way
        config = context.config["nri"]
        self._patience = config["plugin-request-timeout"]
        runtime = Runtime(
            name=context.config["cri"]["name"],
            version=advertised(),
            registration_timeout=config["plugin-registration-timeout"],
            request_timeout=config["plugin-request-timeout"],
        )
        self.plugins = Plugins(runtime, self._join, self._update_from, config["default-validator"])

    async def _thread(self, function: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._context.pool, function, *given)

    # who comes

    async def _join(self, plugin: Plugin) -> None:
        async with self._gate.alone(self._patience) as quiet:
            if not quiet:
                log.warning("plugin %s does not wait for what is under way any more", plugin.name)
            async with self.plugins.lock:
                pods = [self._pod(pod) for pod in self._records.pods.values()]
                known = [one for one in self._records.containers.values() if one.state in (CREATED, RUNNING)]
                messages = await asyncio.gather(*map(self._container, known))
                updates = await plugin.synchronize(pods, [one for one in messages if one is not None])
                self.plugins.add(plugin)
        await self._apply(updates)

    async def _update_from(self, plugin: Plugin, request: Any) -> Any:
        await self._evict(request.evict, plugin.name)
        return nri.UpdateContainersResponse(failed=await self._apply(request.update))

    # what they want

    async def _apply(self, updates: Iterable[Any]) -> list[Any]:
        """Change containers; the ContainerUpdates that have failed, and may not."""
        failed = []
        for update in updates:
            container = self._records.containers.get(update.container_id)
            if container is None:
                continue  # it has gone meanwhile
            wanted = update.linux.resources
            try:
                await self._resizes.change(container, adjust.asked(wanted), {}, adjust.more(wanted))
            except Error as error:
                log.error("a plugin's update of container %s: %s", container.id, error.message)
                if not update.ignore_failure:
                    failed.append(update)
        return failed

    async def _evict(self, evictions: Iterable[Any], by: str = "plugins") -> None:
        for eviction in evictions:
            container = self._records.containers.get(eviction.container_id)
            if container is None or container.state != RUNNING:
                continue
            log.warning("container %s is evicted by %s: %s", container.id, by, eviction.reason)
            container.message = f"evicted by {by}: {eviction.reason}"
            try:
                await self._containers.stop_one(container, 0)
            except Error as error:
                log.error("container %s could not be evicted: %s", container.id, error.message)

    # pods

    async def run_pod(self, pod: Pod) -> None:
        """Unknown where one refuses: then all are told that it has ended."""
        try:
            await self.plugins.ask(nri.RUN_POD_SANDBOX, nri.RunPodSandboxRequest(pod=self._pod(pod)))
        except Unknown as error:
            await self.tell_pod("STOP_POD_SANDBOX", pod)
            await self.tell_pod("REMOVE_POD_SANDBOX", pod)
            raise Unknown(f"NRI RunPodSandbox failed: {error.message}") from None

    async def update_pod(self, pod: Pod, request: Any) -> None:
        """Unknown where one refuses."""
        asked = nri.UpdatePodSandboxRequest(pod=self._pod(pod))
        if request.HasField("overhead"):
            asked.overhead_linux_resources.CopyFrom(_of_cri(request.overhead))
        if request.HasField("resources"):
            asked.linux_resources.CopyFrom(_of_cri(request.resources))
        try:
            await self.plugins.ask(nri.UPDATE_POD_SANDBOX, asked)
        except Unknown as error:
            raise Unknown(f"NRI sandbox update failed: {error.message}") from None

    async def tell_pod(self, event: str, pod: Pod) -> None:
        """Of something that has a pod alone in its request."""
        await self.plugins.tell(nri.Event.Value(event), _request(event)(pod=self._pod(pod)))

    def _pod(self, pod: Pod) -> Any:
        of, linux = pod.config.metadata, pod.config.linux
        message = nri.PodSandbox(
            id=pod.id,
            name=of.name,
            uid=of.uid,
            namespace=of.namespace,
            labels={**pod.config.labels, KIND_LABEL: "sandbox"},
            annotations={**pod.config.annotations, **spec.sandbox_notes(pod, "sandbox")},
            runtime_handler=pod.handler,
            ips=pod.addresses,
        )
        message.linux.cgroup_parent = linux.cgroup_parent
        for name, given in (("pod_overhead", "overhead"), ("pod_resources", "resources")):
            if linux.HasField(given):
                getattr(message.linux, name).CopyFrom(_of_cri(getattr(linux, given)))
        for kind, path in self._containers.joined(pod).items():
            message.linux.namespaces.add(type=kind, path=path)
        return message

    # containers

    async def create(self, container: Container, image: Image, made: Json) -> None:
        """Unknown where one refuses or two want the same, InvalidArgument for what cannot be."""
        request = nri.CreateContainerRequest(pod=self._pod(container.pod))
        request.container.CopyFrom(_container(container, made, image=image))
        request.container.state = nri.CONTAINER_UNKNOWN
        try:
            creation = await self.plugins.create(request)
        except Unknown as error:
            raise Unknown(f"failed to get NRI adjustment for container: {error.message}") from None
        await self._evict(creation.evictions)
        await self._apply(creation.updates.others())
        wanted = creation.adjust
        await self._thread(adjust.adjust, made, wanted, self._containers.devices)
        if not wanted.HasField("linux"):
            return
        config = cri.ContainerConfig()
        config.CopyFrom(container.config)
        limits = config.linux.resources
        limits.CopyFrom(merged(limits, adjust.asked(wanted.linux.resources)))
        if wanted.linux.HasField("oom_score_adj"):
            limits.oom_score_adj = wanted.linux.oom_score_adj.value
        container.requested, container.config = container.config, config

    async def undo_create(self, container: Container, made: Json) -> None:
        """All are told that it has ended, and has gone."""
        pod, message = self._pod(container.pod), _container(container, made)
        await self.plugins.tell(nri.STOP_CONTAINER, nri.StopContainerRequest(pod=pod, container=message))
        await self.plugins.tell(nri.REMOVE_CONTAINER, nri.RemoveContainerRequest(pod=pod, container=message))

    async def start_container(self, container: Container, pid: int) -> None:
        """Unknown where one refuses."""
        message = await self._container(container, pid)
        request = nri.StartContainerRequest(pod=self._pod(container.pod), container=message)
        try:
            await self.plugins.ask(nri.START_CONTAINER, request)
        except Unknown as error:
            raise Unknown(f"NRI container start failed: {error.message}") from None

    async def update(self, container: Container, asked: Any) -> tuple[Any, Json]:
        """Unknown where one refuses, or two want the same; InvalidArgument for what cannot be."""
        request = nri.UpdateContainerRequest(pod=self._pod(container.pod), linux_resources=_of_cri(asked))
        if (message := await self._container(container)) is not None:
            request.container.CopyFrom(message)
        try:
            updates, evictions = await self.plugins.change(request)
        except Unknown as error:
            raise Unknown(f"NRI container update failed: {error.message}") from None
        await self._evict(evictions)
        await self._apply(updates.others())
        own = updates.own()
        if own is None:
            return asked, {}
        found = cri.LinuxContainerResources()
        found.CopyFrom(merged(asked, adjust.asked(own.linux.resources)))
        return found, adjust.more(own.linux.resources)

    async def stopped(self, container: Container) -> None:
        """It has ended: what plugins want of others then is done."""
        message = await self._container(container)
        request = nri.StopContainerRequest(pod=self._pod(container.pod), container=message)
        updates = (await self.plugins.stop(request)).others()
        if updates:
            # Who waits for this end may hold what a change of another container waits for.
            task = asyncio.create_task(self._apply(updates))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def tell_container(self, event: str, container: Container, pid: int = 0) -> None:
        """Of something that has a pod and a container in its request."""
        message = await self._container(container, pid)
        request = _request(event)(pod=self._pod(container.pod), container=message)
        await self.plugins.tell(nri.Event.Value(event), request)

    async def _container(self, container: Container, pid: int = 0) -> Any:
        """None where somebody has removed its record."""
        try:
            made, image = await self._thread(self._look_up, container)
        except NotFound:
            return None
        if not pid and container.state == RUNNING:
            try:
                process = await answered(self._context.tasks.get(NAMESPACE, container.id), self._patience)
                pid = process.pid
            except Error as error:
                log.warning("container %s: %s", container.id, error.message)
        return _container(container, made, pid=pid, image=image)

    def _look_up(self, container: Container) -> tuple[Json, Image | None]:
        record = self._context.containers.get(NAMESPACE, container.id)
        return jsontext.loads(record.spec.value), self._images.find(container.image)


def _request(event: str) -> Any:
    """The type of an event's request."""
    return getattr(nri, "".join(word.capitalize() for word in event.split("_")) + "Request")


# Messages


def _of_cri(given: Any) -> Any:
    """LinuxResources of LinuxContainerResources. 0 is said, too."""
    found = nri.LinuxResources(unified=given.unified)
    found.memory.limit.value = given.memory_limit_in_bytes
    if given.memory_swap_limit_in_bytes:
        found.memory.swap.value = given.memory_swap_limit_in_bytes
    cpu = found.cpu
    cpu.shares.value, cpu.quota.value, cpu.period.value = given.cpu_shares, given.cpu_quota, given.cpu_period
    cpu.cpus, cpu.mems = given.cpuset_cpus, given.cpuset_mems
    for one in given.hugepage_limits:
        found.hugepage_limits.add(page_size=one.page_size, limit=one.limit)
    return found


def _set(message: Any, given: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """The optional fields of a message, of those of an object."""
    for name, key in names.items():
        if key in given:
            getattr(message, name).value = given[key]


def _resources(given: Json) -> Any:
    found = nri.LinuxResources(unified=given.get("unified", {}))
    if "memory" in given:
        found.memory.SetInParent()
        _set(found.memory, given["memory"], {"limit": "limit", "reservation": "reservation", "swap": "swap"})
    if "cpu" in given:
        found.cpu.SetInParent()
        _set(found.cpu, given["cpu"], {"shares": "shares", "quota": "quota", "period": "period"})
        found.cpu.cpus, found.cpu.mems = given["cpu"].get("cpus", ""), given["cpu"].get("mems", "")
    for one in given.get("hugepageLimits", ()):
        found.hugepage_limits.add(page_size=one["pageSize"], limit=one["limit"])
    if "pids" in given:
        found.pids.limit = given["pids"].get("limit", 0)
    for one in given.get("devices", ()):
        rule = found.devices.add(allow=one["allow"], type=one.get("type", ""), access=one.get("access", ""))
        _set(rule, one, {"major": "major", "minor": "minor"})
    return found


def _seccomp(given: Json) -> Any:
    found = nri.LinuxSeccomp(
        default_action=given["defaultAction"],
        architectures=given.get("architectures", ()),
        flags=given.get("flags", ()),
        listener_path=given.get("listenerPath", ""),
        listener_metadata=given.get("listenerMetadata", ""),
    )
    _set(found, given, {"default_errno": "defaultErrnoRet"})
    for one in given.get("syscalls", ()):
        call = found.syscalls.add(names=one["names"], action=one["action"])
        _set(call, one, {"errno_ret": "errnoRet"})
        for each in one.get("args", ()):
            value, second = each.get("value", 0), each.get("valueTwo", 0)
            call.args.add(index=each.get("index", 0), value=value, value_two=second, op=each["op"])
    return found


def _linux(container: Container, made: Json) -> Any:
    linux, process = made["linux"], made["process"]
    found = nri.LinuxContainer(cgroups_path=linux.get("cgroupsPath", ""), sysctl=linux.get("sysctl", {}))
    for one in linux.get("namespaces", ()):
        found.namespaces.add(type=one["type"], path=one.get("path", ""))
    for one in linux.get("devices", ()):
        node = found.devices.add(
            path=one["path"], type=one["type"], major=one.get("major", 0), minor=one.get("minor", 0)
        )
        _set(node, one, {"file_mode": "fileMode", "uid": "uid", "gid": "gid"})
    found.resources.CopyFrom(_resources(linux.get("resources", {})))
    _set(found, process, {"oom_score_adj": "oomScoreAdj"})
    if "ioPriority" in process:
        given = process["ioPriority"]
        priority = nri.LinuxIOPriority(priority=given.get("priority", 0), **{"class": given["class"]})
        found.io_priority.CopyFrom(priority)
    if "scheduler" in process:
        found.scheduler.CopyFrom(nri.LinuxScheduler(**process["scheduler"]))
    if "seccomp" in linux:
        found.seccomp_policy.CopyFrom(_seccomp(linux["seccomp"]))
    security = container.config.linux.security_context
    if security.HasField("seccomp"):
        profile = security.seccomp
        found.seccomp_profile.profile_type = profile.profile_type
        found.seccomp_profile.localhost_ref = profile.localhost_ref
    for name, one in linux.get("netDevices", {}).items():
        found.net_devices[name].name = one.get("name", "")
    if "intelRdt" in linux:
        given = linux["intelRdt"]
        found.rdt.SetInParent()
        _set(found.rdt, given, {"clos_id": "closID", "enable_monitoring": "enableMonitoring"})
        if "schemata" in given:
            found.rdt.schemata.value.extend(given["schemata"])
    return found


def _container(container: Container, made: Json, *, pid: int = 0, image: Image | None = None) -> Any:
    process, config = made["process"], container.config
    message = nri.Container(
        id=container.id,
        pod_sandbox_id=container.pod.id,
        name=config.metadata.name,
        state=_STATES.get(container.state, nri.CONTAINER_UNKNOWN),
        labels={**config.labels, KIND_LABEL: "container"},
        annotations={**made.get("annotations", {}), **config.annotations},
        args=process.get("args", ()),
        env=process.get("env", ()),
        linux=_linux(container, made),
        pid=pid,
        created_at=container.created,
        started_at=container.started,
        finished_at=container.finished,
        exit_code=container.exit_code,
        status_reason=container.reason,
        status_message=container.message,
        CDI_devices=[nri.CDIDevice(name=one.name) for one in config.CDI_devices],
    )
    for one in made.get("mounts", ()):
        message.mounts.add(
            destination=one["destination"],
            type=one.get("type", ""),
            source=one.get("source", ""),
            options=one.get("options", ()),
        )
    for name, key in adjust.HOOKS.items():
        for one in made.get("hooks", {}).get(key, ()):
            hook = getattr(message.hooks, name).add(path=one["path"], args=one.get("args", ()), env=one.get("env", ()))
            _set(hook, one, {"timeout": "timeout"})
    for one in process.get("rlimits", ()):
        message.rlimits.add(type=one["type"], hard=one["hard"], soft=one["soft"])
    user = process.get("user", {})
    message.user.uid, message.user.gid = user.get("uid", 0), user.get("gid", 0)
    message.user.additional_gids.extend(user.get("additionalGids", ()))
    if image is not None:
        message.image.name = next(iter(image.tags or image.digests), image.id)
        message.image.digest = next(iter(image.digests), "").partition("@")[2]
        message.image.config_digest = image.id
    return message
