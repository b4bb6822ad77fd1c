# SPDX-License-Identifier: Apache-2.0
"""What an earlier daemon left half made in containerd: its leases, unpacking snapshots, broken ingests.

Called once by images, in the background of a daemon's start. Everything here is named so that it cannot be
another client's: leases `teud-…`, ingests `teu-…`, snapshots `extract-… CHAIN` and `commit-…`. What was made after
the start of this daemon is left alone.
"""

from __future__ import annotations

import contextlib
import logging
import re
from typing import TYPE_CHECKING

from teu.engine import containerd

if TYPE_CHECKING:
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

LEASE = re.compile(r"teud-[0-9a-f]{32}\Z")
SNAPSHOT = re.compile(r"(?:extract-[0-9a-f]{32} sha256:|commit-[0-9a-f]{32}\Z)")
INGEST = re.compile(r"teu-(?:load-|import-|commit-)?[0-9a-f]{32}\Z")


def sweep(engine: Engine, before: float) -> None:
    """Remove what is older than `before` (seconds since the epoch)."""
    try:
        _snapshots(engine, before)
        _ingests(engine, before)
        _leases(engine, before)
    except containerd.Error as error:
        log.warning("what an earlier daemon left in containerd could not be cleaned up: %s", error)


def _leases(engine: Engine, before: float) -> None:
    from teu.api.services.leases.v1 import leases_pb2

    client = engine.containerd
    old = [
        lease.id
        for lease in client.leases.List(leases_pb2.ListRequest()).leases
        if LEASE.match(lease.id) and lease.created_at.seconds < before
    ]
    for position, lease in enumerate(old):
        with contextlib.suppress(containerd.NotFound):
            # With the last one goes what they kept.
            client.leases.Delete(leases_pb2.DeleteRequest(id=lease, sync=position == len(old) - 1))
    if old:
        log.info("%d interrupted operations of an earlier daemon were cleaned up", len(old))


def _snapshots(engine: Engine, before: float) -> None:
    from teu.api.services.snapshots.v1 import snapshots_pb2

    client, snapshotter = engine.containerd, engine.config["storage-driver"]
    old = []
    for answer in client.snapshots.List(snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter)):
        for info in answer.info:
            if SNAPSHOT.match(info.name) and info.kind != snapshots_pb2.COMMITTED and info.created_at.seconds < before:
                old.append(info.name)
    for name in old:
        with contextlib.suppress(containerd.NotFound, containerd.FailedPrecondition):
            client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=name))


def _ingests(engine: Engine, before: float) -> None:
    from teu.api.services.content.v1 import content_pb2

    client = engine.containerd
    for status in client.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses:
        ours = INGEST.match(status.ref) or status.ref.startswith("layer-sha256:")
        if ours and status.updated_at.seconds < before:
            with contextlib.suppress(containerd.Error):
                client.content.Abort(content_pb2.AbortRequest(ref=status.ref))
