# SPDX-License-Identifier: Apache-2.0
"""The frontend dockerfile.v0: a request to definitions, or to an answer about the Dockerfile.

    options = parse_options(frontend_opt, session_id, worker_platforms)
    result = build(options, client)          # reads the Dockerfile by the client
    result = compile(text, options, client)  # where the text is there already

Neither solves anything but what it must read; the definitions of the result are solved by who asked. Errors carry their
places in the Dockerfile as details, which clients print with the lines.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.core import exports
from teu.buildkit.core.errors import Error, unsupported_subrequest
from teu.buildkit.frontends.dockerfile import convert, subrequests
from teu.buildkit.frontends.dockerfile.client import Client, Note, Options, check_caps
from teu.buildkit.frontends.dockerfile.contexts import Contexts
from teu.buildkit.frontends.dockerfile.errors import DockerfileError, Location, merged, ranges
from teu.buildkit.frontends.dockerfile.instructions import parse_stages
from teu.buildkit.frontends.dockerfile.lint import Linter, Warning_
from teu.buildkit.frontends.dockerfile.parser import parse, syntax_of
from teu.buildkit.frontends.dockerfile.scanner import Scanner
from teu.buildkit.llb import platforms
from teu.buildkit.llb.build import BuildError, SourceMap
from teu.buildkit.llb.platforms import Platform
from teu.oci import jsontext

_PARALLEL = 4


@dataclass
class Target:
    """One platform of a result: its definition, its configuration, what a scanner writes of it."""

    id: str
    platform: Platform
    definition: Any  # pb.Definition
    config: bytes
    base_config: bytes | None
    epoch: int | None
    sbom: Any = None  # pb.Definition


@dataclass
class Result:
    """What a request leads to. `targets` is empty for an answer that is metadata alone (--call).

    `several` says that every target is a result of its own, by its platform, even if it is the only one.
    """

    targets: list[Target] = field(default_factory=list)
    several: bool = False
    metadata: dict[str, bytes] = field(default_factory=dict)


class Forward(Exception):
    """Another frontend is asked for: by BUILDKIT_SYNTAX or by # syntax=. `reference` is its image."""

    def __init__(self, reference: str, command_line: str, source_map: SourceMap, location: Location) -> None:
        super().__init__(reference)
        self.reference = reference
        self.command_line = command_line
        self.source_map = source_map
        self.location = location


def build(options: Options, client: Client, is_builtin: Callable[[str], bool] = lambda reference: True) -> Result:
    """Answer a request. `is_builtin` says of which # syntax= references this frontend takes the place.

    Raises Forward for another one, core.errors.Error for what is wrong.
    """
    missing = check_caps(options.raw.get("frontend.caps", ""))
    contexts = Contexts(options, client)
    source_map = contexts.read_dockerfile()
    if "cmdline" not in options.raw:
        given = options.raw.get("build-arg:BUILDKIT_SYNTAX")
        found: tuple[str, str, Location] | None
        if given is not None:
            found = (given.strip().partition(" ")[0], given, ())
        else:
            found = syntax_of(source_map.data)
        if found is not None and not is_builtin(found[0]):
            raise Forward(found[0], found[1], source_map, found[2])
    if missing is not None:
        raise missing
    return answer(source_map, options, contexts, client)


def compile(text: bytes, options: Options, client: Client, filename: str = "Dockerfile") -> Result:
    """Answer a request about a Dockerfile that is there already."""
    return answer(SourceMap(filename, text), options, Contexts(options, client), client)


def answer(source_map: SourceMap, options: Options, contexts: Contexts, client: Client) -> Result:
    try:
        request = options.raw.get("requestid")
        if request is not None:
            return Result(metadata=_answer(request, source_map, options, contexts, client))
        return _build(source_map, options, contexts, client)
    except DockerfileError as error:
        info = source_map.message()
        for location in error.locations:
            error.at_source(info, ranges(location))
        raise
    except BuildError as error:
        raise Error(f"failed to marshal LLB definition: {error}") from error


