# SPDX-License-Identifier: Apache-2.0
"""The daemon as clients meet it: its gRPC wire, its command line, its death."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from containerd_parts import TREE, Daemon, find_method, root_only
from google.protobuf import any_pb2
from layertools import digest, tar
from test_stores import container

from teu.api.services.containers.v1 import containers_pb2, containers_pb2_grpc
from teu.api.services.content.v1 import content_pb2, content_pb2_grpc
from teu.api.services.diff.v1 import diff_pb2, diff_pb2_grpc
from teu.api.services.events.v1 import events_pb2, events_pb2_grpc
from teu.api.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from teu.api.services.streaming.v1 import streaming_pb2, streaming_pb2_grpc
from teu.api.types import sandbox_pb2
from teu.api.types.transfer import imagestore_pb2, importexport_pb2, progress_pb2
from teu.api.types.transfer import streaming_pb2 as data_pb2

S = "containerd.services."
HEADERS = [("containerd-namespace", "default")]


def code_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def write(daemon: Daemon, ref: str, data: bytes, chunk: int = 200_000, **headers: str) -> str:
    def requests() -> Any:
        yield content_pb2.WriteContentRequest(action=content_pb2.STAT, ref=ref, total=len(data), expected=digest(data))
        for at in range(0, len(data), chunk):
            yield content_pb2.WriteContentRequest(
                action=content_pb2.WRITE, ref=ref, offset=at, data=data[at : at + chunk]
            )
        yield content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT,
            ref=ref,
            offset=len(data),
            total=len(data),
            expected=digest(data),
            labels={"containerd.io/gc.root": "x"},
        )

    with daemon.channel() as channel:
        answers = list(content_pb2_grpc.ContentStub(channel).Write(requests(), metadata=[*HEADERS, *headers.items()]))
    return answers[-1].digest


def read(daemon: Daemon, name: str, offset: int = 0, size: int = 0) -> bytes:
    with daemon.channel() as channel:
        request = content_pb2.ReadContentRequest(digest=name, offset=offset, size=size)
        return b"".join(one.data for one in content_pb2_grpc.ContentStub(channel).Read(request, metadata=HEADERS))


def test_codes_and_messages(daemon: Daemon) -> None:
    get = daemon.raw(S + "containers.v1.Containers", "Get")
    assert code_of(lambda: get(id="x")) == (
        grpc.StatusCode.NOT_FOUND,
        'container "x" in namespace "default": not found',
    )
    assert code_of(lambda: get({"containerd-namespace": ""}, id="x")) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "namespace is required: failed precondition",
    )
    assert code_of(lambda: get({"containerd-namespace": "a b"}, id="x"))[0] == grpc.StatusCode.INVALID_ARGUMENT
    create = daemon.raw(S + "containers.v1.Containers", "Create")
    create(container=container("c"))
    assert code_of(lambda: create(container=container("c"))) == (
        grpc.StatusCode.ALREADY_EXISTS,
        'container "c": already exists',
    )
    bad = daemon.raw(S + "containers.v1.Containers", "List")
    assert code_of(lambda: bad(filters=["id=x"]))[0] == grpc.StatusCode.INVALID_ARGUMENT
    blob = daemon.raw(S + "content.v1.Content", "Info")
    assert code_of(lambda: blob(digest="nonsense"))[0] == grpc.StatusCode.INVALID_ARGUMENT
    apply = daemon.raw(S + "diff.v1.Diff", "Apply")
    assert code_of(lambda: apply(diff={"media_type": "image/png"}))[0] == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "path",
    [
        "version.v1.Version/Version",
        "containers.v1.Containers/Get",
        "events.v1.Events/Subscribe",
        "content.v1.Content/Write",
        "streaming.v1.Streaming/Stream",
        "tasks.v1.Tasks/Create",
    ],
)
def test_what_is_no_message_is_refused_as_by_every_server_of_grpc(shared: Daemon, path: str) -> None:
    """Status and words are grpc-go's, which containerd is made with; not the error of our language."""
    with shared.channel() as channel:
        call = channel.stream_stream(f"/{S}{path}", lambda data: data, lambda data: data)
        code, text = code_of(lambda: list(call(iter([b"\xff\xff"]), metadata=HEADERS, timeout=30)))
    assert code == grpc.StatusCode.INTERNAL
    assert text.startswith("grpc: error unmarshalling request: ") and "class" not in text


