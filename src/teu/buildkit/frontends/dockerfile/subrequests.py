# SPDX-License-Identifier: Apache-2.0
"""Questions about a Dockerfile in the place of a build: docker buildx build --call outline, targets, check.

An answer is metadata of a result without files: result.json for programs, result.txt for people, version, and of the
check result.statuscode. Members and their order are those that buildx reads and prints.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.frontends.dockerfile.errors import Location, excerpt
from teu.buildkit.frontends.dockerfile.instructions import Stage
from teu.buildkit.frontends.dockerfile.lint import Warning_
from teu.buildkit.frontends.dockerfile.stages import ArgInfo, Work
from teu.buildkit.llb.build import SourceMap
from teu.oci import digest as digests
from teu.oci import jsontext

DESCRIBE = "frontend.subrequests.describe"
OUTLINE = "frontend.outline"
TARGETS = "frontend.targets"
LINT = "frontend.lint"
CONVERT = "frontend.convertllb"
VERSION = "1.0.0"
CONVERT_VERSION = "0.1.0"

Metadata = dict[str, bytes]
Json = dict[str, Any]


def _location(location: Location) -> Json:
    """A place as JSON: columns, which are not known, and the number of the only source are left out as zeros are."""
    ranges = [{"start": {"line": part.start}, "end": {"line": part.end}} for part in location]
    return {"ranges": ranges} if ranges else {}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _json(document: Any) -> bytes:
    return jsontext.to_bytes(document, "  ")


def _table(rows: Sequence[tuple[str, ...]], gap: int) -> str:
    """Columns that are as wide as their widest cell, with `gap` blanks between them; the last is not filled."""
    widths = [max(len(row[column]) for row in rows) + gap for column in range(len(rows[0]) - 1)]
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[-1] + "\n" for row in rows
    )


def describe() -> Metadata:
    """Which questions are answered."""
    outline_options = [{"name": "target", "description": "Target build stage"}]
    requests = []
    for name, description, options in (
        (OUTLINE, "List all parameters current build target supports", outline_options),
        (TARGETS, "List all targets current build supports", []),
        (DESCRIBE, "List available subrequest types", None),
    ):
        requests.append(
            {
                "name": name,
                "version": VERSION,
                "type": "rpc",
                "description": description,
                "opts": options,
                "inputs": None,
                "metadata": [{"name": "result.json", "description": ""}, {"name": "result.txt", "description": ""}],
                "refs": None,
            }
        )
    rows = [("NAME", "VERSION", "DESCRIPTION")]
    rows += [(str(one["name"]).removeprefix("frontend."), VERSION, str(one["description"])) for one in requests]
    return {"result.json": _json(requests), "result.txt": _table(rows, 1).encode(), "version": VERSION.encode()}


def targets(stages: list[Stage], data: bytes) -> Metadata:
    """The stages that may be built."""
    listed: list[Json] = []
    rows = [("TARGET", "DESCRIPTION")]
    for at, stage in enumerate(stages):
        last = at == len(stages) - 1
        entry: Json = {}
        for key, value in (
            ("name", stage.name),
            ("default", last),
            ("description", stage.description),
            ("base", stage.base),
            ("platform", stage.platform),
        ):
            if value:
                entry[key] = value
        entry["location"] = _location(stage.location)
        listed.append(entry)
        shown = (f"{stage.name} (default)" if stage.name else "(default)") if last else stage.name
        rows.append((shown, stage.description))
    document = {"targets": listed, "sources": [_base64(data)]}
    return {"result.json": _json(document), "result.txt": _table(rows, 1).encode(), "version": VERSION.encode()}


def _line(entry: Json) -> int:
    ranges = entry.get("location", {}).get("ranges") or []
    return int(ranges[0]["start"]["line"]) if ranges else 0


def _mark_used(work: Work) -> None:
    waiting = list(work.outline.used)
    while waiting:
        info = work.outline.args.get(waiting.pop())
        if info is not None:
            waiting += info.needs - work.outline.used
            work.outline.used |= info.needs


def _in_outline_order(work: Work) -> list[Work]:
    """A stage, its base, and what it takes files from, each once."""
    found: list[Work] = []
    waiting = [work]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.append(one)
        waiting += reversed([*([one.base] if one.base is not None else []), *one.deps])
    return found


def outline(target: Work, data: bytes) -> Metadata:
    """What the target takes: arguments, secrets, ssh agents."""
    args: dict[str, ArgInfo] = {}
    secrets: dict[str, tuple[bool, Location]] = {}
    sockets: dict[str, tuple[bool, Location]] = {}
    for work in _in_outline_order(target):
        _mark_used(work)
        for name in work.outline.used:
            if name in work.outline.args:
                args.setdefault(name, work.outline.args[name])
        for name, known in work.outline.secrets.items():
            secrets.setdefault(name, known)
        for name, known in work.outline.ssh.items():
            sockets.setdefault(name, known)
    listed = []
    for info in args.values():
        entry: Json = {"name": info.argument.key}
        if info.argument.description:
            entry["description"] = info.argument.description
        if info.value:
            entry["value"] = info.value
        entry["location"] = _location(info.location)
        listed.append(entry)

    def needed(found: dict[str, tuple[bool, Location]]) -> list[Json]:
        entries = []
        for name, (required, location) in found.items():
            entry: Json = {"name": name}
            if required:
                entry["required"] = True
            entry["location"] = _location(location)
            entries.append(entry)
        return sorted(entries, key=_line)

    document: Json = {}
    for key, value in (
        ("name", target.stage.name),
        ("description", target.stage.description),
        ("args", sorted(listed, key=lambda entry: (_line(entry), entry["name"]))),
        ("secrets", needed(secrets)),
        ("ssh", needed(sockets)),
    ):
        if value:
            document[key] = value
    document["sources"] = [_base64(data)]
    return {
        "result.json": _json(document),
        "result.txt": _outline_text(document).encode("utf-8", "replace"),
        "version": VERSION.encode(),
    }


def _outline_text(document: Json) -> str:
    parts = []
    name, description = document.get("name", ""), document.get("description", "")
    if name or description:
        rows = [("TARGET:", name or "(default)")]
        if description:
            rows.append(("DESCRIPTION:", description))
        parts.append(_table(rows, 1) + "\n")
    if document.get("args"):
        table = [("BUILD ARG", "VALUE", "DESCRIPTION")]
        table += [(one["name"], one.get("value", ""), one.get("description", "")) for one in document["args"]]
        parts.append(_table(table, 3) + "\n")
    for key in ("secrets", "ssh"):
        if document.get(key):
            rows = [("SECRET" if key == "secrets" else "SSH", "REQUIRED")]
            rows += [(one["name"], "true" if one.get("required") else "") for one in document[key]]
            parts.append(_table(rows, 3) + "\n")
    return "".join(parts)


def _go_json(message: Any) -> Json:
    """A protobuf message as Go's encoding/json prints its structure."""
    document: Json = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return document


