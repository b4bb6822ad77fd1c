# SPDX-License-Identifier: Apache-2.0
"""containerd's snapshots and its Diff service, as calls with plain values. Called by the worker's records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from teu.api.services.diff.v1 import diff_pb2
from teu.api.services.snapshots.v1 import snapshots_pb2
from teu.api.types import mount_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Descriptor, Mount
from teu.buildkit.worker.client import LONG, Client
from teu.buildkit.worker.images import descriptor_of

SNAPSHOT_REF = "containerd.io/snapshot.ref"


class Info(NamedTuple):
    name: str
    parent: str
    committed: bool


def mounts_of(messages: Iterable[Any]) -> list[Mount]:
    return [Mount(one.type, one.source, tuple(one.options)) for one in messages]


def messages_of(mounts: Iterable[Mount]) -> list[Any]:
    return [mount_pb2.Mount(type=one.type, source=one.source, options=one.options) for one in mounts]


class Snapshots:
    """Of one snapshotter. Every call may raise errors of core.errors."""

    def __init__(self, client: Client, snapshotter: str) -> None:
        self._client = client
        self.name = snapshotter

    def prepare(self, key: str, parent: str, lease: str, labels: Mapping[str, str] | None = None) -> list[Mount]:
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self.name, key=key, parent=parent, labels=dict(labels or {})
        )
        return mounts_of(self._client.snapshots.Prepare(request, lease=lease).mounts)

    def view(self, key: str, parent: str, lease: str) -> list[Mount]:
        request = snapshots_pb2.ViewSnapshotRequest(snapshotter=self.name, key=key, parent=parent)
        return mounts_of(self._client.snapshots.View(request, lease=lease).mounts)

    def mounts(self, key: str) -> list[Mount]:
        request = snapshots_pb2.MountsRequest(snapshotter=self.name, key=key)
        return mounts_of(self._client.snapshots.Mounts(request).mounts)

    def commit(self, name: str, key: str, lease: str, labels: Mapping[str, str] | None = None) -> None:
        request = snapshots_pb2.CommitSnapshotRequest(
            snapshotter=self.name, name=name, key=key, labels=dict(labels or {})
        )
        self._client.snapshots.Commit(request, timeout=LONG, lease=lease)

    def remove(self, key: str) -> None:
        """Nothing where it is gone. Raises FailedPrecondition while another stands on it."""
        with suppress(errors.NotFound):
            request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.name, key=key)
            self._client.snapshots.Remove(request, timeout=LONG)

    def stat(self, key: str) -> Info | None:
        """None where there is none."""
        try:
            info = self._client.snapshots.Stat(snapshots_pb2.StatSnapshotRequest(snapshotter=self.name, key=key)).info
        except errors.NotFound:
            return None
        return Info(info.name, info.parent, info.kind == snapshots_pb2.COMMITTED)

    def usage(self, key: str) -> int:
        """Bytes of its own."""
        request = snapshots_pb2.UsageRequest(snapshotter=self.name, key=key)
        return int(self._client.snapshots.Usage(request, timeout=LONG).size)

    def all(self) -> Iterator[Info]:
        for answer in self._client.snapshots.List(snapshots_pb2.ListSnapshotsRequest(snapshotter=self.name)):
            for info in answer.info:
                yield Info(info.name, info.parent, info.kind == snapshots_pb2.COMMITTED)

    # Diff

    def apply(self, descriptor: Descriptor, mounts: Sequence[Mount], lease: str) -> str:
        """Unpack a layer onto the mounts: the digest of its tar."""
        request = diff_pb2.ApplyRequest(mounts=messages_of(mounts))
        request.diff.media_type = descriptor["mediaType"]
        request.diff.digest = descriptor["digest"]
        request.diff.size = descriptor["size"]
        return str(self._client.diff.Apply(request, timeout=LONG, lease=lease).applied.digest)

    def diff(self, lower: Sequence[Mount], upper: Sequence[Mount], media_type: str, ref: str, lease: str) -> Descriptor:
        """What upper has changed, as a blob of the content store."""
        request = diff_pb2.DiffRequest(
            left=messages_of(lower), right=messages_of(upper), media_type=media_type, ref=ref
        )
        return descriptor_of(self._client.diff.Diff(request, timeout=LONG, lease=lease).diff)
