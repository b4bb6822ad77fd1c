# SPDX-License-Identifier: Apache-2.0
"""What a snapshotter is. `stores.snapshots` calls one; tests/unit/containerd/test_snapshotters.py holds each to this.

A snapshot is a file system: the changes of itself over those of its parent, and so on to the first. It is

    ACTIVE      writable, made by `prepare`; ends by `commit` or `remove`
    VIEW        read only, made by `view`; ends by `remove`
    COMMITTED   unchangeable, made by `commit` of an active one; the only kind that can be a parent

Names are unique among all snapshots of the snapshotter, whatever their kind. `prepare`, `view` and `mounts` answer
mounts: not mounted, but told, to be mounted by whoever uses them (the shim, the differ, a client), in order, on any
directory, by any number of users. Mounts of the same snapshot stay the same until it ends.

Unpacking an image goes: prepare("tmp", parent=""), mount, unpack the first layer, commit("layer1", "tmp");
prepare("tmp", parent="layer1"), ... A container goes: prepare("c1", parent="layer3"), mount, run, remove("c1").

A method that returns has kept its promise through a crash; one that raises has changed nothing. All may be called
from many threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

VIEW, ACTIVE, COMMITTED = 1, 2, 3  # as on the wire
KIND_WORDS = {VIEW: "view", ACTIVE: "active", COMMITTED: "committed"}

# Labels that the snapshotter itself sees; all others are the namespace's own business.
REFERENCE_LABEL = "containerd.io/snapshot.ref"
INHERITED_PREFIX = "containerd.io/snapshot/"
UID_MAPPING_LABEL = "containerd.io/snapshot/uidmapping"  # CONTAINER:HOST:LENGTH
GID_MAPPING_LABEL = "containerd.io/snapshot/gidmapping"


@dataclass(slots=True)
class Info:
    name: str
    parent: str
    kind: int
    labels: dict[str, str] = field(default_factory=dict)
    created: int = 0  # nanoseconds
    updated: int = 0


@dataclass(slots=True)
class Usage:
    size: int  # bytes on disk
    inodes: int


class Snapshotter(Protocol):
    name: str
    # True: its records are in metadata.db, so its calls may be part of the caller's transaction
    local: bool
    capabilities: tuple[str, ...]

    def stat(self, name: str) -> Info:
        """NotFound when there is none."""

    def update(self, name: str, labels: dict[str, str]) -> Info:
        """Replaces the labels."""

    def usage(self, name: str) -> Usage:
        """Of this snapshot alone, without its parents."""

    def mounts(self, name: str) -> list[Any]:
        """Of an active or view snapshot; FailedPrecondition for a committed one."""

    def prepare(self, name: str, parent: str, labels: dict[str, str]) -> list[Any]:
        """AlreadyExists; NotFound without the parent; InvalidArgument when the parent is not committed."""

    def view(self, name: str, parent: str, labels: dict[str, str]) -> list[Any]:
        """As prepare."""

    def commit(self, name: str, key: str, labels: dict[str, str], parent: str = "") -> None:
        """The active snapshot `key` becomes the committed `name`; its content is on disk before this returns.

        With `parent`, an active snapshot without one is put on top of it."""

    def remove(self, name: str) -> None:
        """FailedPrecondition while it is a parent. The files go with the next `cleanup`."""

    def walk(self) -> Iterator[Info]:
        """All snapshots, parents before children."""

    def cleanup(self) -> None:
        """Lets go of what removed snapshots, and calls that a crash ended, have left."""

    def close(self) -> None: ...
