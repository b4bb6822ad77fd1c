# SPDX-License-Identifier: Apache-2.0
"""The slow key of an input: what is in the files that an operation selects of it. Called by file, exec and others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from teu.buildkit.cache.contenthash import NotInTree, TooManyLinks, Tree
from teu.buildkit.core import errors
from teu.buildkit.core.op import Context, Ref
from teu.buildkit.core.selection import Selection
from teu.buildkit.core.snapshots import Worker, snapshot
from teu.oci.patterns import BadPattern


class Contents:
    """core.op.Dependency.content of these selections; none of them is all of the tree."""

    def __init__(self, worker: Worker, selections: Sequence[Selection]) -> None:
        self._worker = worker
        self.selections = tuple(selections) or (Selection(),)

    def __call__(self, context: Context, ref: Ref) -> str:
        with failures(self._worker, ref):
            found = snapshot(ref)
            if found is not None:
                return found.checksum(self.selections)
            return _of_nothing(self.selections)


@contextmanager
def failures(worker: Worker, ref: Ref) -> Iterator[None]:
    """What goes wrong while a tree's files are looked at, with BuildKit's words."""

    def failed(words: str) -> errors.Error:
        return errors.Error(f"failed to calculate checksum of ref {worker.id}::{ref.id}: {words}")

    try:
        yield
    except NotInTree as error:
        raise failed(f'"{error.filename}": not found') from None
    except TooManyLinks as error:
        raise failed(f"{error.filename}: too many links") from None
    except BadPattern as error:
        raise failed(str(error)) from None
    except OSError as error:
        raise failed(str(error)) from error


def _of_nothing(selections: Sequence[Selection]) -> str:
    with tempfile.TemporaryDirectory(prefix="teu-empty-") as place:
        root = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return Tree(bare=True).checksums(root, selections)
        finally:
            os.close(root)
