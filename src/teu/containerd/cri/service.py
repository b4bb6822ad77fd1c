# SPDX-License-Identifier: Apache-2.0
"""runtime.v1.RuntimeService: `pods` and `containers` on the wire. Made by `daemon`, where the configuration has it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import (
    AlreadyExists,
    Cancelled,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from teu.containerd.core.version import advertised
from teu.containerd.cri import forward, metrics, namespaces, podcheckpoint, restore, spec, template, verbose
from teu.containerd.cri.attach import Attaches
from teu.containerd.cri.checkpoint import Checkpointer
from teu.containerd.cri.containers import Containers
from teu.containerd.cri.events import Events
from teu.containerd.cri.execs import Execs
from teu.containerd.cri.handlers import Handlers
from teu.containerd.cri.image_service import ImageService
from teu.containerd.cri.images import Image, Images
from teu.containerd.cri.network import Networks
from teu.containerd.cri.nri import Asked, Nri
from teu.containerd.cri.pipes import Streams
from teu.containerd.cri.pods import Pods
from teu.containerd.cri.podstats import PodStats
from teu.containerd.cri.records import NAMESPACE, RUNNING, Container, Pod, Records
from teu.containerd.cri.resize import Resizes
from teu.containerd.cri.stats import Stats
from teu.containerd.cri.streaming import Command, Forward, Streaming
from teu.containerd.server.rpc import Call, Server, held, quick
from teu.containerd.state import Context
from teu.containerd.transfer.job import Parts
from teu.linux import signals
from teu.systemd.scope import systemd_is_running

_SIGNALS = frozenset(cri.Signal.keys())
VERSION = "0.1.0"  # of kubelet's side of the interface, as every runtime answers


PIECE = 100  # of a list, in each message of a stream


def _pieces(items: list[Any]) -> Iterator[list[Any]]:
    for begin in range(0, len(items), PIECE):
        yield items[begin : begin + PIECE]


# kubelet asks for all pods and containers each second. What a list has of one changes with its state alone: it is kept
# as the bytes of a list of it, and the bytes of lists behind each other are the list of all. The streams' messages have
# it under the same number, 1.


def _listed_pod(pod: Pod, ready: bool) -> bytes:
    if pod.listed is None or pod.listed[0] != ready:
        pod.listed = ready, cri.ListPodSandboxResponse(items=[_pod_message(pod, ready)]).SerializeToString()
    return pod.listed[1]


def _listed_container(container: Container) -> bytes:
    if container.listed is None or container.listed[0] != container.state:
        alone = cri.ListContainersResponse(containers=[_container_message(container)])
        container.listed = container.state, alone.SerializeToString()
    return container.listed[1]


def _selected(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def _pod_message(pod: Pod, ready: bool) -> Any:
    return cri.PodSandbox(
        id=pod.id,
        metadata=pod.config.metadata,
        state=cri.SANDBOX_READY if ready else cri.SANDBOX_NOTREADY,
        created_at=pod.created,
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.handler,
    )


def _container_message(container: Container) -> Any:
    return cri.Container(
        id=container.id,
        pod_sandbox_id=container.pod.id,
        metadata=container.config.metadata,
        image=container.config.image,
        image_ref=container.image,
        image_id=container.image,
        state=container.state,
        created_at=container.created,
        labels=container.config.labels,
        annotations=container.config.annotations,
    )


class RuntimeService:
    """runtime.v1.RuntimeService. Ids may be parts that only one begins with."""

    def __init__(
        self,
        context: Context,
        records: Records,
        networks: Networks,
        images: Images,
        containers: Containers,
        pods: Pods,
        streaming: Streaming,
        events: Events,
        handlers: Handlers,
        resizes: Resizes,
    ) -> None:
        self._context = context
        self._records = records
        self._networks = networks
        self._images = images
        self._containers = containers
        self._pods = pods
        self._execs = Execs(context, containers)
        self._attaches = Attaches(context, containers)
        self._checkpointer = Checkpointer(context)
        self._stats = Stats(context)
        self._pod_stats = PodStats(context, records, self._stats)
        self._metrics = metrics.Metrics(context, records, self._stats)
        self._streaming = streaming
        self._events = events
        self._handlers = handlers
        self._resizes = resizes
        self._leftovers: asyncio.Task[None] | None = None

    def restore(self) -> None:
        """End what clients of an earlier daemon have left; nobody waits for it."""
        left = self._execs.left(one for one in self._records.containers.values() if one.state == RUNNING)
        self._leftovers = asyncio.create_task(self._execs.take_away(left))

    def close(self) -> None:
        """The daemon ends."""
        if self._leftovers is not None:
            self._leftovers.cancel()

    # the runtime

    @quick
    def Version(self, request: cri.VersionRequest, call: Call) -> cri.VersionResponse:
        """Who we are: the name is the scheme of containers' ids in Kubernetes."""
        return cri.VersionResponse(
            version=VERSION,
            runtime_name=self._context.config["cri"]["name"],
            runtime_version=advertised(),
            runtime_api_version="v1",
        )

    def Status(self, request: cri.StatusRequest, call: Call) -> cri.StatusResponse:
        """Whether pods can be run, and whether they get a network. Waits for nobody."""
        answer = cri.StatusResponse()
        answer.status.conditions.add(type="RuntimeReady", status=True)
        obstacle = self._networks.obstacle()
        network = answer.status.conditions.add(type="NetworkReady", status=not obstacle)
        if obstacle:
            network.reason = "NetworkPluginNotReady"
            network.message = f"Network plugin returns error: {obstacle}"
        for handler in self._handlers.all():
            features = answer.runtime_handlers.add(name=handler.name).features
            features.recursive_read_only_mounts = handler.features.recursive_read_only
            features.user_namespaces = self._handlers.has_users(handler)
        can = answer.features
        can.supplemental_groups_policy = can.mount_options = can.user_namespaces_host_network = True
        if request.verbose:
            config = self._context.config["cri"]
            told = {**config, "rootDir": self._context.root, "stateDir": os.path.join(self._context.state, "cri")}
            answer.info["config"] = json.dumps(told)
            networks = verbose.of_network(self._networks.current(), config["networks"], config["network-plugins"])
            answer.info["cniconfig"] = json.dumps(networks)
            answer.info["lastCNILoadStatus"] = answer.info["lastCNILoadStatus.default"] = obstacle or "OK"
        return answer

    @quick
    def RuntimeConfig(self, request: cri.RuntimeConfigRequest, call: Call) -> cri.RuntimeConfigResponse:
        """By whom cgroups are made."""
        driver = cri.SYSTEMD if systemd_is_running() else cri.CGROUPFS
        return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=driver))

    @quick
    def UpdateRuntimeConfig(
        self, request: cri.UpdateRuntimeConfigRequest, call: Call
    ) -> cri.UpdateRuntimeConfigResponse:
        """The ranges of the pods' addresses on this node. A network is made of them where there is a template for it
        and no other network, as by containerd; else the network's plugin has them from Kubernetes itself.
        INVALID_ARGUMENT, and FAILED_PRECONDITION for a template that is none."""
        ranges = request.runtime_config.network_config.pod_cidr
        given = self._context.config["cri"]["network-template"]
        if ranges and given and self._networks.current() is None:
            template.write(given, self._context.config["cri"]["networks"], ranges)
        return cri.UpdateRuntimeConfigResponse()

    # pods

    async def RunPodSandbox(self, request: cri.RunPodSandboxRequest, call: Call) -> cri.RunPodSandboxResponse:
        """Make a pod with its network; its id. A failure leaves nothing."""
        return cri.RunPodSandboxResponse(pod_sandbox_id=await self._pods.run(request.config, request.runtime_handler))

    async def StopPodSandbox(self, request: cri.StopPodSandboxRequest, call: Call) -> cri.StopPodSandboxResponse:
        """End its containers, and give its network back. An unknown one has stopped."""
        await self._pods.stop(request.pod_sandbox_id)
        return cri.StopPodSandboxResponse()

    async def RemovePodSandbox(self, request: cri.RemovePodSandboxRequest, call: Call) -> cri.RemovePodSandboxResponse:
        """Stop it, and forget it with its containers. An unknown one is forgotten."""
        await self._pods.remove(request.pod_sandbox_id)
        return cri.RemovePodSandboxResponse()

    async def PodSandboxStatus(
        self, request: cri.PodSandboxStatusRequest, call: Call
    ) -> cri.PodSandboxStatusResponse | bytes:
        """How a pod is, and its addresses. NOT_FOUND."""
        pod = self._records.pod(request.pod_sandbox_id)
        if request.verbose:
            told = await asyncio.get_running_loop().run_in_executor(self._context.pool, self._pod_info, pod)
            return cri.PodSandboxStatusResponse(status=self._pod_status(pod), info={"info": json.dumps(told)})
        depends = (self._pods.ready(pod), pod.stopped)
        if pod.answer is None or pod.answer[0] != depends:
            answer = cri.PodSandboxStatusResponse(status=self._pod_status(pod))
            pod.answer = depends, answer.SerializeToString()
        return pod.answer[1]

    def _pod_info(self, pod: Pod) -> dict[str, Any]:
        try:
            shim = self._handlers.named(pod.handler).shim
        except Error:
            shim = ""  # the handler is not configured any more
        return verbose.of_pod(
            pod,
            ready=self._pods.ready(pod),
            closed=bool(pod.network) and not namespaces.held(pod.network),
            pid=self._context.tasks.stand_ins.get((NAMESPACE, pod.id), 0),
            shim=shim,
            joined=spec.namespaces(self._containers.joined(pod), private_cgroup=False),
            result=self._networks.result(pod) if pod.network else None,
        )

    def _pod_status(self, pod: Pod) -> Any:
        brief = _pod_message(pod, self._pods.ready(pod))
        status = cri.PodSandboxStatus(
            **{descriptor.name: value for descriptor, value in brief.ListFields()},
            network=cri.PodSandboxNetworkStatus(),
        )
        status.linux.namespaces.options.CopyFrom(pod.namespaces)
        if pod.addresses and not pod.stopped:
            status.network.ip = pod.addresses[0]
            for address in pod.addresses[1:]:
                status.network.additional_ips.add(ip=address)
        return status

    @quick
    def ListPodSandbox(self, request: cri.ListPodSandboxRequest, call: Call) -> bytes:
        """All pods that the filter lets through."""
        return b"".join(self._listed_pods(request.filter))

    async def StreamPodSandboxes(self, request: cri.StreamPodSandboxesRequest, call: Call) -> AsyncIterator[bytes]:
        """The same in pieces, as all streams of lists: no message is too long."""
        for some in _pieces(self._listed_pods(request.filter)):
            yield b"".join(some)

    def _listed_pods(self, wanted: Any) -> list[bytes]:
        items = []
        state = wanted.state.state == cri.SANDBOX_READY if wanted.HasField("state") else None
        selector = dict(wanted.label_selector)
        for pod in self._pods_of(wanted.id):
            ready = self._pods.ready(pod)
            if state is not None and ready != state:
                continue
            if not selector or _selected(pod.config.labels, selector):
                items.append(_listed_pod(pod, ready))
        return items

    def _pods_of(self, id: str) -> Iterable[Pod]:
        if not id:
            return self._records.pods.values()
        try:
            return [self._records.pod(id)]
        except NotFound:
            return []

    # containers

    async def CreateContainer(self, request: cri.CreateContainerRequest, call: Call) -> cri.CreateContainerResponse:
        """Make a container in a ready pod, without starting it; its id."""
        pod = self._records.pod(request.pod_sandbox_id)
        if not self._pods.ready(pod):
            raise FailedPrecondition(f'sandbox container "{pod.id}" is not running')
        return cri.CreateContainerResponse(container_id=await self._containers.create(pod, request.config))

    async def StartContainer(self, request: cri.StartContainerRequest, call: Call) -> cri.StartContainerResponse:
        """Start a container that was made. Its log is there when this answers."""
        await self._containers.start(request.container_id)
        return cri.StartContainerResponse()

    async def StopContainer(self, request: cri.StopContainerRequest, call: Call) -> cri.StopContainerResponse:
        """Its stop signal, and SIGKILL after `timeout` seconds. An unknown one has stopped."""
        await self._containers.stop(request.container_id, request.timeout)
        return cri.StopContainerResponse()

    async def RemoveContainer(self, request: cri.RemoveContainerRequest, call: Call) -> cri.RemoveContainerResponse:
        """Kill it where it runs, and forget it. An unknown one is forgotten."""
        await self._containers.remove(request.container_id)
        return cri.RemoveContainerResponse()

    @quick
    def ListContainers(self, request: cri.ListContainersRequest, call: Call) -> bytes:
        """All containers that the filter lets through."""
        return b"".join(self._listed_containers(request.filter))

    async def StreamContainers(self, request: cri.StreamContainersRequest, call: Call) -> AsyncIterator[bytes]:
        """The same in pieces."""
        for some in _pieces(self._listed_containers(request.filter)):
            yield b"".join(some)

    def _listed_containers(self, wanted: Any) -> list[bytes]:
        found = []
        state = wanted.state.state if wanted.HasField("state") else None
        pod, selector = wanted.pod_sandbox_id, dict(wanted.label_selector)
        for container in self._containers_of(wanted.id):
            if state is not None and container.state != state:
                continue
            if pod and not container.pod.id.startswith(pod):
                continue
            if not selector or _selected(container.config.labels, selector):
                found.append(_listed_container(container))
        return found

    def _containers_of(self, id: str) -> Iterable[Container]:
        if not id:
            return self._records.containers.values()
        try:
            return [self._records.container(id)]
        except NotFound:
            return []

    async def ContainerStatus(
        self, request: cri.ContainerStatusRequest, call: Call
    ) -> cri.ContainerStatusResponse | bytes:
        """How a container is, or how it ended. NOT_FOUND."""
        container = self._records.container(request.container_id)
        if request.verbose:
            status = await self._container_status(container)
            return cri.ContainerStatusResponse(status=status, info={"info": json.dumps(await self._info(container))})
        # All else that is told is stored when it changes.
        depends = (self._context.database.committed, container.state, container.message)
        if (known := container.answer) is None or known[0] != depends:
            answer = cri.ContainerStatusResponse(status=await self._container_status(container))
            known = container.answer = depends, answer.SerializeToString()
        return known[1]

    async def _image(self, name: str) -> Image | None:
        if self._images.at_hand:
            return self._images.find(name)
        return await asyncio.get_running_loop().run_in_executor(self._context.pool, self._images.find, name)

    async def _container_status(self, container: Container) -> Any:
        image = await self._image(container.image)
        status = cri.ContainerStatus(
            id=container.id,
            metadata=container.config.metadata,
            state=container.state,
            created_at=container.created,
            started_at=container.started,
            finished_at=container.finished,
            exit_code=container.exit_code,
            image=container.config.image,
            image_ref=container.image,
            image_id=container.image,
            reason=container.reason,
            message=container.message,
            labels=container.config.labels,
            annotations=container.config.annotations,
            mounts=container.config.mounts,
            log_path=container.log_path,
        )
        if image is not None:
            status.image_ref = next(iter(image.digests), image.id)
            status.image.image = next(iter(image.tags), image.id)
        for mount in status.mounts:
            if mount.HasField("image") and (of := await self._image(mount.image.image)) is not None:
                mount.image.image_ref = of.id
        status.resources.linux.CopyFrom(container.config.linux.resources)
        uid, gid, *groups = container.user
        status.user.linux.uid, status.user.linux.gid = uid, gid
        status.user.linux.supplemental_groups.extend(groups)
        status.stop_signal = _signal(container.stop_signal)
        return status

    async def _info(self, container: Container) -> dict[str, Any]:
        record, pid = None, 0
        try:
            record = self._context.containers.get(NAMESPACE, container.id)
            if container.state == RUNNING:
                pid = (await self._context.tasks.get(NAMESPACE, container.id)).pid
        except Error:
            pass  # it is being removed
        return verbose.of_container(container, record, pid)

    async def ReopenContainerLog(
        self, request: cri.ReopenContainerLogRequest, call: Call
    ) -> cri.ReopenContainerLogResponse:
        """The log has been renamed: the shim goes on in the file that has its name now. FAILED_PRECONDITION for a
        container that does not run."""
        container = self._records.container(request.container_id)
        if container.state != RUNNING:
            raise FailedPrecondition(f"container {container.id} is not running")
        if container.log_path:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(container.log_path, flags, 0o640))
        return cri.ReopenContainerLogResponse()

    async def CheckpointContainer(
        self, request: cri.CheckpointContainerRequest, call: Call
    ) -> cri.CheckpointContainerResponse:
        """Save a container into a file of `location`; it runs on. NOT_FOUND, and FAILED_PRECONDITION for one that
        cannot be saved."""
        container = self._records.container(request.container_id)
        status = await self._container_status(container)
        await self._checkpointer.save(container, status, request.location, request.timeout)
        return cri.CheckpointContainerResponse()

    async def CheckpointPod(self, request: cri.CheckpointPodRequest, call: Call) -> cri.CheckpointPodResponse:
        """Save running containers of a pod, as they are at one moment, into a folder that is empty; they run on.
        NOT_FOUND, FAILED_PRECONDITION for what cannot be saved, INVALID_ARGUMENT."""
        podcheckpoint.check_options(request.options)
        pod = self._records.pod(request.pod_sandbox_id)
        if not self._pods.ready(pod):
            raise FailedPrecondition(f'sandbox container "{pod.id}" is not running')
        containers = [self._records.container(id) for id in request.container_ids]
        names = {container.config.metadata.name for container in containers}
        if not containers or len(names) < len(containers):
            raise InvalidArgument("container_ids must name containers, each of them once")
        for container in containers:
            if container.pod is not pod:
                raise InvalidArgument(f"container_ids: {container.id} is of another pod")
        chosen = [(container, await self._container_status(container)) for container in containers]
        await self._checkpointer.save_pod(pod, chosen, request.output_path)
        return cri.CheckpointPodResponse()

    async def RestorePod(self, request: cri.RestorePodRequest, call: Call) -> cri.RestorePodResponse:
        """Make a pod and its containers of a folder that CheckpointPod has filled; each goes on when it is started. A
        failure leaves nothing. FAILED_PRECONDITION where what is asked for does not fit what was saved,
        INVALID_ARGUMENT."""
        podcheckpoint.check_options(request.options)
        loop = asyncio.get_running_loop()
        path, configs = request.checkpoint_path, list(request.container_configs)
        found = await loop.run_in_executor(self._context.pool, podcheckpoint.read, path, configs)
        handler = self._handlers.named(request.runtime_handler)
        restore.check(handler, request.config.linux.security_context.namespace_options)
        before = set(self._records.pods)
        wanted = asyncio.Event()
        wanted.set()
        job = asyncio.create_task(self._restore_pod(request, found, before, wanted))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            wanted.clear()  # it comes to its end, and takes away what it has made
            job.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    async def _restore_pod(
        self, request: Any, found: list[tuple[Any, str]], before: set[str], wanted: asyncio.Event
    ) -> cri.RestorePodResponse:
        id = await self._pods.run(request.config, request.runtime_handler)
        if id in before:
            raise AlreadyExists(f"there is a pod of that name: {id}")
        pod, answer = self._records.pod(id), cri.RestorePodResponse(pod_sandbox_id=id)
        try:
            for config, archive in found:
                made = await self._containers.create(pod, config, archive)
                answer.restored_containers.add(name=config.metadata.name, container_id=made)
            if not wanted.is_set():
                raise Cancelled("the client has left while its pod was restored")
        except BaseException:
            await asyncio.shield(self._pods.remove(id))
            raise
        return answer

    async def ContainerStats(self, request: cri.ContainerStatsRequest, call: Call) -> cri.ContainerStatsResponse:
        """What a container uses. NOT_FOUND."""
        container = self._records.container(request.container_id)
        [found] = await self._stats.of([container], set(self._records.containers))
        return cri.ContainerStatsResponse(stats=found)

    async def ListContainerStats(
        self, request: cri.ListContainerStatsRequest, call: Call
    ) -> cri.ListContainerStatsResponse:
        """What the running containers use that the filter lets through; of their layers what was counted last."""
        return cri.ListContainerStatsResponse(stats=await self._listed_stats(request.filter))

    async def StreamContainerStats(
        self, request: cri.StreamContainerStatsRequest, call: Call
    ) -> AsyncIterator[cri.StreamContainerStatsResponse]:
        """The same in pieces."""
        for some in _pieces(await self._listed_stats(request.filter)):
            yield cri.StreamContainerStatsResponse(container_stats=some)

    async def _listed_stats(self, wanted: Any) -> list[Any]:
        chosen = [
            one
            for one in self._containers_of(wanted.id)
            if one.state == RUNNING
            and one.pod.id.startswith(wanted.pod_sandbox_id)
            and _selected(one.config.labels, wanted.label_selector)
        ]
        return await self._stats.of(chosen, set(self._records.containers))

    async def PodSandboxStats(self, request: cri.PodSandboxStatsRequest, call: Call) -> cri.PodSandboxStatsResponse:
        """What a pod uses, and each of its containers. NOT_FOUND; FAILED_PRECONDITION for one that is not ready."""
        pod = self._records.pod(request.pod_sandbox_id)
        if not self._pods.ready(pod):
            raise FailedPrecondition(f'sandbox container "{pod.id}" is not running')
        [found] = await self._pod_stats.of([pod])
        return cri.PodSandboxStatsResponse(stats=found)

    async def ListPodSandboxStats(
        self, request: cri.ListPodSandboxStatsRequest, call: Call
    ) -> cri.ListPodSandboxStatsResponse:
        """What the ready pods use that the filter lets through."""
        return cri.ListPodSandboxStatsResponse(stats=await self._listed_pod_stats(request.filter))

    async def StreamPodSandboxStats(
        self, request: cri.StreamPodSandboxStatsRequest, call: Call
    ) -> AsyncIterator[cri.StreamPodSandboxStatsResponse]:
        """The same in pieces."""
        for some in _pieces(await self._listed_pod_stats(request.filter)):
            yield cri.StreamPodSandboxStatsResponse(pod_sandbox_stats=some)

    async def _listed_pod_stats(self, wanted: Any) -> list[Any]:
        chosen = [
            pod
            for pod in self._pods_of(wanted.id)
            if self._pods.ready(pod) and _selected(pod.config.labels, wanted.label_selector)
        ]
        return await self._pod_stats.of(chosen)

    # metrics

    @quick
    def ListMetricDescriptors(
        self, request: cri.ListMetricDescriptorsRequest, call: Call
    ) -> cri.ListMetricDescriptorsResponse:
        """The names of all figures, and of their labels."""
        return cri.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())

    async def ListPodSandboxMetrics(
        self, request: cri.ListPodSandboxMetricsRequest, call: Call
    ) -> cri.ListPodSandboxMetricsResponse:
        """The figures of the ready pods, and of their running containers."""
        return cri.ListPodSandboxMetricsResponse(pod_metrics=await self._listed_metrics())

    async def StreamPodSandboxMetrics(
        self, request: cri.StreamPodSandboxMetricsRequest, call: Call
    ) -> AsyncIterator[cri.StreamPodSandboxMetricsResponse]:
        """The same in pieces."""
        for some in _pieces(await self._listed_metrics()):
            yield cri.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=some)

    async def _listed_metrics(self) -> list[Any]:
        return await self._metrics.of([pod for pod in self._records.pods.values() if self._pods.ready(pod)])

    # resources

    async def UpdateContainerResources(
        self, request: cri.UpdateContainerResourcesRequest, call: Call
    ) -> cri.UpdateContainerResourcesResponse:
        """Other limits for a container; what it says 0 or nothing of stays. NOT_FOUND, and what the runtime says."""
        if request.HasField("windows"):
            raise Unimplemented("windows is not implemented")
        container = self._records.container(request.container_id)
        await self._resizes.container(container, request.linux, dict(request.annotations))
        return cri.UpdateContainerResourcesResponse()

    async def UpdatePodSandboxResources(
        self, request: cri.UpdatePodSandboxResourcesRequest, call: Call
    ) -> cri.UpdatePodSandboxResourcesResponse:
        """What a pod has: its cgroup is kubelet's, so it is only kept. NOT_FOUND."""
        await self._resizes.pod(request.pod_sandbox_id, request)
        return cri.UpdatePodSandboxResourcesResponse()

    # events

    @held
    async def GetContainerEvents(
        self, request: cri.GetEventsRequest, call: Call
    ) -> AsyncIterator[cri.ContainerEventResponse]:
        """What happens to pods and containers, with how the pod and its containers are when it is told."""
        async for event in self._events.listen():
            known = self._records.of_pod(event.pod)
            yield cri.ContainerEventResponse(
                container_id=event.id,
                container_event_type=event.kind,
                created_at=event.at,
                pod_sandbox_status=self._pod_status(event.pod),
                containers_statuses=[await self._container_status(one) for one in known],
            )

    async def ExecSync(self, request: cri.ExecSyncRequest, call: Call) -> cri.ExecSyncResponse:
        """Run a command in a container to its end; what it wrote, and its exit code. DEADLINE_EXCEEDED when it takes
        longer than `timeout` seconds: then it is killed."""
        container = self._records.container(request.container_id)
        out, err, code = await self._execs.run(container, list(request.cmd), request.timeout)
        return cri.ExecSyncResponse(stdout=out, stderr=err, exit_code=code)

    # streams

    @quick
    def Exec(self, request: cri.ExecRequest, call: Call) -> cri.ExecResponse:
        """The address at which a command is run in a container, with a client's streams."""
        _check_streams(request)
        container = self._running(request.container_id)
        words, terminal = list(request.cmd), request.tty
        if not words:
            raise InvalidArgument("cmd is empty: name the command to run")

        async def run(streams: Streams) -> int:
            return await self._execs.stream(container, words, streams, terminal=terminal)

        doing = "executing command in"
        job = Command(run, words, doing, request.stdin, request.stdout, request.stderr, terminal)
        return cri.ExecResponse(url=self._streaming.promise("exec", job))

    @quick
    def Attach(self, request: cri.AttachRequest, call: Call) -> cri.AttachResponse:
        """The address at which a client gets the streams of a container's first process."""
        _check_streams(request)
        container = self._running(request.container_id)

        async def run(streams: Streams) -> int:
            return await self._attaches.attach(container, streams)

        terminal = request.tty or container.config.tty
        doing = "attaching to"
        job = Command(run, [], doing, request.stdin, request.stdout, request.stderr, terminal)
        return cri.AttachResponse(url=self._streaming.promise("attach", job))

    @quick
    def PortForward(self, request: cri.PortForwardRequest, call: Call) -> cri.PortForwardResponse:
        """The address at which connections are made to a pod's ports. FAILED_PRECONDITION for one that is not ready."""
        if not request.pod_sandbox_id:
            raise InvalidArgument("missing required pod_sandbox_id")
        pod = self._records.pod(request.pod_sandbox_id)
        if not self._pods.ready(pod):
            raise FailedPrecondition(f'sandbox container "{pod.id}" is not running')
        for port in request.port:
            if not 0 < port < 1 << 16:
                raise InvalidArgument(f"port {port} is none")

        async def connect(port: int) -> socket.socket:
            if not self._pods.ready(pod):
                raise FailedPrecondition(f'sandbox container "{pod.id}" is not running')
            return await forward.connect(self._context.pool, pod.network, port)

        job = Forward(connect, pod.id, list(request.port))
        return cri.PortForwardResponse(url=self._streaming.promise("portforward", job))

    def _running(self, id: str) -> Container:
        container = self._records.container(id)
        if container.state != RUNNING:
            raise FailedPrecondition(f"container {container.id} is not running")
        return container


