# SPDX-License-Identifier: Apache-2.0
"""Snapshots: by name of the snapshotter in each request."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import empty_pb2

from teu.api.services.snapshots.v1 import snapshots_pb2
from teu.containerd.core.errors import InvalidArgument
from teu.containerd.server.rpc import Call, Server
from teu.containerd.state import Context
from teu.containerd.stores.snapshots import to_wire

_BATCH = 100


class Snapshots:
    """containerd.services.snapshots.v1.Snapshots over `stores.snapshots`, whose errors it answers."""

    def __init__(self, context: Context) -> None:
        self._store = context.snapshots
        self._collector = context.collector

    def Prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, call: Call
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        mounts = self._store.prepare(
            call.namespace, request.snapshotter, request.key, request.parent, dict(request.labels), call.lease
        )
        return snapshots_pb2.PrepareSnapshotResponse(mounts=mounts)

    def View(self, request: snapshots_pb2.ViewSnapshotRequest, call: Call) -> snapshots_pb2.ViewSnapshotResponse:
        mounts = self._store.view(
            call.namespace, request.snapshotter, request.key, request.parent, dict(request.labels), call.lease
        )
        return snapshots_pb2.ViewSnapshotResponse(mounts=mounts)

    def Mounts(self, request: snapshots_pb2.MountsRequest, call: Call) -> snapshots_pb2.MountsResponse:
        return snapshots_pb2.MountsResponse(mounts=self._store.mounts(call.namespace, request.snapshotter, request.key))

    def Commit(self, request: snapshots_pb2.CommitSnapshotRequest, call: Call) -> empty_pb2.Empty:
        self._store.commit(
            call.namespace,
            request.snapshotter,
            request.name,
            request.key,
            dict(request.labels),
            request.parent,
            call.lease,
        )
        return empty_pb2.Empty()

    def Remove(self, request: snapshots_pb2.RemoveSnapshotRequest, call: Call) -> empty_pb2.Empty:
        self._store.remove(call.namespace, request.snapshotter, request.key)
        return empty_pb2.Empty()

    def Stat(self, request: snapshots_pb2.StatSnapshotRequest, call: Call) -> snapshots_pb2.StatSnapshotResponse:
        info = self._store.stat(call.namespace, request.snapshotter, request.key)
        return snapshots_pb2.StatSnapshotResponse(info=to_wire(info))

    def Update(self, request: snapshots_pb2.UpdateSnapshotRequest, call: Call) -> snapshots_pb2.UpdateSnapshotResponse:
        info = self._store.update(call.namespace, request.snapshotter, request.info, list(request.update_mask.paths))
        return snapshots_pb2.UpdateSnapshotResponse(info=to_wire(info))

    def List(
        self, request: snapshots_pb2.ListSnapshotsRequest, call: Call
    ) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        batch = []
        for info in self._store.find(call.namespace, request.snapshotter, request.filters):
            batch.append(to_wire(info))
            if len(batch) == _BATCH:
                yield snapshots_pb2.ListSnapshotsResponse(info=batch)
                batch = []
        if batch:
            yield snapshots_pb2.ListSnapshotsResponse(info=batch)

    def Usage(self, request: snapshots_pb2.UsageRequest, call: Call) -> snapshots_pb2.UsageResponse:
        usage = self._store.usage(call.namespace, request.snapshotter, request.key)
        return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Cleanup(self, request: snapshots_pb2.CleanupRequest, call: Call) -> empty_pb2.Empty:
        if not request.snapshotter:
            raise InvalidArgument("snapshotter argument missing")
        self._store.snapshotter(request.snapshotter).cleanup()
        return empty_pb2.Empty()


def register(server: Server, context: Context) -> None:
    server.add(snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"], Snapshots(context))
