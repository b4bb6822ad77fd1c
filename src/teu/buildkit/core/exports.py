# SPDX-License-Identifier: Apache-2.0
"""What a build hands to its exporters, and what they answer. The exporters implement these Protocols; control calls.

exporter = make("image", 0, {"name": "docker.io/library/app", "push": "true"})     before the build: what is wrong
answer = exporter.export(task, result, build)                                      when all of it has been built
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from teu.buildkit.core.snapshots import Descriptor, Snapshot

# Keys of a result's metadata. Where a result has several parts, "/" and the part's name follow.
CONFIG = "containerimage.config"
BASE_CONFIG = "containerimage.base.config"  # of the image that it was made from
INLINE_CACHE = "containerimage.inlinecache"
PLATFORMS = "refs.platforms"  # JSON: {"Platforms": [{"ID": name, "Platform": {…}}]}
EPOCH = "source.date.epoch"


@dataclass(frozen=True, slots=True)
class Subject:
    """What an attestation is of: the image itself, or a name with digests."""

    itself: bool = True
    name: str = ""
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attestation:
    """A statement that comes with a result: a file in a snapshot, or (`bundle`) a folder of such files."""

    snapshot: Snapshot | None
    path: str
    predicate_type: str = ""
    bundle: bool = False
    subjects: tuple[Subject, ...] = ()
    metadata: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """One tree of a result, that of a platform. None is the empty tree. `chains` has its cache, for cache.remote."""

    snapshot: Snapshot | None
    chains: Callable[[], Sequence[Any]] = list


@dataclass(slots=True)
class Result:
    """What was built: parts by their names in PLATFORMS, or one alone, whose name is "". All are held by the build."""

    parts: dict[str, Part] = field(default_factory=dict)
    metadata: dict[str, bytes] = field(default_factory=dict)
    attestations: dict[str, list[Attestation]] = field(default_factory=dict)

    def named(self, key: str, part: str) -> bytes | None:
        """What the metadata say of a part: under its name, or else under the plain key, as of a result alone."""
        found = self.metadata.get(f"{key}/{part}") if part else None
        return self.metadata.get(key) if found is None else found


@dataclass(frozen=True, slots=True)
class Build:
    """How a result came about, for its provenance. `materials` are those of the sources' room, `graphs` the
    llb.load.Graph that were solved. Times are seconds since 1970."""

    ref: str
    session: str
    frontend: str
    attributes: Mapping[str, str]
    started: float
    materials: Callable[[], Sequence[Any]] = list
    graphs: Callable[[], Sequence[Any]] = list
    entitlements: frozenset[str] = frozenset()


class Task(Protocol):
    """What an exporter may ask of the build while it works; the same as core.op.Context has."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the build any more."""

    def check(self) -> None:
        """Raise core.errors.Cancelled where nobody waits for this any more."""

    def on_cancel(self, call: Callable[[], None]) -> AbstractContextManager[None]:
        """While the block runs, `call` is called once when nobody waits for this any more (by another thread)."""

    def sessions(self) -> list[str]:
        """The client's session: it takes files, and has credentials of registries."""

    def log(self, stream: int, data: bytes) -> None:
        """Output of the step: stream 1 or 2."""

    def status(self, name: str, current: int, total: int, *, action: str = "", completed: bool = False) -> None:
        """How far something within this step has come, in bytes or things; `name` is its id. 0 where nobody knows."""

    def warn(self, short: str, **more: Any) -> None:
        """A warning: level, detail, url, info, ranges as VertexWarning has them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client reads of an export (containerimage.digest, …), and the descriptor of what was made, if it is in
    the content store."""

    values: Mapping[str, str] = field(default_factory=dict)
    descriptor: Descriptor | None = None


class Exporter(Protocol):
    """One that a client asked for, whose attributes have been understood. One that makes layers says how in an
    attribute `compression` (core.snapshots.Compression): the cache that goes into the image is made of the same."""

    @property
    def name(self) -> str:
        """Of its step, for people: "exporting to image"."""

    def export(self, task: Task, result: Result, build: Build) -> Answer:
        """Raises core.errors.Error."""


class Make(Protocol):
    """`number`: which of the request's exporters it is; clients know it by that. Raises InvalidArgument."""

    def __call__(self, kind: str, number: int, attributes: Mapping[str, str]) -> Exporter: ...
