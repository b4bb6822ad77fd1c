# SPDX-License-Identifier: Apache-2.0
"""A managed plugin's artifacts: a manifest, config.json and layers in containerd's content store, and the snapshots
made of them. All are in containerd's namespace plugins.teu, so that the engine's images and sweeps do not know them.

    manifest     kept by its label until the plugin goes; it keeps config.json and the layers
    BASE-N       the layers one over the other, committed
    BASE         what the plugin writes to, kept by its label; BASE is another one for each version that was unpacked

What is made is under a lease first, and belongs to a plugin once that has its record. What no record has is swept.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from teu import __version__
from teu.engine.backend import containerd, content
from teu.engine.core import errors
from teu.engine.images import registries, unpack
from teu.engine.images.transfer import Message, status
from teu.engine.plugins import config as configuration
from teu.engine.plugins.config import CONFIG_LIMIT, Config
from teu.oci import archive, distribution, gzips, image_spec, tar
from teu.oci import digest as digests
from teu.oci.labels import rooted

if TYPE_CHECKING:
    from teu.config import Settings
    from teu.engine.backend.containerd import Client
    from teu.engine.core.departure import Departure
    from teu.engine.plugins.config import Privilege
    from teu.oci.image_spec import Descriptor, Manifest
    from teu.oci.reference import Reference
    from teu.oci.registries import Registries

CONFIG_TYPE = "application/vnd.docker.plugin.v1+json"
RESOURCE = "repository(plugin)"


class Unchecked(NamedTuple):
    """A manifest of a registry, and the configuration that it names."""

    target: Descriptor
    data: bytes
    manifest: Manifest
    config_data: bytes
    config: Config


# -- from a registry ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def source(settings: Settings, wanted: Reference, auth: str, departure: Departure) -> Iterator[Registries]:
    """Who is asked for a plugin. Raises EngineError for what goes wrong with it within the block."""
    registry = registries.to_pull(settings, wanted.domain, auth, RESOURCE)
    with registry, departure.during(registry.abort):
        try:
            yield registry
        except distribution.RegistryError as error:
            raise registries.convert(error, wanted) from None
        except image_spec.SpecError as error:
            raise errors.EngineError(f"{wanted.familiar()}: {error}") from None


def look(settings: Settings, registry: Registries, wanted: Reference) -> Unchecked:
    """What a reference is of: a plugin that the policy lets in. Raises EngineError where it is of something else."""
    target, data = registry.manifest(wanted.path, wanted.digest or wanted.tag)
    way = [target]
    if target["mediaType"] in image_spec.INDEXES:
        entries = image_spec.choose(
            image_spec.index(image_spec.decode(data, "index"))["manifests"], image_spec.host_platform()
        )
        if not entries:
            raise errors.NotFound(f"{wanted.familiar()} has no plugin for {image_spec.host_platform()}")
        target, data = registry.manifest(wanted.path, entries[0]["digest"])
        way.append(target)
    manifest = image_spec.manifest(image_spec.decode(data, "manifest"))
    described = manifest["config"]
    if described["mediaType"] != CONFIG_TYPE:
        raise errors.EngineError(
            f"did not find plugin config for specified reference {wanted}: it is a {described['mediaType']}"
        )
    registries.let_in(settings, registry, wanted, [way])
    if described["size"] > CONFIG_LIMIT:
        raise errors.EngineError(f"the plugin's configuration is larger than {CONFIG_LIMIT} bytes")
    config_data = b"".join(registry.blob(wanted.path, described))
    digester = digests.for_digest(described["digest"])
    digester.update(config_data)
    if digester.digest() != described["digest"]:
        raise errors.EngineError(f"the plugin's configuration is not what its digest says: {digester.digest()}")
    return Unchecked(target, data, manifest, config_data, configuration.decode(config_data))


def download(
    client: Client,
    registry: Registries,
    wanted: Reference,
    found: Unchecked,
    lease: str,
    granted: list[Privilege],
    departure: Departure,
) -> Iterator[Message]:
    """Bring its layers, config.json and the manifest into the store, with docker's messages, where exactly what it
    wants was granted. Raises EngineError."""
    yield {"status": f"Pulling from {wanted.familiar_name}", "id": wanted.tag or wanted.digest}
    yield {"status": f"Digest: {found.target['digest']}"}
    configuration.check_granted(found.config, granted)
    for layer in found.manifest["layers"]:
        digest, size = layer["digest"], layer["size"]
        content.keep(client, digest, lease)
        if content.exists(client, digest):
            yield status("Already exists", digest)
            continue
        yield status("Pulling fs layer", digest)
        reference = content.LAYER_INGEST + digest
        try:
            with content.Writer(client, reference, digest, size, None, departure=departure) as writer:
                for chunk in registry.blob(wanted.path, layer, writer.offset):
                    writer.write(chunk)
                    yield status("Downloading", digest, {"current": writer.offset, "total": size})
                writer.commit()
        except content.Present:
            pass
        except containerd.FailedPrecondition as error:
            content.abort(client, reference)
            raise errors.EngineError(f"filesystem layer verification failed for digest {digest}: {error}") from None
        yield status("Download complete", digest)
    content.put(client, found.config_data, lease)
    content.put(client, found.data, lease, content.children_labels(found.manifest))


# -- from a client -------------------------------------------------------------------------------------------


class _Layer:
    """A layer on its way into the store, compressed."""

    def __init__(self, writer: content.Writer) -> None:
        self._writer = writer
        self._gzip = gzips.Gzip()
        self._plain = digests.Digester()
        self._packed = digests.Digester()

    def write(self, data: bytes) -> None:
        self._plain.update(data)
        self._out(self._gzip.compress(data))

    def _out(self, data: bytes) -> None:
        if data:
            self._packed.update(data)
            self._writer.write(data)

    def end(self) -> tuple[Descriptor, str]:
        """Its descriptor, and the digest of what is in it."""
        self.write(bytes(2 * tar.BLOCK))
        self._out(self._gzip.flush())
        self._writer.commit()
        described: Descriptor = {
            "mediaType": image_spec.DOCKER_LAYER_GZIP,
            "digest": self._packed.digest(),
            "size": self._packed.size,
        }
        return described, self._plain.digest()


def store(client: Client, stream: archive.Stream, lease: str, departure: Departure) -> tuple[Config, str, Manifest]:
    """A client's archive, of config.json and rootfs/, as a plugin's artifacts: its configuration, and its manifest.
    Raises BadRequest, EngineError in docker's words."""
    plain = archive.decompressed(stream)
    reference = f"teu-import-{uuid.uuid4().hex}"
    try:
        with content.Writer(client, reference, lease=lease, departure=departure) as writer:
            layer = _Layer(writer)
            try:
                config_data = _split(tar.Source(lambda: plain.read(archive.CHUNK)), layer.write)
            except (tar.TarError, archive.ArchiveError) as error:
                raise errors.EngineError(f"failed to read from tar: {error}") from None
            if config_data is None:
                raise errors.EngineError("config not found")
            config = configuration.decode(config_data)
            described, diff_id = layer.end()
            if writer.existed:
                content.keep(client, described["digest"], lease)
    except BaseException:
        content.abort(client, reference)
        raise
    config.docker_version = __version__
    config.rootfs = configuration.RootFs(type="layers", diff_ids=[diff_id])
    data = image_spec.encode(configuration.encoded(config))
    manifest: Manifest = {
        "schemaVersion": 2,
        "mediaType": image_spec.DOCKER_MANIFEST,
        "config": image_spec.descriptor(CONFIG_TYPE, data),
        "layers": [described],
    }
    content.put(client, data, lease)
    digest = content.put(client, image_spec.encode(manifest), lease, content.children_labels(manifest))
    return config, digest, manifest


