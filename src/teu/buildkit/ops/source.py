# SPDX-License-Identifier: Apache-2.0
"""The operation that gets something from outside: an image, a folder of the client, a repository, a download.

Called by the solver (core.op.Op). Which source it is says the word before "://" of its identifier.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from teu.buildkit.cache.keys import RANDOM
from teu.buildkit.core.identifiers import digest_of
from teu.buildkit.core.op import CacheMap, Context, Record, Ref
from teu.buildkit.core.snapshots import SCRATCH, Worker
from teu.buildkit.llb import platforms
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.ops import results
from teu.buildkit.sources.base import Material, Source, Sources, plainly

KEY = "buildkit.source.v0:"
ONLY_ONCE = "session:"  # how a source's key begins that is never the same twice


class SourceOp:
    """A pb.SourceOp of a vertex. Raises InvalidArgument for what can be said before anybody is asked."""

    def __init__(self, vertex: Any, worker: Worker, sources: Sources) -> None:
        source = vertex.op.source
        self._worker = worker
        self._sources = sources
        self.identifier = source.identifier
        self.platform = platform_of(vertex.op.platform) if vertex.op.HasField("platform") else platforms.host()
        self._source: Source = sources.open(source.identifier, dict(source.attrs), self.platform)
        self._lock = threading.Lock()
        self._map: CacheMap | None = None

    def cache_key(self, context: Context) -> CacheMap:
        with self._lock:  # a source is asked once what it is, whoever wants to know
            if self._map is None:
                with self._worker.hold(), plainly():
                    key = self._source.key(context)
                self._map = CacheMap(_digest(key.key), (), tuple(_digest(other) for other in key.also))
            return self._map

    def load(self, context: Context, record: Record, output: int) -> Ref:
        if record.id == SCRATCH:
            return results.load(self._worker, record)
        with self._worker.hold(), plainly():
            return self._source.load(context, record)

    def execute(self, context: Context, inputs: Sequence[Ref]) -> Sequence[Ref]:
        self.cache_key(context)
        with self._worker.hold(), plainly():
            return [self._source.snapshot(context)]

    def close(self) -> None:
        self._source.close()

    def material(self) -> Material:
        """What it is, for the provenance, once its key is known."""
        return self._source.material()


def _digest(key: str) -> str:
    digest = digest_of(f"{KEY}{key}".encode("utf-8", "replace"))
    return f"{RANDOM}{digest.partition(':')[2]}" if key.startswith(ONLY_ONCE) else digest


def platform_of(message: Any) -> Platform:
    """A pb.Platform by its usual names."""
    return platforms.normalized(
        Platform(message.OS, message.Architecture, message.Variant, message.OSVersion, tuple(message.OSFeatures))
    )
