# SPDX-License-Identifier: Apache-2.0
"""engine.db: what the engine remembers. SQLite, WAL, one connection under one lock.

    engine.db
    ├── containers   id, name, data       one row per container; data is the record as JSON (container.py)
    ├── networks     id, name, data       (networks.py)
    ├── volumes      name, data           (volumes.py)
    └── facts        key, value           daemon id, schema

A durable transaction is on the disk when it returns; a relaxed one survives the death of the daemon
at any instruction but not of the machine (for what a reboot makes untrue anyway, such as "running").
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS containers (id TEXT PRIMARY KEY, name TEXT UNIQUE NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS networks (id TEXT PRIMARY KEY, name TEXT UNIQUE NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS volumes (name TEXT PRIMARY KEY, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Database:
    def __init__(self, path: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._lock = threading.RLock()
        # Environments have secrets in them, and the folder is open to all; SQLite gives its other files this mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for file in (path, f"{path}-wal", f"{path}-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.chmod(file, 0o600)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError(
                f"{path} was written by a newer teud (schema {version}, this one knows {SCHEMA_VERSION});"
                " install that version again, or move the file away"
            )
        if version < SCHEMA_VERSION:
            self._connection.executescript(SCHEMA)
            self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    @contextlib.contextmanager
    def transaction(self, durable: bool = True) -> Iterator[sqlite3.Cursor]:
        with self._lock:
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

    def query(self, sql: str, arguments: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(sql, arguments).fetchall()

    def fact(self, key: str) -> str | None:
        rows = self.query("SELECT value FROM facts WHERE key=?", (key,))
        return str(rows[0][0]) if rows else None

    def set_fact(self, key: str, value: str) -> None:
        with self.transaction() as cursor:
            cursor.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value))

    def close(self) -> None:
        with self._lock:
            self._connection.close()
