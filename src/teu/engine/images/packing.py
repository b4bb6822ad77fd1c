# SPDX-License-Identifier: Apache-2.0
"""Layers that are not compressed, as a build for this engine, `load` and `import` leave them, are compressed once,
before they are pushed. Called by push.

The image's manifest is another one then, and all names of the image lead to it. Its id, which is its configuration, and
its unpacked layers stay. What came from a registry, or is in an index, is pushed as it is.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from teu.engine.backend import containerd, content
from teu.oci import digest as digests
from teu.oci import gzips, image_spec
from teu.oci.labels import UNCOMPRESSED

if TYPE_CHECKING:
    from teu.engine.core.departure import Departure
    from teu.engine.images.store import Images, Name
    from teu.oci.image_spec import Descriptor, Manifest

_PACKED = {
    image_spec.OCI_LAYER: image_spec.OCI_LAYER_GZIP,
    image_spec.DOCKER_LAYER: image_spec.DOCKER_LAYER_GZIP,
}


def packed(images: Images, name: Name, departure: Departure) -> Name:
    """The name as it is to be pushed: itself where there is nothing to be compressed. Raises containerd's errors and
    Left."""
    details = images.of(name)
    if details.manifest_digest != name.target["digest"]:
        return name
    plain = [layer for layer in details.manifest["layers"] if _own(images, layer)]
    if not plain:
        return name
    with images.client.lease() as lease:
        made = {layer["digest"]: _pack(images, layer, lease, departure) for layer in plain}
        layers = [made.get(layer["digest"], layer) for layer in details.manifest["layers"]]
        manifest: Manifest = {**details.manifest, "layers": layers}
        data = image_spec.encode(manifest)
        content.put(images.client, data, lease, content.children_labels(manifest))
        target = image_spec.descriptor(image_spec.media_type_of(manifest, name.target["mediaType"]), data)
        images.exchange(name.target, target)
    return images.get_name(name.name) or name._replace(target=target)


def _own(images: Images, layer: Descriptor) -> bool:
    """Whether a layer is not compressed, and no registry is known to have it so."""
    if layer["mediaType"] not in _PACKED:
        return False
    try:
        labels = content.info(images.client, layer["digest"]).labels
    except containerd.NotFound:  # the registry may have it
        return False
    return not any(key.startswith(content.SOURCE_LABEL) for key in labels)


def _pack(images: Images, layer: Descriptor, lease: str, departure: Departure) -> Descriptor:
    client, ref = images.client, f"teu-pack-{uuid.uuid4().hex}"
    engine, digester = gzips.Gzip(), digests.Digester()
    try:
        with content.Writer(client, ref, lease=lease, departure=departure) as writer:

            def write(piece: bytes) -> None:
                digester.update(piece)
                writer.write(piece)

            for chunk in content.chunks(client, layer["digest"], departure=departure):
                if piece := engine.compress(chunk):
                    write(piece)
            write(engine.flush())
            writer.commit()
    except BaseException:
        content.abort(client, ref)
        raise
    digest = digester.digest()
    content.keep(client, digest, lease)
    content.label(client, digest, {UNCOMPRESSED: layer["digest"]})
    return {**layer, "mediaType": _PACKED[layer["mediaType"]], "digest": digest, "size": digester.size}
