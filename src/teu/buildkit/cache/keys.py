# SPDX-License-Identifier: Apache-2.0
"""Cache keys, with BuildKit's meaning.

An output of an operation that has no inputs has the key root(digest of the operation, output). One with inputs has no
name of its own: it is where links lead to, one from a key of each of its inputs,

    (key of the input, number of the input, digest of the operation, output, selector) -> key

and as every input may have several keys (by its definition, by its content, by what else was found to be the same),
one result is found by any of them. The content of an input is a key like another: root(its digest, -1), without a
selector. Keys have results, or none: then they lead to others that have. All of it is what BuildKit's remote caches
hold, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from teu.buildkit.core.op import Record

CONTENT = -1  # the output number in a key by content

Link = tuple[str, str]  # a key of an input, and the selector by which it is looked at

RANDOM = "random:"  # the beginning of digests of operations that are never the same twice: nobody keeps them


def root(digest: str, output: int) -> str:
    """The key of an output of an operation without inputs, and of content (output CONTENT)."""
    key = hashlib.sha256(f"{digest}@{output}".encode()).hexdigest()
    return f"{RANDOM}{key}" if digest.startswith(RANDOM) else f"sha256:{key}"


def derived(digest: str, output: int, inputs: Sequence[Collection[Link]]) -> str:
    """A name for the key that links from all these keys shall lead to. Who gives it to the same keys gives the same, so
    two who save at the same time save one."""
    whole = hashlib.sha256(f"{digest}@{output}".encode())
    for links in inputs:
        whole.update(b"\0" + "\0".join(min(links)).encode())
    return "derived:" + whole.hexdigest()


class Keys(Protocol):
    """A cache as the solver asks it. `id` tells caches apart; no method may take long."""

    @property
    def id(self) -> str: ...

    def linked(self, links: Collection[Link], number: int, digest: str, output: int) -> set[str]:
        """The keys that these keys of input `number` lead to."""

    def results(self, key: str) -> list[Record]:
        """The results of a key, the newest first."""


class KeysKept(Keys, Protocol):
    """The cache that results are saved in."""

    def save(self, key: str, digest: str, output: int, inputs: Sequence[Iterable[Link]], result: str) -> None:
        """Let all links lead to the key, which gets the result ("" for none). It outlives this process when this
        returns, and a power cut with the next `sync`."""

    def sync(self) -> None:
        """All that was saved so far is on the disk when it returns."""

    def forget(self, result: str) -> None:
        """The result is gone; keys that lead nowhere now go, too."""


def intersection(sets: Iterable[set[str]]) -> set[str]:
    """What is in all of them; nothing where there are none."""
    all_ = list(sets)
    return set.intersection(*all_) if all_ else set()
