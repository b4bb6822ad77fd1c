# SPDX-License-Identifier: Apache-2.0
"""Garbage collection: by the configuration's policies, some time after builds and now and then; and when a client asks.

One at a time. Called by the daemon and by control.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from teu.api.buildkit import control_pb2
from teu.buildkit.cache.policies import Keeper, Policy, Usage, disk_usage, measured, prune
from teu.buildkit.core import errors
from teu.oci.filters import FilterError

log = logging.getLogger("teu.buildkit")

INTERVAL_SECONDS = 15 * 60.0
POLL_SECONDS = 0.5


class Cleaning:
    """`policies` are asked for when they are needed: a reload may have changed them. `after` (seconds): from the end of
    a build on, so that the next one of a row finds everything."""

    def __init__(
        self,
        keeper: Keeper,
        policies: Callable[[], Sequence[Policy]],
        *,
        after: float,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._keeper = keeper
        self._policies = policies
        self._after, self._interval = after, interval
        self._one = threading.Lock()
        self._changed = threading.Condition()
        self._due = time.monotonic() + after
        self._builds_seen = True
        self._stopping = False

    # What clients ask

    def usage(self, request: Any) -> Any:
        """The answer to a DiskUsageRequest. Raises InvalidArgument."""
        try:
            found = disk_usage(self._keeper.usages(), request.filter, request.ageLimit / 1e9, time.time())
        except FilterError as error:
            raise _wrong("diskusage", request.filter, error) from None
        return control_pb2.DiskUsageResponse(record=[_told(measured(self._keeper, one)) for one in found])

    def prune(self, request: Any, gone: Callable[[], bool]) -> Iterator[Any]:
        """The UsageRecords that a PruneRequest removes, as they go. Raises InvalidArgument."""
        policy = Policy(
            tuple(request.filter),
            request.all,
            request.keepDuration / 1e9,
            request.reservedSpace,
            request.maxUsedSpace,
            request.minFreeSpace,
        )
        told: queue.SimpleQueue[Usage | Exception | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                with self._one:
                    prune(self._keeper, [policy], told=told.put, stop=gone)
                told.put(None)
            except Exception as error:
                told.put(error)

        threading.Thread(target=work, name="prune", daemon=True).start()
        while not gone():
            try:
                one = told.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if one is None:
                return
            if isinstance(one, FilterError):
                raise _wrong("prune", request.filter, one)
            if isinstance(one, Exception):
                raise one
            yield _told(one)

    # What nobody asks

    def build_ended(self) -> None:
        with self._changed:
            self._builds_seen = True
            self._due = time.monotonic() + self._after
            self._changed.notify_all()

    @property
    def due(self) -> bool:
        """Builds have ended since the last collection: it should be made before the builder leaves."""
        with self._changed:
            return self._builds_seen

    def run(self) -> None:
        """The thread that does it, until `stop`."""
        while True:
            with self._changed:
                while not self._stopping and (left := self._due - time.monotonic()) > 0:
                    self._changed.wait(left)
                if self._stopping:
                    return
                self._builds_seen = False
                self._due = time.monotonic() + self._interval
            self.collect()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def collect(self) -> None:
        """By the policies, now."""
        try:
            with self._one:
                gone = prune(self._keeper, self._policies(), stop=lambda: self._stopping)
        except Exception:
            if not self._stopping:  # else containerd is no longer there to be asked
                log.exception("garbage collection")
            return
        if gone:
            log.info("garbage collection: %d records, %d bytes", len(gone), sum(one.size for one in gone))


def _wrong(what: str, filters: Sequence[str], error: FilterError) -> errors.InvalidArgument:
    return errors.InvalidArgument(f"failed to parse {what} filters [{' '.join(filters)}]: {error}: invalid argument")


def _told(one: Usage) -> Any:
    record = one.record
    message = control_pb2.UsageRecord(
        ID=record.id,
        Mutable=record.mutable,
        InUse=one.in_use,
        Size=one.size,
        UsageCount=record.uses,
        Description=record.description,
        RecordType=record.kind,
        Shared=one.shared,
        Parents=record.parents,
    )
    message.CreatedAt.FromNanoseconds(int(record.created * 1e9))
    if record.used is not None:
        message.LastUsedAt.FromNanoseconds(int(record.used * 1e9))
    return message
