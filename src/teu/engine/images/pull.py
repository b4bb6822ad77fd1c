# SPDX-License-Identifier: Apache-2.0
"""`pull`: from a registry to a ready snapshot, as messages for the client's progress bars.

The order is that of containerd's own client: resolve the reference; fetch the documents; download layers,
some at a time, straight into containerd's content store; as soon as the next layer of the chain is there, have
it unpacked; then label what keeps what, and only then give the image its name. All under a lease: whatever
breaks, nothing but garbage is left, and that is collected. Called by routes/images.

DOWNLOADS layers are under way at once, each from the socket into containerd through a bounded queue, so memory does
not grow with a layer. Digests are checked by containerd at the commit, diff ids after the unpacking. A transfer that
breaks goes on by Range; what stays broken is aborted, and never resumed from.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypedDict, cast

from teu.engine.backend import containerd, content
from teu.engine.core import errors
from teu.engine.core.departure import NOBODY, Departure
from teu.engine.images import registries, unpack
from teu.engine.images.store import INDEX_DEPTH
from teu.engine.images.transfer import Message, sources, status
from teu.oci import digest as digests
from teu.oci import distribution, image_spec

if TYPE_CHECKING:
    from teu.engine.images.store import Images
    from teu.oci.image_spec import Descriptor, ImageConfig, Manifest, Platform, PlatformMembers
    from teu.oci.reference import Reference
    from teu.oci.registries import Registries

DOWNLOADS = 3
PROGRESS_SECONDS = 0.1
INDEX_DOCUMENTS = 64  # asked for on the way through indexes in indexes


class Cancelled(Exception):
    """The client went away, or another layer failed."""


def pull(
    images: Images,
    wanted: Reference,
    platform: Platform | None,
    auth: str,
    every: bool,
    departure: Departure = NOBODY,
) -> Iterator[Message]:
    """Messages of `docker pull`; `every` means all tags of the repository."""
    with registries.to_pull(images.settings, wanted.domain, auth) as registry, departure.during(registry.abort):
        try:
            if not every:
                yield from _pull(images, registry, wanted, platform, departure)
                return
            for tag in registry.tags(wanted.path):
                yield from _pull(images, registry, wanted._replace(tag=tag), platform, departure)
        except distribution.RegistryError as error:
            raise registries.convert(error, wanted) from None
        except image_spec.SpecError as error:
            raise errors.EngineError(f"{wanted.familiar()}: {error}") from None


def _resolve(
    registry: Registries, wanted: Reference, platform: Platform | None
) -> tuple[Descriptor, list[tuple[Descriptor, bytes]], Manifest]:
    """The target's descriptor, the documents from the top down, and the manifest."""
    target, data = registry.manifest(wanted.path, wanted.digest or wanted.tag)
    documents = _manifest_below(registry, wanted, target, data, platform)
    descriptor, data = documents[-1]
    target_type = descriptor["mediaType"]
    if target_type == image_spec.DOCKER_SCHEMA1:
        raise errors.EngineError(
            f"{wanted.familiar()} has a manifest of schema 1, a format that was given up in 2019: push it again with a"
            " current tool"
        )
    if target_type not in image_spec.MANIFESTS:
        raise errors.EngineError(f"unsupported media type {target_type} of {wanted.familiar()}")
    manifest = image_spec.manifest(image_spec.decode(data, "manifest"))
    if not image_spec.is_image(manifest):
        raise errors.EngineError(f"{wanted.familiar()} is no container image but a {manifest['config']['mediaType']}")
    return target, documents, manifest


