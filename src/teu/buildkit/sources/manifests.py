# SPDX-License-Identifier: Apache-2.0
"""From the descriptor of an image to its layers, whether it comes from a registry, a client's store or this host.

Called by sources.image, sources.ocilayout and sources.caches. Small documents are read once: they are kept in memory
while they are used, and in the content store for as long as that keeps them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from teu.buildkit.cache.remote import UNCOMPRESSED
from teu.buildkit.core import errors
from teu.buildkit.core.op import Gone, Record, Ref
from teu.buildkit.core.snapshots import Content, Descriptor, Kind, Layer, Worker, result
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.sources.base import Asker, Key, Material, Recent, go_json
from teu.oci import digest as digests
from teu.oci import image_spec, labels

DOCUMENTS_MAX = 256
DOCUMENTS_SIZE = 32 << 20  # bytes of documents that are kept in memory
DEPTH_MAX = 4  # indexes in indexes
SCHEMA1 = (
    "support Docker Image manifest version 2, schema 1 has been removed. "
    "More information at https://docs.docker.com/go/deprecated-image-specs/"
)


class Blobs(Protocol):
    """A place that has an image's blobs."""

    def manifest(self, digest: str) -> bytes:
        """An index or a manifest; nobody needs to have checked it."""

    def blob(self, descriptor: Descriptor, offset: int = 0) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Image:
    """An image for one platform: `root` is what the name stands for, an index or the manifest itself."""

    root: Descriptor
    manifest: Descriptor
    document: image_spec.Manifest
    config: bytes
    diff_ids: tuple[str, ...]
    platform: image_spec.Platform

    @property
    def layers(self) -> list[Descriptor]:
        return list(self.document["layers"])


