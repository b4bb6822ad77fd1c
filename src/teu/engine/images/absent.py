# SPDX-License-Identifier: Apache-2.0
"""Manifests of an index that are not here, and still have to be at the registry before the index is: it has them in
another repository, from which the index came. They are put into the one that is pushed to, and no byte of them travels
where the registry mounts blobs. Called by `push`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.oci import distribution, image_spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from teu.oci.image_spec import Descriptor


def brought(
    registry: distribution.Registry, repository: str, manifest: Descriptor, sources: Iterable[str]
) -> str | None:
    """Put a manifest, and the blobs that it names, into a repository, out of one of the `sources`; from which. "" where
    it is there already, None where none of them has it.

    Raises RegistryError for what the registry does not take, SpecError where what it has is no manifest."""
    if _has(registry, repository, manifest["digest"]):
        return ""
    for source in sources:
        try:
            found, data = registry.manifest(source, manifest["digest"])
        except (distribution.NotFound, distribution.Unauthorized):
            continue
        if found["mediaType"] not in image_spec.MANIFESTS:
            continue
        document = image_spec.manifest(image_spec.decode(data, "manifest"))
        for blob in [document["config"], *document["layers"]]:
            _bring(registry, repository, blob, source)
        registry.put_manifest(repository, manifest["digest"], found["mediaType"], data)
        return source
    return None


def _has(registry: distribution.Registry, repository: str, digest: str) -> bool:
    try:
        registry.resolve(repository, digest)
    except distribution.NotFound:
        return False
    return True


def _bring(registry: distribution.Registry, repository: str, blob: Descriptor, source: str) -> None:
    if registry.has_blob(repository, blob["digest"]):
        return
    address = registry.mount_blob(repository, blob["digest"], source)
    if address:  # it does not mount: the bytes go through here, and it checks them itself
        registry.upload(repository, blob, lambda: registry.blob(source, blob), address)
