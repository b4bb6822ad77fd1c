# SPDX-License-Identifier: Apache-2.0
"""containerd's content store as the engine uses it: read blobs, write them piece by piece, label them.

Called by pull, push, load, save, import and commit. Blobs that are not referenced from an image are
kept only by the lease they were written under; `label` makes a parent keep its children:

    index     containerd.io/gc.ref.content.m.N              manifest
    manifest  containerd.io/gc.ref.content.config, .l.N     configuration, layers
    config    containerd.io/gc.ref.snapshot.SNAPSHOTTER     the unpacked top layer
    any       containerd.io/distribution.source.HOST        repositories it was pulled from
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from teu import grpcclient
from teu.engine.backend import containerd
from teu.engine.core.departure import NOBODY, Departure
from teu.engine.core.errors import EngineError
from teu.oci import digest as digests
from teu.oci.labels import CONTENT, SNAPSHOT, SOURCE, keeping

if TYPE_CHECKING:
    from teu.api.services.content.v1 import content_pb2
    from teu.engine.backend.containerd import Client
    from teu.oci.image_spec import Descriptor

CHUNK = 1 << 20
SOURCE_LABEL = f"{SOURCE}."
LAYER_INGEST = "layer-"  # and a digest: what has come of a layer so far
GC_CONTENT = CONTENT
GC_SNAPSHOT = f"{SNAPSHOT}."
LOCK_PATIENCE = 600.0
ANSWER_SECONDS = 600.0  # for a blob to be on disk; and for a daemon that takes no byte


class Present(Exception):
    """The blob is in the store already."""


class Writer:
    """One ingest. Use as a context manager: what was not committed then stays resumable under `ref`.

    `offset` tells how much of it an earlier writer has left; the caller goes on from there.
    Raises Present when the expected blob exists. Where the client that it is for leaves, Left.
    """

    def __init__(
        self,
        client: Client,
        ref: str,
        expected: str = "",
        total: int = 0,
        lease: str | None = None,
        labels: dict[str, str] | None = None,
        departure: Departure = NOBODY,
    ) -> None:
        from teu.api.services.content.v1 import content_pb2

        self._messages = content_pb2
        self.existed = False
        self._client = client
        self._departure = departure
        self._ref, self._expected, self._total, self._labels = ref, expected, total, labels or {}
        patience = time.monotonic() + LOCK_PATIENCE
        client.working.add(ref)
        self._works = True
        while True:
            self._queue: queue.Queue[content_pb2.WriteContentRequest | None] = queue.Queue(4)
            self._stream = client.content.Write(self._requests(), timeout=None, lease=lease)
            self._responses = iter(self._stream)
            try:
                self._queue.put(
                    content_pb2.WriteContentRequest(
                        action=content_pb2.STAT, ref=ref, expected=expected, total=total, labels=self._labels
                    )
                )
                with departure.during(self._stream.cancel, ANSWER_SECONDS):
                    self.offset = next(self._responses).offset
                return
            except containerd.AlreadyExists:
                self.close()
                raise Present from None
            except containerd.Unavailable as error:
                # Another writer holds the reference's lock; the daemon itself being away ends the patience early.
                if "locked" not in str(error) or time.monotonic() > patience or departure.left():
                    self.close()
                    departure.check()
                    raise
                self._end()
                time.sleep(0.1)
            except BaseException:
                self.close()
                raise

    def _requests(self) -> Iterator[content_pb2.WriteContentRequest]:
        source = self._queue
        while (request := source.get()) is not None:
            yield request

    def _put(self, request: content_pb2.WriteContentRequest) -> None:
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                self._queue.put(request, timeout=0.5)
                return
            except queue.Full:
                self._departure.check()
                if not self._stream.alive():
                    self._fail()
                if time.monotonic() > until:
                    raise containerd.Unavailable(
                        f"containerd has taken nothing of {self._ref} for {ANSWER_SECONDS:.0f} seconds"
                    ) from None

    def _fail(self) -> None:
        for _ in self._responses:
            pass
        raise containerd.Unavailable("containerd ended the write of content without an error")

    def write(self, data: bytes | memoryview) -> None:
        if not self._stream.alive():
            self._fail()
        for start in range(0, len(data), CHUNK):
            piece = bytes(data[start : start + CHUNK]) if len(data) > CHUNK else bytes(data)
            self._put(
                self._messages.WriteContentRequest(
                    action=self._messages.WRITE, ref=self._ref, offset=self.offset, data=piece
                )
            )
            self.offset += len(piece)

    def commit(self) -> str:
        """Make it a blob; returns the digest. One that came to exist meanwhile sets `existed`: then the lease
        does not keep it, and the digest is empty where none was expected."""
        self._put(
            self._messages.WriteContentRequest(
                action=self._messages.COMMIT,
                ref=self._ref,
                offset=self.offset,
                total=self.offset,
                expected=self._expected,
                labels=self._labels,
            )
        )
        digest = self._expected
        try:
            with self._departure.during(self._stream.cancel, ANSWER_SECONDS):
                for response in self._responses:
                    if response.action == self._messages.COMMIT:
                        digest = response.digest
                        break
        except containerd.AlreadyExists:
            self.existed = True
        finally:
            self.close()
        return str(digest)

    def close(self) -> None:
        if self._works:
            self._works = False
            self._client.working.remove(self._ref)
        self._end()

    def _end(self) -> None:
        self._stream.cancel()
        while True:
            try:
                self._queue.put_nowait(None)
                return
            except queue.Full:
                try:
                    self._queue.get_nowait()
                except queue.Empty:
                    pass

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def abort(client: Client, ref: str) -> None:
    from teu.api.services.content.v1 import content_pb2

    try:
        client.content.Abort(content_pb2.AbortRequest(ref=ref))
    except containerd.Error:
        pass


def abort_layers(client: Client) -> int:
    """Give up what has come of layers whose pull ended early; the bytes that this frees."""
    from teu.api.services.content.v1 import content_pb2

    freed = 0
    for status in client.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses:
        if status.ref.startswith(LAYER_INGEST) and status.ref not in client.working:
            abort(client, status.ref)
            freed += int(status.offset)
    return freed


def keep(client: Client, digest: str, lease: str) -> None:
    """Let the lease keep a blob. Whoever wants to find it there keeps it first, and looks then."""
    from teu.api.services.leases.v1 import leases_pb2

    request = leases_pb2.AddResourceRequest(id=lease)
    request.resource.id = digest
    request.resource.type = "content"
    try:
        client.leases.AddResource(request)
    except containerd.AlreadyExists:
        pass


def put(client: Client, data: bytes, lease: str | None, labels: dict[str, str] | None = None) -> str:
    """Store a small blob; returns its digest."""
    digest = digests.of(data)
    try:
        with Writer(client, f"teu-{uuid.uuid4().hex}", digest, len(data), lease, labels) as writer:
            if writer.offset < len(data):
                writer.write(data[writer.offset :])
            writer.commit()
            if not writer.existed:
                return digest
    except Present:
        pass
    if lease:
        keep(client, digest, lease)
    if labels:
        label(client, digest, labels)
    return digest


def read(client: Client, digest: str, limit: int = 16 << 20) -> bytes:
    """A whole small blob."""
    parts = []
    size = 0
    for part in chunks(client, digest, timeout=grpcclient.DEADLINE):
        size += len(part)
        if size > limit:
            raise containerd.InvalidArgument(f"content {digest} is larger than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def chunks(
    client: Client, digest: str, offset: int = 0, departure: Departure = NOBODY, timeout: float | None = None
) -> Iterator[bytes]:
    from teu.api.services.content.v1 import content_pb2

    stream = client.content.Read(content_pb2.ReadContentRequest(digest=digest, offset=offset), timeout)
    try:
        with departure.during(stream.cancel):
            for response in stream:
                yield response.data
    finally:
        stream.cancel()


def info(client: Client, digest: str) -> content_pb2.Info:
    from teu.api.services.content.v1 import content_pb2

    return client.content.Info(content_pb2.InfoRequest(digest=digest)).info


def check_sizes(client: Client, descriptors: Iterable[Descriptor]) -> None:
    """That the blobs which are here have the sizes that their descriptors say: of what was here before, nobody has
    looked. Raises EngineError where one has not."""
    for descriptor in descriptors:
        try:
            found = info(client, descriptor["digest"]).size
        except containerd.NotFound:
            continue
        if found != descriptor["size"]:
            raise EngineError(
                f"blob {descriptor['digest']} has {found} bytes, its descriptor says {descriptor['size']}: the image "
                "is damaged where it comes from"
            )


def exists(client: Client, digest: str) -> bool:
    try:
        info(client, digest)
    except containerd.NotFound:
        return False
    return True


def label(client: Client, digest: str, labels: dict[str, str]) -> None:
    """Set these labels and leave the others; an empty value takes one away."""
    if not labels:
        return
    from teu.api.services.content.v1 import content_pb2

    request = content_pb2.UpdateRequest()
    request.info.digest = digest
    for key, value in labels.items():
        request.info.labels[key] = value
        request.update_mask.paths.append(f"labels.{key}")
    client.content.Update(request)


def children_labels(document: Mapping[str, Any]) -> dict[str, str]:
    """The labels by which a manifest or an index keeps what it names."""
    return keeping(document.get("manifests") or (), document.get("config"), document.get("layers") or ())


def source_label(domain: str, path: str, current: str = "") -> dict[str, str]:
    """The label that says where a blob was pulled from, added to what is there."""
    paths = sorted({path, *(p for p in current.split(",") if p)})
    return {SOURCE_LABEL + domain: ",".join(paths)}
