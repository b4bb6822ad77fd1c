# SPDX-License-Identifier: Apache-2.0
"""GET /images/{name}/attestations: what builders have said of an image, statements of in-toto.

They stand beside the image in its index, in a manifest with a layer for each statement:

    index ─▶ manifest of a platform
          ─▶ manifest that attests it (platforms.Part.attests) ─▶ layers, with in-toto.io/predicate-type
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from teu.engine.backend import containerd
from teu.engine.core.errors import NotFound
from teu.engine.images import platforms
from teu.oci import image_spec

if TYPE_CHECKING:
    from collections.abc import Collection

    from teu.engine.engine import Engine

PREDICATE = "in-toto.io/predicate-type"


def statements(
    engine: Engine, text: str, platform: image_spec.Platform | None, kinds: Collection[str], whole: bool
) -> list[dict[str, object]]:
    """The statements on an image's manifest of this platform (None: the host's), of these types of predicate (none: of
    all); with `whole` their texts. Raises NotFound."""
    images = engine.images
    name, _ = images.lookup(text)
    parts = images.parts(name)
    wanted = platform or image_spec.host_platform()
    found = next(iter(platforms.fitting(parts, wanted)), None)
    if found is None:
        raise NotFound(f"{text} has no manifest for {wanted}; it has {platforms.names_of(parts)}")
    about = next((part for part in parts if found.way and part.attests == found.digest), None)
    if about is None:
        return []
    if about.manifest is None:
        raise NotFound(f"attestation manifest {about.digest} is not available locally: pull the image with it")
    result: list[dict[str, object]] = []
    for layer in about.manifest["layers"]:
        kind = (layer.get("annotations") or {}).get(PREDICATE, "")
        if not kind or (kinds and kind not in kinds):
            continue
        one: dict[str, object] = {"Descriptor": layer, "PredicateType": kind}
        if whole:
            try:
                read = platforms.document(images.client, layer["digest"], "attestation statement")
                one["Statement"] = cast("dict[str, object]", read)
            except containerd.NotFound:
                raise NotFound(f"attestation statement {layer['digest']} is not available locally") from None
            except image_spec.SpecError as error:
                raise containerd.Error(f"attestation statement {layer['digest']}: {error}") from None
        result.append(one)
    return result
