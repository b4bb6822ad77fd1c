# SPDX-License-Identifier: Apache-2.0
"""What the cAdvisor in kubelet looks for, to count what goes over a pod's network. Called by `pods` and `containers`.

It knows a pod's network by the pause container that other runtimes have: a cgroup below the pod's with the pod's id in
its name, a container of that id in containerd's API which is labelled as a sandbox, and a task of it, in whose network
namespace it reads the counters. Pods here have no such process. In its place are

    a record of a container, as long as the pod
    an empty cgroup cri-containerd-POD.scope in the pod's own, while a container of the pod runs
    the answer to Tasks.Get: the process of one of those containers

When that container ends, another takes its place. cAdvisor asks once for each cgroup, so it is given a new one.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable
from typing import Any

from teu.api.services.containers.v1 import containers_pb2
from teu.containerd.core.errors import AlreadyExists, NotFound
from teu.containerd.cri import spec
from teu.containerd.cri.podstats import cgroup_of
from teu.containerd.cri.records import KIND_LABEL, NAMESPACE, RUNTIME, Container, Pod
from teu.containerd.state import Context
from teu.linux import cgroup_files

log = logging.getLogger("teu.containerd.cri")


def described(pod: Pod) -> dict[str, Any]:
    """A specification that says whose sandbox it is, and nothing that could be run."""
    return {
        "ociVersion": spec.VERSION,
        "process": {"args": [], "env": [], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "linux": {"cgroupsPath": spec.cgroups_path(pod.config.linux.cgroup_parent, pod.id)},
        "annotations": spec.sandbox_notes(pod, "sandbox"),
    }


class StandIns:
    """What stands for the pause containers of pods with networks of their own. Everything here blocks."""

    def __init__(self, context: Context, root: str = "") -> None:
        """`root` is the folder of the hierarchy of cgroups."""
        self._context = context
        self._root = root
        self._pids: dict[str, dict[str, int]] = {}  # of the running containers, by the pod's id and their own
        self._changing = threading.Lock()

    def create(self, pod: Pod) -> None:
        """The record of a pod's."""
        if not pod.network:
            return
        record = containers_pb2.Container(
            id=pod.id, labels={**dict(pod.config.labels), KIND_LABEL: "sandbox"}, sandbox=pod.id
        )
        record.runtime.name = RUNTIME
        record.spec.type_url, record.spec.value = spec.TYPE, json.dumps(described(pod)).encode()
        try:
            self._context.containers.create(NAMESPACE, record, durable=False)  # with the pod, once that is complete
        except AlreadyExists:
            pass  # an earlier daemon has made it

    def delete(self, pod: Pod) -> None:
        """The end of a pod's; again does nothing."""
        with self._changing:
            self._pids.pop(pod.id, None)
            self._hide(pod)
        if not pod.network:
            return
        try:
            self._context.containers.delete(NAMESPACE, pod.id, durable=False)  # as the pod's own record, after this
        except NotFound:
            pass

    def clear(self, pods: Iterable[Pod]) -> None:
        """Take away the cgroups that an earlier daemon has left: the processes that it had told may have ended."""
        for pod in pods:
            self._remove(pod)

    def started(self, container: Container, pid: int) -> None:
        """A container of a pod runs."""
        pod = container.pod
        if not pod.network or not pid:
            return
        with self._changing:
            pids = self._pids.setdefault(pod.id, {})
            pids[container.id] = pid
            if len(pids) == 1:
                self._show(pod, pid)

    def ended(self, container: Container) -> None:
        """A container of a pod has ended."""
        pod = container.pod
        with self._changing:
            pids = self._pids.get(pod.id, {})
            pid = pids.pop(container.id, 0)
            if not pid or pid != self._context.tasks.stand_ins.get((NAMESPACE, pod.id)):
                return
            if pids:
                self._show(pod, next(iter(pids.values())))
            else:
                self._hide(pod)

    def _place(self, pod: Pod) -> str:
        above = cgroup_of(pod.config.linux.cgroup_parent)
        return f"{self._root or cgroup_files.place()}{above}/cri-containerd-{pod.id}.scope" if above else ""

    def _show(self, pod: Pod, pid: int) -> None:
        self._context.tasks.stand_ins[NAMESPACE, pod.id] = pid
        self._remove(pod)
        if place := self._place(pod):
            try:
                os.mkdir(place, 0o755)
            except OSError as error:
                log.info("pod %s: cAdvisor does not see its network: %s", pod.id, error)

    def _hide(self, pod: Pod) -> None:
        self._context.tasks.stand_ins.pop((NAMESPACE, pod.id), None)
        self._remove(pod)

    def _remove(self, pod: Pod) -> None:
        if place := self._place(pod):
            try:
                os.rmdir(place)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("pod %s: the cgroup for cAdvisor stays: %s", pod.id, error)
