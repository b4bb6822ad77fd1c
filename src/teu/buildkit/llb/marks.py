# SPDX-License-Identifier: Apache-2.0
"""What is said beside an operation of LLB: names and groups for the progress, places in a file, capabilities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.llb.platforms import Platform


class BuildError(ValueError):
    """What was described cannot be an operation."""


class Ranges(Protocol):
    """Lines of a source file, both ends included, counted from 1."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


@dataclass
class SourceMap:
    """The file that operations come from, for messages that show its lines."""

    filename: str
    data: bytes
    language: str = "Dockerfile"
    definition: Any = None  # how the file itself is had, a pb.Definition

    def message(self) -> Any:
        info = pb.SourceInfo(filename=text(self.filename), data=self.data, language=self.language)
        if self.definition is not None:
            info.definition.CopyFrom(self.definition)
        return info


@dataclass(frozen=True)
class Group:
    """Vertexes that progress shows as one. A weak one is shown only where another of the group is."""

    id: str
    name: str
    weak: bool = False


@dataclass
class Marks:
    """What is said beside an operation: nothing of it is in the operation's digest, but for the platform."""

    name: str = ""
    command: str = ""  # the line of the Dockerfile
    platform: Platform | None = None
    ignore_cache: bool = False
    group: Group | None = None
    resources: Any = None  # pb.LinuxResources
    locations: list[tuple[SourceMap, tuple[Ranges, ...]]] = field(default_factory=list)
    caps: set[str] = field(default_factory=set)

    def message(self) -> Any:
        result = pb.OpMetadata(ignore_cache=self.ignore_cache)
        if self.name:
            result.description["llb.customname"] = text(self.name)
        if self.command:
            result.description["com.docker.dockerfile.v1.command"] = text(self.command)
        for cap in sorted(self.caps):
            result.caps[cap] = True
        if self.group is not None:
            result.progress_group.CopyFrom(
                pb.ProgressGroup(id=self.group.id, name=text(self.group.name), weak=self.group.weak)
            )
        if self.resources is not None:
            result.linux_resources.CopyFrom(self.resources)
        return result


def text(value: str) -> str:
    """Text that protobuf takes: U+FFFD in place of bytes that are no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value


def texts(values: Iterable[str]) -> list[str]:
    return [text(value) for value in values]
