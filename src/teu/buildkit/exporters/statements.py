# SPDX-License-Identifier: Apache-2.0
"""Attestations of a result as in-toto statements (in-toto attestation framework, Statement v0.1): those that the
frontend made, such as a bill of materials, and the provenance, where the client asked for it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from teu.buildkit.core import errors
from teu.buildkit.core.exports import Attestation, Build, Result
from teu.buildkit.core.snapshots import Descriptor, Worker
from teu.buildkit.exporters import provenance
from teu.linux import inside
from teu.oci import jsontext, reference

if TYPE_CHECKING:
    from teu.buildkit.llb.platforms import Platform

STATEMENT_TYPE = "https://in-toto.io/Statement/v0.1"
SPDX = "https://spdx.dev/Document"
STATEMENT_MAX = 64 << 20  # bytes of one that a step wrote
FILES_MAX = 1000  # of a bundle
REASON, INLINE_ONLY = "reason", "inline-only"
FILE_NAMES = {SPDX: "sbom.spdx.json"}

Json = dict[str, Any]


class Part(Protocol):
    @property
    def platform(self) -> Platform: ...


@dataclass(frozen=True, slots=True)
class Attested:
    """A predicate, and whom it is of. `file`: its name where results are files."""

    predicate_type: str
    predicate: Any
    file: str
    subjects: tuple[Json, ...] = ()
    itself: bool = True

    def statement(self) -> bytes:
        document = {
            "_type": STATEMENT_TYPE,
            "predicateType": self.predicate_type,
            "subject": list(self.subjects),
            "predicate": self.predicate,
        }
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def purl(name: str, platform: Platform | None) -> str:
    """The package URL of an image (purl specification, type docker)."""
    parsed = reference.parse(name)
    address = f"pkg:docker/{quote(parsed.familiar_name, safe='/')}"
    if parsed.tag:
        address += f"@{quote(parsed.tag, safe='')}"
    elif parsed.digest:
        address += f"@{parsed.digest.partition(':')[2][:12]}"
    queries = []
    if parsed.digest:
        queries.append(f"digest={quote(parsed.digest, safe=':')}")
    if platform is not None:
        queries.append(f"platform={quote(str(platform), safe='')}")
    return address + (f"?{'&'.join(queries)}" if queries else "")


def of_part(
    worker: Worker, result: Result, build: Build, part: str, platform: Platform, names: Sequence[str], *, inline: bool
) -> list[Attested]:
    """`inline`: for an image; else for files, which those that are for images alone do not come with."""
    found: list[Attested] = []
    for one in result.attestations.get(part, []):
        if not inline and one.metadata.get(INLINE_ONLY) in (b"1", b"true"):
            continue
        found.extend(_read(one))
    made = provenance.asked(build.attributes)
    if made is not None and (inline or not made.inline_only):
        predicate_type, predicate = provenance.predicate(made, result, build, part, platform)
        found.append(Attested(predicate_type, predicate, made.filename))
    return found


def with_subjects(made: Sequence[Attested], names: Sequence[str], manifest: Descriptor, part: Part) -> list[Attested]:
    """The image's own subjects: each of its names, or "_" without one, with the manifest's digest."""
    kind, _, value = manifest["digest"].partition(":")
    images = tuple({"name": purl(name, part.platform), "digest": {kind: value}} for name in names)
    own = images or ({"name": "_", "digest": {kind: value}},)
    return [replace(one, subjects=(*one.subjects, *(own if one.itself else ()))) for one in made]


def with_files(one: Attested, files: Sequence[Json]) -> Attested:
    """The subjects of a result that is files."""
    return replace(one, subjects=(*one.subjects, *(files if one.itself else ())))


def _read(one: Attestation) -> list[Attested]:
    """A statement, or those of a folder, that a step has written: what is in them is its own matter, whom they are of
    is not."""
    if one.snapshot is None:
        raise errors.InvalidArgument("an attestation has no files")
    subjects = tuple(
        {"name": subject.name or "_", "digest": dict(digest.split(":", 1) for digest in subject.digests)}
        for subject in one.subjects
        if not subject.itself
    )
    itself = not one.subjects or any(subject.itself for subject in one.subjects)
    with one.snapshot.mounted() as place:
        root = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not one.bundle:
                data = _file(root, one.path)
                kind = one.predicate_type
                return [
                    Attested(
                        kind, _predicate(data, one.path), FILE_NAMES.get(kind, "attestation.json"), subjects, itself
                    )
                ]
            return [_of_bundle(data, path, subjects, itself) for path, data in _files(root, one.path)]
        except OSError as error:
            raise errors.InvalidArgument(f"attestation {one.path}: {error.strerror}") from None
        finally:
            os.close(root)


def _predicate(data: bytes, path: str) -> Any:
    try:
        return jsontext.loads(data)
    except ValueError as error:
        raise errors.InvalidArgument(f"attestation {path} is no JSON: {error}") from None


def _of_bundle(data: bytes, path: str, subjects: tuple[Json, ...], itself: bool) -> Attested:
    document = _predicate(data, path)
    if not isinstance(document, dict) or document.get("_type") != STATEMENT_TYPE:
        raise errors.InvalidArgument(f"attestation {path} is no statement of in-toto v0.1")
    kind = str(document.get("predicateType") or "")
    if not kind:
        raise errors.InvalidArgument(f"attestation {path} has no predicateType")
    return Attested(kind, document.get("predicate"), FILE_NAMES.get(kind, os.path.basename(path)), subjects, itself)


def _file(root: int, path: str) -> bytes:
    with open(inside.open_file(root, path), "rb", buffering=0) as file:
        data = bytearray()
        while part := file.read(1 << 20):
            data += part
            if len(data) > STATEMENT_MAX:
                raise errors.ResourceExhausted(f"attestation {path}: more than {STATEMENT_MAX >> 20} MiB")
    return bytes(data)


def _files(root: int, path: str) -> list[tuple[str, bytes]]:
    folder = inside.open_in_root(root, path or "/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = sorted(os.listdir(folder))
        if len(names) > FILES_MAX:
            raise errors.ResourceExhausted(f"attestation {path}: more than {FILES_MAX} files")
        return [(f"{path}/{name}".lstrip("/"), _file(folder, name)) for name in names]
    finally:
        os.close(folder)
