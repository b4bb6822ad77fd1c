# SPDX-License-Identifier: Apache-2.0
"""Work with content and images that several commands share: reading and writing blobs, walking an image's tree,
labels that keep its parts alive, unpacking its layers into snapshots."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from teu.api.types import descriptor_pb2
from teu.ctr.client import Client, Requests, content_pb2, diff_pb2, errors, images_pb2, snapshots_pb2
from teu.ctr.errors import AlreadyExists, CommandError, Locked, NotFound
from teu.oci import digest as digests
from teu.oci import image_spec
from teu.oci.labels import SNAPSHOT, UNCOMPRESSED, keeping

Json = dict[str, Any]
CHUNK = 1 << 20
DOCUMENT_LIMIT = 64 << 20


def read(client: Client, digest: str, size: int = 0) -> Iterator[bytes]:
    with errors():
        for answer in client.content.Read(content_pb2.ReadContentRequest(digest=digest, size=size)):
            yield answer.data


def document(client: Client, descriptor: image_spec.Descriptor) -> Json:
    """A JSON blob: manifest, index or configuration."""
    if descriptor["size"] > DOCUMENT_LIMIT:
        raise CommandError(f"{descriptor['digest']} is too large for a manifest: {descriptor['size']} bytes")
    return image_spec.decode(b"".join(read(client, descriptor["digest"])), "manifest")


def write(
    client: Client,
    reference: str,
    size: int,
    digest: str,
    source: Callable[[int], Iterable[bytes]],
    labels: dict[str, str] | None = None,
) -> None:
    """Store a blob. `source(offset)` gives its bytes from there: what an earlier try has stored is not sent again.
    A blob that is there already is no error. While another client writes it, this waits, as ctr does."""
    while True:
        try:
            _write(client, reference, size, digest, source, labels)
            return
        except Locked:
            time.sleep(random.uniform(0.02, 0.2))


def _write(
    client: Client,
    reference: str,
    size: int,
    digest: str,
    source: Callable[[int], Iterable[bytes]],
    labels: dict[str, str] | None,
) -> None:
    try:
        offset = client.content.Status(content_pb2.StatusRequest(ref=reference)).status.offset
    except NotFound:
        offset = 0

    answered, accepted = threading.Event(), False

    def requests() -> Iterator[Any]:
        position = offset
        # The first message names the ingest; it may be refused because the blob is there.
        yield content_pb2.WriteContentRequest(
            action=content_pb2.WriteAction.STAT, ref=reference, total=size, expected=digest
        )
        answered.wait()
        if not accepted:
            return  # nothing was read from the source: it can be asked again
        for piece in source(offset):
            for start in range(0, len(piece), CHUNK):
                data = bytes(piece[start : start + CHUNK])
                yield content_pb2.WriteContentRequest(
                    action=content_pb2.WriteAction.WRITE,
                    ref=reference,
                    total=size,
                    expected=digest,
                    offset=position,
                    data=data,
                )
                position += len(data)
        yield content_pb2.WriteContentRequest(
            action=content_pb2.WriteAction.COMMIT,
            ref=reference,
            total=size,
            expected=digest,
            offset=position,
            labels=labels or {},
        )

    sent = Requests(requests())
    try:
        with errors():
            answers = client.content.Write(iter(sent))
            try:
                next(answers)
                accepted = True
            finally:
                answered.set()
            for _ in answers:
                pass
        sent.finish()
    except AlreadyExists:
        if labels:
            set_labels(client, digest, labels)


def write_unknown(client: Client, reference: str, pieces: Iterable[bytes], labels: dict[str, str]) -> tuple[str, int]:
    """Store a blob whose digest and size only its end tells: (digest, size). What an earlier try has left under the
    reference is begun again."""
    digester, size = digests.Digester(), 0
    try:
        client.content.Abort(content_pb2.AbortRequest(ref=reference))
    except NotFound:
        pass

    def requests() -> Iterator[Any]:
        nonlocal size
        for piece in pieces:
            for start in range(0, len(piece), CHUNK):
                data = bytes(piece[start : start + CHUNK])
                digester.update(data)
                yield content_pb2.WriteContentRequest(
                    action=content_pb2.WriteAction.WRITE, ref=reference, offset=size, data=data
                )
                size += len(data)
        yield content_pb2.WriteContentRequest(
            action=content_pb2.WriteAction.COMMIT,
            ref=reference,
            total=size,
            expected=digester.digest(),
            offset=size,
            labels=labels,
        )

    sent = Requests(requests())
    try:
        with errors():
            for _ in client.content.Write(iter(sent)):
                pass
        sent.finish()
    except AlreadyExists:
        pass
    return digester.digest(), size


def store(client: Client, data: bytes, labels: dict[str, str] | None = None) -> str:
    """A small blob from memory; returns its digest."""
    digest = digests.of(data)
    write(client, "teu-ctr-" + digest, len(data), digest, lambda offset: [data[offset:]], labels)
    return digest


def set_labels(client: Client, digest: str, labels: dict[str, str]) -> Any:
    mask = FieldMask(paths=["labels." + key for key in labels])
    info = content_pb2.Info(digest=digest, labels=labels)
    return client.content.Update(content_pb2.UpdateRequest(info=info, update_mask=mask)).info


def kept(client: Client, digest: str) -> bool:
    """Whether a blob is there, and stays: the client's lease has it before anybody looks, or it might go in between."""
    client.hold("content", digest)
    return exists(client, digest)