def _manifest_below(
    registry: Registries, wanted: Reference, target: Descriptor, data: bytes, platform: Platform | None
) -> list[tuple[Descriptor, bytes]]:
    """The way from the target down to the manifest for the platform, through indexes in indexes."""
    # Each step: a document, and what is still to be tried below it, the best last.
    way = [((target, data), _choices(target, data, platform))]
    asked = 0
    while way:
        (descriptor, data), below = way[-1]
        if descriptor["mediaType"] not in image_spec.INDEXES:
            return [document for document, _ in way]
        if not below or len(way) > INDEX_DEPTH:
            way.pop()
            continue
        chosen = below.pop()
        asked += 1
        if asked > INDEX_DOCUMENTS:
            raise image_spec.SpecError(f"more than {INDEX_DOCUMENTS} documents of indexes in indexes")
        found, data = registry.manifest(wanted.path, chosen["digest"])
        if found["size"] != chosen["size"]:
            raise image_spec.SpecError(f"manifest {chosen['digest']} has another size than its index says")
        way.append(((found, data), _choices(found, data, platform)))
    raise errors.NotFound(
        f"no matching manifest for {platform or image_spec.host_platform()} in the manifest list entries"
    )


def _choices(descriptor: Descriptor, data: bytes, platform: Platform | None) -> list[Descriptor]:
    if descriptor["mediaType"] not in image_spec.INDEXES:
        return []
    entries = image_spec.index(image_spec.decode(data, "index"))["manifests"]
    return image_spec.choose(entries, platform or image_spec.host_platform())[::-1]


def _up_to_date(images: Images, wanted: Reference, digest: str, platform: Platform | None) -> bool:
    """Whether the name is the very image that a pull would bring: of an index, the best one for the platform."""
    name = images.get_name(str(wanted))
    if name is None or name.target["digest"] != digest:
        return False
    try:
        details = images.of(name)
    except errors.EngineError:
        return False
    if platform or details.manifest_digest != digest:
        own = image_spec.platform_of(details.config)
        if image_spec.platform_rank(platform or image_spec.host_platform(), own) != 0:
            return False
    return not details.chain_id or unpack.snapshot_exists(images.client, images.snapshotter, details.chain_id)


def _pull(
    images: Images, registry: Registries, wanted: Reference, platform: Platform | None, departure: Departure
) -> Iterator[Message]:
    client = images.client
    current = wanted.digest
    if not current:
        # Whatever the answer to HEAD is, GET has the last word: some know no HEAD, and a refusal has no body there.
        try:
            current = registry.resolve(wanted.path, wanted.tag)["digest"]
        except distribution.Aborted:
            raise
        except distribution.RegistryError:
            pass
    if current and _up_to_date(images, wanted, current, platform):
        yield {"status": f"Pulling from {_shown_path(wanted)}", "id": wanted.tag or wanted.digest}
        yield {"status": f"Digest: {current}"}
        yield {"status": f"Status: Image is up to date for {wanted.familiar()}"}
        return
    target, documents, manifest = _resolve(registry, wanted, platform)
    yield {"status": f"Pulling from {_shown_path(wanted)}", "id": wanted.tag or wanted.digest}
    with client.lease() as lease:
        source = content.source_label(wanted.domain, wanted.path)
        config_data = _config(images, registry, wanted, manifest)
        config = image_spec.config(image_spec.decode(config_data, "image configuration"), len(manifest["layers"]))
        if platform and image_spec.platform_rank(platform, image_spec.platform_of(config)) is None:
            raise errors.NotFound(
                f"image with reference {wanted.familiar()} was found but does not match the specified platform: "
                f"wanted {platform}, actual: {image_spec.platform_of(config)}"
            )
        job = _Job(images, registry, wanted, manifest, config, lease, source, departure)
        yield from job.messages()
        content.put(client, config_data, lease, source)
        content.check_sizes(client, [manifest["config"], *manifest["layers"]])
        for number, (descriptor, data) in enumerate(reversed(documents)):
            labels = content.children_labels(image_spec.decode(data, "manifest"))
            if number:
                # Of an index only what was fetched is kept; the others are not here.
                below = documents[len(documents) - number][0]["digest"]
                labels = {key: value for key, value in labels.items() if value == below}
            content.put(client, data, lease, {**labels, **sources(images, descriptor["digest"], source)})
        details = images.details(target, meant=documents[-1][0]["digest"])
        images.keep_snapshot(details)
        before = images.get_name(str(wanted))
        images.add(target, [str(wanted)], details)
    images.events.publish("image", "pull", wanted.familiar(), {"name": wanted.familiar_name})
    yield {"status": f"Digest: {target['digest']}"}
    same = before is not None and before.target["digest"] == target["digest"]
    if same and before is not None and before.meant == (images.get_name(str(wanted)) or before).meant:
        yield {"status": f"Status: Image is up to date for {wanted.familiar()}"}
    else:
        yield {"status": f"Status: Downloaded newer image for {wanted.familiar()}"}


