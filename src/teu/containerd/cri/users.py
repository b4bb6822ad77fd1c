# SPDX-License-Identifier: Apache-2.0
"""User namespaces of pods (KEP 127): which ids of the host a pod's are, for the specification, for snapshots and for
mounts. Called by `checks`, `pods` and `containers`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.types import mount_pb2
from teu.containerd.core.errors import FailedPrecondition, InvalidArgument
from teu.containerd.core.messages import Mount
from teu.containerd.snapshotters.interface import GID_MAPPING_LABEL, UID_MAPPING_LABEL
from teu.linux import mounts

_REMAP = ("uidmap=", "gidmap=")


class Range(NamedTuple):
    """Ids of a pod, from its 0 on."""

    host: int  # what the pod's 0 is on the host
    length: int

    @property
    def text(self) -> str:
        """CONTAINER:HOST:LENGTH, as snapshotters have it."""
        return f"0:{self.host}:{self.length}"

    @property
    def json(self) -> list[dict[str, int]]:
        """As the runtime specification has it."""
        return [{"containerID": 0, "hostID": self.host, "size": self.length}]


class Maps(NamedTuple):
    """Those of users and of groups."""

    uids: Range
    gids: Range

    @property
    def labels(self) -> dict[str, str]:
        """By which a snapshotter gives the root of a snapshot to the pod."""
        return {UID_MAPPING_LABEL: self.uids.text, GID_MAPPING_LABEL: self.gids.text}

    def own(self, path: str) -> None:
        """Give a file or folder to the pod's root. OSError."""
        os.chown(path, self.uids.host, self.gids.host, follow_symlinks=False)


def _range(where: str, mappings: Sequence[Any]) -> Range:
    if len(mappings) != 1:
        raise InvalidArgument(f"{where}: only one mapping line supported, got {len(mappings)} mapping lines")
    [one] = mappings
    if one.length < 1:
        raise InvalidArgument(f"{where}: invalid mapping length: {one.length}")
    if one.container_id:
        raise InvalidArgument(f"{where}: the mapping must begin with the pod's 0, not with {one.container_id}")
    return Range(one.host_id, one.length)


def maps_of(options: Any) -> Maps | None:
    """What a NamespaceOption says; None where a pod has the host's users. Raises InvalidArgument."""
    wanted = options.userns_options
    if not options.HasField("userns_options") or wanted.mode == cri.NODE:
        if wanted.uids or wanted.gids:
            counts = f"Got {len(wanted.uids)} UID mappings and {len(wanted.gids)} GID mappings"
            raise InvalidArgument(f"can't use user namespace mode NODE with mappings. {counts}")
        return None
    if wanted.mode != cri.POD:
        raise InvalidArgument(f"unsupported user namespace mode: {cri.NamespaceMode.Name(wanted.mode)}")
    return Maps(_range("userns_options.uids", wanted.uids), _range("userns_options.gids", wanted.gids))


def remapped(listed: Sequence[Mount], maps: Maps, layered: bool) -> list[Mount]:
    """The mounts of a container's snapshot, with the ids of the image's layers mapped, if it has some. Raises
    FailedPrecondition for a snapshotter whose mounts cannot be."""
    if not layered:
        return list(listed)  # nothing is in it but what the pod itself writes
    found = []
    for one in listed:
        copy = mount_pb2.Mount()
        copy.CopyFrom(one)
        if one.type not in ("overlay", "bind"):
            raise FailedPrecondition(f"user namespaces need a snapshotter of overlays or folders, not of {one.type}")
        if not any(option.startswith(_REMAP) for option in one.options):
            copy.options.extend([f"uidmap={maps.uids.text}", f"gidmap={maps.gids.text}"])
        found.append(copy)
    return found


def obstacle(folder: str, userns: int) -> str:
    """Why pods cannot have user namespaces over files in a folder; "" if they can. `userns` is a descriptor of one."""
    try:
        tree = mounts.open_tree(mounts.AT_FDCWD, folder)
        try:
            mounts.mount_setattr(tree, mounts.MOUNT_ATTR_IDMAP, userns=userns)
        finally:
            os.close(tree)
    except OSError as error:
        return f"ids of mounts of {folder} cannot be mapped: {os.strerror(error.errno or 0)}"
    return ""