def test_what_is_packed_into_a_message_and_is_none_is_refused(shared: Daemon) -> None:
    from google.protobuf import any_pb2

    from teu.api.services.transfer.v1 import transfer_pb2

    packed = any_pb2.Any(type_url=data_pb2.DESCRIPTOR.message_types_by_name["Data"].full_name, value=b"\xff\xff")
    request = transfer_pb2.TransferRequest(source=packed, destination=packed)
    with shared.channel() as channel:
        call = channel.unary_unary(f"/{S}transfer.v1.Transfer/Transfer", lambda one: one.SerializeToString(), bytes)
        code, text = code_of(lambda: call(request, metadata=HEADERS, timeout=30))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "DecodeError" not in text, text


def test_introspection_and_version(shared: Daemon) -> None:
    plugins = shared.call(
        S + "introspection.v1.Introspection", "Plugins", filters=['type=="io.containerd.snapshotter.v1"']
    )
    assert [(one.id, one.platforms[0].os) for one in plugins.plugins] == [("native", "linux"), ("overlayfs", "linux")]
    server = shared.call(S + "introspection.v1.Introspection", "Server")
    assert shared.process and server.pid == shared.process.pid and len(server.uuid) == 36
    assert server.pidns == os.stat("/proc/self/ns/pid").st_ino
    assert shared.call(S + "version.v1.Version", "Version").version[0] in "12"


def test_reflection_tells_every_service(shared: Daemon) -> None:
    from teu.api.grpc.reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with shared.channel() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=S + "content.v1.Content"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such"),
        ]
        names, files, none = list(stub.ServerReflectionInfo(iter(asked)))
    found = {one.name for one in names.list_services_response.service}
    for name in (
        "containers",
        "content",
        "diff",
        "events",
        "images",
        "introspection",
        "leases",
        "namespaces",
        "snapshots",
        "tasks",
        "transfer",
        "streaming",
        "version",
    ):
        assert any(one.startswith(f"{S}{name}.v1.") for one in found), name
    assert S + "sandbox.v1.Store" in found and S + "sandbox.v1.Controller" in found
    assert any(b"content.proto" in one for one in files.file_descriptor_response.file_descriptor_proto)
    assert none.error_response.error_code == 5


