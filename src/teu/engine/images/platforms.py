# SPDX-License-Identifier: Apache-2.0
"""What the target of a name has: of an index its manifests, with the platform of each, and what of them is here.

An index is kept as it was pulled or loaded, byte by byte; its labels keep those of its manifests that are here:

    index  ─containerd.io/gc.ref.content.m.N─▶  manifest  ─.config, .l.N─▶  configuration, layers

A manifest is of an image, or attests what another one is (`vnd.docker.reference.type`: provenance and bills of
materials that a builder makes), or something else. Called by the store, and by those who bring, give and remove images.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.backend import containerd, content
from teu.engine.core.errors import BadRequest, NotFound
from teu.engine.core.kinds import loads
from teu.oci import image_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from teu.engine.backend.containerd import Client
    from teu.oci.image_spec import Descriptor, Manifest, Platform
    from teu.oci.jsontext import Json

IMAGE, ATTESTATION, UNKNOWN = "image", "attestation", "unknown"
INDEX_DEPTH = 16  # of indexes in indexes
MANIFESTS_MAX = 1000  # of an image, whatever its indexes say
ALL = "all"  # in the place of a platform: every one that there is
_REFERENCE_TYPE = "vnd.docker.reference.type"
_REFERENCE_DIGEST = "vnd.docker.reference.digest"


class Choice(NamedTuple):
    """Platforms that a request names; none of them: the host's, as ever."""

    platforms: tuple[Platform, ...] = ()
    everything: bool = False

    @property
    def several(self) -> bool:
        return self.everything or len(self.platforms) > 1

    @property
    def single(self) -> Platform | None:
        return self.platforms[0] if len(self.platforms) == 1 and not self.everything else None


class Part(NamedTuple):
    """A manifest below a target. `platform` is an image's; `manifest` is None while that is not here; `blobs` has the
    bytes of each blob of it that is here, `whole` says whether all of them are; `way` are the indexes that lead to it,
    the target first, none where the target is the manifest."""

    descriptor: Descriptor
    kind: str
    platform: Platform | None
    manifest: Manifest | None
    blobs: dict[str, int]
    whole: bool
    way: tuple[str, ...]

    @property
    def digest(self) -> str:
        return self.descriptor["digest"]

    @property
    def size(self) -> int:
        """Bytes of what is here."""
        return sum(self.blobs.values())

    @property
    def target(self) -> str:
        """The digest that everything began with."""
        return self.way[0] if self.way else self.digest

    @property
    def attests(self) -> str:
        """The digest of the manifest that this one says something of; "" where it is no attestation."""
        return attested(self.descriptor)


def attested(descriptor: Descriptor) -> str:
    """As `Part.attests`, of an entry of an index."""
    annotations = descriptor.get("annotations") or {}
    if annotations.get(_REFERENCE_TYPE) != "attestation-manifest":
        return ""
    return annotations.get(_REFERENCE_DIGEST) or "unknown"


def parse(text: str) -> Platform:
    """A platform in a request: os[/architecture[/variant]], or OCI's object of them in JSON. Raises BadRequest."""
    try:
        if not text.startswith("{"):
            return image_spec.parse_platform(text)
        value = loads(text.encode())
        if not isinstance(value, dict) or not all(isinstance(value.get(key, ""), str) for key in _MEMBERS):
            raise ValueError
        if not value.get("os") or not value.get("architecture"):
            raise BadRequest(f"platform {text[:200]!r} has no os or no architecture: both are needed")
        return image_spec.parse_platform("/".join(str(value[key]) for key in _MEMBERS if value.get(key)))
    except ValueError as error:
        said = str(error) if isinstance(error, image_spec.SpecError) else f"{text[:200]!r} is not a JSON object"
        raise BadRequest(f"invalid platform: {said}") from None


def choice(texts: Iterable[str]) -> Choice:
    """Of the values of a parameter: platforms, or the word `all`. Raises BadRequest."""
    words = [word for word in texts if word]
    return Choice(tuple(dict.fromkeys(parse(word) for word in words if word != ALL)), ALL in words)


_MEMBERS = ("os", "architecture", "variant")


