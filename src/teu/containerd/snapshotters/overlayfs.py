# SPDX-License-Identifier: Apache-2.0
"""The default snapshotter: a snapshot is one layer of the kernel's overlayfs.

    ID/fs      the layer: upper directory of an active snapshot, lower directory of its children
    ID/work    overlayfs' own working directory (active only)

Where an active snapshot has a size (oci.labels.SIZE), ID is the folder of a project of its own (linux/quota.py), so
that both count; it is one until the folder goes.

A first layer is a plain bind mount, and so is a view of a single layer: overlayfs wants at least two.
"""

from __future__ import annotations

import os

from teu.containerd.core.errors import FailedPrecondition
from teu.containerd.core.messages import Mount
from teu.containerd.snapshotters.interface import ACTIVE, GID_MAPPING_LABEL, UID_MAPPING_LABEL, Place
from teu.containerd.snapshotters.local import LocalSnapshotter, mount
from teu.linux import quota
from teu.oci.labels import SIZES


def mapped_root(labels: dict[str, str]) -> tuple[int, int] | None:
    """Owner of the container's root on the host, where the labels remap it: CONTAINER:HOST:LENGTH."""
    if UID_MAPPING_LABEL not in labels or GID_MAPPING_LABEL not in labels:
        return None

    def host(mapping: str) -> int:
        container, outside, length = (int(part) for part in mapping.split(":"))
        if container != 0 or length < 1:
            raise ValueError(f"mapping {mapping} does not map the container's root")
        return outside

    return host(labels[UID_MAPPING_LABEL]), host(labels[GID_MAPPING_LABEL])


REMAP_IDS = "remap-ids"  # the capability: clients leave the remapping to the mounts


class Overlayfs(LocalSnapshotter):
    """The snapshotter of overlayfs, one folder of changes for each snapshot."""

    name = "overlayfs"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.capabilities = (REMAP_IDS, SIZES) if place.remap else (SIZES,)

    def make(self, id: int, kind: int, parents: list[int], labels: dict[str, str]) -> None:
        folder, content = self.folder(id), self.content(id)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.makedirs(content, mode=0o755, exist_ok=True)
        os.chmod(content, 0o755)
        if kind == ACTIVE:
            os.makedirs(os.path.join(folder, "work"), mode=0o711, exist_ok=True)
        if parents:
            # the merged root directory shows the attributes of the topmost layer
            above = os.stat(self.content(parents[0]))
            os.chown(content, above.st_uid, above.st_gid)
            os.chmod(content, above.st_mode & 0o7777)
        if owner := mapped_root(labels):
            os.chown(content, *owner)

    def resize(self, id: int, size: int) -> None:
        try:
            if size:
                quota.limit(self.folder(id), size)
            else:
                quota.release(self.folder(id))
        except quota.NoQuota as error:
            raise FailedPrecondition(str(error)) from None

    def tell(self, id: int, kind: int, parents: list[int], labels: dict[str, str]) -> list[Mount]:
        if not parents:
            return [mount("bind", self.content(id), "rw" if kind == ACTIVE else "ro", "rbind")]
        if kind != ACTIVE and len(parents) == 1:
            return [mount("bind", self.content(parents[0]), "ro", "rbind")]
        options = []
        if os.path.exists("/sys/module/overlay/parameters/index"):
            options.append("index=off")
        if kind == ACTIVE:
            options += [f"workdir={self.folder(id)}/work", f"upperdir={self.content(id)}"]
        if REMAP_IDS in self.capabilities and mapped_root(labels):
            # Who mounts it maps the ids of the lower folders.
            options += [f"uidmap={labels[UID_MAPPING_LABEL]}", f"gidmap={labels[GID_MAPPING_LABEL]}"]
        options.append("lowerdir=" + ":".join(self.content(parent) for parent in parents))
        return [mount("overlay", "overlay", *options)]
