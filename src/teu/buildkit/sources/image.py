# SPDX-License-Identifier: Apache-2.0
"""docker-image://REFERENCE: images of registries, and those that this host has.

    image.resolvemode   default, local: an image of the engine that runs on the platform is taken as it is; else the
                        registry is asked.  pull: the registry is always asked what the name stands for
    image.recordtype    regular, internal or frontend, for `du`
    image.layerlimit    so many layers of it, from below
    image.checksum      the digest that the name has to stand for

Where there is a policy (teu-policy(5)), it has to let in what comes from a registry, before a layer of it is fetched.
A reference with a digest is taken from the content store where that has it: nobody is asked then. Only manifests and
the configuration are read here. A layer is fetched when a step needs the files, or an exporter the blob.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from teu.buildkit.cache import store
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Descriptor, Kind, Worker
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.sources.base import Asker, Material, Recent, no_meta, number
from teu.buildkit.sources.manifests import Documents, Image, ImageAsSource
from teu.buildkit.sources.registries import Access, Remote
from teu.oci import digest as digests
from teu.oci import image_spec, reference
from teu.oci.reference import Reference
from teu.trust import files, gate

log = logging.getLogger("teu.buildkit")
MODES = ("default", "pull", "local")
LAYERS_MAX = 10_000
TYPES = {"": store.REGULAR, **{kind: kind for kind in (store.REGULAR, store.INTERNAL, store.FRONTEND)}}
ATTESTATION = "attestation-manifest"
VERDICTS_MAX = 256
VERDICT_SECONDS = 60.0  # a build asks several times what a name stands for


class Images:
    """The scheme docker-image."""

    def __init__(self, worker: Worker, access: Access, documents: Documents | None = None) -> None:
        self.worker = worker
        self.access = access
        self.documents = documents or Documents(worker.content)
        self._let_in: Recent[float] = Recent(VERDICTS_MAX)

    def find(self, wanted: Reference, root: Descriptor, platform: Platform, remote: Remote | None) -> Image:
        """The image for a platform, which the policy lets in. Raises NotFound, PermissionDenied."""
        with remote.opened() if remote is not None else nullcontext():
            image = self.documents.find(root, platform, remote, str(wanted))
            if remote is not None:
                self._ask_policy(wanted, image, remote)
        return image

    def _ask_policy(self, wanted: Reference, image: Image, remote: Remote) -> None:
        policy = self.access.configuration.policy
        way = [image.root] if image.root["digest"] == image.manifest["digest"] else [image.root, image.manifest]
        key = (str(wanted), *(one["digest"] for one in way), files.stamp(policy))
        if (self._let_in.get(key) or 0.0) > time.monotonic() - VERDICT_SECONDS:
            return
        with remote.opened() as places:
            gate.let_in(places, wanted, [way], policy, errors.PermissionDenied, log)
        self._let_in.put(key, time.monotonic())

    def open(self, text: str, attributes: Mapping[str, str], platform: Platform) -> ImageSource:
        mode = _mode(attributes.get("image.resolvemode", ""))
        kind = attributes.get("image.recordtype", "")
        if kind not in TYPES:
            raise errors.InvalidArgument(f"invalid record type {kind}")
        limit = number(attributes, "image.layerlimit", 1, LAYERS_MAX)
        checksum = attributes.get("image.checksum", "")
        if checksum and not digests.is_digest(checksum):
            raise errors.InvalidArgument(f"invalid image checksum {errors.cut(checksum, 200)}")
        return ImageSource(self, parsed(text), platform, mode, TYPES[kind], limit, checksum)

    def meta(self, request: Any, text: str, platform: Platform, asker: Asker) -> Any:
        """Digest and configuration of an image, and on request its attestations."""
        wanted = parsed(text)
        mode = _mode(request.ResolveMode or request.Source.attrs.get("image.resolvemode", ""))
        answer = no_meta()
        root, remote = self.resolve(wanted, platform, mode, asker)
        answer.Image.Digest = root["digest"]
        checksum = request.Source.attrs.get("image.checksum", "")
        _check(wanted, root["digest"], checksum)
        with remote.opened() if remote is not None else nullcontext():
            if not request.Image.NoConfig:
                answer.Image.Config = self.find(wanted, root, platform, remote).config
            if request.Image.AttestationChain or request.Image.ResolveAttestations:
                self._attestations(answer.Image, root, platform, remote, list(request.Image.ResolveAttestations))
        return answer

    def config(self, text: str, platform: Platform, mode: str, asker: Asker) -> tuple[str, str, bytes]:
        """(full name, digest, configuration), for frontends of this process and LLBBridge.ResolveImageConfig."""
        wanted = parsed(text)
        root, remote = self.resolve(wanted, platform, _mode(mode), asker)
        return str(wanted), root["digest"], self.find(wanted, root, platform, remote).config

    def resolve(
        self, wanted: Reference, platform: Platform, mode: str, asker: Asker
    ) -> tuple[Descriptor, Remote | None]:
        """What a name stands for now, and the registry where this host has not all of it."""
        remote = Remote(self.access, wanted, asker)
        if mode != "pull":
            found = self._local(wanted, platform)
            if found is not None:
                return found, None
        if wanted.digest and self.documents.here(wanted.digest) is not None:
            return self.documents.root(wanted.digest), remote
        return remote.resolve(), remote

    def _local(self, wanted: Reference, platform: Platform) -> Descriptor | None:
        """The engine's image of that name, where it is for that platform, and its documents are here."""
        names = [f"{wanted.name}:{wanted.tag or reference.DEFAULT_TAG}"]
        if wanted.digest:
            names.append(f"{wanted.name}@{wanted.digest}")
        for name in names:
            target = self.worker.images.get(name)
            if target is None or (wanted.digest and target["digest"] != wanted.digest):
                continue
            try:
                image = self.documents.find(target, platform, None, str(wanted))
            except (errors.NotFound, errors.InvalidArgument, errors.FailedPrecondition):
                continue
            asked = image_spec.Platform(platform.os, platform.architecture, platform.variant)
            if image_spec.platform_rank(asked, image.platform) is not None:
                return target
        return None

    def _attestations(
        self, answer: Any, root: Descriptor, platform: Platform, remote: Remote | None, predicates: list[str]
    ) -> None:
        """The manifest of statements about the image for the platform, in the same index."""
        if root["mediaType"] not in image_spec.INDEXES:
            return
        chain = answer.AttestationChain
        chain.Root = root["digest"]
        data = self.documents.read(root, remote)
        _add_blob(chain, root, data)
        index = image_spec.index(image_spec.decode(data, "index"))
        asked = image_spec.Platform(platform.os, platform.architecture, platform.variant)
        fitting = image_spec.choose(index["manifests"], asked)
        if not fitting:
            return
        chain.ImageManifest = fitting[0]["digest"]
        for entry in index["manifests"]:
            annotations = entry.get("annotations") or {}
            if annotations.get("vnd.docker.reference.type") != ATTESTATION:
                continue
            if annotations.get("vnd.docker.reference.digest") != chain.ImageManifest:
                continue
            chain.AttestationManifest = entry["digest"]
            data = self.documents.read(entry, remote)
            _add_blob(chain, entry, data)
            document = image_spec.manifest(image_spec.decode(data, "manifest"))
            for layer in document["layers"]:
                predicate = (layer.get("annotations") or {}).get("in-toto.io/predicate-type")
                if predicate and predicate in predicates:
                    _add_blob(chain, layer, self.documents.read(layer, remote, manifest=False))
            return


