# SPDX-License-Identifier: Apache-2.0
"""containerd's content store as the builder uses it: core.snapshots.Content.

An ingest is named after what it is of, `buildkit-fetch-DIGEST`, so that one which broke off goes on where it stopped,
also in the next builder's life.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from teu.api.services.content.v1 import content_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import new_id
from teu.buildkit.core.snapshots import Descriptor, Fetch
from teu.buildkit.worker.client import LONG, Client
from teu.buildkit.worker.leases import Leases
from teu.buildkit.worker.names import FETCH
from teu.grpcclient import Stream
from teu.oci import digest as digests

CHUNK = 1 << 20
LOCK_SECONDS = 600.0  # for another client that writes the same
ANSWER_SECONDS = 600.0  # for a blob to be on disk; and for a daemon that takes no byte
FETCH_TRIES = 4  # as often a source may break off


class Exclusive:
    """One thread at a time per name; names that nobody holds cost nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[threading.Lock, list[int]]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with self._lock:
            lock, users = self._held.setdefault(name, (threading.Lock(), [0]))
            users[0] += 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                users[0] -= 1
                if not users[0]:
                    self._held.pop(name, None)


class Present(Exception):
    """The blob is in the store already."""


class Ingest:
    """A blob that is being written. A context manager: what was not committed then stays resumable under `ref`.

    `offset` tells how much of it an earlier writer has left. Raises Present where the expected blob is there."""

    def __init__(
        self,
        client: Client,
        ref: str,
        expected: str = "",
        total: int = 0,
        lease: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._ref, self._expected, self._total, self._labels = ref, expected, total, dict(labels or {})
        self.offset = 0
        until = time.monotonic() + LOCK_SECONDS
        while True:
            self._queue: queue.Queue[Any] = queue.Queue(4)
            self._stream: Stream = client.content.Write(self._requests(self._queue), timeout=None, lease=lease)
            self._answers = iter(self._stream)
            self._queue.put(
                content_pb2.WriteContentRequest(
                    action=content_pb2.STAT, ref=ref, expected=expected, total=total, labels=self._labels
                )
            )
            try:
                self.offset = next(self._answers).offset
                return
            except errors.AlreadyExists:
                self.close()
                raise Present from None
            except errors.Unavailable as error:
                # Another writer holds the reference's lock; the daemon itself being away ends the patience early.
                self.close()
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.1)
            except BaseException:
                self.close()
                raise

    @staticmethod
    def _requests(source: queue.Queue[Any]) -> Iterator[Any]:
        while (request := source.get()) is not None:
            yield request

    def _put(self, request: Any) -> None:
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                self._queue.put(request, timeout=0.5)
                return
            except queue.Full:
                if not self._stream.alive():
                    self._fail()
                if time.monotonic() > until:
                    raise errors.Unavailable(
                        f"containerd has taken nothing of {self._ref} for {ANSWER_SECONDS:.0f} seconds"
                    ) from None

    def _fail(self) -> None:
        for _ in self._answers:
            pass
        raise errors.Unavailable("containerd ended the write of content without an error")

    def write(self, data: bytes) -> None:
        if not self._stream.alive():
            self._fail()
        for start in range(0, len(data), CHUNK):
            piece = data[start : start + CHUNK]
            self._put(
                content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref=self._ref, offset=self.offset, data=piece)
            )
            self.offset += len(piece)

    def commit(self) -> str:
        """Make it a blob: its digest. Raises Present where it came to exist meanwhile: the lease does not hold it."""
        self._put(
            content_pb2.WriteContentRequest(
                action=content_pb2.COMMIT,
                ref=self._ref,
                offset=self.offset,
                total=self._total or self.offset,
                expected=self._expected,
                labels=self._labels,
            )
        )
        try:
            for answer in self._answers:
                if answer.action == content_pb2.COMMIT:
                    return str(answer.digest)
        except errors.AlreadyExists:
            raise Present from None
        finally:
            self.close()
        raise errors.Unavailable("containerd ended the write of content without an answer")

    def close(self) -> None:
        self._stream.cancel()
        while True:
            try:
                self._queue.put_nowait(None)
                return
            except queue.Full:
                with suppress(queue.Empty):
                    self._queue.get_nowait()

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ContentStore:
    """core.snapshots.Content."""

    def __init__(self, client: Client, leases: Leases) -> None:
        self._client = client
        self._leases = leases
        self._exclusive = Exclusive()

    # Reading

    def info(self, digest: str) -> Any:
        """containerd.services.content.v1.Info. Raises NotFound."""
        return self._client.content.Info(content_pb2.InfoRequest(digest=digest)).info

    def has(self, digest: str) -> bool:
        try:
            self.info(digest)
        except errors.NotFound:
            return False
        return True

    def size(self, digest: str) -> int:
        return int(self.info(digest).size)

    def read(self, digest: str, offset: int = 0) -> Iterator[bytes]:
        stream = self._client.content.Read(content_pb2.ReadContentRequest(digest=digest, offset=offset), timeout=LONG)
        try:
            for answer in stream:
                yield answer.data
        finally:
            stream.cancel()

    def read_whole(self, digest: str, limit: int = 32 << 20) -> bytes:
        parts: list[bytes] = []
        size = 0
        for part in self.read(digest):
            size += len(part)
            if size > limit:
                raise errors.ResourceExhausted(f"content {digest} is larger than {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    # Writing

    def write(
        self, chunks: Iterable[bytes], digest: str = "", size: int = 0, labels: Mapping[str, str] | None = None
    ) -> str:
        lease = self._leases.current()
        if not digest and isinstance(chunks, bytes | bytearray):
            chunks = (bytes(chunks),)
        # Without a digest two writers cannot be told apart, and with one a half-written try may be another's.
        ref = self._leases.names.write + new_id()
        try:
            with Ingest(self._client, ref, digest, size, lease, labels) as ingest:
                own = digests.for_digest(digest) if digest else digests.Digester()
                # A blob that another namespace of containerd has is lent to this one: it is there, and is not written.
                there = ingest.offset
                try:
                    for chunk in chunks:
                        own.update(chunk)
                        skipped = min(there, len(chunk))
                        there -= skipped
                        if skipped < len(chunk):
                            ingest.write(chunk[skipped:])
                    if digest and own.digest() != digest:
                        raise errors.FailedPrecondition(f"unexpected digest {own.digest()}, expected {digest}")
                    return ingest.commit()
                except BaseException:
                    ingest.close()
                    self._abort(ref)
                    raise
        except Present:
            found = digest or own.digest()
        self._leases.hold_blob(lease, found)
        if labels:
            self.label(found, labels)
        return found

    def fetch(self, descriptor: Descriptor, fetch: Fetch, progress: Callable[[int, int], None] | None = None) -> None:
        digest, size = str(descriptor["digest"]), int(descriptor.get("size") or 0)
        lease = self._leases.current()
        with self._exclusive(digest):
            if self.has(digest):
                self._leases.hold_blob(lease, digest)
                return
            left = FETCH_TRIES
            at = 0
            while True:
                try:
                    if not self._fetch(descriptor, digest, size, fetch, lease, progress):
                        self._leases.hold_blob(lease, digest)
                    return
                except _Broken as error:
                    # Whoever gives at least something each time may go on.
                    left = FETCH_TRIES if error.offset > at else left - 1
                    at = max(at, error.offset)
                    if left <= 0:
                        raise error.error from None

    def _fetch(
        self,
        descriptor: Descriptor,
        digest: str,
        size: int,
        fetch: Fetch,
        lease: str,
        progress: Callable[[int, int], None] | None,
    ) -> bool:
        """False: another client of containerd was quicker."""
        try:
            with Ingest(self._client, FETCH + digest, digest, size, lease) as ingest:
                if size and ingest.offset > size:
                    self._abort(FETCH + digest)
                    raise errors.FailedPrecondition(f"more than {size} bytes of {digest} were here")
                offset = ingest.offset
                if progress is not None:
                    progress(offset, size)
                if not size or offset < size:
                    try:
                        for chunk in fetch(descriptor, offset):
                            if size and ingest.offset + len(chunk) > size:
                                raise errors.FailedPrecondition(
                                    f"{digest} has more than the {size} bytes that its descriptor says"
                                )
                            ingest.write(chunk)
                            if progress is not None:
                                progress(ingest.offset, size)
                    except (OSError, errors.Unavailable, errors.DeadlineExceeded) as error:
                        raise _Broken(error, ingest.offset) from error
                    if size and ingest.offset < size:
                        raise _Broken(
                            errors.Unavailable(f"{digest} ended after {ingest.offset} of {size} bytes"), ingest.offset
                        )
                try:
                    ingest.commit()
                except errors.FailedPrecondition:
                    self._abort(FETCH + digest)  # it is something else: the next try begins anew
                    raise
                return True
        except Present:
            return False

    def _abort(self, ref: str) -> None:
        with suppress(errors.Error):
            self._client.content.Abort(content_pb2.AbortRequest(ref=ref))

    def label(self, digest: str, labels: Mapping[str, str]) -> None:
        if not labels:
            return
        request = content_pb2.UpdateRequest()
        request.info.digest = digest
        for key, value in labels.items():
            request.info.labels[key] = value
            request.update_mask.paths.append(f"labels.{key}")
        self._client.content.Update(request)

    def sweep(self) -> int:
        """Ingests of a builder that was killed; those that a fetch goes on from stay for a day. How many went."""
        gone, names = 0, self._leases.names
        for status in self._client.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses:
            old = status.updated_at.seconds < time.time() - 24 * 3600
            if status.ref.startswith((names.write, names.diff)) or (status.ref.startswith(FETCH) and old):
                self._abort(status.ref)
                gone += 1
        return gone


class _Broken(Exception):
    """The source broke off after so many bytes of the whole."""

    def __init__(self, error: Exception, offset: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.offset = offset
