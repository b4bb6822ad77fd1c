# SPDX-License-Identifier: Apache-2.0
"""A vertex of LLB of the kind "file"."""

from __future__ import annotations

from collections.abc import Sequence

from teu.buildkit.core import errors
from teu.buildkit.core.op import CacheMap, Context, Record, Ref
from teu.buildkit.core.snapshots import Worker
from teu.buildkit.llb.load import Vertex
from teu.buildkit.ops import results


class FileOp:
    def __init__(self, vertex: Vertex, worker: Worker) -> None:
        self._vertex = vertex
        self._worker = worker

    def cache_key(self, context: Context) -> CacheMap:
        raise errors.Unimplemented("file")

    def load(self, context: Context, record: Record, output: int) -> Ref:
        return results.load(self._worker, record)

    def execute(self, context: Context, inputs: Sequence[Ref]) -> Sequence[Ref]:
        raise errors.Unimplemented("file")
