# SPDX-License-Identifier: Apache-2.0
"""Other resources for containers and pods that are there: kubelet's in-place resize. Called by `service`.

What a container is told takes effect on its cgroup at once where it runs, and is in its specification for when it is
started. A pod's own cgroup is kubelet's: of a pod what it is told is only kept.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from google.protobuf import any_pb2

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.services.containers.v1 import containers_pb2
from teu.containerd.cri import spec
from teu.containerd.cri.containers import ANSWER_SECONDS, answered
from teu.containerd.cri.nri import Nri
from teu.containerd.cri.records import CONTAINER_EXTENSION, NAMESPACE, RUNNING, Container, Records
from teu.containerd.state import Context
from teu.oci import jsontext

log = logging.getLogger("teu.containerd.cri")

RESOURCES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


def merged(known: Any, asked: Any) -> Any:
    """A LinuxContainerResources: what is asked for, and for the rest what is known. 0 and "" ask for nothing; of sizes
    of pages and of names of `unified` each counts for itself."""
    found = cri.LinuxContainerResources()
    found.CopyFrom(known)
    pages = {one.page_size: one.limit for one in (*known.hugepage_limits, *asked.hugepage_limits)}
    found.MergeFrom(asked)
    del found.hugepage_limits[:]
    for size, limit in pages.items():
        found.hugepage_limits.add(page_size=size, limit=limit)
    return found


def _over(known: spec.Json, changes: spec.Json) -> spec.Json:
    """linux.resources with changes: of objects, each member counts for itself."""
    both = {name: {**known[name], **value} for name, value in changes.items() if name in known and type(value) is dict}
    return {**known, **changes, **both}


class Resizes:
    """Changes of resources."""

    def __init__(self, context: Context, records: Records, nri: Nri) -> None:
        self._context = context
        self._records = records
        self._nri = nri

    async def container(self, container: Container, asked: Any, annotations: dict[str, str]) -> None:
        """Ask plugins, and change it as they let it be. Raises what `change` does, and Unknown where one refuses."""
        asked, more = await self._nri.update(container, asked)
        await self.change(container, asked, annotations, more)
        await self._nri.updated(container)

    async def change(self, container: Container, asked: Any, annotations: dict[str, str], more: spec.Json) -> None:
        """`more` are members of linux.resources for which the request has no words. What the runtime says of resources
        that cannot be is raised, and then nothing has changed. DeadlineExceeded for a shim that does not answer: a stop
        does not wait for it for ever."""
        async with container.lock:
            wanted = merged(container.config.linux.resources, asked)
            limits = _over(spec.resources(wanted), more)
            if container.state == RUNNING:
                packed = any_pb2.Any(type_url=RESOURCES_TYPE, value=json.dumps(limits).encode())
                change = self._context.tasks.update(NAMESPACE, container.id, packed, annotations)
                await answered(change, ANSWER_SECONDS)
                if asked.oom_score_adj:
                    await self._adjust(container, asked.oom_score_adj)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._context.pool, self._store, container, wanted, limits, annotations)

    async def _adjust(self, container: Container, score: int) -> None:
        for process in await answered(self._context.tasks.pids(NAMESPACE, container.id), ANSWER_SECONDS):
            try:
                with open(f"/proc/{process.pid}/oom_score_adj", "w") as file:
                    file.write(str(score))
            except OSError as error:  # it has ended; or this host lets nobody lower a score
                log.warning("process %d of container %s keeps its score: %s", process.pid, container.id, error)

    def _store(self, container: Container, wanted: Any, limits: spec.Json, annotations: dict[str, str]) -> None:
        stored = self._context.containers.get(NAMESPACE, container.id)
        made = jsontext.loads(stored.spec.value)
        made["linux"]["resources"] = _over(made["linux"].get("resources", {}), limits)
        if wanted.oom_score_adj:
            made["process"]["oomScoreAdj"] = wanted.oom_score_adj
        if annotations:
            made["annotations"] = {**made.get("annotations", {}), **annotations}
        record = containers_pb2.Container(id=container.id)
        record.spec.type_url, record.spec.value = stored.spec.type_url, json.dumps(made).encode()
        container.config.linux.resources.CopyFrom(wanted)
        record.extensions[CONTAINER_EXTENSION].CopyFrom(container.packed())
        self._context.containers.update(NAMESPACE, record, ["spec", f"extensions.{CONTAINER_EXTENSION}"])

    async def pod(self, id: str, request: Any) -> None:
        """An UpdatePodSandboxResourcesRequest: what it does not have stays. NOT_FOUND."""
        pod = self._records.pod(id)
        async with pod.lock:
            await self._nri.update_pod(pod, request)
            for name in ("overhead", "resources"):
                if request.HasField(name):
                    getattr(pod.config.linux, name).CopyFrom(getattr(request, name))
            await asyncio.get_running_loop().run_in_executor(self._context.pool, self._records.save_pod, pod)
            await self._nri.updated_pod(pod)
