# SPDX-License-Identifier: Apache-2.0
"""Transfers below their service: from a registry on loopback, out into an archive and in again, over named streams."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import signatures as made
from containerd_parts import root_only
from google.protobuf import any_pb2
from system.scripted_registry import ScriptedRegistry, digest_of, tar

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.services.images.v1 import images_pb2
from teu.api.types import platform_pb2
from teu.api.types.transfer import imagestore_pb2, importexport_pb2, progress_pb2, registry_pb2, streaming_pb2
from teu.containerd.core.errors import Cancelled, DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unknown
from teu.containerd.core.events import pack
from teu.containerd.core.streams import CLOSED, Stream
from teu.containerd.cri import images as cri_images
from teu.containerd.state import Context
from teu.containerd.transfer import archives, registry
from teu.containerd.transfer.job import Job, Parts, in_parallel

NS = "default"
AMD64 = platform_pb2.Platform(os="linux", architecture="amd64")


class Transfers:
    """Runs moves as the service does: on a thread, with the streams on the event loop."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.progress = Stream()
        self.cancelled = False
        self.parts = Parts(
            content=context.content,
            images=context.images,
            leases=context.leases,
            snapshots=context.snapshots,
            layers=context.layers,
            streams=context.streams,
            snapshotter="native",
            policy="",
        )

    async def run(self, move: Callable[[Job, Any, Any], None], source: Any, destination: Any) -> list[str]:
        """The events of its progress."""
        events: list[str] = []

        async def listen() -> None:
            while (packed := await self.progress.outgoing.get()) is not CLOSED:
                events.append(progress_pb2.Progress.FromString(packed.value).event)

        listening = asyncio.create_task(listen())
        loop = asyncio.get_running_loop()
        job = Job(self.parts, NS, loop, self.progress, lambda: self.cancelled)
        try:
            await loop.run_in_executor(self.context.pool, move, job, source, destination)
        finally:
            await self.progress.close()
            await listening
            self.progress = Stream()
        assert self.context.leases.find(NS) == []  # nothing is held any longer
        return events

    async def pull(self, server: ScriptedRegistry, name: str = "app:1", **destination: Any) -> list[str]:
        source = registry_pb2.OCIRegistry(reference=f"{server.address}/{name}")
        source.resolver.default_scheme = "http"
        return await self.run(registry.pull, source, imagestore_pb2.ImageStore(name="i", **destination))


def run(context: Context, test: Callable[[Transfers], Any]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60):
            await test(Transfers(context))

    asyncio.run(whole())


@root_only
def test_an_image_is_pulled_and_unpacked(context: Context) -> None:
    async def test(transfers: Transfers) -> None:
        layers = tar(("a", b"1")), tar(("a", b"2"), ("b", b"3"))
        with ScriptedRegistry() as server:
            target = server.image("app", "1", *layers)
            unpacks = [imagestore_pb2.UnpackConfiguration(platform=AMD64)]
            events = await transfers.pull(server, labels={"l": "m"}, platforms=[AMD64], unpacks=unpacks)
        assert events[0].startswith("Resolving from") and events[-1].startswith("Completed pull from")
        assert {"downloading", "complete", "extracting", "extracted", "saved"} <= set(events)
        image = context.images.get(NS, "i")
        assert (image.target.digest, image.labels) == (target["digest"], {"l": "m"})
        first = digest_of(layers[0])
        chain = "sha256:" + hashlib.sha256(f"{first} {digest_of(layers[1])}".encode()).hexdigest()
        assert context.snapshots.stat(NS, "native", chain).parent == first
        manifest = context.content.info(NS, target["digest"])
        assert {"containerd.io/gc.ref.content.config", "containerd.io/gc.ref.content.l.1"} <= set(manifest.labels)
        context.collector.collect()  # all of it is kept by labels, from the image on
        assert context.snapshots.stat(NS, "native", chain) and len(list(context.content.find(NS))) == 4

    run(context, test)


def test_the_wanted_platform_is_pulled(context: Context) -> None:
    async def test(transfers: Transfers) -> None:
        with ScriptedRegistry() as server:
            amd = server.image("app", "a", tar(("a", b"amd")))
            arm = server.image("app", "b", tar(("a", b"arm")), architecture="arm64")
            server.index("app", "1", amd64=amd, arm64=arm)
            await transfers.pull(server, platforms=[AMD64])
            assert context.content.info(NS, amd["digest"])
            with pytest.raises(NotFound):
                context.content.info(NS, arm["digest"])
            other = platform_pb2.Platform(os="linux", architecture="s390x")
            with pytest.raises(NotFound, match="no manifest for platform"):
                await transfers.pull(server, platforms=[other])

    run(context, test)