def _add_blob(chain: Any, descriptor: Descriptor, data: bytes) -> None:
    blob = chain.Blobs[descriptor["digest"]]
    blob.data = data
    blob.descriptor.media_type = descriptor["mediaType"]
    blob.descriptor.digest = descriptor["digest"]
    blob.descriptor.size = descriptor["size"]
    for key, value in (descriptor.get("annotations") or {}).items():
        blob.descriptor.annotations[key] = value


def _mode(text: str) -> str:
    mode = text or "default"
    if mode not in MODES:
        raise errors.InvalidArgument(f"invalid resolvemode: {errors.cut(mode, 100)}")
    return mode


def parsed(text: str) -> Reference:
    """A reference in its full form. Raises InvalidArgument."""
    try:
        return reference.parse(text).with_default_tag()
    except reference.ReferenceError_ as error:
        raise errors.InvalidArgument(f"failed to parse image reference {errors.cut(text, 300)!r}: {error}") from None


def _check(wanted: Reference, found: str, checksum: str) -> None:
    if checksum and found != checksum:
        raise errors.FailedPrecondition(
            f"image digest {found} for {wanted} does not match expected checksum {checksum}"
        )


class ImageSource(ImageAsSource):
    """One image for one platform."""

    def __init__(
        self,
        images: Images,
        wanted: Reference,
        platform: Platform,
        mode: str,
        kind: str,
        limit: int | None,
        checksum: str,
    ) -> None:
        super().__init__(images.worker, str(wanted), platform, limit)
        self._images = images
        self._wanted = wanted
        self._mode = mode
        self._kind = kind
        self._checksum = checksum

    def find(self, asker: Asker) -> Image:
        root, remote = self._images.resolve(self._wanted, self.platform, self._mode, asker)
        _check(self._wanted, root["digest"], self._checksum)
        self.foreign = remote is not None
        return self._images.find(self._wanted, root, self.platform, remote)

    def blobs(self, asker: Asker) -> Remote:
        # They are asked for by digest, whatever the tag stands for by then.
        return Remote(self._images.access, self._wanted, asker)

    def kind(self, image: Image) -> Kind:
        digest = f"@{image.root['digest']}" if not self._wanted.digest else ""
        return Kind(self._kind, f"pulled from {self.name}{digest}")

    def material(self) -> Material:
        return Material("image", self.name, self.pin, self.platform)

    def close(self) -> None:
        """It holds nothing."""
