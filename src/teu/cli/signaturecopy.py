# SPDX-License-Identifier: Apache-2.0
"""`image signatures --copy-to`: what is attached to an image travels to where the image was pushed to. Called by
`signatures`.

Tags of cosign's keep their names, referrers their digests; where a registry does not list referrers itself, the tag
that stands for the list gets them (distribution-spec, "Referrers Tag Schema"). Nothing that is there already is
replaced by something else."""

from __future__ import annotations

from teu.cli.errors import CommandError
from teu.oci import image_spec
from teu.oci.distribution import NotFound
from teu.trust import attached

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.oci.distribution import Registry
    from teu.oci.reference import Reference


def copied(source: Registry, wanted: Reference, destination: Registry, to: Reference) -> list[str]:
    """Copy all of it, of the image and of each manifest below it that is there; a line for each. Raises CommandError
    where the destination has another image, or other signatures under a tag; RegistryError."""
    target, data = source.manifest(wanted.path, wanted.digest or wanted.tag)
    if not _has(destination, to.path, target["digest"]):
        raise CommandError(f"{to.name} does not have {target['digest']}: push the image first, as it is")
    digests = [target["digest"]]
    if target["mediaType"] in image_spec.INDEXES:
        entries = image_spec.index(image_spec.decode(data, "index"))["manifests"]
        digests += [one["digest"] for one in entries if _has(destination, to.path, one["digest"])]
    way = _Way(source, wanted, destination, to)
    return [line for digest in dict.fromkeys(digests) for line in [*way.tags(digest), *way.referrers(digest)]]


def _has(place: Registry, repository: str, reference: str) -> bool:
    try:
        place.resolve(repository, reference)
    except NotFound:
        return False
    return True


class _Way:
    """From one repository to another."""

    def __init__(self, source: Registry, wanted: Reference, destination: Registry, to: Reference) -> None:
        self._source, self._from = source, wanted
        self._destination, self._to = destination, to

    def tags(self, digest: str) -> list[str]:
        """cosign's."""
        lines = []
        for suffix in attached.TAGS:
            tag = f"{digest.replace(':', '-')}.{suffix}"
            try:
                descriptor, data = self._source.manifest(self._from.path, tag)
            except NotFound:
                continue
            try:
                there = self._destination.manifest(self._to.path, tag)[0]["digest"]
            except NotFound:
                self._put(tag, descriptor["mediaType"], data)
                lines.append(f"Copied {tag} to {self._to.name}")
                continue
            if there != descriptor["digest"]:
                raise CommandError(f"{self._to.name}:{tag} is there, and another one: it is not replaced")
        return lines

    def referrers(self, digest: str) -> list[str]:
        """Those that the destination does not have yet."""
        there = self._destination.referrers(self._to.path, digest)
        known = {one["digest"] for one in there}
        added: list[Any] = []
        for one in self._source.referrers(self._from.path, digest):
            if one["digest"] in known:
                continue
            descriptor, data = self._source.manifest(self._from.path, one["digest"])
            document = image_spec.decode(data, "manifest")
            subject = document.get("subject")
            if not isinstance(subject, dict) or subject.get("digest") != digest:
                continue
            self._put(one["digest"], descriptor["mediaType"], data)
            told = {name: document[name] for name in ("artifactType", "annotations") if document.get(name)}
            added.append({"artifactType": (document.get("config") or {}).get("mediaType", ""), **descriptor, **told})
        self._list(digest, added)
        return [f"Copied {one['digest']} to {self._to.name}" for one in added]

    def _list(self, digest: str, added: list[Any]) -> None:
        """Have them listed, where the destination does not do that itself."""
        there = self._destination.referrers(self._to.path, digest)
        known = {one["digest"] for one in there}
        missing = [one for one in added if one["digest"] not in known]
        if missing:
            algorithm, _, value = digest.partition(":")
            index = {"schemaVersion": 2, "mediaType": image_spec.OCI_INDEX, "manifests": [*there, *missing]}
            data = image_spec.encode(index)
            tag = f"{algorithm[:32]}-{value[:64]}"
            self._destination.put_manifest(self._to.path, tag, image_spec.OCI_INDEX, data)

    def _put(self, reference: str, media_type: str, data: bytes) -> None:
        manifest = image_spec.manifest(image_spec.decode(data, "manifest"))
        for blob in [manifest["config"], *manifest["layers"]]:
            if self._destination.has_blob(self._to.path, blob["digest"]):
                continue
            address = ""
            if self._from.domain == self._to.domain:
                address = self._destination.mount_blob(self._to.path, blob["digest"], self._from.path)
                if not address:
                    continue
            self._upload(blob, address)
        self._destination.put_manifest(self._to.path, reference, media_type, data)

    def _upload(self, blob: Any, address: str) -> None:
        self._destination.upload(self._to.path, blob, lambda: self._source.blob(self._from.path, blob), address)
