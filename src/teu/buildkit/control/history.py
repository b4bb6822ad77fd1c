# SPDX-License-Identifier: Apache-2.0
"""What builds there were, in history.db. Called by builds (what happens) and control (who asks).

    builds    ref, created, completed, pinned, record       record: a BuildHistoryRecord, serialised
    blobs     digest, type, size, data                      logs, errors, statements; data is compressed
    uses      ref, digest                                   which build keeps which blob

Only builds that have ended are in it; those under way are in memory, and a crash forgets them. Old ones go, by age and
by number, those that are pinned excepted. Times are seconds since 1970.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from teu.api.buildkit import control_pb2
from teu.buildkit.cache.database import Database
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import digest_of
from teu.oci.filters import FilterError, parse_all

log = logging.getLogger("teu.buildkit")

LOGS = "application/vnd.buildkit.status.v0"
ERROR = "application/vnd.googeapis.google.rpc.status+proto"  # spelt so by BuildKit
STATEMENT = "application/vnd.in-toto+json"

LOGS_MAX = 16 << 20  # bytes of one build's log; its end is left out
RECORD_MAX = 1 << 20  # bytes: of the attributes of a build that says more, none are kept
LISTENERS_MAX = 1000
QUEUE_MAX = 1000  # events that a listener may be behind
POLL_SECONDS = 0.5

MIGRATIONS = (
    """
    CREATE TABLE builds (
        ref TEXT PRIMARY KEY, created REAL NOT NULL, completed REAL NOT NULL, pinned INTEGER NOT NULL,
        record BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX builds_by_time ON builds (completed);
    CREATE TABLE blobs (digest TEXT PRIMARY KEY, type TEXT NOT NULL, size INTEGER NOT NULL, data BLOB NOT NULL);
    CREATE TABLE uses (ref TEXT, digest TEXT, PRIMARY KEY (ref, digest)) WITHOUT ROWID;
    CREATE INDEX uses_by_digest ON uses (digest);
    """,
)

STARTED, COMPLETE, DELETED = control_pb2.STARTED, control_pb2.COMPLETE, control_pb2.DELETED


@dataclass(frozen=True, slots=True)
class Blob:
    """What a build keeps: its kind, and its bytes."""

    type: str
    data: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.data)

    def descriptor(self) -> Any:
        return control_pb2.Descriptor(media_type=self.type, digest=self.digest, size=len(self.data))


def pack_logs(responses: Iterator[Any]) -> Blob:
    """StatusResponses, each after its length in four bytes."""
    pieces, size = [], 0
    for response in responses:
        data = response.SerializeToString()
        size += len(data) + 4
        if size > LOGS_MAX:
            break
        pieces += [struct.pack(">I", len(data)), data]
    return Blob(LOGS, b"".join(pieces))


def unpack_logs(data: bytes) -> Iterator[Any]:
    at = 0
    while at + 4 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield control_pb2.StatusResponse.FromString(data[at + 4 : at + 4 + length])
        at += 4 + length


class _Listener:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.lost = False


class History:
    """`max_age` (seconds) and `max_entries` bound what is kept; 0 is "no such bound". Raises database.Unusable."""

    def __init__(self, path: str, *, max_age: float, max_entries: int, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(path, MIGRATIONS)
        self._max_age, self._max_entries = max_age, max_entries
        self._clock = clock
        self._changed = threading.Condition()
        self._active: dict[str, Any] = {}
        self._listeners: list[_Listener] = []

    def close(self) -> None:
        self._database.close()

    def set_bounds(self, max_age: float, max_entries: int) -> None:
        self._max_age, self._max_entries = max_age, max_entries

    # What happens

    def start(self, record: Any) -> None:
        """A build begins. Its record is not to be changed from now on."""
        if record.ByteSize() > RECORD_MAX:
            record.ClearField("FrontendAttrs")
        with self._changed:
            self._active[record.Ref] = record
            self._tell(STARTED, record)

    def finish(self, record: Any, blobs: Sequence[Blob] = ()) -> None:
        """It has ended: `record` is its last word, which names the blobs."""
        if record.ByteSize() > RECORD_MAX:
            record.ClearField("FrontendAttrs")
        ended = self._clock()
        created = record.CreatedAt.ToNanoseconds() / 1e9
        try:
            with self._database.transaction(durable=False) as execute:
                for blob in blobs:
                    execute(
                        "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?)",
                        (blob.digest, blob.type, len(blob.data), zlib.compress(blob.data, 1)),
                    )
                    execute("INSERT OR IGNORE INTO uses VALUES (?, ?)", (record.Ref, blob.digest))
                execute(
                    "INSERT OR REPLACE INTO builds VALUES (?, ?, ?, ?, ?)",
                    (record.Ref, created, ended, record.pinned, record.SerializeToString()),
                )
            self.clean()
        except Exception:
            log.exception("the history of %s is not kept", record.Ref)  # which is no reason for the build to fail
        with self._changed:
            self._active.pop(record.Ref, None)
            self._tell(COMPLETE, record)

    def abandon(self, ref: str) -> None:
        """It has ended, and nothing of it is to be kept."""
        with self._changed:
            record = self._active.pop(ref, None)
            if record is not None:
                self._tell(DELETED, record)

    def _tell(self, kind: int, record: Any) -> None:
        event = control_pb2.BuildHistoryEvent(type=kind, record=record)
        for listener in self._listeners:
            if len(listener.events) < QUEUE_MAX:
                listener.events.append(event)
            else:
                listener.lost = True
        self._changed.notify_all()

    # Who asks

    def record(self, ref: str) -> Any:
        """The record of a build that has ended. Raises NotFound."""
        row = self._database.one("SELECT record, pinned FROM builds WHERE ref = ?", (ref,))
        if row is None:
            raise errors.NotFound(f"failed to retrieve record: no build {errors.cut(ref, 200)} in the history")
        return _record(row)

    def logs(self, ref: str) -> Iterator[Any]:
        """The StatusResponses of a build that has ended. Raises NotFound."""
        record = self.record(ref)
        return unpack_logs(self.blob(record.logs.digest).data) if record.HasField("logs") else iter(())

    def blob(self, digest: str) -> Blob:
        """Raises NotFound."""
        row = self._database.one("SELECT type, data FROM blobs WHERE digest = ?", (digest,))
        if row is None:
            raise errors.NotFound(f"content {errors.cut(digest, 200)}: not found")
        return Blob(row[0], zlib.decompress(row[1]))

    def listen(self, request: Any, gone: Callable[[], bool]) -> Iterator[Any]:
        """The events of a BuildHistoryRequest: what is, then (unless EarlyExit) what comes. Raises InvalidArgument."""
        try:
            chosen = parse_all(request.Filter)
        except FilterError as error:
            raise errors.InvalidArgument(str(error)) from None
        self.clean()  # the last build may have ended long ago

        def wanted(record: Any) -> bool:
            return (not request.Ref or record.Ref == request.Ref) and chosen(lambda path: _field(record, path))

        listener = _Listener()
        with self._changed:
            if len(self._listeners) >= LISTENERS_MAX:
                raise errors.ResourceExhausted(f"{LISTENERS_MAX} listeners of the history")
            self._listeners.append(listener)
            active = list(self._active.values())
            ended = [] if request.ActiveOnly else self._ended(request.Ref)
        try:
            now = [(STARTED, one) for one in active] + [(COMPLETE, one) for one in ended]
            now = [(kind, one) for kind, one in now if wanted(one)]
            for kind, record in now[: request.Limit or None]:
                yield control_pb2.BuildHistoryEvent(type=kind, record=record)
            while not request.EarlyExit:
                with self._changed:
                    while not listener.events and not listener.lost and not gone():
                        self._changed.wait(POLL_SECONDS)
                    if gone():
                        return
                    events, listener.events = listener.events, []
                yield from (event for event in events if wanted(event.record))
                if listener.lost:
                    raise errors.ResourceExhausted(f"more than {QUEUE_MAX} builds behind")
        finally:
            with self._changed:
                self._listeners.remove(listener)

    def _ended(self, ref: str) -> list[Any]:
        rows = (
            self._database.all("SELECT record, pinned FROM builds WHERE ref = ?", (ref,))
            if ref
            else self._database.all("SELECT record, pinned FROM builds ORDER BY created DESC")
        )
        return [_record(row) for row in rows]

    # What is changed

    def pin(self, ref: str, pinned: bool) -> None:
        """A pinned build stays until it is deleted. Raises NotFound."""
        record = self.record(ref)
        record.pinned = pinned
        record.Generation += 1
        with self._database.transaction() as execute:
            execute("UPDATE builds SET pinned = ?, record = ? WHERE ref = ?", (pinned, record.SerializeToString(), ref))
        with self._changed:
            self._tell(COMPLETE, record)

    def delete(self, ref: str) -> None:
        """Raises NotFound."""
        record = self.record(ref)
        self._remove([ref])
        with self._changed:
            self._tell(DELETED, record)

    def clean(self) -> int:
        """Forget what is too old, or too much; how many builds that were."""
        rows = self._database.all("SELECT ref, completed FROM builds WHERE pinned = 0 ORDER BY completed DESC, ref")
        oldest = self._clock() - self._max_age if self._max_age else 0.0
        old = [
            ref
            for number, (ref, completed) in enumerate(rows)
            if completed < oldest or (self._max_entries and number >= self._max_entries)
        ]
        records = [self.record(ref) for ref in old]
        if old:
            self._remove(old, durable=False)
        with self._changed:
            for record in records:
                self._tell(DELETED, record)
        return len(old)

    def _remove(self, refs: Sequence[str], *, durable: bool = True) -> None:
        with self._database.transaction(durable=durable) as execute:
            for ref in refs:
                execute("DELETE FROM builds WHERE ref = ?", (ref,))
                execute("DELETE FROM uses WHERE ref = ?", (ref,))
            execute("DELETE FROM blobs WHERE digest NOT IN (SELECT digest FROM uses)")


def _record(row: Any) -> Any:
    record = control_pb2.BuildHistoryRecord.FromString(row[0])
    record.pinned = bool(row[1])
    return record


def _field(record: Any, path: Sequence[str]) -> str | None:
    """What a filter asks for: ref, status (running, completed, error, canceled), repository."""
    name = path[0] if path else ""
    if name == "ref":
        return str(record.Ref)
    if name == "status":
        if not record.HasField("CompletedAt"):
            return "running"
        if not record.HasField("error"):
            return "completed"
        return "canceled" if record.error.code == errors.Cancelled.code else "error"
    if name == "repository":
        return record.FrontendAttrs.get("vcs:source") or None
    return None