def test_every_method_of_the_api_is_served(shared: Daemon) -> None:
    """None answers UNIMPLEMENTED to an empty request, the mount manager of 2.2 aside."""
    from google.protobuf import descriptor_pool

    find_method(S + "version.v1.Version", "Version")  # loads them all
    missing = []
    listed = subprocess.run(
        ["grep", "-rhE", "^(package|service)", str(TREE / "protos/teu/api/services")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    package = ""
    with shared.channel() as channel:
        for line in listed:
            if line.startswith("package"):
                package = line.split()[1].rstrip(";")
            elif line.startswith("service") and "ttrpc" not in package and "mounts" not in package:
                service = f"{package}.{line.split()[1]}"
                for method in descriptor_pool.Default().FindServiceByName(service).methods:
                    call = channel.stream_stream(f"/{service}/{method.name}")
                    with suppress(grpc.RpcError):
                        answers = call(iter([b""]), metadata=HEADERS, timeout=0.5)
                        for _ in answers:
                            break
                        answers.cancel()
                    if answers.code() == grpc.StatusCode.UNIMPLEMENTED and "ethod not found" in (
                        answers.details() or ""
                    ):
                        missing.append(f"{service}/{method.name}")
    assert missing == []


def test_content_over_the_wire(shared: Daemon) -> None:
    data = os.urandom(3_000_000)
    name = write(shared, "ref", data)
    assert name == digest(data)
    assert read(shared, name) == data
    assert read(shared, name, 1_000_000, 5) == data[1_000_000:1_000_005]
    assert code_of(lambda: read(shared, name, 4_000_000))[0] == grpc.StatusCode.OUT_OF_RANGE
    assert code_of(lambda: write(shared, "ref", data))[0] == grpc.StatusCode.ALREADY_EXISTS
    assert code_of(lambda: write(shared, "", data))[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_a_client_that_vanishes_frees_its_ingest(shared: Daemon) -> None:
    gone = threading.Event()

    def requests() -> Any:
        yield content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="r", data=b"x" * 100_000)
        gone.wait(20)

    channel = shared.channel()
    answers = content_pb2_grpc.ContentStub(channel).Write(requests(), metadata=HEADERS)
    assert next(answers).offset == 100_000
    assert code_of(lambda: write(shared, "r", b"y"))[0] == grpc.StatusCode.UNAVAILABLE
    channel.close()
    gone.set()
    data = b"x" * 100_000 + b"rest"

    def rest() -> Any:
        yield content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT, ref="r", offset=100_000, data=b"rest", total=len(data), expected=digest(data)
        )

    deadline = time.monotonic() + 10
    while True:
        with shared.channel() as other:
            try:
                (answer,) = content_pb2_grpc.ContentStub(other).Write(rest(), metadata=HEADERS)
                break
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE and time.monotonic() < deadline, error
                time.sleep(0.05)
    assert answer.digest == digest(data)


def test_events_reach_subscribers_with_filters(shared: Daemon) -> None:
    with shared.channel() as channel:
        stub = events_pb2_grpc.EventsStub(channel)
        stream = stub.Subscribe(events_pb2.SubscribeRequest(filters=['topic~="/containers/.*",event.id==two']))
        deadline = time.monotonic() + 10
        found: list[Any] = []
        threading.Thread(target=lambda: found.append(next(stream)), daemon=True).start()
        number = 0
        while not found and time.monotonic() < deadline:
            number += 1  # a subscription is there at some moment after the call; the client is not told when
            shared.call(
                S + "containers.v1.Containers",
                "Create",
                {"containerd-namespace": f"n{number}"},
                container=container("one"),
            )
            shared.call(
                S + "containers.v1.Containers",
                "Create",
                {"containerd-namespace": f"n{number}"},
                container=container("two"),
            )
        assert found[0].topic == "/containers/create" and found[0].event.type_url == "containerd.events.ContainerCreate"
        stream.cancel()


def packed(message: Any) -> dict[str, Any]:
    """As an Any's fields."""
    return {"type_url": message.DESCRIPTOR.full_name, "value": message.SerializeToString()}


def test_subscribers_are_told_of_the_stop(make_daemon: Callable[..., Daemon]) -> None:
    """A stop does not wait for them to leave, nor cut them off without a word."""
    daemon = make_daemon()
    with daemon.channel() as channel:
        stream = events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest())
        first: list[Any] = []
        reader = threading.Thread(target=lambda: first.append(next(stream)))
        reader.start()
        publish = events_pb2.PublishRequest(topic="/x", event=any_pb2.Any(type_url="x"))
        while reader.is_alive():  # the client is not told when its subscription is there
            events_pb2_grpc.EventsStub(channel).Publish(publish, metadata=HEADERS)
            reader.join(0.01)
        assert first[0].topic == "/x"
        daemon.stop()
        with pytest.raises(grpc.RpcError) as ended:
            for _ in stream:
                pass
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
    assert ended.value.details() == "the daemon is stopping: unavailable"


def test_subscribers_are_told_of_the_stop_in_the_middle_of_an_event(make_daemon: Callable[..., Daemon]) -> None:
    """Also while one is on its way to them."""
    daemon = make_daemon()
    for _ in range(3):
        with daemon.channel() as channel, daemon.channel() as other:
            stream = events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest())
            publish = events_pb2.PublishRequest(topic="/x", event=any_pb2.Any(type_url="x", value=bytes(10000)))

            def go_on(channel: Any = other, request: Any = publish) -> None:
                stub = events_pb2_grpc.EventsStub(channel)
                with suppress(grpc.RpcError):
                    while True:
                        stub.Publish(request, metadata=HEADERS)

            publisher = threading.Thread(target=go_on)
            publisher.start()
            next(stream)
            stopper = threading.Thread(target=daemon.stop)
            stopper.start()
            with pytest.raises(grpc.RpcError) as ended:
                for _ in stream:
                    pass
            stopper.join()
            publisher.join()
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert ended.value.details() == "the daemon is stopping: unavailable"
        daemon.start()


