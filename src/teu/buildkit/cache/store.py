# SPDX-License-Identifier: Apache-2.0
"""What the builder remembers, in cache.db.

    links     source, input, digest, output, selector, target   from a key of an input to the key of an output (keys.py)
    results   key, result, created                              a result's name is a record's id
    records   id, parents, mutable, kind, description, size, created, used, uses, retained, dying, data
                                                                what is kept on disk: a snapshot each
    trees     record, data                                      what is known of its content (contenthash.py)

Times are seconds since 1970; `size` is bytes, -1 where nobody has counted yet; `parents` is a JSON list of ids; `data`
is the worker's own (JSON). A record that is `dying` has been given up, and its snapshot may be gone already: whoever
finds one after a crash finishes the removal. No result leads to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from teu.buildkit.cache.contenthash import Tree
from teu.buildkit.cache.database import Database, Execute
from teu.buildkit.cache.keys import RANDOM, Link
from teu.buildkit.core.op import Record as Result
from teu.buildkit.core.snapshots import SCRATCH

# What a record is of, as `docker buildx du --filter type=` has it.
REGULAR = "regular"
INTERNAL = "internal"
FRONTEND = "frontend"
LOCAL_SOURCE = "source.local"
GIT_CHECKOUT = "source.git.checkout"
CACHE_MOUNT = "exec.cachemount"
KINDS = (REGULAR, INTERNAL, FRONTEND, LOCAL_SOURCE, GIT_CHECKOUT, CACHE_MOUNT)

UNKNOWN = -1  # size

# Keys of the empty root: no record is given up from which they would go, so there are so many at most, and a step more.
EMPTY_MAX = 1000
EMPTY_STEP = 100

MIGRATIONS = (
    """
    CREATE TABLE links (
        source TEXT, input INTEGER, digest TEXT, output INTEGER, selector TEXT, target TEXT,
        PRIMARY KEY (source, input, digest, output, selector, target)
    ) WITHOUT ROWID;
    CREATE INDEX links_by_target ON links (target);
    CREATE TABLE results (
        key TEXT, result TEXT, created REAL NOT NULL, PRIMARY KEY (key, result)
    ) WITHOUT ROWID;
    CREATE INDEX results_by_result ON results (result);
    CREATE TABLE records (
        id TEXT PRIMARY KEY, parents TEXT NOT NULL, mutable INTEGER NOT NULL, kind TEXT NOT NULL,
        description TEXT NOT NULL, size INTEGER NOT NULL, created REAL NOT NULL, used REAL,
        uses INTEGER NOT NULL, retained INTEGER NOT NULL, dying INTEGER NOT NULL, data TEXT NOT NULL
    );
    CREATE TABLE trees (record TEXT PRIMARY KEY, data BLOB NOT NULL);
    """,
)


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept on disk, as `docker buildx du` shows it. `used` is None where it was not used since it was made;
    `retained`: it is not to be given up when its last user goes (a cache mount, a context)."""

    id: str
    parents: tuple[str, ...] = ()
    mutable: bool = False
    kind: str = REGULAR
    description: str = ""
    size: int = UNKNOWN
    created: float = 0.0
    used: float | None = None
    uses: int = 0
    retained: bool = False
    dying: bool = False
    data: dict[str, Any] = field(default_factory=dict)


_COLUMNS = "id, parents, mutable, kind, description, size, created, used, uses, retained, dying, data"


def _record(row: Sequence[Any]) -> Record:
    try:
        parents, data = tuple(map(str, json.loads(row[1]))), dict(json.loads(row[11]))
    except (ValueError, TypeError):
        parents, data = (), {}  # damaged: the record can still be removed
    return Record(
        row[0], parents, bool(row[2]), row[3], row[4], row[5], row[6], row[7], row[8], bool(row[9]), bool(row[10]), data
    )