def test_what_a_registry_does_wrong(context: Context) -> None:
    async def test(transfers: Transfers) -> None:
        with ScriptedRegistry() as server:
            layer = tar(("a", b"1"))
            server.image("app", "1", layer, compression="")
            with pytest.raises(NotFound, match="failed to resolve image"):
                await transfers.pull(server, "app:2")
            server.broken[digest_of(layer)] = 1  # goes on where it was
            await transfers.pull(server)
            assert context.content.info(NS, digest_of(layer)).size == len(layer)
        with ScriptedRegistry() as server:
            layer = tar(("a", b"2"))
            server.image("app", "1", layer, compression="")
            server.corrupt.add(digest_of(layer))
            with pytest.raises((InvalidArgument, FailedPrecondition, DataLoss)):
                await transfers.pull(server)
            with pytest.raises(NotFound):
                context.content.info(NS, digest_of(layer))

    run(context, test)


def test_credentials_are_asked_of_the_client(context: Context) -> None:
    async def test(transfers: Transfers) -> None:
        with ScriptedRegistry() as server:
            server.image("app", "1", tar(("a", b"1")))
            server.basic = "me:secret"
            stream = context.streams.register(NS, "auth")
            answer = any_pb2.Any()
            told = registry_pb2.AuthResponse(authType=registry_pb2.CREDENTIALS, username="me", secret="secret")
            pack(answer, told)
            await stream.incoming.put(answer)
            source = registry_pb2.OCIRegistry(reference=f"{server.address}/app:1")
            source.resolver.default_scheme, source.resolver.auth_stream = "http", "auth"
            await transfers.run(registry.pull, source, imagestore_pb2.ImageStore(name="i"))
            asked = registry_pb2.AuthRequest.FromString((await stream.outgoing.get()).value)
            assert (asked.host, asked.reference) == (server.address, f"{server.address}/app:1")

    run(context, test)


def test_a_client_that_has_left_ends_its_transfer(context: Context) -> None:
    async def test(transfers: Transfers) -> None:
        with ScriptedRegistry() as server:
            server.image("app", "1", tar(("a", b"1")))
            transfers.cancelled = True
            with pytest.raises(Cancelled):
                await transfers.pull(server)
            assert server.requests == []

    run(context, test)


async def feed(stream: Stream, data: bytes) -> None:
    """A client that sends, within the windows that it is granted."""
    window = 0
    while data:
        while not window:
            window += streaming_pb2.WindowUpdate.FromString((await stream.outgoing.get()).value).update
        chunk, data = data[:window], data[window:]
        window -= len(chunk)
        packed = any_pb2.Any()
        pack(packed, streaming_pb2.Data(data=chunk))
        await stream.incoming.put(packed)
    await stream.incoming.put(CLOSED)


async def drain(stream: Stream) -> bytes:
    """A client that receives, and grants windows as it goes."""
    received = b""
    while True:
        packed = any_pb2.Any()
        pack(packed, streaming_pb2.WindowUpdate(update=40_000))
        await stream.incoming.put(packed)
        message = await stream.outgoing.get()
        if message is CLOSED:
            return received
        received += streaming_pb2.Data.FromString(message.value).data


def test_out_into_an_archive_and_in_again(context: Context) -> None:
    async def test(transfers: Transfers) -> None:
        layer = tar(("a", bytes(range(256)) * 2000))
        with ScriptedRegistry() as server:
            target = server.image("app", "1", layer, compression="")
            await transfers.pull(server)
        stream = context.streams.register(NS, "out")
        receiving = asyncio.create_task(drain(stream))
        source = imagestore_pb2.ImageStore(extra_references=[imagestore_pb2.ImageReference(name="i")])
        await transfers.run(archives.save, source, importexport_pb2.ImageExportStream(stream="out"))
        # the client's last window may have no taker
        archive = await receiving
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            index = json.load(opened.extractfile("index.json") or io.BytesIO())
            assert index["manifests"][0]["digest"] == target["digest"]
            assert "blobs/sha256/" + digest_of(layer).partition(":")[2] in opened.getnames()
        context.images.delete(NS, "i")
        context.collector.collect()
        assert list(context.content.find(NS)) == []
        stream = context.streams.register(NS, "in")
        sending = asyncio.create_task(feed(stream, archive))
        prefix = imagestore_pb2.ImageReference(name="i", is_prefix=True, add_digest=True)
        await transfers.run(
            archives.load,
            importexport_pb2.ImageImportStream(stream="in"),
            imagestore_pb2.ImageStore(extra_references=[prefix]),
        )
        await sending
        names = {image.name: image.target.digest for image in context.images.find(NS)}
        assert names[f"i@{target['digest']}"] == target["digest"]
        assert context.content.info(NS, digest_of(layer)).size == len(layer)

    run(context, test)


