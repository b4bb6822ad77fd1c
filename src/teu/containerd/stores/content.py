# SPDX-License-Identifier: Apache-2.0
"""The content store: blobs by digest, and the ingests that become blobs.

    content/blobs/sha256/HEX     a blob: complete, verified, never changed
    content/lean/HEX/            a blob that is not whole yet: its large files are still in their snapshot (lean.py)
    content/ingest/ID/data       an ingest: what has arrived so far; ID is its row's in metadata.db

A blob's file is shared by all namespaces; a namespace sees it once it has a row of its own. To get one it must name
the digest: a Write with an expected digest whose file is there already needs no data. Ingests survive restarts and are
resumed at the length of their file. One writer at a time holds an ingest; the next gets UNAVAILABLE and comes again.

Order of a commit: data to disk, file into place, folder to disk, then the row. A crash in between leaves a file
without a row, which the next collection removes: `collect` looks and unlinks under the lock that commits take.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from teu.api.events import content_pb2 as content_events
from teu.api.services.content.v1 import content_pb2
from teu.containerd.core.database import Database, dump_labels, now, set_timestamp
from teu.containerd.core.digests import is_digest
from teu.containerd.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from teu.containerd.core.events import Exchange
from teu.containerd.core.filters import Adaptor, in_map, parse_all
from teu.containerd.core.rows import Row, must_be_whole, plain_labels
from teu.containerd.stores.lean import Lean, Lent
from teu.containerd.stores.leases import Leases
from teu.linux import trees, writeback
from teu.oci.labels import LEAN

log = logging.getLogger("teu.containerd.content")

CHUNK = 1 << 20
UNLEASED_INGEST_NANOSECONDS = 24 * 3600 * 1_000_000_000
FLUSH_EVERY = 32 << 20  # bytes: begin writing back early, so that the commit's fsync is short


def fsync_directory(path: str) -> None:
    """Put the names in a folder on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _info(row: Any) -> content_pb2.Info:
    read = Row(f"content {row[0]}")
    info = content_pb2.Info(digest=read.text(row[0], "digest"), size=read.number(row[1], "size"))
    if not is_digest(info.digest):
        read.faults.append("digest is none")
    labels = read.labels(row[2])
    set_timestamp(info.created_at, read.number(row[3], "created"))
    set_timestamp(info.updated_at, read.number(row[4], "updated"))
    info.labels.update(read.told(labels))
    return info


def _adaptor(info: content_pb2.Info) -> Adaptor:
    def adapt(path: Sequence[str]) -> str | None:
        match path[0]:
            case "digest":
                return str(info.digest)
            case "labels":
                return in_map(path[1:], info.labels)
        return None

    return adapt