def test_a_thousand_idle_connections(shared: Daemon) -> None:
    idle = []
    for _ in range(1000):
        one = socket.socket(socket.AF_UNIX)
        one.connect(shared.address)
        one.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        idle.append(one)
    began = time.monotonic()
    for _ in range(20):
        shared.call(S + "version.v1.Version", "Version")
    assert time.monotonic() - began < 5
    for one in idle:
        one.close()


def test_latency_of_a_lookup(shared: Daemon) -> None:
    shared.call(S + "containers.v1.Containers", "Create", container=container("looked-up"))
    with shared.channel() as channel:
        stub = containers_pb2_grpc.ContainersStub(channel)
        request = containers_pb2.GetContainerRequest(id="looked-up")
        stub.Get(request, metadata=HEADERS)
        times = []
        for _ in range(200):
            began = time.perf_counter()
            stub.Get(request, metadata=HEADERS)
            times.append(time.perf_counter() - began)
    median = sorted(times)[100]
    print(f"Containers.Get: {median * 1000:.2f} ms")
    assert median < 0.02


@root_only
def test_apply_and_diff_over_the_wire(shared: Daemon) -> None:
    data = tar(("a", b"1"), ("d/", None), ("d/b", b"2"))
    name = write(shared, "layer", data)
    with shared.channel() as channel:
        snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        mounts = snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter="overlayfs", key="k", labels={"containerd.io/gc.root": "x"}
            ),
            metadata=HEADERS,
        ).mounts
        layer = {"media_type": "application/vnd.oci.image.layer.v1.tar", "digest": name, "size": len(data)}
        applied = shared.call(S + "diff.v1.Diff", "Apply", diff=layer, mounts=mounts).applied
        assert (applied.digest, applied.size) == (name, len(data))
        made = shared.call(
            S + "diff.v1.Diff",
            "Diff",
            right=mounts,
            media_type="application/vnd.oci.image.layer.v1.tar+gzip",
            labels={"containerd.io/gc.root": "x"},
        ).diff
        info = shared.call(S + "content.v1.Content", "Info", digest=made.digest).info
        assert info.size == made.size and info.labels["containerd.io/uncompressed"].startswith("sha256:")
        with tarfile.open(fileobj=io.BytesIO(read(shared, made.digest))) as archive:
            assert archive.getnames() == ["a", "d", "d/b"]
        listed = list(snapshots.List(snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs"), metadata=HEADERS))
        assert [one.name for answer in listed for one in answer.info] == ["k"]


@root_only
def test_a_client_that_leaves_ends_its_unpacking(shared: Daemon) -> None:
    data = tar(*((f"f{number}", b"x") for number in range(30_000)))
    name = write(shared, "layer", data, 1 << 20)
    target = shared.folder / "tree"
    target.mkdir()
    mount = {"type": "bind", "source": str(target), "options": ["rw"]}
    layer = {"media_type": "application/vnd.oci.image.layer.v1.tar", "digest": name, "size": len(data)}
    assert shared.process
    with shared.channel() as channel:
        apply = diff_pb2_grpc.DiffStub(channel).Apply
        call = apply.future(diff_pb2.ApplyRequest(diff=layer, mounts=[mount]), metadata=HEADERS)
        deadline = time.monotonic() + 20
        while not (target / "f100").exists():
            assert time.monotonic() < deadline and not call.done()
            time.sleep(0.01)
        call.cancel()
    children = ["pgrep", "-f", "-P", str(shared.process.pid), "layers.worker"]
    while subprocess.run(children, capture_output=True).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (target / "f29999").exists()


def image_archive(name: str, layer: bytes) -> bytes:
    def blob(data: bytes) -> dict[str, Any]:
        files["blobs/sha256/" + hashlib.sha256(data).hexdigest()] = data
        return {"digest": digest(data), "size": len(data)}

    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    kind = "application/vnd.oci.image."
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(layer)]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind + "manifest.v1+json",
        "config": {"mediaType": kind + "config.v1+json", **blob(json.dumps(config).encode())},
        "layers": [{"mediaType": kind + "layer.v1.tar", **blob(layer)}],
    }
    entry = {"mediaType": kind + "manifest.v1+json", **blob(json.dumps(manifest).encode())}
    entry["annotations"] = {"io.containerd.image.name": name}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    return tar(*files.items())


