# SPDX-License-Identifier: Apache-2.0
"""Transfers with an image archive on a client's stream: import into the image store, export out of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from teu.containerd.errors import AlreadyExists, InvalidArgument, NotFound
from teu.containerd.transfer.job import ClientReader, ClientWriter, Job, Json, from_wire, platforms_of
from teu.oci import archive, image_spec

_CHUNK = 1 << 20


class _Sink:
    """Entries of an archive go into the content store as they stream by."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def store(self, stream: archive.Stream, size: int, expected: str, name: str) -> str:
        content = self._job.context.content
        ref = f"import-{self._job.lease}-{name}"[:200]
        digest = ""
        try:
            with content.writer(self._job.namespace, ref, total=size, lease=self._job.lease) as writer:
                writer.truncate()
                while data := stream.read(_CHUNK):
                    writer.write(data)
                digest = writer.digest
                if expected and digest != expected:
                    raise InvalidArgument(f"archive entry {name} has digest {digest}")
                writer.commit(size, digest, {})
        except AlreadyExists:
            pass
        self._job.tell("importing", name, done=size, total=size)
        return digest

    def read(self, digest: str) -> bytes:
        return self._job.read({"digest": digest})


def load(job: Job, source: Any, destination: Any) -> None:
    reader = ClientReader(job, job.context.streams.get(job.namespace, source.stream))
    job.tell("Importing")
    with job.held():
        try:
            images = archive.read(reader, _Sink(job))
        except (archive.ArchiveError, image_spec.SpecError) as error:
            raise InvalidArgument(f"import: {error}") from None
        finally:
            reader.finish()
        platforms = platforms_of(destination.platforms)
        saved = 0
        for image in images:
            _label_below(job, image.target, platforms)
            for wanted in destination.unpacks:
                platform = platforms_of([wanted.platform])[0] if wanted.platform.os else image_spec.host_platform()
                job.unpack(image.target, platform, wanted.snapshotter)
            for name in _names(image, destination):
                job.store(name, image.target, dict(destination.labels))
                saved += 1
        if not saved:
            raise NotFound("no image name found")
    job.tell("Completed import")


def _names(image: archive.ArchiveImage, destination: Any) -> list[str]:
    """Those of the archive, through the prefixes of the destination, and those it gives on its own."""
    names = [destination.name] if destination.name else []
    prefixes = [one for one in destination.extra_references if one.is_prefix]
    if not prefixes and not names:
        names += image.names
    for prefix in prefixes:
        matched = [
            name
            for name in image.names
            if prefix.allow_overwrite or not prefix.name or name.startswith((prefix.name + ":", prefix.name + "/"))
        ]
        names += matched
        if prefix.add_digest and not (matched and prefix.skip_named_digest):
            names.append(f"{prefix.name}@{image.target['digest']}")
    for one in destination.extra_references:
        if not one.is_prefix:
            names.append(f"{one.name}@{image.target['digest']}" if one.add_digest else one.name)
    return list(dict.fromkeys(names))


def _label_below(job: Job, target: Json, platforms: list[image_spec.Platform]) -> None:
    children = job.wanted_children(target, platforms, 0)
    for child in children:
        if child["mediaType"] in image_spec.INDEXES + image_spec.MANIFESTS:
            _label_below(job, child, platforms)
    job.label_children(target, children)


def save(job: Job, source: Any, destination: Any) -> None:
    writer = ClientWriter(job, job.context.streams.get(job.namespace, destination.stream))
    names = [source.name] if source.name else [one.name for one in source.extra_references]
    if not names:
        raise InvalidArgument("no image to export")
    images = [_export(job, name, platforms_of(destination.platforms)) for name in names]
    job.tell("Exporting")
    try:
        buffered = bytearray()
        for data in archive.write(images, lambda digest: _chunks(job, digest)):
            buffered += data
            if len(buffered) >= _CHUNK:
                writer.write(bytes(buffered))
                buffered.clear()
        if buffered:
            writer.write(bytes(buffered))
    finally:
        writer.finish()
    job.tell("Completed export")


def _chunks(job: Job, digest: str) -> Iterator[bytes]:
    with open(job.context.content.open(job.namespace, digest), "rb") as file:
        while data := file.read(_CHUNK):
            yield data


def _export(job: Job, name: str, platforms: list[image_spec.Platform]) -> archive.ExportImage:
    target = from_wire(job.context.images.get(job.namespace, name).target)
    blobs: dict[str, Json] = {}

    def walk(descriptor: Json) -> None:
        for child in job.wanted_children(descriptor, platforms, 0):
            blobs[child["digest"]] = child
            walk(child)

    walk(target)
    manifest = job.manifest_for(target, platforms[0] if platforms else image_spec.host_platform())
    document = image_spec.manifest(job.document(manifest))
    layers = [layer["digest"] for layer in document["layers"]]
    return archive.ExportImage([name], target, list(blobs.values()), document["config"]["digest"], layers)
