# SPDX-License-Identifier: Apache-2.0
"""Garbage collection: removes what nothing refers to, within each namespace. Labels are the references:

    containerd.io/gc.root                    this object stays (content, snapshots)
    containerd.io/gc.ref.content[.N|/N]      needs that blob            (value: digest)
    containerd.io/gc.ref.snapshot.NAME[/N]   needs that snapshot        (value: key)
    containerd.io/gc.ref.image[.N|/N]        needs that image           (value: name)
    containerd.io/gc.bref.KIND...            is needed by that object: the arrow the other way round
    containerd.io/gc.expire                  RFC 3339: a lease or an image ends then
    containerd.io/gc.flat                    on a lease: holds what it names, not what that refers to

Roots are leases with what they hold, images, containers, sandboxes' references and young ingests. An image needs its
target, a container its snapshot, a snapshot its parent, an ingest the shared blob it will become.

Where a record's references cannot be read (it is damaged), nothing of its namespace is garbage: it may be what that
record needs. What clients delete themselves goes all the same.

Marking and deleting rows is one transaction; what is created before it is seen, what comes after is not touched. Files
follow after the transaction is on disk, each checked again under its store's lock.

Two speeds. What a client has deleted itself is swept from the disk some milliseconds later, a burst at once. What has
only become unreferenced waits: clients without leases make things in several calls, and rely on containerd's leisure
between them. It goes after `threshold` changes of which one was a deletion, or `interval` seconds after one, or with a
deletion that asks for `sync`, or at the start of the daemon.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from teu.api.events import image_pb2 as image_events
from teu.api.events import snapshot_pb2 as snapshot_events
from teu.containerd.core.database import Database, now
from teu.containerd.core.digests import is_digest
from teu.containerd.core.events import Exchange
from teu.containerd.core.rows import plain_labels
from teu.containerd.stores.content import Content
from teu.containerd.stores.snapshots import Snapshots
from teu.oci.labels import BACKWARD, EXPIRE, FLAT, REFERENCE, ROOT

log = logging.getLogger("teu.containerd.gc")

Node = tuple[str, str, str]  # kind, namespace, key; the key of a snapshot is SNAPSHOTTER/KEY

_FLAT = "flat:"  # a kind with this prefix is kept, but its own references are not followed


def _named(rest: str, kind: str) -> bool:
    """`rest` of a label is `kind`, alone or followed by a name of the reference."""
    return rest == kind or (rest.startswith(kind) and rest[len(kind)] in "./")


def _target(rest: str, value: str, namespace: str) -> Node | None:
    """What a reference label points at; `rest` is the label after gc.ref. or gc.bref."""
    for kind in ("content", "image", "container"):
        if _named(rest, kind):
            return (kind, namespace, value)
    if rest.startswith("snapshot."):
        return ("snapshot", namespace, f"{rest[len('snapshot.') :].split('/')[0]}/{value}")
    return None


def expired(labels: dict[str, str]) -> bool:
    """Whether the time in the label containerd.io/gc.expire has come.

    One that cannot be read does not count: nothing is lost by a typing error."""
    text = labels.get(EXPIRE)
    if text is None:
        return False
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return moment.timestamp() < time.time()
    except ValueError:
        log.info("ignoring invalid expiration value %r", text)
        return False


class _Graph:
    """The references of all namespaces at one moment, read in one pass per table."""

    def __init__(self, database: Database) -> None:
        self.nodes: set[Node] = set()
        self.roots: list[Node] = []
        self.edges: dict[Node, list[Node]] = {}
        self.blind: dict[str, str] = {}  # namespace -> a record whose references cannot be read
        self._leases(database)
        self._images(database)
        self._content(database)
        self._containers(database)
        self._snapshots(database)

    def _labels(self, node: Node, text: str, *, backward: bool = True) -> dict[str, str]:
        if text == "{}":
            return {}
        labels = plain_labels(text)
        if labels is None:
            self._damaged(node)
            return {}
        for key, value in labels.items():
            if key.startswith(REFERENCE):
                target = _target(key[len(REFERENCE) :], value, node[1])
                if target and target[0] != "container":
                    self.edge(node, target)
            elif key.startswith(BACKWARD) and backward:
                target = _target(key[len(BACKWARD) :], value, node[1])
                if target:
                    self.edge(target, node)
            elif key == ROOT and node[0] in ("content", "snapshot"):
                self.roots.append(node)
        return labels

    def _damaged(self, node: Node) -> None:
        self.blind.setdefault(node[1], f"{node[0]} {node[2]}")

    def _texts(self, node: Node, *columns: object) -> bool:
        """Whether columns that refer to something are texts."""
        if all(type(column) is str for column in columns):
            return True
        self._damaged(node)
        return False

    def edge(self, source: Node, target: Node) -> None:
        self.edges.setdefault(source, []).append(target)

    def _leases(self, database: Database) -> None:
        flat_leases = set()
        for namespace, id, text in database.all("SELECT namespace, id, labels FROM leases"):
            node = ("lease", namespace, id)
            self.nodes.add(node)
            labels = plain_labels(text)
            if labels is None:
                self._damaged(node)
            elif not expired(labels):
                self.roots.append(node)
                if FLAT in labels:
                    flat_leases.add((namespace, id))
        for namespace, lease, kind, key in database.all("SELECT namespace, lease, type, resource FROM lease_resources"):
            target = self._leased(namespace, kind, key)
            if target is None:
                self._damaged(("lease", namespace, str(lease)))
                continue
            if (namespace, lease) in flat_leases and target[0] != "ingest":
                target = (_FLAT + target[0], *target[1:])
            self.edge(("lease", namespace, lease), target)

    def _images(self, database: Database) -> None:
        for namespace, name, digest, text in database.all("SELECT namespace, name, target, labels FROM images"):
            node = ("image", namespace, name)
            self.nodes.add(node)
            if not expired(self._labels(node, text)):
                self.roots.append(node)
            if not self._texts(node, digest) or not is_digest(digest):
                self._damaged(node)
                continue
            self.edge(node, ("content", namespace, digest))
            self.edge((_FLAT + "image", namespace, name), (_FLAT + "content", namespace, digest))

    def _content(self, database: Database) -> None:
        """Blobs, and what is about to be one."""
        for namespace, digest, text in database.all("SELECT namespace, digest, labels FROM blobs"):
            node = ("content", namespace, digest)
            self.nodes.add(node)
            if not is_digest(digest):
                self._damaged(node)
            self._labels(node, text)
        moment = now()
        for namespace, ref, expected, expires in database.all("SELECT namespace, ref, expected, expires FROM ingests"):
            node = ("ingest", namespace, ref)
            self.nodes.add(node)
            if expires is not None and (not isinstance(expires, int) or expires > moment):
                self.roots.append(node)
            if expected:
                self.edge(node, ("content", namespace, expected))

    def _containers(self, database: Database) -> None:
        """And sandboxes: both stay until they are deleted."""
        for namespace, id, text, snapshotter, key in database.all(
            "SELECT namespace, id, labels, snapshotter, snapshot_key FROM containers"
        ):
            node = ("container", namespace, id)
            self.roots.append(node)
            self._labels(node, text)
            if self._texts(node, snapshotter, key) and snapshotter and key:
                self.edge(node, ("snapshot", namespace, f"{snapshotter}/{key}"))
        for namespace, id, text in database.all("SELECT namespace, id, labels FROM sandboxes"):
            node = ("sandbox", namespace, id)
            self.roots.append(node)
            self._labels(node, text, backward=False)

    def _snapshots(self, database: Database) -> None:
        for namespace, snapshotter, key, parent, text in database.all(
            "SELECT namespace, snapshotter, key, parent, labels FROM snapshots"
        ):
            node = ("snapshot", namespace, f"{snapshotter}/{key}")
            self.nodes.add(node)
            self._labels(node, text)
            if self._texts(node, parent) and parent:
                above = f"{snapshotter}/{parent}"
                self.edge(node, ("snapshot", namespace, above))
                self.edge((_FLAT + "snapshot", namespace, node[2]), (_FLAT + "snapshot", namespace, above))

    @staticmethod
    def _leased(namespace: str, kind: str, key: str) -> Node | None:
        if kind.startswith("snapshots/"):
            return ("snapshot", namespace, f"{kind[len('snapshots/') :]}/{key}")
        known = {"content": "content", "ingests": "ingest", "images": "image"}.get(kind)
        return (known, namespace, key) if known else None

    def garbage(self) -> set[Node]:
        seen: set[Node] = set()
        waiting = list(self.roots)
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            waiting.extend(self.edges.get(node, ()))
        kept = {(kind.removeprefix(_FLAT), namespace, key) for kind, namespace, key in seen}
        garbage = self.nodes - kept
        if self.blind and garbage:
            for namespace, record in self.blind.items():
                if any(node[1] == namespace for node in garbage):
                    log.warning(
                        "nothing unreferenced is removed from namespace %s while a record is damaged: delete %s",
                        namespace,
                        record,
                    )
            garbage = {node for node in garbage if node[1] not in self.blind}
        return garbage


class Collector:
    """Collects what nothing leads to any more, and takes the files of what was deleted. `runs`, `failures` and
    `removed` (objects) are counted for the metrics."""

    def __init__(
        self,
        database: Database,
        content: Content,
        snapshots: Snapshots,
        events: Exchange,
        *,
        delay: float = 0.01,
        threshold: int = 100,
        interval: float = 60.0,
    ) -> None:
        """`delay` and `interval` are seconds, `threshold` is commits: the keys of `gc` in containerd.yaml(5)."""
        self._database = database
        self._content = content
        self._snapshots = snapshots
        self._events = events
        self.delay = delay
        self.threshold = threshold
        self.interval = interval
        self._collected_at = 0  # number of the last commit before the last collection
        self._run_lock = threading.Lock()
        self._wanted = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.before: list[Callable[[], None]] = []  # told at the begin of each run: tests, failure injection
        self.runs = 0
        self.failures = 0
        self.removed = 0
        self.told: Callable[[float], None] = lambda seconds: None  # of the duration of each run
        self._files = False  # of what was deleted there may be files left
        database.on_mutation = self._deleted

    def start(self) -> None:
        """Begin to collect, on a thread of its own, as changes ask for it."""
        self._thread = threading.Thread(target=self._work, name="gc", daemon=True)
        self._thread.start()

    def _deleted(self, files: bool) -> None:
        if files:
            self._files = True
        self._wanted.set()

    def stop(self) -> None:
        """End the thread; a collection that is under way is waited for, 5 seconds at most."""
        self._stopping = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def idle(self) -> bool:
        """Whether nothing is collected, and nothing waits for it."""
        return not self._wanted.is_set() and not self._run_lock.locked()

    def _work(self) -> None:
        due = time.monotonic()  # now, for what a crash left
        while True:
            deleted = self._wanted.wait(max(0.0, due - time.monotonic()))
            if self._stopping:
                return
            time.sleep(self.delay)
            self._wanted.clear()
            if self._stopping:  # said meanwhile, and just forgotten
                return
            now_due = time.monotonic() >= due
            began = time.monotonic()
            try:
                if now_due or (deleted and self._database.committed - self._collected_at >= self.threshold):
                    self.collect()
                    # expiring leases and ingests need a look now and then, though nothing was deleted
                    due = time.monotonic() + 3600
                elif deleted:
                    if self._files:
                        with self._run_lock:
                            self._sweep()
                    due = min(due, time.monotonic() + self.interval)
            except Exception as error:
                self.failures += 1
                log.error("garbage collection failed: %s", error, exc_info=error)
                due = time.monotonic() + 60
            # it takes at most a fifth of the time
            time.sleep(min((time.monotonic() - began) * 4, 2.0))

    def _sweep(self) -> int:
        """Take from the disk what has no record any more; bytes of content freed."""
        self._files = False
        self._snapshots.collect()
        return self._content.collect()

    def collect(self) -> int:
        """One whole collection, now; the number of objects removed."""
        with self._run_lock:
            began = time.monotonic()
            for told in self.before:
                told()
            garbage: set[Node] = set()
            with self._database.transaction() as execute:
                garbage = _Graph(self._database).garbage()
                for node in garbage:
                    for sql, arguments in _removal(node):
                        execute(sql, arguments)
            self._collected_at = self._database.committed
            freed = self._sweep()
            self.runs += 1
            self.removed += len(garbage)
            self.told(time.monotonic() - began)
            for namespace, topic, event in _events(garbage):
                self._events.publish(namespace, topic, event)
            if garbage:
                log.debug(
                    "garbage collected: %d objects, %d bytes of content, %.1f ms",
                    len(garbage),
                    freed,
                    (time.monotonic() - began) * 1000,
                )
            return len(garbage)


def _removal(node: Node) -> Iterator[tuple[str, tuple[str, ...]]]:
    kind, namespace, key = node
    held = "DELETE FROM lease_resources WHERE namespace = ? AND type = ? AND resource = ?"
    match kind:
        case "lease":
            yield "DELETE FROM leases WHERE namespace = ? AND id = ?", (namespace, key)
            yield "DELETE FROM lease_resources WHERE namespace = ? AND lease = ?", (namespace, key)
        case "image":
            yield "DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, key)
            yield held, (namespace, "images", key)
        case "content":
            yield "DELETE FROM blobs WHERE namespace = ? AND digest = ?", (namespace, key)
            yield held, (namespace, "content", key)
        case "ingest":
            yield "DELETE FROM ingests WHERE namespace = ? AND ref = ?", (namespace, key)
            yield held, (namespace, "ingests", key)
        case "snapshot":
            snapshotter, _, name = key.partition("/")
            yield (
                "DELETE FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
                (namespace, snapshotter, name),
            )
            yield held, (namespace, f"snapshots/{snapshotter}", name)


def _events(garbage: set[Node]) -> Iterator[tuple[str, str, Any]]:
    for kind, namespace, key in garbage:
        if kind == "snapshot":
            snapshotter, _, name = key.partition("/")
            event = snapshot_events.SnapshotRemove(key=name, snapshotter=snapshotter)
            yield namespace, "/snapshot/remove", event
        elif kind == "image":
            yield namespace, "/images/delete", image_events.ImageDelete(name=key)
