# SPDX-License-Identifier: Apache-2.0
"""How a result came about: SLSA provenance v0.2 and v1, as BuildKit fills it in.

`min` leaves out what the client gave as build arguments and labels, secrets, and the graph; `max` has all of it. Values
of secrets are in neither: they are not in the graph."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from google.protobuf import json_format

from teu.buildkit.core import errors
from teu.buildkit.core.exports import Build, Result
from teu.buildkit.core.identifiers import without_credentials
from teu.buildkit.exporters import attributes as given
from teu.buildkit.exporters.config import moment
from teu.buildkit.llb.platforms import Platform, host
from teu.oci import reference

ATTRIBUTE, ARGUMENT = "attest:provenance", "build-arg:BUILDKIT_ATTEST_PROVENANCE"
TYPE_02, TYPE_1 = "https://slsa.dev/provenance/v0.2", "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://mobyproject.org/buildkit@v1"
BUILD_TYPE_1 = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
OWN_METADATA = "https://mobyproject.org/buildkit@v1#metadata"
FILE = "provenance.json"

# What is of this host and this moment, and says nothing of the result.
_OF_THE_HOST = ("cgroup-parent", "image-resolve-mode", "platform", "cache-imports")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    mode: str = "max"
    version: str = "v0.2"
    builder: str = ""
    reproducible: bool = False
    inline_only: bool = False
    filename: str = FILE


def asked(attributes: Mapping[str, str]) -> Asked | None:
    """What a build's attributes say of its provenance; None where it is to have none. Raises InvalidArgument."""
    text = attributes.get(ATTRIBUTE, attributes.get(ARGUMENT))
    if text is None:
        return None
    words = given.words(text)
    if given.boolean(words, "disabled"):
        return None
    mode = {"": "max", "full": "max", "max": "max", "min": "min"}.get(words.get("mode", ""))
    if mode is None:
        raise errors.InvalidArgument(f"invalid mode {words['mode']!r}")
    version = {"": "v0.2", "v0.2": "v0.2", "v1": "v1"}.get(words.get("version", ""))
    if version is None:
        raise errors.InvalidArgument(f"invalid version {words['version']!r}")
    filename = words.get("filename") or FILE
    if "/" in filename or filename in (".", ".."):
        raise errors.InvalidArgument(f"invalid filename {filename!r}")
    return Asked(
        mode,
        version,
        words.get("builder-id", ""),
        given.boolean(words, "reproducible"),
        given.boolean(words, "inline-only"),
        filename,
    )


def predicate(asked: Asked, result: Result, build: Build, part: str, platform: Platform) -> tuple[str, Json]:
    """(type of the predicate, it) of one part of a result."""
    parameters, whole = _parameters(asked, build)
    materials = [one for one in map(_material, build.materials()) if one is not None]
    pinned = not any(one.kind == "local" for one in build.materials())
    entry = build.attributes.get("filename") or "Dockerfile"
    source, parameters["locals"] = _source(build, entry)
    if not parameters["locals"]:
        del parameters["locals"]
    own: Json = {}
    if vcs := _after(build.attributes, "vcs:"):
        own["vcs"] = vcs
    graph: Json | None = None
    if asked.mode == "max":
        graph, own["source"] = _graph(build)
    if asked.version == "v1":
        return TYPE_1, _version_1(asked, build, source, parameters, whole, pinned, materials, graph, own)
    metadata: Json = {
        "buildInvocationID": build.ref,
        "buildStartedOn": moment(build.started),
        "buildFinishedOn": moment(time.time()),
        "completeness": {"parameters": whole, "environment": True, "materials": pinned},
        "reproducible": asked.reproducible,
    }
    if own:
        metadata[OWN_METADATA] = own
    document: Json = {
        "builder": {"id": asked.builder},
        "buildType": BUILD_TYPE,
        "materials": materials,
        "invocation": {
            "configSource": source,
            "parameters": parameters,
            "environment": {"platform": str(host())},
        },
        "metadata": metadata,
    }
    if graph is not None:
        document["buildConfig"] = graph
    return TYPE_02, document


def _version_1(
    asked: Asked,
    build: Build,
    source: Json,
    parameters: Json,
    whole: bool,
    pinned: bool,
    materials: list[Json],
    graph: Json | None,
    own: Json,
) -> Json:
    config_source = {key: value for key, value in source.items() if key != "entryPoint"}
    config_source["path"] = source["entryPoint"]
    internal: Json = {"builderPlatform": str(host())}
    if graph is not None:
        internal["buildConfig"] = graph
    metadata: Json = {
        "invocationId": build.ref,
        "startedOn": moment(build.started),
        "finishedOn": moment(time.time()),
        "buildkit_reproducible": asked.reproducible,
        "buildkit_completeness": {"request": whole, "resolvedDependencies": pinned},
    }
    if own:
        metadata["buildkit_metadata"] = own
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE_1,
            "externalParameters": {"configSource": config_source, "request": parameters},
            "internalParameters": internal,
            "resolvedDependencies": materials,
        },
        "runDetails": {"builder": {"id": asked.builder}, "metadata": metadata},
    }


