# SPDX-License-Identifier: Apache-2.0
"""The services on a gRPC server in this process, with a shim that has no container: requests, answers, status codes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from containerd_parts import find_method
from fakeshim import ENDED, NS, House, Test
from google.protobuf import any_pb2

from teu.api.grpc.reflection.v1 import reflection_pb2
from teu.api.services.content.v1 import content_pb2
from teu.api.services.streaming.v1 import streaming_pb2
from teu.api.types import descriptor_pb2, introspection_pb2, sandbox_pb2
from teu.api.types.transfer import imagestore_pb2
from teu.containerd import daemon
from teu.containerd.core.errors import NotFound
from teu.containerd.core.events import pack
from teu.containerd.server.rpc import Server
from teu.containerd.services.tasks import NEVER
from teu.ttrpc import messages as m

S = "containerd.services."
TASKS = S + "tasks.v1.Tasks"


class Client:
    """Calls by the names of service and method."""

    def __init__(self, channel: Any, server: Server) -> None:
        self.channel, self.server = channel, server

    def _stub(self, kind: str, service: str, method: str) -> tuple[Any, Any]:
        descriptor = find_method(service, method)
        stub = getattr(self.channel, kind)(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=descriptor.output_type._concrete_class.FromString,
        )
        return stub, descriptor.input_type._concrete_class

    async def call(self, service: str, method: str, _namespace: str = NS, **fields: Any) -> Any:
        stub, request = self._stub("unary_unary", service, method)
        metadata = [("containerd-namespace", _namespace)] if _namespace else []
        return await stub(request(**fields), timeout=30, metadata=metadata)

    def stream(self, service: str, method: str, **fields: Any) -> Any:
        stub, request = self._stub("unary_stream", service, method)
        return stub(request(**fields), metadata=[("containerd-namespace", NS)])

    def both(self, service: str, method: str) -> Any:
        """A call with messages both ways."""
        return self._stub("stream_stream", service, method)[0](metadata=[("containerd-namespace", NS)])

    async def refused(self, service: str, method: str, **fields: Any) -> tuple[str, str]:
        """Code and message of the status."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(service, method, **fields)
        return caught.value.code().name, str(caught.value.details())


