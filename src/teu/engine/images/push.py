# SPDX-License-Identifier: Apache-2.0
"""`push`: an image's blobs and documents from containerd's content store to a registry. Called by routes/images."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.backend import containerd, content
from teu.engine.core.departure import NOBODY, Departure
from teu.engine.core.errors import EngineError, NotFound
from teu.engine.images import packing, platforms, registries
from teu.engine.images.transfer import Message, sources, status
from teu.oci import distribution, image_spec

if TYPE_CHECKING:
    from teu.engine.images.store import Images, Name
    from teu.oci.image_spec import Descriptor, Platform
    from teu.oci.reference import Reference

INDEX_MAX = 1000  # manifests of an index that is pushed whole


class Parts(NamedTuple):
    """What is pushed: layers, configurations, and manifests, each before what names it. `absent` are manifests that are
    not here: the registry must have them already."""

    layers: list[Descriptor]
    configs: list[Descriptor]
    manifests: list[Descriptor]
    absent: Sequence[Descriptor] = ()


def push(
    images: Images, wanted: Reference, auth: str, departure: Departure = NOBODY, platform: Platform | None = None
) -> Iterator[Message]:
    """Messages of `docker push`; without a tag all tags of the repository; with a platform its manifest alone."""
    names = [
        name
        for name in images.names()
        if (own := name.reference) and own.name == wanted.name and own.tag and wanted.tag in ("", own.tag)
    ]
    if not names:
        raise NotFound(f"An image does not exist locally with the tag: {wanted.familiar_name}")
    if platform:
        for name in names:
            images.image(name, platform)  # raises NotFound where there is none for it
    yield {"status": f"The push refers to repository [{wanted.name}]"}
    with registries.connect(images.settings, wanted.domain, auth) as registry, departure.during(registry.abort):
        for name in names:
            try:
                if not images.by_target:  # there a push changes no digest
                    name = packing.packed(images, name, departure)
                parts = _chosen(images, name, platform)
                for manifest in parts.absent:
                    _must_have(registry, wanted, manifest)
                yield from _push(images, registry, wanted, name, parts, departure)
            except distribution.Unauthorized as error:
                raise EngineError(f"denied: requested access to the resource is denied: {error}") from None
            except distribution.RegistryError as error:
                raise EngineError(str(error)) from None


def _push(
    images: Images, registry: distribution.Registry, wanted: Reference, name: Name, parts: Parts, departure: Departure
) -> Iterator[Message]:
    client = images.client
    reference = name.reference
    assert reference is not None
    for layer in parts.layers:
        yield status("Preparing", layer["digest"])
    done: set[str] = set()
    for descriptor in [*parts.layers, *parts.configs]:
        digest = descriptor["digest"]
        shown = descriptor in parts.layers
        if digest in done:
            continue
        done.add(digest)
        if registry.has_blob(wanted.path, digest):
            if shown:
                yield status("Layer already exists", digest)
            continue
        if not content.exists(client, digest):
            raise EngineError(f"{reference.familiar()} cannot be pushed as it is: blob {digest} is not here{_REMEDY}")
        address = ""
        label = content.info(client, digest).labels.get(content.SOURCE_LABEL + wanted.domain, "")
        source = next((path for path in label.split(",") if path and path != wanted.path), "")
        if source:
            try:
                address = registry.mount_blob(wanted.path, digest, source)
            except distribution.RegistryError:
                address = ""
            else:
                if not address:
                    if shown:
                        yield status(f"Mounted from {source}", digest)
                    continue
        if shown:
            yield status("Pushing", digest, {"current": 0, "total": descriptor["size"]})
        # http.client sends an iterable of bytes as it comes; a retry starts it again.
        chunks = functools.partial(content.chunks, client, digest, departure=departure)
        registry.upload(wanted.path, descriptor, chunks, address)
        content.label(client, digest, sources(images, digest, content.source_label(wanted.domain, wanted.path)))
        if shown:
            yield status("Pushing", digest, {"current": descriptor["size"], "total": descriptor["size"]})
            yield status("Pushed", digest)
    digest, size = "", 0
    for descriptor in parts.manifests:
        digest = descriptor["digest"]
        data = content.read(client, digest)
        size = len(data)
        where = reference.tag if descriptor is parts.manifests[-1] else digest
        registry.put_manifest(wanted.path, where, descriptor["mediaType"], data)
        content.label(client, digest, sources(images, digest, content.source_label(wanted.domain, wanted.path)))
    images.events.publish("image", "push", reference.familiar(), {"name": reference.familiar_name})
    yield {"status": f"{reference.tag}: digest: {digest} size: {size}"}
    yield {"progressDetail": {}, "aux": {"Tag": reference.tag, "Digest": digest, "Size": size}}


_REMEDY = ", nor at the registry: pull the image with --platform all, or push one that is here with --platform"


def _must_have(registry: distribution.Registry, wanted: Reference, manifest: Descriptor) -> None:
    try:
        registry.resolve(wanted.path, manifest["digest"])
    except distribution.NotFound:
        what = image_spec.platform_of(manifest.get("platform") or {})
        raise EngineError(
            f"{wanted.familiar_name} cannot be pushed as it is: its manifest {manifest['digest']} ({what}) is not "
            f"here{_REMEDY}"
        ) from None


def _chosen(images: Images, name: Name, platform: Platform | None) -> Parts:
    """What goes: the manifest for the platform; else, with ids of targets, the target as it is, whose digest is the
    same at the registry then; else an index where all of it is here, or the manifest that is meant."""
    if platform is not None:
        details = images.image(name, platform).details
        return _of_this_host(images, name._replace(chosen=details.manifest_digest))
    if images.by_target:
        return _entire(images, name)
    return _whole(images, name) or _of_this_host(images, name)


def _entire(images: Images, name: Name) -> Parts:
    """A target and all below it, also what is not here."""
    try:
        found = platforms.parts(images.client, name.target, sizes=False)
    except image_spec.SpecError as error:
        raise EngineError(f"{name.name}: {error}") from None
    below: dict[str, dict[str, Descriptor]] = {"layers": {}, "configs": {}, "manifests": {}}
    for part in found:
        if part.manifest:
            below["layers"].update({layer["digest"]: layer for layer in part.manifest["layers"]})
            below["configs"][part.manifest["config"]["digest"]] = part.manifest["config"]
            below["manifests"][part.digest] = part.descriptor
    inner = sorted({(-depth, digest) for part in found for depth, digest in enumerate(part.way) if depth})
    for _, digest in inner:
        media_type = image_spec.media_type_of(images.document(digest, "index"))
        below["manifests"][digest] = {"mediaType": media_type, "digest": digest, "size": 0}
    below["manifests"].pop(name.target["digest"], None)
    return Parts(
        list(below["layers"].values()),
        list(below["configs"].values()),
        [*below["manifests"].values(), name.target],
        [part.descriptor for part in found if part.manifest is None],
    )


def _of_this_host(images: Images, name: Name) -> Parts:
    """The one manifest that is meant: of a pulled index the other platforms' parts are usually not here."""
    details = images.of(name)
    target: Descriptor = {
        "mediaType": image_spec.media_type_of(details.manifest, name.target["mediaType"]),
        "digest": details.manifest_digest,
        "size": 0,
    }
    return Parts(list(details.manifest["layers"]), [details.manifest["config"]], [target])


def _whole(images: Images, name: Name) -> Parts | None:
    """All of an index, as a build of several platforms or with attestations makes it; None where it is none, or not
    all of it is here."""
    try:
        document = images.document(name.target["digest"], "manifest")
        if image_spec.media_type_of(document, name.target["mediaType"]) not in image_spec.INDEXES:
            return None
        entries = image_spec.index(document)["manifests"]
        if not entries or len(entries) > INDEX_MAX:
            return None
        parts = Parts([], [], [])
        known: set[str] = set()
        for entry in entries:
            manifest = image_spec.manifest(images.document(entry["digest"], "manifest"))
            for descriptor, kind in (
                *((layer, parts.layers) for layer in manifest["layers"]),
                (manifest["config"], parts.configs),
                (entry, parts.manifests),
            ):
                if descriptor["digest"] not in known:
                    known.add(descriptor["digest"])
                    kind.append(descriptor)
        if not all(content.exists(images.client, one["digest"]) for one in (*parts.layers, *parts.configs)):
            return None
    except containerd.Unavailable:
        raise
    except (containerd.Error, NotFound, image_spec.SpecError):
        return None
    parts.manifests.append(name.target)
    return parts
