# SPDX-License-Identifier: Apache-2.0
"""A result as an image: configurations, manifests and, for several platforms or with attestations, an index, all as
blobs of the content store, where each keeps what it names from the garbage collector.

OCI image specification: "Image Manifest", "Image Index"; BuildKit's "Image attestation storage".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from teu.buildkit.core import errors
from teu.buildkit.core.exports import BASE_CONFIG, CONFIG, EPOCH, INLINE_CACHE, PLATFORMS, Build, Part, Result, Task
from teu.buildkit.core.identifiers import digest_of
from teu.buildkit.core.snapshots import Descriptor, Worker
from teu.buildkit.exporters import attributes as given
from teu.buildkit.exporters import config as configs
from teu.buildkit.exporters import statements
from teu.buildkit.exporters.attributes import ImageOptions
from teu.buildkit.exporters.statements import Attested
from teu.buildkit.llb.platforms import Platform, host
from teu.oci import image_spec, labels

CREATED = "org.opencontainers.image.created"
CONFIG_DIGEST = "config.digest"
REFERENCE_TYPE, REFERENCE_DIGEST = "vnd.docker.reference.type", "vnd.docker.reference.digest"
ATTESTATION = "attestation-manifest"
PREDICATE_TYPE = "in-toto.io/predicate-type"
STATEMENT = "application/vnd.in-toto+json"
ARTIFACT = "application/vnd.docker.attestation.manifest.v1+json"
UNKNOWN: PlatformMembers = {"architecture": "unknown", "os": "unknown"}

if TYPE_CHECKING:
    from teu.oci.image_spec import PlatformMembers

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One platform's image: its descriptor, that of its configuration, and its layers, lowest first."""

    platform: Platform
    descriptor: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]
    part: Part


@dataclass(frozen=True, slots=True)
class Image:
    """What was made. `target` is the index, or the one manifest; `blobs` all below it that are no layers, by digest."""

    target: Descriptor
    manifests: tuple[Manifest, ...]
    attestations: tuple[Descriptor, ...] = ()
    attested_layers: tuple[Descriptor, ...] = ()
    blobs: dict[str, Descriptor] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        return not self.attestations and len(self.manifests) == 1 and self.target == self.manifests[0].descriptor

    def everything(self) -> list[Descriptor]:
        """All blobs, what is needed first before what needs it, each once."""
        found: dict[str, Descriptor] = {}
        for manifest in self.manifests:
            for one in (*manifest.layers, manifest.config, manifest.descriptor):
                found.setdefault(one["digest"], one)
        for one in (*self.attested_layers, *self.attestations, self.target):
            found.setdefault(one["digest"], one)
        for digest, one in self.blobs.items():
            found.setdefault(digest, one)
        found[self.target["digest"]] = found.pop(self.target["digest"])
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Named:
    """A part of a result with its name and its platform."""

    id: str
    platform: Platform
    part: Part