class Store:
    """cache.db. The solver's main cache (keys.KeysKept), the records and the trees. Raises database.Unusable."""

    def __init__(self, path: str, *, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(path, MIGRATIONS)
        self._clock = clock
        self._empty_saved = 0

    @property
    def id(self) -> str:
        return "local"

    @property
    def path(self) -> str:
        """Where it is: whose cache it is."""
        return self._database.path

    @property
    def begun_anew(self) -> bool:
        """The file was damaged: what snapshots there are, no record knows."""
        return self._database.begun_anew

    def close(self) -> None:
        self._database.close()

    # Keys

    def linked(self, links: Collection[Link], number: int, digest: str, output: int) -> set[str]:
        found: set[str] = set()
        for key, selector in links:
            found.update(
                row[0]
                for row in self._database.all(
                    "SELECT target FROM links WHERE source = ? AND input = ? AND digest = ? AND output = ?"
                    " AND selector = ?",
                    (key, number, digest, output, selector),
                )
            )
        return found

    def results(self, key: str) -> list[Result]:
        rows = self._database.all(
            "SELECT result, created FROM results WHERE key = ? ORDER BY created DESC, result", (key,)
        )
        return [Result(row[0], row[1]) for row in rows]

    def keys_of(self, result: str) -> list[str]:
        """The keys that have this result."""
        return [
            row[0] for row in self._database.all("SELECT key FROM results WHERE result = ? ORDER BY key", (result,))
        ]

    def backlinks(self, key: str) -> list[tuple[str, int, str, int, str]]:
        """The links that lead to a key: (source, input, digest, output, selector)."""
        return [
            (row[0], row[1], row[2], row[3], row[4])
            for row in self._database.all(
                "SELECT source, input, digest, output, selector FROM links WHERE target = ?"
                " ORDER BY input, source, selector",
                (key,),
            )
        ]

    def save(self, key: str, digest: str, output: int, inputs: Sequence[Iterable[Link]], result: str) -> None:
        if key.startswith(RANDOM) or digest.startswith(RANDOM):
            return
        with self._database.transaction(durable=False) as execute:
            for number, links in enumerate(inputs):
                for source, selector in links:
                    if not source.startswith(RANDOM):
                        execute(
                            "INSERT OR IGNORE INTO links VALUES (?, ?, ?, ?, ?, ?)",
                            (source, number, digest, output, selector, key),
                        )
            if result:
                execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?)", (key, result, self._clock()))
        if result == SCRATCH:
            # Counted now and then: a moment's excess does no harm.
            self._empty_saved += 1
            if self._empty_saved % EMPTY_STEP == 0:
                self.forget_oldest(SCRATCH, EMPTY_MAX)

    def sync(self) -> None:
        self._database.sync()

    def forget(self, result: str) -> None:
        with self._database.transaction(durable=False) as execute:
            self._forget(execute, result)

    def forget_oldest(self, result: str, most: int) -> None:
        """No more than the `most` newest keys keep a result that is no record's, and so goes with none."""
        with self._database.transaction(durable=False) as execute:
            old = "SELECT key FROM results WHERE result = ? ORDER BY created DESC, key LIMIT -1 OFFSET ?"
            keys = [row[0] for row in execute(old, (result, most)).fetchall()]
            for key in keys:
                execute("DELETE FROM results WHERE key = ? AND result = ?", (key, result))
            self._forget_keys(execute, keys)

    def _forget(self, execute: Execute, result: str) -> None:
        keys = [row[0] for row in execute("SELECT key FROM results WHERE result = ?", (result,)).fetchall()]
        execute("DELETE FROM results WHERE result = ?", (result,))
        self._forget_keys(execute, keys)

    @staticmethod
    def _forget_keys(execute: Execute, todo: list[str]) -> None:
        """Those of them, and of what leads to them alone, that lead nowhere."""
        while todo:
            key = todo.pop()
            if execute("SELECT 1 FROM results WHERE key = ? LIMIT 1", (key,)).fetchone():
                continue
            if execute("SELECT 1 FROM links WHERE source = ? LIMIT 1", (key,)).fetchone():
                continue
            sources = [
                row[0] for row in execute("SELECT DISTINCT source FROM links WHERE target = ?", (key,)).fetchall()
            ]
            execute("DELETE FROM links WHERE target = ?", (key,))
            todo += sources

    def leads_to(self, result: str) -> bool:
        """Whether any key has this result."""
        return self._database.one("SELECT 1 FROM results WHERE result = ? LIMIT 1", (result,)) is not None

    def forget_lost(self) -> int:
        """Results that no record is there for any more are forgotten; how many. Before a build begins."""
        with self._database.transaction(durable=False) as execute:
            lost = [
                row[0]
                for row in execute(
                    "SELECT DISTINCT result FROM results WHERE result NOT IN (SELECT id FROM records WHERE dying = 0)"
                ).fetchall()
            ]
            for name in lost:
                self._forget(execute, name)
        return len(lost)

    # Records

    def add(self, record: Record, *, durable: bool = True) -> Record:
        """A new record; `created` is now where it says 0. One that is not `durable` may be lost in a power cut: its
        snapshot is one without a record then, which the next start removes."""
        if not record.created:
            record = replace(record, created=self._clock())
        with self._database.transaction(durable=durable) as execute:
            execute(
                f"INSERT INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id,
                    json.dumps(record.parents),
                    record.mutable,
                    record.kind,
                    record.description,
                    record.size,
                    record.created,
                    record.used,
                    record.uses,
                    record.retained,
                    record.dying,
                    json.dumps(record.data),
                ),
            )
        return record

    def change(self, name: str, *, durable: bool = True, **fields: Any) -> None:
        """Set fields of a record (`mutable`, `kind`, `description`, `size`, `retained`, `parents`, `data`)."""
        values = {key: json.dumps(value) if key in ("parents", "data") else value for key, value in fields.items()}
        if unknown := values.keys() - {"mutable", "kind", "description", "size", "retained", "parents", "data"}:
            raise TypeError(f"no fields to set: {', '.join(sorted(unknown))}")
        with self._database.transaction(durable=durable) as execute:
            execute(
                f"UPDATE records SET {', '.join(f'{key} = ?' for key in values)} WHERE id = ?", (*values.values(), name)
            )

    def use(self, name: str) -> None:
        """A record was used just now. Not worth a wait for the disk."""
        with self._database.transaction(durable=False) as execute:
            execute("UPDATE records SET used = ?, uses = uses + 1 WHERE id = ?", (self._clock(), name))

    def record(self, name: str) -> Record | None:
        row = self._database.one(f"SELECT {_COLUMNS} FROM records WHERE id = ?", (name,))
        return _record(row) if row else None

    def records(self, *, dying: bool = False) -> list[Record]:
        """All that are kept, or all that are dying; the oldest first."""
        rows = self._database.all(
            f"SELECT {_COLUMNS} FROM records WHERE dying = ? ORDER BY created, id", (1 if dying else 0,)
        )
        return [_record(row) for row in rows]

    def give_up(self, names: Iterable[str], *, durable: bool = True) -> None:
        """These records are dying: nothing leads to them any more, and their snapshots may be removed. Durable, so that
        a crash in the middle of the removal leaves none that is half gone and looks whole; where the start looks for
        the snapshots anyway, that is not worth a wait for the disk."""
        with self._database.transaction(durable=durable) as execute:
            for name in names:
                execute("UPDATE records SET dying = 1 WHERE id = ?", (name,))
                self._forget(execute, name)

    def remove(self, name: str) -> None:
        """The snapshot is gone."""
        with self._database.transaction(durable=False) as execute:
            execute("DELETE FROM records WHERE id = ?", (name,))
            execute("DELETE FROM trees WHERE record = ?", (name,))
            self._forget(execute, name)

    # Trees

    def tree(self, record: str, *, bare: bool = False) -> Tree:
        """What is known of a record's content; a fresh Tree, which is `bare`, where nothing is, or it is damaged."""
        row = self._database.one("SELECT data FROM trees WHERE record = ?", (record,))
        if row:
            try:
                return Tree.load(row[0])
            except (ValueError, TypeError):
                pass
        return Tree(bare=bare)

    def keep_tree(self, record: str, tree: Tree) -> None:
        """Where it has learned something. For a record that is gone nothing is kept."""
        if tree.dirty:
            data = tree.dump()
            with self._database.transaction(durable=False) as execute:
                execute(
                    "INSERT OR REPLACE INTO trees SELECT ?, ? WHERE EXISTS (SELECT 1 FROM records WHERE id = ?)",
                    (record, data, record),
                )

    def forget_tree(self, record: str) -> None:
        with self._database.transaction(durable=False) as execute:
            execute("DELETE FROM trees WHERE record = ?", (record,))
