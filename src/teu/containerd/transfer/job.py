# SPDX-License-Identifier: Apache-2.0
"""What every transfer shares: the lease that holds its parts, its progress, and the graph of an image's content.

Transfers run on threads; streams to the client live on the event loop, which `ClientReader` and the like bridge.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from teu.api.services.content.v1 import content_pb2
from teu.api.services.images.v1 import images_pb2
from teu.api.services.leases.v1 import leases_pb2
from teu.api.types import descriptor_pb2
from teu.api.types.transfer import progress_pb2, streaming_pb2
from teu.containerd.core.errors import AlreadyExists, Cancelled, FailedPrecondition, InvalidArgument, NotFound
from teu.containerd.core.streams import Stream, Streams
from teu.containerd.layers.run import Layers
from teu.containerd.stores.content import Content
from teu.containerd.stores.images import Images
from teu.containerd.stores.leases import Leases
from teu.containerd.stores.snapshots import Snapshots
from teu.oci import image_spec
from teu.oci.labels import CONTENT, SNAPSHOT, UNCOMPRESSED, expiring

Json = dict[str, Any]
T = TypeVar("T")

DEPTH_LIMIT = 32  # of documents that name documents
_LEASE_SECONDS = 24 * 3600
_WINDOW = 64 << 10
_CHUNK = 32 << 10


@dataclass(frozen=True, slots=True)
class Parts:
    """What transfers work on."""

    content: Content
    images: Images
    leases: Leases
    snapshots: Snapshots
    layers: Layers
    streams: Streams
    snapshotter: str  # where a request names none
    policy: str  # file that says which images of registries are let in; "" for none


class Job:
    """One transfer in one namespace; its methods block, and are called on a thread."""

    def __init__(
        self,
        parts: Parts,
        namespace: str,
        loop: asyncio.AbstractEventLoop,
        progress: Stream | None,
        cancelled: Callable[[], bool],
    ) -> None:
        """`loop` is where the streams live, `progress` the one on which the client is told, `cancelled` says whether
        the client has left."""
        self.parts = parts
        self.namespace = namespace
        self._loop = loop
        self.lease = ""
        self.seen: set[str] = set()  # documents that were gone through: many may name the same one
        self._progress = progress
        self._cancelled = cancelled

    def check(self) -> None:
        """Cancelled where the client has left."""
        if self._cancelled():
            raise Cancelled("transfer")

    @contextmanager
    def ending(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Within the block `cancel` is called, by another thread, when the client has left."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.25):
                if self._cancelled():
                    cancel()
                    return

        threading.Thread(target=watch, name="transfer-watch", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def descend(self, descriptor: image_spec.Descriptor, depth: int) -> bool:
        """Whether to go into a document, which is on the level `depth`: once, and not for ever."""
        if depth > DEPTH_LIMIT:
            raise InvalidArgument(f"{descriptor['digest']}: indexes in indexes, more than {DEPTH_LIMIT} deep")
        if descriptor["digest"] in self.seen:
            return False
        self.seen.add(descriptor["digest"])
        return True

    def on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that runs on the event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def tell(
        self,
        event: str,
        name: str = "",
        *,
        done: int = 0,
        total: int = 0,
        descriptor: image_spec.Descriptor | None = None,
        parents: Iterable[str] = (),
    ) -> None:
        """Tell the client of the progress, `done` of `total` bytes; Cancelled where it has left."""
        self.check()
        if self._progress is None:
            return
        message = progress_pb2.Progress(event=event, name=name, progress=done, total=total, parents=list(parents))
        if descriptor is not None:
            message.desc.CopyFrom(to_wire(descriptor))
        self.on_loop(self._progress.send(message))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Everything made within is kept from the garbage collection until the end."""
        id = f"transfer-{time.time_ns()}-{os.urandom(3).hex()}"
        self.parts.leases.create(self.namespace, id, expiring(_LEASE_SECONDS))
        self.lease = id
        try:
            yield
        finally:
            with suppress(NotFound):
                self.parts.leases.delete(self.namespace, id)

    # Content

    def read(self, digest: str, limit: int = image_spec.CONFIG_SIZE_LIMIT) -> bytes:
        """The first `limit` bytes of a blob."""
        fd = self.parts.content.open(self.namespace, digest)
        with open(fd, "rb") as file:
            return file.read(limit + 1)[:limit]

    def document(self, descriptor: image_spec.Descriptor) -> Json:
        """A blob that is a JSON object."""
        return image_spec.decode(self.read(descriptor["digest"]), descriptor["digest"])

    def children(self, descriptor: image_spec.Descriptor) -> list[image_spec.Descriptor]:
        """What a manifest or an index refers to, in the order of the document."""
        kind = descriptor["mediaType"]
        if kind in image_spec.INDEXES:
            return list(image_spec.index(self.document(descriptor))["manifests"])
        if kind in image_spec.MANIFESTS:
            document = image_spec.manifest(self.document(descriptor))
            return [document["config"], *document["layers"]]
        return []

    def label(self, digest: str, labels: dict[str, str]) -> None:
        """Add labels to a blob."""
        wanted = content_pb2.Info(digest=digest, labels=labels)
        self.parts.content.update(self.namespace, wanted, [f"labels.{key}" for key in labels])

    def label_children(self, descriptor: image_spec.Descriptor, children: list[image_spec.Descriptor]) -> None:
        """The references that keep the children as long as the parent, under the keys that containerd's clients use."""
        labels: dict[str, str] = {}
        counts: dict[str, int] = {}
        for child in children:
            kind = child["mediaType"]
            if kind in image_spec.CONFIGS:
                labels[f"{CONTENT}.config"] = child["digest"]
                continue
            prefix = "l." if image_spec.is_layer(kind) else "m."
            number = counts.get(prefix, 0)
            counts[prefix] = number + 1
            labels[f"{CONTENT}.{prefix}{number}"] = child["digest"]
        if labels:
            self.label(descriptor["digest"], labels)

    def wanted_children(
        self, descriptor: image_spec.Descriptor, platforms: list[image_spec.Platform], limit: int
    ) -> list[image_spec.Descriptor]:
        """The children of a document; of an index, for each platform the best of its manifests, at most `limit` (0:
        all).

        Raises NotFound where there is none for any of the platforms."""
        children = self.children(descriptor)
        if descriptor["mediaType"] not in image_spec.INDEXES:
            return children
        return wanted_of(descriptor, children, platforms, limit)

    # Images

    def manifest_for(self, target: image_spec.Descriptor, platform: image_spec.Platform) -> image_spec.Descriptor:
        """image_spec.Descriptor of the manifest of `target` that runs on `platform`."""
        while target["mediaType"] in image_spec.INDEXES:
            found = [one for one in image_spec.choose(self.children(target), platform) if self._here(one)]
            if not found:
                raise NotFound(f"{target['digest']} has no manifest for platform {platform}")
            target = found[0]
        return target

    def _here(self, descriptor: image_spec.Descriptor) -> bool:
        try:
            self.parts.content.info(self.namespace, descriptor["digest"])
        except NotFound:
            return False
        return True

    def store(self, name: str, target: image_spec.Descriptor, labels: dict[str, str]) -> None:
        """Name an image, in place of what had the name."""
        image = images_pb2.Image(name=name, labels=labels, target=to_wire(target))
        try:
            self.parts.images.create(self.namespace, image, lease=self.lease)
        except AlreadyExists:
            self.parts.images.update(self.namespace, image, (), lease=self.lease)
        self.tell("saved", name)

    def unpack(self, target: image_spec.Descriptor, platform: image_spec.Platform, snapshotter: str) -> None:
        """The layers of the platform's manifest, as a chain of committed snapshots."""
        snapshotter = snapshotter or self.parts.snapshotter
        manifest = self.manifest_for(target, platform)
        document = image_spec.manifest(self.document(manifest))
        if not image_spec.is_image(document):
            return
        config = image_spec.config(self.document(document["config"]), len(document["layers"]))
        chains = image_spec.chain_ids(config["rootfs"]["diff_ids"])
        parent = ""
        for layer, diff_id, chain in zip(document["layers"], config["rootfs"]["diff_ids"], chains):
            self.check()
            if not self._snapshot_exists(snapshotter, chain):
                self._unpack_layer(layer, diff_id, parent, chain, snapshotter)
            parent = chain
        if chains:
            self.label(document["config"]["digest"], {f"{SNAPSHOT}.{snapshotter}": chains[-1]})

    def _snapshot_exists(self, snapshotter: str, chain: str) -> bool:
        """If so, it stays: the lease has it before anybody looks, or it might go in between."""
        resource = leases_pb2.Resource(type=f"snapshots/{snapshotter}", id=chain)
        self.parts.leases.add(self.namespace, self.lease, resource)
        try:
            self.parts.snapshots.stat(self.namespace, snapshotter, chain)
        except NotFound:
            return False
        return True

    def _unpack_layer(
        self, layer: image_spec.Descriptor, diff_id: str, parent: str, chain: str, snapshotter: str
    ) -> None:
        snapshots, content = self.parts.snapshots, self.parts.content
        key = f"extract-{time.time_ns()}-{os.urandom(3).hex()} {chain}"
        labels = {"containerd.io/snapshot.ref": chain}
        try:
            mounts = snapshots.prepare(self.namespace, snapshotter, key, parent, labels, self.lease)
        except AlreadyExists:
            return  # a remote snapshotter had it
        try:
            self.tell("extracting", chain, descriptor=layer)
            blob = content.open(self.namespace, layer["digest"])
            try:
                answer = self.parts.layers.apply(blob, layer["digest"], mounts, cancelled=self._cancelled)
            finally:
                os.close(blob)
            if answer["digest"] != diff_id:
                raise FailedPrecondition(
                    f"wrong diff id calculated on extraction {answer['digest']}, expected {diff_id}"
                )
            with suppress(AlreadyExists):
                snapshots.commit(self.namespace, snapshotter, chain, key, labels, lease=self.lease)
                key = ""
        finally:
            if key:
                with suppress(NotFound):
                    snapshots.remove(self.namespace, snapshotter, key)
        self.label(layer["digest"], {UNCOMPRESSED: diff_id})
        self.tell("extracted", chain, descriptor=layer)