def exists(client: Client, digest: str) -> bool:
    try:
        client.content.Info(content_pb2.InfoRequest(digest=digest))
    except NotFound:
        return False
    return True


# Trees -----------------------------------------------------------------------------------------------------


def as_json(descriptor: Any) -> image_spec.Descriptor:
    result: image_spec.Descriptor = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.annotations:
        result["annotations"] = dict(descriptor.annotations)
    return result


def as_message(descriptor: image_spec.Descriptor) -> Any:
    return descriptor_pb2.Descriptor(
        media_type=descriptor["mediaType"],
        digest=descriptor["digest"],
        size=descriptor["size"],
        annotations=descriptor.get("annotations") or {},
    )


def children(client: Client, descriptor: image_spec.Descriptor) -> list[image_spec.Descriptor]:
    """What a manifest or an index refers to; nothing for other blobs."""
    kind = descriptor["mediaType"]
    if kind in image_spec.INDEXES:
        found: list[image_spec.Descriptor] = document(client, descriptor).get("manifests") or []
        return found
    if kind in image_spec.MANIFESTS:
        manifest = document(client, descriptor)
        return [manifest["config"], *(manifest.get("layers") or [])]
    return []


def reference_labels(descriptor: image_spec.Descriptor, below: list[image_spec.Descriptor]) -> dict[str, str]:
    """The labels of a manifest or index that keep its children from the garbage collector."""
    if descriptor["mediaType"] in image_spec.INDEXES:
        return keeping(manifests=below)
    return keeping(config=below[0], layers=below[1:]) if below else {}


def parse_platform(text: str) -> image_spec.Platform:
    """`OS/ARCH[/VARIANT]`, as the user gave it."""
    try:
        return image_spec.parse_platform(text)
    except image_spec.SpecError:
        told = f'"{text}": cannot parse platform specifier'
        raise CommandError(f'invalid platform "{text}": {told}: invalid argument') from None


def manifests(
    client: Client, target: image_spec.Descriptor, platform: str = ""
) -> list[tuple[image_spec.Descriptor, image_spec.Manifest]]:
    """The manifests of an image that fit the platform (default: this machine's), best first, each with its document.
    Raises NotFound where none is at hand."""
    if target["mediaType"] in image_spec.INDEXES:
        wanted = parse_platform(platform) if platform else image_spec.host_platform()
        offered = image_spec.choose(document(client, target).get("manifests") or [], wanted)
        found = [
            pair
            for entry in offered
            if exists(client, entry["digest"])
            for pair in manifests(client, image_spec.check_descriptor(entry, "index"), platform)
        ]
        if not found:
            raise NotFound(f"no manifest of {target['digest']} for {wanted} is at hand: not found")
        return found
    return [(target, image_spec.manifest(document(client, target)))]


def platforms(client: Client, target: image_spec.Descriptor) -> list[str]:
    """The platforms of an image whose manifests are at hand."""
    found = []
    try:
        if target["mediaType"] in image_spec.INDEXES:
            for entry in document(client, target).get("manifests") or []:
                if entry.get("platform"):
                    found.append(str(image_spec.platform_of(entry["platform"])))
        elif target["mediaType"] in image_spec.MANIFESTS:
            config = document(client, document(client, target)["config"])
            found.append(str(image_spec.platform_of(config)))
    except (CommandError, image_spec.SpecError, KeyError):
        pass
    return sorted(set(found))