class Documents:
    """Reads indexes, manifests and configurations; one for the builder."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._recent: Recent[bytes] = Recent(DOCUMENTS_MAX, DOCUMENTS_SIZE)

    def here(self, digest: str) -> bytes | None:
        """A document that needs nobody to be asked."""
        data = self._recent.get(digest)
        if data is None and self._content.has(digest):
            try:
                data = self._content.read_whole(digest, image_spec.CONFIG_SIZE_LIMIT)
            except errors.NotFound:
                return None  # it went meanwhile
            self._recent.put(digest, data, len(data))
        return data

    def read(self, descriptor: Descriptor, blobs: Blobs | None, *, manifest: bool = True) -> bytes:
        """A document, checked against its digest. Raises NotFound where it is not here and `blobs` is None."""
        digest = descriptor["digest"]
        data = self.here(digest)
        if data is not None:
            return data
        if blobs is None:
            raise errors.NotFound(f"content {digest}: not found")
        data = blobs.manifest(digest) if manifest else _whole(blobs, descriptor)
        digester = digests.for_digest(digest)
        digester.update(data)
        if digester.digest() != digest:
            raise errors.DataLoss(f"{digest}: what came has the digest {digester.digest()}")
        self._content.write([data], digest, len(data), _labels(data) if manifest else None)
        self._recent.put(digest, data, len(data))
        return data

    def root(self, digest: str, blobs: Blobs | None = None) -> Descriptor:
        """The descriptor of an index or a manifest of which only the digest is known."""
        data = self.read({"mediaType": "", "digest": digest, "size": -1}, blobs)
        kind = image_spec.media_type_of(_decoded(data, digest))
        if kind not in (*image_spec.INDEXES, *image_spec.MANIFESTS, image_spec.DOCKER_SCHEMA1):
            raise errors.InvalidArgument(f"{digest} is neither an index nor a manifest of images")
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def find(self, root: Descriptor, platform: Platform, blobs: Blobs | None, what: str) -> Image:
        """The image for a platform; `what` is its name in errors. Raises NotFound where it has none for it."""
        wanted = image_spec.Platform(platform.os, platform.architecture, platform.variant)
        try:
            manifest = self._choose(root, wanted, blobs, what)
            document = image_spec.manifest(_decoded(self.read(manifest, blobs), what))
            if not image_spec.is_image(document):
                raise errors.InvalidArgument(
                    f"{what}: {document['config']['mediaType']} is no configuration of an image"
                )
            config = self.read(document["config"], blobs, manifest=False)
            known = image_spec.config(image_spec.decode(config, "image configuration"), len(document["layers"]))
        except image_spec.SpecError as error:
            raise errors.InvalidArgument(f"{what}: {error}") from None
        return Image(
            root, manifest, document, config, tuple(known["rootfs"]["diff_ids"]), image_spec.platform_of(known)
        )

    def _choose(
        self, descriptor: Descriptor, wanted: image_spec.Platform, blobs: Blobs | None, what: str
    ) -> Descriptor:
        for _ in range(DEPTH_MAX):
            if descriptor["mediaType"] == image_spec.DOCKER_SCHEMA1:
                raise errors.FailedPrecondition(f"{what}: {SCHEMA1}")
            if descriptor["mediaType"] not in image_spec.INDEXES:
                return descriptor
            index = image_spec.index(_decoded(self.read(descriptor, blobs), what))
            fitting = image_spec.choose(index["manifests"], wanted)
            if not fitting:
                raise errors.NotFound(f"{what}: no match for platform in manifest {descriptor['digest']}: not found")
            descriptor = fitting[0]
        raise errors.InvalidArgument(f"{what}: indexes in indexes without an end")


def _whole(blobs: Blobs, descriptor: Descriptor) -> bytes:
    data = bytearray()
    for chunk in blobs.blob(descriptor):
        data += chunk
        if len(data) > image_spec.CONFIG_SIZE_LIMIT:
            raise errors.ResourceExhausted(f"{descriptor['digest']}: more than {image_spec.CONFIG_SIZE_LIMIT} bytes")
    return bytes(data)


def _decoded(data: bytes, what: str) -> dict[str, Any]:
    try:
        return image_spec.decode(data, "manifest")
    except image_spec.SpecError as error:
        raise errors.InvalidArgument(f"{what}: {error}") from None


def _labels(data: bytes) -> dict[str, str]:
    """What an index or a manifest leads to, for the garbage collector of the content store."""
    try:
        document = image_spec.decode(data, "manifest")
        if image_spec.media_type_of(document) in image_spec.INDEXES:
            return labels.keeping(manifests=image_spec.index(document)["manifests"])
        manifest = image_spec.manifest(document)
    except image_spec.SpecError:
        return {}
    return labels.keeping(config=manifest["config"], layers=manifest["layers"])


def main_key(image: Image, platform: Platform, limit: int | None) -> str:
    """The key of an image by its digest and platform, as BuildKit has it."""
    value: dict[str, Any] = {"Digest": image.root["digest"], "OS": platform.os, "Arch": platform.architecture}
    if platform.variant:
        value["Variant"] = platform.variant
    if platform.os_version:
        value["OSVersion"] = platform.os_version
    if platform.os_features:
        value["OSFeatures"] = list(platform.os_features)
    if limit is not None:
        value["Limit"] = limit
    return digests.of(go_json(value))


def layers_key(image: Image, limit: int | None) -> str:
    """The key by what is in it: the chain of its layers; empty where it has none."""
    chosen = list(image.diff_ids[:limit])
    return image_spec.chain_ids(chosen)[-1] if chosen else ""


def check_limit(image: Image, limit: int | None) -> None:
    if limit is not None and limit > len(image.layers):
        raise errors.InvalidArgument(
            f"layer limit {limit} is greater than the number of layers in the image {len(image.layers)}"
        )


def layers(image: Image, limit: int | None, blobs: Blobs, asker: Asker) -> list[Layer]:
    """The image's layers, lowest first, of which nothing is fetched yet."""
    histories = _histories(image.config)
    made = []
    for number, (descriptor, diff_id) in enumerate(zip(image.layers, image.diff_ids, strict=True)):
        if not image_spec.is_layer(descriptor["mediaType"]):
            raise errors.InvalidArgument(f"{descriptor['mediaType']} is no layer of an image")
        annotations = {**(descriptor.get("annotations") or {}), UNCOMPRESSED: diff_id}
        history = histories[number] if number < len(histories) else ""
        made.append(
            Layer({**descriptor, "annotations": annotations}, diff_id, Fetching(blobs, asker), history, asker.status)
        )
    return made[:limit]


