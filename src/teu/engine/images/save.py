# SPDX-License-Identifier: Apache-2.0
"""`save`: images as an archive that teu, docker, podman and containerd load. Called by routes/images."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from teu.engine.backend import content
from teu.engine.core.departure import NOBODY, Departure
from teu.engine.core.errors import BadRequest, NotFound
from teu.engine.images import platforms
from teu.engine.images.platforms import Choice
from teu.engine.images.store import parse_reference
from teu.oci import archive, image_spec

if TYPE_CHECKING:
    from teu.engine.images.platforms import Part
    from teu.engine.images.store import Images, Name
    from teu.oci.image_spec import Descriptor


HOST = Choice()


def save(
    images: Images, references: list[str], departure: Departure = NOBODY, choice: Choice = HOST
) -> Iterator[bytes]:
    """The archive of all the references; a name without a tag means all its tags. Of an index one platform is an image
    of its own, several are the index with these; without a choice it is what the name means on this host, or, with ids
    of targets, all that is here."""
    if not references:
        raise BadRequest('"docker save" requires at least 1 argument: no image was named')
    exports: dict[str, archive.ExportImage] = {}
    for text in references:
        try:
            names = _names(images, text)
        except NotFound:
            raise NotFound(f"No such image: {text}") from None
        for name in names:
            export = _export(images, name, text, choice)
            export = exports.setdefault(export.target["digest"], export)
            reference = name.reference
            asked_by_id = _asked_by_id(images, text)
            if reference is not None and reference.tag and not asked_by_id and name.name not in export.names:
                export.names.append(name.name)
            images.events.publish("image", "save", images.of(name).id, {"name": images.of(name).id})
    chunks = functools.partial(content.chunks, images.client, departure=departure)
    return archive.write(list(exports.values()), chunks)


def _export(images: Images, name: Name, text: str, choice: Choice) -> archive.ExportImage:
    if choice.several or images.by_target and not choice.platforms and not name.chosen:
        parts = images.parts(name, sizes=True)
        if any(part.way for part in parts):
            return _index(images, name, text, choice, parts)
    details = images.image(name, choice.single, text).details
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
            raise NotFound(f"layer {layer['digest']} of {text} is not in the content store; pull the image again")
    config = details.manifest["config"]
    content.check_sizes(images.client, [config, *layers])
    return archive.ExportImage([], target, [config, *layers], config["digest"], [one["digest"] for one in layers])


def _index(images: Images, name: Name, text: str, choice: Choice, parts: list[Part]) -> archive.ExportImage:
    """The index as it is, with those of its manifests that are chosen, and here."""
    for platform in choice.platforms:
        if not any(part.whole for part in platforms.fitting(parts, platform)):
            raise NotFound(f"{text} has nothing whole for {platform} here, but {platforms.names_of(parts)}")
    chosen = [part for part in parts if part.whole]
    if choice.platforms and not choice.everything:
        best = {next(p.digest for p in platforms.fitting(chosen, platform)) for platform in choice.platforms}
        chosen = [part for part in chosen if part.digest in best or part.attests in best]
    pictures = [part for part in chosen if part.kind == platforms.IMAGE]
    if not pictures:
        raise NotFound(f"{text} has no platform that is here as a whole; pull the image again")
    # docker's own table has room for one platform.
    first = next(iter(platforms.fitting(pictures, image_spec.host_platform())), pictures[0])
    blobs: dict[str, Descriptor] = {}
    for part in chosen:
        for digest in part.way[1:]:
            blobs[digest] = {"mediaType": "", "digest": digest, "size": int(content.info(images.client, digest).size)}
        if part.manifest:
            below = [part.manifest["config"], *part.manifest["layers"]]
            content.check_sizes(images.client, below)
            blobs.update({one["digest"]: one for one in (part.descriptor, *below)})
    assert first.manifest is not None  # for it is whole
    layers = [layer["digest"] for layer in first.manifest["layers"]]
    return archive.ExportImage(
        [], image_spec.plain(name.target), list(blobs.values()), first.manifest["config"]["digest"], layers
    )


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