def checked(source_map: SourceMap, warnings: list[Warning_], error: tuple[str, Location] | None) -> Metadata:
    """What the checks found, and the error that ended them."""
    listed = []
    for found in warnings:
        entry: Json = {"ruleName": found.rule.name, "description": found.rule.description}
        if found.rule.url:
            entry["url"] = found.rule.url
        entry["detail"] = found.text
        entry["location"] = _location(found.location)
        listed.append(entry)
    info: Json = {"filename": source_map.filename, "data": _base64(source_map.data)}
    if source_map.definition is not None:
        info["definition"] = _definition(source_map.definition)
    info["language"] = source_map.language
    document: Json = {"warnings": listed or None, "sources": [info]}
    if error is not None:
        document["buildError"] = {"message": error[0], "location": _location(error[1])}
    text = []
    for found in sorted(warnings, key=lambda one: one.location[0].start if one.location else 0):
        text.append(f"\nWARNING: {found.rule.name}" + (f" - {found.rule.url}" if found.rule.url else ""))
        text.append(f"\n{found.text}\n")
        text.append(excerpt(source_map.filename, source_map.data, found.location))
    return {
        "result.json": _json(document),
        "result.txt": "".join(text).encode("utf-8", "replace"),
        "result.statuscode": b"1" if warnings or error is not None else b"0",
        "version": VERSION.encode(),
    }


def _definition(definition: Any) -> Json:
    """A definition as Go prints it: bytes in base64, metadata by digest."""
    metadata: Json = {}
    for digest, one in definition.metadata.items():
        entry: Json = {}
        if one.ignore_cache:
            entry["ignore_cache"] = True
        if one.description:
            entry["description"] = dict(one.description)
        if one.caps:
            entry["caps"] = dict(one.caps)
        metadata[digest] = entry
    return {
        "def": [_base64(one) for one in getattr(definition, "def")],
        "metadata": dict(sorted(metadata.items())),
        "Source": {},
    }


def converted(definition: Any) -> Metadata:
    """The LLB of the target, for people who look into it."""
    operations = {}
    for data in getattr(definition, "def"):
        operation = pb.Op()
        operation.ParseFromString(data)
        operations[digests.of(data)] = json_format.MessageToDict(operation)
    document = {
        "def": dict(sorted(operations.items())),
        "metadata": {digest: _go_json(one) for digest, one in sorted(definition.metadata.items())},
        "source": json_format.MessageToDict(definition.Source),
    }
    return {"result.json": _json(document), "version": CONVERT_VERSION.encode()}
