# SPDX-License-Identifier: Apache-2.0
"""MergeOp: trees one upon the other."""

from __future__ import annotations

from collections.abc import Sequence

from teu.buildkit.core.op import CacheMap, Context, Dependency, Record, Ref
from teu.buildkit.core.snapshots import Kind, Worker, result
from teu.buildkit.llb.load import Vertex
from teu.buildkit.ops import keys, results

CACHE_TYPE = "buildkit.merge.v0"


class MergeOp:
    def __init__(self, vertex: Vertex, worker: Worker) -> None:
        self._vertex = vertex
        self._worker = worker

    def cache_key(self, context: Context) -> CacheMap:
        merge = self._vertex.op.merge
        return CacheMap(
            keys.of({"Type": CACHE_TYPE, "Merge": keys.plain(merge)}), tuple(Dependency() for _ in self._vertex.inputs)
        )

    def load(self, context: Context, record: Record, output: int) -> Ref:
        return results.load(self._worker, record)

    def execute(self, context: Context, inputs: Sequence[Ref]) -> Sequence[Ref]:
        chosen = [one.input for one in self._vertex.op.merge.inputs]
        trees = [results.tree(inputs, number) for number in chosen]
        return [result(self._worker.merge(trees, Kind(description=self._vertex.name)))]