def open_stream(channel: Any, name: str, handle: Callable[[Any, Callable[[Any], None]], bool]) -> threading.Thread:
    """A client's end of a stream: `handle(message, send)` until it answers False or the server closes."""
    import queue

    from google.protobuf import any_pb2

    out: queue.Queue[Any] = queue.Queue()

    def send(message: Any) -> None:
        out.put(any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString()))

    send(streaming_pb2.StreamInit(id=name))
    answers = streaming_pb2_grpc.StreamingStub(channel).Stream(iter(out.get, None), metadata=HEADERS)
    assert next(answers).type_url == "google.protobuf.Empty"

    def work() -> None:
        for message in answers:
            if not handle(message, send):
                out.put(None)  # the call itself goes on until the server ends it
        out.put(None)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@root_only
def test_transfer_import_unpack_tag_export(daemon: Daemon) -> None:
    layer = tar(("etc/", None), ("etc/x", os.urandom(500_000)))
    archive = io.BytesIO(image_archive("docker.io/library/t:1", layer))
    events: list[str] = []
    out = io.BytesIO()

    def feed(message: Any, send: Callable[[Any], None]) -> bool:
        assert message.type_url == "containerd.types.transfer.WindowUpdate"
        window = data_pb2.WindowUpdate.FromString(message.value).update
        data = archive.read(window)
        while data:
            send(data_pb2.Data(data=data[: 32 << 10]))
            data = data[32 << 10 :]
        return archive.tell() < len(archive.getvalue())

    def progress(message: Any, send: Callable[[Any], None]) -> bool:
        events.append(progress_pb2.Progress.FromString(message.value).event)
        return True

    def take(message: Any, send: Callable[[Any], None]) -> bool:
        out.write(data_pb2.Data.FromString(message.value).data)
        send(data_pb2.WindowUpdate(update=64 << 10))
        return True

    with daemon.channel() as channel:
        threads = [open_stream(channel, "in", feed), open_stream(channel, "progress", progress)]
        store = imagestore_pb2.ImageStore(
            name="kept:1", unpacks=[imagestore_pb2.UnpackConfiguration(snapshotter="overlayfs")]
        )
        transfer = daemon.raw(S + "transfer.v1.Transfer", "Transfer")
        transfer(
            source=packed(importexport_pb2.ImageImportStream(stream="in")),
            destination=packed(store),
            options={"progress_stream": "progress"},
        )
        for thread in threads:
            thread.join(10)
        assert "saved" in events and events[-1] == "Completed import"
        transfer(
            source=packed(imagestore_pb2.ImageStore(name="kept:1")),
            destination=packed(imagestore_pb2.ImageStore(name="tag:1")),
        )
        names = [one.name for one in daemon.call(S + "images.v1.Images", "List").images]
        assert names == ["kept:1", "tag:1"]
        stat = daemon.raw(S + "snapshots.v1.Snapshots", "Stat")
        assert stat(snapshotter="overlayfs", key=digest(layer)).info.kind == 3

        def ready(message: Any, send: Callable[[Any], None]) -> bool:
            return take(message, send)

        thread = open_stream_with_window(channel, "out", ready)
        transfer(source=packed(store), destination=packed(importexport_pb2.ImageExportStream(stream="out")))
        thread.join(10)
        with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as exported:
            assert digest(layer).replace("sha256:", "blobs/sha256/") in exported.getnames()
        code, text = code_of(lambda: transfer(source=packed(sandbox_pb2.Sandbox()), destination=packed(store)))
        assert (code, "not implemented" in text) == (grpc.StatusCode.UNIMPLEMENTED, True)
        assert not daemon.call(S + "leases.v1.Leases", "List").leases


