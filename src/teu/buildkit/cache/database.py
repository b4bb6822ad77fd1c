# SPDX-License-Identifier: Apache-2.0
"""cache.db: SQLite under one lock, as durable as containerd's metadata: what was acknowledged survives a power cut.

The journal (WAL) is written at each commit and forced to disk before the call that asked for it returns, outside the
lock: calls that commit at the same time share one fdatasync. What asks for no such promise (`durable=False`) becomes
durable with the next that does.

What does not fit on a full disk is refused as errors.ResourceExhausted. A file of 1 MiB beside the database is given up
before that, so that what has to be removed then can also be removed from here.

It is a cache: a file that cannot be read is moved aside and an empty one begun, which is told in the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from teu.buildkit.core import errors
from teu.linux.reserve import Reserve

log = logging.getLogger("teu.buildkit")

Execute = Callable[..., sqlite3.Cursor]

_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_ERROR")


class Unusable(Exception):
    """The file cannot be used now, and is not damaged: no permission, no room, another process, a newer version."""


class Newer(Unusable):
    """A newer version has written the file: waiting mends nothing."""


class Database:
    """One connection, one lock. Transactions nest: the outermost commits. `migrations`: one script per version of the
    schema; a released one is never changed. Raises Unusable."""

    def __init__(self, path: str, migrations: Sequence[str], patience: float = 5.0) -> None:
        self.path = path
        self._migrations = migrations
        self._patience = patience
        self._lock = threading.RLock()
        self._sync_lock = threading.Lock()
        self._depth = self._committed = self._synced = 0
        self._reserve = Reserve(f"{path}-reserve")
        self.begun_anew = False  # a damaged file was moved aside
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            self._aside(error)
            self.begun_anew = True
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                raise Unusable(f"open {path}: {error}") from error
        except OSError as error:
            raise Unusable(f"open {path}: {error.strerror}") from error
        self._journal = os.open(path + "-wal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.sync()

    def _open(self) -> sqlite3.Connection:
        # Arguments of builds are in it; SQLite gives its other files the database's mode.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=self._patience)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=1000")
            connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(self._migrations):
                raise Newer(
                    f"{self.path} was written by a newer teu-buildkitd (schema {version}, this one knows"
                    f" {len(self._migrations)}); install that version again, or remove the file: builds then start"
                    " without a cache"
                )
            for number in range(version, len(self._migrations)):
                connection.execute("BEGIN IMMEDIATE")
                for statement in self._migrations[number].split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version={number + 1}")
                connection.execute("COMMIT")
            self._whole(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _whole(self, connection: sqlite3.Connection) -> None:
        """That all tables are there, with all columns. Raises sqlite3.OperationalError."""
        with contextlib.closing(sqlite3.connect(":memory:")) as model:
            for script in self._migrations:
                model.executescript(script)
            for (table,) in model.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
                columns = ", ".join(row[1] for row in model.execute(f"PRAGMA table_info({table})"))
                connection.execute(f"SELECT {columns} FROM {table} LIMIT 0")

    def _aside(self, error: sqlite3.DatabaseError) -> None:
        name = str(getattr(error, "sqlite_errorname", "")) or "SQLITE_CORRUPT"  # ours, of quick_check
        if not any(name == known or name.startswith(f"{known}_") for known in _DAMAGE):
            raise Unusable(f"open {self.path}: {error}") from error
        stamp = time.strftime("%Y%m%d-%H%M%S")
        log.error("%s cannot be read (%s): it is kept as %s.damaged-%s", self.path, error, self.path, stamp)
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path + end, f"{self.path}.damaged-{stamp}{end}")

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Execute]:
        """All or nothing. Yields `execute`. With `durable`, on disk before it returns (outermost only)."""
        try:
            with self._transaction(durable) as execute:
                yield execute
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", "") != "SQLITE_FULL":
                raise
            raise errors.ResourceExhausted(f"write {self.path}: no space left on device") from error

    @contextmanager
    def _transaction(self, durable: bool) -> Iterator[Execute]:
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
                if self._depth == 1:
                    self._connection.execute("COMMIT")
                    self._committed += 1
            except BaseException:
                if self._depth == 1 and self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1
            outermost = self._depth == 0
            number = self._committed
        if durable and outermost:
            self._sync_to(number)

    def sync(self) -> None:
        """Everything committed so far is on disk when this returns."""
        self._sync_to(self._committed)

    def _sync_to(self, number: int) -> None:
        if self._synced >= number:
            return
        with self._sync_lock:
            if self._synced < number:  # else another call's fdatasync covered this one
                target = self._committed
                os.fdatasync(self._journal)
                self._synced = target

    def one(self, sql: str, arguments: tuple[Any, ...] = ()) -> Any:
        with self._lock:
            return self._connection.execute(sql, arguments).fetchone()

    def all(self, sql: str, arguments: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(sql, arguments).fetchall()

    def close(self) -> None:
        with self._lock:
            self.sync()
            self._connection.close()
            os.close(self._journal)