def shown(platform: Platform) -> dict[str, str]:
    """As the API's object of a platform."""
    return {key: value for key in ("architecture", "os", "variant") if (value := getattr(platform, key))}


def document(client: Client, digest: str, what: str) -> dict[str, Json]:
    """A JSON object of the content store, of which nobody has looked yet at what it says."""
    return image_spec.decode(content.read(client, digest), what)


def parts(client: Client, target: Descriptor, sizes: bool = True) -> list[Part]:
    """All manifests below a target, in the order of its index; without `sizes` nobody looks at their blobs. Raises
    NotFound where the target is not here, SpecError where it is nothing that has manifests."""
    found: list[Part] = []
    seen: set[str] = set()
    size_of = functools.cache(functools.partial(_size, client)) if sizes else _nothing

    def walk(descriptor: Descriptor, way: tuple[str, ...]) -> None:
        digest = descriptor["digest"]
        if digest in seen or len(found) >= MANIFESTS_MAX:
            return
        seen.add(digest)
        try:
            read = document(client, digest, "manifest")
            if image_spec.media_type_of(read, descriptor["mediaType"]) in image_spec.INDEXES:
                if len(way) < INDEX_DEPTH:
                    for entry in image_spec.index(read)["manifests"]:
                        walk(entry, (*way, digest))
                return
            manifest = image_spec.manifest(read)
        except (containerd.NotFound, NotFound, image_spec.SpecError):
            if not way:
                raise
            kind = ATTESTATION if attested(descriptor) else IMAGE if descriptor.get("platform") else UNKNOWN
            if descriptor["mediaType"] not in image_spec.INDEXES:
                found.append(Part(descriptor, kind, _given(descriptor, kind), None, {}, False, way))
            return
        found.append(_part(client, descriptor, manifest, way, size_of))

    walk(target, ())
    return found


def _given(descriptor: Descriptor, kind: str) -> Platform | None:
    platform = descriptor.get("platform")
    return image_spec.platform_of(platform) if platform and kind == IMAGE else None


def _part(
    client: Client,
    descriptor: Descriptor,
    manifest: Manifest,
    way: tuple[str, ...],
    size_of: Callable[[str], int],
) -> Part:
    kind = ATTESTATION if attested(descriptor) else IMAGE if image_spec.is_image(manifest) else UNKNOWN
    below = {one["digest"] for one in (manifest["config"], *manifest["layers"])}
    blobs = {digest: size for digest in (descriptor["digest"], *below) if (size := size_of(digest)) >= 0}
    platform = _given(descriptor, kind)
    if kind == IMAGE and platform is None:
        with contextlib.suppress(containerd.NotFound, image_spec.SpecError):
            platform = image_spec.platform_of(document(client, manifest["config"]["digest"], "image configuration"))
    return Part(descriptor, kind, platform, manifest, blobs, below <= blobs.keys(), way)


def _nothing(_digest: str) -> int:
    return 0


def _size(client: Client, digest: str) -> int:
    """Bytes of a blob; -1 where it is not here."""
    try:
        return int(content.info(client, digest).size)
    except containerd.NotFound:
        return -1


def fitting(found: Iterable[Part], wanted: Platform) -> list[Part]:
    """Those images among the parts that `wanted` can run, best first."""
    ranked = [
        (rank, position, part)
        for position, part in enumerate(found)
        if part.kind == IMAGE
        and part.platform is not None
        and (rank := image_spec.platform_rank(wanted, part.platform)) is not None
    ]
    return [part for _, _, part in sorted(ranked, key=lambda one: one[:2])]


def names_of(found: Iterable[Part]) -> str:
    """The platforms of images that are here, for a person."""
    return ", ".join(sorted({str(part.platform) for part in found if part.kind == IMAGE and part.manifest})) or "none"


def chains(client: Client, part: Part) -> list[str]:
    """The chain ids of an image's layers, bottom first; none of what is no image, or is not here."""
    if part.kind != IMAGE or part.manifest is None:
        return []
    try:
        read = document(client, part.manifest["config"]["digest"], "image configuration")
        return image_spec.chain_ids(image_spec.config(read)["rootfs"]["diff_ids"])
    except (containerd.NotFound, image_spec.SpecError):
        return []