@root_only
@pytest.mark.parametrize("size", [0, 11, 200_000])
def test_transfer_echo(daemon: Daemon, size: int) -> None:
    """A stream given to a stream comes back as it was, and both ends are closed."""
    sent, out = io.BytesIO(os.urandom(size)), io.BytesIO()

    def feed(message: Any, send: Callable[[Any], None]) -> bool:
        window = data_pb2.WindowUpdate.FromString(message.value).update
        data = sent.read(window)
        while data:
            send(data_pb2.Data(data=data[: 32 << 10]))
            data = data[32 << 10 :]
        return sent.tell() < size

    def take(message: Any, send: Callable[[Any], None]) -> bool:
        out.write(data_pb2.Data.FromString(message.value).data)
        send(data_pb2.WindowUpdate(update=64 << 10))
        return True

    with daemon.channel() as channel:
        threads = [open_stream(channel, "in", feed), open_stream_with_window(channel, "out", take)]
        daemon.raw(S + "transfer.v1.Transfer", "Transfer")(
            source=packed(importexport_pb2.ImageImportStream(stream="in")),
            destination=packed(importexport_pb2.ImageExportStream(stream="out")),
        )
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert out.getvalue() == sent.getvalue()


def open_stream_with_window(channel: Any, name: str, handle: Any) -> threading.Thread:
    """A receiver's stream: it grants its first window by itself."""
    import queue

    from google.protobuf import any_pb2

    out: queue.Queue[Any] = queue.Queue()

    def send(message: Any) -> None:
        out.put(any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString()))

    send(streaming_pb2.StreamInit(id=name))
    answers = streaming_pb2_grpc.StreamingStub(channel).Stream(iter(out.get, None), metadata=HEADERS)
    next(answers)
    send(data_pb2.WindowUpdate(update=64 << 10))

    def work() -> None:
        for message in answers:
            handle(message, send)
        out.put(None)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_sandbox_records(shared: Daemon) -> None:
    sandbox = sandbox_pb2.Sandbox(sandbox_id="s")
    sandbox.runtime.name = "io.containerd.teu.v2"
    shared.call(S + "sandbox.v1.Store", "Create", sandbox=sandbox)
    assert [one.sandbox_id for one in shared.call(S + "sandbox.v1.Store", "List").list] == ["s"]
    # One that does not run has exited, as containerd says.
    assert shared.call(S + "sandbox.v1.Controller", "Status", sandbox_id="s").HasField("exited_at")
    shared.call(S + "sandbox.v1.Store", "Delete", sandbox_id="s")


def test_ttrpc_events(shared: Daemon) -> None:
    """A shim's event over the ttrpc socket arrives at a gRPC subscriber; other methods are refused."""
    from teu.api.services.ttrpc.events.v1 import events_pb2 as forward_pb2
    from teu.ttrpc import frames, messages

    request = forward_pb2.ForwardRequest()
    request.envelope.namespace, request.envelope.topic = "n", "/tasks/oom"
    request.envelope.timestamp.seconds = 5
    request.envelope.event.type_url = "containerd.events.TaskOOM"

    def ask(connection: socket.socket, stream: int, method: str) -> dict[str, Any]:
        fields = {
            "service": "containerd.services.events.ttrpc.v1.Events",
            "method": method,
            "payload": request.SerializeToString(),
        }
        connection.sendall(frames.pack(stream, frames.REQUEST, messages.encode("ttrpc.Request", fields)))
        reader = frames.Reader()
        while not (complete := reader.feed(connection.recv(65536))):
            pass
        assert complete[0][0] == stream
        return messages.decode("ttrpc.Response", complete[0][3])

    with shared.channel() as channel, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(shared.address + ".ttrpc")
        stream = events_pb2_grpc.EventsStub(channel).Subscribe(
            events_pb2.SubscribeRequest(filters=['topic=="/tasks/oom"'])
        )
        found: list[Any] = []
        threading.Thread(target=lambda: found.append(next(stream)), daemon=True).start()
        number, deadline = 1, time.monotonic() + 10
        while not found and time.monotonic() < deadline:
            assert not (ask(connection, number, "Forward").get("status") or {}).get("code")
            number += 2
        assert (found[0].namespace, found[0].timestamp.seconds) == ("n", 5)
        assert ask(connection, number, "Delete")["status"]["code"] == 12
        stream.cancel()


