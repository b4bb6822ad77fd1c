# SPDX-License-Identifier: Apache-2.0
"""The stages of a Dockerfile while they are built: what each stands on, what it needs, what it has become."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from teu.buildkit.frontends.dockerfile.client import Options
from teu.buildkit.frontends.dockerfile.contexts import NamedContext
from teu.buildkit.frontends.dockerfile.errors import DockerfileError, Location
from teu.buildkit.frontends.dockerfile.ignore import Ignored, join
from teu.buildkit.frontends.dockerfile.image import Image
from teu.buildkit.frontends.dockerfile.instructions import Argument, Copy, Instruction, Run, Stage
from teu.buildkit.frontends.dockerfile.lint import Linter
from teu.buildkit.frontends.dockerfile.shell import Lexer
from teu.buildkit.llb import platforms
from teu.buildkit.llb.build import Marks, Proxy, SourceMap, State
from teu.buildkit.llb.platforms import Platform, PlatformError

SCRATCH = "scratch"


@dataclass
class ArgInfo:
    """An ARG for the outline: its value and what its default is made of."""

    argument: Argument
    location: Location
    value: str = ""
    needs: set[str] = field(default_factory=set)


@dataclass
class Outline:
    """What a stage takes from whoever builds it."""

    args: dict[str, ArgInfo] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    secrets: dict[str, tuple[bool, Location]] = field(default_factory=dict)
    ssh: dict[str, tuple[bool, Location]] = field(default_factory=dict)

    def clone(self) -> Outline:
        return Outline(dict(self.args), set(self.used), dict(self.secrets), dict(self.ssh))


@dataclass
class Step:
    """An instruction with the stages that it takes files from."""

    instruction: Instruction
    sources: list[Work] = field(default_factory=list)
    onbuild: bool = False


class Work:
    """A stage under way. One that is `unregistered` is an image that a COPY or a mount names, without a FROM."""

    def __init__(self, stage: Stage, unregistered: bool = False) -> None:
        self.stage = stage
        self.unregistered = unregistered
        self.base: Work | None = None
        self.base_name = stage.base
        self.name = stage.name
        self.named: NamedContext | None = None
        self.platform: Platform | None = None
        self.deps: dict[Work, Instruction] = {}
        self.steps: list[Step] = []
        self.state = State()
        self.image = Image({})
        self.base_image: Image | None = None
        self.dispatched = False
        self.resolved = False
        self.triggers_taken = False
        self.ignore_cache = False
        self.args: list[Argument] = []
        self.context_paths: set[str] = set()
        self.paths: set[str] = set()
        self.total = 0
        self.index = 0
        self.in_trigger = False
        self.prefix_platform = False
        self.outline = Outline()
        self.workdir_set = False
        self.scan_stage = False
        self.scan_context = False
        self.once: dict[str, Location] = {}  # CMD, ENTRYPOINT, HEALTHCHECK: where the last one stands

    def inherit(self) -> None:
        """Begin where the base ended."""
        if self.base is None:
            return
        base = self.base
        self.state = base.state
        self.platform = base.platform
        self.image = base.image.clone()
        self.image.config.pop("OnBuild", None)  # triggers are run by the next stage only
        self.base_image = base.base_image.clone() if base.base_image is not None else None
        self.paths = base.paths
        self.workdir_set = base.workdir_set
        self.args = self.args + base.args

    def follow(self) -> list[str]:
        """The paths of its local context that others take; empty for all of it."""
        return follow_paths(self.paths)

    def prefixed(self, text: str, platform: Platform | None, environment: Mapping[str, str]) -> str:
        """The name of the stage's next vertex: [linux/amd64 stage 2/5] text."""
        if self.total == 0:
            return text
        parts = ["["]
        if self.prefix_platform and platform is not None:
            parts.append(f"{platform.full}{_target(platform, environment)} ")
        if self.name:
            parts.append(self.name + " ")
        self.index += 1
        parts.append(f"{self.index:{int(1 + math.log10(self.total))}d}/{self.total}] ")
        if self.in_trigger:
            parts.append("ONBUILD ")
        return "".join(parts) + text


def follow_paths(paths: set[str]) -> list[str]:
    if "/" in paths:
        return []
    return sorted(join(".", path.removeprefix("/")) for path in paths)


