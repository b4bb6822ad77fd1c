# SPDX-License-Identifier: Apache-2.0
"""Layers as blobs: made by containerd's Diff service, and made again in another compression, or with other times.

A record's blob is the one that it came with, or that was made first; what was made of it later is among its `blobs`, by
what makes them different ("gzip", "zstd-19", "gzip@1700000000").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Compression, Descriptor
from teu.buildkit.worker import stargz
from teu.buildkit.worker.content import ContentStore
from teu.buildkit.worker.records import DIFF, Entry, Records, below
from teu.buildkit.worker.trees import OCI_TAR, Trees
from teu.oci import archive, gzips, tar
from teu.oci.labels import UNCOMPRESSED

DOCKER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
KINDS = ("uncompressed", "gzip", "zstd")

_OCI = {"uncompressed": OCI_TAR, "gzip": OCI_TAR + "+gzip", "zstd": OCI_TAR + "+zstd"}
_DOCKER = {"uncompressed": DOCKER_TAR, "gzip": DOCKER_TAR + ".gzip", "zstd": DOCKER_TAR + ".zstd"}
_PIECE = 1 << 18
THREADS = 4  # layers that are made at the same time


def media_type(kind: str, oci: bool) -> str:
    return (_OCI if oci else _DOCKER)[kind]


def kind_of(descriptor: Descriptor) -> str:
    """The compression that a media type says; "" for one that is no layer of a known form."""
    name = str(descriptor.get("mediaType") or "").replace(".nondistributable", "")
    name = name.replace("rootfs.foreign.diff", "rootfs.diff")
    for kind in KINDS:
        if name in (_OCI[kind], _DOCKER[kind]):
            return kind
    return ""


def typed(descriptor: Descriptor, oci: bool) -> Descriptor:
    """The same blob, named with media types of OCI or of Docker."""
    kind = kind_of(descriptor)
    if not kind or "nondistributable" in descriptor["mediaType"] or "foreign" in descriptor["mediaType"]:
        return descriptor
    return {**descriptor, "mediaType": media_type(kind, oci)}


class Layers:
    def __init__(self, records: Records, trees: Trees, content: ContentStore) -> None:
        self._records = records
        self._trees = trees
        self._content = content

    def all(self, units: Sequence[Entry], compression: Compression | None, make: bool) -> list[Descriptor] | None:
        """The blobs of layers, None where one has none. What has to be made is made by a few threads."""
        threads = min(THREADS, sum(unit.blob is None or compression is not None for unit in units))
        if not make or threads < 2:
            found: list[Descriptor] = []
            for unit in units:
                descriptor = self.of(unit, compression, make)
                if descriptor is None:
                    return None
                found.append(descriptor)
            return found
        from concurrent.futures import ThreadPoolExecutor  # 10 ms, and mostly one layer is made

        with ThreadPoolExecutor(threads, "layers") as pool:
            # One that is in the middle of its making ends before an error is told.
            made = list(pool.map(lambda unit: self.of(unit, compression, make), units))
        return None if None in made else [one for one in made if one is not None]

    def of(self, unit: Entry, compression: Compression | None, make: bool) -> Descriptor | None:
        """The blob of one layer."""
        with unit.layering:
            blob = unit.blob
            if blob is not None and not unit.fetches and not self._content.has(str(blob["digest"])):
                # What was made can be made again; what came with an image cannot.
                if unit.details.get("image") or not make:
                    return blob if unit.details.get("image") else None
                blob = None
            if blob is None:
                if not make:
                    return None
                blob = self._make(unit, compression or Compression())
            if compression is None:
                return blob
            return typed(self._other(unit, blob, compression), compression.oci)

    def _other(self, unit: Entry, blob: Descriptor, compression: Compression) -> Descriptor:
        """The blob as `compression` wants it, made where it is not there."""
        image = bool(unit.details.get("image"))
        epoch = None if image else compression.epoch
        recompress = compression.force and (kind_of(blob) != compression.kind or compression.level is not None)
        if compression.kind == stargz.KIND:  # by its media type it is gzip
            recompress = (compression.force or not image) and not blob.get("annotations", {}).get(stargz.TOC_DIGEST)
        if kind_of(blob) == "uncompressed" != compression.kind and not unit.fetches:
            recompress = True  # it is so for the engine of this host, and no registry has it
        if epoch is None and not recompress:
            return blob
        kind = compression.kind if recompress or not kind_of(blob) else kind_of(blob)
        variant = kind + (f"-{compression.level}" if compression.level is not None else "")
        variant += f"@{epoch}" if epoch is not None else ""
        known = (unit.details.get("blobs") or {}).get(variant)
        if known is not None and self._content.has(known["digest"]):
            return cast(Descriptor, dict(known))
        if not self._content.has(str(blob["digest"])):
            self._trees.fetch(unit)
        made = self._convert(unit, blob, kind, compression.level, epoch)
        unit.details["blobs"] = {**(unit.details.get("blobs") or {}), variant: made}
        self._records.change(unit)
        return made

    def _make(self, unit: Entry, compression: Compression) -> Descriptor:
        """The layer's first blob, of its snapshot and of that which it is upon."""
        lower = self._trees.read_mounts(below(unit))
        upper_entry = unit if unit.how != DIFF else unit.parents[1] if len(unit.parents) > 1 else None
        upper = self._trees.read_mounts(upper_entry)
        lease = self._trees.lease(unit)
        kind = compression.kind if compression.kind in KINDS else "gzip"
        direct = compression.level is None
        try:
            made = self._trees.snapshots.diff(
                lower,
                upper,
                media_type(kind if direct else "uncompressed", True),
                self._trees.names.diff + unit.id,
                lease,
            )
        except (errors.Unimplemented, errors.InvalidArgument):
            if not direct or kind == "uncompressed":
                raise
            direct = False  # a daemon that does not know this compression
            made = self._trees.snapshots.diff(lower, upper, OCI_TAR, self._trees.names.diff + unit.id, lease)
        made = self._annotated(made)
        if not direct and kind != "uncompressed":
            made = self._convert(unit, made, kind, compression.level, None)
        unit.details["blob"] = made
        unit.details["diff_id"] = made["annotations"][UNCOMPRESSED]
        self._records.change(unit)
        return made

    def _annotated(self, made: Descriptor) -> Descriptor:
        digest = str(made["digest"])
        plain = digest
        if kind_of(made) != "uncompressed":
            plain = str(self._content.info(digest).labels.get(UNCOMPRESSED) or "")
            if not plain:
                plain = "sha256:" + _hash(_plain(self._content.read(digest)))
                self._content.label(digest, {UNCOMPRESSED: plain})
        return {
            "mediaType": made["mediaType"],
            "digest": digest,
            "size": int(made["size"]) or self._content.size(digest),
            "annotations": {UNCOMPRESSED: plain},
        }

    def _convert(self, unit: Entry, blob: Descriptor, kind: str, level: int | None, epoch: int | None) -> Descriptor:
        """The same layer, compressed otherwise, no time of it later than `epoch`."""
        own = hashlib.sha256()
        size = 0

        def counted(chunks: Iterable[bytes]) -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                size += len(chunk)
                yield chunk

        def hashed(chunks: Iterable[bytes]) -> Iterator[bytes]:
            for chunk in chunks:
                own.update(chunk)
                yield chunk

        chunks = _plain(self._content.read(str(blob["digest"])))
        if epoch is not None:
            chunks = rewritten(chunks, epoch)
        packed = stargz.Stargz(chunks, level) if kind == stargz.KIND else None
        with self._trees.leases.joined(self._trees.lease(unit)):
            digest = self._content.write(counted(packed or compressed(hashed(chunks), kind, level)))
            plain = packed.plain if packed else f"sha256:{own.hexdigest()}"
            if kind != "uncompressed":
                self._content.label(digest, {UNCOMPRESSED: plain})
        return {
            "mediaType": media_type("gzip" if packed else kind, True),
            "digest": digest,
            "size": size,
            "annotations": {UNCOMPRESSED: plain, **(packed.annotations if packed else {})},
        }


