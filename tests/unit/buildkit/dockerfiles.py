# SPDX-License-Identifier: Apache-2.0
"""A builder for tests of the Dockerfile frontend: images and files from dicts, and results in short form."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.core.errors import NotFound
from teu.buildkit.frontends.dockerfile import frontend
from teu.buildkit.frontends.dockerfile.client import ImageConfig, Note, Options, parse_options
from teu.buildkit.llb.platforms import Platform

AMD64 = Platform("linux", "amd64")
DIGEST = "sha256:" + "a" * 64


def image(**config: Any) -> dict[str, Any]:
    """An image's configuration with one layer; keywords are members of its config."""
    return {
        "created": "2024-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], **config},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64]},
        "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "base"}],
    }


class Builder:
    """What the frontend asks. `asked` has all questions in their order."""

    def __init__(
        self,
        images: Mapping[str, dict[str, Any]] | None = None,
        files: Mapping[str, bytes] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        self.images = images
        self.files = dict(files or {})
        self.given = dict(inputs or {})
        self.asked: list[str] = []
        self.notes: list[Note] = []
        self.lock = threading.Lock()

    def resolve_image_config(
        self,
        name: str,
        platform: Platform | None,
        resolve_mode: str,
        log_name: str,
        store: tuple[str, str] | None = None,
    ) -> ImageConfig:
        with self.lock:
            self.asked.append(log_name)
        if self.images is None:
            return ImageConfig(name, DIGEST, json.dumps(image()).encode())
        if name not in self.images:
            raise NotFound(f"{name}: not found")
        return ImageConfig(name, DIGEST, json.dumps(self.images[name]).encode())

    def read_file(self, definition: Any, path: str, limit: int | None = None) -> bytes | None:
        with self.lock:
            self.asked.append(f"read {path}")
        data = self.files.get(path)
        return data if data is None else data[:limit]

    def inputs(self) -> Mapping[str, Any]:
        return self.given

    def warn(self, note: Note) -> None:
        self.notes.append(note)


class Vertex(NamedTuple):
    name: str
    op: Any
    metadata: Any
    digest: str
    inputs: list[str]


def options(**given: str) -> Options:
    """Keywords as options: target="x"; arg_A="b" is a build argument, label_x="y" a label."""
    raw = {}
    for key, value in given.items():
        if key.startswith("arg_"):
            raw["build-arg:" + key.removeprefix("arg_")] = value
        elif key.startswith("label_"):
            raw["label:" + key.removeprefix("label_")] = value
        else:
            raw[key.replace("_", "-")] = value
    return parse_options(raw, "session", (AMD64,))


def compiled(text: str, builder: Builder | None = None, **given: str) -> frontend.Result:
    return frontend.compile(text.encode(), options(**given), builder or Builder())


def vertexes(definition: Any) -> list[Vertex]:
    """The operations of a definition, in its order, without the end that names the result."""
    found = []
    for data in list(getattr(definition, "def"))[:-1]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        op = pb.Op.FromString(data)
        metadata = definition.metadata[digest]
        name = metadata.description.get("llb.customname", "")
        found.append(Vertex(name, op, metadata, digest, [one.digest for one in op.inputs]))
    return found


def steps(text: str, builder: Builder | None = None, **given: str) -> list[Vertex]:
    return vertexes(compiled(text, builder, **given).targets[0].definition)


def names(text: str, builder: Builder | None = None, **given: str) -> list[str]:
    return [vertex.name for vertex in steps(text, builder, **given)]


def config(text: str, builder: Builder | None = None, **given: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(compiled(text, builder, **given).targets[0].config)
    return document


def history(text: str, builder: Builder | None = None, **given: str) -> list[tuple[str, bool]]:
    """What the Dockerfile adds: (created_by, whether it has a layer)."""
    lines = config(text, builder, **given).get("history", [])
    ours = [line for line in lines if line.get("comment") == "buildkit.dockerfile.v0"]
    return [(line["created_by"], not line.get("empty_layer")) for line in ours]


def findings(text: str, builder: Builder | None = None, **given: str) -> list[str]:
    builder = builder or Builder()
    compiled(text, builder, **given)
    return [note.short for note in builder.notes]
