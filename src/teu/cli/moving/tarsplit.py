# SPDX-License-Identifier: Apache-2.0
"""Puts a layer's tar together again, to the byte, from a folder with its files and what docker has kept of the tar
itself. Called by `dockerstore`.

tar-split.json.gz has an object in each line: of type 2 bytes that are in the tar as they stand (headers, padding), of
type 1 a file whose content is in the folder, `name` with `size` bytes and a CRC-64 of them. A name that is not UTF-8 is
`name_raw`, in base64."""

from __future__ import annotations

import base64
import gzip
import os

from teu.linux import inside
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

FILE, SEGMENT = 1, 2
BLOCK = 1 << 18


class LayerError(Exception):
    """The folder is not as docker left it; the text says what is."""


def entries(path: str) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rb") as lines:
        for line in lines:
            yield jsontext.loads(line)


def size(path: str) -> int:
    """Bytes of the tar."""
    total = 0
    for entry in entries(path):
        if entry["type"] == SEGMENT:
            total += len(base64.b64decode(entry["payload"]))
        else:
            total += entry.get("size") or 0
    return total


def assemble(path: str, folder: str) -> Iterator[bytes]:
    """The tar's bytes. `path`: its tar-split.json.gz; `folder`: the layer's files. Raises LayerError and OSError."""
    root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for entry in entries(path):
            if entry["type"] == SEGMENT:
                yield base64.b64decode(entry["payload"])
            elif entry.get("size"):
                raw = entry.get("name_raw")
                name = base64.b64decode(raw) if raw else entry["name"].encode("utf-8", "surrogateescape")
                yield from content(root, os.fsdecode(name), entry["size"])
    finally:
        os.close(root)


def content(root: int, name: str, size: int) -> Iterator[bytes]:
    """A file of the folder, opened by the kernel within it: what an image has put there leads nowhere else."""
    file = inside.open_beneath(root, name, os.O_RDONLY | os.O_NOFOLLOW)
    left = size
    try:
        while left and (block := os.read(file, min(BLOCK, left))):
            left -= len(block)
            yield block
    finally:
        os.close(file)
    if left:
        raise LayerError(f"{name} has {left} bytes less than the layer had")
