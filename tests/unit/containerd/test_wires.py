# SPDX-License-Identifier: Apache-2.0
"""The smaller wires of the daemon: events of shims, metrics, knocks, the zygote's, the OCI hook, named streams."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakeshim import NS, House, Test
from google.protobuf import any_pb2

from teu.api.events import task_pb2 as task_events
from teu.api.services.ttrpc.events.v1 import events_pb2
from teu.api.types import event_pb2
from teu.containerd.core.errors import AlreadyExists, InvalidArgument, NotFound
from teu.containerd.core.identifiers import validate_identifier
from teu.containerd.core.limits import MAX_MESSAGE
from teu.containerd.core.statistics import SECONDS, Histogram, Statistics
from teu.containerd.core.streams import CLOSED, Streams
from teu.containerd.runtime import oci_hook, zygote
from teu.containerd.server import metrics, ttrpc_events, wake
from teu.ttrpc import client as ttrpc
from teu.ttrpc import status


@pytest.mark.parametrize("name", ["a", "a1", "a-b_c.d", "0" * 76])
def test_identifiers(name: str) -> None:
    assert validate_identifier(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a..b", "a/b", "a b", "ä", "0" * 77, "a\n"])
def test_what_is_no_identifier(name: str) -> None:
    with pytest.raises(InvalidArgument, match="^identifier"):
        validate_identifier(name)


def test_statistics() -> None:
    key = ("service", "Method")
    counted = Statistics()
    counted.add(key, False, True)
    assert counted.kinds[key] == "server_stream" and counted.started[key] == 0
    counted.begin(key)
    assert (counted.in_flight, counted.started[key]) == (1, 1)
    before = counted.last_activity
    counted.end(key, "OK", before)
    assert counted.in_flight == 0 and counted.handled[(*key, "OK")] == 1 and counted.last_activity >= before
    taken = Histogram()
    for seconds in (0.0, SECONDS[0], SECONDS[0] + 1e-9, 11.0):
        taken.add(seconds)
    assert (taken.counts[0], taken.counts[1], taken.counts[-1]) == (2, 1, 1) and taken.sum > 11


def test_named_streams() -> None:
    async def test() -> None:
        streams = Streams()
        with pytest.raises(InvalidArgument):
            streams.register(NS, "")
        stream = streams.register(NS, "s")
        with pytest.raises(AlreadyExists, match='stream "s"'):
            streams.register(NS, "s")
        with pytest.raises(NotFound):
            streams.get("other", "s")
        assert streams.get(NS, "s") is stream
        await stream.send(task_events.TaskStart(container_id="c", pid=3))
        packed = await stream.outgoing.get()
        assert packed.type_url == "containerd.events.TaskStart"
        await stream.incoming.put(any_pb2.Any(type_url="x"))
        await stream.incoming.put(CLOSED)
        assert (await stream.receive()).type_url == "x" and await stream.receive() is None
        await stream.close()
        await stream.close()
        assert await stream.outgoing.get() is CLOSED and stream.outgoing.empty()
        streams.forget(NS, "s")
        with pytest.raises(NotFound):
            streams.get(NS, "s")

    asyncio.run(test())


def test_events_of_shims(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(house.context.ttrpc_address)
        listener.listen()
        server = await ttrpc_events.serve(house.context.events, listener)
        client = await ttrpc.connect(f"unix://{house.context.ttrpc_address}")
        before = ttrpc_events.last_activity()
        try:
            envelope = event_pb2.Envelope(namespace=NS, topic="/tasks/oom")
            envelope.event.type_url = "containerd.events.TaskOOM"
            request = events_pb2.ForwardRequest(envelope=envelope).SerializeToString()
            assert await client.call_raw(ttrpc_events.SERVICE, "Forward", request) == b""
            assert house.topics() == ["/tasks/oom"] and ttrpc_events.last_activity() >= before
            for method, payload, code in (
                ("Forward", b"\xff\xff", status.INVALID_ARGUMENT),
                ("Forward", events_pb2.ForwardRequest().SerializeToString(), status.INVALID_ARGUMENT),
                ("Backward", b"", status.UNIMPLEMENTED),
            ):
                with pytest.raises(status.StatusError) as caught:
                    await client.call_raw(ttrpc_events.SERVICE, method, payload)
                assert caught.value.code == code
            assert house.topics() == ["/tasks/oom"]
        finally:
            client.close()
            server.close()

    house(test)


async def fetch(address: str, line: str) -> tuple[str, str]:
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(f"{line}\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return head, body


def test_the_page_of_metrics(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        counted = Statistics()
        key = ("service.v1", "Get")
        counted.add(key, False, False)
        counted.begin(key)
        counted.end(key, "NOT_FOUND", counted.last_activity - 0.3)
        context, address = house.context, house.context.root + "/metrics.sock"
        server = await metrics.serve_metrics(address, lambda: counted, context.tasks, context.events, context.collector)
        assert server is not None
        try:
            head, page = await fetch(address, "GET /v1/metrics?x=y HTTP/1.1")
            assert head.startswith("HTTP/1.1 200 OK") and f"Content-Length: {len(page.encode())}" in head
            lines = page.splitlines()
            labels = 'grpc_method="Get",grpc_service="service.v1",grpc_type="unary"'
            assert f"grpc_server_started_total{{{labels}}} 1" in lines
            assert f'grpc_server_handled_total{{grpc_code="NotFound",{labels}}} 1' in lines
            assert f'grpc_server_handled_total{{grpc_code="OK",{labels}}} 0' in lines
            assert f'grpc_server_handling_seconds_bucket{{{labels},le="0.25"}} 0' in lines
            assert f'grpc_server_handling_seconds_bucket{{{labels},le="+Inf"}} 1' in lines
            place = f'container_id="c",namespace="{NS}",runtime="{house.shim.program}"'
            assert f"container_pids_current{{{place}}} 3" in lines and f"container_pids_limit{{{place}}} 9" in lines
            assert lines[-1] == "teu_containerd_tasks 1"
            head, _ = await fetch(address, "GET / HTTP/1.1")
            assert head.startswith("HTTP/1.1 404")
            head, _ = await fetch(address, "POST /v1/metrics HTTP/1.1")
            assert head.startswith("HTTP/1.1 404")
        finally:
            server.close()
        assert (
            await metrics.serve_metrics("", lambda: counted, context.tasks, context.events, context.collector) is None
        )

    house(test)


def test_knocks(tmp_path: Path) -> None:
    address = str(tmp_path / "engine.sock")
    assert not wake.knock(address)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(20)
        waker = wake.Waker([f"unix://{address}", str(tmp_path / "nobody.sock")])
        waker.on_event(event_pb2.Envelope(topic="/tasks/start"))
        waker.on_event(event_pb2.Envelope(topic="/tasks/exit"))
        listener.accept()[0].close()
        waker.sockets = []
        waker.on_event(event_pb2.Envelope(topic="/tasks/exit"))
        listener.settimeout(0.5)
        with pytest.raises(TimeoutError):
            listener.accept()


ZYGOTE = """#!/usr/bin/python3
import json, socket, sys
channel = socket.socket(fileno=0)
for line in channel.makefile("rb"):
    asked = json.loads(line)
    if asked["id"] == "die":
        sys.exit()
    answer = {"error": "no"} if asked["id"] == "bad" else {"address": "unix:///" + asked["id"]}
    channel.sendall(json.dumps(answer).encode() + b"\\n")