def _shown_path(wanted: Reference) -> str:
    return wanted.path


def _config(images: Images, registry: Registries, wanted: Reference, manifest: Manifest) -> bytes:
    descriptor = manifest["config"]
    try:
        return content.read(images.client, descriptor["digest"])
    except containerd.NotFound:
        pass
    data = b"".join(registry.blob(wanted.path, descriptor))
    digester = digests.for_digest(descriptor["digest"])
    digester.update(data)
    if digester.digest() != descriptor["digest"]:
        raise errors.EngineError(f"image config verification failed for digest {descriptor['digest']}")
    return data


class _Job:
    """The layers of one pull: downloads in threads, unpacking in another, messages for the client."""

    def __init__(
        self,
        images: Images,
        registry: Registries,
        wanted: Reference,
        manifest: Manifest,
        config: ImageConfig,
        lease: str,
        source: dict[str, str],
        departure: Departure,
    ) -> None:
        self._departure = departure
        self._images, self._registry, self._wanted = images, registry, wanted
        self._manifest, self._config, self._lease, self._source = manifest, config, lease, source
        self._layers = manifest["layers"]
        self._queue: queue.Queue[Message | None] = queue.Queue()
        self._cancel = threading.Event()
        self._done = [threading.Event() for _ in self._layers]
        self._failure: BaseException | None = None
        self._slots = threading.Semaphore(int(images.settings.get("max-concurrent-downloads") or DOWNLOADS))

    def messages(self) -> Iterator[Message]:
        """Runs the job; ends when every layer is unpacked. Raises what went wrong first."""
        worker = threading.Thread(target=self._guard, args=(self._run,), name="pull")
        for layer in self._layers:
            yield status("Pulling fs layer", layer["digest"])
        worker.start()
        try:
            while (message := self._queue.get()) is not None:
                yield message
        finally:
            self._cancel.set()
            worker.join()
        if self._failure is not None:
            raise self._failure

    def _guard(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            if self._failure is None:
                self._failure = error
            self._cancel.set()
        finally:
            if function == self._run:
                self._queue.put(None)

    def _run(self) -> None:
        chains = image_spec.chain_ids(self._config["rootfs"]["diff_ids"])
        # A chain that is there from below needs no download; content of it may have been collected.
        have = unpack.unpacked(self._images.client, self._images.snapshotter, chains, self._lease)
        threads = []
        for number, layer in enumerate(self._layers):
            if number <= have:
                self._done[number].set()
                continue
            thread = threading.Thread(target=self._guard, args=(self._download, number, layer), name="layer")
            threads.append(thread)
            thread.start()
        try:
            unpack.layers(
                self._images.client,
                self._images.snapshotter,
                self._manifest,
                self._config,
                self._lease,
                self._available,
                self._unpacking,
                self._departure,
                have,
            )
        finally:
            if self._failure is not None:
                self._cancel.set()
            for thread in threads:
                thread.join()
        # Layers that were unpacked before but whose content is gone would make the image unsavable: fetch them.
        for number, layer in enumerate(self._layers):
            if number <= have:
                content.keep(self._images.client, layer["digest"], self._lease)
                if not content.exists(self._images.client, layer["digest"]):
                    self._download(number, layer)

    def _available(self, number: int) -> None:
        while not self._done[number].wait(0.2):
            if self._cancel.is_set():
                raise self._failure or Cancelled
        if self._cancel.is_set():
            raise self._failure or Cancelled

    def _unpacking(self, number: int, phase: str) -> None:
        layer = self._layers[number]
        size = layer["size"]
        if phase == "exists":
            self._queue.put(status("Already exists", layer["digest"]))
        elif phase == "extracting":
            self._queue.put(status("Extracting", layer["digest"], {"current": 0, "total": size}))
        else:
            self._queue.put(status("Extracting", layer["digest"], {"current": size, "total": size}))
            self._queue.put(status("Pull complete", layer["digest"]))

    def _download(self, number: int, layer: Descriptor) -> None:
        if not self._slots.acquire(blocking=False):
            self._queue.put(status("Waiting", layer["digest"]))
            while not self._slots.acquire(timeout=0.2):
                if self._cancel.is_set():
                    raise Cancelled
        try:
            self._fetch(layer)
        finally:
            self._slots.release()
        self._queue.put(status("Download complete", layer["digest"]))
        self._done[number].set()

    def _fetch(self, layer: Descriptor) -> None:
        client, digest, size = self._images.client, layer["digest"], layer["size"]
        ref = f"layer-{digest}"
        kept = False
        try:
            with content.Writer(client, ref, digest, size, self._lease, self._source, self._departure) as writer:
                if writer.offset > size:
                    raise errors.EngineError(f"the ingest {ref} is longer than the layer")
                told = 0.0
                for chunk in self._registry.blob(self._wanted.path, layer, writer.offset):
                    if self._cancel.is_set():
                        raise Cancelled
                    writer.write(chunk)
                    if time.monotonic() - told >= PROGRESS_SECONDS:
                        told = time.monotonic()
                        self._queue.put(status("Downloading", digest, {"current": writer.offset, "total": size}))
                self._queue.put(status("Downloading", digest, {"current": size, "total": size}))
                self._queue.put(status("Verifying Checksum", digest))
                try:
                    writer.commit()
                except containerd.FailedPrecondition as error:
                    raise errors.EngineError(
                        f"filesystem layer verification failed for digest {digest}: {error}"
                    ) from None
                kept = not writer.existed
        except content.Present:
            pass
        except distribution.Aborted:
            raise  # what has come is good: the next pull goes on from there
        except (errors.EngineError, distribution.RegistryError):
            # Broken bytes must not be what a later pull goes on from.
            content.abort(client, ref)
            raise
        if not kept:
            content.keep(client, digest, self._lease)


class DistributionInfo(TypedDict):
    """The API's DistributionInspect."""

    Descriptor: Descriptor
    Platforms: list[PlatformMembers]


def distribution_info(images: Images, wanted: Reference, auth: str) -> DistributionInfo:
    """GET /distribution/{name}/json."""
    wanted = wanted.with_default_tag()
    with registries.to_pull(images.settings, wanted.domain, auth) as registry:
        try:
            target, data = registry.manifest(wanted.path, wanted.digest or wanted.tag)
            document = image_spec.decode(data, "manifest")
            if target["mediaType"] in image_spec.INDEXES:
                platforms = [entry.get("platform") or {} for entry in image_spec.index(document)["manifests"]]
            else:
                config_data = b"".join(registry.blob(wanted.path, image_spec.manifest(document)["config"]))
                config = image_spec.decode(config_data, "image configuration")
                shown = {key: config[key] for key in ("architecture", "os", "variant") if config.get(key)}
                platforms = [cast("PlatformMembers", shown)]
        except distribution.RegistryError as error:
            raise registries.convert(error, wanted) from None
        except image_spec.SpecError as error:
            raise errors.EngineError(f"{wanted.familiar()}: {error}") from None
    return {"Descriptor": target, "Platforms": platforms}
