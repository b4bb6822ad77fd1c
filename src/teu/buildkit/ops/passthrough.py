# SPDX-License-Identifier: Apache-2.0
"""PassthroughOp: inputs as they are, in another order, as the outputs of one vertex."""

from __future__ import annotations

from collections.abc import Sequence

from teu.buildkit.core import errors
from teu.buildkit.core.op import CacheMap, Context, Dependency, Record, Ref
from teu.buildkit.core.snapshots import Worker
from teu.buildkit.llb.load import Vertex
from teu.buildkit.ops import keys, results

CACHE_TYPE = "buildkit.passthrough.v0"


class PassthroughOp:
    def __init__(self, vertex: Vertex, worker: Worker) -> None:
        self._vertex = vertex
        self._worker = worker

    def cache_key(self, context: Context) -> CacheMap:
        told = keys.plain(self._vertex.op.passthrough)
        return CacheMap(
            keys.of({"Type": CACHE_TYPE, "Passthrough": told}), tuple(Dependency() for _ in self._vertex.inputs)
        )

    def load(self, context: Context, record: Record, output: int) -> Ref:
        return results.load(self._worker, record)

    def execute(self, context: Context, inputs: Sequence[Ref]) -> Sequence[Ref]:
        wanted = list(self._vertex.op.passthrough.outputs)
        for number in wanted:
            if not 0 <= number < len(inputs):
                raise errors.InvalidArgument(f"invalid passthrough output input index {number}")
        return [inputs[number].clone() for number in wanted]
