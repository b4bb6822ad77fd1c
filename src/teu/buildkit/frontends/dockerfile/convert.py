# SPDX-License-Identifier: Apache-2.0
"""A Dockerfile to the States and the image configuration of one platform.

1. the ARGs before the first FROM, and the platform arguments
2. the stages: names, bases, platforms, named contexts in their place
3. what each needs of others: FROM, COPY --from, mounts, ONBUILD triggers of bases
4. the configurations of the images that are needed, all at once
5. the steps of the needed stages, in the order of the file
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from teu.buildkit.core.errors import Error
from teu.buildkit.frontends.dockerfile import lint, steps
from teu.buildkit.frontends.dockerfile.client import Client, Options
from teu.buildkit.frontends.dockerfile.contexts import Contexts, NamedContext
from teu.buildkit.frontends.dockerfile.errors import DockerfileError, Location, did_you_mean, ranges, suggestion
from teu.buildkit.frontends.dockerfile.ignore import Ignored
from teu.buildkit.frontends.dockerfile.image import Image, default_path
from teu.buildkit.frontends.dockerfile.instructions import (
    Add,
    Arg,
    Argument,
    Copy,
    Instruction,
    Onbuild,
    Run,
    Stage,
    Workdir,
    parse_instruction,
    parse_stages,
)
from teu.buildkit.frontends.dockerfile.lint import Linter, Warn
from teu.buildkit.frontends.dockerfile.parser import find_directive, parse
from teu.buildkit.frontends.dockerfile.shell import Expansion, Lexer, quoted
from teu.buildkit.frontends.dockerfile.stages import (
    SCRATCH,
    ArgInfo,
    Outline,
    Setting,
    Step,
    Work,
    Works,
    follow_paths,
    reachable,
)
from teu.buildkit.llb import build, platforms
from teu.buildkit.llb.build import Marks, SourceMap, State
from teu.buildkit.llb.platforms import Platform, PlatformError
from teu.oci import reference

EPOCH = "SOURCE_DATE_EPOCH"
_RESERVED = ("context", SCRATCH)
_PARALLEL = 8
_COMMON_IMAGES = tuple(
    spelt
    for name in ("alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora")
    for spelt in (name, f"{name}:latest")
)


@dataclass
class Converted:
    """One platform's result: the State of the target, its configuration, that of its base image.

    `scanned` are the States that a scanner looks at beside it, by their names.
    """

    state: State
    image: Image
    base_image: Image | None
    platform: Platform
    epoch: int | None
    ignore_cache: bool
    target: Work
    scanned: dict[str, State] = field(default_factory=dict)


def lint_config(data: bytes, options: Options) -> lint.Config:
    """What the request says of the checks, else what the Dockerfile says of them."""
    if options.lint is not None:
        return options.lint
    found = find_directive("check", data)
    if found is None:
        return lint.Config()
    try:
        return lint.parse_config(found.value.partition(" ")[0])
    except DockerfileError as error:
        raise error.prefixed("failed to parse check options") from None


def convert(
    source_map: SourceMap,
    options: Options,
    contexts: Contexts,
    client: Client,
    platform: Platform | None,
    warn: Warn | None,
    all_stages: bool = False,
) -> Converted:
    """Convert for one platform (None: that of the worker, or of the base image). Raises DockerfileError with places."""
    return _Conversion(source_map, options, contexts, client, platform, warn, all_stages).run()


class _Conversion:
    def __init__(
        self,
        source_map: SourceMap,
        options: Options,
        contexts: Contexts,
        client: Client,
        platform: Platform | None,
        warn: Warn | None,
        all_stages: bool,
    ) -> None:
        if not source_map.data:
            raise DockerfileError("the Dockerfile cannot be empty")
        self.source_map = source_map
        self.options = options
        self.contexts = contexts
        self.client = client
        self.implicit = platform is None
        self.platform = platform or options.build_platform
        self.all_stages = all_stages
        self.linter = Linter(lint_config(source_map.data, options), warn)
        self.works = Works()
        self.outline = Outline()
        self.global_args: dict[str, str] = {}
        self.lexer = Lexer()
        self.epoch: int | None = None

    def run(self) -> Converted:
        parsed = parse(self.source_map.data)
        for place in parsed.empty_continuations:
            self.linter.run(lint.NO_EMPTY_CONTINUATION, place, "Empty continuation line")
        stages, arguments = parse_stages(parsed, self.linter)
        if not stages:
            raise DockerfileError("dockerfile contains no stages to build")
        self.lexer = Lexer(parsed.escape)
        _check_names(stages, self.linter)
        _check_casing(stages, self.linter)
        predefined = self.predefined(stages[-1].name)
        self.check_defaults(stages, arguments, predefined)
        self.global_args, self.outline.args = self.arguments(predefined, arguments, self.options.build_args)
        self.take_epoch()
        self.open(stages)
        target = self.target()
        self.connect()
        needed = self.resolve(target)
        context_paths, context = self.build(needed, target)
        self.finish(target)
        context.append(self.contexts.main(follow_paths(context_paths)))
        result = Converted(
            target.state, target.image, target.base_image, self.platform, self.epoch, target.ignore_cache, target
        )
        if target.scan_context:
            result.scanned["context"] = context[0]
        for work in reachable(target):
            if work is not target and work.scan_stage:
                result.scanned[work.name] = work.state
                result.ignore_cache = result.ignore_cache or work.ignore_cache
        return result

    # Arguments

    def predefined(self, last: str) -> dict[str, str]:
        mine, target = self.options.build_platform, self.platform
        values = {
            "BUILDPLATFORM": str(mine),
            "BUILDOS": mine.os,
            "BUILDOSVERSION": mine.os_version,
            "BUILDARCH": mine.architecture,
            "BUILDVARIANT": mine.variant,
            "TARGETPLATFORM": target.full,
            "TARGETOS": target.os,
            "TARGETOSVERSION": target.os_version,
            "TARGETARCH": target.architecture,
            "TARGETVARIANT": target.variant,
            "TARGETSTAGE": self.options.target or last or "default",
        }
        return {key: self.options.build_args.get(key, value) for key, value in values.items()}

    def arguments(
        self, before: dict[str, str], instructions: list[Arg], given: dict[str, str]
    ) -> tuple[dict[str, str], dict[str, ArgInfo]]:
        """The values of the ARGs before the first FROM, and what the outline says of them."""
        values = dict(before)
        infos: dict[str, ArgInfo] = {}
        for instruction in instructions:
            for argument in instruction.arguments:
                value = argument.value
                needs: set[str] = set()
                if argument.key in given:
                    value = given[argument.key]
                elif value is not None:
                    try:
                        found = self.lexer.expand(value, values)
                    except DockerfileError as error:
                        raise error.at(instruction.location) from None
                    value = found.text
                    needs = found.matched - {argument.key}
                    if argument.key in found.matched and argument.key in infos:
                        needs |= infos[argument.key].needs
                taken = Argument(argument.key, value, argument.description)
                if value is not None:
                    values.pop(argument.key, None)
                    values[argument.key] = value
                infos[argument.key] = ArgInfo(taken, instruction.location, value or "", needs)
        return values, infos

    def take_epoch(self) -> None:
        value = self.options.build_args.get(EPOCH, self.global_args.get(EPOCH, ""))
        if not value:
            return
        digits = value[1:] if value[0] in "+-" else value
        if not digits.isascii() or not digits.isdigit() or len(digits) > 15:
            raise DockerfileError(f"invalid SOURCE_DATE_EPOCH: {value}")
        self.epoch = int(value)
        if EPOCH in self.global_args:
            self.global_args[EPOCH] = str(self.epoch)

    def check_defaults(self, stages: list[Stage], arguments: list[Arg], predefined: dict[str, str]) -> None:
        """Check that base names make sense where no build argument is given."""
        try:
            values, _ = self.arguments(predefined, arguments, {})
            for stage in stages:
                name = self.lexer.word(stage.base, values)
                try:
                    reference.parse(name)
                except reference.ReferenceError_:
                    text = f"Default value for ARG {stage.base} results in empty or invalid base image name"
                    self.linter.run(lint.INVALID_DEFAULT_ARG_IN_FROM, stage.location, text)
        except DockerfileError:
            return  # the build says it better

    # Stages

    def named(self, name: str, platform: Platform | None) -> NamedContext | None:
        if name.lower() in _RESERVED:
            return None
        return self.contexts.named(name, platform or self.platform)

    def open(self, stages: list[Stage]) -> None:
        for index, stage in enumerate(stages):
            linter = self.linter.under(stage.comments)
            work = Work(stage)
            work.prefix_platform = self.options.multi_platform
            work.outline = self.outline.clone()
            name = self.located(stage.location, stage.base)
            self.report_unknown(name, stage.location, linter)
            if not name.text:
                raise DockerfileError(f"base name ({stage.base}) should not be blank", stage.location)
            work.base_name = name.text
            used = set(name.matched)
            if stage.platform:
                work.platform = self.stage_platform(stage, used, linter)
            if stage.name:
                work.named = self.named(stage.name, work.platform)
                if work.named is not None:
                    self.works.add(work)
                    work.base = None
                    continue
            else:
                work.name = f"stage-{index}"
            self.works.add(work)
            work.outline.used |= used
            work.total = int(work.base_name != SCRATCH and work.base is None)
            work.total += sum(isinstance(one, Add | Copy | Run | Workdir) for one in stage.commands)
            work.ignore_cache = self.options.ignores_cache(stage.name)

    def located(self, location: Location, word: str) -> Expansion:
        try:
            return self.lexer.expand(word, self.global_args)
        except DockerfileError as error:
            raise error.at(location) from None

    def report_unknown(self, found: Expansion, location: Location, linter: Linter) -> None:
        known = {*self.global_args, *self.outline.args}
        for name in sorted(found.unmatched - known):
            meant = suggestion(name, sorted(known))
            text = f"FROM argument '{name}' is not declared" + (f" (did you mean {meant}?)" if meant else "")
            linter.run(lint.UNDEFINED_ARG_IN_FROM, location, text)

    def stage_platform(self, stage: Stage, used: set[str], linter: Linter) -> Platform:
        try:
            found = self.lexer.expand(stage.platform, self.global_args)
        except DockerfileError as error:
            raise error.prefixed("failed to process arguments for platform ").at(stage.location) from None
        self.report_unknown(found, stage.location, linter)
        same = found.text == self.global_args.get("TARGETPLATFORM", "")
        if found.matched == {"TARGETPLATFORM"} and not found.unmatched and same:
            text = (
                f"Setting platform to predefined {stage.platform} in FROM is redundant as this is the default behavior"
            )
            linter.run(lint.REDUNDANT_TARGET_PLATFORM, stage.location, text)
        used |= found.matched
        wrong = ""
        parsed = None
        if not found.text:
            wrong = f"empty platform value from expression {stage.platform}"
        else:
            try:
                parsed = platforms.parse(found.text)
            except PlatformError as error:
                wrong = f"failed to parse platform {stage.platform}: {error}"
        if parsed is None:
            for name in sorted(found.unmatched):
                if suggestion(name, self.global_args):
                    wrong = did_you_mean(wrong, name, self.global_args)
                    break
            raise DockerfileError(wrong, stage.location)
        constant = not found.matched and not found.unmatched
        if constant and parsed.os not in stage.name and parsed.architecture not in stage.name:
            text = f"FROM --platform flag should not use constant value {quoted(found.text)}"
            linter.run(lint.FROM_PLATFORM_FLAG_CONST_DISALLOWED, stage.location, text)
        return parsed

    def target(self) -> Work:
        wanted = self.options.target
        if not wanted:
            return self.works.all[-1]
        found = self.works.find(wanted)
        if found is None:
            message = f"target stage {quoted(wanted)} could not be found"
            raise DockerfileError(did_you_mean(message, wanted, self.works.names()))
        return found

    def connect(self) -> None:
        for work in list(self.works.all):
            for instruction in work.stage.commands:
                try:
                    step = self.works.step(instruction, self.lexer)
                except DockerfileError as error:
                    raise error if error.locations else error.at(instruction.location) from None
                work.steps.append(step)
                self.works.need(work, step)
        self.works.check_circles()
        if len(self.works.all) == 1:
            self.works.all[0].name = ""

    # Images

    def resolve(self, target: Work) -> dict[Work, None]:
        """Get what the needed stages stand on; triggers of a base may need more, so until nothing is new."""
        while True:
            needed = reachable(target)
            self.resolve_bases(needed)
            new = False
            for work in self.in_order(needed):
                if work.dispatched:
                    continue  # an image that only gives files takes no steps: its triggers could ask for itself
                work.inherit()
                triggers = list(work.image.config.get("OnBuild") or [])
                if work.base is not None and not work.triggers_taken:
                    triggers += [
                        step.instruction.expression for step in work.base.steps if isinstance(step.instruction, Onbuild)
                    ]
                    work.triggers_taken = True
                if triggers:
                    try:
                        new = self.take_triggers(work, triggers) or new
                    except DockerfileError as error:
                        raise error.only_at(work.stage.location) from None
                    work.image.config.pop("OnBuild", None)
            if not new:
                return needed

    def in_order(self, needed: dict[Work, None]) -> Iterable[Work]:
        return [work for work in self.works.all if work in needed]

    def take_triggers(self, work: Work, triggers: list[str]) -> bool:
        """Put a base's ONBUILD instructions before the stage's own; whether they need other stages."""
        added: list[Step] = []
        for trigger in triggers:
            nodes = parse(trigger.encode("utf-8", "surrogateescape")).nodes
            if len(nodes) != 1:
                raise DockerfileError("onbuild trigger should be a single expression")
            node = nodes[0]
            places = work.stage.location
            node.start = min((place.start for place in places), default=0)
            node.end = max((place.end for place in places), default=0)
            instruction = parse_instruction(node, Linter())
            if not isinstance(instruction, Instruction):
                raise DockerfileError("*instructions.Stage is not a command type", node.location)
            step = self.works.step(instruction, self.lexer)
            step.onbuild = True
            self.works.need(work, step)
            added.append(step)
        work.steps = [*added, *work.steps]
        work.total += len(added)
        return any(step.sources for step in added)

    def resolve_bases(self, needed: dict[Work, None]) -> None:
        waiting: list[tuple[Work, bool]] = []
        for work in list(self.works.all):
            if work.base is not None or work.dispatched or work.resolved:
                continue
            wanted = work in needed or self.all_stages
            work.resolved = wanted
            if work.base_name == SCRATCH and work.named is None:
                work.state = build.scratch()
                work.image = Image.empty(self.platform)
                work.platform = self.platform
                work.dispatched = work.unregistered
            elif wanted:
                waiting.append((work, True))
            else:
                self.normalized(work)
        if len(waiting) < 2:
            for work, _ in waiting:
                self.resolve_base(work)
            return
        with ThreadPoolExecutor(min(_PARALLEL, len(waiting)), "dockerfile-bases") as pool:
            for done in [pool.submit(self.resolve_base, work) for work, _ in waiting]:
                done.result()

    def normalized(self, work: Work) -> reference.Reference:
        try:
            return reference.parse(work.base_name)
        except reference.ReferenceError_ as error:
            message = f"failed to parse stage name {quoted(work.base_name)}: {error}"
            raise DockerfileError(message, work.stage.location) from None

    def resolve_base(self, work: Work) -> None:
        try:
            self.base(work)
        except DockerfileError as error:
            raise error if error.locations else error.at(work.stage.location) from None
        except Error as error:
            raise error.at_source(self.source_map.message(), ranges(work.stage.location)) from None
        finally:
            work.dispatched = work.dispatched or work.unregistered

    def base(self, work: Work) -> None:
        if work.named is not None:
            self.stand_in(work, work.named)
            return
        given = work.base_name
        platform = work.platform or self.platform
        name = self.normalized(work).with_default_tag()
        named = self.named(str(name), platform)
        if named is not None:
            state, image = named.load(work.follow)
            image = image or Image.empty(platform)
            work.base_image = image.clone()
            image.head.pop("created", None)
            work.image = image
            work.state = state.with_(platform=platform)
            work.platform = platform
            return
        multi = self.options.multi_platform
        log = f"[{platform.full + ' ' if multi else ''}internal] load metadata for {name}"
        try:
            found = self.client.resolve_image_config(str(name), platform, self.options.resolve_mode, log)
        except Error as error:
            message = f"{given}: {error.message}"
            error.args = (did_you_mean(message, given, [*self.works.names(), *_COMMON_IMAGES]),)
            raise
        if found.reference != str(name):
            try:
                name = reference.parse(found.reference)
            except reference.ReferenceError_ as error:
                raise DockerfileError(f"failed to parse ref {quoted(found.reference)}: {error}") from None
        image = Image.parse(found.config)
        work.base_image = image.clone()
        image.head.pop("created", None)
        if work.platform is None and self.implicit:
            platform = self.detected(image, platform)
        if found.digest:
            name = name._replace(digest=found.digest)
        work.image = image
        work.platform = platform
        if not image.has_layers():
            work.state = build.scratch().with_(platform=platform)
            return
        marks = Marks(command=work.stage.code, platform=platform)
        marks.name = work.prefixed(f"FROM {name}", platform, {})
        marks.locations.append((self.source_map, work.stage.location))
        work.state = build.image(str(name), platform, self.options.resolve_mode, marks=marks)
        self.check_platform(work, given, platform)

    def stand_in(self, work: Work, named: NamedContext) -> None:
        """A named context in the place of a whole stage."""
        state, image = named.load(work.follow)
        work.dispatched = True
        work.state = state
        if image is not None:
            image.head.pop("created", None)
            work.image = image
            if image.platform.architecture and image.platform.os:
                work.platform = image.platform

    def detected(self, image: Image, wanted: Platform) -> Platform:
        """Without --platform, an image of another platform that the worker runs is taken for that."""
        found = image.platform
        if (found.os, found.architecture) == (wanted.os, wanted.architecture):
            return wanted
        mine = self.options.build_platform
        return mine if (mine.os, mine.architecture) == (found.os, found.architecture) else wanted

    def check_platform(self, work: Work, given: str, wanted: Platform) -> None:
        found = work.image.platform
        if (found.os, found.architecture) != (wanted.os, wanted.architecture):
            text = (
                f'Base image {given} was pulled with platform "{platforms.normalized(found).full}", expected '
                f'"{platforms.normalized(wanted).full}" for current build'
            )
            self.linter.run(lint.INVALID_BASE_IMAGE_PLATFORM, work.stage.location, text)

    # Steps

    def build(self, needed: dict[Work, None], target: Work) -> tuple[set[str], list[State]]:
        """Take the steps of all needed stages: (the paths of the context, what its State is to be put into)."""
        decided: list[State] = []
        paths: set[str] = set()
        setting = Setting(
            self.options,
            self.works,
            self.global_args,
            self.lexer,
            build.later(lambda: decided[0]),
            self.options.proxy(),
            self.platform,
            self.source_map,
            self.linter,
            self.ignored(),
            self.epoch,
        )
        for work in self.works.all:
            if not self.all_stages and (work not in needed or work.dispatched):
                continue
            self.begin(work)
            for step in work.steps:
                try:
                    steps.take(work, step, setting)
                except DockerfileError as error:
                    raise error.at(step.instruction.location) from None
                except build.BuildError as error:
                    raise DockerfileError(str(error), step.instruction.location) from None
            paths |= work.context_paths
            work.scan_context = self.scans(work, steps.SBOM_CONTEXT)
            work.scan_stage = self.scans(work, steps.SBOM_STAGE)
        target.paths.add("/")
        return paths, decided

    def ignored(self) -> Ignored | None:
        """What the context's .dockerignore leaves out; it is always asked for, which clients see as a step."""
        texts = self.contexts.ignore_patterns()
        return Ignored(texts) if texts else None

    def begin(self, work: Work) -> None:
        work.inherit()
        work.dispatched = True
        work.platform = work.platform or self.platform
        if not any(entry.partition("=")[0] == "PATH" for entry in work.image.env) and work.platform.os != "windows":
            work.image.set_env("PATH", default_path(work.platform.os))
        for entry in work.image.env:
            key, _, value = entry.partition("=")
            work.state = work.state.env(key, value)
        if self.options.hostname:
            work.state = work.state.with_(hostname=self.options.hostname)
        if work.image.text("WorkingDir"):
            steps.set_workdir(work, work.image.text("WorkingDir"))
        if work.image.text("User"):
            steps.user(work, work.image.text("User"))
        work.state = work.state.with_(network=self.options.network)

    def scans(self, work: Work, name: str) -> bool:
        values = [self.global_args[name]] if name in self.global_args else []
        values += [argument.value for argument in work.args if argument.key == name and argument.value is not None]
        if not values:
            return False
        state = lint.boolean(values[-1])
        return work.name in values[-1].split(",") if state is None else state

    def finish(self, target: Work) -> None:
        if self.options.labels:
            target.image.config.setdefault("Labels", {}).update(self.options.labels)
        self.linter.check()
        image, wanted = target.image, self.platform
        if not self.implicit:
            found = image.platform
            same = (found.os, found.architecture) == (wanted.os, wanted.architecture)
            image.platform = Platform(
                wanted.os,
                wanted.architecture,
                wanted.variant if wanted.variant or not same else found.variant,
                wanted.os_version if wanted.os_version or not same else found.os_version,
                wanted.os_features or found.os_features,
            )
        image.platform = platforms.normalized(image.platform)


def _check_names(stages: list[Stage], linter: Linter) -> None:
    seen: set[str] = set()
    for stage in stages:
        if not stage.name:
            continue
        if stage.name in _RESERVED:
            text = f"Stage name should not use the same name as reserved stage {quoted(stage.name)}"
            linter.run(lint.RESERVED_STAGE_NAME, stage.location, text)
        if stage.name in seen:
            text = f"Duplicate stage name {quoted(stage.name)}, stage names should be unique"
            linter.run(lint.DUPLICATE_STAGE_NAME, stage.location, text)
        seen.add(stage.name)


def _check_casing(stages: list[Stage], linter: Linter) -> None:
    words = []
    for stage in stages:
        words.append((stage.keyword, stage.location))
        words += [(instruction.name, instruction.location) for instruction in stage.commands]
    lower = sum(word == word.lower() for word, _ in words)
    upper = sum(word == word.upper() != word.lower() for word, _ in words)
    right, name = (str.lower, "lowercase") if lower > upper else (str.upper, "uppercase")
    for word, location in words:
        if word != right(word):
            text = f"Command '{word}' should match the case of the command majority ({name})"
            linter.run(lint.CONSISTENT_INSTRUCTION_CASING, location, text)
