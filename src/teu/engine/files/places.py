# SPDX-License-Identifier: Apache-2.0
"""The layer between an image and its containers: the places that every container has, as docker makes them.

It has the mount points that a runtime would else make in each container's own layer, an empty /.dockerenv by which
programs know that they are in a container, and /etc/mtab for those that read it. So they are there before the first
start, are copied into volumes with what is around them, and are nobody's change in `diff` and `commit`.

    snapshot "init-1 CHAIN"    committed, over the image's top snapshot; its configuration keeps it (gc.ref)

Called by create, which makes it for the first container of an image.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING

from teu.engine.backend import containerd, content
from teu.engine.files import rootfs
from teu.engine.images import unpack

if TYPE_CHECKING:
    from teu.api.types import mount_pb2
    from teu.engine.engine import Engine
    from teu.engine.images.store import Image

# With another number when what follows is another.
NAME = "init-1"
FOLDER, FILE = "", "-"  # else: what a link says
PLACES = {
    "dev/pts": FOLDER,
    "dev/shm": FOLDER,
    "proc": FOLDER,
    "sys": FOLDER,
    "dev/console": FILE,
    ".dockerenv": FILE,
    "etc/resolv.conf": FILE,
    "etc/hosts": FILE,
    "etc/hostname": FILE,
    "etc/mtab": "/proc/mounts",
}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def name(image: Image) -> str:
    """The layer's snapshot, which need not exist."""
    return f"{NAME} {image.chain_id}".strip()


def make(engine: Engine, image: Image, lease: str) -> None:
    """Make the layer if it is not there. The image's own snapshots are; the lease keeps it meanwhile."""
    from teu.api.services.snapshots.v1 import snapshots_pb2

    client, snapshotter, layer = engine.containerd, engine.config["storage-driver"], name(image)
    key = f"init-{uuid.uuid4().hex} {image.chain_id}".strip()
    with unpack.exclusive(f"snapshot {layer}"), client.making(key):
        if unpack.kept(client, snapshotter, layer, lease):
            return
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=image.chain_id)
        mounts = client.snapshots.Prepare(request, lease=lease).mounts
        try:
            _fill(engine, mounts)
            with contextlib.suppress(containerd.AlreadyExists):
                client.snapshots.Commit(
                    snapshots_pb2.CommitSnapshotRequest(snapshotter=snapshotter, name=layer, key=key),
                    timeout=None,
                    lease=lease,
                )
        except BaseException:
            with contextlib.suppress(containerd.Error):
                client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
            raise
        content.label(client, image.details.id, {f"{content.GC_SNAPSHOT}{snapshotter}/init": layer})


def _fill(engine: Engine, mounts: list[mount_pb2.Mount]) -> None:
    root = rootfs.detached(engine, mounts, "the layer of an image's containers")
    try:
        top = os.open(".", _FOLDER, dir_fd=root)
        try:
            for path, kind in PLACES.items():
                _place(top, path.split("/"), kind)
        finally:
            os.close(top)
    finally:
        os.close(root)


def _place(top: int, parts: list[str], kind: str) -> None:
    """One place. A folder of the image's is used; anything else that is in the way is not seen any more."""
    here = os.dup(top)
    try:
        for part in parts if kind == FOLDER else parts[:-1]:
            below = _folder(here, part)
            os.close(here)
            here = below
        last = parts[-1]
        if kind == FOLDER:
            return
        try:
            os.unlink(last, dir_fd=here)
        except IsADirectoryError:
            return
        except FileNotFoundError:
            pass
        if kind != FILE:
            os.symlink(kind, last, dir_fd=here)
            return
        made = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        try:
            os.fchmod(made, 0o755)
        finally:
            os.close(made)
    finally:
        os.close(here)


def _folder(parent: int, part: str) -> int:
    try:
        return os.open(part, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        os.unlink(part, dir_fd=parent)
    os.mkdir(part, dir_fd=parent)
    made = os.open(part, _FOLDER, dir_fd=parent)
    os.fchmod(made, 0o755)
    return made