def test_what_is_no_archive(context: Context) -> None:
    async def test(transfers: Transfers) -> None:
        sending = asyncio.create_task(feed(context.streams.register(NS, "in"), b"no archive at all" * 100))
        with pytest.raises(InvalidArgument, match="^import: "):
            await transfers.run(
                archives.load, importexport_pb2.ImageImportStream(stream="in"), imagestore_pb2.ImageStore(name="i")
            )
        await sending
        assert context.images.find(NS) == []
        with pytest.raises(NotFound, match='stream "none"'):
            await transfers.run(
                archives.load, importexport_pb2.ImageImportStream(stream="none"), imagestore_pb2.ImageStore(name="i")
            )

    run(context, test)


def test_side_by_side() -> None:
    done: list[int] = []

    def fail() -> None:
        raise ValueError("one of them")

    with pytest.raises(ValueError, match="one of them"):
        in_parallel(2, [lambda: done.append(1), fail, lambda: done.append(2)])
    assert sorted(done) == [1, 2]


@root_only
def test_the_policy_is_asked_before_anything_is_stored(context: Context, tmp_path: Path) -> None:
    async def test(transfers: Transfers) -> None:
        policy = tmp_path / "policy.yaml"
        transfers.parts = dataclasses.replace(transfers.parts, policy=str(policy))
        with ScriptedRegistry() as server:
            amd = server.image("app", "amd", tar(("a", b"1")))
            inner = server.index("app", "inner", amd64=amd)
            server.index("app", "1", amd64=inner)
            policy.write_text("default: {require: reject}\n")
            with pytest.raises(registry.NotAllowed, match=r"app:1 is refused by .*:1: default: it lets no image in"):
                await transfers.pull(server, platforms=[AMD64])
            assert not list(context.content.find(NS)) and not context.images.find(NS)
            key = made.new_key("ed25519")
            (tmp_path / "k.pub").write_bytes(made.public_pem(key))
            policy.write_text(f"default: {{cosign: {{keys: [{tmp_path}/k.pub]}}}}\n")
            with pytest.raises(registry.NotAllowed, match="there is nothing of that kind at the registry"):
                await transfers.pull(server, platforms=[AMD64])
            signature = made.simple_layer(key, made.payload(amd["digest"], f"{server.address}/app"))
            manifest, blobs = made.artifact([signature])
            for data in blobs:
                server.put(data)
            server.manifest("app", amd["digest"].replace(":", "-") + ".sig", made.OCI_MANIFEST, manifest)
            await transfers.pull(server, platforms=[AMD64])
        assert [image.name for image in context.images.find(NS)] == ["i"]

    run(context, test)


@root_only
def test_kubelets_images_are_read_again_when_something_is_stored(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each of its questions."""

    async def test(transfers: Transfers) -> None:
        images = cri_images.Images(transfers.parts, context.collector, "", [])
        with ScriptedRegistry() as server:
            server.image("app", "1", tar(("a", b"1")))
            id = await images.pull(f"{server.address}/app:1", cri.AuthConfig())
            name = f"{server.address}/app:1"
        assert not images.at_hand
        found = images.find(id)
        assert found and found.tags == [name] and images.at_hand
        with monkeypatch.context() as patch:
            patch.setattr(type(context.images), "find", lambda *_: pytest.fail("it is read again"))
            assert images.find(name) is images.find(id[:20]) is images.all()[id] is found
        target = context.images.get("k8s.io", name).target
        context.images.create("k8s.io", images_pb2.Image(name="other.test/b:2", target=target))
        assert not images.at_hand
        again = images.find(id)
        assert again and sorted(again.tags) == sorted([name, "other.test/b:2"]) and images.at_hand
        images.remove(id)
        assert images.find(id) is None and images.find(name) is None

    run(context, test)


@root_only
def test_kubelet_is_told_that_it_was_the_policy(context: Context, tmp_path: Path) -> None:
    async def test(transfers: Transfers) -> None:
        policy = tmp_path / "policy.yaml"
        policy.write_text("default: {require: reject}\n")
        parts = dataclasses.replace(transfers.parts, policy=str(policy))
        images = cri_images.Images(parts, context.collector, "", [])
        with ScriptedRegistry() as server:
            server.image("app", "1", tar(("a", b"1")))
            with pytest.raises(Unknown, match=r"^SignatureValidationFailed: .*/app:1 is refused by .*policy.yaml:1: "):
                await images.pull(f"{server.address}/app:1", cri.AuthConfig())
        assert not context.images.find("k8s.io")

    run(context, test)
