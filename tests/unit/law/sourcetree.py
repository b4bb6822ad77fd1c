# SPDX-License-Identifier: Apache-2.0
"""The source as the laws read it: each file is parsed and walked once in a process, however many laws look at it."""

from __future__ import annotations

import ast
import functools
import gc
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

Node = TypeVar("Node", bound=ast.AST)


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    tree = ast.parse(path.read_text(), str(path))
    # It stays to the end: the collector need not look through millions of nodes again and again.
    gc.freeze()
    return tree


@functools.cache
def _by_kind(path: Path) -> dict[type[ast.AST], list[ast.AST]]:
    kinds = defaultdict(list)
    for node in ast.walk(parsed(path)):
        kinds[type(node)].append(node)
    gc.freeze()
    return kinds


def nodes(path: Path, *kinds: type[Node]) -> Iterator[Node]:
    """The nodes of these kinds (not of kinds below them), wherever they stand in the file."""
    for kind in kinds:
        yield from _by_kind(path).get(kind, ())  # type: ignore[misc]
