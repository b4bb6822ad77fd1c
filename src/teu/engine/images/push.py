# SPDX-License-Identifier: Apache-2.0
"""`push`: an image's blobs and documents from containerd's content store to a registry. Called by routes/images."""

from __future__ import annotations

import collections
import functools
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.backend import containerd, content
from teu.engine.core.departure import NOBODY, Departure
from teu.engine.core.errors import EngineError, NotFound
from teu.engine.images import absent, packing, platforms, registries
from teu.engine.images.transfer import Detail, Message, sources, status
from teu.oci import distribution, image_spec

if TYPE_CHECKING:
    from teu.engine.images.store import Images, Name
    from teu.oci.image_spec import Descriptor, Platform
    from teu.oci.reference import Reference

INDEX_MAX = 1000  # manifests of an index that is pushed whole
UPLOADS = 5  # at the same time, where teud.yaml says nothing


class Parts(NamedTuple):
    """What is pushed: layers, configurations, and manifests, each before what names it. `absent` are manifests that are
    not here: the registry must have them already, in that repository or in one that the index came from."""

    layers: list[Descriptor]
    configs: list[Descriptor]
    manifests: list[Descriptor]
    absent: Sequence[Descriptor] = ()


def push(
    images: Images, wanted: Reference, auth: str, departure: Departure = NOBODY, platform: Platform | None = None
) -> Iterator[Message]:
    """Messages of `docker push`; without a tag all tags of the repository; with a platform its manifest alone."""
    names = [
        name
        for name in images.names()
        if (own := name.reference) and own.name == wanted.name and own.tag and wanted.tag in ("", own.tag)
    ]
    if not names:
        raise NotFound(f"An image does not exist locally with the tag: {wanted.familiar_name}")
    if platform:
        for name in names:
            images.image(name, platform)  # raises NotFound where there is none for it
    yield {"status": f"The push refers to repository [{wanted.name}]"}
    with registries.connect(images.settings, wanted.domain, auth) as registry, departure.during(registry.abort):
        for name in names:
            try:
                if not images.by_target:  # there a push changes no digest
                    name = packing.packed(images, name, departure)
                parts = _chosen(images, name, platform)
                for manifest in parts.absent:
                    yield from _bring(images, registry, wanted, name, manifest)
                yield from _push(images, registry, wanted, name, parts, departure)
            except distribution.Unauthorized as error:
                raise EngineError(f"denied: requested access to the resource is denied: {error}") from None
            except (distribution.RegistryError, image_spec.SpecError) as error:
                raise EngineError(str(error)) from None


class _Blobs:
    """The layers and configurations of a name on their way, several at a time."""

    def __init__(
        self,
        images: Images,
        registry: distribution.Registry,
        wanted: Reference,
        name: Name,
        parts: Parts,
        departure: Departure,
    ) -> None:
        self._images, self._registry, self._wanted, self._departure = images, registry, wanted, departure
        self._shown = name.reference.familiar() if name.reference else name.name
        self._layers = {layer["digest"] for layer in parts.layers}
        each = {descriptor["digest"]: descriptor for descriptor in (*parts.configs, *parts.layers)}
        order = dict.fromkeys(descriptor["digest"] for descriptor in (*parts.layers, *parts.configs))
        self._waiting = collections.deque(each[digest] for digest in order)
        self._told: queue.Queue[Message | None] = queue.Queue()
        self._failures: list[BaseException] = []

    def messages(self) -> Iterator[Message]:
        """Ends when the registry has all of them. Raises what went wrong first."""
        limit = int(self._images.settings.get("max-concurrent-uploads") or UPLOADS)
        workers = [threading.Thread(target=self._work, name="push") for _ in range(min(limit, len(self._waiting)))]
        running = len(workers)
        for worker in workers:
            worker.start()
        try:
            while running:
                message = self._told.get()
                if message is None:
                    running -= 1
                else:
                    yield message
        finally:
            if running:  # nobody listens any more
                self._end(GeneratorExit())
            for worker in workers:
                worker.join()
        if self._failures:
            raise self._failures[0]

    def _end(self, error: BaseException) -> None:
        """The others need not go on."""
        self._failures.append(error)
        self._waiting.clear()
        self._registry.abort()

    def _work(self) -> None:
        try:
            while self._waiting and not self._failures:
                try:
                    descriptor = self._waiting.popleft()
                except IndexError:  # another has taken the last one
                    return
                self._send(descriptor)
        except BaseException as error:
            self._end(error)
        finally:
            self._told.put(None)

    def _tell(self, text: str, descriptor: Descriptor, progress: Detail | None = None) -> None:
        """Of layers; nobody is told of configurations."""
        if descriptor["digest"] in self._layers:
            self._told.put(status(text, descriptor["digest"], progress))

    def _send(self, descriptor: Descriptor) -> None:
        client, path, digest = self._images.client, self._wanted.path, descriptor["digest"]
        if self._registry.has_blob(path, digest):
            self._tell("Layer already exists", descriptor)
            return
        if not content.exists(client, digest):
            raise EngineError(f"{self._shown} cannot be pushed as it is: blob {digest} is not here{_REMEDY}")
        address = ""
        label = content.info(client, digest).labels.get(content.SOURCE_LABEL + self._wanted.domain, "")
        source = next((each for each in label.split(",") if each and each != path), "")
        if source:
            try:
                address = self._registry.mount_blob(path, digest, source)
            except distribution.RegistryError:
                address = ""
            else:
                if not address:
                    self._tell(f"Mounted from {source}", descriptor)
                    return
        self._tell("Pushing", descriptor, {"current": 0, "total": descriptor["size"]})
        # http.client sends an iterable of bytes as it comes; a retry starts it again.
        chunks = functools.partial(content.chunks, client, digest, departure=self._departure)
        self._registry.upload(path, descriptor, chunks, address)
        content.label(client, digest, sources(self._images, digest, content.source_label(self._wanted.domain, path)))
        self._tell("Pushing", descriptor, {"current": descriptor["size"], "total": descriptor["size"]})
        self._tell("Pushed", descriptor)


