# SPDX-License-Identifier: Apache-2.0
"""metadata.db: everything teu-containerd knows that is not a blob or a directory of a snapshot.

    meta            key, value                          version of the schema; uuid of this daemon
    namespaces      name, labels                        made by hand or by the first object within
    containers      namespace, id                       labels, image, snapshotter, snapshot_key, sandbox,
                                                        record (Container: runtime, spec, extensions)
    images          namespace, name                     target (digest), labels, record (Descriptor)
    blobs           namespace, digest                   size, labels          file: content/blobs/sha256/HEX
    ingests         namespace, ref                      id, total, expected   folder: content/ingest/ID/
    leases          namespace, id                       labels
    lease_resources namespace, lease, type, resource    types: content, ingests, images, snapshots/SNAPSHOTTER
    snapshots       namespace, snapshotter, key         parent, backend, labels
    sandboxes       namespace, id                       labels, record (Sandbox)
    layers          snapshotter, name                   id, parent, kind, labels, size, inodes
                                                        the built-in snapshotters' own records, folder: ID/

`snapshots` is what clients of a namespace see; its `backend` is the name of the same snapshot in the snapshotter,
where namespaces share one tree (`layers` for the built-in ones, the other end of the socket for proxies). Labels are
JSON objects, times are nanoseconds since 1970. Names are unique per namespace by primary key; nothing refers across
namespaces but blobs (by digest) and layers (by name).

A file of 1 MiB beside the database is given up as soon as the disk is full, so that what has to be removed then can
also be removed from here.

Durability: the journal (WAL) is written at each commit and forced to disk before the call that asked for it is
answered, outside the lock: calls that commit at the same time share one fdatasync. A commit that needs no such
promise (`durable=False`) becomes durable with the next that does: the journal has one order. So a power cut leaves
the state of some moment after the last answered call.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from teu.containerd.core.errors import FailedPrecondition, InvalidArgument
from teu.linux.reserve import Reserve

log = logging.getLogger("teu.containerd")

# One script per version; a released one is never changed, a new one is appended.
MIGRATIONS = (
    """
    CREATE TABLE namespaces (
        name TEXT PRIMARY KEY, labels TEXT NOT NULL DEFAULT '{}'
    ) WITHOUT ROWID;
    CREATE TABLE containers (
        namespace TEXT, id TEXT, labels TEXT NOT NULL, image TEXT NOT NULL, snapshotter TEXT NOT NULL,
        snapshot_key TEXT NOT NULL, sandbox TEXT NOT NULL, record BLOB NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL, PRIMARY KEY (namespace, id)
    );
    CREATE TABLE images (
        namespace TEXT, name TEXT, target TEXT NOT NULL, labels TEXT NOT NULL, record BLOB NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL, PRIMARY KEY (namespace, name)
    );
    CREATE TABLE blobs (
        namespace TEXT, digest TEXT, size INTEGER NOT NULL, labels TEXT NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL, PRIMARY KEY (namespace, digest)
    );
    CREATE INDEX blobs_by_digest ON blobs (digest);
    CREATE TABLE ingests (
        namespace TEXT, ref TEXT, id INTEGER PRIMARY KEY AUTOINCREMENT, total INTEGER NOT NULL,
        expected TEXT NOT NULL, started INTEGER NOT NULL, expires INTEGER, UNIQUE (namespace, ref)
    );
    CREATE TABLE leases (
        namespace TEXT, id TEXT, labels TEXT NOT NULL, created INTEGER NOT NULL, PRIMARY KEY (namespace, id)
    );
    CREATE TABLE lease_resources (
        namespace TEXT, lease TEXT, type TEXT, resource TEXT,
        PRIMARY KEY (namespace, lease, type, resource)
    ) WITHOUT ROWID;
    CREATE INDEX lease_resources_by_resource ON lease_resources (namespace, type, resource);
    CREATE TABLE snapshots (
        namespace TEXT, snapshotter TEXT, key TEXT, parent TEXT NOT NULL, backend TEXT NOT NULL,
        labels TEXT NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL,
        PRIMARY KEY (namespace, snapshotter, key)
    );
    CREATE INDEX snapshots_by_parent ON snapshots (namespace, snapshotter, parent);
    CREATE INDEX snapshots_by_backend ON snapshots (snapshotter, backend);
    CREATE TABLE sandboxes (
        namespace TEXT, id TEXT, labels TEXT NOT NULL, record BLOB NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL, PRIMARY KEY (namespace, id)
    );
    CREATE TABLE layers (
        id INTEGER PRIMARY KEY AUTOINCREMENT, snapshotter TEXT NOT NULL, name TEXT NOT NULL,
        parent INTEGER REFERENCES layers (id), kind INTEGER NOT NULL, labels TEXT NOT NULL,
        size INTEGER NOT NULL DEFAULT 0, inodes INTEGER NOT NULL DEFAULT 0,
        created INTEGER NOT NULL, updated INTEGER NOT NULL, UNIQUE (snapshotter, name)
    );
    CREATE INDEX layers_by_parent ON layers (parent);
    """,
)

LABEL_LIMIT = 4096  # key and value together, containerd's rule


def validate_labels(labels: dict[str, str]) -> None:
    """InvalidArgument for a label that is longer than containerd lets one be."""
    for key, value in labels.items():
        if len(key) + len(value) > LABEL_LIMIT:
            shown = key[:64]
            raise InvalidArgument(
                f"label key and value length ({len(key) + len(value)} bytes) greater than maximum size "
                f"({LABEL_LIMIT} bytes), key: {shown}"
            )


def set_labels(kept: Any, wanted: Any, key: str = "") -> None:
    """Change a map of labels as a field mask says: the one `key`, or all. An empty value is none."""
    if key:
        if wanted.get(key):
            kept[key] = wanted[key]
        else:
            kept.pop(key, None)
        return
    kept.clear()
    kept.update({name: value for name, value in wanted.items() if value})


def set_mask_path(kept: Any, wanted: Any, path: str) -> bool:
    """One path of a field mask on what containers and sandboxes have alike: all labels or extensions, or one of them.
    False where the path names something else."""
    head, _, key = path.partition(".")
    if head == "labels":
        set_labels(kept.labels, wanted.labels, key)
    elif head == "extensions" and key:
        kept.extensions[key].CopyFrom(wanted.extensions[key])
    elif head == "extensions":
        kept.extensions.clear()
        for name, value in wanted.extensions.items():
            kept.extensions[name].CopyFrom(value)
    else:
        return False
    return True


def dump_labels(labels: Any, *, limited: bool = True) -> str:
    """For a column. Without `limited` of any size, as containerd takes the labels of leases and sandboxes."""
    plain = {key: value for key, value in labels.items() if value}
    if limited:
        validate_labels(plain)
    return json.dumps(plain, separators=(",", ":"), sort_keys=True)


def set_timestamp(field: Any, nanoseconds: int) -> None:
    """Fill a google.protobuf.Timestamp."""
    field.seconds, field.nanos = divmod(nanoseconds, 1_000_000_000)


def _for_us_alone(path: str) -> None:
    """Specifications have secrets in their environments; SQLite gives its other files the database's mode. What stands
    in the way here does so at the opening, too, which says it."""
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for file in (path, f"{path}-wal", f"{path}-shm"):
        with contextlib.suppress(OSError):
            os.chmod(file, 0o600)


class Unreadable(FailedPrecondition):
    """The file cannot be read at all, or was written by a later version of teu-containerd: only a person mends that."""


# Keys by which clients find a row to look at and delete it, in tables with row ids.
_KEYS = {
    "containers": ("namespace", "id"),
    "images": ("namespace", "name"),
    "blobs": ("namespace", "digest"),
    "leases": ("namespace", "id"),
    "snapshots": ("namespace", "snapshotter", "key"),
    "sandboxes": ("namespace", "id"),
    "ingests": ("namespace", "ref"),
}

# What SQLite says of a file that is damaged, as opposed to a full disk or another process.
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_ERROR")


class Database:
    """One connection, one lock. Transactions nest: the outermost commits."""

    def __init__(self, path: str, patience: float = 5.0) -> None:
        self.path = path
        for file in (path, f"{path}-wal", f"{path}-shm"):
            if os.path.lexists(file) and not os.path.isfile(file):
                raise Unreadable(f"open {path}: {file} is not a file; {self._remedy()}")
        # Nothing is written before it is asked for: an empty file is one that lost what was in it, not a fresh one.
        if os.path.exists(path) and not os.path.getsize(path) and self._has_stood_for_something():
            raise Unreadable(f"open {path}: it is empty; {self._remedy()}")
        _for_us_alone(path)
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=patience)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            self._connection.execute("PRAGMA wal_autocheckpoint=1000")
            self._connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
            self._check()
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error
        self._lock = threading.RLock()
        self._depth = 0
        self._journal = -1  # not yet: the first transactions are synced by the last line
        self._sync_lock = threading.Lock()
        self._committed = 0
        self._synced = 0
        self.on_mutation: Callable[[bool], None] | None = None
        self._reserve = Reserve(f"{path}-reserve")
        try:
            self._migrate()
            self._check_tables()
            self._mend_keys()
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error
        self._journal = os.open(path + "-wal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.sync()

    def _told(self, error: sqlite3.DatabaseError) -> FailedPrecondition:
        """An error at the opening, in words for the person who has to do something."""
        name = str(getattr(error, "sqlite_errorname", "")) or "SQLITE_CORRUPT"  # ours, of _check
        if any(name == known or name.startswith(f"{known}_") for known in _DAMAGE):
            return Unreadable(f"open {self.path}: {error}; {self._remedy()}")
        return FailedPrecondition(
            f"open {self.path}: {error}; stop the process that holds it, or make room and check permissions"
        )

    def _remedy(self) -> str:
        return (
            "move it away and restore a backup, or start with an empty one: containers are then gone, and blobs need to"
            " be pulled again"
        )

    def _has_stood_for_something(self) -> bool:
        """Whether an earlier daemon had blobs or snapshots beside this file."""
        for folder in ("content/blobs/sha256", "snapshots/overlayfs", "snapshots/native"):
            with contextlib.suppress(OSError):
                if os.listdir(os.path.join(os.path.dirname(self.path), folder)):
                    return True
        return False

    def _check_tables(self) -> None:
        """That all are there, with all columns. Raises sqlite3.OperationalError."""
        with contextlib.closing(sqlite3.connect(":memory:")) as model:
            for script in MIGRATIONS:
                model.executescript(script)
            for (table,) in model.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
                columns = ", ".join(row[1] for row in model.execute(f"PRAGMA table_info({table})"))
                self._connection.execute(f"SELECT {columns} FROM {table} LIMIT 0")

    def _mend_keys(self) -> None:
        """Give a row whose key cannot be spelt in a request another key, by which it can be looked at and deleted."""
        self._connection.text_factory, usual = bytes, self._connection.text_factory
        lost: list[tuple[str, str, int]] = []
        try:
            for table, columns in _KEYS.items():
                for row in self._connection.execute(f"SELECT rowid, {', '.join(columns)} FROM {table}"):
                    lost += [(table, name, row[0]) for name, key in zip(columns, row[1:]) if not _sayable(key)]
        finally:
            self._connection.text_factory = usual
        for table, column, number in lost:
            key = "damaged" if column == "namespace" else f"damaged-{number}"
            log.error("a record of %s in metadata.db has lost its %s, and gets %s", table, column, key)
            with self.transaction() as execute:
                if column == "namespace":
                    self.ensure_namespace(key)
                execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE rowid = ?", (key, number))

    def _check(self) -> None:
        found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    def _migrate(self) -> None:
        execute = self._connection.execute
        execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        row = execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
        try:
            version = int(row[0]) if row else 0
        except ValueError:
            raise Unreadable(f"open {self.path}: its version is {row[0]!r}; {self._remedy()}") from None
        if version > len(MIGRATIONS):
            raise Unreadable(
                f"{self.path} was written by a newer teu-containerd (schema {version}, this one knows"
                f" {len(MIGRATIONS)}); install that version again, or move the file away"
            )
        for number in range(version, len(MIGRATIONS)):
            with self.transaction():
                for statement in MIGRATIONS[number].split(";"):
                    if statement.strip():
                        execute(statement)
                execute("INSERT OR REPLACE INTO meta VALUES ('version', ?)", (str(number + 1),))
        execute("INSERT OR IGNORE INTO meta VALUES ('uuid', ?)", (str(uuid.uuid4()),))

    @property
    def uuid(self) -> str:
        return str(self.one("SELECT value FROM meta WHERE key = 'uuid'")[0])

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """All or nothing. Yields `execute`. With `durable`, on disk before it returns (outermost only)."""
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                try:
                    self._reserve.mind()
                    self._connection.execute("BEGIN IMMEDIATE")
                except BaseException:
                    self._depth = 0
                    raise
            try:
                yield self._connection.execute
            except BaseException:
                if self._depth == 1:
                    self._connection.execute("ROLLBACK")
                raise
            else:
                if self._depth == 1:
                    try:
                        self._connection.execute("COMMIT")
                    except BaseException:
                        if self._connection.in_transaction:
                            self._connection.execute("ROLLBACK")
                        raise
                    self._committed += 1
            finally:
                self._depth -= 1
            outermost = self._depth == 0
            number = self._committed
        if durable and outermost:
            self._sync_to(number)

    @property
    def committed(self) -> int:
        """Transactions so far."""
        return self._committed

    def sync(self) -> None:
        """Everything committed so far is on disk when this returns."""
        self._sync_to(self._committed)

    def _sync_to(self, number: int) -> None:
        if self._synced >= number:
            return
        with self._sync_lock:
            if self._synced >= number:
                return  # another call's fdatasync covered this one
            target = self._committed
            if self._journal >= 0:
                os.fdatasync(self._journal)
                self._synced = target

    def one(self, sql: str, arguments: tuple[Any, ...] = ()) -> Any:
        with self._lock:
            return self._connection.execute(sql, arguments).fetchone()

    def all(self, sql: str, arguments: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(sql, arguments).fetchall()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Nobody else reads or writes meanwhile."""
        with self._lock:
            yield

    def mutated(self, *, files: bool = False) -> None:
        """Something was deleted; `files`: what has files, which are to go. Called after the transaction."""
        if self.on_mutation is not None:
            self.on_mutation(files)

    def ensure_namespace(self, namespace: str) -> None:
        """Within a transaction: objects make their namespace."""
        self._connection.execute("INSERT OR IGNORE INTO namespaces (name) VALUES (?)", (namespace,))

    def close(self) -> None:
        with self._lock:
            self.sync()
            self._connection.close()
            os.close(self._journal)


def _sayable(key: object) -> bool:
    """Whether a key, read as bytes, is a text that a client can give."""
    if type(key) is not bytes:
        return False
    if key.isascii():
        return key != b""
    try:
        return bool(key.decode())
    except UnicodeDecodeError:
        return False


def now() -> int:
    """Nanoseconds since 1970."""
    return time.time_ns()
