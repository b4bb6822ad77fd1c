# SPDX-License-Identifier: Apache-2.0
"""What a frontend sees of its build, and what it returns. Control implements the Bridge; frontends here, in containers
and in clients ask it.

A Tree is a result to come: a definition that is built when somebody needs its files, and then once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from teu.buildkit.core.exports import Subject
from teu.buildkit.core.progress import Step
from teu.buildkit.core.snapshots import Snapshot
from teu.buildkit.llb.platforms import Platform


class Tree(Protocol):
    """Of one build, and held by it until it ends. Methods may be called by any thread."""

    @property
    def definition(self) -> Any:
        """The pb.Definition, as it was given."""

    def snapshot(self) -> Snapshot | None:
        """Built, at the latest now; None is the empty tree. The caller borrows it. Raises the error of what failed."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """core.exports.Attestation before its tree is built."""

    tree: Tree | None
    path: str
    predicate_type: str = ""
    bundle: bool = False
    subjects: tuple[Subject, ...] = ()
    metadata: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """What a frontend returns: one tree under "", or several by name (`several`). None is the empty tree."""

    trees: dict[str, Tree | None] = field(default_factory=dict)
    several: bool = False
    metadata: dict[str, bytes] = field(default_factory=dict)
    attestations: dict[str, list[Attestation]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CacheImport:
    """Where the records of an earlier build may be found: registry, local, …"""

    kind: str
    attributes: Mapping[str, str]

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.kind, *sorted(self.attributes.items()))


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be solved: a definition, or a frontend with its options and inputs (pb.Definition by name)."""

    definition: Any = None
    frontend: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    caches: Sequence[CacheImport] = ()
    policies: Sequence[Any] = ()
    evaluate: bool = False


class Bridge(Protocol):
    """One build, as a frontend sees it. Errors are those of core.errors."""

    @property
    def session(self) -> str: ...

    @property
    def platforms(self) -> Sequence[Platform]:
        """The host's first."""

    @property
    def cancelled(self) -> bool: ...

    def solve(self, request: Request) -> Result:
        """Nothing is built yet, unless `evaluate` says so."""

    def source_meta(self, request: Any) -> Any:
        """What a source is now: the ResolveSourceMetaResponse to a ResolveSourceMetaRequest of LLBBridge, in whose
        Source the policies may have changed something."""

    def warn(self, warning: Any) -> None:
        """A control_pb2.VertexWarning."""

    def step(self, name: str) -> AbstractContextManager[Step]:
        """A step of the frontend's own, shown to the client while the block runs."""
