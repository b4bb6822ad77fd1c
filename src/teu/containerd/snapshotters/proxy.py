# SPDX-License-Identifier: Apache-2.0
"""A snapshotter in another program, over containerd's own snapshots API on a socket. Named in the configuration:

    snapshots: {proxies: {stargz: {address: /run/containerd-stargz-grpc/containerd-stargz-grpc.sock}}}

Names are unique for this daemon already; towards the proxy all calls are in one namespace, so that its tree is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from teu.api.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from teu.containerd.core.errors import NotFound, Unimplemented, from_code
from teu.containerd.core.limits import MAX_MESSAGE
from teu.containerd.core.messages import Mount
from teu.containerd.snapshotters.interface import Info, Usage

NAMESPACE = "default"
TIMEOUT = 120  # seconds: a remote snapshotter may fetch before it answers
_HEADERS = (("containerd-namespace", NAMESPACE),)


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.seconds * 1_000_000_000 + stamp.nanos)


def _info(message: Any) -> Info:
    return Info(
        message.name,
        message.parent,
        message.kind,
        dict(message.labels),
        _nanoseconds(message.created_at),
        _nanoseconds(message.updated_at),
    )


class Proxy:
    """The snapshotter at the other end of a socket. Raises the errors that it answers, and Unavailable without it."""

    local = False
    root = ""

    def __init__(self, name: str, address: str, capabilities: tuple[str, ...] = ()) -> None:
        self.name = name
        self.address = address
        self.capabilities = capabilities
        self._channel = grpc.insecure_channel(
            f"unix:{address}",
            options=(("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE)),
        )
        self._stub = snapshots_pb2_grpc.SnapshotsStub(self._channel)

    def _call(self, method: str, request: Any) -> Any:
        request.snapshotter = self.name
        try:
            return getattr(self._stub, method)(request, timeout=TIMEOUT, metadata=_HEADERS)
        except grpc.RpcError as error:
            raise from_code(error.code().value[0], error.details() or f"proxy snapshotter {self.name}") from None

    def stat(self, name: str) -> Info:
        return _info(self._call("Stat", snapshots_pb2.StatSnapshotRequest(key=name)).info)

    def update(self, name: str, labels: dict[str, str]) -> Info:
        request = snapshots_pb2.UpdateSnapshotRequest(info=snapshots_pb2.Info(name=name, labels=labels))
        request.update_mask.paths.append("labels")
        return _info(self._call("Update", request).info)

    def usage(self, name: str) -> Usage:
        answer = self._call("Usage", snapshots_pb2.UsageRequest(key=name))
        return Usage(answer.size, answer.inodes)

    def mounts(self, name: str) -> list[Mount]:
        return list(self._call("Mounts", snapshots_pb2.MountsRequest(key=name)).mounts)

    def prepare(self, name: str, parent: str, labels: dict[str, str]) -> list[Mount]:
        request = snapshots_pb2.PrepareSnapshotRequest(key=name, parent=parent, labels=labels)
        return list(self._call("Prepare", request).mounts)

    def view(self, name: str, parent: str, labels: dict[str, str]) -> list[Mount]:
        request = snapshots_pb2.ViewSnapshotRequest(key=name, parent=parent, labels=labels)
        return list(self._call("View", request).mounts)

    def settle(self, key: str) -> None:
        """Its commit alone makes it durable, at the other end."""

    def commit(self, name: str, key: str, labels: dict[str, str], parent: str = "") -> None:
        self._call("Commit", snapshots_pb2.CommitSnapshotRequest(name=name, key=key, labels=labels, parent=parent))

    def changes(self, name: str) -> str:
        raise NotFound(f"snapshotter {self.name} shows no folders")

    def committed(self, folder: str) -> str:
        return ""

    def remove(self, name: str) -> None:
        self._call("Remove", snapshots_pb2.RemoveSnapshotRequest(key=name))

    def walk(self) -> Iterator[Info]:
        found = []
        try:
            for answer in self._stub.List(
                snapshots_pb2.ListSnapshotsRequest(snapshotter=self.name), timeout=TIMEOUT, metadata=_HEADERS
            ):
                found += [_info(message) for message in answer.info]
        except grpc.RpcError as error:
            raise from_code(error.code().value[0], error.details() or f"proxy snapshotter {self.name}") from None
        return iter(found)

    def cleanup(self) -> None:
        try:
            self._call("Cleanup", snapshots_pb2.CleanupRequest())
        except Unimplemented:
            pass

    def close(self) -> None:
        self._channel.close()