def _split(source_: tar.Source, write: Callable[[bytes], None]) -> bytes | None:
    """config.json of an archive; what is in its rootfs/ goes on, as it is at the root of a layer."""
    config_data, rootfs = None, False
    for entry, size in tar.entries(source_):
        name = entry.name.strip("/").removeprefix("./")
        if name == "config.json":
            if size > CONFIG_LIMIT:
                raise errors.EngineError(f"failed to read config.json: it is larger than {CONFIG_LIMIT} bytes")
            config_data = source_.read(size)
        elif name.partition("/")[0] == "rootfs":
            rootfs = True
            _write(source_, entry, size, name.partition("/")[2] or ".", write)
        else:
            source_.skip(size)
    if not rootfs:
        raise errors.EngineError("no rootfs found")
    source_.drain()
    return config_data


def _write(source_: tar.Source, entry: tar.Entry, size: int, name: str, write: Callable[[bytes], None]) -> None:
    if entry.sparse is not None:
        raise errors.EngineError(f"failed to read from tar: {tar.short(entry.name)} is a sparse file")
    entry.name = name + ("/" if entry.type == tar.DIRECTORY else "")
    if entry.type == tar.HARD_LINK:
        entry.link = entry.link.strip("/").removeprefix("./").removeprefix("rootfs/")
    write(tar.pack(entry))
    for piece in source_.pieces(size):
        write(bytes(piece))
    if padding := -size % tar.BLOCK:
        write(bytes(padding))


# -- snapshots ------------------------------------------------------------------------------------------------


