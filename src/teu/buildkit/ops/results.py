# SPDX-License-Identifier: Apache-2.0
"""Results of operations, out of the cache and as inputs. Called by every Op that makes snapshots."""

from __future__ import annotations

from collections.abc import Sequence

from teu.buildkit.core import errors
from teu.buildkit.core.op import Record, Ref
from teu.buildkit.core.snapshots import SCRATCH, Scratch, Snapshot, Worker, snapshot
from teu.buildkit.llb.load import EMPTY


def tree(inputs: Sequence[Ref], number: int) -> Snapshot | None:
    """An input by its number; None for none and for the empty root. Raises InvalidArgument."""
    if number == EMPTY:
        return None
    if not 0 <= number < len(inputs):
        raise errors.InvalidArgument(f"invalid input index {number}, {len(inputs)} provided")
    return snapshot(inputs[number])


def load(worker: Worker, record: Record) -> Ref:
    """The result that a cache has. Raises Gone."""
    return Scratch() if record.id == SCRATCH and record.remote is None else worker.load(record)
