# SPDX-License-Identifier: Apache-2.0
"""The life of pods: run, stop, remove, and find again. Called by `service`.

A pod is journaled before its namespaces and its network are made, so that a daemon that is killed between leaves
nothing that the next one does not take away. Requests that are equal and overlap are one: kubelet asks again after its
deadline, and gets the pod that it had asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf import any_pb2

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.events import sandbox_pb2 as sandbox_events
from teu.api.types import sandbox_pb2
from teu.containerd.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    InvalidArgument,
    NotFound,
)
from teu.containerd.cri import checks, files, leftovers, namespaces, users
from teu.containerd.cri.containers import ANSWER_SECONDS, Containers, answered, hostname_of
from teu.containerd.cri.handlers import Handlers
from teu.containerd.cri.network import Networks, capabilities
from teu.containerd.cri.nri import Nri
from teu.containerd.cri.records import NAMESPACE, Pod, Records
from teu.containerd.cri.shims import SCOPE, SLICE, scope_of
from teu.containerd.state import Context
from teu.linux import cgroup_files
from teu.linux.trees import discard_tree, unmount

log = logging.getLogger("teu.containerd.cri")
T = TypeVar("T")

_HOSTNAME_MAX = 64  # of the kernel


def kill_scope(pod: Pod) -> bool:
    """Kill a pod's shim, which is alone in its scope; whether there is such a scope."""
    folder = cgroup_files.place() + scope_of(pod)
    try:
        # O_WRONLY alone: where there is no such cgroup, no file of that name is made.
        descriptor = os.open(f"{folder}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        log.error("the shim of pod %s is not killed: %s", pod.id, error)
        return False
    try:
        os.write(descriptor, b"1")
    finally:
        os.close(descriptor)
    log.warning("the shim of pod %s did not answer: it is killed", pod.id)
    return True


def own_namespaces(config: Any) -> set[str]:
    """The namespaces that a pod has for itself, by the specification's names."""
    options = config.linux.security_context.namespace_options
    found = set()
    if options.network == cri.POD:
        found |= {"network", "uts"}
    if options.ipc == cri.POD:
        found.add("ipc")
    if users.maps_of(options) is not None:
        found.add("user")
    return found


class Pods:
    """The pods of the namespace k8s.io."""

    def __init__(
        self,
        context: Context,
        records: Records,
        networks: Networks,
        containers: Containers,
        handlers: Handlers,
        nri: Nri,
    ) -> None:
        self._context = context
        self._records = records
        self._networks = networks
        self._containers = containers
        self._handlers = handlers
        self._nri = nri
        self._running: dict[str, tuple[Any, asyncio.Task[str]]] = {}  # RunPodSandbox under way, by the pod's name
        self._cleaning: asyncio.Task[None] | None = None

    async def _thread(self, function: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._context.pool, function, *given)

    def ready(self, pod: Pod) -> bool:
        """Whether containers can be started in it."""
        if pod.stopped:
            return False
        try:
            self._context.sandbox_manager.get(NAMESPACE, pod.id)
        except NotFound:
            return False
        return True

    # run

    async def run(self, config: Any, handler: str) -> str:
        """A new pod, ready; its id."""
        checks.pod(config)
        runtime = self._handlers.named(handler)
        if users.maps_of(config.linux.security_context.namespace_options) is not None:
            self._handlers.check_users(runtime)
        if len(config.hostname) > _HOSTNAME_MAX:
            raise InvalidArgument(f"config.hostname is longer than {_HOSTNAME_MAX} characters")
        capabilities(config)
        namespaces.check_sysctls(config.linux.sysctls, own_namespaces(config))
        pod = Pod(secrets.token_hex(32), config, handler, time.time_ns())
        name = pod.name
        under_way = self._running.get(name)
        if under_way is None:
            if (known := self._records.names.get(name)) is not None:
                other = self._records.pods.get(known)
                if other is not None and other.config == config and self.ready(other):
                    return other.id  # the answer to an earlier request was lost
                raise AlreadyExists(f'failed to reserve sandbox name "{name}": name "{name}" is reserved for "{known}"')
            self._records.names[name] = pod.id
            task = asyncio.create_task(self._run(pod))
            self._running[name] = under_way = (config, task)
            task.add_done_callback(lambda done: self._ran(name, done))
        elif under_way[0] != config:
            raise AlreadyExists(f'failed to reserve sandbox name "{name}": another request is under way')
        return await asyncio.shield(under_way[1])

    def _ran(self, name: str, done: asyncio.Task[str]) -> None:
        self._running.pop(name, None)
        if not done.cancelled():
            done.exception()  # it is told to those who wait, if any still do

    async def _run(self, pod: Pod) -> str:
        own = own_namespaces(pod.config)
        if "network" in own:
            pod.network = os.path.join(namespaces.NETWORKS, f"cni-{uuid.uuid4()}")
            pod.attached = True  # from now on, for what anybody knows
        try:
            record = await self._thread(self._journaled, pod)
            shim = asyncio.create_task(self._start(pod, record))
            try:
                await self._thread(self._prepare, pod, own)
            finally:
                # also when the other has failed: what it has made is undone when it has come to its end
                await asyncio.wait([shim])
            shim.result()
            async with self._nri.held():
                await self._nri.run_pod(pod)
                pod.complete = True
                await self._thread(self._records.save_pod, pod)
                self._records.pods[pod.id] = pod
        except BaseException:
            pod.complete = False
            await asyncio.shield(asyncio.create_task(self._undo(pod)))
            raise
        self._records.tell(cri.CONTAINER_CREATED_EVENT, pod, None)
        self._records.tell(cri.CONTAINER_STARTED_EVENT, pod, None)
        return pod.id

    def _journaled(self, pod: Pod) -> sandbox_pb2.Sandbox:
        record = self._records.create_pod(pod, self._spec(pod))
        self._containers.stand_ins.create(pod)
        return record

    def _spec(self, pod: Pod) -> dict[str, Any]:
        """By which the shim knows where it belongs: its scope is apart from kubelet's slices, where each process would
        be taken for a container's."""
        of = pod.config.metadata
        return {
            "annotations": {"io.teu.name": f"pod {of.namespace}/{of.name}"},
            "linux": {"cgroupsPath": f"{SLICE}:{SCOPE}:{pod.id[:12]}"},
        }

    def _prepare(self, pod: Pod, own: set[str]) -> None:
        folder = self._containers.state_of(pod.id)
        hostname = hostname_of(pod.config)
        maps = users.maps_of(pod.namespaces)
        files.write(folder, pod.config, hostname, maps)
        if "ipc" in own:
            namespaces.make_shared_memory(os.path.join(folder, "shm"), maps)
        paths = {kind: self._containers.namespace_path(pod, kind) for kind in own}
        namespaces.make(paths, hostname, dict(pod.config.linux.sysctls), maps)
        if pod.network:
            pod.addresses = self._networks.add(pod)

    async def _start(self, pod: Pod, record: sandbox_pb2.Sandbox) -> None:
        manager, events = self._context.sandbox_manager, self._context.events
        await manager.create(
            NAMESPACE,
            pod.id,
            record=record,
            rootfs=(),
            options=any_pb2.Any(),
            netns_path=pod.network,
            annotations=dict(pod.config.annotations),
        )
        events.publish(NAMESPACE, "/sandboxes/create", sandbox_events.SandboxCreate(sandbox_id=pod.id))
        sandbox = manager.get(NAMESPACE, pod.id)
        await answered(sandbox.call("StartSandbox", sandbox_id=pod.id), ANSWER_SECONDS)
        sandbox.shim.note(started=True)
        events.publish(NAMESPACE, "/sandboxes/start", sandbox_events.SandboxStart(sandbox_id=pod.id))
        manager.watch(NAMESPACE, pod.id)

    async def _undo(self, pod: Pod) -> None:
        """Leave nothing of a pod that has not come to be. Where the network's plugins refuse, it stays as one that is
        not ready, so that kubelet has it stopped again."""
        try:
            await self._take_apart(pod)
        except (Error, OSError) as error:
            log.error("pod %s could not be made, and its end is not clean: %s", pod.id, error)
            pod.complete = pod.stopped = True
            await self._thread(self._records.save_pod, pod)
            self._records.pods[pod.id] = pod
            return
        await self._thread(self._forget, pod)

    # stop and remove

    async def _take_apart(self, pod: Pod) -> None:
        """The shim, the network, the namespaces; again does nothing."""
        await self._end_shim(pod)
        await self._thread(self._take_apart_here, pod)

    async def _end_shim(self, pod: Pod) -> None:
        try:
            if not await self._context.sandbox_manager.shutdown(NAMESPACE, pod.id):
                await self._thread(kill_scope, pod)
        except NotFound:
            pass

    def _take_apart_here(self, pod: Pod) -> None:
        if pod.attached:
            self._networks.remove(pod, pod.network if namespaces.held(pod.network) else "")
            pod.attached = False
        for kind in ("network", "ipc", "uts", "user"):
            if path := self._containers.namespace_path(pod, kind):
                namespaces.drop(path)
        unmount(os.path.join(self._containers.state_of(pod.id), "shm"))
        self._containers.image_volumes.drop(pod)

    def _stopped(self, pod: Pod) -> None:
        self._take_apart_here(pod)
        self._records.save_pod(pod)

    def _forget(self, pod: Pod) -> None:
        discard_tree(self._containers.state_of(pod.id))
        self._containers.stand_ins.delete(pod)
        self._records.drop_pod(pod)
        self._context.database.sync()  # for one whose own record has been removed by somebody else

    async def stop(self, id: str) -> None:
        """End all containers of a pod, and give its network back; again does nothing, and neither does an unknown
        id."""
        try:
            pod = self._records.pod(id)
        except NotFound:
            return
        await asyncio.shield(asyncio.create_task(self._stop(pod)))

    async def _stop(self, pod: Pod) -> None:
        async with pod.lock:
            if pod.stopped and not pod.attached:
                return
            await self._stop_containers(pod)
            await self._containers.end_init(pod)
            ended = not pod.stopped
            pod.stopped = True
            if ended:
                await self._nri.stop_pod(pod)
            await self._end_shim(pod)
            await self._thread(self._stopped, pod)
            if ended:
                self._records.tell(cri.CONTAINER_STOPPED_EVENT, pod, None)

    async def _stop_containers(self, pod: Pod) -> None:
        """End all of them; with their shim, where that does not answer any more."""
        containers = self._records.of_pod(pod)
        try:
            await asyncio.gather(*(self._containers.stop_one(one, 0) for one in containers))
        except DeadlineExceeded:
            if not await self._thread(kill_scope, pod):
                raise
            # What is left of its containers is cleaned up for a shim that has ended.
            await asyncio.gather(*(self._containers.see_end(one) for one in containers))

    async def remove(self, id: str) -> None:
        """Stop it, and forget it with its containers; an unknown id is none of a pod any more."""
        try:
            pod = self._records.pod(id)
        except NotFound:
            return
        await asyncio.shield(asyncio.create_task(self._remove(pod)))

    async def _remove(self, pod: Pod) -> None:
        await self._stop(pod)
        async with pod.lock:
            for container in self._records.of_pod(pod):
                await self._containers.remove_one(container)
            known = pod.id in self._records.pods
            async with self._nri.held():
                if known:
                    await self._nri.remove_pod(pod)
                await self._thread(self._forget, pod)
            if known:
                self._records.tell(cri.CONTAINER_DELETED_EVENT, pod, None)

    # after a start of the daemon

    async def restore(self) -> None:
        """Take over what an earlier daemon has left. A pod that cannot be taken over is logged, and stays for kubelet
        to remove it."""
        halves = await self._thread(self._records.load)
        folders, leases = await self._thread(leftovers.find, self._context)
        await self._thread(self._containers.stand_ins.clear, list(self._records.pods.values()))
        await self._containers.restore()
        for pod in self._records.pods.values():
            if not pod.stopped and not self.ready(pod):
                log.info("pod %s has lost its shim", pod.id)
        # Plugins may take their time: nobody but a new pod's network waits for them.
        self._cleaning = asyncio.create_task(self._clean(halves, folders, leases))

    async def _clean(self, halves: list[Pod], folders: list[str], leases: list[str]) -> None:
        try:
            await self._thread(self._look_after_networks)
        finally:
            self._networks.collected.set()
        for pod in halves:
            log.info("pod %s was being made when the daemon ended: it is taken away", pod.id)
            await self._undo(pod)
        await self._thread(leftovers.remove, self._context, folders, leases)

    def _look_after_networks(self) -> None:
        for pod in list(self._records.pods.values()):
            if pod.attached and self.ready(pod) and (wrong := self._networks.check(pod)):
                log.warning("the network of pod %s is not as it was made: %s", pod.id, wrong)
        self._networks.collect()
