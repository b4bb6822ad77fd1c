# SPDX-License-Identifier: Apache-2.0
"""What a registry has that is about a manifest: signatures, attestations, bills of materials. Called by `verify`, and
by `teu image signatures`.

    REPOSITORY:sha256-HEX.sig     cosign's signatures: a manifest, a layer for each (SIGNATURE_SPEC)
    REPOSITORY:sha256-HEX.att     cosign's attestations: a manifest, a layer for each, an envelope of DSSE
    REPOSITORY:sha256-HEX.sbom    a bill of materials, which nobody has signed
    its referrers                 manifests with it as `subject` (distribution-spec, "Listing Referrers"; where the
                                  registry knows no such call, the index at REPOSITORY:sha256-HEX)

Nothing is believed here: a referrer that names another subject is none, a blob has the digest that it is asked for by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from teu.oci import digest as digests
from teu.oci import image_spec, jsontext
from teu.oci.distribution import Aborted, NotFound
from teu.trust.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from teu.oci.image_spec import Descriptor

SIGNATURES_MAX = 128  # of a manifest, of each kind
SIGNATURE_LIMIT = 1 << 20  # bytes
ENVELOPE_LIMIT = 16 << 20  # statements with a bill of materials are large

# The kinds.
COSIGN, NOTATION, ATTESTATION, BUNDLE, SBOM, OTHER = "cosign", "notation", "attestation", "bundle", "sbom", "other"

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
COSIGN_ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
COSIGN_ATTESTATION = "application/vnd.dev.cosign.artifact.att.v1+json"
NOTATION_ARTIFACT = "application/vnd.cncf.notary.signature"
BUNDLE_ARTIFACT = "application/vnd.dev.sigstore.bundle"  # and a version, in one of two ways
DSSE = "application/vnd.dsse.envelope.v1+json"
TAGS = {"sig": COSIGN, "att": ATTESTATION, "sbom": SBOM}
SIGNATURES = (COSIGN, NOTATION, ATTESTATION, BUNDLE)
_ARTIFACTS = {NOTATION_ARTIFACT: NOTATION, COSIGN_ARTIFACT: COSIGN, COSIGN_ATTESTATION: ATTESTATION}


def json_object(data: bytes | str, what: str) -> dict[str, Any]:
    """A document of a signature's; `what` names it in errors. Raises TrustError."""
    try:
        found = jsontext.loads(data)
    except ValueError as error:
        raise TrustError(f"{what} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise TrustError(f"{what} is not a JSON object")
    return found


class Source(Protocol):
    """A registry, or several of them (oci.registries)."""

    def manifest(self, repository: str, reference: str) -> tuple[Descriptor, bytes]:
        """Descriptor and bytes of a manifest or an index, by tag or digest. Raises RegistryError."""

    def blob(self, repository: str, descriptor: Descriptor, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob, which nobody has checked. Raises RegistryError."""

    def referrers(self, repository: str, digest: str) -> list[Descriptor]:
        """Descriptors of what names the manifest as its subject. Raises RegistryError."""


class Attached(NamedTuple):
    """One layer of a manifest that is attached. `place`: where it was found, the tag or the digest; `artifact`: the
    type that its manifest says it is."""

    kind: str
    place: str
    artifact: str
    manifest: Descriptor
    layer: Descriptor

    @property
    def annotations(self) -> dict[str, str]:
        """Of the layer."""
        return self.layer.get("annotations") or {}


def find(source: Source, repository: str, digest: str, kinds: tuple[str, ...] = ()) -> Iterator[Attached]:
    """All that is attached to a manifest, or what is of these kinds, in the order in which a registry tells it.

    Raises RegistryError where the registry cannot be asked, TrustError for more than SIGNATURES_MAX of a kind."""
    counts: dict[str, int] = {}
    for one in _all(source, repository, digest, kinds):
        counts[one.kind] = counts.get(one.kind, 0) + 1
        if counts[one.kind] > SIGNATURES_MAX:
            raise TrustError(f"{repository}@{digest} has more than {SIGNATURES_MAX} signatures or statements of a kind")
        yield one


def _all(source: Source, repository: str, digest: str, kinds: tuple[str, ...]) -> Iterator[Attached]:
    tag = digest.replace(":", "-")
    for suffix, kind in TAGS.items():
        if kinds and kind not in kinds:
            continue
        try:
            descriptor, data = source.manifest(repository, f"{tag}.{suffix}")
        except Aborted:
            raise
        except NotFound:
            continue
        manifest = _manifest(data)
        if manifest is not None:
            yield from _layers(kind, f"{tag}.{suffix}", "", descriptor, manifest)
    for entry in source.referrers(repository, digest)[:MANIFESTS_MAX]:
        # A list says an artifact's type, so that most need not be fetched. Those that cosign keeps in a tag say the
        # configuration's, which is the empty one.
        told = str(dict(entry).get("artifactType") or image_spec.OCI_EMPTY)
        if told != image_spec.OCI_EMPTY and kinds and _kind_of(told) not in kinds:
            continue
        try:
            descriptor, data = source.manifest(repository, entry["digest"])
        except NotFound:
            continue
        manifest = _manifest(data)
        if manifest is None or not _is_about(manifest, digest):
            continue
        artifact = str(dict(manifest).get("artifactType") or manifest["config"]["mediaType"])
        kind = _kind_of(artifact)
        if not kinds or kind in kinds:
            yield from _layers(kind, entry["digest"], artifact, descriptor, manifest)


MANIFESTS_MAX = 4 * SIGNATURES_MAX


def _kind_of(artifact: str) -> str:
    if artifact.startswith(BUNDLE_ARTIFACT):
        return BUNDLE
    return _ARTIFACTS.get(artifact, OTHER)


def _manifest(data: bytes) -> Any:
    try:
        document = image_spec.decode(data, "manifest")
        # The artifact manifests of OCI 1.1's drafts have blobs; nobody has made them since 2023.
        return {**document, **image_spec.manifest(document)}
    except image_spec.SpecError:
        return None


def _is_about(manifest: Any, digest: str) -> bool:
    subject = manifest.get("subject")
    return isinstance(subject, dict) and subject.get("digest") == digest


def _layers(kind: str, place: str, artifact: str, descriptor: Descriptor, manifest: Any) -> Iterator[Attached]:
    for layer in manifest["layers"]:
        yield Attached(kind, place, artifact, descriptor, layer)


def payload(source: Source, repository: str, one: Attached) -> bytes:
    """What is in a layer, and has its digest. Raises TrustError where it is not that; RegistryError."""
    layer, limit = one.layer, SIGNATURE_LIMIT if one.kind in (COSIGN, NOTATION) else ENVELOPE_LIMIT
    if layer["size"] > limit:
        raise TrustError(f"it has {layer['size']} bytes; {limit} are the most")
    data = b"".join(source.blob(repository, layer))
    digester = digests.for_digest(layer["digest"])
    digester.update(data)
    if digester.digest() != layer["digest"]:
        raise TrustError(f"what came for {layer['digest']} has the digest {digester.digest()}")
    return data