def _parameters(asked: Asked, build: Build) -> tuple[Json, bool]:
    """What was asked of the frontend, and whether that is all of it."""
    whole = bool(build.frontend)
    arguments: dict[str, str] = {}
    for key, value in sorted(build.attributes.items()):
        if key in _OF_THE_HOST or key.startswith(("attest:", "vcs:")):
            continue
        if asked.mode == "min" and key.startswith(("build-arg:", "label:")):
            whole = False
            continue
        arguments[key] = without_credentials(value)
    parameters: Json = {"frontend": build.frontend}
    if arguments:
        parameters["args"] = arguments
    if asked.mode == "max":
        for name in ("secrets", "ssh"):
            if found := sorted({one for material in build.materials() for one in getattr(material, name)}):
                parameters[name] = [{"id": one, "optional": True} for one in found]
    return parameters, whole


def _source(build: Build, entry: str) -> tuple[Json, list[Json]]:
    """Where the Dockerfile came from, and the folders of the client that were used."""
    locals_ = sorted({one.name for one in build.materials() if one.kind == "local"})
    context = build.attributes.get("context", "")
    source: Json = {"entryPoint": entry}
    if re.match(r"(https?|git|ssh)://|git@", context):
        source = {"uri": without_credentials(context), **source}
        for one in build.materials():
            if one.kind in ("git", "http") and one.pin and context.startswith(one.name.partition("#")[0]):
                source["digest"] = _digest(one.pin)
                break
    return source, [{"name": name} for name in locals_]


def _after(attributes: Mapping[str, str], prefix: str) -> dict[str, str]:
    found = {key.removeprefix(prefix): value for key, value in attributes.items() if key.startswith(prefix)}
    if "source" in found:
        found["source"] = without_credentials(found["source"])
    return found


def _digest(pin: str) -> dict[str, str]:
    kind, colon, value = pin.partition(":")
    if colon:
        return {kind: value}
    return {"sha1" if len(pin) == 40 else "sha256": pin}


def _material(one: Any) -> Json | None:
    if one.kind == "local":
        return None
    if one.kind in ("image", "oci-layout"):
        parsed = reference.parse(one.name)
        address = f"pkg:{'docker' if one.kind == 'image' else 'oci'}/{quote(parsed.familiar_name, safe='/')}"
        if parsed.tag:
            address += f"@{quote(parsed.tag, safe='')}"
        queries = [f"digest={one.pin}"] if parsed.digest else []
        if one.platform is not None:
            queries.append(f"platform={quote(str(one.platform), safe='')}")
        uri = address + (f"?{'&'.join(queries)}" if queries else "")
    else:
        uri = without_credentials(one.name)
    found: Json = {"uri": uri}
    if one.pin:
        found["digest"] = _digest(one.pin)
    return found


def _graph(build: Build) -> tuple[Json, Json]:
    """The steps, inputs before those that have them, each under a name of its own; and which lines of which file each
    comes from."""
    steps: list[Json] = []
    names: dict[str, str] = {}
    locations: Json = {}
    infos: list[Json] = []
    for graph in build.graphs():
        origins = {}
        for digest, vertex in graph.vertexes.items():
            if digest not in names:
                names[digest] = f"step{len(names)}"
                steps.append(_step(vertex, names))
            origins[vertex.origin] = names[digest]
        if graph.source is None:
            continue
        base = len(infos)
        for info in graph.source.infos:
            infos.append(json_format.MessageToDict(info, preserving_proto_field_name=True))
            infos[-1].pop("definition", None)
        for origin, lines in graph.source.locations.items():
            told = json_format.MessageToDict(lines, preserving_proto_field_name=True).get("locations") or []
            for one in told:
                if base:
                    one["sourceIndex"] = int(one.get("sourceIndex", 0)) + base
            if origin in origins:
                locations[origins[origin]] = {"locations": told}
    return {"llbDefinition": steps, "digestMapping": names}, {"locations": locations, "infos": infos}


def _step(vertex: Any, names: Mapping[str, str]) -> Json:
    step: Json = {
        "id": names[vertex.digest],
        "op": json_format.MessageToDict(vertex.op, preserving_proto_field_name=True),
    }
    step["op"].pop("inputs", None)
    if source := step["op"].get("source"):
        source["identifier"] = without_credentials(source.get("identifier", ""))
        for key, value in source.get("attrs", {}).items():
            source["attrs"][key] = without_credentials(value)
    if vertex.inputs:
        step["inputs"] = [f"{names[edge.vertex]}:{edge.index}" for edge in vertex.inputs]
    return step
