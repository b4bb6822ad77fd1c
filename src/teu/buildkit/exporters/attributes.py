# SPDX-License-Identifier: Apache-2.0
"""An exporter's attributes, as clients give them. InvalidArgument in BuildKit's words for what cannot be meant."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Compression
from teu.oci import reference

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_ANNOTATION = re.compile(r"annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/-]+)\])?\.(\S+)")

# What an annotation may be of.
MANIFEST, INDEX = "manifest", "index"
MANIFEST_DESCRIPTOR, INDEX_DESCRIPTOR = "manifest-descriptor", "index-descriptor"
_OF = (MANIFEST, INDEX, MANIFEST_DESCRIPTOR, INDEX_DESCRIPTOR)

COMPRESSIONS = ("uncompressed", "gzip", "estargz", "zstd")
OCI_ALONE = ("estargz", "zstd")  # docker's media types have no words for them
_LEVELS = {"gzip": (0, 9), "estargz": (0, 9), "zstd": (0, 22)}
EPOCH_MAX = 1 << 40  # seconds; a file system has no later one

# What is said of the builder's own, or of how a client shows it: other exporters' words are no mistake.
KNOWN_ELSEWHERE = ("buildinfo", "buildinfo-attrs")


def boolean(attributes: Mapping[str, str], name: str, default: bool = False) -> bool:
    """One without a value is said."""
    text = attributes.get(name)
    if text is None:
        return default
    if text in ("", *_TRUE):
        return True
    if text in _FALSE:
        return False
    raise errors.InvalidArgument(f"non-bool value specified for {name}: {text!r}")


def maybe(attributes: Mapping[str, str], name: str) -> bool | None:
    """None where nothing is said of it."""
    return boolean(attributes, name) if name in attributes else None


def epoch(text: str | bytes | None) -> int | None:
    """SOURCE_DATE_EPOCH: seconds since 1970; None for nothing."""
    value = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    if not value:
        return None
    if not re.fullmatch(r"-?[0-9]{1,13}", value) or abs(int(value)) > EPOCH_MAX:
        raise errors.InvalidArgument(f"invalid SOURCE_DATE_EPOCH: {errors.cut(value, 100)}")
    return int(value)


def words(text: str) -> dict[str, str]:
    """`a=b,c`, with the quoting of CSV."""
    rows = list(csv.reader([text])) if text else []
    return {part.partition("=")[0].strip(): part.partition("=")[2] for part in (rows[0] if rows else [])}


@dataclass(frozen=True, slots=True)
class Annotation:
    """`of`: manifest, index, or a descriptor of one. `platform` "" is every one."""

    of: str
    platform: str
    key: str
    value: str


def all_annotations(attributes: Mapping[str, str]) -> tuple[Annotation, ...]:
    found = []
    for name, value in attributes.items():
        if not name.startswith("annotation"):
            continue
        parts = _ANNOTATION.fullmatch(name)
        if parts is None:
            raise errors.InvalidArgument(f"invalid annotation {errors.cut(name, 200)!r}")
        of, platform = parts[1] or MANIFEST, parts[2] or ""
        if of not in _OF:
            raise errors.InvalidArgument(f"unrecognized annotation type {of}")
        if platform and of in (INDEX, INDEX_DESCRIPTOR):
            raise errors.InvalidArgument(f"{of} annotations cannot be platform specific")
        found.append(Annotation(of, platform, parts[3], value))
    return tuple(found)


def annotated(all_: Sequence[Annotation], of: str, platform: str = "") -> dict[str, str]:
    """Those of one object: what is said of its platform goes before what is said of all."""
    chosen = [one for one in all_ if one.of == of and one.platform in ("", platform)]
    return {one.key: one.value for one in sorted(chosen, key=lambda one: bool(one.platform))}


def compression(attributes: Mapping[str, str], oci: bool) -> Compression:
    kind = attributes.get("compression") or "gzip"
    if kind not in COMPRESSIONS:
        raise errors.InvalidArgument(f"unsupported layer compression type {kind}")
    level: int | None = None
    if text := attributes.get("compression-level"):
        least, most = _LEVELS.get(kind, (0, 0))
        if not re.fullmatch("-?[0-9]{1,3}", text):
            raise errors.InvalidArgument(f"non-integer value {text} specified for compression-level")
        level = min(max(int(text), least), most)
    force = boolean(attributes, "force-compression")
    return Compression(kind, level, force, oci or kind in OCI_ALONE)


@dataclass(frozen=True, slots=True)
class Names:
    """The names of an image: as given, each with its tag."""

    given: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Names:
        found: list[str] = []
        for part in text.split(","):
            part = part.strip()
            if not part:
                continue
            try:
                name = str(reference.parse(part).with_default_tag())
            except reference.ReferenceError_ as error:
                raise errors.InvalidArgument(f"failed to parse {part}: {error}") from None
            if name not in found:
                found.append(name)
        return cls(tuple(found))


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What all exporters of images know."""

    names: tuple[str, ...] = ()
    oci: bool = True
    compression: Compression = field(default_factory=Compression)
    annotations: tuple[Annotation, ...] = ()
    rewrite_timestamp: bool = False
    artifacts: bool = False  # attestations are OCI artifacts (image specification 1.1), not images
    inline_attestations: bool = True
    plain: bool = False  # layers are not compressed, where nothing else depends on their digests
    unknown: tuple[str, ...] = ()


_OF_IMAGES = (
    *("name", "oci-mediatypes", "compression", "compression-level", "force-compression"),
    *("rewrite-timestamp", "attestation-inline", "source-date-epoch", "oci-artifact", "prefer-nondist-layers"),
)


def image_options(attributes: Mapping[str, str], oci: bool, more: Sequence[str]) -> ImageOptions:
    """`oci`: the kind of media types where nothing is said; `more`: names that the exporter itself knows."""
    asked = maybe(attributes, "oci-mediatypes")
    oci = oci if asked is None else asked
    artifacts = boolean(attributes, "oci-artifact")
    packed = compression(attributes, oci)
    alone = packed.kind in OCI_ALONE
    for needs, option in ((artifacts, "oci-artifact=true"), (alone, f"compression={packed.kind}")):
        if needs and asked is False:
            raise errors.InvalidArgument(f'exporter option "{option}" conflicts with "oci-mediatypes=false"')
    if boolean(attributes, "prefer-nondist-layers"):
        raise errors.InvalidArgument("prefer-nondist-layers=true: this builder makes every layer one to distribute")
    known = {*_OF_IMAGES, *more, *KNOWN_ELSEWHERE}
    unknown = [
        name for name in attributes if name not in known and not name.startswith(("annotation", "containerimage"))
    ]
    return ImageOptions(
        names=Names.parse(attributes.get("name", "")).given,
        oci=oci,
        compression=packed,
        annotations=all_annotations(attributes),
        rewrite_timestamp=boolean(attributes, "rewrite-timestamp"),
        artifacts=artifacts,
        inline_attestations=boolean(attributes, "attestation-inline", True),
        unknown=tuple(unknown),
    )
