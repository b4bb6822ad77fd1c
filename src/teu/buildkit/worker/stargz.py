# SPDX-License-Identifier: Apache-2.0
"""eStargz: a layer of which single files can be fetched (stargz-snapshotter's docs/estargz.md). Called by layers.

It is gzip that everybody reads, of several members: the content of each file, or 4 MiB of it, begins one; the header of
what follows ends it. The last but one holds a tar entry with the table of contents, behind the end of the layer's tar,
so that nobody who unpacks the layer sees it; the last is empty, and says in its header where that one begins.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from teu.buildkit.core import errors
from teu.oci import tar

KIND = "estargz"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"  # annotations of a layer
PLAIN_SIZE = "io.containers.estargz.uncompressed-size"
TOC_NAME = "stargz.index.json"
CHUNK = 4 << 20
GZIP = 31  # zlib's window bits for a member of gzip
TYPES = {
    tar.REGULAR: "reg",
    tar.HARD_LINK: "hardlink",
    tar.SYMLINK: "symlink",
    tar.CHARACTER: "char",
    tar.BLOCK_DEVICE: "block",
    tar.DIRECTORY: "dir",
    tar.FIFO: "fifo",
}


class Stargz:
    """Iterate over the bytes of the layer whose tar these chunks are, once; then the rest is known. Raises
    errors.Unimplemented for what cannot be packed so."""

    def __init__(self, chunks: Iterator[bytes], level: int | None = None) -> None:
        self._source = tar.Source(lambda: next((chunk for chunk in chunks if chunk), b""))
        self._level = zlib.Z_DEFAULT_COMPRESSION if level is None else level
        self._member: Any = None
        self._at = 0  # bytes of the result so far
        self._plain = hashlib.sha256()
        self._size = 0
        self._entries: list[dict[str, Any]] = []
        self._toc_digest = ""

    @property
    def plain(self) -> str:
        """The digest of what decompression gives, the table of contents included."""
        return f"sha256:{self._plain.hexdigest()}"

    @property
    def annotations(self) -> dict[str, str]:
        return {TOC_DIGEST: self._toc_digest, PLAIN_SIZE: str(self._size)}

    def __iter__(self) -> Iterator[bytes]:
        for entry, stored in tar.entries(self._source):
            if entry.sparse or entry.name.strip("./") == TOC_NAME:
                raise errors.Unimplemented(f"a layer with the file {tar.short(entry.name)} cannot be an eStargz")
            yield self._write(tar.pack(entry))
            said = _said(entry)
            if entry.type == tar.REGULAR and stored:
                yield from self._file(said, stored)
            else:
                if entry.type == tar.REGULAR:
                    said["digest"] = f"sha256:{hashlib.sha256().hexdigest()}"
                self._entries.append(said)
        yield self._write(bytes(2 * tar.BLOCK))
        yield self._end()
        toc = json.dumps({"version": 1, "entries": self._entries}, indent="\t").encode()
        self._toc_digest = f"sha256:{hashlib.sha256(toc).hexdigest()}"
        offset = self._at
        head = tar.Entry()
        head.name, head.size = TOC_NAME, len(toc)
        yield self._write(tar.pack(head) + toc + bytes(-len(toc) % tar.BLOCK + 2 * tar.BLOCK))
        yield self._end()
        yield footer(offset)

    def _file(self, said: dict[str, Any], size: int) -> Iterator[bytes]:
        whole = hashlib.sha256()
        first = said
        for at in range(0, size, CHUNK):
            length = min(CHUNK, size - at)
            yield self._end()
            said["offset"] = self._at
            if at:
                said["chunkOffset"] = at
            if length == CHUNK:
                said["chunkSize"] = length
            own = hashlib.sha256()
            for piece in self._source.pieces(length):
                own.update(piece)
                whole.update(piece)
                yield self._write(piece)
            said["chunkDigest"] = f"sha256:{own.hexdigest()}"
            self._entries.append(said)
            said = {"name": said["name"], "type": "chunk"}
        first["digest"] = f"sha256:{whole.hexdigest()}"
        yield self._write(bytes(-size % tar.BLOCK))  # of the source, `entries` skips it

    def _write(self, data: bytes | memoryview) -> bytes:
        if self._member is None:
            self._member = zlib.compressobj(self._level, zlib.DEFLATED, GZIP)
        self._plain.update(data)
        self._size += len(data)
        return self._out(self._member.compress(data))

    def _end(self) -> bytes:
        """Of the member."""
        member, self._member = self._member, None
        return self._out(member.flush()) if member is not None else b""

    def _out(self, data: bytes) -> bytes:
        self._at += len(data)
        return data


def footer(offset: int) -> bytes:
    """51 bytes: an empty member with an extra field (RFC 1952 section 2.3.1.1)."""
    field = b"%016xSTARGZ" % offset
    extra = b"SG" + len(field).to_bytes(2, "little") + field
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + len(extra).to_bytes(2, "little") + extra
    return head + b"\1\0\0\xff\xff" + bytes(8)


def _said(entry: tar.Entry) -> dict[str, Any]:
    """Its entry in the table of contents, without what follows from its content."""
    kind = TYPES.get(entry.type)
    if kind is None:
        raise errors.Unimplemented(
            f"a layer with {tar.short(entry.name)}, of type {entry.type!r}, cannot be an eStargz"
        )
    found: dict[str, Any] = {"name": entry.name, "type": kind}
    if kind == "reg":
        found["size"] = entry.size
    if entry.mtime:
        found["modtime"] = _moment(entry.mtime)
    if entry.link:
        found["linkName"] = entry.link
    numbers = {"mode": entry.mode, "uid": entry.uid, "gid": entry.gid}
    numbers |= {"devMajor": entry.devmajor, "devMinor": entry.devminor}
    found |= {name: number for name, number in numbers.items() if number}
    if entry.xattrs:
        found["xattrs"] = {name: base64.b64encode(value).decode() for name, value in entry.xattrs.items()}
    return found


def _moment(nanoseconds: int) -> str:
    """RFC 3339, whole seconds. Raises errors.Unimplemented for what no calendar has."""
    try:
        when = datetime.fromtimestamp(round(nanoseconds / 1e9), UTC)
    except (ValueError, OverflowError, OSError):
        raise errors.Unimplemented(f"a layer with a time of {nanoseconds} ns cannot be an eStargz") from None
    return when.isoformat().replace("+00:00", "Z")
