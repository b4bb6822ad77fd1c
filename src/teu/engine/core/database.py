# SPDX-License-Identifier: Apache-2.0
"""engine.db: what the engine remembers. SQLite, WAL, one connection under one lock.

    engine.db
    ├── containers   id, name, data       one row per container; data is the record as JSON (containers/model.py)
    ├── networks     id, name, data       (networks/manager.py)
    ├── volumes      name, data           (volumes/store.py)
    └── facts        key, value           daemon id, schema

A durable transaction is on the disk when it returns; a relaxed one survives the death of the daemon
at any instruction but not of the machine (for what a reboot makes untrue anyway, such as "running").

What a record says is looked at by its reader (records.py), where one that is damaged stops nothing. A
file that SQLite cannot read is Unreadable: teud does not begin anew beside what it may stand for.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from teu.engine.core.errors import Unreadable

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS containers (id TEXT PRIMARY KEY, name TEXT UNIQUE NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS networks (id TEXT PRIMARY KEY, name TEXT UNIQUE NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS volumes (name TEXT PRIMARY KEY, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


TABLES = {"containers": "id, name, data", "networks": "id, name, data", "volumes": "name, data", "facts": "key, value"}

# What SQLite says of a file that is damaged, as opposed to a full disk or another process.
_DAMAGE = {"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_ERROR"}


class Database:
    def __init__(self, path: str) -> None:
        self.path = path
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._lock = threading.RLock()
        for file in (path, f"{path}-wal", f"{path}-shm"):
            if os.path.lexists(file) and not os.path.isfile(file):
                raise Unreadable(f"{file} is not a file; {self._remedy(file)}")
        # Nothing is written before it is asked for: an empty file is one that lost what was in it, not a fresh one.
        if os.path.exists(path) and not os.path.getsize(path) and self._has_stood_for_something():
            raise Unreadable(f"{path} is empty; {self._remedy(path)}")
        # Environments have secrets in them, and the folder is open to all; SQLite gives its other files this mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for file in (path, f"{path}-wal", f"{path}-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.chmod(file, 0o600)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        self._connection.row_factory = sqlite3.Row
        self._connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
        with self._telling():
            self._open()

    def _open(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=FULL")
        version = execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise Unreadable(
                f"{self.path} was written by a newer teud (schema {version}, this one knows {SCHEMA_VERSION});"
                " install that version again, or move the file away"
            )
        if version != SCHEMA_VERSION:
            self._connection.executescript(SCHEMA)
            execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        found = execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise Unreadable(f"{self.path} is damaged: {found}; {self._remedy(self.path)}")
        for table, columns in TABLES.items():
            execute(f"SELECT {columns} FROM {table} LIMIT 0")

    def _has_stood_for_something(self) -> bool:
        """Whether an earlier daemon had containers or volumes beside this file."""
        for folder in ("containers", "volumes"):
            with contextlib.suppress(OSError):
                if os.listdir(os.path.join(os.path.dirname(self.path), folder)):
                    return True
        return False

    @staticmethod
    def _remedy(file: str) -> str:
        return (
            f"put {file} back from a backup, or save what can be read with `sqlite3 {file} .recover`, and start teud."
            " Where it is moved away instead, teud begins anew: it then removes the containers that it knows nothing"
            " of, and keeps the files of the volumes"
        )

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """SQLite's errors that mean a damaged file, in words for the person who has to mend it."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            name = str(getattr(error, "sqlite_errorname", ""))
            if not any(name == known or name.startswith(f"{known}_") for known in _DAMAGE):
                raise
            raise Unreadable(f"{self.path} is damaged: {error}; {self._remedy(self.path)}") from error

    @contextlib.contextmanager
    def transaction(self, durable: bool = True) -> Iterator[sqlite3.Cursor]:
        with self._lock, self._telling():
            if not durable:
                self._connection.execute("PRAGMA synchronous=NORMAL")
            cursor = self._connection.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    yield cursor
                except BaseException:
                    self._connection.rollback()
                    raise
                self._connection.commit()
            finally:
                cursor.close()
                if not durable:
                    self._connection.execute("PRAGMA synchronous=FULL")

    def query(self, sql: str, arguments: Sequence[str | int] = ()) -> list[sqlite3.Row]:
        with self._lock, self._telling():
            return self._connection.execute(sql, arguments).fetchall()

    def fact(self, key: str) -> str | None:
        rows = self.query("SELECT value FROM facts WHERE key=?", (key,))
        return str(rows[0][0]) if rows else None

    def set_fact(self, key: str, value: str) -> None:
        with self.transaction() as cursor:
            cursor.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value))

    def identity(self, key: str) -> str:
        """A fact that is chosen at random when it is asked for first, and stays."""
        known = self.fact(key)
        if known is None:
            known = str(uuid.uuid4())
            self.set_fact(key, known)
        return known

    def close(self) -> None:
        with self._lock:
            self._connection.close()