def unpacked(
    client: Client, snapshotter: str, manifest: Manifest, base: str, lease: str, departure: Departure
) -> Iterator[Message]:
    """Make the snapshots of a manifest's layers, with docker's messages."""
    from teu.api.services.snapshots.v1 import snapshots_pb2

    parent = ""
    for number, layer in enumerate(manifest["layers"]):
        if not image_spec.is_layer(layer["mediaType"]):
            raise errors.EngineError(f"unsupported media type {layer['mediaType']} of a plugin's layer")
        yield status("Extracting", layer["digest"], {"current": 0, "total": layer["size"]})
        name = f"{base}-{number}"
        unpack.single(client, snapshotter, layer, parent, name, lease, departure)
        parent = name
        yield status("Complete", layer["digest"])
    request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=snapshotter, key=base, parent=parent, labels=rooted())
    client.snapshots.Prepare(request, lease=lease)


def base_of(snapshot: str) -> str:
    """Whose snapshot that is, also while it is being made (`extract-… BASE-N`)."""
    return snapshot.rpartition(" ")[2].partition("-")[0]


def sweep(client: Client, snapshotter: str, bases: set[str], manifests: set[str]) -> None:
    """Remove what belongs to none of these, and nobody is making. Raises containerd's errors."""
    from teu.api.services.content.v1 import content_pb2
    from teu.api.services.leases.v1 import leases_pb2
    from teu.api.services.snapshots.v1 import snapshots_pb2

    working = client.working
    names = []
    for answer in client.snapshots.List(snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter)):
        names += [(info.name, info.parent) for info in answer.info]
    gone = [pair for pair in names if base_of(pair[0]) not in bases and base_of(pair[0]) not in working]
    while gone:  # those first that no other one is made of
        parents = {parent for _, parent in gone}
        leaves = [pair for pair in gone if pair[0] not in parents]
        for name, _ in leaves:
            with contextlib.suppress(containerd.NotFound, containerd.FailedPrecondition):
                client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=name))
        gone = [pair for pair in gone if pair not in leaves] if leaves else []
    request = content_pb2.ListContentRequest(filters=['labels."containerd.io/gc.root"'])
    roots = [info.digest for answer in client.content.List(request) for info in answer.info]
    for digest in roots:
        if digest not in manifests and digest not in working:
            with contextlib.suppress(containerd.NotFound):
                client.content.Delete(content_pb2.DeleteContentRequest(digest=digest))
    for lease in client.leases.List(leases_pb2.ListRequest()).leases:
        if lease.id.startswith("teud-") and lease.id not in working:
            with contextlib.suppress(containerd.NotFound):
                client.leases.Delete(leases_pb2.DeleteRequest(id=lease.id))
    identity = f"teud-{uuid.uuid4().hex}"
    with client.making(identity):
        client.leases.Create(leases_pb2.CreateRequest(id=identity))
        client.leases.Delete(leases_pb2.DeleteRequest(id=identity, sync=True), timeout=containerd.COLLECT_SECONDS)


# -- to a registry ------------------------------------------------------------------------------------------


def push(
    client: Client, settings: Settings, wanted: Reference, manifest: str, auth: str, departure: Departure
) -> Iterator[Message]:
    """A plugin's artifacts to where its name says, with docker's messages."""
    data = content.read(client, manifest)
    document = image_spec.manifest(image_spec.decode(data, "manifest"))
    with registries.connect(settings, wanted.domain, auth, RESOURCE) as registry, departure.during(registry.abort):
        try:
            yield {"status": f"The push refers to repository [{wanted.familiar_name}]"}
            parts = [document["config"], *document["layers"]]
            for part in parts:
                yield status("Preparing", part["digest"])
            for part in parts:
                if not registry.has_blob(wanted.path, part["digest"]):
                    total = part["size"]
                    yield status("Uploading", part["digest"], {"current": 0, "total": total})
                    _upload(client, registry, wanted, part, departure)
                yield status("Upload complete", part["digest"])
            kind = image_spec.media_type_of(document, image_spec.DOCKER_MANIFEST)
            registry.put_manifest(wanted.path, wanted.tag, kind, data)
        except distribution.Unauthorized as error:
            raise errors.EngineError(
                f"error pushing plugin: denied: requested access to the resource is denied: {error}"
            ) from None
        except distribution.RegistryError as error:
            raise errors.EngineError(f"error pushing plugin: {error}") from None
    yield {"progressDetail": {}, "aux": {"Tag": wanted.tag, "Digest": manifest, "Size": len(data)}}


def _upload(
    client: Client, registry: distribution.Registry, wanted: Reference, part: Descriptor, departure: Departure
) -> None:
    registry.upload(wanted.path, part, lambda: content.chunks(client, part["digest"], departure=departure))
