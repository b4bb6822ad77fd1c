# SPDX-License-Identifier: Apache-2.0
"""What was left half made in containerd: leases, unpacking snapshots, broken ingests.

By an earlier daemon that was killed, or by this one when containerd died under an operation and took the
operation's own clean-up with it. Started by the daemon, in the background: at the start, soon after it once more
(containerd may still have been busy with the old daemon's last request), and whenever something broke
(`Client.untidy`).

Everything here is named so that it cannot be another client's: leases `teud-…`, ingests `teu-…`, snapshots
`extract-… CHAIN`, `init-… CHAIN` and `commit-…`. One engine works in a namespace of containerd, so what is named like
that and is not among the names that this daemon works on (`Client.working`) belongs to nobody. Ingests `layer-sha256:…`
stay: a later pull goes on from them. containerd gives them up after a day, `image prune` at once.
"""

from __future__ import annotations

import contextlib
import logging
import re
from typing import TYPE_CHECKING

from teu.engine.backend import containerd
from teu.engine.lifecycle import recovery

if TYPE_CHECKING:
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

LEASE = re.compile(r"teud-[0-9a-f]{32}\Z")
SNAPSHOT = re.compile(r"(?:(?:extract|init)-[0-9a-f]{32} sha256:|(?:commit|init)-[0-9a-f]{32}\Z)")
INGEST = re.compile(r"teu-(?:load-|import-|commit-)?[0-9a-f]{32}\Z")


AGAIN_SECONDS = 30.0
RETRY_SECONDS = 1.0


def run(engine: Engine) -> None:
    """The sweeping thread, until the engine stops (`Client.untidy` wakes it then as well)."""
    untidy = engine.containerd.untidy
    start = True
    swept = sweep(engine, start)
    while True:
        untidy.wait(RETRY_SECONDS if not swept else AGAIN_SECONDS if start else None)
        if engine.stopping.is_set():
            return
        if swept and not untidy.is_set():
            start = False
        untidy.clear()
        swept = sweep(engine, False)


def sweep(engine: Engine, start: bool) -> bool:
    """Remove what nobody works on. Whether containerd let it be done. At the start the containers' own recovery looks
    after theirs."""
    try:
        _snapshots(engine)
        _ingests(engine)
        _leases(engine)
        if engine.ready.is_set() and not start:
            recovery.sweep(engine)
            engine.plugins.sweep()
    except containerd.Error as error:
        if not engine.stopping.is_set():
            log.warning("what was left half made in containerd could not be cleaned up: %s", error)
        # What containerd refuses it will refuse again in a second: that waits for the next occasion.
        return not isinstance(error, containerd.Unavailable)
    return True


def _leases(engine: Engine) -> None:
    from teu.api.services.leases.v1 import leases_pb2

    client = engine.containerd
    old = [
        lease.id
        for lease in client.leases.List(leases_pb2.ListRequest()).leases
        if LEASE.match(lease.id) and lease.id not in client.working
    ]
    for position, lease in enumerate(old):
        with contextlib.suppress(containerd.NotFound):
            # With the last one goes what they kept.
            client.leases.Delete(leases_pb2.DeleteRequest(id=lease, sync=position == len(old) - 1))
    if old:
        log.info("%d interrupted operations were cleaned up", len(old))


def _snapshots(engine: Engine) -> None:
    from teu.api.services.snapshots.v1 import snapshots_pb2

    client, snapshotter = engine.containerd, engine.config["storage-driver"]
    old, working = [], client.working
    for answer in client.snapshots.List(snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter)):
        for info in answer.info:
            if SNAPSHOT.match(info.name) and info.kind != snapshots_pb2.COMMITTED and info.name not in working:
                old.append(info.name)
    for name in old:
        with contextlib.suppress(containerd.NotFound, containerd.FailedPrecondition):
            client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=name))


def _ingests(engine: Engine) -> None:
    from teu.api.services.content.v1 import content_pb2

    client = engine.containerd
    for status in client.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses:
        if INGEST.match(status.ref) and status.ref not in client.working:
            with contextlib.suppress(containerd.Error):
                client.content.Abort(content_pb2.AbortRequest(ref=status.ref))
