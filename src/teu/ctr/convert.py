# SPDX-License-Identifier: Apache-2.0
"""`images convert`: another form of an image, under another name: fewer platforms, OCI's media types, layers without
compression. What is not to change keeps its digest.

The blobs are the very ones that ctr's converter makes, with the members of objects in Go's order: digests agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from teu.ctr import blobs
from teu.ctr.blobs import Json
from teu.ctr.client import Client, content_pb2, images_pb2
from teu.ctr.commands import Command, Ctr
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import Options
from teu.ctr.install import Reader
from teu.oci import archive, image_spec
from teu.oci.labels import CONTENT, UNCOMPRESSED

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
TO_OCI = {
    image_spec.DOCKER_LIST: image_spec.OCI_INDEX,
    image_spec.DOCKER_MANIFEST: image_spec.OCI_MANIFEST,
    image_spec.DOCKER_CONFIG: image_spec.OCI_CONFIG,
    image_spec.DOCKER_LAYER: image_spec.OCI_LAYER,
    image_spec.DOCKER_LAYER_GZIP: image_spec.OCI_LAYER_GZIP,
    FOREIGN: OCI_FOREIGN,
    FOREIGN + ".gzip": OCI_FOREIGN + "+gzip",
}
TO_TAR = {
    image_spec.DOCKER_LAYER_GZIP: image_spec.DOCKER_LAYER,
    FOREIGN + ".gzip": FOREIGN,
    image_spec.OCI_LAYER_GZIP: image_spec.OCI_LAYER,
    image_spec.OCI_LAYER_ZSTD: image_spec.OCI_LAYER,
    OCI_FOREIGN + "+gzip": OCI_FOREIGN,
    OCI_FOREIGN + "+zstd": OCI_FOREIGN,
}
# The orders in which Go writes these objects, so that both programs make the same digests.
ORDER = (
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "digest",
    "size",
    "subject",
    "urls",
    "annotations",
    "data",
    "platform",
)
PLATFORM_ORDER = ("architecture", "os", "os.version", "os.features", "variant")


def place(key: str) -> tuple[int, str]:
    """Where a member of a manifest, descriptor or platform stands; those of annotations by their names."""
    for order in (ORDER, PLATFORM_ORDER):
        if key in order:
            return order.index(key), ""
    return len(ORDER), key


def encoded(document: Any) -> bytes:
    def ordered(value: Any) -> Any:
        if isinstance(value, list):
            return [ordered(item) for item in value]
        if isinstance(value, dict):
            return {key: ordered(value[key]) for key in sorted(value, key=place)}
        return value

    text = json.dumps(ordered(document), separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


class Converter:
    """`convert` gives the new descriptor of an image's part, or None where nothing changes."""

    def __init__(
        self, client: Client, uncompress: bool, to_oci: bool, wanted: list[image_spec.Platform] | None
    ) -> None:
        self.client = client
        self.uncompress = uncompress
        self.to_oci = to_oci
        self.wanted = wanted

    def convert(self, descriptor: image_spec.Descriptor) -> image_spec.Descriptor | None:
        kind = descriptor["mediaType"]
        changed = None
        if kind in image_spec.INDEXES:
            changed = self.index(descriptor)
        elif kind in image_spec.MANIFESTS:
            changed = self.manifest(descriptor)
        elif kind in TO_TAR and self.uncompress:
            changed = self.layer(descriptor)
        if kind.startswith("application/vnd.docker."):
            if self.to_oci:
                changed = {**(changed or descriptor)}
                changed["mediaType"] = TO_OCI.get(changed["mediaType"], changed["mediaType"])
            elif (changed or descriptor).get("annotations"):
                changed = {**(changed or descriptor)}
                del changed["annotations"]
        return changed

    def labels(self, digest: str) -> dict[str, str]:
        return dict(self.client.content.Info(content_pb2.InfoRequest(digest=digest)).info.labels)

    def layer(self, descriptor: image_spec.Descriptor) -> image_spec.Descriptor:
        client, old = self.client, descriptor["digest"]
        labels = self.labels(old)
        labels.pop(UNCOMPRESSED, None)

        def pieces() -> Iterator[bytes]:
            stream = archive.decompressed(Reader(blobs.read(client, old)))
            while data := stream.read(blobs.CHUNK):
                yield data

        digest, size = blobs.write_unknown(client, f"convert-uncompress-from-{old}", pieces(), labels)
        return {**descriptor, "mediaType": TO_TAR[descriptor["mediaType"]], "digest": digest, "size": size}

    def rewritten(
        self, descriptor: image_spec.Descriptor, document: Json, labels: dict[str, str]
    ) -> image_spec.Descriptor:
        data = encoded(document)
        return {**descriptor, "digest": blobs.store(self.client, data, labels), "size": len(data)}

    def opened(self, descriptor: image_spec.Descriptor) -> tuple[Json, dict[str, str], bool]:
        """A manifest or index with its labels, and whether its own media type has just become OCI's."""
        labels = self.labels(descriptor["digest"])
        document = blobs.document(self.client, descriptor)
        kind = document.get("mediaType", "")
        changed = self.to_oci and kind.startswith("application/vnd.docker.")
        if changed:
            document["mediaType"] = TO_OCI.get(kind, kind)
        return document, labels, changed

    def manifest(self, descriptor: image_spec.Descriptor) -> image_spec.Descriptor | None:
        document, labels, changed = self.opened(descriptor)
        for number, layer in enumerate(document.get("layers") or []):
            new = self.convert(layer)
            if new is not None:
                forget(labels, layer["digest"])
                labels[f"{CONTENT}.l.{number}"] = new["digest"]
                document["layers"][number] = new
                changed = True
        new = self.convert(document["config"])
        if new is not None:
            forget(labels, document["config"]["digest"])
            labels[f"{CONTENT}.config"] = new["digest"]
            document["config"] = new
            changed = True
        return self.rewritten(descriptor, document, labels) if changed else None

    def fits(self, entry: image_spec.Descriptor) -> bool:
        if self.wanted is None or not entry.get("platform"):
            return True
        offered = image_spec.platform_of(entry["platform"])
        return any(image_spec.platform_rank(wanted, offered) is not None for wanted in self.wanted)

    def index(self, descriptor: image_spec.Descriptor) -> image_spec.Descriptor | None:
        document, labels, changed = self.opened(descriptor)
        kept = []
        for number, entry in enumerate(document.get("manifests") or []):
            if not self.fits(entry):
                forget(labels, entry["digest"])
                changed = True
                continue
            new = self.convert(entry)
            if new is not None:
                forget(labels, entry["digest"])
                labels[f"{CONTENT}.m.{number}"] = new["digest"]
                changed = True
            kept.append(new or entry)
        document["manifests"] = kept or None
        return self.rewritten(descriptor, document, labels) if changed else None


