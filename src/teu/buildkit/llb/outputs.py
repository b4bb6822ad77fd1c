# SPDX-License-Identifier: Apache-2.0
"""What operations of LLB stand on: outputs of other operations, and file systems to come that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from teu.buildkit.llb.marks import Marks
from teu.buildkit.llb.platforms import Platform


class Files(Protocol):
    """A file system to come, as the operations on it see it: a build.State."""

    @property
    def output(self) -> Output | None: ...
    @property
    def environment(self) -> Mapping[str, str]: ...
    @property
    def directory(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def hostname(self) -> str: ...
    @property
    def network(self) -> str: ...
    @property
    def platform(self) -> Platform | None: ...


class Vertex:
    """An operation."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    def inputs(self) -> list[Output]:
        """The outputs of other operations that it needs, each once, in a fixed order."""
        return []

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        """The pb.Op; `refer` gives the pb.Input of an output."""
        raise NotImplementedError


class Output:
    """One result of an operation. `platform` is what a State made of it runs on, where the operation knows."""

    def __init__(self, vertex: Vertex, index: int = 0, platform: Platform | None = None) -> None:
        self.vertex = vertex
        self.index = index
        self.platform = platform

    def settled(self) -> Output | None:
        return self


class Later(Output):
    """An output that is known only before the definition is made: `settle` is asked once, then. None is scratch."""

    def __init__(self, settle: Callable[[], Files]) -> None:
        self._settle = settle
        self._state: Files | None = None
        self.platform = None

    def settled(self) -> Output | None:
        if self._state is None:
            self._state = self._settle()
        return self._state.output.settled() if self._state.output is not None else None


def settled_output(output: Output | None) -> Output | None:
    return None if output is None else output.settled()
