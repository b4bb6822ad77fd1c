# SPDX-License-Identifier: Apache-2.0
"""Layers that are not compressed, as a build for this engine, `load` and `import` leave them, are compressed once,
before they are pushed. Called by push.

The image's manifest is another one then, and so is an index that it is in, with the statements about it (BuildKit's
"Image attestation storage"); all names of the image lead to those. Its id, which is its configuration, and its unpacked
layers stay. What came from a registry is pushed as it is.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from teu.engine.backend import containerd, content
from teu.engine.core.errors import NotFound
from teu.oci import digest as digests
from teu.oci import gzips, image_spec, jsontext
from teu.oci.labels import UNCOMPRESSED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from teu.engine.core.departure import Departure
    from teu.engine.images.store import Images, Name
    from teu.oci.image_spec import Descriptor, Manifest

STATEMENT = "application/vnd.in-toto+json"
REFERENCE_TYPE, REFERENCE_DIGEST = "vnd.docker.reference.type", "vnd.docker.reference.digest"
STATEMENT_MAX = 64 << 20
_PACKED = {
    image_spec.OCI_LAYER: image_spec.OCI_LAYER_GZIP,
    image_spec.DOCKER_LAYER: image_spec.DOCKER_LAYER_GZIP,
}
Json = dict[str, Any]


class _Unknown(Exception):
    """Something tells of the image by its digest, and is in no form that could be told otherwise."""


def packed(images: Images, name: Name, departure: Departure) -> Name:
    """The name as it is to be pushed: itself where there is nothing to be compressed. Raises containerd's errors and
    Left."""
    with images.client.lease() as lease:
        packing = _Packing(images, lease, departure)
        try:
            target = packing.target(name.target)
        except (_Unknown, NotFound, containerd.NotFound, image_spec.SpecError, UnicodeError):
            # Push says what it is that cannot be read.
            return name
        if target["digest"] == name.target["digest"]:
            return name
        images.exchange(name.target, target, packing.made)
    return images.get_name(name.name) or name._replace(target=target)


class _Packing:
    def __init__(self, images: Images, lease: str, departure: Departure) -> None:
        self._images = images
        self._lease = lease
        self._departure = departure
        self.made: dict[str, str] = {}  # digests of manifests: those that there were -> those that there are

    def target(self, target: Descriptor) -> Descriptor:
        document = self._images.document(target["digest"], "manifest")
        if image_spec.media_type_of(document, target["mediaType"]) not in image_spec.INDEXES:
            return self._manifest(target)
        entries = image_spec.index(document)["manifests"]
        about = [REFERENCE_TYPE in (entry.get("annotations") or {}) for entry in entries]
        images = [entry if other else self._known(entry) for entry, other in zip(entries, about, strict=True)]
        if not self.made:
            return target
        told = [self._about(entry) if other else entry for entry, other in zip(images, about, strict=True)]
        return self._put(target, {**document, "manifests": told}, content.children_labels({"manifests": told}))

    def _known(self, entry: Descriptor) -> Descriptor:
        """The image of an index, which need not be here."""
        if entry["mediaType"] in image_spec.INDEXES or not content.exists(self._images.client, entry["digest"]):
            return entry
        return self._manifest(entry)

    def _manifest(self, target: Descriptor) -> Descriptor:
        manifest = image_spec.manifest(self._images.document(target["digest"], "manifest"))
        plain = [layer for layer in manifest["layers"] if self._own(layer)]
        if not plain:
            return target
        made = {layer["digest"]: self._pack(layer) for layer in plain}
        layers = [made.get(layer["digest"], layer) for layer in manifest["layers"]]
        packed: Manifest = {**manifest, "layers": layers}
        descriptor = self._put(target, packed, content.children_labels(packed))
        self.made[target["digest"]] = descriptor["digest"]
        return descriptor

    def _put(self, before: Descriptor, document: Mapping[str, Any], labels: dict[str, str]) -> Descriptor:
        """What takes the place of a document, with all else that is said of that one."""
        data = image_spec.encode(document)
        present = {key: digest for key, digest in labels.items() if content.exists(self._images.client, digest)}
        content.put(self._images.client, data, self._lease, present)
        return {**before, "digest": digests.of(data), "size": len(data)}

    def _own(self, layer: Descriptor) -> bool:
        """Whether a layer is not compressed, and no registry is known to have it so."""
        if layer["mediaType"] not in _PACKED:
            return False
        try:
            labels = content.info(self._images.client, layer["digest"]).labels
        except containerd.NotFound:  # the registry may have it
            return False
        return not any(key.startswith(content.SOURCE_LABEL) for key in labels)

    def _pack(self, layer: Descriptor) -> Descriptor:
        client, ref = self._images.client, f"teu-pack-{uuid.uuid4().hex}"
        engine, digester = gzips.Gzip(), digests.Digester()
        try:
            with content.Writer(client, ref, lease=self._lease, departure=self._departure) as writer:

                def write(piece: bytes) -> None:
                    digester.update(piece)
                    writer.write(piece)

                for chunk in content.chunks(client, layer["digest"], departure=self._departure):
                    if piece := engine.compress(chunk):
                        write(piece)
                write(engine.flush())
                writer.commit()
        except BaseException:
            content.abort(client, ref)
            raise
        digest = digester.digest()
        content.keep(client, digest, self._lease)
        content.label(client, digest, {UNCOMPRESSED: layer["digest"]})
        return {**layer, "mediaType": _PACKED[layer["mediaType"]], "digest": digest, "size": digester.size}

    # What is said of the image

    def _about(self, entry: Descriptor) -> Descriptor:
        """The statements about a manifest, about the one that has taken its place."""
        annotations = dict(entry.get("annotations") or {})
        before = annotations.get(REFERENCE_DIGEST, "")
        after = self.made.get(before)
        if after is None:
            return entry
        manifest = image_spec.manifest(self._images.document(entry["digest"], "manifest"))
        layers = [self._statement(layer, before, after) for layer in manifest["layers"]]
        changed = {old["digest"]: new["digest"] for old, new in zip(manifest["layers"], layers, strict=True)}
        config: Json = dict(self._images.document(manifest["config"]["digest"], "configuration"))
        rootfs = config.get("rootfs")
        if isinstance(rootfs, dict) and isinstance(rootfs.get("diff_ids"), list):
            config["rootfs"] = {**rootfs, "diff_ids": [changed.get(str(one), one) for one in rootfs["diff_ids"]]}
        told: Manifest = {**manifest, "config": self._put(manifest["config"], config, {}), "layers": layers}
        descriptor = self._put(entry, told, content.children_labels(told))
        return {**descriptor, "annotations": {**annotations, REFERENCE_DIGEST: after}}

    def _statement(self, layer: Descriptor, before: str, after: str) -> Descriptor:
        """An in-toto statement, whose subject a manifest is."""
        try:
            statement = jsontext.loads(content.read(self._images.client, layer["digest"], STATEMENT_MAX))
            subjects = statement["subject"] if layer["mediaType"] == STATEMENT else None
            if not isinstance(subjects, list):
                raise _Unknown
            algorithm, _, value = before.partition(":")
            for subject in subjects:
                if subject["digest"].get(algorithm) == value:
                    subject["digest"][algorithm] = after.partition(":")[2]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise _Unknown from None
        return self._put(layer, statement, {})
