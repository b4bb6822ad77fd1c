# SPDX-License-Identifier: Apache-2.0
"""containerd's services in memory, in the shape of teu.ctr.client.Client: methods take a request message and give an
answer message, and raise teu.ctr's own errors. Every call is noted in `calls`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from teu.api.services.containers.v1 import containers_pb2
from teu.api.services.content.v1 import content_pb2
from teu.api.services.images.v1 import images_pb2
from teu.api.services.leases.v1 import leases_pb2
from teu.api.services.namespaces.v1 import namespace_pb2
from teu.api.services.snapshots.v1 import snapshots_pb2
from teu.api.services.tasks.v1 import tasks_pb2
from teu.api.types import mount_pb2
from teu.ctr.errors import AlreadyExists, CommandError, NotFound


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Service:
    """A service whose methods are functions of a request; `calls` is the daemon's list."""

    def __init__(self, name: str, calls: list[tuple[str, Any]], methods: dict[str, Callable[[Any], Any]]) -> None:
        self._name = name
        self._calls = calls
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        method = self._methods[name]

        def call(request: Any, timeout: float | None = None) -> Any:
            self._calls.append((f"{self._name}.{name}", request))
            return method(request)

        return call


class Store:
    """Messages by their name; `what` is the word in errors."""

    def __init__(self, what: str, key: str) -> None:
        self.what = what
        self.key = key
        self.kept: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        if name not in self.kept:
            raise NotFound(f'{self.what} "{name}": not found')
        return self.kept[name]

    def add(self, message: Any) -> Any:
        name = getattr(message, self.key)
        if name in self.kept:
            raise AlreadyExists(f'{self.what} "{name}": already exists')
        self.kept[name] = message
        return message

    def remove(self, name: str) -> None:
        self.get(name)
        del self.kept[name]

    def change(self, message: Any, paths: list[str]) -> Any:
        """Take over the fields of the mask; a label without a value goes."""
        kept = self.get(getattr(message, self.key))
        for path in paths:
            field, _, key = path.partition(".")
            if field == "labels" and not key:
                kept.labels.clear()
                kept.labels.update(message.labels)
            elif field == "labels":
                kept.labels.pop(key, None)
                if message.labels.get(key):
                    kept.labels[key] = message.labels[key]
            else:
                getattr(kept, field).CopyFrom(getattr(message, field))
        return kept


