# SPDX-License-Identifier: Apache-2.0
"""A container's snapshot in containerd: what makes its root, what it has of its own, its removal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teu.engine.backend import containerd

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine


def mounts(engine: Engine, container: Container) -> list[Any]:
    """containerd's mounts that make its root. They are asked for once."""
    if container.rootfs_mounts is None:
        from teu.api.services.snapshots.v1 import snapshots_pb2

        response = engine.containerd.snapshots.Mounts(
            snapshots_pb2.MountsRequest(snapshotter=engine.config["storage-driver"], key=container.snapshot_key)
        )
        container.rootfs_mounts = list(response.mounts)
    return container.rootfs_mounts


def upper(made_of: list[Any]) -> str:
    """The folder of what a snapshot has of its own; "" where its snapshotter does not keep that apart."""
    for each in made_of:
        for option in each.options:
            if option.startswith("upperdir="):
                return str(option[9:])
    return ""


def remove(engine: Engine, container: Container) -> None:
    """Twice is fine."""
    from teu.api.services.snapshots.v1 import snapshots_pb2

    try:
        engine.containerd.snapshots.Remove(
            snapshots_pb2.RemoveSnapshotRequest(snapshotter=engine.config["storage-driver"], key=container.snapshot_key)
        )
    except containerd.NotFound:
        pass
