# SPDX-License-Identifier: Apache-2.0
"""Layers to unpack, made with the standard library's tarfile: another mind than the code under test."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from typing import Any

from teu.containerd.state import Context

MOMENT = 1_600_000_000


def tar(*members: tuple[str, bytes | None, dict[str, Any]] | tuple[str, bytes | None]) -> bytes:
    """Each member: name, data (None for what has none), attributes of its TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data, *rest in members:
            info = tarfile.TarInfo(name)
            info.mtime = MOMENT
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            info.size = len(data or b"")
            for key, value in (rest[0] if rest else {}).items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def apply(context: Context, data: bytes, mounts: Any, expected: str = "") -> dict[str, Any]:
    with tempfile.TemporaryFile() as blob:
        blob.write(data)
        blob.flush()
        blob.seek(0)
        return context.layers.apply(blob.fileno(), expected or digest(data), mounts)


def compare(context: Context, left: Any, right: Any, compression: str = "") -> bytes:
    with tempfile.TemporaryFile() as out:
        answer = context.layers.compare(left, right, compression, out.fileno())
        out.seek(0)
        data = out.read()
    assert (answer["blob"], answer["length"], answer["parts"]) == (digest(data), len(data), [])
    return data


def names(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member for member in archive}


def content(data: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = archive.extractfile(name)
        assert found is not None
        return found.read()


class Bind:
    """A bind mount of a plain folder, as snapshotters tell one."""

    type, target = "bind", ""

    def __init__(self, source: object, mode: str = "rw") -> None:
        self.source = os.fspath(source)  # type: ignore[call-overload]
        self.options = ["rbind", mode]
