# SPDX-License-Identifier: Apache-2.0
"""Images from streams: `load` of image archives, `import` of a root file system's tar.

Both stream straight into containerd's content store under a lease; what an interrupted or broken
load has stored is collected when the lease goes. Called by routes/images.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from teu.engine.backend import containerd, content
from teu.engine.backend.containerd import Client
from teu.engine.core.departure import NOBODY, Departure
from teu.engine.core.errors import BadRequest, NotFound
from teu.engine.core.times import timestamp
from teu.engine.images import instructions, platforms, unpack
from teu.oci import archive, image_spec, reference
from teu.oci import digest as digests

if TYPE_CHECKING:
    from teu.engine.images.store import Details, Images, Name
    from teu.engine.images.transfer import Message
    from teu.oci.image_spec import ContainerConfig, Descriptor, ImageConfig, Manifest, Platform
    from teu.oci.jsontext import Json


class Store:
    """archive.Sink over the content store."""

    def __init__(self, client: Client, lease: str, departure: Departure) -> None:
        self._client = client
        self._lease = lease
        self._departure = departure

    def store(self, stream: archive.Stream, size: int, expected: str, name: str) -> str:
        digester = digests.for_digest(expected) if expected else digests.Digester()
        ref = f"teu-load-{uuid.uuid4().hex}"
        try:
            with content.Writer(self._client, ref, expected, size, self._lease, departure=self._departure) as writer:
                skip = writer.offset
                while chunk := stream.read(archive.CHUNK):
                    digester.update(chunk)
                    if skip >= len(chunk):
                        skip -= len(chunk)
                        continue
                    writer.write(chunk[skip:])
                    skip = 0
                if expected and digester.digest() != expected:
                    raise archive.ArchiveError(f"archive entry {name} has digest {digester.digest()}")
                writer.commit()
                if not writer.existed:
                    return digester.digest()
        except content.Present:
            while chunk := stream.read(archive.CHUNK):
                digester.update(chunk)
            if digester.digest() != expected:
                raise archive.ArchiveError(f"archive entry {name} has digest {digester.digest()}") from None
        except BaseException:
            content.abort(self._client, ref)
            raise
        content.keep(self._client, digester.digest(), self._lease)
        return digester.digest()

    def read(self, digest: str) -> bytes:
        return content.read(self._client, digest)


def load(
    images: Images,
    stream: archive.Stream,
    quiet: bool = False,
    departure: Departure = NOBODY,
    wanted: Sequence[Platform] = (),
) -> Iterator[Message]:
    """Messages of `docker load`; unless `quiet`, also of the layers. Of an index all that the archive has, or the
    platforms that are wanted."""
    with images.client.lease() as lease:
        store = Store(images.client, lease, departure)
        try:
            found = archive.read(stream, store)
        except (archive.ArchiveError, image_spec.SpecError, reference.ReferenceError_) as error:
            raise BadRequest(str(error)) from None
        for image in found:
            told: list[Message] = []
            only = _wanted(images, image, wanted)
            details = settle(images, image.target, lease, departure, None if quiet else told.append, only)
            yield from told
            for name in image.names:
                before = images.get_name(name)
                yield from _renaming(images, before, details.id)
            images.add(image.target, image.names, details)
            images.events.publish("image", "load", details.id, {"name": details.id})
            for name in image.names:
                yield {"stream": f"Loaded image: {reference.parse(name).familiar()}\n"}
            if not image.names:
                yield {"stream": f"Loaded image ID: {details.id}\n"}
    if wanted:
        images.collect()  # what else the archive had


def _renaming(images: Images, before: Name | None, image_id: str) -> Iterator[Message]:
    """What docker says of a name that another image has so far."""
    if before is None or before.reference is None:
        return
    try:
        old = images.of(before).id
    except (NotFound, containerd.Error):
        return
    if old != image_id:
        yield {
            "stream": f"The image {before.reference.familiar()} already exists, renaming the old one with ID {old} "
            "to empty string\n"
        }


def settle(
    images: Images,
    target: Descriptor,
    lease: str,
    departure: Departure = NOBODY,
    tell: Callable[[Message], None] | None = None,
    only: Sequence[str] = (),
) -> Details:
    """Label a stored image's documents so that it keeps its parts, and unpack it. Returns its Details. `only`: of an
    index these manifests, and the first is meant."""
    images.forget(target["digest"])
    try:
        details = images.details(target, meant=only[0] if only else "")
        document = images.document(target["digest"], "manifest")
    except image_spec.SpecError as error:
        raise BadRequest(str(error)) from None
    if details.manifest_digest != target["digest"]:
        _label_below(images, target["digest"], document, only)
    else:
        content.label(images.client, target["digest"], content.children_labels(details.manifest))
    content.check_sizes(images.client, [details.manifest["config"], *details.manifest["layers"]])
    progress = functools.partial(_progress, details, tell) if tell else None
    unpack.layers(
        images.client,
        images.snapshotter,
        details.manifest,
        details.config,
        lease,
        progress=progress,
        departure=departure,
    )
    images.keep_snapshot(details)
    return details


def _progress(details: Details, tell: Callable[[Message], None], number: int, phase: str) -> None:
    """As docker shows a layer of `load`: named by its content, told when it is there."""
    if phase == "complete":
        size = details.manifest["layers"][number]["size"]
        shown = details.config["rootfs"]["diff_ids"][number].partition(":")[2][:12]
        tell({"status": "Loading layer", "progressDetail": {"current": size, "total": size}, "id": shown})


def _wanted(images: Images, image: archive.ArchiveImage, wanted: Sequence[Platform]) -> list[str]:
    """The manifests of the platforms that are wanted, and what attests them; none where all are."""
    if not wanted:
        return []
    parts = platforms.parts(images.client, image.target)
    found = []
    for platform in wanted:
        best = next((part for part in platforms.fitting(parts, platform) if part.whole), None)
        if best is None:
            shown = ", ".join(reference.parse(name).familiar() for name in image.names) or image.target["digest"]
            raise NotFound(f"{shown} has nothing for {platform} in this archive, but {platforms.names_of(parts)}")
        found.append(best.digest)
    return [*found, *(part.digest for part in parts if part.attests in found)]


def _label_below(images: Images, digest: str, document: dict[str, Json], only: Sequence[str] = ()) -> None:
    """An index keeps those of its manifests that are here (of the ones in `only`, if given), and they what is here of
    theirs, however deep they are."""
    waiting = [(digest, document)]
    seen: set[str] = set()
    while waiting:
        digest, document = waiting.pop()
        if digest in seen:
            continue
        seen.add(digest)
        present = {
            key: child
            for key, child in content.children_labels(document).items()
            if content.exists(images.client, child)
            and (
                not only or child in only or not key.startswith(f"{content.GC_CONTENT}.m.") or _is_index(images, child)
            )
        }
        content.label(images.client, digest, present)
        for key, child in present.items():
            if key.startswith(f"{content.GC_CONTENT}.m."):
                waiting.append((child, images.document(child, "manifest")))


def _is_index(images: Images, digest: str) -> bool:
    return image_spec.media_type_of(images.document(digest, "manifest")) in image_spec.INDEXES


def store_image(
    images: Images, config: ImageConfig, layers: list[Descriptor], lease: str, docker: bool = False
) -> Descriptor:
    """Write configuration and manifest for layers that are in the store; returns the target."""
    config_data = image_spec.encode(config)
    config_type = image_spec.DOCKER_CONFIG if docker else image_spec.OCI_CONFIG
    manifest_type = image_spec.DOCKER_MANIFEST if docker else image_spec.OCI_MANIFEST
    manifest: Manifest = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": image_spec.descriptor(config_type, config_data),
        "layers": layers,
    }
    data = image_spec.encode(manifest)
    content.put(images.client, config_data, lease)
    content.put(images.client, data, lease, content.children_labels(manifest))
    return image_spec.descriptor(manifest_type, data)


def import_(
    images: Images,
    stream: archive.Stream,
    name: str,
    message: str,
    changes: list[str],
    platform: str,
    departure: Departure = NOBODY,
) -> Iterator[Message]:
    """Messages of `docker import`: one layer from a root file system's tar; `name` may be empty."""
    wanted = image_spec.parse_platform(platform) if platform else image_spec.host_platform()
    inner: ContainerConfig = {}
    instructions.apply(inner, changes)
    with images.client.lease() as lease:
        digester = digests.Digester()
        ref = f"teu-import-{uuid.uuid4().hex}"
        plain = archive.decompressed(stream)
        try:
            with content.Writer(images.client, ref, lease=lease, departure=departure) as writer:
                try:
                    while chunk := plain.read(archive.CHUNK):
                        digester.update(chunk)
                        writer.write(chunk)
                except archive.ArchiveError as error:
                    raise BadRequest(str(error)) from None
                if 0 < digester.size < 1024:
                    raise BadRequest("the import is not a tar archive: it is too short")
                if not digester.size:  # nothing at all is an empty archive
                    digester.update(bytes(1024))
                    writer.write(bytes(1024))
                writer.commit()
                if writer.existed:
                    content.keep(images.client, digester.digest(), lease)
        except BaseException:
            content.abort(images.client, ref)
            raise
        now = timestamp()
        config: ImageConfig = {
            "created": now,
            "architecture": wanted.architecture,
            "os": wanted.os,
            "config": inner,
            "rootfs": {"type": "layers", "diff_ids": [digester.digest()]},
            "history": [{"created": now, "comment": message or "Imported from -"}],
        }
        if wanted.variant:
            config["variant"] = wanted.variant
        layer: Descriptor = {"mediaType": image_spec.OCI_LAYER, "digest": digester.digest(), "size": digester.size}
        target = store_image(images, config, [layer], lease)
        details = settle(images, target, lease, departure)
        images.add(target, [name] if name else [], details)
        if name:
            images.events.publish("image", "tag", details.id, {"name": reference.parse(name).familiar()})
        images.events.publish("image", "import", details.id, {"name": details.id})
    yield {"status": details.id}
