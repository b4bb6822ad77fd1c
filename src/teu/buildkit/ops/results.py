# SPDX-License-Identifier: Apache-2.0
"""Results of operations out of the cache. Called by the `load` of every Op that makes snapshots."""

from __future__ import annotations

from teu.buildkit.core.op import Record, Ref
from teu.buildkit.core.snapshots import SCRATCH, Scratch, Worker


def load(worker: Worker, record: Record) -> Ref:
    """The result that a cache has. Raises Gone."""
    return Scratch() if record.id == SCRATCH and record.remote is None else worker.load(record)