"""


def test_the_zygote(tmp_path: Path) -> None:
    program = tmp_path / "zygote"
    assert zygote.start(str(program)) is None
    program.write_text(ZYGOTE)
    program.chmod(0o755)
    helper = zygote.start(str(program))
    assert helper is not None

    def start(id: str) -> str:
        assert helper is not None
        return helper.start_shim(namespace=NS, container=id, bundle="/b", address="/a", ttrpc_address="/t")

    found: list[str] = []
    threads = [threading.Thread(target=lambda n=n: found.append(start(f"c{n}"))) for n in range(8)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"unix:///c{n}" for n in range(8)]
    with pytest.raises(zygote.ZygoteRefused, match="^no$"):
        start("bad")
    with pytest.raises(zygote.ZygoteGone):
        start("die")
    with pytest.raises(zygote.ZygoteGone):
        start("c")
    helper.close()


def test_the_oci_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}}')
    state = {"id": "c", "bundle": str(tmp_path), "pid": 7, "status": "created", "annotations": {"k": "v"}}
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *words: became.append(words))
    monkeypatch.setenv("HOOKED", "{{pid}}")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(state)))
    oci_hook.main(["--", "/bin/x", "{{id}}@{{rootfs}}", '{{ annotation "k" }}{{annotation "none"}}', "{{status}}"])
    ((program, arguments, environment),) = became
    assert program == "/bin/x"
    assert arguments == ["/bin/x", f"c@{tmp_path}/rootfs", "v", "created"] and environment["HOOKED"] == "7"
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(state)))
    assert oci_hook.main(["/bin/x", "{{nothing}}"]) == 1 and "give one of" in capsys.readouterr().err
    assert oci_hook.main([]) == 1


def test_a_message_is_as_large_as_containerds() -> None:
    assert MAX_MESSAGE == 16 * 1024 * 1024
