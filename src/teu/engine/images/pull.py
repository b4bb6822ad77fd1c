# SPDX-License-Identifier: Apache-2.0
"""`pull`: from a registry to a ready snapshot, as messages for the client's progress bars.

The order is that of containerd's own client: resolve the reference; fetch the documents; download layers,
some at a time, straight into containerd's content store; as soon as the next layer of the chain is there, have
it unpacked; then label what keeps what, and only then give the image its name. All under a lease: whatever
breaks, nothing but garbage is left, and that is collected. Called by routes/images.

DOWNLOADS layers are under way at once, each from the socket into containerd through a bounded queue, so memory does
not grow with a layer. Digests are checked by containerd at the commit, diff ids after the unpacking. A transfer that
breaks goes on by Range. What has come of a layer when a pull ends early (its client leaves, the registry does, a daemon
dies) stays in containerd for a day, and a later pull goes on from there; broken bytes are aborted, and never resumed
from.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

from teu.engine.backend import containerd, content
from teu.engine.core import errors
from teu.engine.core.departure import NOBODY, Departure
from teu.engine.images import registries, unpack
from teu.engine.images.platforms import INDEX_DEPTH, MANIFESTS_MAX, Choice, attested, fitting
from teu.engine.images.transfer import Message, sources, status
from teu.oci import digest as digests
from teu.oci import distribution, image_spec

if TYPE_CHECKING:
    from teu.engine.images.store import Images, Name
    from teu.oci.image_spec import Descriptor, ImageConfig, Manifest, Platform, PlatformMembers
    from teu.oci.reference import Reference
    from teu.oci.registries import Registries

DOWNLOADS = 3
PROGRESS_SECONDS = 0.1
INDEX_DOCUMENTS = 64  # asked for on the way through indexes in indexes


class Cancelled(Exception):
    """The client went away, or another layer failed."""


class _Found(NamedTuple):
    """One manifest that is to be pulled: the documents from the target down to its own, and what it says. Only an
    image's configuration is read."""

    documents: list[tuple[Descriptor, bytes]]
    manifest: Manifest
    image: bool

    @property
    def digest(self) -> str:
        return self.documents[-1][0]["digest"]


def pull(
    images: Images,
    wanted: Reference,
    choice: Choice,
    auth: str,
    every: bool,
    departure: Departure = NOBODY,
) -> Iterator[Message]:
    """Messages of `docker pull`; `every` means all tags of the repository."""
    with registries.to_pull(images.settings, wanted.domain, auth) as registry, departure.during(registry.abort):
        try:
            if not every:
                yield from _pull(images, registry, wanted, choice, departure)
                return
            for tag in registry.tags(wanted.path):
                yield from _pull(images, registry, wanted._replace(tag=tag), choice, departure)
        except distribution.RegistryError as error:
            raise registries.convert(error, wanted) from None
        except image_spec.SpecError as error:
            raise errors.EngineError(f"{wanted.familiar()}: {error}") from None


def _resolve(registry: Registries, wanted: Reference, choice: Choice) -> tuple[Descriptor, list[_Found]]:
    """The target's descriptor, and what of it is to be pulled: first the one that the name means on this host."""
    target, data = registry.manifest(wanted.path, wanted.digest or wanted.tag)
    if not choice.several:
        documents = _manifest_below(registry, wanted, target, data, choice.single)
        return target, [_checked(wanted, documents, True)]
    ways = list(_leaves(registry, wanted, [(target, data)]))
    leaves = [way[-1][0] for way in ways]
    by_platform: list[str] = []
    for platform in choice.platforms:
        fitting_ones = image_spec.choose(leaves, platform)
        if not fitting_ones:
            raise _no_match(platform)
        by_platform.append(fitting_ones[0]["digest"])
    chosen = [*by_platform, *(one["digest"] for one in leaves if choice.everything or attested(one) in by_platform)]
    first = next((one["digest"] for one in image_spec.choose(leaves, image_spec.host_platform())), "")
    by_digest = {way[-1][0]["digest"]: way for way in reversed(ways)}
    found = []
    for digest in sorted(dict.fromkeys(chosen), key=lambda each: each != first):
        *above, (descriptor, _) = by_digest[digest]
        document = _fetched(registry, wanted, descriptor) if above else (target, data)
        found.append(_checked(wanted, [*above, document], digest in by_platform))
    if not any(one.image for one in found):
        raise errors.EngineError(f"{wanted.familiar()} has no container image")
    return target, sorted(found, key=lambda one: not one.image)


