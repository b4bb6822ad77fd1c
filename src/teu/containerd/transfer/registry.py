# SPDX-License-Identifier: Apache-2.0
"""Transfers with a registry: pull into the image store, push out of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from teu.api.types.transfer import registry_pb2
from teu.containerd.core.errors import (
    AlreadyExists,
    Cancelled,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from teu.containerd.transfer.job import (
    DEPTH_LIMIT,
    Job,
    from_wire,
    in_parallel,
    own_names,
    platforms_of,
    wanted_of,
)
from teu.oci import distribution, image_spec, reference, registries, registry_hosts
from teu.oci.labels import SOURCE
from teu.trust import gate

log = logging.getLogger("teu.containerd")

PARALLEL = 3  # downloads side by side, as containerd's clients


class NotAllowed(PermissionDenied):
    """The policy for images refuses it."""


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except distribution.Aborted as error:
        raise Cancelled(f"{what}: {error}") from None
    except distribution.NotFound as error:
        raise NotFound(f"{what}: {error}") from None
    except distribution.Unauthorized as error:
        raise PermissionDenied(f"{what}: {error}") from None
    except distribution.Unreachable as error:
        raise Unavailable(f"{what}: {error}") from None
    except (distribution.RegistryError, ValueError) as error:
        raise InvalidArgument(f"{what}: {error}") from None


def _credentials(job: Job, source: Any, parsed: reference.Reference) -> distribution.Credentials:
    """Asked of the client, over the stream that it named for that."""
    name = source.resolver.auth_stream
    if not name:
        return distribution.Credentials()
    stream = job.parts.streams.get(job.namespace, name)

    async def ask() -> Any:
        await stream.send(registry_pb2.AuthRequest(host=parsed.domain, reference=str(parsed)))
        message = await stream.receive()
        return registry_pb2.AuthResponse.FromString(message.value) if message is not None else None

    answer = job.on_loop(ask())
    if answer is None or answer.authType == registry_pb2.NONE:
        return distribution.Credentials()
    if answer.authType == registry_pb2.CREDENTIALS:
        return distribution.Credentials(answer.username, answer.secret)
    if answer.authType == registry_pb2.REFRESH:
        return distribution.Credentials("", "", answer.secret)
    return distribution.Credentials()


def _open(
    job: Job, source: Any, credentials: distribution.Credentials | None = None
) -> tuple[reference.Reference, registries.Registries]:
    try:
        parsed = reference.parse(source.reference)
    except ValueError as error:
        raise InvalidArgument(f"{source.reference}: {error}") from None
    resolver = source.resolver
    try:
        found = registries.opened(
            parsed.domain,
            credentials or _credentials(job, source, parsed),
            distribution.Options(user_agent="teu-containerd"),
            resolver.host_dir,
            resolver.default_scheme == "http",
            dict(resolver.headers),
        )
    except (registry_hosts.HostsError, distribution.RegistryError, OSError) as error:
        raise InvalidArgument(f"{source.reference}: {error}") from None
    return parsed, found


def pull(
    job: Job, source: Any, destination: Any, credentials: distribution.Credentials | None = None
) -> image_spec.Descriptor:
    """From a registry into the image store, unpacked where that is asked for; what it is. Without `credentials` the
    client is asked for them, where the source names a stream for that."""
    parsed, registry = _open(job, source, credentials)
    job.tell(f"Resolving from {source.reference}")
    with registry, job.ending(registry.abort), job.held(), _errors(f"failed to pull {source.reference}"):
        try:
            target, data = registry.manifest(parsed.path, parsed.digest or parsed.tag or "latest")
        except distribution.NotFound:
            raise NotFound(f"failed to resolve image: {source.reference}") from None
        if target["mediaType"] == image_spec.DOCKER_SCHEMA1:
            raise InvalidArgument("schema 1 image manifests are no longer supported")
        job.tell(f"Pulling from {source.reference}")
        job.tell("fetching image content", source.reference)
        platforms = platforms_of(destination.platforms)
        ways = _ways(registry, parsed.path, [target], data, platforms, destination.manifest_limit)
        gate.let_in(registry, parsed.with_default_tag(), ways, job.parts.policy, NotAllowed, log)
        label = {f"{SOURCE}.{parsed.domain}": parsed.path}
        _keep(job, target, data, label)
        _fetch_below(job, registry, parsed.path, target, platforms, destination.manifest_limit, label, [])
        for wanted in destination.unpacks:
            platform = platforms_of([wanted.platform])[0] if wanted.platform.os else image_spec.host_platform()
            job.unpack(target, platform, wanted.snapshotter)
        unnamed = [] if destination.name else [source.reference]
        for name in unnamed + own_names(destination, target["digest"]):
            job.store(name, target, dict(destination.labels))
    job.tell(f"Completed pull from {source.reference}")
    return target


def _ways(
    registry: registries.Registries,
    path: str,
    way: list[image_spec.Descriptor],
    data: bytes,
    platforms: list[image_spec.Platform],
    limit: int,
) -> Iterator[list[image_spec.Descriptor]]:
    """From what the name stands for down to each manifest that is going to be pulled. `data` is the last's, of an
    index."""
    if way[-1]["mediaType"] not in image_spec.INDEXES:
        yield way
        return
    if len(way) > DEPTH_LIMIT:
        raise InvalidArgument(f"{way[0]['digest']}: indexes in indexes, more than {DEPTH_LIMIT} deep")
    entries = image_spec.index(image_spec.decode(data, way[-1]["digest"]))["manifests"]
    for entry in wanted_of(way[-1], entries, platforms, limit):
        below = registry.manifest(path, entry["digest"])[1] if entry["mediaType"] in image_spec.INDEXES else b""
        yield from _ways(registry, path, [*way, entry], below, platforms, limit)


def _keep(job: Job, descriptor: image_spec.Descriptor, data: bytes, labels: dict[str, str]) -> None:
    digest = job.parts.content.write_blob(job.namespace, data, labels=labels, lease=job.lease)
    if digest != descriptor["digest"] and descriptor["digest"].startswith("sha256:"):
        raise InvalidArgument(f"manifest {descriptor['digest']} has the digest {digest}")


def _fetch_below(
    job: Job,
    registry: registries.Registries,
    path: str,
    target: image_spec.Descriptor,
    platforms: list[image_spec.Platform],
    limit: int,
    label: dict[str, str],
    parents: list[str],
) -> None:
    job.check()
    if not job.descend(target, len(parents)):
        return
    children = job.wanted_children(target, platforms, limit)
    below = [*parents, target["digest"]]
    blobs = []
    for child in children:
        if child["mediaType"] in image_spec.INDEXES + image_spec.MANIFESTS:
            _, data = registry.manifest(path, child["digest"])
            _keep(job, child, data, label)
            _fetch_below(job, registry, path, child, platforms, limit, label, below)
        else:
            blobs.append(partial(_fetch_blob, job, registry, path, child, label, below))
    in_parallel(PARALLEL, blobs)
    job.label_children(target, children)


def _fetch_blob(
    job: Job,
    registry: registries.Registries,
    path: str,
    descriptor: image_spec.Descriptor,
    label: dict[str, str],
    parents: list[str],
) -> None:
    digest, size = descriptor["digest"], descriptor["size"]
    content = job.parts.content
    try:
        with (
            _errors(f"failed to fetch {digest}"),
            content.writer(job.namespace, f"layer-{digest}", total=size, expected=digest, lease=job.lease) as writer,
        ):
            told = 0
            job.tell("downloading", digest, total=size, descriptor=descriptor, parents=parents)
            if writer.offset < size:
                for chunk in registry.blob(path, descriptor, writer.offset):
                    writer.write(chunk)
                    if writer.offset - told > 1 << 20:
                        told = writer.offset
                        job.tell("downloading", digest, done=told, total=size, descriptor=descriptor, parents=parents)
            writer.commit(size, digest, label)
    except AlreadyExists:
        job.tell("already exists", digest, done=size, total=size, descriptor=descriptor, parents=parents)
        return
    job.tell("complete", digest, done=size, total=size, descriptor=descriptor, parents=parents)


def push(job: Job, source: Any, destination: Any) -> None:
    """From the image store to a registry."""
    image = job.parts.images.get(job.namespace, source.name)
    target = from_wire(image.target)
    parsed, registry = _open(job, destination)
    platforms = platforms_of(source.platforms)
    job.tell(f"Pushing to {destination.reference}")
    with registry, job.ending(registry.abort), _errors(f"failed to push {destination.reference}"):
        _push_below(job, registry, parsed.path, target, platforms, parsed.digest or parsed.tag or "latest", [])
    job.tell(f"Completed push to {destination.reference}")


def _push_below(
    job: Job,
    registry: registries.Registries,
    path: str,
    target: image_spec.Descriptor,
    platforms: list[image_spec.Platform],
    name: str,
    parents: list[str],
) -> None:
    if not job.descend(target, len(parents)):
        return
    below = [*parents, target["digest"]]
    blobs = []
    for child in job.wanted_children(target, platforms, 0):
        if child["mediaType"] in image_spec.INDEXES + image_spec.MANIFESTS:
            _push_below(job, registry, path, child, platforms, child["digest"], below)
        else:
            blobs.append(partial(_push_blob, job, registry, path, child, below))
    in_parallel(PARALLEL, blobs)
    registry.put_manifest(path, name, target["mediaType"], job.read(target["digest"], image_spec.MANIFEST_SIZE_LIMIT))
    job.tell("complete", target["digest"], descriptor=target, parents=parents)


def _push_blob(
    job: Job, registry: registries.Registries, path: str, descriptor: image_spec.Descriptor, parents: list[str]
) -> None:
    digest, size = descriptor["digest"], descriptor["size"]
    if registry.has_blob(path, digest):
        job.tell("already exists", digest, done=size, total=size, descriptor=descriptor, parents=parents)
        return

    def chunks() -> Iterator[bytes]:
        sent = 0
        with open(job.parts.content.open(job.namespace, digest), "rb") as file:
            while data := file.read(1 << 20):
                yield data
                sent += len(data)
                job.tell("uploading", digest, done=sent, total=size, descriptor=descriptor, parents=parents)

    registry.upload(path, descriptor, chunks)
    job.tell("complete", digest, done=size, total=size, descriptor=descriptor, parents=parents)
