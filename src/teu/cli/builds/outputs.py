# SPDX-License-Identifier: Apache-2.0
"""Values of KEY=VALUE,… of a build's flags: where its results go, which caches it reads and writes, what it says of
itself. Called by request.
"""

from __future__ import annotations

import os

from teu.cli.errors import CommandError
from teu.cli.options import FALSE, TRUE, split_csv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LEVELS = ("manifest", "index", "manifest-descriptor", "index-descriptor")


class Output:
    """One exporter: its kind and attributes, and where it goes on this machine ("" for nowhere)."""

    __slots__ = ("attributes", "destination", "kind")

    def __init__(self, kind: str, attributes: dict[str, str], destination: str = "") -> None:
        self.kind = kind
        self.attributes = attributes
        self.destination = destination


def fields(text: str, lower: bool = True) -> list[tuple[str, str]]:
    """KEY=VALUE,… with `"…"` around what has a comma. CommandError for a field without "="."""
    found = []
    for field in split_csv(text):
        key, equals, value = field.partition("=")
        if not equals:
            raise CommandError(f"invalid value {field}")
        found.append((key.strip().lower() if lower else key.strip(), value))
    return found


def parse_output(text: str) -> Output:
    """--output: DEST (a folder, "-" for a tar on the standard output), or type=KIND[,dest=PATH][,ATTRIBUTE=VALUE]."""
    parts = split_csv(text)
    if len(parts) == 1 and parts[0] == text and not text.startswith("type="):
        if text != "-":
            return Output("local", {}, text)
        return Output("tar", {}, "-")
    kind, attributes = "", {}
    for field in parts:
        key, equals, value = field.partition("=")
        if not equals:
            raise CommandError(f"invalid value {field}")
        key = key.strip().lower()
        if key == "type":
            kind = value
        else:
            attributes[key] = value
    if not kind:
        raise CommandError("type is required for output")
    if kind == "registry":
        kind = "image"
        attributes.setdefault("push", "true")
    destination = attributes.pop("dest", "")
    if kind == "local" and not destination:
        raise CommandError("dest is required for local output")
    if kind == "tar" and not destination:
        destination = "-"
    if kind == "oci" and not destination:
        destination = "-"
    if kind in ("image", "cacheonly") and destination:
        raise CommandError(f"dest is not supported for {kind} output")
    return Output(kind, attributes, os.path.expanduser(destination) if destination.startswith("~/") else destination)


def parse_outputs(options: Any) -> list[Output]:
    """-o, --push and --load, which go together as docker's do."""
    found = [parse_output(text) for text in options["output"]]
    if options["push"]:
        images = [output for output in found if output.kind == "image"]
        for output in images:
            output.attributes["push"] = "true"
        if not images:
            found.append(Output("image", {"push": "true"}))
    if options["load"] and not any(output.kind == "docker" and not output.destination for output in found):
        found.append(Output("docker", {}))
    return found


def parse_cache(text: str) -> dict[str, Any]:
    """--cache-from and --cache-to: type=KIND,…; a name alone is an image of a registry."""
    if "=" not in text:
        return {"Type": "registry", "Attrs": {"ref": text}}
    kind, attributes = "", {}
    for key, value in fields(text):
        if key == "type":
            kind = value
        else:
            attributes[key] = value
    if not kind:
        raise CommandError(f"type required form: {text} (e.g. type=registry,ref=NAME)")
    _from_environment(kind, attributes)
    return {"Type": kind, "Attrs": attributes}


def _from_environment(kind: str, attributes: dict[str, str]) -> None:
    """What GitHub's and Amazon's caches take from the environment of the client."""
    environment = os.environ
    if kind == "gha":
        for key, names in (
            ("token", ("ACTIONS_RUNTIME_TOKEN",)),
            ("url_v2", ("ACTIONS_RESULTS_URL",)),
            ("url", ("ACTIONS_CACHE_URL", "ACTIONS_RESULTS_URL")),
        ):
            value = next((environment[name] for name in names if environment.get(name)), "")
            if value:
                attributes.setdefault(key, value)
    elif kind == "s3":
        for key, name in (
            ("access_key_id", "AWS_ACCESS_KEY_ID"),
            ("secret_access_key", "AWS_SECRET_ACCESS_KEY"),
            ("session_token", "AWS_SESSION_TOKEN"),
        ):
            if environment.get(name):
                attributes.setdefault(key, environment[name])


def parse_attestations(options: Any) -> dict[str, str | None]:
    """--attest, --sbom, --provenance: kind → its attributes as text; None where it is turned off."""
    found: dict[str, str | None] = {}
    given = [(text, "") for text in options["attest"]]
    for kind in ("sbom", "provenance"):
        if kind in options.changed:
            given.append((options[kind], kind))
    for text, kind in given:
        disabled = False
        if kind and text in TRUE | FALSE:
            disabled = text in FALSE
            parts = []
        elif kind == "provenance" and text in ("min", "max"):
            parts = [("mode", text)]
        else:
            parts = fields(text)
        if not kind:
            kind = dict(parts).get("type", "")
            if not kind:
                raise CommandError("attestation type not specified")
        kept = []
        for key, value in parts:
            if key == "type":
                continue
            if key == "disabled":
                disabled = value in TRUE
            else:
                kept.append(f'"{key}={value}"' if "," in value else f"{key}={value}")
        if kind in found:
            raise CommandError(f"duplicate attestation field {kind}")
        found[kind] = None if disabled else ",".join(kept)
    return found


def parse_annotations(values: list[str]) -> dict[str, str]:
    """--annotation [LEVEL[,LEVEL][[PLATFORM]]:]KEY=VALUE as attributes of an exporter."""
    found = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals:
            raise CommandError(f"invalid annotation {text!r}, expected key=value")
        levels, colon, name = key.partition(":")
        names = [level.partition("[")[0] for level in levels.split(",")]
        if not colon or not all(level in LEVELS for level in names):
            found[f"annotation.{key}"] = value
            continue
        for level in levels.split(","):
            kind, bracket, platform = level.partition("[")
            place = f"[{platform}" if bracket else ""
            found[f"annotation-{kind}{place}.{name}" if kind != "manifest" else f"annotation{place}.{name}"] = value
    return found
