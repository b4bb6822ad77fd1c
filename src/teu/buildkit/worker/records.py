# SPDX-License-Identifier: Apache-2.0
"""The records of cache.db in memory: who holds them, what stands on them, what is known of them.

    Entry.how "layer"    a change on one parent, or on nothing: a snapshot of containerd, a blob, or both
              "merge"    several trees one upon the other
              "diff"     what a tree has that another has not
              "synced"   a retained tree as it was when it was committed last (`twin`): it shares that one's snapshot

What the worker knows of a record is in Record.data["worker"]:

    how, snapshot (its name in containerd), blob (descriptor), blobs (variant: descriptor), chain (chain id),
    stack (names the blobs below, and its own), image (true: it came with an image), history, twin

Counts and indexes change under `lock`, in which no call to containerd is made; what takes time for one entry is done
under its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from teu.buildkit.cache.contenthash import Tree
from teu.buildkit.cache.store import LOCAL_SOURCE, Record, Store
from teu.buildkit.core.identifiers import new_id
from teu.buildkit.core.snapshots import Descriptor, Fetch, Kind, Mount

LAYER, MERGE, DIFF, SYNCED = "layer", "merge", "diff", "synced"


@dataclass(eq=False, slots=True)
class Entry:
    record: Record
    parents: tuple[Entry, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    count: int = 0  # who holds it
    children: int = 0  # entries that stand on it
    stored: bool = False  # in cache.db
    leased: bool = False  # has a lease of its own
    dead: bool = False
    checked: bool = False  # it was seen that its files can be had
    twin: Entry | None = None  # retained tree <-> what was synced of it
    mounts: list[Mount] | None = None  # to read it, where they are known
    view: str = ""  # a view of containerd, by which they are
    fetches: dict[str, Fetch] = field(default_factory=dict)
    tell: Callable[..., None] | None = None  # of how far the unpacking has come
    tree: Tree | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    layering: threading.RLock = field(default_factory=threading.RLock)  # of its blobs, whose making takes long
    leasing: threading.Lock = field(default_factory=threading.Lock)  # taken last, also while others have `lock`

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def how(self) -> str:
        return str(self.details.get("how") or LAYER)

    @property
    def snapshot(self) -> str:
        """The name of its committed snapshot; "" where none is known."""
        return str(self.details.get("snapshot") or "")

    @property
    def blob(self) -> Descriptor | None:
        found = self.details.get("blob")
        return cast(Descriptor, found) if isinstance(found, dict) else None

    @property
    def parent(self) -> Entry | None:
        return self.parents[0] if self.parents else None


def chain(entry: Entry) -> list[Entry]:
    """The layers that a tree is made of, lowest first: entries that each have a blob of their own."""
    found: list[Entry] = []
    # From the top down; what is on `todo` is done last to first.
    todo: list[Entry] = [entry]
    while todo:
        one = todo.pop()
        if one.how == MERGE:
            todo += one.parents
        elif one.how == DIFF:
            found += reversed(suffix(one) or [one])
        else:
            found.append(one)
            if one.parents:
                todo.append(one.parents[0])
    found.reverse()
    return found


def suffix(diff: Entry) -> list[Entry] | None:
    """The layers of the upper tree that are above the lower one, where the upper stands on it: then they are the
    difference. None where it has to be made by comparing."""
    if len(diff.parents) < 2:
        return None
    lower, upper = chain(diff.parents[0]), chain(diff.parents[1])
    if len(upper) > len(lower) and all(one is other for one, other in zip(lower, upper, strict=False)):
        return upper[len(lower) :]
    return None


def below(unit: Entry) -> Entry | None:
    """What a layer of `chain` is the change of."""
    return unit.parent


class Records:
    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self.lock = threading.RLock()
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._by_stack: dict[str, Entry] = {}

    # Start

    def load(self) -> list[str]:
        """All of cache.db that are not dying. Those that cannot be used (damaged, or what they stand on is gone) are
        given up: their names, to be removed with the dying ones."""
        records = {record.id: record for record in self.store.records()}
        made: dict[str, Entry] = {}
        broken: list[str] = []
        todo = list(records.values())
        while todo:
            left = []
            for record in todo:
                details = _details(record)
                names = [str(name) for name in details.get("parents") or record.parents]
                if all(name in made for name in names):
                    made[record.id] = Entry(record, tuple(made[name] for name in names), details, stored=True)
                else:
                    left.append(record)
            if len(left) == len(todo):
                broken += [record.id for record in left]
                break
            todo = left
        for entry in list(made.values()):
            twin = entry.details.get("twin")
            if entry.how == SYNCED:
                other = made.get(str(twin))
                if other is None:
                    broken.append(entry.id)
                else:
                    entry.twin, other.twin = other, entry
        if broken:
            self.store.give_up(broken)
        with self.lock:
            for entry in made.values():
                if entry.id not in broken:
                    self._add(entry)
        return broken

    def _add(self, entry: Entry) -> None:
        self._entries[entry.id] = entry
        for parent in entry.parents:
            parent.children += 1
        if stack := entry.details.get("stack"):
            self._by_stack[str(stack)] = entry

    # Access

    def get(self, name: str) -> Entry | None:
        with self.lock:
            return self._entries.get(name)

    def by_stack(self, stack: str) -> Entry | None:
        with self.lock:
            return self._by_stack.get(stack)

    def all(self) -> list[Entry]:
        with self.lock:
            return list(self._entries.values())

    def made_as(self, digest: str, diff_id: str) -> Entry | None:
        """A record of a build whose layer was made into this blob; the caller holds it."""
        with self.lock:
            for entry in self._entries.values():
                blob = entry.blob
                if blob is None or blob["digest"] != digest or entry.details.get("diff_id") != diff_id:
                    continue
                if entry.details.get("image") or (entry.how == LAYER and not entry.snapshot):
                    continue
                entry.count += 1
                return entry
            return None

    def new(
        self,
        kind: Kind,
        parents: Iterable[Entry] = (),
        *,
        mutable: bool = False,
        details: dict[str, Any] | None = None,
    ) -> Entry:
        """One more, which the caller holds. It is in memory only."""
        parents = tuple(parents)
        record = Record(
            new_id(),
            tuple(dict.fromkeys(parent.id for parent in parents)),
            mutable,
            kind.kind,
            kind.description,
            created=self._clock(),
            retained=kind.retained,
            data=dict(kind.data),
        )
        # Two places of one parent count once in the record, and as they are in the entry.
        entry = Entry(record, parents, dict(details or {}), count=1)
        if len(record.parents) != len(parents):
            entry.details["parents"] = [parent.id for parent in parents]
        with self.lock:
            if raced := self._by_stack.get(str(entry.details.get("stack") or "")):
                raced.count += 1
                return raced
            self._add(entry)
        return entry

    # Counting

    def hold(self, entry: Entry) -> bool:
        """One more holds it. False: it is gone."""
        with self.lock:
            if entry.dead:
                return False
            entry.count += 1
            return True

    def drop(self, entry: Entry) -> int:
        """One less: how many are left."""
        with self.lock:
            entry.count -= 1
            return entry.count

    def bury(self, entry: Entry, *, held: int = 0) -> bool:
        """Nobody may hold it from now on. False where somebody does, or something stands on it."""
        with self.lock:
            if entry.dead or entry.count > held or entry.children:
                return False
            entry.dead = True
            self._entries.pop(entry.id, None)
            for parent in entry.parents:
                parent.children -= 1
            stack = str(entry.details.get("stack") or "")
            if stack and self._by_stack.get(stack) is entry:
                del self._by_stack[stack]
            if entry.twin is not None and entry.twin.twin is entry:
                entry.twin.twin = None
            return True

    # cache.db

    def save(self, entry: Entry) -> None:
        """In cache.db with all that it stands on, as it is now."""
        todo = [entry]
        while todo:
            one = todo[-1]
            missing = [parent for parent in one.parents if not parent.stored]
            if missing:
                todo += missing
                continue
            todo.pop()
            with one.lock:
                if one.stored:
                    if one is entry:
                        self.change(one)
                    continue
                one.record = replace(one.record, data={**one.record.data, "worker": one.details})
                self.store.add(one.record, durable=False)
                one.stored = True

    def change(self, entry: Entry, **fields: Any) -> None:
        """Fields of the record, and what the worker knows of it."""
        with entry.lock:
            data = {**entry.record.data, "worker": entry.details}
            entry.record = replace(entry.record, data=data, **fields)
            if entry.stored:
                self.store.change(entry.id, durable=False, data=data, **fields)

    def use(self, entry: Entry) -> None:
        """It is used now. The making of it is the first time: by its age it is as young as what was found."""
        with entry.lock:
            entry.record = replace(entry.record, used=self._clock(), uses=entry.record.uses + 1)
            if entry.stored:
                self.store.use(entry.id)

    def tree(self, entry: Entry) -> Tree:
        """What is known of its content."""
        with entry.lock:
            if entry.tree is None:
                entry.tree = self.store.tree(entry.id, bare=entry.record.kind == LOCAL_SOURCE)
            return entry.tree


def _details(record: Record) -> dict[str, Any]:
    found = record.data.get("worker")
    return dict(found) if isinstance(found, dict) else {}