def _hash(chunks: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for chunk in chunks:
        whole.update(chunk)
    return whole.hexdigest()


class _Reader:
    """Chunks as a stream that is read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes, as they come; b"" at the end."""
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._left = chunk
        if size < 0 or size >= len(self._left):
            found, self._left = self._left, b""
        else:
            found, self._left = self._left[:size], self._left[size:]
        return found


def _plain(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Without the compression that the first bytes tell."""
    stream = archive.decompressed(_Reader(chunks))
    while piece := stream.read(_PIECE):
        yield piece


def compressed(chunks: Iterable[bytes], kind: str, level: int | None) -> Iterator[bytes]:
    """The stream compressed; the same bytes for the same stream."""
    if kind == "uncompressed":
        yield from chunks
        return
    if kind == "gzip":
        engine: Any = gzips.Gzip(6 if level is None else max(1, min(level, 9)))
    else:
        import zstandard  # 15 ms, and rarely wanted

        engine = zstandard.ZstdCompressor(level=3 if level is None else max(1, min(level, 22))).compressobj()
    for chunk in chunks:
        if piece := engine.compress(chunk):
            yield piece
    yield engine.flush()


def rewritten(chunks: Iterator[bytes], epoch: int) -> Iterator[bytes]:
    """A layer's tar in which no time is later than that. Raises errors.Unimplemented for what it cannot write again."""
    latest = epoch * 1_000_000_000
    reader = _Reader(chunks)
    source = tar.Source(lambda: reader.read(_PIECE))
    for entry, stored in tar.entries(source):
        if entry.sparse:
            raise errors.Unimplemented(f"cannot rewrite the times of sparse file {entry.name}")
        entry.mtime = min(entry.mtime, latest)
        yield tar.pack(entry)
        for piece in source.pieces(stored):
            yield bytes(piece)
        yield bytes(-stored % tar.BLOCK)  # what follows it in the source, `entries` has skipped
    yield bytes(2 * tar.BLOCK)