def _checked(wanted: Reference, documents: list[tuple[Descriptor, bytes]], image: bool) -> _Found:
    """Raises EngineError for what is no manifest; with `image`, for what is no image."""
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
    is_image = image_spec.is_image(manifest)
    if image and not is_image:
        raise errors.EngineError(f"{wanted.familiar()} is no container image but a {manifest['config']['mediaType']}")
    layers = all(image_spec.is_layer(layer["mediaType"]) for layer in manifest["layers"])
    return _Found(documents, manifest, image or is_image and layers)


def _fetched(registry: Registries, wanted: Reference, descriptor: Descriptor) -> tuple[Descriptor, bytes]:
    found, data = registry.manifest(wanted.path, descriptor["digest"])
    if found["size"] != descriptor["size"]:
        raise image_spec.SpecError(f"manifest {descriptor['digest']} has another size than its index says")
    return found, data


def _leaves(
    registry: Registries, wanted: Reference, way: list[tuple[Descriptor, bytes]]
) -> Iterator[list[tuple[Descriptor, bytes]]]:
    """The ways from the target to each manifest below it, which is not fetched itself: the last of a way is the entry
    of its index."""
    asked = itertools.count()

    def walk(way: list[tuple[Descriptor, bytes]]) -> Iterator[list[tuple[Descriptor, bytes]]]:
        descriptor, data = way[-1]
        if descriptor["mediaType"] not in image_spec.INDEXES:
            yield way
            return
        entries = image_spec.index(image_spec.decode(data, "index"))["manifests"]
        if len(entries) > MANIFESTS_MAX:
            raise image_spec.SpecError(f"more than {MANIFESTS_MAX} manifests in an index")
        for entry in entries:
            if entry["mediaType"] not in image_spec.INDEXES:
                yield [*way, (entry, b"")]
            elif len(way) <= INDEX_DEPTH:
                if next(asked) >= INDEX_DOCUMENTS:
                    raise image_spec.SpecError(f"more than {INDEX_DOCUMENTS} documents of indexes in indexes")
                yield from walk([*way, _fetched(registry, wanted, entry)])

    return walk(way)


def _no_match(platform: Platform | None) -> errors.NotFound:
    return errors.NotFound(
        f"no matching manifest for {platform or image_spec.host_platform()} in the manifest list entries"
    )


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
        found, data = _fetched(registry, wanted, chosen)
        way.append(((found, data), _choices(found, data, platform)))
    raise _no_match(platform)


def _choices(descriptor: Descriptor, data: bytes, platform: Platform | None) -> list[Descriptor]:
    if descriptor["mediaType"] not in image_spec.INDEXES:
        return []
    entries = image_spec.index(image_spec.decode(data, "index"))["manifests"]
    return image_spec.choose(entries, platform or image_spec.host_platform())[::-1]


def _up_to_date(images: Images, wanted: Reference, digest: str, choice: Choice) -> bool:
    """Whether the name is the very image that a pull would bring: of an index, the best one for the platform."""
    name = images.get_name(str(wanted))
    if name is None or name.target["digest"] != digest:
        return False
    if choice.several:
        return _all_here(images, name, choice)
    try:
        details = images.details(name.target, choice.single) if images.by_target else images.of(name)
    except errors.EngineError:
        return False
    if choice.single or details.manifest_digest != digest:
        own = image_spec.platform_of(details.config)
        if image_spec.platform_rank(choice.single or image_spec.host_platform(), own) != 0:
            return False
    return not details.chain_id or unpack.snapshot_exists(images.client, images.snapshotter, details.chain_id)


def _all_here(images: Images, name: Name, choice: Choice) -> bool:
    parts = images.parts(name, sizes=True)
    if choice.everything:
        return bool(parts) and all(part.whole for part in parts)
    chosen = []
    for platform in choice.platforms:
        best = next(iter(fitting(parts, platform)), None)
        if best is None or not best.whole:
            return False
        chosen.append(best.digest)
    return all(part.whole for part in parts if part.attests in chosen)


