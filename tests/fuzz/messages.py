# SPDX-License-Identifier: Apache-2.0
"""Protobuf messages made from the descriptors of the generated stubs: valid in form, odd in content, then damaged.
Used by the targets grpc and ttrpc."""

from __future__ import annotations

import glob
import importlib
import json
import os
import random
from collections.abc import Callable
from typing import Any

from fuzz import shapes

_RANGES = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}

# Strings that a field of this name may be; it is one of them in two of three cases. Where a name of the host would be
# acted on as any root may ask for (a mount, a file for output), it is always one of them: see `BOUND`.
Pool = dict[str, list[str]]


def modules() -> list[Any]:
    """Every generated module."""
    import teu.api

    top = os.path.dirname(os.path.abspath(teu.api.__file__))
    return [
        importlib.import_module("teu.api." + os.path.relpath(path, top)[:-3].replace("/", "."))
        for path in sorted(glob.glob(f"{top}/**/*_pb2.py", recursive=True))
    ]


def message_types() -> list[Any]:
    """Descriptors of all of containerd's messages, sorted by name."""
    found = {
        descriptor.full_name: descriptor
        for module in modules()
        for descriptor in module.DESCRIPTOR.message_types_by_name.values()
    }
    return [found[name] for name in sorted(found)]


class Maker:
    """Makes messages of a descriptor."""

    def __init__(self, random: random.Random, pool: Pool, bound: dict[str, list[str]], types: list[Any]) -> None:
        """`pool` and `bound`: strings by the name of a field, or of MESSAGE.field; those of `bound` and no others."""
        self.random = random
        self.pool = pool
        self.bound = bound
        self.types = types
        self.specs: Callable[[], Any] = dict  # what an Any of JSON holds

    def make(self, descriptor: Any, depth: int = 0, likely: float = 0.65) -> Any:
        message = descriptor._concrete_class()
        for field in descriptor.fields:
            if self.random.random() > likely or (depth > 4 and field.message_type):
                continue
            kind = field.message_type
            repeated = field.label == field.LABEL_REPEATED
            if kind is not None and kind.GetOptions().map_entry:
                for _ in range(self.random.randrange(4)):
                    key = self._scalar(kind.fields_by_name["key"], descriptor, field.name + ".key")
                    value = kind.fields_by_name["value"]
                    if value.message_type is None:
                        getattr(message, field.name)[key] = self._scalar(value, descriptor, field.name)
                    else:
                        getattr(message, field.name)[key].CopyFrom(self.make(value.message_type, depth + 1))
            elif kind is not None:
                for _ in range(self.random.choice((0, 1, 1, 2)) if repeated else 1):
                    made = self._any() if kind.full_name == "google.protobuf.Any" else self.make(kind, depth + 1)
                    place = getattr(message, field.name)
                    (place.add() if repeated else place).CopyFrom(made)
            elif repeated:
                getattr(message, field.name).extend(
                    self._scalar(field, descriptor, field.name) for _ in range(self.random.choice((0, 1, 1, 2, 5)))
                )
            else:
                setattr(message, field.name, self._scalar(field, descriptor, field.name))
        return message

    def _scalar(self, field: Any, owner: Any, name: str) -> Any:
        kind = {
            1: "double",
            2: "float",
            3: "int64",
            4: "uint64",
            5: "int32",
            8: "bool",
            9: "string",
            12: "bytes",
            13: "uint32",
            14: "int32",
        }.get(field.type, "int32")
        if kind == "string":
            return self._string(owner, name)
        if kind == "bytes":
            return self._bytes(owner, name)
        if kind == "bool":
            return self.random.random() < 0.5
        if kind in ("double", "float"):
            return self.random.choice(shapes.FLOATS[:4])
        low, high = _RANGES[kind]
        number = shapes.number(self.random) if self.random.random() < 0.4 else self.random.randrange(5)
        return min(max(number, low), high)

    def _string(self, owner: Any, name: str) -> str:
        names = (f"{owner.name}.{name}", name)
        for one in names:
            if one in self.bound:
                return self.random.choice(self.bound[one])
        for one in names:
            if one in self.pool and self.random.random() < 0.7:
                return self.random.choice(self.pool[one])
        return shapes.text(self.random).encode("utf-8", "replace").decode()

    def _bytes(self, owner: Any, name: str) -> bytes:
        return self.random.choice((b"", b"x", self.random.randbytes(30), b"{}", json.dumps(self.specs()).encode()))

    def _any(self) -> Any:
        from google.protobuf import any_pb2

        made = any_pb2.Any()
        kind = self.random.randrange(6)
        if kind == 0:
            made.type_url = shapes.text(self.random).encode("utf-8", "replace").decode()
            made.value = self._bytes(None, "value") if kind else b""
        elif kind == 1:
            made.type_url = self.random.choice(
                (
                    "types.containerd.io/opencontainers/runtime-spec/1/Spec",
                    "types.containerd.io/opencontainers/runtime-spec/1/Process",
                    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
                )
            )
            document = self.specs()
            if made.type_url.endswith("Process"):
                document = document.get("process") if isinstance(document, dict) else document
            elif made.type_url.endswith("Resources"):
                linux = document.get("linux") if isinstance(document, dict) else None
                document = linux.get("resources") if isinstance(linux, dict) else document
            made.value = json.dumps(document).encode()
        else:
            descriptor = self.random.choice(self.types)
            made.type_url = ("" if self.random.random() < 0.6 else "type.googleapis.com/") + descriptor.full_name
            made.value = self.wire(self.make(descriptor, 3), 0.1)
        return made

    def wire(self, message: Any, damage: float = 0.15) -> bytes:
        """Its bytes, damaged in some cases."""
        data: bytes = message.SerializeToString()
        return shapes.damaged(self.random, data) if self.random.random() < damage else data