def _histories(config: bytes) -> list[str]:
    history = image_spec.decode(config, "image configuration").get("history") or []
    return [str(one.get("created_by") or "") for one in history if not one.get("empty_layer")]


class Fetching:
    """core.snapshots.Fetch from a place, which tells the image's step how far it has come."""

    def __init__(self, blobs: Blobs, asker: Asker) -> None:
        self._blobs = blobs
        self._asker = asker

    def __call__(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        return counted(self._blobs.blob(descriptor, offset), self._asker.status, descriptor, offset)


STEP = 256 << 10  # bytes between two tellings


def counted(
    chunks: Iterator[bytes], tell: Callable[..., None], descriptor: Descriptor, offset: int, action: str = "downloading"
) -> Iterator[bytes]:
    name, size = descriptor["digest"], descriptor["size"]
    told = at = offset
    tell(name, at, size, action=action)
    for chunk in chunks:
        yield chunk
        at += len(chunk)
        if at - told >= STEP:
            told = at
            tell(name, at, size, action=action)
    tell(name, at, size, action="done", completed=True)


class ImageAsSource(ABC):
    """base.Source of an image for one platform. `name` is what people know it by; of more than `limit` layers the
    lowest are taken."""

    def __init__(self, worker: Worker, name: str, platform: Platform, limit: int | None) -> None:
        self.name = name
        self.platform = platform
        self._worker = worker
        self._limit = limit
        self._image: Image | None = None
        self.foreign = True  # nobody else on this host keeps what leads to it

    @abstractmethod
    def find(self, asker: Asker) -> Image:
        """Ask what it is now. Raises errors.Error."""

    @abstractmethod
    def blobs(self, asker: Asker) -> Blobs:
        """Where its layers come from."""

    @abstractmethod
    def kind(self, image: Image) -> Kind:
        """What people are told of its files."""

    @abstractmethod
    def material(self) -> Material: ...

    @property
    def pin(self) -> str:
        """The digest of what was found; "" before."""
        return self._image.root["digest"] if self._image is not None else ""

    def image(self, asker: Asker) -> Image:
        """What it is, asked once. Raises errors.Error."""
        if self._image is None:
            step = f"resolve {self.name}"
            asker.status(step, 0, 0)
            image = self.find(asker)
            check_limit(image, self._limit)
            asker.status(step, 0, 0, completed=True)
            self._image = image
        return self._image

    def key(self, asker: Asker) -> Key:
        image = self.image(asker)
        also = layers_key(image, self._limit)
        return Key(main_key(image, self.platform, self._limit), image.root["digest"], (also,) if also else ())

    def snapshot(self, asker: Asker) -> Ref:
        image = self.image(asker)
        chosen = layers(image, self._limit, self.blobs(asker), asker)
        if not chosen:
            return result(None)
        documents = (image.root["digest"], image.manifest["digest"], image.document["config"]["digest"])
        return result(self._worker.image(chosen, self.kind(image), documents if self.foreign else ()))

    def load(self, asker: Asker, record: Record) -> Ref:
        """Made anew, which costs nothing: what is not here yet is fetched as this build's client may fetch it."""
        if record.remote is not None:
            return self._worker.load(record)
        snapshot = self.snapshot(asker)
        if snapshot.id != record.id:
            snapshot.release()
            raise Gone(record.id)
        return snapshot
