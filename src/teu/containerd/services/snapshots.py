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
        """Make a writable snapshot; its mounts. NOT_FOUND without the parent, ALREADY_EXISTS, INVALID_ARGUMENT for a
        snapshotter that is not loaded and for a parent that is not committed."""
        mounts = self._store.prepare(
            call.namespace, request.snapshotter, request.key, request.parent, dict(request.labels), call.lease
        )
        return snapshots_pb2.PrepareSnapshotResponse(mounts=mounts)

    def View(self, request: snapshots_pb2.ViewSnapshotRequest, call: Call) -> snapshots_pb2.ViewSnapshotResponse:
        """Make a snapshot that is read only; its mounts. Errors as those of Prepare."""
        mounts = self._store.view(
            call.namespace, request.snapshotter, request.key, request.parent, dict(request.labels), call.lease
        )
        return snapshots_pb2.ViewSnapshotResponse(mounts=mounts)

    def Mounts(self, request: snapshots_pb2.MountsRequest, call: Call) -> snapshots_pb2.MountsResponse:
        """The mounts of a snapshot. NOT_FOUND; FAILED_PRECONDITION for a committed one."""
        return snapshots_pb2.MountsResponse(mounts=self._store.mounts(call.namespace, request.snapshotter, request.key))

    def Commit(self, request: snapshots_pb2.CommitSnapshotRequest, call: Call) -> empty_pb2.Empty:
        """An active snapshot becomes a committed one under another name: its content is on disk when this answers.
        NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION for one that is not active."""
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
        """Remove a snapshot. NOT_FOUND; FAILED_PRECONDITION while it is a parent."""
        self._store.remove(call.namespace, request.snapshotter, request.key)
        return empty_pb2.Empty()

    def Stat(self, request: snapshots_pb2.StatSnapshotRequest, call: Call) -> snapshots_pb2.StatSnapshotResponse:
        """A snapshot's kind, parent, times and labels. NOT_FOUND."""
        info = self._store.stat(call.namespace, request.snapshotter, request.key)
        return snapshots_pb2.StatSnapshotResponse(info=to_wire(info))

    def Update(self, request: snapshots_pb2.UpdateSnapshotRequest, call: Call) -> snapshots_pb2.UpdateSnapshotResponse:
        """Change the labels that the mask names, or all. NOT_FOUND, INVALID_ARGUMENT for any other field."""
        info = self._store.update(call.namespace, request.snapshotter, request.info, list(request.update_mask.paths))
        return snapshots_pb2.UpdateSnapshotResponse(info=to_wire(info))

    def List(
        self, request: snapshots_pb2.ListSnapshotsRequest, call: Call
    ) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        """The snapshots that one of the filters fits, by their keys, some hundred in a message."""
        batch = []
        for info in self._store.find(call.namespace, request.snapshotter, request.filters):
            batch.append(to_wire(info))
            if len(batch) == _BATCH:
                yield snapshots_pb2.ListSnapshotsResponse(info=batch)
                batch = []
        if batch:
            yield snapshots_pb2.ListSnapshotsResponse(info=batch)

    def Usage(self, request: snapshots_pb2.UsageRequest, call: Call) -> snapshots_pb2.UsageResponse:
        """Bytes and inodes of a snapshot without its parents. NOT_FOUND."""
        usage = self._store.usage(call.namespace, request.snapshotter, request.key)
        return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Cleanup(self, request: snapshots_pb2.CleanupRequest, call: Call) -> empty_pb2.Empty:
        """Have the snapshotter take away what removed snapshots have left. INVALID_ARGUMENT for one that is not
        loaded."""
        if not request.snapshotter:
            raise InvalidArgument("snapshotter argument missing")
        self._store.snapshotter(request.snapshotter).cleanup()
        return empty_pb2.Empty()


def register(server: Server, context: Context) -> None:
    server.add(snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"], Snapshots(context))
