# SPDX-License-Identifier: Apache-2.0
"""What the built-in snapshotters share: records in the table `layers` of metadata.db, a folder per snapshot.

    ROOT/snapshots/SNAPSHOTTER/ID/     ID is the record's

What is in the folder is the snapshotter's own.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from teu.api.types import mount_pb2
from teu.containerd.core.database import dump_labels, now
from teu.containerd.core.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound
from teu.containerd.core.messages import Mount
from teu.containerd.core.rows import Row, must_be_whole
from teu.containerd.snapshotters.interface import ACTIVE, COMMITTED, VIEW, Info, Place, Usage
from teu.linux import quota, trees, writeback
from teu.oci.labels import SIZE

log = logging.getLogger("teu.containerd.snapshots")

DEEPEST = 1000  # layers below a snapshot; the kernel takes no overlay of so many

# ioctl_iflags(2), as encoded on all our architectures
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_TOPDIR_FL = 0x00020000
USAGE_TRIES = 5


def mount(type: str, source: str, *options: str) -> Mount:
    """A mount as snapshotters tell one; its target is the root of whatever it is mounted on."""
    made: Mount = mount_pb2.Mount(type=type, source=source, options=options)
    return made


def spread(path: str) -> None:
    """Tell ext4 that the folders in `path` have nothing to do with each other (`chattr +T`): each begins in a block
    group of its own. What is unpacked does not wade through the inodes that a removed snapshot has just left, which
    ext4 without a journal does not reuse for minutes. Other file systems have no such hint and do without.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (flags,) = struct.unpack("i4x", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))
        if not flags & FS_TOPDIR_FL:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i4x", flags | FS_TOPDIR_FL))
    except OSError as error:
        log.debug("%s: no hint to the block allocator: %s", path, error.strerror)
    finally:
        os.close(fd)


def disk_usage(path: str) -> Usage:
    """Blocks and inodes below `path`, a hard-linked file counted once."""
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attempts = 0
        while True:
            attempts += 1
            try:
                return _usage(top)
            except OSError as error:  # ESTALE: its container has moved a folder meanwhile
                if error.errno != errno.ESTALE or attempts == USAGE_TRIES:
                    raise
    finally:
        os.close(top)


def _usage(top: int) -> Usage:
    size, inodes = os.fstat(top).st_blocks * 512, 1
    seen: set[tuple[int, int]] = set()
    for _, _, _, found in trees.walk(top):
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
        size += found.st_blocks * 512
        inodes += 1
    return Usage(size, inodes)