def _answer(
    request: str, source_map: SourceMap, options: Options, contexts: Contexts, client: Client
) -> subrequests.Metadata:
    platform = None  # a question is about the Dockerfile, not about what --platform would make of it
    if request == subrequests.DESCRIBE:
        return subrequests.describe()
    if request == subrequests.TARGETS:
        stages, _ = parse_stages(parse(source_map.data), Linter())
        return subrequests.targets(stages, source_map.data)
    if request == subrequests.OUTLINE:
        found = convert.convert(source_map, options, contexts, client, platform, None)
        return subrequests.outline(found.target, source_map.data)
    if request == subrequests.LINT:
        warnings: list[Warning_] = []
        wrong = None
        try:
            # Without a target, all stages are looked at.
            everything = not options.target
            convert.convert(source_map, options, contexts, client, platform, warnings.append, everything)
        except DockerfileError as error:
            wrong = (error.message, merged(error.locations))
        return subrequests.checked(source_map, warnings, wrong)
    if request == subrequests.CONVERT:
        found = convert.convert(source_map, options, contexts, client, platform, None)
        return subrequests.converted(found.state.definition(found.platform))
    raise unsupported_subrequest(request)


def _build(source_map: SourceMap, options: Options, contexts: Contexts, client: Client) -> Result:
    scanner = None
    if options.sbom is not None:
        name, parameters = options.sbom
        scanner = Scanner(name, parameters, options.build_platform, options.resolve_mode, client)
    info = source_map.message()
    vertex = _head(source_map)

    def warn(found: Warning_) -> None:
        note = Note(found.short, found.rule.description, found.rule.url, found.location, vertex, info)
        client.warn(note)

    wanted: list[Platform | None] = list(options.platforms) or [None]

    def one(at: int) -> Target:
        # What is wrong is wrong on every platform: say it once.
        platform = wanted[at]
        found = convert.convert(source_map, options, contexts, client, platform, warn if at == 0 else None)
        exported = platforms.normalized(platform or options.build_platform)
        target = Target(
            exported.full,
            exported,
            found.state.definition(found.platform),
            found.image.encode(),
            found.base_image.encode() if found.base_image is not None else None,
            found.epoch,
        )
        if scanner is not None:
            scanned = scanner.scan(target.id, found.state, found.scanned, found.ignore_cache)
            target.sbom = scanned.definition(options.build_platform)
        return target

    if len(wanted) == 1:
        targets = [one(0)]
    else:
        with ThreadPoolExecutor(min(_PARALLEL, len(wanted)), "dockerfile-platforms") as pool:
            targets = list(pool.map(one, range(len(wanted))))
    return Result(targets, options.multi_platform, _metadata(targets, options.multi_platform))


def _head(source_map: SourceMap) -> str:
    """The digest of the vertex that the Dockerfile came from: warnings are shown under it."""
    if source_map.definition is None or not getattr(source_map.definition, "def"):
        return ""
    last = pb.Op()
    last.ParseFromString(getattr(source_map.definition, "def")[-1])
    return str(last.inputs[0].digest) if last.inputs else ""


def _metadata(targets: list[Target], several: bool) -> dict[str, bytes]:
    """What the exporters read beside the files."""
    result: dict[str, bytes] = {}
    listed = []
    for target in targets:
        suffix = "/" + target.id if several else ""
        result[exports.CONFIG + suffix] = target.config
        if target.base_config is not None:
            result[exports.BASE_CONFIG + suffix] = target.base_config
        if target.epoch is not None:
            result[exports.EPOCH + suffix] = str(target.epoch).encode()
        platform = {"architecture": target.platform.architecture, "os": target.platform.os}
        if target.platform.os_version:
            platform["os.version"] = target.platform.os_version
        if target.platform.variant:
            platform["variant"] = target.platform.variant
        listed.append({"ID": target.id, "Platform": platform})
    result[exports.PLATFORMS] = jsontext.to_bytes({"Platforms": listed})
    return result
