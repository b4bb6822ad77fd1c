# SPDX-License-Identifier: Apache-2.0
"""What a snapshotter is. `stores.snapshots` calls one; tests/unit/containerd/test_snapshotters.py holds each to this.

A new one is a file beside this one, and a line in `registry`.

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
from typing import Protocol

from teu.containerd.core.database import Database
from teu.containerd.core.messages import Mount

VIEW, ACTIVE, COMMITTED = 1, 2, 3  # as on the wire
KIND_WORDS = {VIEW: "view", ACTIVE: "active", COMMITTED: "committed"}

# Labels that the snapshotter itself sees; all others are the namespace's own business.
REFERENCE_LABEL = "containerd.io/snapshot.ref"
INHERITED_PREFIX = "containerd.io/snapshot/"
UID_MAPPING_LABEL = "containerd.io/snapshot/uidmapping"  # CONTAINER:HOST:LENGTH
GID_MAPPING_LABEL = "containerd.io/snapshot/gidmapping"


@dataclass(slots=True)
class Info:
    """A snapshot, as `stat` and `walk` tell it."""

    name: str
    parent: str
    kind: int
    labels: dict[str, str] = field(default_factory=dict)
    created: int = 0  # nanoseconds
    updated: int = 0


@dataclass(slots=True)
class Usage:
    """What a snapshot takes on the disk."""

    size: int  # bytes on disk
    inodes: int


class Snapshotter(Protocol):
    """containerd's snapshots API (containerd.services.snapshots.v1), for one tree of snapshots.

    Errors are those of core.errors. Each method but `settle`, `walk`, `cleanup` and `close` raises NotFound for a
    snapshot that does not exist."""

    name: str
    # True: its records are in metadata.db, so its calls may be part of the caller's transaction
    local: bool
    # what it can do besides, in containerd's words, for clients that ask the introspection service
    capabilities: tuple[str, ...]
    # the folder of its files; "" where they are not this daemon's
    root: str

    def stat(self, name: str) -> Info:
        """The snapshot of that name."""

    def update(self, name: str, labels: dict[str, str]) -> Info:
        """Replace all labels; the snapshot with the new ones."""

    def usage(self, name: str) -> Usage:
        """Bytes and inodes of this snapshot alone, without its parents."""

    def mounts(self, name: str) -> list[Mount]:
        """The mounts of an active or view snapshot; FailedPrecondition for a committed one."""

    def prepare(self, name: str, parent: str, labels: dict[str, str]) -> list[Mount]:
        """Make an active snapshot over the committed `parent`, or over nothing ("").

        With the label oci.labels.SIZE it may have so many bytes of its own, for as long as it is there: a snapshotter
        that has the capability SIZES sees to it, also where `update` gives another number or none, and raises
        FailedPrecondition where it cannot. A built-in one without it does, too.

        Its mounts are returned; none from a snapshotter that has the wanted content committed already, under the
        name that REFERENCE_LABEL asks for. Raises AlreadyExists for a name in use, NotFound without the parent,
        InvalidArgument when the parent is not committed."""

    def view(self, name: str, parent: str, labels: dict[str, str]) -> list[Mount]:
        """Make a view of the committed `parent`; as `prepare`."""

    def settle(self, key: str) -> None:
        """Put the content of the active snapshot `key` on the disk, for callers that then commit under a lock.

        `commit` does the same for one that was not settled."""

    def commit(self, name: str, key: str, labels: dict[str, str], parent: str = "") -> None:
        """The active snapshot `key` becomes the committed `name`; its content is on disk before this returns.

        With `parent`, an active snapshot without one is put on top of it. Raises AlreadyExists for a name in use,
        FailedPrecondition where `key` is not active."""

    def changes(self, name: str) -> str:
        """The folder with nothing but what the committed snapshot has changed, which nobody writes to any more;
        NotFound where there is no such folder."""

    def committed(self, folder: str) -> str:
        """The committed snapshot whose folder of `changes` that is; "" for any other path."""

    def remove(self, name: str) -> None:
        """Remove a snapshot; FailedPrecondition while it is a parent. The files go with the next `cleanup`."""

    def walk(self) -> Iterator[Info]:
        """All snapshots, parents before children."""

    def cleanup(self) -> None:
        """Let go of what removed snapshots, and calls that a crash ended, have left."""

    def close(self) -> None:
        """Let go of connections; nothing is called after it."""


@dataclass(frozen=True, slots=True)
class Place:
    """What the built-in snapshotters are made with."""

    root: str  # the daemon's folder: each has one of its own in `snapshots` below it
    database: Database
    sync: bool = True  # whether a commit is forced to disk
    remap: bool = False  # whether ids are remapped by the mounts, where a snapshotter can
