# SPDX-License-Identifier: Apache-2.0
"""`push`: an image's blobs and documents from containerd's content store to a registry. Called by routes/images."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from teu.engine.backend import content
from teu.engine.core.departure import NOBODY, Departure
from teu.engine.core.errors import EngineError, NotFound
from teu.engine.images import registries
from teu.engine.images.transfer import Message, sources, status
from teu.oci import distribution, image_spec

if TYPE_CHECKING:
    from teu.engine.images.store import Images, Name
    from teu.oci.reference import Reference


def push(images: Images, wanted: Reference, auth: str, departure: Departure = NOBODY) -> Iterator[Message]:
    """Messages of `docker push`; without a tag all tags of the repository."""
    names = [
        name
        for name in images.names()
        if (own := name.reference) and own.name == wanted.name and own.tag and wanted.tag in ("", own.tag)
    ]
    if not names:
        raise NotFound(f"An image does not exist locally with the tag: {wanted.familiar_name}")
    yield {"status": f"The push refers to repository [{wanted.name}]"}
    with registries.connect(images.settings, wanted.domain, auth) as registry, departure.during(registry.abort):
        for name in names:
            try:
                yield from _push(images, registry, wanted, name, departure)
            except distribution.Unauthorized as error:
                raise EngineError(f"denied: requested access to the resource is denied: {error}") from None
            except distribution.RegistryError as error:
                raise EngineError(str(error)) from None


def _push(
    images: Images, registry: distribution.Registry, wanted: Reference, name: Name, departure: Departure
) -> Iterator[Message]:
    client = images.client
    details = images.of(name)
    reference = name.reference
    assert reference is not None
    layers = details.manifest["layers"]
    for layer in layers:
        yield status("Preparing", layer["digest"])
    done: set[str] = set()
    for descriptor in [*layers, details.manifest["config"]]:
        digest = descriptor["digest"]
        shown = descriptor in layers
        if digest in done:
            continue
        done.add(digest)
        if registry.has_blob(wanted.path, digest):
            if shown:
                yield status("Layer already exists", digest)
            continue
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
    # Of an index the other platforms' parts are usually not here: the manifest of this one goes.
    data = content.read(client, details.manifest_digest)
    media_type = image_spec.media_type_of(details.manifest, name.target["mediaType"])
    registry.put_manifest(wanted.path, reference.tag, media_type, data)
    digest = details.manifest_digest
    content.label(client, digest, sources(images, digest, content.source_label(wanted.domain, wanted.path)))
    images.events.publish("image", "push", reference.familiar(), {"name": reference.familiar_name})
    yield {"status": f"{reference.tag}: digest: {digest} size: {len(data)}"}
    yield {"progressDetail": {}, "aux": {"Tag": reference.tag, "Digest": digest, "Size": len(data)}}