def _push(
    images: Images, registry: distribution.Registry, wanted: Reference, name: Name, parts: Parts, departure: Departure
) -> Iterator[Message]:
    client = images.client
    reference = name.reference
    assert reference is not None
    for layer in parts.layers:
        yield status("Preparing", layer["digest"])
    yield from _Blobs(images, registry, wanted, name, parts, departure).messages()
    digest, size = "", 0
    for descriptor in parts.manifests:
        digest = descriptor["digest"]
        data = content.read(client, digest)
        size = len(data)
        where = reference.tag if descriptor is parts.manifests[-1] else digest
        registry.put_manifest(wanted.path, where, descriptor["mediaType"], data)
        content.label(client, digest, sources(images, digest, content.source_label(wanted.domain, wanted.path)))
    images.events.publish("image", "push", reference.familiar(), {"name": reference.familiar_name})
    yield {"status": f"{reference.tag}: digest: {digest} size: {size}"}
    yield {"progressDetail": {}, "aux": {"Tag": reference.tag, "Digest": digest, "Size": size}}


_REMEDY = ", nor at the registry: pull the image with --platform all, or push one that is here with --platform"


def _bring(
    images: Images, registry: distribution.Registry, wanted: Reference, name: Name, manifest: Descriptor
) -> Iterator[Message]:
    """That the repository has a manifest which is not here."""
    known = content.info(images.client, name.target["digest"]).labels.get(content.SOURCE_LABEL + wanted.domain, "")
    sources_ = [each for each in known.split(",") if each and each != wanted.path]
    source = absent.brought(registry, wanted.path, manifest, sources_)
    if source is None:
        what = image_spec.platform_of(manifest.get("platform") or {})
        raise EngineError(
            f"{wanted.familiar_name} cannot be pushed as it is: its manifest {manifest['digest']} ({what}) is not "
            f"here{_REMEDY}"
        )
    if source:
        yield status(f"Mounted from {source}", manifest["digest"])


def _chosen(images: Images, name: Name, platform: Platform | None) -> Parts:
    """What goes: the manifest for the platform; else, with ids of targets, the target as it is, whose digest is the
    same at the registry then; else an index where all of it is here, or the manifest that is meant."""
    if platform is not None:
        details = images.image(name, platform).details
        return _of_this_host(images, name._replace(chosen=details.manifest_digest))
    if images.by_target:
        return _entire(images, name)
    return _whole(images, name) or _of_this_host(images, name)


def _entire(images: Images, name: Name) -> Parts:
    """A target and all below it, also what is not here."""
    try:
        found = platforms.parts(images.client, name.target, sizes=False)
    except image_spec.SpecError as error:
        raise EngineError(f"{name.name}: {error}") from None
    below: dict[str, dict[str, Descriptor]] = {"layers": {}, "configs": {}, "manifests": {}}
    for part in found:
        if part.manifest:
            below["layers"].update({layer["digest"]: layer for layer in part.manifest["layers"]})
            below["configs"][part.manifest["config"]["digest"]] = part.manifest["config"]
            below["manifests"][part.digest] = part.descriptor
    inner = sorted({(-depth, digest) for part in found for depth, digest in enumerate(part.way) if depth})
    for _, digest in inner:
        media_type = image_spec.media_type_of(images.document(digest, "index"))
        below["manifests"][digest] = {"mediaType": media_type, "digest": digest, "size": 0}
    below["manifests"].pop(name.target["digest"], None)
    return Parts(
        list(below["layers"].values()),
        list(below["configs"].values()),
        [*below["manifests"].values(), name.target],
        [part.descriptor for part in found if part.manifest is None],
    )


def _of_this_host(images: Images, name: Name) -> Parts:
    """The one manifest that is meant: of a pulled index the other platforms' parts are usually not here."""
    details = images.of(name)
    target: Descriptor = {
        "mediaType": image_spec.media_type_of(details.manifest, name.target["mediaType"]),
        "digest": details.manifest_digest,
        "size": 0,
    }
    return Parts(list(details.manifest["layers"]), [details.manifest["config"]], [target])


def _whole(images: Images, name: Name) -> Parts | None:
    """All of an index, as a build of several platforms or with attestations makes it; None where it is none, or not
    all of it is here."""
    try:
        document = images.document(name.target["digest"], "manifest")
        if image_spec.media_type_of(document, name.target["mediaType"]) not in image_spec.INDEXES:
            return None
        entries = image_spec.index(document)["manifests"]
        if not entries or len(entries) > INDEX_MAX:
            return None
        parts = Parts([], [], [])
        known: set[str] = set()
        for entry in entries:
            manifest = image_spec.manifest(images.document(entry["digest"], "manifest"))
            for descriptor, kind in (
                *((layer, parts.layers) for layer in manifest["layers"]),
                (manifest["config"], parts.configs),
                (entry, parts.manifests),
            ):
                if descriptor["digest"] not in known:
                    known.add(descriptor["digest"])
                    kind.append(descriptor)
        if not all(content.exists(images.client, one["digest"]) for one in (*parts.layers, *parts.configs)):
            return None
    except containerd.Unavailable:
        raise
    except (containerd.Error, NotFound, image_spec.SpecError):
        return None
    parts.manifests.append(name.target)
    return parts
