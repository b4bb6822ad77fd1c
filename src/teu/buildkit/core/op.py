# SPDX-License-Identifier: Apache-2.0
"""What the solver and the operations agree on: an operation has a cache key, is loaded or executed, and yields results.

The solver knows graphs, keys and time; an operation knows what a vertex means and how it is done. Neither imports the
other: these are the Protocols between them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol


class Gone(Exception):
    """A cached result cannot be had any more: its record is to be forgotten, and the operation executed."""


@dataclass(frozen=True, slots=True)
class Record:
    """A result that a cache has for a key: its name, when it was made (seconds since 1970), and what a remote cache
    has of it (descriptors of layers), or None where the worker knows it by its name."""

    id: str
    created: float
    remote: Any = None


class Ref(Protocol):
    """A result: a snapshot that is held. Whoever has one releases it once; a clone holds it once more."""

    @property
    def id(self) -> str:
        """The name under which a cache keeps it; all clones have the same."""

    def clone(self) -> Ref:
        """Hold it once more."""

    def release(self) -> None:
        """Hold it no longer: what nobody holds, and no result of the cache leads to, may go."""

    def describe(self) -> str:
        """For people."""


class Kept:
    """What a step that failed leaves to whoever wants to look into it: by the numbers of its mounts, what each was
    (`inputs`) and what the step has made of it (`mounts`); None for one that is no tree."""

    def __init__(self, inputs: Sequence[Ref | None], mounts: Sequence[Ref | None] = ()) -> None:
        """The references are this one's from now on."""
        self._lock = threading.Lock()
        self._inputs = list(inputs)
        self._mounts = list(mounts)

    def clones(self) -> tuple[list[Ref | None], list[Ref | None]]:
        """(inputs, mounts), which are the caller's; empty after `release`."""
        with self._lock:
            inputs, mounts = ([ref and ref.clone() for ref in some] for some in (self._inputs, self._mounts))
        return inputs, mounts

    def clone(self) -> Kept:
        """Hold them once more."""
        return Kept(*self.clones())

    def release(self) -> None:
        """Hold them no longer. Twice is fine."""
        with self._lock:
            held = [ref for ref in (*self._inputs, *self._mounts) if ref is not None]
            self._inputs, self._mounts = [], []
        for ref in held:
            ref.release()


@dataclass(frozen=True, slots=True)
class Dependency:
    """How the key of an operation depends on one of its inputs.

    `selector` is what is used of it, as a digest, "" for all. `content`: the digest of what is used of it, by what is
    in it, for which the input has to be there; None where only its definition counts."""

    selector: str = ""
    content: Callable[[Context, Ref], str] | None = None


@dataclass(frozen=True, slots=True)
class CacheMap:
    """How an operation is cached: the digest of the operation itself (for a source: of what it is now, the digest of an
    image, a commit), and a Dependency for each input. `also`: other digests of the same, for operations without
    inputs. A digest that begins with "random:" is never the same twice."""

    digest: str
    inputs: tuple[Dependency, ...] = ()
    also: tuple[str, ...] = ()


class Context(Protocol):
    """What an operation may ask of the solver, while one of its methods runs."""

    @property
    def vertex(self) -> Any:
        """The llb.load.Vertex."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this any more."""

    def check(self) -> None:
        """Raise core.errors.Cancelled where nobody waits for this any more."""

    def wait(self, seconds: float) -> bool:
        """Sleep; True as soon as nobody waits for this any more."""

    def on_cancel(self, call: Callable[[], None]) -> AbstractContextManager[None]:
        """While the block runs, `call` is called once when nobody waits for this any more (by another thread)."""

    def sessions(self) -> list[str]:
        """The sessions of the builds that want this now: any of them may be asked for files, credentials, secrets."""

    def log(self, stream: int, data: bytes) -> None:
        """Output of the step: stream 1 or 2."""

    def status(self, name: str, current: int, total: int, *, action: str = "", completed: bool = False) -> None:
        """How far something within this step has come; `name` is its id."""

    def warn(self, short: str, **more: Any) -> None:
        """A warning: level, detail, url, info, ranges as VertexWarning has them."""

    def waiting(self) -> AbstractContextManager[None]:
        """In the block this operation only waits: it takes no place among those that work."""

    def solve(self, graph: Any, caches: Sequence[Any] = ()) -> Ref:
        """The result of another graph (llb.load.Graph), built as a part of this operation. The caller releases it."""


class Op(Protocol):
    """One operation. Methods are called by any thread, for different inputs and outputs also at the same time; what
    they raise is the step's error. One that holds something between `cache_key` and `execute` has a `close`, too, which
    is called when no build has the vertex any more."""

    def cache_key(self, context: Context) -> CacheMap:
        """What it depends on. May ask registries, servers and clients, as what a source is now depends on them."""

    def load(self, context: Context, record: Record, output: int) -> Ref:
        """The result that a cache has. Raises Gone."""

    def execute(self, context: Context, inputs: Sequence[Ref]) -> Sequence[Ref]:
        """Do it. The inputs are borrowed until it returns; the results, one per output, are the caller's."""