def forget(labels: dict[str, str], digest: str) -> None:
    for key in [key for key, value in labels.items() if value == digest and key.startswith(CONTENT)]:
        del labels[key]


def convert(ctr: Ctr, options: Options, operands: list[str]) -> None:
    source, target = [*operands, "", ""][:2]
    if not source or not target:
        raise CommandError("src and target image need to be specified")
    wanted = None
    if not options["all-platforms"]:
        wanted = [blobs.parse_platform(text) for text in options["platform"]] or [image_spec.host_platform()]
    client = ctr.client
    with client.leased():
        image = blobs.get_image(client, source)
        old = blobs.as_json(image.target)
        new = Converter(client, options["uncompress"], options["oci"], wanted).convert(old) or old
        image.target.CopyFrom(blobs.as_message(new))
        if source == target:
            image = client.images.Update(images_pb2.UpdateImageRequest(image=image)).image
        else:
            image.name = target
            try:
                client.images.Delete(images_pb2.DeleteImageRequest(name=target))
            except NotFound:
                pass
            image = client.images.Create(images_pb2.CreateImageRequest(image=image)).image
    ctr.print(image.target.digest)


COMMANDS = {
    "images convert": Command(
        convert,
        "[flags] <source_ref> <target_ref>",
        """
uncompress     bool     Layers without compression
oci            bool     OCI's media types in place of docker's
platform       strings  Only this platform, OS/ARCH[/VARIANT]
all-platforms  bool     All platforms, which must be at hand
""",
    )
}