def _check_streams(request: Any) -> None:
    """Of an ExecRequest or AttachRequest. Raises InvalidArgument."""
    if not request.container_id:
        raise InvalidArgument("missing required container_id")
    if request.tty and request.stderr:
        raise InvalidArgument("tty and stderr cannot both be true")
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidArgument("one of `stdin`, `stdout`, or `stderr` must be set")


def _signal(name: str) -> int:
    """cri.Signal of a signal's name or number; the runtime's default for what has none there."""
    number = signals.number(name)
    for known, value in signals.NUMBERS.items():
        if value == number and f"SIGNAL_SIG{known}" in _SIGNALS:
            return int(cri.Signal.Value(f"SIGNAL_SIG{known}"))
    words = name.removeprefix("SIG").replace("+", "PLUS").replace("-", "MINUS")
    return int(cri.Signal.Value(f"SIGNAL_SIG{words}")) if f"SIGNAL_SIG{words}" in _SIGNALS else 0


class Cri:
    """All of it, for the daemon."""

    def __init__(self, context: Context) -> None:
        """Reads nothing yet."""
        self._context = context
        config = self._config = context.config["cri"]
        parts = Parts(
            content=context.content,
            images=context.images,
            leases=context.leases,
            snapshots=context.snapshots,
            layers=context.layers,
            streams=context.streams,
            snapshotter=context.config["snapshots"]["default"],
            policy=context.config["image-policy"],
        )
        events = Events()
        records = Records(context.sandboxes, context.containers, events.tell)
        networks = Networks(config["networks"], config["network-plugins"], config["network-timeout"])
        images = Images(parts, context.collector, config["registries"], config["pinned-images"])
        self._handlers = Handlers(config["runtimes"])
        self._nri = Nri(context.config["nri"])
        self._containers = Containers(context, records, images, self._handlers, self._nri)
        self._pods = Pods(context, records, networks, self._containers, self._handlers, self._nri)
        resizes = Resizes(context, records, self._nri)
        self._streaming = Streaming(
            config["streaming-address"], config["streaming-certificate"], config["streaming-key"]
        )
        self._runtime = RuntimeService(
            context,
            records,
            networks,
            images,
            self._containers,
            self._pods,
            self._streaming,
            events,
            self._handlers,
            resizes,
        )
        self._asked = (records, images, self._containers, resizes)
        self._images = ImageService(images, os.path.join(context.root, "snapshots"), self._handlers)

    async def restore(self) -> None:
        """Take over what an earlier daemon has left, before anybody asks. FailedPrecondition where streams cannot be
        served as it is configured."""
        try:
            await self._streaming.start()
        except OSError as error:  # of TLS, too
            told = f"cri.streaming-address {self._config['streaming-address']}"
            raise FailedPrecondition(f"streams of containers cannot be served: {told}: {error}") from None
        loop, folder = asyncio.get_running_loop(), os.path.join(self._context.root, "snapshots")
        await loop.run_in_executor(self._context.pool, self._handlers.probe, folder)
        await self._pods.restore()
        await self._nri.start(self._plugged)
        self._runtime.restore()

    def _plugged(self) -> Asked:
        # 30 ms and 0.4 MB, for nodes with plugins alone
        from teu.containerd.cri.plugged import Plugged

        return Plugged(self._context, *self._asked, self._nri.gate)

    def register(self, server: Server) -> None:
        """Serve both services."""
        server.add(cri.DESCRIPTOR.services_by_name["RuntimeService"], self._runtime)
        server.add(cri.DESCRIPTOR.services_by_name["ImageService"], self._images)

    @property
    def busy(self) -> bool:
        """Whether clients have streams, or plugins connections, that would end with the daemon."""
        return self._streaming.busy or self._nri.busy

    async def close(self) -> None:
        """The daemon ends; what it has started goes on, but for the commands of clients with streams."""
        await self._nri.close()
        await self._streaming.close()
        self._runtime.close()
        self._containers.close()
