# SPDX-License-Identifier: Apache-2.0
"""DiffOp: what a tree has that another has not."""

from __future__ import annotations

from collections.abc import Sequence

from teu.buildkit.core.op import CacheMap, Context, Dependency, Record, Ref
from teu.buildkit.core.snapshots import Kind, Worker, result
from teu.buildkit.llb.load import Vertex
from teu.buildkit.ops import keys, results

CACHE_TYPE = "buildkit.diff.v0"


class DiffOp:
    def __init__(self, vertex: Vertex, worker: Worker) -> None:
        self._vertex = vertex
        self._worker = worker

    def cache_key(self, context: Context) -> CacheMap:
        diff = self._vertex.op.diff
        return CacheMap(
            keys.of({"Type": CACHE_TYPE, "Diff": keys.plain(diff)}), tuple(Dependency() for _ in self._vertex.inputs)
        )

    def load(self, context: Context, record: Record, output: int) -> Ref:
        return results.load(self._worker, record)

    def execute(self, context: Context, inputs: Sequence[Ref]) -> Sequence[Ref]:
        diff = self._vertex.op.diff

        lower, upper = results.tree(inputs, diff.lower.input), results.tree(inputs, diff.upper.input)
        return [result(self._worker.diff(lower, upper, Kind(description=self._vertex.name)))]