def size_of(labels: dict[str, str]) -> int:
    """How many bytes a snapshot with these labels may have; 0: as many as there are. Raises InvalidArgument."""
    text = labels.get(SIZE, "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise InvalidArgument(f"label {SIZE}: {text[:100]!r} is no number of bytes; give decimal digits")
    return int(text)


def _info(name: str, parent: str, columns: Sequence[Any]) -> Info:
    """Of a row's kind, labels, created, updated."""
    read = Row(f"snapshot {name}")
    kind, labels = read.number(columns[0], "kind"), read.labels(columns[1])
    if kind not in (VIEW, ACTIVE, COMMITTED):
        read.faults.append("kind is none")
        kind = ACTIVE
    created, updated = read.number(columns[2], "created"), read.number(columns[3], "updated")
    return Info(name, parent, kind, read.told(labels), created, updated)


class LocalSnapshotter:
    """Base of overlayfs and native: they say what is in a folder and how it is mounted."""

    name = ""
    local = True
    capabilities: tuple[str, ...] = ()

    def __init__(self, place: Place) -> None:
        self.root = os.path.join(place.root, "snapshots", self.name)
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        spread(self.root)
        self._database = place.database
        self._sync = place.sync
        self._settled: set[str] = set()
        self.recover()

    # To be defined by each

    def make(self, id: int, kind: int, parents: list[int], labels: dict[str, str]) -> None:
        """Fill the folder of a new snapshot over `parents`, nearest first."""
        raise NotImplementedError

    def tell(self, id: int, kind: int, parents: list[int], labels: dict[str, str]) -> list[Mount]:
        """Its mounts."""
        raise NotImplementedError

    def resize(self, id: int, size: int) -> None:
        """Let an active snapshot have so many bytes; 0: as many as there are. Raises FailedPrecondition."""
        if size:
            raise FailedPrecondition(f"snapshotter {self.name} cannot limit what a snapshot has (label {SIZE})")

    def content(self, id: int) -> str:
        """The folder that holds the snapshot's own changes."""
        return os.path.join(self.folder(id), "fs")

    # Records

    def folder(self, id: int) -> str:
        """The folder of a snapshot, by the number of its record."""
        return os.path.join(self.root, str(id))

    def _row(self, name: str) -> Any:
        row = self._database.one(
            "SELECT id, parent, kind, labels, created, updated, size, inodes FROM layers "
            "WHERE snapshotter = ? AND name = ?",
            (self.name, name),
        )
        if row is None:
            raise NotFound(f"snapshot {name} does not exist")
        return row

    def _parents(self, parent: int | None) -> list[int]:
        """From `parent` down to the first layer."""
        if parent is None:
            return []
        rows = self._database.all(
            "WITH RECURSIVE chain (id, parent, depth) AS (SELECT id, parent, 0 FROM layers WHERE id = ? "
            "UNION ALL SELECT layers.id, layers.parent, depth + 1 FROM layers JOIN chain ON layers.id = chain.parent "
            "WHERE depth < ?) SELECT id FROM chain ORDER BY depth",
            (parent, DEEPEST),
        )
        if len(rows) > DEEPEST:
            raise FailedPrecondition(f"the layers below record {parent} in metadata.db have no end: it is damaged")
        return [row[0] for row in rows]

    def stat(self, name: str) -> Info:
        row = self._row(name)
        parent = ""
        if row[1] is not None:
            found = self._database.one("SELECT name FROM layers WHERE id = ?", (row[1],))
            parent = str(found[0]) if found else ""
        return _info(name, parent, row[2:6])

    def update(self, name: str, labels: dict[str, str]) -> Info:
        with self._database.transaction() as execute:
            row = self._row(name)
            before = _info(name, "", row[2:6])
            execute("UPDATE layers SET labels = ?, updated = ? WHERE id = ?", (dump_labels(labels), now(), row[0]))
            if before.kind == ACTIVE and before.labels.get(SIZE) != labels.get(SIZE):
                self.resize(row[0], size_of(labels))
        return self.stat(name)

    def walk(self) -> Iterator[Info]:
        rows = self._database.all(
            "SELECT layers.name, above.name, layers.kind, layers.labels, layers.created, layers.updated "
            "FROM layers LEFT JOIN layers AS above ON above.id = layers.parent "
            "WHERE layers.snapshotter = ? ORDER BY layers.id",
            (self.name,),
        )
        return (_info(str(row[0]), str(row[1] or ""), row[2:6]) for row in rows)

    def usage(self, name: str) -> Usage:
        row = self._row(name)
        if row[2] == COMMITTED and row[7] and type(row[6]) is type(row[7]) is int:
            return Usage(row[6], row[7])
        usage = disk_usage(self.content(row[0]))
        if row[2] == COMMITTED:
            with self._database.transaction(durable=False) as execute:
                execute("UPDATE layers SET size = ?, inodes = ? WHERE id = ?", (usage.size, usage.inodes, row[0]))
        return usage

    def mounts(self, name: str) -> list[Mount]:
        row = self._row(name)
        if row[2] == COMMITTED:
            raise FailedPrecondition(f"snapshot {name} is committed: it has no mounts of its own")
        info = _info(name, "", row[2:6])
        must_be_whole(info.labels, f"snapshot {name}")
        return self.tell(row[0], info.kind, self._parents(row[1]), info.labels)

    def prepare(self, name: str, parent: str, labels: dict[str, str]) -> list[Mount]:
        return self._create(name, parent, ACTIVE, labels)

    def view(self, name: str, parent: str, labels: dict[str, str]) -> list[Mount]:
        return self._create(name, parent, VIEW, labels)

    def _create(self, name: str, parent: str, kind: int, labels: dict[str, str]) -> list[Mount]:
        id = 0
        try:
            with self._database.transaction() as execute:
                if execute("SELECT 1 FROM layers WHERE snapshotter = ? AND name = ?", (self.name, name)).fetchone():
                    raise AlreadyExists(f"snapshot {name}")
                above = self._committed_parent(parent)
                stamp = now()
                id = (
                    execute(
                        "INSERT INTO layers (snapshotter, name, parent, kind, labels, created, updated) "
                        "VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (self.name, name, above, kind, dump_labels(labels), stamp, stamp),
                    ).lastrowid
                    or 0
                )
                parents = self._parents(above)
                self._make_limited(id, kind, parents, labels)
        except BaseException:
            if id:
                self._remove_folder(self.folder(id))
            raise
        return self.tell(id, kind, parents, labels)

    def _make_limited(self, id: int, kind: int, parents: list[int], labels: dict[str, str]) -> None:
        size = size_of(labels) if kind == ACTIVE else 0
        self.make(id, kind, parents, labels)
        if size:
            self.resize(id, size)

    def _committed_parent(self, parent: str) -> int | None:
        if not parent:
            return None
        try:
            row = self._row(parent)
        except NotFound:
            raise NotFound(f"parent snapshot {parent} does not exist") from None
        if row[2] != COMMITTED:
            raise InvalidArgument(f"parent {parent} is not committed snapshot")
        return int(row[0])

    def settle(self, key: str) -> None:
        if self._sync:
            writeback.syncfs(self.content(self._row(key)[0]))
        self._settled.add(key)

    def commit(self, name: str, key: str, labels: dict[str, str], parent: str = "") -> None:
        if key not in self._settled:
            self.settle(key)
        self._settled.discard(key)
        with self._database.transaction() as execute:
            row = self._row(key)
            if row[2] != ACTIVE:
                raise FailedPrecondition(f"snapshot {key} is not active")
            if execute("SELECT 1 FROM layers WHERE snapshotter = ? AND name = ?", (self.name, name)).fetchone():
                raise AlreadyExists(f"snapshot {name}")
            above = row[1]
            if parent and above is None:
                above = self._committed_parent(parent)
            stamp = now()
            execute(
                "UPDATE layers SET name = ?, kind = ?, parent = ?, labels = ?, created = ?, updated = ? WHERE id = ?",
                (name, COMMITTED, above, dump_labels(labels), stamp, stamp, row[0]),
            )

    def changes(self, name: str) -> str:
        row = self._row(name)
        if row[2] != COMMITTED:
            raise NotFound(f"snapshot {name} is not committed")
        return self.content(row[0])

    def committed(self, folder: str) -> str:
        id = os.path.basename(os.path.dirname(folder))
        if not id.isdecimal() or folder != self.content(int(id)):
            return ""
        row = self._database.one(
            "SELECT name FROM layers WHERE id = ? AND snapshotter = ? AND kind = ?", (int(id), self.name, COMMITTED)
        )
        return str(row[0]) if row is not None else ""

    def remove(self, name: str) -> None:
        with self._database.transaction() as execute:
            row = self._row(name)
            if execute("SELECT 1 FROM layers WHERE parent = ? LIMIT 1", (row[0],)).fetchone():
                raise FailedPrecondition("cannot remove snapshot with child")
            execute("DELETE FROM layers WHERE id = ?", (row[0],))

    def cleanup(self) -> None:
        # Listed before the records are read: a snapshot made meanwhile has its record first, so it is safe.
        folders = [entry for entry in os.listdir(self.root) if entry.isdigit()]
        with self._database.frozen():
            kept = {
                str(row[0]) for row in self._database.all("SELECT id FROM layers WHERE snapshotter = ?", (self.name,))
            }
        gone = [entry for entry in folders if entry not in kept]
        if gone:
            self._database.sync()  # no power cut may bring back the record of a folder that is gone
        for entry in gone:
            self._remove_folder(os.path.join(self.root, entry))

    def _remove_folder(self, path: str) -> None:
        """Remove a folder; what cannot be removed stays for the next clean-up, and the log says so."""
        try:
            quota.release(path)
            trees.remove_tree(path)
        except OSError as error:
            log.warning("snapshot folder %s is not removed: %s", path, error.strerror)

    def recover(self) -> None:
        """At start: after a power cut the folder of a young active snapshot may not have reached the disk; and limits
        are set again, which a check or a copy of the file system may have lost."""
        rows = self._database.all(
            "SELECT id, parent, kind, labels, name FROM layers WHERE snapshotter = ? AND kind != ?",
            (self.name, COMMITTED),
        )
        for id, parent, kind, labels, name in rows:
            info = _info(str(id), "", (kind, labels, 0, 0))
            if os.path.isdir(self.content(id)):
                self._limit_again(id, str(name), info)
                continue
            try:
                must_be_whole(info.labels, f"snapshot folder {self.folder(id)}")
                self._make_limited(id, info.kind, self._parents(parent), info.labels)
                log.warning("snapshot folder %s was missing: made again, empty", self.folder(id))
            except (OSError, Error) as error:
                log.error("snapshot folder %s is missing, and is not made again: %s", self.folder(id), error)

    def _limit_again(self, id: int, name: str, info: Info) -> None:
        try:
            if info.kind == ACTIVE and (size := size_of(info.labels)):
                self.resize(id, size)
        except (OSError, Error) as error:
            log.error("snapshot %s is not limited any more: %s", name, error)

    def close(self) -> None:
        pass
