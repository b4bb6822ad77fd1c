# SPDX-License-Identifier: Apache-2.0
"""Layers of the content store become a chain of committed snapshots, each named by its chain id.

Called by pull, load, import, and before a container is created from an image whose snapshots were
collected. Two threads that unpack the same chain wait for each other; another client of containerd
that was quicker is taken as success.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from teu.engine.backend import containerd, content
from teu.engine.core.departure import LOOK_SECONDS, NOBODY, Departure
from teu.engine.core.errors import EngineError
from teu.oci import image_spec
from teu.oci.labels import UNCOMPRESSED

if TYPE_CHECKING:
    from teu.engine.backend.containerd import Client
    from teu.oci.image_spec import Descriptor, ImageConfig, Manifest

SNAPSHOT_REF = "containerd.io/snapshot.ref"
LAYER_SECONDS = 3600  # as long as the lease holds what comes of it

_locks: dict[str, tuple[threading.Lock, list[int]]] = {}
_locks_lock = threading.Lock()


@contextlib.contextmanager
def exclusive(name: str, departure: Departure = NOBODY) -> Iterator[None]:
    """One thread at a time per name; names that nobody holds cost nothing."""
    with _locks_lock:
        lock, users = _locks.setdefault(name, (threading.Lock(), [0]))
        users[0] += 1
    try:
        while not lock.acquire(timeout=LOOK_SECONDS):
            departure.check()
        try:
            yield
        finally:
            lock.release()
    finally:
        with _locks_lock:
            users[0] -= 1
            if not users[0]:
                _locks.pop(name, None)


def snapshot_exists(client: Client, snapshotter: str, key: str) -> bool:
    from teu.api.services.snapshots.v1 import snapshots_pb2

    try:
        client.snapshots.Stat(snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key=key))
    except containerd.NotFound:
        return False
    return True


def kept(client: Client, snapshotter: str, key: str, lease: str) -> bool:
    """Whether it is there, and stays: the lease has it before anybody looks, or it might go in between."""
    _keep(client, snapshotter, lease, key)
    return snapshot_exists(client, snapshotter, key)


def unpacked(client: Client, snapshotter: str, chains: list[str], lease: str) -> int:
    """How far up an image is unpacked: the number of the highest of its chains that is there, -1 for none. The lease
    has that one, all below it, and those above it once they are there."""
    have = next((n for n in range(len(chains) - 1, -1, -1) if kept(client, snapshotter, chains[n], lease)), -1)
    for chain in chains[: max(have, 0)]:
        _keep(client, snapshotter, lease, chain)
    return have


def layers(
    client: Client,
    snapshotter: str,
    manifest: Manifest,
    config: ImageConfig,
    lease: str,
    available: Callable[[int], None] | None = None,
    progress: Callable[[int, str], None] | None = None,
    departure: Departure = NOBODY,
    have: int | None = None,
) -> str:
    """Unpack what is missing of the image; returns the top chain id ("" without layers).

    `available(n)` blocks until layer n is in the content store (pull downloads in parallel);
    `progress(n, phase)` is told "extracting", "complete" or "exists";
    `have` is what `unpacked` has said under this lease, where the caller knows.
    """
    chains = image_spec.chain_ids(config["rootfs"]["diff_ids"])
    if have is None:
        have = unpacked(client, snapshotter, chains, lease)
    for number, chain in enumerate(chains):
        if number <= have:
            if progress:
                progress(number, "exists")
            continue
        if available:
            available(number)
        if progress:
            progress(number, "extracting")
        with exclusive(f"snapshot {chain}", departure):
            if not snapshot_exists(client, snapshotter, chain):
                parent = chains[number - 1] if number else ""
                layer = manifest["layers"][number]
                _apply(
                    client, snapshotter, layer, config["rootfs"]["diff_ids"][number], parent, chain, lease, departure
                )
        if progress:
            progress(number, "complete")
    return chains[-1] if chains else ""


def single(
    client: Client, snapshotter: str, layer: Descriptor, parent: str, name: str, lease: str, departure: Departure
) -> None:
    """One layer over a snapshot, as a committed one of any name; what its content's digest is nobody says."""
    _apply(client, snapshotter, layer, "", parent, name, lease, departure)


def _keep(client: Client, snapshotter: str, lease: str, chain: str) -> None:
    from teu.api.services.leases.v1 import leases_pb2

    request = leases_pb2.AddResourceRequest(id=lease)
    request.resource.id = chain
    request.resource.type = f"snapshots/{snapshotter}"
    with contextlib.suppress(containerd.AlreadyExists):
        client.leases.AddResource(request)


def _apply(
    client: Client,
    snapshotter: str,
    layer: Descriptor,
    diff_id: str,
    parent: str,
    chain: str,
    lease: str,
    departure: Departure,
) -> None:
    key = f"extract-{uuid.uuid4().hex} {chain}"
    with client.making(key):
        _extract(client, snapshotter, layer, diff_id, parent, chain, key, lease, departure)


def _extract(
    client: Client,
    snapshotter: str,
    layer: Descriptor,
    diff_id: str,
    parent: str,
    chain: str,
    key: str,
    lease: str,
    departure: Departure,
) -> None:
    from teu.api.services.diff.v1 import diff_pb2
    from teu.api.services.snapshots.v1 import snapshots_pb2

    try:
        mounts = client.snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=snapshotter, key=key, parent=parent, labels={SNAPSHOT_REF: chain}
            ),
            lease=lease,
        ).mounts
    except containerd.AlreadyExists:
        # A remote snapshotter says so when it has the chain already.
        if snapshot_exists(client, snapshotter, chain):
            return
        raise
    try:
        request = diff_pb2.ApplyRequest(mounts=mounts)
        request.diff.media_type = layer["mediaType"]
        request.diff.digest = layer["digest"]
        request.diff.size = layer["size"]
        try:
            applied = client.diff.Apply(request, timeout=LAYER_SECONDS, lease=lease, on_cancel=departure.during).applied
        except containerd.Error as error:
            raise type(error)(f"failed to register layer: {error}") from None
        if diff_id and applied.digest != diff_id:
            raise EngineError(
                f"failed to register layer: wrong diff id calculated on extraction of {layer['digest']}: "
                f"{applied.digest}, the image configuration says {diff_id}"
            )
        try:
            client.snapshots.Commit(
                snapshots_pb2.CommitSnapshotRequest(
                    snapshotter=snapshotter, name=chain, key=key, labels={SNAPSHOT_REF: chain}
                ),
                timeout=LAYER_SECONDS,
                lease=lease,
                on_cancel=departure.during,
            )
        except containerd.AlreadyExists:
            _remove(client, snapshotter, key)
            return
    except BaseException:
        _remove(client, snapshotter, key)
        raise
    content.label(client, layer["digest"], {UNCOMPRESSED: applied.digest})


def _remove(client: Client, snapshotter: str, key: str) -> None:
    from teu.api.services.snapshots.v1 import snapshots_pb2

    with contextlib.suppress(containerd.Error):
        client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
