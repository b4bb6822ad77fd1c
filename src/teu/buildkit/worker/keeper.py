# SPDX-License-Identifier: Apache-2.0
"""Who gives records up: cache.policies.Keeper over the worker. Called by du and prune, and by the daemon from time to
time.

    gone = policies.prune(WorkerKeeper(worker, "/var/lib/…"), rules, told=told)
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, cast

from teu.buildkit.cache.policies import Keeper, Usage
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import SCRATCH, Descriptor, Worker
from teu.buildkit.worker.records import LAYER, SYNCED, Entry
from teu.buildkit.worker.worker import ContainerdWorker
from teu.oci import image_spec

IMAGES_MAX = 10_000  # whose layers are looked at
DOCUMENT_MAX = 8 << 20


class WorkerKeeper:
    """cache.policies.Keeper. `place`: a folder on the file system that snapshots are on."""

    def __init__(self, worker: ContainerdWorker, place: str) -> None:
        self._worker = worker
        self._place = place
        self._known: dict[str, frozenset[str]] = {}  # what an image's target leads to: chain ids

    def usages(self) -> list[Usage]:
        chains = self._chains()
        own: dict[str, str] = {}
        found = []
        for entry in self._worker.records.all():
            twin = entry.twin
            if twin is not None:
                # Two names of the same files: the one that somebody uses is told, else the one that stays.
                synced = entry if entry.how == SYNCED else twin
                if (entry is synced) != bool(synced.count):
                    continue
            shared = bool(chains) and self._chain_of(entry, own) in chains
            found.append(Usage(entry.record, self._in_use(entry), shared))
        return found

    @staticmethod
    def _chain_of(entry: Entry, known: dict[str, str]) -> str:
        """The chain id of a tree of layers; "" where a layer of it has no blob yet, or it is of another kind."""
        way = []
        one: Entry | None = entry
        while one is not None and one.id not in known and one.how == LAYER:
            way.append(one)
            one = one.parent
        below = "" if one is None else known.get(one.id, "?")
        for each in reversed(way):
            diff_id = str(each.details.get("diff_id") or "")
            if below == "?" or not diff_id:
                below = "?"
            else:
                below = image_spec.chain_ids([below, diff_id])[-1] if below else diff_id
            known[each.id] = below
        return known.get(entry.id, "?").removesuffix("?")

    @staticmethod
    def _in_use(entry: Entry) -> bool:
        return entry.count > 0

    def free_space(self) -> int:
        status = os.statvfs(self._place)
        return status.f_bavail * status.f_frsize

    def total_space(self) -> int:
        """Bytes of that file system: what percentages in policies are of."""
        status = os.statvfs(self._place)
        return status.f_blocks * status.f_frsize

    def measure(self, name: str) -> int:
        entry = self._worker.records.get(name)
        return self._worker.keeping.measure(entry) if entry is not None else 0

    def remove(self, name: str) -> bool:
        entry = self._worker.records.get(name)
        return entry is not None and self._worker.keeping.remove(entry)

    def collect(self) -> None:
        """Have containerd collect its garbage; returns when it has."""
        self._worker.keeping.finish()
        self._worker.leases.collect()

    def forget(self) -> None:
        if not self._worker.records.all():
            self._worker.store.forget_oldest(SCRATCH, 0)

    # What images have

    def _chains(self) -> frozenset[str]:
        """The chain ids of all images' layers."""
        known: dict[str, frozenset[str]] = {}
        for _, target in self._worker.images.all()[:IMAGES_MAX]:
            digest = str(target["digest"])
            if digest not in known:
                # Content never changes: what was read once stays true.
                known[digest] = self._known.get(digest) or self._read(target, 0)
        self._known = {digest: found for digest, found in known.items() if found}
        return frozenset().union(*known.values())

    def _read(self, target: Descriptor, depth: int) -> frozenset[str]:
        document = self._document(target)
        manifests = document.get("manifests")
        if isinstance(manifests, list) and depth < 2:
            return frozenset().union(
                *(
                    self._read(cast(Descriptor, one), depth + 1)
                    for one in manifests
                    if isinstance(one, dict) and one.get("digest")
                )
            )
        config = document.get("config")
        if not isinstance(config, dict) or not config.get("digest"):
            return frozenset()
        roots = self._document(cast(Descriptor, config)).get("rootfs")
        diff_ids = roots.get("diff_ids") if isinstance(roots, dict) else None
        if not isinstance(diff_ids, list) or not all(isinstance(one, str) for one in diff_ids):
            return frozenset()
        return frozenset(image_spec.chain_ids(diff_ids))

    def _document(self, target: Descriptor) -> dict[str, Any]:
        try:
            found = json.loads(self._worker.content.read_whole(str(target["digest"]), DOCUMENT_MAX))
        except (errors.Error, ValueError, RecursionError):
            return {}  # not here, or no image
        return found if isinstance(found, dict) else {}


if TYPE_CHECKING:
    # What the rooms above are promised.
    def _worker(worker: ContainerdWorker) -> Worker:
        return worker

    def _keeper(keeper: WorkerKeeper) -> Keeper:
        return keeper