def wanted_of(
    index: image_spec.Descriptor,
    entries: list[image_spec.Descriptor],
    platforms: list[image_spec.Platform],
    limit: int,
) -> list[image_spec.Descriptor]:
    """Of an index with these entries the manifests to be moved: see `Job.wanted_children`."""
    if not platforms:
        return entries
    found: list[image_spec.Descriptor] = []
    for platform in platforms:
        best = image_spec.choose(entries, platform)
        found += [one for one in (best[:limit] if limit else best) if one not in found]
    if not found:
        names = ", ".join(map(str, platforms))
        raise NotFound(f"{index['digest']} has no manifest for platform {names}")
    return found


def to_wire(descriptor: image_spec.Descriptor) -> Any:
    """containerd.types.Descriptor of a descriptor."""
    return descriptor_pb2.Descriptor(
        media_type=descriptor["mediaType"],
        digest=descriptor["digest"],
        size=descriptor["size"],
        annotations=descriptor.get("annotations") or {},
    )


def from_wire(message: Any) -> image_spec.Descriptor:
    """The descriptor of a containerd.types.Descriptor."""
    return {"mediaType": message.media_type, "digest": message.digest, "size": message.size}


def platforms_of(messages: Iterable[Any]) -> list[image_spec.Platform]:
    """Of containerd.types.Platform messages."""
    return [image_spec.Platform(one.os, one.architecture, one.variant) for one in messages]


