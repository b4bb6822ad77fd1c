# SPDX-License-Identifier: Apache-2.0
"""The way to containerd's gRPC API: stubs on one channel, the namespace and the lease in every call's headers, errors
in the words that ctr's users know. Made by `main`, used by every command."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from teu.api.services.containers.v1 import containers_pb2, containers_pb2_grpc
from teu.api.services.content.v1 import content_pb2, content_pb2_grpc
from teu.api.services.diff.v1 import diff_pb2, diff_pb2_grpc
from teu.api.services.events.v1 import events_pb2, events_pb2_grpc
from teu.api.services.images.v1 import images_pb2, images_pb2_grpc
from teu.api.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc
from teu.api.services.leases.v1 import leases_pb2, leases_pb2_grpc
from teu.api.services.namespaces.v1 import namespace_pb2, namespace_pb2_grpc
from teu.api.services.sandbox.v1 import sandbox_pb2_grpc
from teu.api.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from teu.api.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from teu.api.services.version.v1 import version_pb2, version_pb2_grpc
from teu.ctr.errors import AlreadyExists, CommandError, Locked, NotFound, Unimplemented
from teu.oci.labels import expiring

__all__ = [
    "Client",
    "containers_pb2",
    "content_pb2",
    "diff_pb2",
    "events_pb2",
    "images_pb2",
    "introspection_pb2",
    "leases_pb2",
    "namespace_pb2",
    "snapshots_pb2",
    "tasks_pb2",
    "version_pb2",
]

WORDS = {
    grpc.StatusCode.NOT_FOUND: "not found",
    grpc.StatusCode.ALREADY_EXISTS: "already exists",
    grpc.StatusCode.INVALID_ARGUMENT: "invalid argument",
    grpc.StatusCode.FAILED_PRECONDITION: "failed precondition",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.UNIMPLEMENTED: "not implemented",
    grpc.StatusCode.DEADLINE_EXCEEDED: "context deadline exceeded",
    grpc.StatusCode.CANCELLED: "context canceled",
    grpc.StatusCode.UNKNOWN: "unknown",
}
LEASE_SECONDS = 24 * 3600
OPTIONS = [("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 16 << 20)]


def explained(error: grpc.RpcError) -> CommandError:
    text, code = str(error.details()), error.code()
    word = WORDS.get(code, "")
    if word and text != word:
        text = f"{text.removesuffix(': ' + word)}: {word}"
    if code == grpc.StatusCode.UNAVAILABLE and "locked" in text:  # there is no code of its own for it
        return Locked(text)
    kinds = {
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
        grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    }
    return kinds.get(code, CommandError)(text)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Calls in this context raise CommandError (NotFound, AlreadyExists, Locked, Unimplemented), never grpc's own."""
    try:
        yield
    except grpc.RpcError as error:
        raise explained(error) from None


class Requests:
    """The requests of a stream. grpc has no words for what goes wrong where they come from: `finish` raises it."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._problem: BaseException | None = None

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._source
        except Exception as error:
            self._problem = error  # and the stream ends where it is

    def finish(self) -> None:
        if self._problem is not None:
            raise self._problem


class Stub:
    """A generated stub whose calls carry our headers and raise our errors. Streams are returned as they are."""

    def __init__(self, stub: Any, client: Client) -> None:
        self._stub = stub
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)

        def call(request: Any, timeout: float | None = None) -> Any:
            with errors():
                return method(request, metadata=self._client.headers(), timeout=timeout or self._client.timeout)

        return call

    def future(self, name: str, request: Any) -> Any:
        return getattr(self._stub, name).future(request, metadata=self._client.headers())


class Client:
    def __init__(self, address: str, namespace: str, timeout: float = 0.0, connect_timeout: float = 0.0) -> None:
        self.namespace = namespace
        self.timeout = timeout or None
        self.lease = ""
        path = address.removeprefix("unix://")
        # grpc would try again and again: tell at once what is wrong with the socket.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(connect_timeout or 10)
            try:
                probe.connect(path)
            except OSError as error:
                remedy = ": is the daemon running?"
                if isinstance(error, PermissionError):
                    remedy = ": the socket is for root"
                reason = (error.strerror or str(error)).lower()
                raise CommandError(f'failed to dial "{path}": {reason}{remedy}') from None
        self.channel = grpc.insecure_channel("unix:" + path, options=OPTIONS)
        self.containers = Stub(containers_pb2_grpc.ContainersStub(self.channel), self)
        self.content = Stub(content_pb2_grpc.ContentStub(self.channel), self)
        self.diff = Stub(diff_pb2_grpc.DiffStub(self.channel), self)
        self.events = Stub(events_pb2_grpc.EventsStub(self.channel), self)
        self.images = Stub(images_pb2_grpc.ImagesStub(self.channel), self)
        self.introspection = Stub(introspection_pb2_grpc.IntrospectionStub(self.channel), self)
        self.leases = Stub(leases_pb2_grpc.LeasesStub(self.channel), self)
        self.namespaces = Stub(namespace_pb2_grpc.NamespacesStub(self.channel), self)
        self.sandbox_controller = Stub(sandbox_pb2_grpc.ControllerStub(self.channel), self)
        self.sandboxes = Stub(sandbox_pb2_grpc.StoreStub(self.channel), self)
        self.snapshots = Stub(snapshots_pb2_grpc.SnapshotsStub(self.channel), self)
        self.tasks = Stub(tasks_pb2_grpc.TasksStub(self.channel), self)
        self.version = Stub(version_pb2_grpc.VersionStub(self.channel), self)

    def headers(self) -> list[tuple[str, str]]:
        headers = [("containerd-namespace", self.namespace)]
        if self.lease:
            headers.append(("containerd-lease", self.lease))
        return headers

    @contextlib.contextmanager
    def leased(self) -> Iterator[None]:
        """What is made in this context is safe from the garbage collector until the context ends."""
        request = leases_pb2.CreateRequest(id="teu-ctr-" + os.urandom(6).hex(), labels=expiring(LEASE_SECONDS))
        self.lease = self.leases.Create(request).lease.id
        try:
            yield
        finally:
            lease, self.lease = self.lease, ""
            self.leases.Delete(leases_pb2.DeleteRequest(id=lease))

    def hold(self, kind: str, name: str) -> None:
        """Have the lease of this context keep what others made, "content" or "snapshots/…", once it is there."""
        if self.lease:
            resource = leases_pb2.Resource(id=name, type=kind)
            self.leases.AddResource(leases_pb2.AddResourceRequest(id=self.lease, resource=resource))


def local_time(stamp: Timestamp) -> float:
    return float(stamp.seconds) + float(stamp.nanos) / 1e9


def go_time(stamp: Timestamp) -> str:
    """As Go prints a moment."""
    digits = f".{stamp.nanos:09d}".rstrip("0") if stamp.nanos else ""
    return time.strftime(f"%Y-%m-%d %H:%M:%S{digits} +0000 UTC", time.gmtime(stamp.seconds))


def rfc3339(stamp: Timestamp) -> str:
    """With as many digits of a second as are needed, as Go's JSON has it."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stamp.seconds))
    return text + (f".{stamp.nanos:09d}".rstrip("0") if stamp.nanos else "") + "Z"