def parts_of(result: Result) -> list[Named]:
    """The parts by the frontend's list of platforms; without one there is one part, of this host's platform or of
    the one that its configuration names. Raises InvalidArgument."""
    listed = result.metadata.get(PLATFORMS)
    if listed is None:
        if set(result.parts) - {""}:
            raise errors.InvalidArgument("unable to export multiple refs, missing platforms mapping")
        alone = result.parts.get("", Part(None))
        return [Named("", _platform_of(result.named(CONFIG, "")), alone)]
    try:
        entries = json.loads(listed)["Platforms"]
        found = [(str(entry["ID"]), _platform(entry["Platform"])) for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise errors.InvalidArgument(f"failed to parse platforms passed to exporter: {error}") from None
    if not found:
        raise errors.InvalidArgument("invalid empty platforms index for exporter")
    missing = set(result.parts) - {""} - {name for name, _ in found}
    if missing:
        raise errors.InvalidArgument(f"failed to find platform mapping for {sorted(missing)[0]}")
    whole = result.parts.get("")
    named = []
    for name, platform in found:
        part = result.parts.get(name) or (whole if len(found) == 1 else None)
        if part is None:
            raise errors.InvalidArgument(f"failed to find ref for ID {name}")
        named.append(Named(name, platform, part))
    return named


def _platform(entry: Json) -> Platform:
    return Platform(
        str(entry.get("os") or ""),
        str(entry.get("architecture") or ""),
        str(entry.get("variant") or ""),
        str(entry.get("os.version") or ""),
        tuple(str(one) for one in entry.get("os.features") or ()),
    )


def _platform_of(data: bytes | None) -> Platform:
    if data is None:
        return host()
    document = configs.parsed(data)
    return _platform(document) if document.get("os") and document.get("architecture") else host()


def platform_json(platform: Platform) -> PlatformMembers:
    """As an index has it."""
    document: Json = {"architecture": platform.architecture, "os": platform.os}
    if platform.os_version:
        document["os.version"] = platform.os_version
    if platform.os_features:
        document["os.features"] = list(platform.os_features)
    if platform.variant:
        document["variant"] = platform.variant
    return cast("PlatformMembers", document)


@dataclass
class Assembly:
    """The making of one image."""

    worker: Worker
    options: ImageOptions
    task: Task
    result: Result
    build: Build
    epoch: int | None = None
    attested: bool = True
    blobs: dict[str, Descriptor] = field(default_factory=dict)

    def image(self) -> Image:
        if self.epoch is None:
            self.epoch = given.epoch(self.result.metadata.get(EPOCH))
        named = parts_of(self.result)
        said = [self._said(one) for one in named] if self.options.inline_attestations else []
        if any(said) and not self.options.oci:
            self.task.warn("attestations need OCI media types: they are used though oci-mediatypes=false was asked for")
            compression = replace(self.options.compression, oci=True)
            self.options = replace(self.options, oci=True, compression=compression)
        several = bool(set(self.result.parts) - {""})
        cached = any(self.result.named(INLINE_CACHE, one.id) is not None for one in named)
        if self.options.plain and not several and not cached:
            compression = replace(self.options.compression, kind="uncompressed")
            self.options = replace(self.options, compression=compression)
        manifests = [self._manifest(one) for one in named]
        attested = [
            (manifest, statements.with_subjects(made, self.options.names, manifest.descriptor, one))
            for one, manifest, made in zip(named, manifests, said)
            if made
        ]
        if attested or several:
            return self._index(manifests, attested)
        return Image(manifests[0].descriptor, tuple(manifests), blobs=self.blobs)

    # One platform

    def _manifest(self, named: Named) -> Manifest:
        options, part = self.options, named.part
        platform = str(named.platform)
        compression = options.compression
        if options.rewrite_timestamp and self.epoch is not None:
            compression = replace(compression, epoch=self.epoch)
        name = "exporting layers"
        self.task.status(name, 0, 0)
        layers = [] if part.snapshot is None else part.snapshot.layers(compression) or []
        made = [] if part.snapshot is None else part.snapshot.history()
        self.task.status(name, 0, 0, completed=True)
        self.task.check()
        data = self.result.named(CONFIG, named.id)
        document = configs.parsed(data) if data is not None else configs.empty(named.platform)
        cache = self.result.named(INLINE_CACHE, named.id)
        base = self.result.named(BASE_CONFIG, named.id)
        config_data = configs.finished(
            document, layers, made, self.epoch, cache, configs.parsed(base) if base is not None else None
        )
        config = self._blob(
            "config", image_spec.OCI_CONFIG if options.oci else image_spec.DOCKER_CONFIG, config_data, {}
        )
        kept = [_plain(layer) for layer in layers]
        content: Json = {
            "schemaVersion": 2,
            "mediaType": image_spec.OCI_MANIFEST if options.oci else image_spec.DOCKER_MANIFEST,
            "config": config,
            "layers": kept,
        }
        if told := given.annotated(options.annotations, given.MANIFEST, platform):
            content["annotations"] = dict(sorted(told.items()))
        keeps = labels.keeping(config=config, layers=kept)
        descriptor = self._blob("manifest", content["mediaType"], image_spec.encode(content), keeps)
        told = given.annotated(options.annotations, given.MANIFEST_DESCRIPTOR, platform)
        if told:
            descriptor = {**descriptor, "annotations": dict(sorted(told.items()))}
        return Manifest(named.platform, descriptor, config, tuple(layers), part)

    def _blob(self, what: str, media_type: str, data: bytes, keeps: dict[str, str]) -> Descriptor:
        digest = digest_of(data)
        name = f"exporting {what} {digest}"
        self.task.status(name, 0, len(data))
        self.worker.content.write([data], digest, len(data), keeps)
        self.task.status(name, len(data), len(data), completed=True)
        descriptor: Descriptor = {"mediaType": media_type, "digest": digest, "size": len(data)}
        self.blobs[digest] = descriptor
        return descriptor

    # Attestations

    def _said(self, named: Named) -> list[Attested]:
        """The statements of a part. What is for an image in its place alone does not make an index of an archive of one
        platform, which could not be loaded everywhere."""
        inline = self.attested or bool(set(self.result.parts) - {""})
        return statements.of_part(
            self.worker, self.result, self.build, named.id, named.platform, self.options.names, inline=inline
        )

    def _attestation(self, manifest: Manifest, made: Sequence[Attested]) -> tuple[Descriptor, list[Descriptor]]:
        layers: list[Descriptor] = []
        for one in made:
            data = one.statement()
            layer = self._blob("attestation", STATEMENT, data, {})
            layers.append({**layer, "annotations": {PREDICATE_TYPE: one.predicate_type}})
        content: Json = {"schemaVersion": 2, "mediaType": image_spec.OCI_MANIFEST}
        if self.options.artifacts:
            config = self._blob("config", image_spec.OCI_EMPTY, b"{}", {})
            subject = {key: manifest.descriptor[key] for key in ("mediaType", "digest", "size")}
            content |= {
                "artifactType": ARTIFACT,
                "config": {**config, "data": "e30="},
                "layers": layers,
                "subject": subject,
            }
        else:
            config = self._statement_config(layers)
            content |= {"config": config, "layers": layers}
        keeps = labels.keeping(config=config, layers=layers)
        descriptor = self._blob("attestation manifest", image_spec.OCI_MANIFEST, image_spec.encode(content), keeps)
        told = {REFERENCE_TYPE: ATTESTATION, REFERENCE_DIGEST: manifest.descriptor["digest"]}
        return {**descriptor, "annotations": told, "platform": UNKNOWN}, layers

    def _statement_config(self, layers: Sequence[Descriptor]) -> Descriptor:
        """That of an image whose layers are statements."""
        document = {
            **UNKNOWN,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
        return self._blob("config", image_spec.OCI_CONFIG, image_spec.encode(document), {})

    def _index(self, manifests: Sequence[Manifest], attested: Sequence[tuple[Manifest, list[Attested]]]) -> Image:
        entries: list[Descriptor] = [
            {**manifest.descriptor, "platform": platform_json(manifest.platform)} for manifest in manifests
        ]
        attestations, layers = [], []
        for manifest, made in attested:
            descriptor, below = self._attestation(manifest, made)
            attestations.append(descriptor)
            layers.extend(below)
        oci = self.options.oci
        content: Json = {
            "schemaVersion": 2,
            "mediaType": image_spec.OCI_INDEX if oci else image_spec.DOCKER_LIST,
            "manifests": [*entries, *attestations],
        }
        if told := given.annotated(self.options.annotations, given.INDEX):
            content["annotations"] = dict(sorted(told.items()))
        keeps = labels.keeping(manifests=content["manifests"])
        target = self._blob("manifest list", content["mediaType"], image_spec.encode(content), keeps)
        if told := given.annotated(self.options.annotations, given.INDEX_DESCRIPTOR):
            target = {**target, "annotations": dict(sorted(told.items()))}
        return Image(target, tuple(manifests), tuple(attestations), tuple(layers), self.blobs)


def _plain(layer: Descriptor) -> Descriptor:
    """A layer as a manifest has it: without what only this host's stores need."""
    told = {
        key: value
        for key, value in (layer.get("annotations") or {}).items()
        if key not in (labels.UNCOMPRESSED, "buildkit/createdat", "buildkit/description")
        and not key.startswith(labels.SOURCE)
    }
    plain = layer.copy()
    plain.pop("annotations", None)
    return {**plain, "annotations": told} if told else plain


def assemble(
    worker: Worker,
    options: ImageOptions,
    task: Task,
    result: Result,
    build: Build,
    epoch: int | None,
    *,
    attested: bool = True,
) -> Image:
    """`epoch`: as the exporter's own attribute has it; else what the result says. `attested`: with the statements that
    are for images in their places alone (inline-only). Raises core.errors.Error."""
    for name in options.unknown:
        task.warn(f"the exporter does not know the attribute {name}")
    return Assembly(worker, options, task, result, build, epoch, attested).image()