def _target(base: Platform, environment: Mapping[str, str]) -> str:
    """->arm64, where a stage of one platform builds for another one."""
    target = None
    members: dict[str, str] = {}
    for key, value in environment.items():
        if key == "TARGETPLATFORM":
            try:
                target = platforms.parse(value)
                break
            except PlatformError:
                continue
        if key in ("TARGETOS", "TARGETARCH", "TARGETVARIANT"):
            members[key] = value
    if target is None:
        if not members:
            return ""
        target = Platform(
            members.get("TARGETOS") or base.os,
            members.get("TARGETARCH") or base.architecture,
            members.get("TARGETVARIANT", ""),
        )
    target = platforms.normalized(target)
    if target.os != base.os:
        return "->" + target.full
    if target.architecture != base.architecture:
        return "->" + target.architecture + (f"/{target.variant}" if target.variant else "")
    return ""


class Works:
    """All stages by their order and by their names."""

    def __init__(self) -> None:
        self.all: list[Work] = []
        self.by_name: dict[str, Work] = {}

    def add(self, work: Work) -> None:
        self.all.append(work)
        base = self.by_name.get(work.base_name)
        if base is not None:
            work.base = base
            work.outline = base.outline.clone()
        if work.stage.name:
            self.by_name[work.stage.name.lower()] = work

    def find(self, name: str) -> Work | None:
        return self.by_name.get(name.lower())

    def at(self, index: int) -> Work:
        if not 0 <= index < len(self.all):
            raise DockerfileError(f"invalid stage index {index}")
        return self.all[index]

    def names(self) -> list[str]:
        return [work.name for work in self.all if work.name]

    def step(self, instruction: Instruction, lexer: Lexer) -> Step:
        """An instruction with its sources, which may be images that no FROM names."""
        step = Step(instruction)
        if isinstance(instruction, Copy) and instruction.origin:
            origin = instruction.origin
            if lexer.word(origin) != origin:
                raise DockerfileError(
                    "variable expansion is not supported for --from, define a new stage with FROM using ARG from "
                    "global scope as a workaround"
                )
            digits = origin[1:] if origin[:1] in ("+", "-") else origin
            if digits.isascii() and digits.isdigit():
                step.sources = [self.at(int(origin))]
            else:
                step.sources = [self.find(origin) or _image(origin, instruction.location)]
        elif isinstance(instruction, Run):
            # A mount's type may be a variable, so each has a source here, needed or not.
            names = [mount.origin or SCRATCH for mount in instruction.mounts]
            step.sources = [self.find(name) or _image(name, ()) for name in names]
        return step

    def need(self, work: Work, step: Step) -> None:
        """Note what a step of `work` takes files from."""
        for source in step.sources:
            work.deps[source] = step.instruction
            if source.unregistered and source not in self.all:
                self.add(source)

    def check_circles(self) -> None:
        """Raise DockerfileError for stages that need each other."""
        done: set[Work] = set()
        for start in self.all:
            if start in done:
                continue
            path: list[tuple[Work, Iterator[tuple[Work, Instruction]]]] = [(start, iter(start.deps.items()))]
            taken: list[Instruction] = []
            done.add(start)
            while path:
                work, rest = path[-1]
                following = next(rest, None)
                if following is None:
                    path.pop()
                    if taken:
                        taken.pop()
                    continue
                source, instruction = following
                if any(source is other for other, _ in path):
                    raise DockerfileError(
                        f"circular dependency detected on stage: {work.name}",
                        *(one.location for one in [*taken, instruction]),
                    )
                if source not in done:
                    done.add(source)
                    taken.append(instruction)
                    path.append((source, iter(source.deps.items())))


def _image(name: str, location: Location) -> Work:
    return Work(Stage("", name, "", "", "", location, []), unregistered=True)


def reachable(target: Work) -> dict[Work, None]:
    """The stages that `target` needs, itself first, as a set that keeps its order."""
    found: dict[Work, None] = {}
    waiting = [target]
    while waiting:
        work = waiting.pop()
        if work in found:
            continue
        found[work] = None
        following: Iterable[Work] = work.deps
        waiting += reversed([*([work.base] if work.base is not None else []), *following])
    return found


@dataclass
class Setting:
    """What all steps of a build share."""

    options: Options
    works: Works
    global_args: dict[str, str]
    lexer: Lexer
    context: State
    proxy: Proxy | None
    target_platform: Platform
    source_map: SourceMap | None
    linter: Linter
    ignored: Ignored | None
    epoch: int | None

    def marks(self, instruction: Instruction, name: str, work: Work) -> Marks:
        marks = Marks(name=name, ignore_cache=work.ignore_cache)
        if self.source_map is not None:
            marks.locations.append((self.source_map, instruction.location))
        return marks