class Content:
    """containerd.services.content.v1, without its wire. A method raises NotFound for a blob or ingest that the
    namespace does not have."""

    def __init__(self, root: str, database: Database, events: Exchange, leases: Leases, lean: Lean) -> None:
        self.lean = lean
        self.blobs = os.path.join(root, "content", "blobs")
        self.ingests = os.path.join(root, "content", "ingest")
        os.makedirs(os.path.join(self.blobs, "sha256"), mode=0o700, exist_ok=True)
        os.makedirs(self.ingests, mode=0o700, exist_ok=True)
        fsync_directory(self.blobs)
        self._database = database
        self._events = events
        self._leases = leases
        self._place_lock = threading.Lock()  # putting a blob's file in place, or unlinking it
        self._fill_lock = threading.Lock()  # making a lean one whole
        self._writers: dict[int, float] = {}  # ingest id -> when it was taken
        self._writers_lock = threading.Lock()

    # Blobs

    def path(self, digest: str) -> str:
        """The file of a blob, whether it is there or not."""
        algorithm, _, encoded = digest.partition(":")
        return os.path.join(self.blobs, algorithm, encoded)

    def info(self, namespace: str, digest: str) -> content_pb2.Info:
        """containerd.services.content.v1.Info of a blob; its size in bytes."""
        row = self._database.one(
            "SELECT digest, size, labels, created, updated FROM blobs WHERE namespace = ? AND digest = ?",
            (namespace, digest),
        )
        if row is None:
            raise NotFound(f"content digest {digest}")
        return _info(row)

    def open(self, namespace: str, digest: str) -> int:
        """A descriptor to read the blob with, if the namespace has it. A lean one is made whole for it, which takes as
        long as writing it does. Raises DataLoss for one that cannot be."""
        self.info(namespace, digest)
        if not is_digest(digest):
            raise NotFound(f"content digest {digest}")  # a damaged row: it names no file
        for _ in range(2):
            try:
                return os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._make_whole(digest)
        raise NotFound(f"content digest {digest}")

    def _make_whole(self, digest: str) -> None:
        """Nothing for what is no lean blob."""
        with self._fill_lock:
            if digest not in self.lean:
                return
            data, target = self.lean.fill(digest), self.path(digest)
            with self._place_lock:
                try:
                    os.rename(data, target)
                except FileNotFoundError:
                    raise NotFound(f"content digest {digest}") from None  # it was removed meanwhile
                fsync_directory(os.path.dirname(target))
                self._not_lean(digest)

    def _not_lean(self, digest: str) -> None:
        """It is whole now."""
        with self._database.transaction(durable=False) as execute:
            for namespace, text in execute(
                "SELECT namespace, labels FROM blobs WHERE digest = ?", (digest,)
            ).fetchall():
                labels = plain_labels(text)
                if labels and labels.pop(LEAN, None):
                    execute(
                        "UPDATE blobs SET labels = ? WHERE namespace = ? AND digest = ?",
                        (dump_labels(labels), namespace, digest),
                    )
        self.lean.forget(digest)

    def find(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[content_pb2.Info]:
        """Info of the blobs that one of the filters lets through, by digest; all of them without filters."""
        accept = parse_all(filters)
        rows = self._database.all(
            "SELECT digest, size, labels, created, updated FROM blobs WHERE namespace = ? ORDER BY digest", (namespace,)
        )
        return (info for info in map(_info, rows) if accept(_adaptor(info)))

    def update(self, namespace: str, info: content_pb2.Info, paths: Sequence[str]) -> content_pb2.Info:
        """Change the labels that `paths` name (labels, labels.KEY), all without any; the changed Info.

        Raises InvalidArgument for another path, FailedPrecondition for a damaged record."""
        with self._database.transaction() as execute:
            updated = self.info(namespace, info.digest)
            must_be_whole(updated.labels, f"content {info.digest}")
            for path in paths or ("labels",):
                head, _, key = path.partition(".")
                if head == "labels" and key:
                    if info.labels.get(key):
                        updated.labels[key] = info.labels[key]
                    else:
                        updated.labels.pop(key, None)
                elif path == "labels":
                    updated.labels.clear()
                    updated.labels.update(info.labels)
                else:
                    raise InvalidArgument(f'cannot update "{path}" field on content info "{info.digest}"')
            stamp = now()
            execute(
                "UPDATE blobs SET labels = ?, updated = ? WHERE namespace = ? AND digest = ?",
                (dump_labels(updated.labels), stamp, namespace, info.digest),
            )
        set_timestamp(updated.updated_at, stamp)
        return updated

    def delete(self, namespace: str, digest: str) -> None:
        """Take a blob from the namespace; its file goes with the last one's."""
        with self._database.transaction() as execute:
            if not execute("DELETE FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest)).rowcount:
                raise NotFound(f"content digest {digest}")
            self._leases.release(namespace, "content", digest)
        self._database.mutated(files=True)
        self._events.publish(namespace, "/content/delete", content_events.ContentDelete(digest=digest))

    # Ingests

    def _ingest_path(self, id: int) -> str:
        return os.path.join(self.ingests, str(id), "data")

    def _status(self, row: Any) -> content_pb2.Status:
        read = Row(f"ingest {row[1]}")
        id, ref, total, expected, started = (
            row[0],
            read.text(row[1], "ref"),
            read.number(row[2], "total"),
            read.text(row[3], "expected"),
            read.number(row[4], "started"),
        )
        read.told({})
        status = content_pb2.Status(ref=ref, total=total, expected=expected)
        updated = started
        try:
            found = os.stat(self._ingest_path(id))
            status.offset, updated = found.st_size, found.st_mtime_ns
        except FileNotFoundError:
            if expected:
                status.offset = total
        set_timestamp(status.started_at, started)
        set_timestamp(status.updated_at, max(started, updated))
        return status

    def status(self, namespace: str, ref: str) -> content_pb2.Status:
        """containerd.services.content.v1.Status of an ingest; its offset in bytes."""
        row = self._database.one(
            "SELECT id, ref, total, expected, started FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref)
        )
        if row is None:
            raise NotFound(f"reference {ref}")
        return self._status(row)

    def statuses(self, namespace: str, filters: Sequence[str] = ()) -> list[content_pb2.Status]:
        """Status of the ingests that one of the filters lets through, by reference; all of them without filters."""
        accept = parse_all(filters)
        rows = self._database.all(
            "SELECT id, ref, total, expected, started FROM ingests WHERE namespace = ? ORDER BY ref", (namespace,)
        )
        statuses = [self._status(row) for row in rows]

        def adaptor(status: content_pb2.Status) -> Adaptor:
            return lambda path: str(status.ref) if path[0] == "ref" else None

        return [one for one in statuses if accept(adaptor(one))]

    def abort(self, namespace: str, ref: str) -> None:
        """Give an ingest up, with what has arrived of it."""
        with self._database.transaction() as execute:
            row = execute("SELECT id FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref)).fetchone()
            if row is None:
                raise NotFound(f"reference {ref}")
            execute("DELETE FROM ingests WHERE id = ?", (row[0],))
            self._leases.release(namespace, "ingests", ref)
        trees.discard_tree(os.path.dirname(self._ingest_path(row[0])))

    def writer(self, namespace: str, ref: str, *, total: int = 0, expected: str = "", lease: str = "") -> Writer:
        """Take the ingest `ref`, new or to be resumed.

        AlreadyExists when the namespace has the expected blob; Unavailable while another writer holds the ingest.
        """
        if not ref:
            raise InvalidArgument("ref must not be empty")
        if expected in self.lean and not self._database.one(
            "SELECT 1 FROM blobs WHERE namespace = ? AND digest = ?", (namespace, expected)
        ):
            self._make_whole(expected)  # only files are shared between namespaces
        shared = False
        exists = False
        with self._database.transaction(durable=False) as execute:
            self._database.ensure_namespace(namespace)
            if expected:
                if execute("SELECT 1 FROM blobs WHERE namespace = ? AND digest = ?", (namespace, expected)).fetchone():
                    exists = True
                    self._leases.hold(namespace, lease, "content", expected)
                elif (size := self._size_on_disk(expected)) is not None and total in (0, size):
                    shared, total = True, size
            if not exists:
                held = self._leases.hold(namespace, lease, "ingests", ref)
                execute(
                    "INSERT OR IGNORE INTO ingests (namespace, ref, total, expected, started, expires) "
                    "VALUES (?, ?, ?, '', ?, ?)",
                    (namespace, ref, total, now(), None if held else now() + UNLEASED_INGEST_NANOSECONDS),
                )
                id, known_total, started = execute(
                    "SELECT id, total, started FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref)
                ).fetchone()
                with self._writers_lock:
                    since = self._writers.get(id)
                    if since is not None:
                        raise Unavailable(f"ref {namespace}/{id}/{ref} locked for {time.time() - since:.3f}s")
                    self._writers[id] = time.time()
                if shared:
                    execute("UPDATE ingests SET expected = ?, total = ? WHERE id = ?", (expected, total, id))
                another = not shared and bool(total and known_total and total != known_total)
                if another:  # a new thing under an old name: what arrived is none of it
                    execute("UPDATE ingests SET expected = '', total = ? WHERE id = ?", (total, id))
        if exists:
            raise AlreadyExists(f"content {expected}")
        try:
            writer = Writer(self, namespace, ref, id, total or known_total, expected if shared else "", started, lease)
            if another:
                writer.truncate()
            return writer
        except BaseException:
            self.unlock(id)
            raise

    def _size_on_disk(self, digest: str) -> int | None:
        if not is_digest(digest):
            return None
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            return None

    def unlock(self, id: int) -> None:
        """Let go of an ingest, which stays. Called by its Writer."""
        with self._writers_lock:
            self._writers.pop(id, None)

    def commit(self, writer: Writer, size: int, expected: str, labels: dict[str, str]) -> str:
        """`Writer.commit`, the part that belongs to the store."""
        namespace, digest = writer.namespace, writer.digest
        dump_labels(labels)  # raises what is wrong with them
        exists = False
        with self._place_lock:
            target = self.path(digest)
            if not os.path.exists(target) and not (writer.lent and digest in self.lean):
                if writer.fd < 0:
                    raise FailedPrecondition(f'"{writer.ref}" content {digest} is no longer there to be shared')
                data = self._ingest_path(writer.id)
                if writer.lent:
                    self.lean.put(digest, os.path.dirname(data), writer.lent)
                else:
                    os.rename(data, target)
                    fsync_directory(os.path.dirname(target))
                    if digest in self.lean:
                        self._not_lean(digest)
            if digest in self.lean:
                labels = {**labels, LEAN: "true"}
            encoded_labels = dump_labels(labels)
            stamp = now()
            with self._database.transaction() as execute:
                self._database.ensure_namespace(namespace)
                exists = bool(
                    execute("SELECT 1 FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest)).fetchone()
                )
                if not exists:
                    execute(
                        "INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?)",
                        (namespace, digest, size, encoded_labels, stamp, stamp),
                    )
                execute("DELETE FROM ingests WHERE id = ?", (writer.id,))
                self._leases.release(namespace, "ingests", writer.ref)
                self._leases.hold(namespace, writer.lease, "content", digest)
        trees.discard_tree(os.path.dirname(self._ingest_path(writer.id)))
        if exists:
            raise AlreadyExists(f"content {digest}")
        self._events.publish(namespace, "/content/create", content_events.ContentCreate(digest=digest, size=size))
        return digest

    def write_blob(self, namespace: str, data: bytes, *, labels: dict[str, str] | None = None, lease: str = "") -> str:
        """A small blob of this daemon's own making; fine if it exists."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        try:
            with self.writer(namespace, f"own-{digest}", total=len(data), expected=digest, lease=lease) as writer:
                if writer.offset != len(data):
                    writer.truncate()
                    writer.write(data)
                writer.commit(len(data), digest, labels or {})
        except AlreadyExists:
            pass
        return digest

    def collect(self) -> int:
        """Unlink every blob without a row and every ingest without one; bytes freed. After rows were removed."""
        freed = 0
        kept = {row[0] for row in self._database.all("SELECT digest FROM blobs UNION SELECT expected FROM ingests")}
        for digest in kept:
            if digest != "" and not (type(digest) is str and is_digest(digest)):
                log.error(
                    "no content is removed from the disk while a record in metadata.db has lost its digest: delete %r",
                    digest,
                )
                return 0
        for algorithm in os.listdir(self.blobs):
            folder = os.path.join(self.blobs, algorithm)
            for encoded in os.listdir(folder):
                digest = f"{algorithm}:{encoded}"
                if digest in kept:
                    continue
                trash = os.path.join(self.ingests, f"trash-{encoded}")
                with self._place_lock, self._database.frozen():
                    used = self._used(digest)
                    if not used:
                        os.rename(os.path.join(folder, encoded), trash)
                if not used:
                    freed += os.stat(trash).st_size
                    os.unlink(trash)
        for digest in self.lean.digests():
            if digest in kept:
                continue
            with self._place_lock:
                if not self._used(digest):
                    freed += self.lean.size(digest)
                    self.lean.forget(digest)
        ids = {str(row[0]) for row in self._database.all("SELECT id FROM ingests")}
        for id in os.listdir(self.ingests):
            path = os.path.join(self.ingests, id)
            if not id.isdigit():
                os.unlink(path)  # a blob that a crash kept from being unlinked
            elif id not in ids and self._abandoned(int(id)):
                trees.discard_tree(path)
        return freed

    def _used(self, digest: str) -> bool:
        found = self._database.one(
            "SELECT 1 FROM blobs WHERE digest = ? UNION SELECT 1 FROM ingests WHERE expected = ?", (digest, digest)
        )
        return found is not None

    def _abandoned(self, id: int) -> bool:
        row = self._database.one("SELECT 1 FROM ingests WHERE id = ?", (id,))  # before the lock: see writer()
        with self._writers_lock:
            return row is None and id not in self._writers


class Writer:
    """One ingest, held. Not for more than one thread at a time. `close()` keeps what has arrived."""

    def __init__(
        self, store: Content, namespace: str, ref: str, id: int, total: int, shared: str, started: int, lease: str
    ) -> None:
        self._store = store
        self.namespace = namespace
        self.ref = ref
        self.id = id
        self.total = total
        self.lease = lease
        self.started = started
        self.updated = started
        self._written = False
        self.fd = -1  # stays closed while a shared blob needs no data
        self.offset = 0
        self._flushed = 0
        self._hash = hashlib.sha256()
        self._shared = shared
        self._adopted = ""
        self.lent: Lent | None = None  # where what it lacks is
        if shared:
            self.offset = total
        else:
            self._open()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def digest(self) -> str:
        """Of what has arrived so far."""
        return self._shared or self._adopted or "sha256:" + self._hash.hexdigest()

    def _open(self) -> None:
        path = self._store._ingest_path(self.id)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while chunk := os.pread(self.fd, CHUNK, self.offset):
            self._hash.update(chunk)
            self.offset += len(chunk)
        os.lseek(self.fd, self.offset, os.SEEK_SET)
        if self.offset:  # what came by an earlier writer
            self.updated = max(self.started, os.fstat(self.fd).st_mtime_ns)

    def _unshare(self, keep: bool) -> None:
        """Data after all, where a shared blob would have done: begin a file of our own."""
        source, self._shared, self.offset = self._shared, "", 0
        with self._store._database.transaction(durable=False) as execute:
            execute("UPDATE ingests SET expected = '' WHERE id = ?", (self.id,))
        self._open()
        if keep:
            with open(self._store.path(source), "rb") as blob:
                while chunk := blob.read(CHUNK):
                    self.write(chunk)

    def write(self, data: bytes) -> None:
        """Append bytes (blocking). Raises OSError, and what was there before is as it was: a full disk takes nothing
        away."""
        if self._shared:
            self._unshare(keep=True)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError:
            os.ftruncate(self.fd, self.offset)  # a full disk leaves what is acknowledged, no more
            os.lseek(self.fd, self.offset, os.SEEK_SET)
            raise
        self._hash.update(data)
        self.offset += len(data)
        self.updated = now()
        self._written = True
        if self.offset - self._flushed >= FLUSH_EVERY:
            writeback.start(self.fd, self._flushed, self.offset - self._flushed)
            self._flushed = self.offset

    def adopt(self, digest: str, size: int, lent: Lent | None = None) -> None:
        """A worker of this daemon has written so many bytes to `fd`, and says their digest. Nothing more is written.
        `lent`: it has left some of them out."""
        self._adopted, self.offset, self.lent = digest, size, lent
        self._written = True

    def truncate(self) -> None:
        """Back to nothing."""
        if self._shared:
            self._unshare(keep=False)
        self._adopted, self.lent = "", None
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        self.offset = self._flushed = 0
        self._hash = hashlib.sha256()

    def commit(self, size: int, expected: str, labels: dict[str, str]) -> str:
        """Verify and make it a blob; its digest. The writer is closed, whatever the outcome."""
        try:
            if size and size != self.offset:
                raise FailedPrecondition(f'"{self.ref}" failed size validation: {self.offset} != {size}')
            if expected and expected != self.digest:
                raise FailedPrecondition(f"unexpected commit digest {self.digest}, expected {expected}")
            if self.fd >= 0:
                os.fsync(self.fd)
                os.fchmod(self.fd, 0o444)
                self._written = False
            return self._store.commit(self, self.offset, expected, labels)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the ingest, which keeps what was written: the next writer of the same ref goes on there. Twice is
        fine."""
        if self.fd >= 0:
            if self._written:  # the kernel's stamp is some ms old: the next writer tells when the last byte came
                with suppress(OSError):
                    os.utime(self.fd, ns=(self.updated, self.updated))
            os.close(self.fd)
            self.fd = -1
        if self.id:
            self._store.unlock(self.id)
            self.id = 0