def walk(client: Client, descriptor: image_spec.Descriptor) -> Iterator[image_spec.Descriptor]:
    """A descriptor and all below it that is at hand, parents first."""
    yield descriptor
    try:
        below = children(client, descriptor)
    except NotFound:
        return
    for child in below:
        yield from walk(client, child)


# Images ----------------------------------------------------------------------------------------------------


def get_image(client: Client, name: str) -> Any:
    return client.images.Get(images_pb2.GetImageRequest(name=name)).image


def put_image(client: Client, name: str, target: image_spec.Descriptor, labels: dict[str, str] | None = None) -> None:
    """Make the image, or let its name point to the new target. With `labels` it has those and no others."""
    image = images_pb2.Image(name=name, target=as_message(target), labels=labels or {})
    try:
        client.images.Create(images_pb2.CreateImageRequest(image=image))
    except AlreadyExists:
        mask = FieldMask(paths=["target"] if labels is None else ["target", "labels"])
        client.images.Update(images_pb2.UpdateImageRequest(image=image, update_mask=mask))


def image_config(client: Client, manifest: image_spec.Manifest) -> image_spec.ImageConfig:
    return image_spec.config(document(client, manifest["config"]), len(manifest.get("layers") or []))


def chain_id(client: Client, manifest: image_spec.Manifest) -> str:
    chains = image_spec.chain_ids(image_config(client, manifest)["rootfs"]["diff_ids"])
    return chains[-1] if chains else ""


def has_snapshot(client: Client, snapshotter: str, key: str) -> bool:
    try:
        client.snapshots.Stat(snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key=key))
    except NotFound:
        return False
    return True


def is_unpacked(client: Client, target: image_spec.Descriptor, snapshotter: str, platform: str = "") -> bool:
    try:
        _, manifest = manifests(client, target, platform)[0]
        return has_snapshot(client, snapshotter, chain_id(client, manifest))
    except (NotFound, image_spec.SpecError):
        return False


def unpack(client: Client, manifest: image_spec.Manifest, snapshotter: str, sync_fs: bool = False) -> str:
    """Apply the layers of a manifest, each on a snapshot of the one below; returns the topmost snapshot's name.
    Layers that are there already are left as they are. `sync_fs`: each is on the disk before the next one."""
    config = image_config(client, manifest)
    diff_ids = config["rootfs"]["diff_ids"]
    chains = image_spec.chain_ids(diff_ids)
    parent = ""
    for layer, diff_id, chain in zip(manifest.get("layers") or [], diff_ids, chains):
        client.hold(f"snapshots/{snapshotter}", chain)
        if not has_snapshot(client, snapshotter, chain):
            apply_layer(client, layer, diff_id, chain, parent, snapshotter, sync_fs)
        parent = chain
    if parent:
        set_labels(client, manifest["config"]["digest"], {f"{SNAPSHOT}.{snapshotter}": parent})
    return parent


def apply_layer(
    client: Client,
    layer: image_spec.Descriptor,
    diff_id: str,
    chain: str,
    parent: str,
    snapshotter: str,
    sync_fs: bool,
) -> None:
    key = f"extract-{time.time_ns() % 1_000_000_000}-{os.urandom(3).hex()} {chain}"
    labels = {"containerd.io/snapshot.ref": chain}
    try:
        mounts = client.snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent, labels=labels)
        ).mounts
    except AlreadyExists:
        return  # a remote snapshotter has it
    try:
        request = diff_pb2.ApplyRequest(diff=as_message(layer), mounts=mounts, sync_fs=sync_fs)
        applied = client.diff.Apply(request).applied
        if applied.digest != diff_id:
            raise CommandError(f"wrong diff id {applied.digest} of layer {layer['digest']}: {diff_id} expected")
        try:
            client.snapshots.Commit(
                snapshots_pb2.CommitSnapshotRequest(snapshotter=snapshotter, name=chain, key=key, labels=labels)
            )
        except AlreadyExists:
            client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
    except BaseException:
        try:
            client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
        except CommandError:
            pass
        raise
    set_labels(client, layer["digest"], {UNCOMPRESSED: diff_id})