def test_metrics_page(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    page = tmp_path / "m.sock"
    daemon = make_daemon(f"metrics:\n  address: {page}\n")
    daemon.call(S + "version.v1.Version", "Version")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(page))
        connection.sendall(b"GET /v1/metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert "200 OK" in text
    assert (
        'grpc_server_handled_total{grpc_code="OK",grpc_method="Version",'
        'grpc_service="containerd.services.version.v1.Version",grpc_type="unary"} 1' in text
    )
    assert 'containerd_gc_collections_total{status="success"}' in text


# The command line and the process


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TREE / "bin/teu-containerd"), *argv], capture_output=True, text=True, timeout=30, check=False
    )


def test_validate(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("log-level: debug\nsnapshots:\n  sync: false\n")
    assert run("--validate", "--config", str(file)).returncode == 0
    file.write_text("log-level: debug\nrot: /x\n")
    done = run("--validate", "--config", str(file))
    assert done.returncode != 0 and f"{file}:2" in done.stderr and "rot" in done.stderr
    assert run("--validate", "--config", str(tmp_path / "none.yaml")).returncode != 0


def test_reload_and_stop(daemon: Daemon) -> None:
    assert daemon.process
    daemon.config.write_text(daemon.config.read_text() + "log-level: debug\n")
    daemon.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 10
    while "configuration read again: changed log-level" not in (daemon.folder / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert daemon.stop() == 0


def activated(daemon: Daemon, sockets: list[socket.socket]) -> subprocess.Popen[bytes]:
    """Start it as systemd does, with the sockets as descriptors 3 and 4.

    They are put there by the child's own program: Python's fork, which a preexec_fn needs, can wait forever for
    grpc's threads.
    """
    program = (
        "import fcntl, os, sys; given = [int(word) for word in sys.argv[1].split(',')];"
        "kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in given];"
        "[os.close(fd) for fd in given]; [os.dup2(fd, number) for number, fd in enumerate(kept, 3)];"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)));"
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    numbers = [one.fileno() for one in sockets]
    with open(daemon.folder / "log", "ab") as log:
        return subprocess.Popen(
            [
                "/usr/bin/python3",
                "-c",
                program,
                ",".join(map(str, numbers)),
                str(TREE / "bin/teu-containerd"),
                "--config",
                str(daemon.config),
            ],
            pass_fds=numbers,
            stderr=log,
        )


def test_socket_activation_and_idle_exit(make_daemon: Callable[..., Daemon]) -> None:
    """The sockets are somebody else's: calls that wait in the backlog are answered, an idle daemon leaves, the next
    start serves the same sockets."""
    daemon = make_daemon("idle-exit: 300ms\n")
    daemon.stop()
    sockets = []
    for path in (daemon.address, daemon.address + ".ttrpc"):
        with suppress(FileNotFoundError):
            os.unlink(path)
        one = socket.socket(socket.AF_UNIX)
        one.bind(path)
        one.listen(128)
        sockets.append(one)
    for _ in range(2):
        found: list[Any] = []

        def ask(into: list[Any] = found) -> None:
            into.append(daemon.call(S + "version.v1.Version", "Version"))

        caller = threading.Thread(target=ask)
        caller.start()
        daemon.process = activated(daemon, sockets)
        caller.join(20)
        assert found
        assert daemon.process.wait(20) == 0
    log = (daemon.folder / "log").read_text()
    assert "idle for" in log and "relayed" not in log, "this grpcio takes an inherited socket"


