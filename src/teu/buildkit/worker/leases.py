# SPDX-License-Identifier: Apache-2.0
"""Leases of containerd: what holds blobs and snapshots that no image leads to.

    buildkit-X-ID         of a kept record: its snapshot and its blobs, without an end
    buildkit-X-work-ID    of a build, or of what is done outside of one: ends by itself after WORK_SECONDS

Whatever is made is made under a lease: of the block that `Leases.work` is, else of this process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from teu.api.services.leases.v1 import leases_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import new_id
from teu.buildkit.worker.client import Client
from teu.buildkit.worker.names import Names
from teu.oci.labels import expiring

WORK_SECONDS = 24 * 3600.0  # longer than any build; a killed builder's are ended by its successor
CONTENT = "content"

_current: ContextVar[str] = ContextVar("lease", default="")


class Leases:
    """`snapshotter` names the kind of resource that a snapshot is."""

    def __init__(self, client: Client, snapshotter: str, names: Names) -> None:
        self._client = client
        self.names = names
        self._snapshots = f"snapshots/{snapshotter}"
        self._lock = threading.Lock()
        self._own = ""  # of this process
        self._own_until = 0.0
        self._working: set[str] = set()

    # Work

    @contextmanager
    def work(self) -> Iterator[str]:
        """In the block what is made is held by one lease, which ends with it. Blocks nest: the outermost holds."""
        if outer := _current.get():
            yield outer
            return
        lease = self._begin()
        token = _current.set(lease)
        try:
            yield lease
        finally:
            _current.reset(token)
            self._end(lease)

    @contextmanager
    def joined(self, lease: str) -> Iterator[None]:
        """In the block this thread works for that lease."""
        token = _current.set(lease)
        try:
            yield
        finally:
            _current.reset(token)

    def current(self) -> str:
        """The lease that what is made now belongs to."""
        if lease := _current.get():
            return lease
        with self._lock:
            # The former one ends by itself: what it holds may be somebody's still.
            if not self._own or time.monotonic() > self._own_until:
                if self._own:
                    self._working.discard(self._own)
                self._own = self._begin_locked(2 * 3600.0)
                self._own_until = time.monotonic() + 3600.0
            return self._own

    def _begin(self) -> str:
        with self._lock:
            return self._begin_locked(WORK_SECONDS)

    def _begin_locked(self, seconds: float) -> str:
        lease = self.names.work + new_id()
        self._working.add(lease)
        self._create(lease, expiring(seconds))
        return lease

    def collect(self) -> None:
        """Have containerd collect its garbage; returns when it has."""
        lease = self._begin()
        with self._lock:
            self._working.discard(lease)
        self.delete(lease, wait=True)

    def _end(self, lease: str) -> None:
        with self._lock:
            self._working.discard(lease)
        with suppress(errors.Error):  # else it ends by itself
            self.delete(lease)

    def close(self) -> None:
        """The builder leaves: nothing that it made is held any more, but by records and images."""
        with self._lock:
            own, self._own = self._own, ""
        if own:
            self._end(own)

    # Records

    def of(self, record: str) -> str:
        """The name of the lease of a record."""
        return self.names.lease + record

    def create(self, record: str) -> str:
        """The lease of a record; it may be there."""
        lease = self.of(record)
        self._create(lease, {})
        return lease

    def _create(self, lease: str, labels: dict[str, str]) -> None:
        with suppress(errors.AlreadyExists):
            self._client.leases.Create(leases_pb2.CreateRequest(id=lease, labels=labels))

    def delete(self, lease: str, *, wait: bool = False) -> None:
        """What only this lease held is garbage now. `wait`: until it is collected."""
        with suppress(errors.NotFound):
            self._client.leases.Delete(leases_pb2.DeleteRequest(id=lease, sync=wait), timeout=600.0 if wait else 60.0)

    def hold_blob(self, lease: str, digest: str) -> None:
        """A blob that exists, or comes to exist, stays while the lease does."""
        self._add(lease, digest, CONTENT)

    def hold_snapshot(self, lease: str, name: str) -> None:
        self._add(lease, name, self._snapshots)

    def _add(self, lease: str, name: str, kind: str) -> None:
        request = leases_pb2.AddResourceRequest(id=lease)
        request.resource.id = name
        request.resource.type = kind
        with suppress(errors.AlreadyExists):
            self._client.leases.AddResource(request)

    def listed(self) -> list[str]:
        """All of the builder's leases but those of this process' work."""
        found = self._client.leases.List(leases_pb2.ListRequest()).leases
        with self._lock:
            return [one.id for one in found if one.id.startswith(self.names.prefix) and one.id not in self._working]