def _pull(
    images: Images, registry: Registries, wanted: Reference, choice: Choice, departure: Departure
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
    # With a policy an image that is here is looked at again: the policy or the signatures may be others than they were.
    if current and not registries.has_policy(images.settings) and _up_to_date(images, wanted, current, choice):
        yield {"status": f"Pulling from {_shown_path(wanted)}", "id": wanted.tag or wanted.digest}
        yield {"status": f"Digest: {current}"}
        yield {"status": f"Status: Image is up to date for {wanted.familiar()}"}
        return
    target, found = _resolve(registry, wanted, choice)
    ways = [[descriptor for descriptor, _ in one.documents] for one in found]
    registries.let_in(images.settings, registry, wanted, ways)
    yield {"status": f"Pulling from {_shown_path(wanted)}", "id": wanted.tag or wanted.digest}
    with client.lease() as lease:
        source = content.source_label(wanted.domain, wanted.path)
        for number, one in enumerate(found):
            # Of several platforms only the host's is unpacked: the others are with their first container.
            yield from _pull_one(images, registry, wanted, choice, one, lease, source, departure, number == 0)
        _keep_documents(images, found, lease, source)
        images.forget(target["digest"])
        details = images.details(target, meant=found[0].digest)
        images.keep_snapshot(details)
        before = images.get_name(str(wanted))
        images.add(target, [str(wanted)], details)
    images.events.publish("image", "pull", wanted.familiar(), {"name": wanted.familiar_name})
    yield {"status": f"Digest: {target['digest']}"}
    same = before is not None and before.target["digest"] == target["digest"] and not choice.several
    if same and before is not None and before.meant == (images.get_name(str(wanted)) or before).meant:
        yield {"status": f"Status: Image is up to date for {wanted.familiar()}"}
    else:
        yield {"status": f"Status: Downloaded newer image for {wanted.familiar()}"}


def _pull_one(
    images: Images,
    registry: Registries,
    wanted: Reference,
    choice: Choice,
    one: _Found,
    lease: str,
    source: dict[str, str],
    departure: Departure,
    unpacked: bool,
) -> Iterator[Message]:
    manifest, client = one.manifest, images.client
    config_data = _config(images, registry, wanted, manifest)
    config: ImageConfig | None = None
    if one.image:
        config = image_spec.config(image_spec.decode(config_data, "image configuration"), len(manifest["layers"]))
        own = image_spec.platform_of(config)
        if choice.platforms and all(image_spec.platform_rank(each, own) is None for each in choice.platforms):
            raise errors.NotFound(
                f"image with reference {wanted.familiar()} was found but does not match the specified platform: "
                f"wanted {', '.join(map(str, choice.platforms))}, actual: {own}"
            )
    job = _Job(images, registry, wanted, manifest, config if unpacked else None, lease, source, departure)
    yield from job.messages()
    content.put(client, config_data, lease, source)
    content.check_sizes(client, [manifest["config"], *manifest["layers"]])


def _keep_documents(images: Images, found: list[_Found], lease: str, source: dict[str, str]) -> None:
    """Store manifests and then the indexes above them, each with the labels that keep what of it was pulled."""
    kept: dict[str, tuple[Descriptor, bytes, set[str]]] = {}  # from the bottom up
    for one in found:
        for number, (descriptor, data) in reversed(list(enumerate(one.documents))):
            _, _, below = kept.setdefault(descriptor["digest"], (descriptor, data, set()))
            if number + 1 < len(one.documents):
                below.add(one.documents[number + 1][0]["digest"])
    indexes = {digest for digest, (_, _, below) in kept.items() if below}
    depth = {document[0]["digest"]: number for one in found for number, document in enumerate(one.documents)}
    for digest in sorted(kept, key=lambda each: (each in indexes, -depth[each])):
        descriptor, data, below = kept[digest]
        labels = content.children_labels(image_spec.decode(data, "manifest"))
        if digest in indexes:
            # Of an index only what was fetched is kept; the others are not here.
            labels = {key: value for key, value in labels.items() if value in below}
        content.put(images.client, data, lease, {**labels, **sources(images, descriptor["digest"], source)})


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
        config: ImageConfig | None,
        lease: str,
        source: dict[str, str],
        departure: Departure,
    ) -> None:
        """Without a configuration nothing is unpacked."""
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
        if self._config is None:
            self._only_download()
            return
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

    def _only_download(self) -> None:
        threads = []
        for number, layer in enumerate(self._layers):
            content.keep(self._images.client, layer["digest"], self._lease)
            if content.exists(self._images.client, layer["digest"]):
                self._queue.put(status("Already exists", layer["digest"]))
                continue
            threads.append(threading.Thread(target=self._guard, args=(self._download, number, layer), name="layer"))
            threads[-1].start()
        for thread in threads:
            thread.join()

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
        ref = content.LAYER_INGEST + digest
        # The lease keeps the blob from its first moment on, and not what comes before it: that outlives the lease, for
        # a later pull to go on from.
        content.keep(client, digest, self._lease)
        try:
            with content.Writer(client, ref, digest, size, None, self._source, self._departure) as writer:
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
        except content.Present:
            pass
        except distribution.RegistryError as error:
            # What has come is good, and the next pull goes on from there; unless the registry knows no such range.
            if error.status == 416:
                content.abort(client, ref)
            raise
        except containerd.Unavailable:
            raise
        except errors.EngineError:
            # Broken bytes must not be what a later pull goes on from, and a full disk needs its space.
            content.abort(client, ref)
            raise


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
