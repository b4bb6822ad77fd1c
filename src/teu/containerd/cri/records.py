# SPDX-License-Identifier: Apache-2.0
"""What is known of pods and containers: in memory, where lists and states are answered from, and in the stores of
containerd's API, where each change is before it is answered.

    sandboxes    io.teu.cri.pod          {"config": PodSandboxConfig, "handler", "created", ...}
    containers   io.teu.cri.container    {"config": ContainerConfig, "pod", "state", "started", ...}

The messages are in base64 in the JSON object. What is unreadable there is left alone, and logged: it can be removed by
containerd's API.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.services.containers.v1 import containers_pb2
from teu.api.types import sandbox_pb2
from teu.containerd.core.errors import NotFound
from teu.containerd.stores.containers import Containers
from teu.containerd.stores.sandboxes import Sandboxes
from teu.oci import jsontext

log = logging.getLogger("teu.containerd.cri")
T = TypeVar("T")

NAMESPACE = "k8s.io"
RUNTIME = "io.containerd.teu.v2"
KIND_LABEL = "io.cri-containerd.kind"
POD_EXTENSION, CONTAINER_EXTENSION = "io.teu.cri.pod", "io.teu.cri.container"

CREATED, RUNNING, EXITED = cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING, cri.CONTAINER_EXITED


@dataclass(slots=True, eq=False)
class Pod:
    """A sandbox. Times are nanoseconds since 1970, as all here."""

    id: str
    config: Any  # PodSandboxConfig
    handler: str = ""
    created: int = 0
    complete: bool = False  # whether RunPodSandbox has come to its end; else what there is of it goes at the next start
    stopped: bool = False
    network: str = ""  # path of the network namespace; "" where it is the host's
    attached: bool = False  # whether something of CNI's may have to be undone
    addresses: list[str] = field(default_factory=list)
    listed: tuple[int, bytes] | None = None  # its state, and how it is in a list then
    answer: tuple[object, bytes] | None = None  # of PodSandboxStatus, and what it depends on
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        """By which no two pods are the same."""
        of = self.config.metadata
        return f"{of.name}_{of.namespace}_{of.uid}_{of.attempt}"

    @property
    def namespaces(self) -> Any:
        """NamespaceOption."""
        return self.config.linux.security_context.namespace_options

    def packed(self) -> any_pb2.Any:
        """For the record."""
        return _packed(
            POD_EXTENSION,
            {
                "config": _text(self.config),
                "handler": self.handler,
                "created": self.created,
                "complete": self.complete,
                "stopped": self.stopped,
                "network": self.network,
                "attached": self.attached,
                "addresses": self.addresses,
            },
        )


@dataclass(slots=True, eq=False)
class Container:
    """A container of a pod."""

    id: str
    pod: Pod
    config: Any  # ContainerConfig
    image: str = ""  # its id
    created: int = 0
    state: int = CREATED
    started: int = 0
    finished: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    log_path: str = ""
    stop_signal: str = "TERM"
    user: list[int] = field(default_factory=lambda: [0, 0])  # uid, gid, supplementary groups
    snapshotter: str = ""
    mapped: bool = False  # whether ids of its image's layers are mapped by the user namespace of its pod
    asked: str = ""  # of one that goes on from a checkpoint: digest of the ContainerConfig that was asked for
    out_of_memory: bool = False  # the kernel has killed something in it
    requested: Any = None  # the ContainerConfig as it was before plugins have changed it, where they have
    stop_told: bool = False  # whether plugins know that it has ended
    listed: tuple[int, bytes] | None = None  # its state, and how it is in a list then
    answer: tuple[object, bytes] | None = None  # of ContainerStatus, and what it depends on
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """By which no two containers are the same."""
        pod, own = self.pod.config.metadata, self.config.metadata
        return f"{own.name}_{pod.name}_{pod.namespace}_{pod.uid}_{own.attempt}"

    def packed(self) -> any_pb2.Any:
        """For the record."""
        plain = (
            "image",
            "created",
            "state",
            "started",
            "finished",
            "exit_code",
            "reason",
            "message",
            "log_path",
            "stop_signal",
            "user",
            "snapshotter",
            "mapped",
            "asked",
        )
        return _packed(
            CONTAINER_EXTENSION,
            {"config": _text(self.config), "pod": self.pod.id, **{name: getattr(self, name) for name in plain}},
        )


def _text(message: Any) -> str:
    return base64.b64encode(message.SerializeToString()).decode()


def _packed(kind: str, fields: dict[str, Any]) -> any_pb2.Any:
    return any_pb2.Any(type_url=kind, value=json.dumps(fields, separators=(",", ":")).encode())


def _unpacked(packed: Any, message: Any) -> dict[str, Any]:
    """Raises ValueError."""
    fields = jsontext.loads(packed.value)
    if not isinstance(fields, dict):
        raise ValueError("it is no object")
    try:
        fields["config"] = message.FromString(base64.b64decode(fields["config"]))
    except (KeyError, TypeError, DecodeError) as error:
        raise ValueError(f"config: {error}") from None
    return fields


class Records:
    """All pods and containers. `pods` and `containers` have those that clients may see, by their ids; `names` has those
    under way, too. What blocks is called on a thread."""

    def __init__(
        self,
        sandboxes: Sandboxes,
        containers: Containers,
        tell: Callable[[int, Pod, Container | None], None] = lambda _kind, _pod, _container: None,
    ) -> None:
        """`tell` is called on the event loop with the ContainerEventType of what has happened to a pod, or to a
        container of it."""
        self._sandboxes = sandboxes
        self._containers = containers
        self.tell = tell
        self.pods: dict[str, Pod] = {}
        self.containers: dict[str, Container] = {}
        self.names: dict[str, str] = {}

    def pod(self, id: str) -> Pod:
        """By its id, or by a part that only it begins with. NotFound."""
        return _found(self.pods, id, "sandbox")

    def container(self, id: str) -> Container:
        """By its id, or by a part that only it begins with. NotFound."""
        return _found(self.containers, id, "container")

    def of_pod(self, pod: Pod) -> list[Container]:
        """The containers of a pod."""
        return [one for one in self.containers.values() if one.pod is pod]

    def create_pod(self, pod: Pod, spec: dict[str, Any]) -> sandbox_pb2.Sandbox:
        """Store a new one; its record. Of one in the host's network nothing outlasts a power cut, and so its record
        need not either until it is complete. Blocks."""
        record = sandbox_pb2.Sandbox(sandbox_id=pod.id, labels={KIND_LABEL: "sandbox"})
        record.runtime.name = RUNTIME
        record.spec.value = json.dumps(spec).encode()
        record.extensions[POD_EXTENSION].CopyFrom(pod.packed())
        return self._sandboxes.create(NAMESPACE, record, durable=bool(pod.network))

    def save_pod(self, pod: Pod) -> None:
        """Store what has changed. Blocks."""
        record = sandbox_pb2.Sandbox(sandbox_id=pod.id)
        record.extensions[POD_EXTENSION].CopyFrom(pod.packed())
        self._sandboxes.update(NAMESPACE, record, [f"extensions.{POD_EXTENSION}"])

    def drop_pod(self, pod: Pod) -> None:
        """Forget it, here and in the store. Blocks."""
        try:
            self._sandboxes.delete(NAMESPACE, pod.id)
        except NotFound:
            pass
        self.pods.pop(pod.id, None)
        self._free(pod.name, pod.id)

    def save_container(self, container: Container) -> None:
        """Store what has changed; nothing where somebody has removed the record by containerd's API. Blocks."""
        record = containers_pb2.Container(id=container.id)
        record.extensions[CONTAINER_EXTENSION].CopyFrom(container.packed())
        try:
            self._containers.update(NAMESPACE, record, [f"extensions.{CONTAINER_EXTENSION}"])
        except NotFound:
            log.warning("the record of container %s is gone", container.id)

    def drop_container(self, container: Container) -> None:
        """Forget it, here and in the store; durably with the next change there that is. Blocks."""
        try:
            self._containers.delete(NAMESPACE, container.id, durable=False)
        except NotFound:
            pass
        self.containers.pop(container.id, None)
        self._free(container.name, container.id)

    def _free(self, name: str, id: str) -> None:
        if self.names.get(name) == id:
            del self.names[name]

    def load(self) -> list[Pod]:
        """Read all records; the pods that were never completed, which are not among `pods`. Blocks."""
        halves = []
        for record in self._sandboxes.find(NAMESPACE):
            if POD_EXTENSION not in record.extensions:
                continue
            try:
                pod = Pod(record.sandbox_id, **_unpacked(record.extensions[POD_EXTENSION], cri.PodSandboxConfig))
            except (ValueError, TypeError) as error:
                log.error("the record of pod %s is damaged: %s", record.sandbox_id, error)
                continue
            if pod.complete:
                self.pods[pod.id] = pod
                self.names[pod.name] = pod.id
            else:
                halves.append(pod)
        for record in self._containers.find(NAMESPACE):
            if CONTAINER_EXTENSION not in record.extensions:
                continue
            try:
                fields = _unpacked(record.extensions[CONTAINER_EXTENSION], cri.ContainerConfig)
                fields["pod"] = self.pods[fields["pod"]]
                container = Container(record.id, **fields)
            except (ValueError, TypeError, KeyError) as error:
                log.error("the record of container %s is damaged: %r", record.id, error)
                continue
            self.containers[container.id] = container
            self.names[container.name] = container.id
        return halves


def _found(known: dict[str, T], id: str, what: str) -> T:
    if id in known:
        return known[id]
    found = [one for key, one in known.items() if key.startswith(id)] if id else []
    if len(found) != 1:
        raise NotFound(f'{what} "{id}"' if not found else f'{what} "{id}": more than one begins so')
    return found[0]