class MemoryDaemon:
    namespace = "default"

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.blobs: dict[str, bytes] = {}
        self.infos = Store("content", "digest")
        self.image_store = Store("image", "name")
        self.container_store = Store("container", "id")
        self.snapshot_store = Store("snapshot", "name")
        self.namespace_store = Store("namespace", "name")
        self.lease_store = Store("lease", "id")
        self.processes: dict[str, Any] = {}
        self.plugins: list[Any] = []
        self.content = self.service("content", self._content())
        self.images = self.service("images", self._images())
        self.containers = self.service("containers", self._containers())
        self.snapshots = self.service("snapshots", self._snapshots())
        self.tasks = self.service("tasks", self._tasks())
        self.leases = self.service("leases", self._leases())
        self.namespaces = self.service("namespaces", self._namespaces())
        self.introspection = self.service(
            "introspection", {"Plugins": lambda request: SimpleNamespace(plugins=self.plugins)}
        )
        self.diff = self.service("diff", {"Apply": self._apply})

    def service(self, name: str, methods: dict[str, Callable[[Any], Any]]) -> Service:
        return Service(name, self.calls, methods)

    def called(self) -> list[str]:
        return [name for name, _ in self.calls]

    def request(self, name: str) -> Any:
        """The last request of this call."""
        return next(request for called, request in reversed(self.calls) if called == name)

    @contextlib.contextmanager
    def leased(self) -> Iterator[None]:
        self.calls.append(("leased", None))
        yield
        self.calls.append(("released", None))

    def hold(self, kind: str, name: str) -> None:
        self.calls.append(("hold", (kind, name)))

    # What tests put in ------------------------------------------------------------------------------------

    def blob(self, data: bytes, labels: dict[str, str] | None = None) -> str:
        digest = digest_of(data)
        self.blobs[digest] = data
        self.infos.kept[digest] = content_pb2.Info(digest=digest, size=len(data), labels=labels or {})
        return digest

    def image(self, name: str, layers: list[bytes], platform: tuple[str, str], **config: Any) -> dict[str, Any]:
        """An image of one manifest; the layers are not compressed."""
        parts = {"architecture": platform[1], "os": platform[0], "config": config}
        diffs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
        settings = json.dumps({**parts, "rootfs": diffs}).encode()
        kinds = "application/vnd.oci.image."
        manifest = {
            "schemaVersion": 2,
            "mediaType": kinds + "manifest.v1+json",
            "config": {"mediaType": kinds + "config.v1+json", "digest": self.blob(settings), "size": len(settings)},
            "layers": [
                {"mediaType": kinds + "layer.v1.tar", "digest": self.blob(layer), "size": len(layer)}
                for layer in layers
            ],
        }
        data = json.dumps(manifest).encode()
        target = {"mediaType": manifest["mediaType"], "digest": self.blob(data), "size": len(data)}
        found = images_pb2.Image(name=name)
        found.target.media_type, found.target.digest, found.target.size = target.values()
        self.image_store.kept[name] = found
        return target

    # Services ---------------------------------------------------------------------------------------------

    def _content(self) -> dict[str, Callable[[Any], Any]]:
        def read(request: Any) -> Iterator[Any]:
            self.infos.get(request.digest)
            yield SimpleNamespace(data=self.blobs[request.digest])

        def write(requests: Iterator[Any]) -> Iterator[Any]:
            data, labels, expected = b"", {}, ""
            for request in requests:
                if request.action == content_pb2.WriteAction.STAT and request.expected in self.blobs:
                    raise AlreadyExists(f"content {request.expected}: already exists")
                data += request.data
                labels, expected = dict(request.labels), request.expected
                yield SimpleNamespace()
            if expected and digest_of(data) != expected:
                raise CommandError(f"unexpected commit digest {digest_of(data)}")
            self.blob(data, labels)

        def status(request: Any) -> Any:
            raise NotFound(f"ingest {request.ref}: not found")

        def delete(request: Any) -> None:
            self.infos.remove(request.digest)
            del self.blobs[request.digest]

        return {
            "Info": lambda request: content_pb2.InfoResponse(info=self.infos.get(request.digest)),
            "Read": read,
            "Write": write,
            "Status": status,
            "Abort": status,
            "Update": lambda request: SimpleNamespace(
                info=self.infos.change(request.info, list(request.update_mask.paths))
            ),
            "List": lambda request: [SimpleNamespace(info=list(self.infos.kept.values()))],
            "Delete": delete,
        }

    def _images(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "Get": lambda request: SimpleNamespace(image=self.image_store.get(request.name)),
            "List": lambda request: SimpleNamespace(images=list(self.image_store.kept.values())),
            "Create": lambda request: SimpleNamespace(image=self.image_store.add(request.image)),
            "Update": lambda request: SimpleNamespace(
                image=self.image_store.change(request.image, list(request.update_mask.paths))
            ),
            "Delete": lambda request: self.image_store.remove(request.name),
        }

    def _containers(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "Get": lambda request: SimpleNamespace(container=self.container_store.get(request.id)),
            "List": lambda request: SimpleNamespace(containers=list(self.container_store.kept.values())),
            "Create": lambda request: SimpleNamespace(container=self.container_store.add(request.container)),
            "Update": lambda request: containers_pb2.UpdateContainerResponse(
                container=self.container_store.change(request.container, list(request.update_mask.paths))
            ),
            "Delete": lambda request: self.container_store.remove(request.id),
        }

    def _snapshots(self) -> dict[str, Callable[[Any], Any]]:
        def make(kind: int) -> Callable[[Any], Any]:
            def call(request: Any) -> Any:
                if request.parent:
                    self.snapshot_store.get(request.parent)
                labels = dict(request.labels)
                info = snapshots_pb2.Info(name=request.key, parent=request.parent, kind=kind, labels=labels)
                self.snapshot_store.add(info)
                return mounts(request)

            return call

        def mounts(request: Any) -> Any:
            self.snapshot_store.get(request.key)
            mount = mount_pb2.Mount(type="bind", source=f"/s/{request.key}", options=["rbind", "rw"])
            return SimpleNamespace(mounts=[mount])

        def commit(request: Any) -> None:
            active = self.snapshot_store.get(request.key)
            info = snapshots_pb2.Info(
                name=request.name, parent=active.parent, kind=snapshots_pb2.Kind.COMMITTED, labels=dict(request.labels)
            )
            self.snapshot_store.add(info)
            self.snapshot_store.remove(request.key)

        def usage(request: Any) -> Any:
            self.snapshot_store.get(request.key)
            return SimpleNamespace(size=2048, inodes=3)

        return {
            "Stat": lambda request: SimpleNamespace(info=self.snapshot_store.get(request.key)),
            "List": lambda request: [SimpleNamespace(info=list(self.snapshot_store.kept.values()))],
            "Prepare": make(snapshots_pb2.Kind.ACTIVE),
            "View": make(snapshots_pb2.Kind.VIEW),
            "Mounts": mounts,
            "Commit": commit,
            "Remove": lambda request: self.snapshot_store.remove(request.key),
            "Update": lambda request: SimpleNamespace(
                info=self.snapshot_store.change(request.info, list(request.update_mask.paths))
            ),
            "Usage": usage,
        }

    def _apply(self, request: Any) -> Any:
        return SimpleNamespace(applied=SimpleNamespace(digest=request.diff.digest))

    def _tasks(self) -> dict[str, Callable[[Any], Any]]:
        def get(request: Any) -> Any:
            if request.container_id not in self.processes:
                raise NotFound(f"task {request.container_id}: not found")
            return SimpleNamespace(process=self.processes[request.container_id])

        def delete(request: Any) -> Any:
            return SimpleNamespace(exit_status=self.processes.pop(request.container_id).exit_status)

        return {
            "Get": get,
            "List": lambda request: SimpleNamespace(tasks=list(self.processes.values())),
            "Delete": delete,
            "Kill": lambda request: None,
            "Pause": lambda request: None,
            "Resume": lambda request: None,
            "Wait": lambda request: tasks_pb2.WaitResponse(exit_status=0),
        }

    def _leases(self) -> dict[str, Callable[[Any], Any]]:
        def create(request: Any) -> Any:
            lease = leases_pb2.Lease(id=request.id, labels=dict(request.labels))
            return SimpleNamespace(lease=self.lease_store.add(lease))

        return {
            "Create": create,
            "List": lambda request: SimpleNamespace(leases=list(self.lease_store.kept.values())),
            "Delete": lambda request: self.lease_store.remove(request.id),
        }

    def _namespaces(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "Create": lambda request: self.namespace_store.add(request.namespace),
            "List": lambda request: namespace_pb2.ListNamespacesResponse(
                namespaces=list(self.namespace_store.kept.values())
            ),
            "Update": lambda request: self.namespace_store.change(request.namespace, list(request.update_mask.paths)),
            "Delete": lambda request: self.namespace_store.remove(request.name),
        }
