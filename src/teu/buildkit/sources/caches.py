# SPDX-License-Identifier: Apache-2.0
"""Caches that travel: read before a build, written after it (--cache-from, --cache-to). Called by control; the inline
one by the image exporter. What they hold is cache.remote's matter; here is where they lie, and how they get there.

    registry   ref, registry.insecure: an image's name. To read: a cache, or an image that has one inside (inline), also
               one of this host
    local      src, digest; dest: a content store of the client
    inline     is in the image that is exported; to read, the same as registry

    to write   mode=min|max, image-manifest, oci-mediatypes, compression, compression-level, force-compression,
               ignore-error
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

from teu.buildkit.cache import remote
from teu.buildkit.cache.remote import UNCOMPRESSED, BadCache, Chain, Exported, Options, RemoteKeys
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import digest_of
from teu.buildkit.core.op import Gone, Record
from teu.buildkit.core.snapshots import Compression, Descriptor, Layer, Snapshot, Worker
from teu.buildkit.session.content import Store
from teu.buildkit.session.manager import Manager
from teu.buildkit.sources.base import Asker, ask_any, boolean, go_json, number, plainly
from teu.buildkit.sources.image import parsed
from teu.buildkit.sources.manifests import Blobs, Documents, Fetching
from teu.buildkit.sources.ocilayout import ClientStore
from teu.buildkit.sources.registries import Access, Remote, told
from teu.oci import digest as digests
from teu.oci import image_spec

STORE = "local:"
PLATFORMS_MAX = 64  # images of one index that are looked at for a cache
COMPRESSIONS = ("uncompressed", "gzip", "estargz", "zstd")
LEVEL_MAX = 22
UPLOADS = 4  # at a time
HISTORY_MAX = 4096  # bytes of what is told of one layer
DESCRIPTION = remote.DESCRIPTION


@dataclass(frozen=True, slots=True)
class Import:
    """A cache to be read. `name` is for people, `id` tells caches apart."""

    id: str
    name: str
    read: Callable[[Asker], list[RemoteKeys]]


class Export(Protocol):
    """A cache to be written. `name`: what a client shows; `inline`: an image carries it, `write` does nothing."""

    name: str
    options: Options
    compression: Compression
    inline: bool

    def write(self, chains: Sequence[Chain], asker: Asker) -> dict[str, str]:
        """Write the cache of a result (solver's Result.chains); what the answer to the client says of it."""


class Caches:
    """All kinds of caches."""

    def __init__(self, worker: Worker, access: Access, sessions: Manager, documents: Documents | None = None) -> None:
        self.worker = worker
        self.access = access
        self.sessions = sessions
        self.documents = documents or Documents(worker.content)

    def importing(self, kind: str, attributes: Mapping[str, str]) -> Import:
        """Raises InvalidArgument, also for a kind that is not known."""
        if kind in ("registry", "inline"):
            return self._from_registry(attributes)
        if kind == "local":
            return self._from_client(attributes)
        raise errors.InvalidArgument(f"unknown cache importer: {errors.cut(kind, 100)}")

    def exporting(self, kind: str, attributes: Mapping[str, str]) -> Export:
        """Raises InvalidArgument, also for a kind that is not known."""
        if kind not in ("registry", "local", "inline"):
            raise errors.InvalidArgument(f'unknown cache exporter: "{errors.cut(kind, 100)}"')
        try:
            options = Options.parse(attributes)
        except ValueError as error:
            raise errors.InvalidArgument(str(error)) from None
        compression = compression_of(attributes, oci=options.oci)
        if kind == "inline":
            return InlineExport(options, compression)
        if kind == "registry":
            if not attributes.get("ref"):
                raise errors.InvalidArgument("missing ref")
            parsed(attributes["ref"])
            return RegistryExport(self, options, compression, attributes)
        if not attributes.get("dest"):
            raise errors.InvalidArgument("local cache exporter requires dest")
        return LocalExport(self, options, compression, attributes["dest"])

    # Reading

    def _from_registry(self, attributes: Mapping[str, str]) -> Import:
        if not attributes.get("ref"):
            raise errors.InvalidArgument("missing ref")
        wanted = parsed(attributes["ref"])
        insecure = boolean(attributes, "registry.insecure")
        name = str(wanted)

        def read(asker: Asker) -> list[RemoteKeys]:
            place = Remote(self.access, wanted, asker, insecure=insecure)
            found = self._of_host(name, place, asker)
            if found:
                return found
            with place.opened():
                root = place.resolve()
                return self._read(name, root, place, asker)

        return Import(name, name, read)

    def _of_host(self, name: str, place: Remote, asker: Asker) -> list[RemoteKeys]:
        """The cache inside of an image that this host has."""
        target = self.worker.images.get(name)
        if target is None or self.documents.here(target["digest"]) is None:
            return []
        try:
            return [keys for keys in self._read(name, target, None, asker, place) if len(keys)]
        except (errors.NotFound, errors.InvalidArgument):
            return []

    def _from_client(self, attributes: Mapping[str, str]) -> Import:
        digest, source = attributes.get("digest", ""), attributes.get("src", "")
        if not digest:
            raise errors.InvalidArgument("local cache importer requires explicit digest")
        if not digests.is_digest(digest):
            raise errors.InvalidArgument(f"invalid checksum digest format: {errors.cut(digest, 200)}")
        if not source:
            raise errors.InvalidArgument("local cache importer requires src")

        def read(asker: Asker) -> list[RemoteKeys]:
            place = ClientStore(self.sessions, STORE + source, "", asker)
            return self._read(source, self.documents.root(digest, place), place, asker)

        return Import(f"local:{digest_of(go_json(dict(sorted(attributes.items()))))}", source, read)

    def _read(
        self, name: str, root: Descriptor, blobs: Blobs | None, asker: Asker, layers: Blobs | None = None
    ) -> list[RemoteKeys]:
        fetching = Fetching(blobs or layers, asker)  # type: ignore[arg-type]
        try:
            manifest = remote.read_manifest(self.documents.read(root, blobs))
            if manifest.config is not None:
                config = b"".join(self._small(manifest.config, blobs))
                return [_with_layers(remote.read(name, config, manifest.layers), fetching, asker)]
            if manifest.image_config is not None:
                found = self._inline(name, manifest, blobs)
                return [_with_layers(found, fetching, asker)] if found is not None else []
            result = []
            for entry in manifest.manifests[:PLATFORMS_MAX]:
                if (entry.get("annotations") or {}).get("vnd.docker.reference.type"):
                    continue
                try:
                    one = remote.read_manifest(self.documents.read(entry, blobs))
                except errors.NotFound:
                    continue  # of a platform that this host has not
                found = self._inline(f"{name}@{entry['digest']}", one, blobs) if one.image_config else None
                if found is not None:
                    result.append(_with_layers(found, fetching, asker))
            return result
        except BadCache as error:
            raise errors.InvalidArgument(f"cache {name}: {error}") from None

    def _inline(self, name: str, manifest: remote.Manifest, blobs: Blobs | None) -> RemoteKeys | None:
        assert manifest.image_config is not None
        if manifest.image_config["mediaType"] not in image_spec.CONFIGS:
            return None
        config = self.documents.read(manifest.image_config, blobs, manifest=False)
        return remote.read_inline(name, config, manifest.layers)

    def _small(self, descriptor: Descriptor, blobs: Blobs | None) -> Iterator[bytes]:
        """A cache's configuration, which may be larger than what is kept in memory."""
        if descriptor["size"] > remote.CONFIG_MAX:
            raise errors.ResourceExhausted(f"{descriptor['digest']}: more than {remote.CONFIG_MAX} bytes")
        if blobs is None or self.worker.content.has(descriptor["digest"]):
            yield self.worker.content.read_whole(descriptor["digest"], remote.CONFIG_MAX)
            return
        whole = digests.for_digest(descriptor["digest"])
        for chunk in blobs.blob(descriptor):
            whole.update(chunk)
            if whole.size > descriptor["size"]:
                raise errors.DataLoss(f"{descriptor['digest']}: more than {descriptor['size']} bytes")
            yield chunk
        if whole.digest() != descriptor["digest"]:
            raise errors.DataLoss(f"{descriptor['digest']}: what came has the digest {whole.digest()}")

    # Writing

    def exported(self, chains: Sequence[Chain], mode: str, compression: Compression, held: Held) -> Exported:
        """A cache with what it is made of; `held` has the trees whose layers these are."""

        def layers(result: str, make: bool) -> Sequence[Descriptor] | None:
            snapshot = held.load(result)
            if snapshot is None:
                return None
            found = snapshot.layers(compression, make=make)
            if found is None:
                return None
            for descriptor in found:
                held.layers.setdefault(descriptor["digest"], snapshot)
            made = snapshot.history()
            return [
                remote.described(one, errors.cut(how.description, HISTORY_MAX), how.created)
                for one, how in zip(found, made, strict=True)
            ]

        return remote.export(chains, layers, mode)

    def inline(
        self, chains: Sequence[Chain], image_layers: Sequence[str], compression: Compression | None = None
    ) -> bytes:
        """What the configuration of an image of these layers (cache.remote.inline) says; b"" where nothing fits."""
        with Held(self.worker) as held:
            exported = self.exported(chains, "min", compression or Compression(), held)
            return remote.inline(exported, image_layers)


def _with_layers(keys: RemoteKeys, fetching: Fetching, asker: Asker) -> RemoteKeys:
    """The records' layers as the worker takes them. A layer of which nobody says what it is when it is unpacked cannot
    be checked: such a record is none."""

    def made(record: Record) -> Record | None:
        layers = []
        for descriptor in record.remote:
            annotations = descriptor.get("annotations") or {}
            diff_id = annotations.get(UNCOMPRESSED, "")
            if not digests.is_digest(diff_id) or not image_spec.is_layer(descriptor["mediaType"]):
                return None
            history = str(annotations.get(DESCRIPTION) or "")
            layers.append(Layer(descriptor, diff_id, fetching, history, asker.status))
        return replace(record, remote=layers)

    return keys.mapped(made)


class Held:
    """Trees that are held while their layers are written: a context manager."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._stack = ExitStack()
        self._known: dict[str, Snapshot | None] = {}
        self.layers: dict[str, Snapshot] = {}

    def load(self, result: str) -> Snapshot | None:
        """None where it is gone."""
        if result not in self._known:
            try:
                snapshot = self._worker.load(Record(result, 0.0))
                self._stack.callback(snapshot.release)
                self._known[result] = snapshot
            except Gone:
                self._known[result] = None
        return self._known[result]

    def chunks(self, descriptor: Descriptor, asker: Asker) -> Iterator[bytes]:
        for chunk in self._worker.open_blob(self.layers[descriptor["digest"]], descriptor):
            asker.check()
            yield chunk

    def __enter__(self) -> Held:
        self._stack.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.__exit__(*problem)


class InlineExport:
    """A cache that an image carries."""

    name = "exporting inline cache"
    inline = True

    def __init__(self, options: Options, compression: Compression) -> None:
        self.options = replace(options, mode="min")
        self.compression = compression

    def write(self, chains: Sequence[Chain], asker: Asker) -> dict[str, str]:
        return {}


class _Written:
    """What caches in a registry and in a folder have in common."""

    name = ""
    inline = False

    def __init__(self, caches: Caches, options: Options, compression: Compression) -> None:
        self.caches = caches
        self.options = options
        self.compression = compression

    def write(self, chains: Sequence[Chain], asker: Asker) -> dict[str, str]:
        preparing = "preparing build cache for export"
        asker.status(preparing, 0, 0)
        with plainly(), Held(self.caches.worker) as held:
            exported = self.caches.exported(chains, self.options.mode, self.compression, held)
            if exported.empty:
                asker.status("skipping cache export for empty result", 0, 0, completed=True)
                asker.status(preparing, 0, 0, completed=True)
                return {}
            written = remote.write(exported, self.options)
            with self._place(asker) as place:
                _each(exported.layers, lambda layer: self._layer(place, layer, held, asker), asker)
                with _step(asker, f"writing config {written.config['digest']}", "error writing config blob"):
                    place.blob(written.config, lambda: [written.config_data])
                kind = "cache image manifest" if self.options.image_manifest else "cache manifest"
                with _step(asker, f"writing {kind} {written.manifest['digest']}", "error writing manifest blob"):
                    place.manifest(written.manifest, written.manifest_data)
        asker.status(preparing, 0, 0, completed=True)
        return {remote.RESPONSE_KEY: json.dumps(written.manifest, separators=(",", ":"))}

    def _layer(self, place: Place, layer: Descriptor, held: Held, asker: Asker) -> None:
        with _step(asker, f"writing layer {layer['digest']}", "error writing layer blob"):
            place.blob(layer, lambda: held.chunks(layer, asker))

    def _place(self, asker: Asker) -> Place:
        raise NotImplementedError


class Place(Protocol):
    """Where a cache is written to."""

    def blob(self, descriptor: Descriptor, content: Callable[[], Iterable[bytes]]) -> None:
        """`content` is asked where the blob is not there yet, again where it has to be sent again."""

    def manifest(self, descriptor: Descriptor, data: bytes) -> None: ...

    def __enter__(self) -> Place: ...

    def __exit__(self, *problem: Any) -> None: ...


class RegistryExport(_Written):
    name = "exporting cache to registry"

    def __init__(
        self, caches: Caches, options: Options, compression: Compression, attributes: Mapping[str, str]
    ) -> None:
        super().__init__(caches, options, compression)
        self._reference = parsed(attributes["ref"])
        self._insecure = boolean(attributes, "registry.insecure")

    def _place(self, asker: Asker) -> Place:
        return _Repository(Remote(self.caches.access, self._reference, asker, insecure=self._insecure))


class _Repository:
    def __init__(self, place: Remote) -> None:
        self._remote = place
        self._stack = ExitStack()

    def __enter__(self) -> _Repository:
        self._registries = self._stack.enter_context(self._remote.opened())
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.__exit__(*problem)

    def blob(self, descriptor: Descriptor, content: Callable[[], Iterable[bytes]]) -> None:
        path = self._remote.reference.path
        with told(str(self._remote.reference)):
            if not self._registries.has_blob(path, descriptor["digest"]):
                self._registries.upload(path, descriptor, content)

    def manifest(self, descriptor: Descriptor, data: bytes) -> None:
        reference = self._remote.reference
        with told(str(reference)):
            self._registries.put_manifest(
                reference.path, reference.tag or reference.digest, descriptor["mediaType"], data
            )


class LocalExport(_Written):
    name = "exporting cache to client directory"

    def __init__(self, caches: Caches, options: Options, compression: Compression, folder: str) -> None:
        super().__init__(caches, options, compression)
        self._folder = folder

    def _place(self, asker: Asker) -> Place:
        store: Store = ask_any(self.caches.sessions, asker, lambda session: Store(session, STORE + self._folder))
        return _Folder(store)


class _Folder:
    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *problem: Any) -> None: ...

    def blob(self, descriptor: Descriptor, content: Callable[[], Iterable[bytes]]) -> None:
        digest = descriptor["digest"]
        try:
            self._store.info(digest)
        except errors.NotFound:
            self._store.write(digest, _lazily(content), descriptor["size"], digest)

    def manifest(self, descriptor: Descriptor, data: bytes) -> None:
        self.blob(descriptor, lambda: [data])


def _lazily(content: Callable[[], Iterable[bytes]]) -> Iterator[bytes]:
    yield from content()


class _step:
    """A part of the work, as the client shows it; what fails in it says so."""

    def __init__(self, asker: Asker, name: str, what: str) -> None:
        self._asker, self._name, self._what = asker, name, what

    def __enter__(self) -> None:
        self._asker.check()
        self._asker.status(self._name, 0, 0)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._asker.status(self._name, 0, 0, completed=True)
        elif isinstance(error, errors.Error) and not isinstance(error, errors.Cancelled):
            error.prefixed(self._what)


def _each(layers: Sequence[Descriptor], write: Callable[[Descriptor], None], asker: Asker) -> None:
    """Several at a time; the first that fails is told, and no other begins after that."""
    if len(layers) < 2:
        for layer in layers:
            write(layer)
        return
    with ThreadPoolExecutor(min(UPLOADS, len(layers)), "cache") as pool:
        futures = [pool.submit(write, layer) for layer in layers]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def compression_of(attributes: Mapping[str, str], *, oci: bool = True) -> Compression:
    """Of an exporter's attributes. Raises InvalidArgument."""
    kind = attributes.get("compression", "gzip")
    if kind not in COMPRESSIONS:
        raise errors.InvalidArgument(f"unsupported compression type {errors.cut(kind, 100)}")
    force = attributes.get("force-compression") == "" or boolean(attributes, "force-compression")
    level = number(attributes, "compression-level", 0, LEVEL_MAX)
    return Compression(kind, level, force, oci)