def own_names(destination: Any, digest: str) -> list[str]:
    """The names that a store gives on its own, whatever it is that comes; of an archive, that is its index."""
    names = [destination.name] if destination.name else []
    for one in destination.extra_references:
        if not one.is_prefix:
            names.append(f"{one.name}@{digest}" if one.add_digest else one.name)
    return names


def in_parallel(pool_size: int, calls: Sequence[Callable[[], None]]) -> None:
    """Run them side by side; the first failure is raised when all have ended."""
    if len(calls) < 2:
        for call in calls:
            call()
        return
    with ThreadPoolExecutor(pool_size, thread_name_prefix="transfer") as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


class ClientReader(io.RawIOBase):
    """What a client sends on a stream, as a file. Windows pace it: no more is under way than we have room for."""

    def __init__(self, job: Job, stream: Stream) -> None:
        self._job = job
        self._stream = stream
        self._data = b""
        self._window = 0
        self._ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return b"".join(iter(lambda: self.read(1 << 20), b""))
        while not self._data and not self._ended:
            self._data = self._job.on_loop(self._next())
            self._ended = not self._data
        data, self._data = self._data[:size], self._data[size:]
        return data

    async def _next(self) -> bytes:
        while True:
            if self._window < _WINDOW:
                await self._stream.send(streaming_pb2.WindowUpdate(update=_WINDOW))
                self._window += _WINDOW
            message = await self._stream.receive()
            if message is None:
                return b""
            if message.type_url.rpartition("/")[2] != streaming_pb2.Data.DESCRIPTOR.full_name:
                raise InvalidArgument(f"unexpected message {message.type_url} on a data stream")
            data: bytes = streaming_pb2.Data.FromString(message.value).data
            self._window -= len(data)
            if data:
                return data

    def finish(self) -> None:
        self._job.on_loop(self._stream.close())


class ClientWriter:
    """The other direction: bytes to a client's stream, within the windows that it grants."""

    def __init__(self, job: Job, stream: Stream) -> None:
        self._job = job
        self._stream = stream
        self._room = 0

    def write(self, data: bytes) -> None:
        self._job.check()
        self._job.on_loop(self._send(data))

    async def _send(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            while self._room <= 0:
                message = await self._stream.receive()
                if message is None:
                    raise Cancelled("the receiver of the stream has left")
                if message.type_url.rpartition("/")[2] == streaming_pb2.WindowUpdate.DESCRIPTOR.full_name:
                    self._room += streaming_pb2.WindowUpdate.FromString(message.value).update
            take = min(_CHUNK, self._room, len(data) - at)
            await self._stream.send(streaming_pb2.Data(data=data[at : at + take]))
            self._room -= take
            at += take

    def finish(self) -> None:
        self._job.on_loop(self._stream.close())
