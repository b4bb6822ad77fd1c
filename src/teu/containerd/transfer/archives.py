# SPDX-License-Identifier: Apache-2.0
"""Transfers with an image archive on a client's stream: import into the image store, export out of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from teu.containerd.core.errors import AlreadyExists, InvalidArgument
from teu.containerd.transfer.job import ClientReader, ClientWriter, Job, from_wire, own_names, platforms_of
from teu.oci import archive, image_spec
from teu.oci import digest as digests

_CHUNK = 1 << 20


class _Sink:
    """Entries of an archive go into the content store as they stream by."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def store(self, stream: archive.Stream, size: int, expected: str, name: str) -> str:
        content = self._job.parts.content
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
        return self._job.read(digest)


def load(job: Job, source: Any, destination: Any) -> None:
    """From an archive on a stream into the image store, unpacked where that is asked for."""
    reader = ClientReader(job, job.parts.streams.get(job.namespace, source.stream))
    job.tell("Importing")
    with job.held():
        sink = _Sink(job)
        try:
            index, found = archive.read_index(reader, sink)
        except (archive.ArchiveError, image_spec.SpecError) as error:
            raise InvalidArgument(f"import: {error}") from None
        finally:
            reader.finish()
        platforms = platforms_of(destination.platforms)
        for target in {one["digest"]: one for one in found}.values():
            _label_below(job, target, platforms)
            for wanted in destination.unpacks:
                platform = platforms_of([wanted.platform])[0] if wanted.platform.os else image_spec.host_platform()
                if image_spec.choose([target], platform):
                    job.unpack(target, platform, wanted.snapshotter)
        if whole := own_names(destination, digests.of(index)):
            target = image_spec.descriptor(image_spec.OCI_INDEX, index)
            sink.store(io.BytesIO(index), len(index), target["digest"], "index.json")
            job.label_children(target, found)
            for name in whole:
                job.store(name, target, dict(destination.labels))
        for target in found:
            for name in _names(target, destination):
                job.store(name, target, dict(destination.labels))
    job.tell("Completed import")


def _names(target: image_spec.Descriptor, destination: Any) -> list[str]:
    """The names of an archive's image: those that it has there, as far as the destination's prefixes let them through.

    None of this is an error where nothing comes through: what was imported is collected then (containerd's answer).
    """
    names: list[str] = []
    for prefix in destination.extra_references:
        if not prefix.is_prefix:
            continue
        name = _named(target.get("annotations") or {}, prefix)
        if name:
            names.append(name)
        if prefix.add_digest and not (name and prefix.skip_named_digest):
            names.append(f"{prefix.name}@{target['digest']}")
    return list(dict.fromkeys(names))


def _named(annotations: dict[str, str], prefix: Any) -> str:
    """A whole name is taken as it is, or not at all; a bare tag comes after the prefix."""
    if not prefix.name:
        return ""
    full = annotations.get(archive.NAME_ANNOTATION, "")
    name = full or annotations.get(archive.REF_ANNOTATION, "")
    if not any(sign in name for sign in "/:@"):
        return f"{prefix.name}:{name}" if name and not full else ""
    below = name == prefix.name or name.startswith(tuple(prefix.name + sign for sign in "/:@"))
    return name if below or prefix.allow_overwrite else ""


def _label_below(job: Job, target: image_spec.Descriptor, platforms: list[image_spec.Platform], depth: int = 0) -> None:
    if not job.descend(target, depth):
        return
    children = job.wanted_children(target, platforms, 0)
    for child in children:
        if child["mediaType"] in image_spec.INDEXES + image_spec.MANIFESTS:
            _label_below(job, child, platforms, depth + 1)
    job.label_children(target, children)


def save(job: Job, source: Any, destination: Any) -> None:
    """From the image store to an archive on a stream."""
    writer = ClientWriter(job, job.parts.streams.get(job.namespace, destination.stream))
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
    with open(job.parts.content.open(job.namespace, digest), "rb") as file:
        while data := file.read(_CHUNK):
            yield data


def _export(job: Job, name: str, platforms: list[image_spec.Platform]) -> archive.ExportImage:
    target = from_wire(job.parts.images.get(job.namespace, name).target)
    blobs: dict[str, image_spec.Descriptor] = {}

    job.seen.clear()  # what another image of this archive has belongs to this one as well
    waiting = [(target, 0)]
    while waiting:
        descriptor, depth = waiting.pop()
        if job.descend(descriptor, depth):
            for child in job.wanted_children(descriptor, platforms, 0):
                blobs[child["digest"]] = child
                waiting.append((child, depth + 1))
    manifest = job.manifest_for(target, platforms[0] if platforms else image_spec.host_platform())
    document = image_spec.manifest(job.document(manifest))
    layers = [layer["digest"] for layer in document["layers"]]
    return archive.ExportImage([name], target, list(blobs.values()), document["config"]["digest"], layers)


def echo(job: Job, source: Any, destination: Any) -> None:
    """A stream back to the client as it came: how clients try streams out."""
    reader = ClientReader(job, job.parts.streams.get(job.namespace, source.stream))
    writer = ClientWriter(job, job.parts.streams.get(job.namespace, destination.stream))
    try:
        while data := reader.read(_CHUNK):
            writer.write(data)
    finally:
        reader.finish()
        writer.finish()