@contextlib.asynccontextmanager
async def serving(house: House) -> AsyncIterator[Client]:
    server, wrapped = daemon._build(house.context)
    address = f"unix:{house.context.root}/grpc.sock"
    server.add_insecure_port(address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Client(channel, wrapped)
    finally:
        wrapped.let_go()
        await server.stop(None)


def test_tasks_on_the_wire(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        house.container()
        async with serving(house) as client:
            assert await client.refused(TASKS, "Get", container_id="c") == ("NOT_FOUND", "task c not found")
            code, message = await client.refused(TASKS, "Get", _namespace="", container_id="c")
            assert (code, message) == ("FAILED_PRECONDITION", "namespace is required: failed precondition")
            made = await client.call(TASKS, "Create", container_id="c", stdout="/out", terminal=True)
            assert made.container_id == "c"
            process = (await client.call(TASKS, "Get", container_id="c")).process
            assert (process.id, process.pid, process.stdout, process.terminal) == ("c", made.pid, "/out", True)
            assert (process.status, process.exited_at.seconds) == (m.CREATED, NEVER)
            assert (await client.call(TASKS, "Start", container_id="c")).pid == made.pid
            assert [one.id for one in (await client.call(TASKS, "List")).tasks] == ["c"]
            assert await client.refused(TASKS, "Exec", container_id="c") == (
                "INVALID_ARGUMENT",
                "exec id cannot be empty: invalid argument",
            )
            await client.call(TASKS, "Exec", container_id="c", exec_id="e", spec=any_pb2.Any(type_url="p", value=b"{}"))
            await client.call(TASKS, "ResizePty", container_id="c", exec_id="e", width=3, height=4)
            await client.call(TASKS, "CloseIO", container_id="c", exec_id="e", stdin=True)
            await client.call(TASKS, "Kill", container_id="c", exec_id="e", signal=15)
            gone = await client.call(TASKS, "DeleteProcess", container_id="c", exec_id="e")
            assert (gone.id, gone.exit_status) == ("e", 143)
            pids = (await client.call(TASKS, "ListPids", container_id="c")).processes
            assert [(one.pid, one.HasField("info")) for one in pids] == [(1, False), (2, True)]
            for method in ("Pause", "Resume"):
                await client.call(TASKS, method, container_id="c")
            await client.call(TASKS, "Update", container_id="c", annotations={"a": "b"})
            (metric,) = (await client.call(TASKS, "Metrics", filters=["id==c"])).metrics
            assert (metric.id, metric.data.type_url) == ("c", "io.containerd.cgroups.v2.Metrics")
            assert metric.timestamp.seconds > 0
            waiting = asyncio.create_task(client.call(TASKS, "Wait", container_id="c"))
            await client.call(TASKS, "Kill", container_id="c", signal=9)
            ended = await waiting
            assert ended.exit_status == 137
            assert {"seconds": ended.exited_at.seconds, "nanos": ended.exited_at.nanos} == ENDED
            gone = await client.call(TASKS, "Delete", container_id="c")
            assert (gone.id, gone.pid, gone.exit_status) == ("", made.pid, 137)

    house(test)


def test_who_waits_is_told_that_the_daemon_stops(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        async with serving(house) as client:
            waiting = asyncio.create_task(client.refused(TASKS, "Wait", container_id="c"))
            while not client.server._held:
                await asyncio.sleep(0.01)
            client.server.let_go()
            assert await waiting == ("UNAVAILABLE", "the daemon is stopping: unavailable")

    house(test)


def test_calls_are_counted(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        async with serving(house) as client:
            key = (S + "containers.v1.Containers", "Get")
            await client.refused(*key, id="x")
            statistics = client.server.statistics
            while statistics.in_flight:  # the answer goes out before it is counted
                await asyncio.sleep(0.01)
            assert (statistics.started[key], statistics.received[key], statistics.sent[key]) == (1, 1, 0)
            assert statistics.handled == {(*key, "NOT_FOUND"): 1} and sum(statistics.seconds[key].counts) == 1
            assert statistics.kinds[key] == "unary"
            assert statistics.kinds[S + "events.v1.Events", "Subscribe"] == "server_stream"
            assert statistics.kinds[S + "content.v1.Content", "Write"] == "bidi_stream"

    house(test)


def test_sandboxes_on_the_wire(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        record = sandbox_pb2.Sandbox(sandbox_id="s", labels={"a": "b"})
        record.runtime.name = house.shim.program
        store, controller = S + "sandbox.v1.Store", S + "sandbox.v1.Controller"
        async with serving(house) as client:
            await client.call(store, "Create", sandbox=record)
            assert (await client.call(store, "Get", sandbox_id="s")).sandbox.labels == {"a": "b"}
            assert [one.sandbox_id for one in (await client.call(store, "List")).list] == ["s"]
            code, message = await client.refused(controller, "Create", sandbox_id="s", sandboxer="podsandbox")
            assert (code, message) == ("NOT_FOUND", "failed to get sandbox controller by podsandbox: not found")
            status = await client.call(controller, "Status", sandbox_id="s")
            assert (status.pid, status.created_at.seconds) == (0, NEVER) and status.exited_at.seconds > 0
            await client.call(controller, "Create", sandbox_id="s")  # with the record of the store
            begun = await client.call(controller, "Start", sandbox_id="s")
            assert (begun.pid, begun.address) == (77, f"unix://{house.shim.socket}")
            status = await client.call(controller, "Status", sandbox_id="s", verbose=True)
            assert (status.state, status.pid) == ("SANDBOX_READY", 77)
            waiting = asyncio.create_task(client.call(controller, "Wait", sandbox_id="s"))
            await client.call(controller, "Stop", sandbox_id="s", timeout_secs=3)
            assert house.shim.request("StopSandbox")["timeout_secs"] == 3
            house.shim.sandbox_ended.set()
            assert (await waiting).exit_status == 4
            await client.call(controller, "Shutdown", sandbox_id="s")
            await client.call(store, "Delete", sandbox_id="s")
            assert (await client.refused(store, "Get", sandbox_id="s"))[0] == "NOT_FOUND"
        assert house.topics() == ["/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"]

    house(test)


def test_introspection(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        service = S + "introspection.v1.Introspection"
        async with serving(house) as client:
            found = (await client.call(service, "Plugins", filters=["type==io.containerd.snapshotter.v1"])).plugins
            roots = {one.id: one.exports["root"] for one in found}
            assert roots == {name: f"{house.context.root}/snapshots/{name}" for name in ("native", "overlayfs")}
            asked = any_pb2.Any()
            pack(asked, introspection_pb2.RuntimeRequest(runtime_path=house.shim.program))
            info = await client.call(service, "PluginInfo", type="io.containerd.runtime.v2", id="task", options=asked)
            assert introspection_pb2.RuntimeInfo.FromString(info.extra.value).name == "fake"
            assert house.shim.words() == ["-info"]
            assert (await client.refused(service, "PluginInfo", type="none", id="none"))[0] == "NOT_FOUND"
            assert (await client.call(service, "Server")).uuid == house.context.database.uuid

    house(test)


def test_what_is_stored_on_the_wire(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        digest = "sha256:" + "a" * 64
        async with serving(house) as client:
            await client.call(S + "namespaces.v1.Namespaces", "Create", namespace={"name": "n", "labels": {"a": "b"}})
            found = (await client.call(S + "namespaces.v1.Namespaces", "Get", name="n")).namespace
            assert found.labels == {"a": "b"}
            lease = (await client.call(S + "leases.v1.Leases", "Create", id="l")).lease
            assert lease.id == "l"
            assert [one.id for one in (await client.call(S + "leases.v1.Leases", "List")).leases] == ["l"]
            target = descriptor_pb2.Descriptor(media_type="m", digest=digest, size=5)
            await client.call(S + "images.v1.Images", "Create", image={"name": "i", "target": target})
            assert (await client.call(S + "images.v1.Images", "Get", name="i")).image.target.digest == digest
            snapshots = S + "snapshots.v1.Snapshots"
            mounts = (await client.call(snapshots, "Prepare", snapshotter="native", key="k")).mounts
            assert [one.type for one in mounts] == ["bind"]
            assert (await client.call(snapshots, "Stat", snapshotter="native", key="k")).info.name == "k"
            assert (await client.refused(snapshots, "Stat", snapshotter="none", key="k"))[0] == "INVALID_ARGUMENT"
            assert (await client.refused(S + "content.v1.Content", "Info", digest=digest))[0] == "NOT_FOUND"
            assert (await client.refused(S + "diff.v1.Diff", "Diff", media_type="none"))[0] != "OK"
            assert (await client.call(S + "version.v1.Version", "Version")).version
            assert (await client.call("grpc.health.v1.Health", "Check")).status == 1
            assert (await client.call("grpc.health.v1.Health", "List")).statuses[""].status == 1

    house(test)


def test_containers_on_the_wire(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        service = S + "containers.v1.Containers"
        async with serving(house) as client:
            for id in ("a", "b"):
                made = {"id": id, "runtime": {"name": "r"}, "labels": {"x": id}}
                assert (await client.call(service, "Create", container=made)).container.created_at.seconds > 0
            found = (await client.call(service, "List", filters=["labels.x==b"])).containers
            assert [one.id for one in found] == ["b"]
            listed = [answer.container.id async for answer in client.stream(service, "ListStream")]
            assert listed == ["a", "b"]
            changed = {
                "container": {"id": "a", "labels": {"x": "y"}, "image": "i"},
                "update_mask": {"paths": ["image"]},
            }
            updated = (await client.call(service, "Update", **changed)).container
            assert (updated.image, updated.labels) == ("i", {"x": "a"})
            await client.call(service, "Delete", id="a")
            assert (await client.refused(service, "Delete", id="a"))[0] == "NOT_FOUND"
            assert (await client.refused(service, "Create", container={"id": "a/b"}))[0] == "INVALID_ARGUMENT"

    house(test)


def test_content_on_the_wire(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        service = S + "content.v1.Content"
        data = b"some bytes" * 30_000
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        async with serving(house) as client:
            write = client.both(service, "Write")
            request = content_pb2.WriteContentRequest
            await write.write(request(action=content_pb2.WRITE, ref="r", total=len(data), data=data[:100_000]))
            assert (await write.read()).offset == 100_000
            assert (await client.call(service, "Status", ref="r")).status.offset == 100_000
            assert [one.ref for one in (await client.call(service, "ListStatuses")).statuses] == ["r"]
            await write.write(request(action=content_pb2.COMMIT, ref="r", offset=100_000, data=data[100_000:]))
            assert (await write.read()).digest == digest
            await write.done_writing()
            assert (await client.call(service, "Info", digest=digest)).info.size == len(data)
            got = b"".join([one.data async for one in client.stream(service, "Read", digest=digest, offset=7, size=9)])
            assert got == data[7:16]
            info = {"digest": digest, "labels": {"a": "b"}}
            await client.call(service, "Update", info=info, update_mask={"paths": ["labels.a"]})
            batches = [one async for one in client.stream(service, "List", filters=["labels.a==b"])]
            assert [one.digest for batch in batches for one in batch.info] == [digest]
            await client.call(service, "Delete", digest=digest)
            assert (await client.refused(service, "Delete", digest=digest))[0] == "NOT_FOUND"
            assert (await client.refused(service, "Info", digest="no digest"))[0] == "INVALID_ARGUMENT"
            assert (await client.refused(service, "Abort", ref="r"))[0] == "NOT_FOUND"

    house(test)


def test_snapshots_on_the_wire(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        service, native = S + "snapshots.v1.Snapshots", {"snapshotter": "native"}
        async with serving(house) as client:
            made = (await client.call(service, "Prepare", key="a", labels={"x": "1"}, **native)).mounts
            assert (await client.call(service, "Mounts", key="a", **native)).mounts == made
            await client.call(service, "Commit", key="a", name="base", labels={"x": "2"}, **native)
            await client.call(service, "View", key="v", parent="base", **native)
            info = {"name": "base", "labels": {"x": "3"}}
            updated = await client.call(service, "Update", info=info, update_mask={"paths": ["labels.x"]}, **native)
            assert updated.info.labels == {"x": "3"}
            (batch,) = [one async for one in client.stream(service, "List", **native)]
            assert {one.name: one.parent for one in batch.info} == {"base": "", "v": "base"}
            assert (await client.call(service, "Usage", key="base", **native)).inodes == 1
            assert (await client.refused(service, "Remove", key="base", **native))[0] == "FAILED_PRECONDITION"
            await client.call(service, "Remove", key="v", **native)
            await client.call(service, "Cleanup", **native)
            assert (await client.refused(service, "Cleanup"))[0] == "INVALID_ARGUMENT"

    house(test)


def test_leases_images_and_namespaces_on_the_wire(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        leases, images, namespaces = S + "leases.v1.Leases", S + "images.v1.Images", S + "namespaces.v1.Namespaces"
        held = {"type": "snapshots/native", "id": "k"}
        target = {"media_type": "m", "digest": "sha256:" + "a" * 64, "size": 5}
        async with serving(house) as client:
            named = (await client.call(leases, "Create", labels={"a": "b"})).lease.id
            assert named  # the daemon gave it
            await client.call(leases, "AddResource", id=named, resource=held)
            (found,) = (await client.call(leases, "ListResources", id=named)).resources
            assert (found.type, found.id) == ("snapshots/native", "k")
            await client.call(leases, "DeleteResource", id=named, resource=held)
            assert not (await client.call(leases, "ListResources", id=named)).resources
            await client.call(leases, "Delete", id=named, sync=True)
            assert (await client.refused(leases, "Delete", id=named))[0] == "NOT_FOUND"
            epoch = {"seconds": 1000, "nanos": 7}
            made = await client.call(images, "Create", image={"name": "i", "target": target}, source_date_epoch=epoch)
            assert (made.image.created_at.seconds, made.image.created_at.nanos) == (1000, 7)
            changed = {"name": "i", "labels": {"x": "y"}}
            await client.call(images, "Update", image=changed, update_mask={"paths": ["labels.x"]})
            assert [one.labels for one in (await client.call(images, "List")).images] == [{"x": "y"}]
            other = {**target, "digest": "sha256:" + "b" * 64}
            assert (await client.refused(images, "Delete", name="i", target=other))[0] == "NOT_FOUND"
            await client.call(images, "Delete", name="i", target=target, sync=True)
            await client.call(namespaces, "Create", namespace={"name": "n"})
            changed = {"name": "n", "labels": {"x": "y"}}
            await client.call(namespaces, "Update", namespace=changed, update_mask={"paths": ["labels.x"]})
            found = (await client.call(namespaces, "List", _namespace="")).namespaces
            assert {one.name: dict(one.labels) for one in found}["n"] == {"x": "y"}
            await client.call(namespaces, "Delete", name="n")
            assert not (await client.call(namespaces, "Get", name="n")).namespace.labels  # no error, as with containerd
            assert (await client.refused(namespaces, "Delete", name="n"))[0] == "NOT_FOUND"

    house(test)


def test_streams_are_named_by_their_first_message(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        async with serving(house) as client:
            stream, first = client.both(S + "streaming.v1.Streaming", "Stream"), any_pb2.Any()
            pack(first, streaming_pb2.StreamInit(id="s"))
            await stream.write(first)
            assert (await stream.read()).type_url == "google.protobuf.Empty"
            taken = house.context.streams.get(NS, "s")
            await stream.write(any_pb2.Any(type_url="x"))
            assert (await taken.receive()).type_url == "x"
            await taken.send(descriptor_pb2.Descriptor(size=3))
            assert (await stream.read()).type_url == "containerd.types.Descriptor"
            await taken.close()
            assert await stream.read() is grpc.aio.EOF
            with pytest.raises(NotFound):
                house.context.streams.get(NS, "s")
            wrong = client.both(S + "streaming.v1.Streaming", "Stream")
            await wrong.write(any_pb2.Any(type_url="x"))
            with pytest.raises(grpc.aio.AioRpcError, match="a stream begins with StreamInit"):
                await wrong.read()

    house(test)


def test_the_api_is_told_to_who_asks(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        name = "grpc.reflection.v1.ServerReflection"
        async with serving(house) as client:
            stream = client.channel.stream_stream(
                f"/{name}/ServerReflectionInfo",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )()
            request = reflection_pb2.ServerReflectionRequest
            await stream.write(request(list_services=""))
            listed = {one.name for one in (await stream.read()).list_services_response.service}
            assert {TASKS, name, "grpc.health.v1.Health"} <= listed
            await stream.write(request(file_containing_symbol=TASKS))
            assert (await stream.read()).file_descriptor_response.file_descriptor_proto
            await stream.write(request(file_by_filename="nowhere.proto"))
            assert (await stream.read()).error_response.error_code == 5
            await stream.done_writing()

    house(test)


def test_an_image_is_tagged_by_a_transfer(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        service = S + "transfer.v1.Transfer"
        async with serving(house) as client:
            target = descriptor_pb2.Descriptor(media_type="m", digest="sha256:" + "a" * 64, size=5)
            await client.call(S + "images.v1.Images", "Create", image={"name": "i", "target": target})
            source, destination, unknown = any_pb2.Any(), any_pb2.Any(), any_pb2.Any()
            pack(unknown, target)
            pack(source, imagestore_pb2.ImageStore(name="i"))
            pack(destination, imagestore_pb2.ImageStore(name="j", labels={"a": "b"}))
            await client.call(service, "Transfer", source=source, destination=destination)
            found = (await client.call(S + "images.v1.Images", "Get", name="j")).image
            assert (found.target.digest, found.labels) == (target.digest, {"a": "b"})
            pack(destination, imagestore_pb2.ImageStore())
            code, message = await client.refused(service, "Transfer", source=source, destination=destination)
            assert (code, message) == ("NOT_FOUND", "no image name found: not found")
            assert (await client.refused(service, "Transfer", source=unknown, destination=destination))[0] == (
                "UNIMPLEMENTED"
            )

    house(test)


def test_events_reach_who_has_subscribed(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        async with serving(house) as client:
            stream = client.stream(S + "events.v1.Events", "Subscribe", filters=['topic=="/tasks/exit"'])
            while not house.context.events.subscribers():
                await asyncio.sleep(0.01)
            await house.running()
            house.shim.die()
            envelope = await stream.read()
            assert (envelope.namespace, envelope.topic) == (NS, "/tasks/exit")
            stream.cancel()

    house(test)


def test_a_damaged_request_is_refused(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        async with serving(house) as client:
            call = client.channel.unary_unary(f"/{TASKS}/Get")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"\xff\xff", timeout=30)
            assert caught.value.code() == grpc.StatusCode.INTERNAL
            assert "error unmarshalling request" in caught.value.details()

    house(test)
