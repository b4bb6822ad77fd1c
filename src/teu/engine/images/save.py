# SPDX-License-Identifier: Apache-2.0
"""`save`: images as an archive that teu, docker, podman and containerd load. Called by routes/images."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from teu.engine.backend import content
from teu.engine.core.departure import NOBODY, Departure
from teu.engine.core.errors import BadRequest, NotFound
from teu.engine.images.store import parse_reference
from teu.oci import archive, image_spec

if TYPE_CHECKING:
    from teu.engine.images.store import Images, Name
    from teu.oci.image_spec import Descriptor


def save(images: Images, references: list[str], departure: Departure = NOBODY) -> Iterator[bytes]:
    """The archive of all the references; a name without a tag means all its tags."""
    if not references:
        raise BadRequest('"docker save" requires at least 1 argument: no image was named')
    exports: dict[str, archive.ExportImage] = {}
    for text in references:
        try:
            names = _names(images, text)
        except NotFound:
            raise NotFound(f"No such image: {text}") from None
        for name in names:
            details = images.of(name)
            export = exports.get(details.manifest_digest)
            if export is None:
                # An index would name manifests of other platforms that are not here: the manifest itself goes.
                size = content.info(images.client, details.manifest_digest).size
                target: Descriptor = {
                    "mediaType": image_spec.media_type_of(details.manifest, name.target["mediaType"]),
                    "digest": details.manifest_digest,
                    "size": int(size),
                }
                layers = details.manifest["layers"]
                for layer in layers:
                    if not content.exists(images.client, layer["digest"]):
                        raise NotFound(
                            f"layer {layer['digest']} of {text} is not in the content store; pull the image again"
                        )
                content.check_sizes(images.client, [details.manifest["config"], *layers])
                export = archive.ExportImage(
                    [], target, [details.manifest["config"], *layers], details.id, [la["digest"] for la in layers]
                )
                exports[details.manifest_digest] = export
            reference = name.reference
            asked_by_id = _asked_by_id(images, text)
            if reference is not None and reference.tag and not asked_by_id and name.name not in export.names:
                export.names.append(name.name)
    for export in exports.values():
        images.events.publish("image", "save", export.config_digest, {"name": export.config_digest})
    chunks = functools.partial(content.chunks, images.client, departure=departure)
    return archive.write(list(exports.values()), chunks)


def _asked_by_id(images: Images, text: str) -> bool:
    try:
        return images.lookup(text)[1]
    except NotFound:
        return False  # a repository without the tag `latest`


def _names(images: Images, text: str) -> list[Name]:
    try:
        name, by_id = images.lookup(text)
    except NotFound:
        name, by_id = None, False  # a repository may have tags, and none of them `latest`
    if not by_id and (name is None or name.reference is not None):
        asked = parse_reference(text)
        if not asked.tag and not asked.digest:
            tagged = [
                other for other in images.names() if (own := other.reference) and own.name == asked.name and own.tag
            ]
            if tagged:
                return tagged
    if name is None:
        raise NotFound(f"No such image: {text}")
    return [name]