def test_kill_at_any_moment_loses_nothing_acknowledged(daemon: Daemon) -> None:
    """Blobs and containers that were acknowledged are there after kill -9, and verify."""
    rounds = 5  # many more in tests/system/test_containerd_faults.py
    kept: dict[str, bytes] = {}
    records: set[str] = set()
    partial = 0
    for number in range(rounds):
        killer = threading.Timer(random.uniform(0.02, 0.4), daemon.kill)
        killer.start()
        try:
            for index in range(1000):
                data = os.urandom(random.choice((10, 100_000, 900_000)))
                kept[write(daemon, f"r{number}-{index}", data, 100_000)] = data
                id = f"c{number}-{index}"
                daemon.call(S + "containers.v1.Containers", "Create", container=container(id))
                records.add(id)
        except (grpc.RpcError, ValueError):
            partial += 1
        killer.join()
        daemon.start()
        assert {one.id for one in daemon.call(S + "containers.v1.Containers", "List").containers} >= records
        for name, data in list(kept.items())[-40:]:
            assert read(daemon, name) == data
    blobs = os.listdir(daemon.folder / "root/content/blobs/sha256")
    for encoded in blobs:
        content = (daemon.folder / "root/content/blobs/sha256" / encoded).read_bytes()
        assert hashlib.sha256(content).hexdigest() == encoded
    print(f"{rounds} kills, {len(kept)} blobs and {len(records)} records kept, {partial} cut off")
    assert {f"sha256:{encoded}" for encoded in blobs} >= set(kept)
    with sqlite3.connect(daemon.folder / "root/metadata.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_an_exit_wakes_who_wants_to_know(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """A stopped engine's socket is knocked at when a task ends, and not when one starts."""
    from teu.api.events import task_pb2

    path = tmp_path / "engine.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(10)
    daemon = make_daemon(f"wake: [unix://{path}, {tmp_path}/nobody.sock]\n")
    exit_event = task_pb2.TaskExit(container_id="c", id="c")
    publish = daemon.raw(S + "events.v1.Events", "Publish")
    event = {"type_url": "containerd.events.TaskExit", "value": exit_event.SerializeToString()}
    publish(topic="/tasks/start", event=event)
    publish(topic="/tasks/exit", event=event)
    listener.accept()[0].close()
    listener.settimeout(0.5)
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()


def test_a_proxy_that_is_away_stops_nobody(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = make_daemon(
        f"snapshots:\n  proxies:\n    far:\n      address: {tmp_path}/far.sock\n      capabilities: [x]\n"
    )
    plugins = daemon.call(S + "introspection.v1.Introspection", "Plugins", filters=["id==far"]).plugins
    assert [(one.type, list(one.capabilities)) for one in plugins] == [("io.containerd.snapshotter.v1", ["x"])]
    prepare = daemon.raw(S + "snapshots.v1.Snapshots", "Prepare")
    assert code_of(lambda: prepare(snapshotter="far", key="k"))[0] == grpc.StatusCode.UNAVAILABLE
    assert code_of(lambda: prepare(snapshotter="near", key="k"))[0] == grpc.StatusCode.INVALID_ARGUMENT
    name = write(daemon, "ref", b"x" * 1000)
    daemon.call(S + "content.v1.Content", "Delete", digest=name)
    daemon.call(S + "leases.v1.Leases", "Create", id="l")
    daemon.call(S + "leases.v1.Leases", "Delete", id="l", sync=True)
    assert os.listdir(daemon.folder / "root/content/blobs/sha256") == [], "the collection goes on without it"
    assert "clean up snapshotter far" in (daemon.folder / "log").read_text()


def test_a_refused_call_does_not_keep_its_connection(shared: Daemon) -> None:
    """Not until Python collects circles, which it does seldom in a daemon at rest."""
    assert shared.process
    descriptors = Path(f"/proc/{shared.process.pid}/fd")

    def count() -> int:
        return len(os.listdir(descriptors))

    def ask() -> None:
        # A connection of its own for each: a channel's are shared otherwise.
        alone = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{shared.address}", options=alone) as channel:
            content = content_pb2_grpc.ContentStub(channel)
            missing = "sha256:" + "0" * 64
            for call in (
                lambda: content.Info(content_pb2.InfoRequest(digest=missing), metadata=HEADERS),
                lambda: list(content.Read(content_pb2.ReadContentRequest(digest=missing), metadata=HEADERS)),
                lambda: list(content.Write(iter([content_pb2.WriteContentRequest()]), metadata=HEADERS)),
            ):
                with pytest.raises(grpc.RpcError):
                    call()

    ask()
    before = count()
    for _ in range(40):
        ask()
    deadline = time.monotonic() + 20
    # Some wait for the youngest of the collections, which come often.
    while count() > before + 15:
        assert time.monotonic() < deadline, f"{before} descriptors before, {count()} now"
        time.sleep(0.05)
