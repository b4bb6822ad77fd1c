# SPDX-License-Identifier: Apache-2.0
"""A container's snapshots in containerd: what makes its root, what it has of its own, their removal.

ID               its root, which it writes to
ID-DESTINATION   a view of an image that is mounted into it (the hash of where)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from typing import TYPE_CHECKING

from teu.engine.backend import containerd
from teu.linux import trees

if TYPE_CHECKING:
    from teu.api.services.introspection.v1 import introspection_pb2
    from teu.api.types import mount_pb2
    from teu.engine.containers.model import Container
    from teu.engine.containers.state import MountPoint
    from teu.engine.engine import Engine


def snapshotter(engine: Engine) -> introspection_pb2.Plugin | None:
    """What containerd says of the snapshotter in use: what it can do, and where its files are. None: it does not say.
    Raises containerd.Error, after 5 s at the latest."""
    from teu.api.services.introspection.v1 import introspection_pb2

    name = engine.config["storage-driver"]
    request = introspection_pb2.PluginsRequest(filters=[f"type==io.containerd.snapshotter.v1,id=={name}"])
    return next(iter(engine.containerd.introspection.Plugins(request, timeout=5).plugins), None)


def mounts(engine: Engine, container: Container) -> list[mount_pb2.Mount]:
    """containerd's mounts that make its root. They are asked for once."""
    if container.rootfs_mounts is None:
        from teu.api.services.snapshots.v1 import snapshots_pb2

        response = engine.containerd.snapshots.Mounts(
            snapshots_pb2.MountsRequest(snapshotter=engine.config["storage-driver"], key=container.snapshot_key)
        )
        container.rootfs_mounts = list(response.mounts)
    return container.rootfs_mounts


def image_key(container: Container, point: MountPoint) -> str:
    """The snapshot of an image that is mounted at that point."""
    return f"{container.snapshot_key}-{hashlib.sha256(point.destination.encode()).hexdigest()[:16]}"


def image_mounts(engine: Engine, container: Container, point: MountPoint) -> list[mount_pb2.Mount]:
    """containerd's mounts that make such an image's files."""
    from teu.api.services.snapshots.v1 import snapshots_pb2

    key = image_key(container, point)
    request = snapshots_pb2.MountsRequest(snapshotter=engine.config["storage-driver"], key=key)
    return list(engine.containerd.snapshots.Mounts(request).mounts)


def upper(made_of: list[mount_pb2.Mount]) -> str:
    """The folder of what a snapshot has of its own; "" where its snapshotter does not keep that apart."""
    for each in made_of:
        for option in each.options:
            if option.startswith("upperdir="):
                return str(option[9:])
    return ""


def remove(engine: Engine, container: Container) -> None:
    """All of them. Twice is fine."""
    from teu.api.services.snapshots.v1 import snapshots_pb2

    views = [image_key(container, point) for point in container.mounts if point.type == "image"]
    for key in (*views, container.snapshot_key):
        with contextlib.suppress(containerd.NotFound):
            engine.containerd.snapshots.Remove(
                snapshots_pb2.RemoveSnapshotRequest(snapshotter=engine.config["storage-driver"], key=key)
            )


def size(engine: Engine, container: Container) -> int:
    """Bytes of the files that are the container's own, which an untouched one has none of."""
    try:
        own = upper(mounts(engine, container))
        return _size_of_files(own) if own else _usage(engine, container)
    except OSError:  # a folder was moved while it was walked
        return _usage(engine, container)
    except containerd.Error:
        return 0


def _size_of_files(folder: str) -> int:
    top = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        total = 0
        linked: set[int] = set()
        for _, _, _, status in trees.walk(top):
            if stat.S_ISDIR(status.st_mode) or status.st_ino in linked:
                continue
            if status.st_nlink > 1:
                linked.add(status.st_ino)
            total += status.st_size
        return total
    finally:
        os.close(top)


def _usage(engine: Engine, container: Container) -> int:
    from teu.api.services.snapshots.v1 import snapshots_pb2

    try:
        response = engine.containerd.snapshots.Usage(
            snapshots_pb2.UsageRequest(snapshotter=engine.config["storage-driver"], key=container.snapshot_key)
        )
    except containerd.Error:
        return 0
    return int(response.size)
