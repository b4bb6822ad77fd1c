# SPDX-License-Identifier: Apache-2.0
"""`run --uidmap --gidmap`: the root file system belongs to the ids that the container's user namespace begins at.

A snapshotter that says it can remap ids is only told of the mapping; for another one the image's topmost snapshot is
copied once with its owners changed, under the name CHAIN-UID-GID, and the container's is made over that.
"""

from __future__ import annotations

import os
import stat
import tempfile
from typing import Any

from teu.ctr.client import Client, introspection_pb2, snapshots_pb2
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.images import mount_all, unmount_all
from teu.linux import trees

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"
REMAPS = "remap-ids"


def _host(mapping: str) -> int:
    container, _, rest = mapping.partition(":")
    host, _, length = rest.partition(":")
    if not all(part.isascii() and part.isdigit() for part in (container, host, length)):
        raise CommandError("user namespace mappings require the format `container-id:host-id:size`")
    return int(host) - int(container)


def prepared(client: Client, snapshotter: str, parent: str, options: Any) -> tuple[str, dict[str, str]]:
    """What to make the container's snapshot over, and the labels it gets."""
    uidmap, gidmap = options["uidmap"][0], options["gidmap"][0]
    uid, gid = _host(uidmap), _host(gidmap)
    labels = {UID_LABEL: uidmap, GID_LABEL: gidmap} if options["remap-labels"] else {}
    if labels:
        asked = f"type==io.containerd.snapshotter.v1,id=={snapshotter}"
        for plugin in client.introspection.Plugins(introspection_pb2.PluginsRequest(filters=[asked])).plugins:
            if REMAPS in plugin.capabilities:
                return parent, labels
    name = f"{parent}-{uid}-{gid}"
    try:
        client.snapshots.Stat(snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key=name))
    except NotFound:
        _copy(client, snapshotter, parent, name, uid, gid)
    return name, labels


def _copy(client: Client, snapshotter: str, parent: str, name: str, uid: int, gid: int) -> None:
    key = f"{name}-remap"
    request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent)
    mounts = client.snapshots.Prepare(request).mounts
    try:
        with tempfile.TemporaryDirectory(prefix="teu-ctr-") as folder:
            mount_all(mounts, folder)
            try:
                _shift(folder, uid, gid)
            finally:
                unmount_all(folder)
        client.snapshots.Commit(snapshots_pb2.CommitSnapshotRequest(snapshotter=snapshotter, name=name, key=key))
    except BaseException:
        client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
        raise


def _shift(root: str, uid: int, gid: int) -> None:
    """Add to every owner below `root`, itself included. Hard links are one file, to be shifted once."""
    seen = set()

    def shift(folder: int, name: str | bytes, found: os.stat_result) -> None:
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) in seen:
                return
            seen.add((found.st_dev, found.st_ino))
        os.chown(name, found.st_uid + uid, found.st_gid + gid, dir_fd=folder, follow_symlinks=False)
        if found.st_mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(found.st_mode):
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=folder)

    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        shift(top, ".", os.stat(top))
        for _, folder, name, found in trees.walk(top):
            shift(folder, name, found)
    finally:
        os.close(top)
