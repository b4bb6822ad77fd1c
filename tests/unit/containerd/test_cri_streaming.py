# SPDX-License-Identifier: Apache-2.0
"""SPDY and WebSocket for kubelet: what clients of both see of a command, and of a port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from streamclient import Http, Refused, Spdy, WebSocket, closed, exit_code

from teu.containerd.core.errors import Error, NotFound, ResourceExhausted
from teu.containerd.cri import execs, forward, pipes, spdy, streaming, websocket
from teu.containerd.cri.pipes import Pipe, Streams
from teu.containerd.cri.streaming import Command, Forward, Streaming

V4 = "v4.channel.k8s.io"
CHANNELS = ("channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io", V4, "v5.channel.k8s.io")


class Server:
    """A server on an event loop of its own."""

    def __init__(self, certificate: str = "", key: str = "") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.streaming = self.run(self._start(certificate, key))
        self.cancelled = threading.Event()

    async def _start(self, certificate: str, key: str) -> Streaming:
        made = Streaming("127.0.0.1:0", certificate, key)
        await made.start()
        return made

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def promise(self, kind: str, job: Command | Forward) -> str:
        async def ask() -> str:
            return self.streaming.promise(kind, job)

        return str(self.run(ask()))

    def command(
        self, code: int = 0, *, stdin: bool = True, stderr: bool = True, tty: bool = False, fails: Error | None = None
    ) -> str:
        """The address of one that gives its input back, by both ways, and tells the first size of its terminal; with
        the code -1 it never ends."""

        async def run(streams: Streams) -> int:
            if fails is not None:
                raise fails
            try:
                if streams.resize is not None:
                    assert streams.stdout is not None
                    async for width, height in pipes.sizes(streams.resize):
                        await streams.stdout.write(b"%dx%d\n" % (width, height))
                        break
                while streams.stdin is not None and (data := await streams.stdin.read()):
                    for sink in (streams.stdout, streams.stderr):
                        if sink is not None:
                            await sink.write(data)
                if code < 0:
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return code

        return self.promise("exec", Command(run, ["a", "b"], "doing it in", stdin, True, stderr, tty))

    def close(self) -> None:
        self.run(self.streaming.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


# Tokens and requests


def test_an_address_is_good_once(server: Server) -> None:
    url = server.command(stdin=False)
    assert url.startswith("http://127.0.0.1:") and "/exec/" in url
    with Spdy(url, V4) as client:
        assert exit_code(client.read(_opened(client, "error", "stdout", "stderr")["error"])) == 0
    for again in (url, url.replace("/exec/", "/attach/"), url + "x", url + "/more", url.rpartition("/")[0]):
        with pytest.raises(Refused) as caught:
            Spdy(again, V4)
        assert caught.value.args[0] == 404


def test_an_address_is_of_its_kind(server: Server) -> None:
    url = server.command(stdin=False)
    with pytest.raises(Refused) as caught:
        Spdy(url.replace("/exec/", "/portforward/"), V4)
    assert caught.value.args[0] == 404
    Spdy(url, V4).__exit__()


def test_addresses_grow_old(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "TOKEN_SECONDS", 0.0)
    url = server.command()
    with pytest.raises(Refused) as caught:
        Spdy(url, V4)
    assert caught.value.args[0] == 404
    deadline = time.monotonic() + 10
    while server.streaming.busy:  # the connection is on its way out
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_not_too_many_are_promised(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "TOKENS_MAX", 2)
    server.command()
    server.command()
    assert server.streaming.busy
    with pytest.raises(ResourceExhausted):
        server.command()


def test_what_is_no_such_request(server: Server) -> None:
    for headers, method, status in (
        ({}, "GET", 400),
        ({"X-Stream-Protocol-Version": V4}, "POST", 400),
        ({"X-Stream-Protocol-Version": "v9", "Connection": "Upgrade", "Upgrade": "SPDY/3.1"}, "POST", 403),
        ({"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}, "GET", 400),
        ({"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x"}, "GET", 426),
        ({"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Protocol": "v9"}, "GET", 403),
        ({}, "PUT", 405),
    ):
        with pytest.raises(Refused) as caught:
            Http(server.command(), headers, method)
        assert caught.value.args[0] == status, headers
    with pytest.raises(Refused) as caught:
        Http(server.command(), {"X": "x" * 600_000})
    assert caught.value.args[0] in (0, 431)


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "crt", tmp_path / "key"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    done = [*make, "-subj", "/CN=x", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(done, check=True, capture_output=True)
    server = Server(str(certificate), str(key))
    try:
        url = server.command(5)
        assert url.startswith("https://")
        with Spdy(url, V4) as client:
            opened = _opened(client)
            client.write(opened["stdin"], b"in the dark", last=True)
            assert client.read(opened["stdout"]) == b"in the dark" and exit_code(client.read(opened["error"])) == 5
    finally:
        server.close()


# SPDY


def _opened(client: Spdy, *names: str) -> dict[str, int]:
    return {name: client.open(streamType=name) for name in names or ("error", "stdin", "stdout", "stderr")}


def test_the_dictionary_is_the_specifications() -> None:
    assert len(spdy.DICTIONARY) == 1423
    packed = zlib.compressobj(zdict=spdy.DICTIONARY)
    head = packed.compress(b"x") + packed.flush(zlib.Z_SYNC_FLUSH)
    assert head[2:6].hex() == "e3c6a7c2"  # by which each such stream begins


@pytest.mark.parametrize("protocol", CHANNELS[:4])
@pytest.mark.parametrize("code", [0, 3])
def test_a_command(server: Server, protocol: str, code: int) -> None:
    with Spdy(server.command(code), protocol) as client:
        assert client.protocol == protocol
        opened = _opened(client)
        client.ping()
        client.write(opened["stdin"], b"one")
        assert client.until(opened["stdout"], b"one") == b"one"
        client.write(opened["stdin"], b"two", last=True)
        assert client.read(opened["stdout"]) == client.read(opened["stderr"]) == b"onetwo"
        told = client.read(opened["error"])
        if protocol == V4:
            assert exit_code(told) == code
        else:
            assert told == (b"" if not code else streaming.failure(["a", "b"], code)["message"].encode())
        assert client.leaves()


def test_the_clients_first_choice_is_taken(server: Server) -> None:
    with Spdy(server.command(stdin=False), "v5.channel.k8s.io", "v3.channel.k8s.io", V4) as client:
        assert client.protocol == "v3.channel.k8s.io"


def test_much_goes_both_ways(server: Server) -> None:
    sent = os.urandom(3_000_000)
    with Spdy(server.command(stderr=False), V4) as client:
        opened = _opened(client, "error", "stdin", "stdout")
        writer = threading.Thread(target=client.write, args=(opened["stdin"], sent, True))
        writer.start()
        assert client.read(opened["stdout"]) == sent
        writer.join()


def test_a_terminal_has_a_size(server: Server) -> None:
    with Spdy(server.command(stderr=False, tty=True), V4) as client:
        opened = _opened(client, "error", "stdin", "stdout", "resize")
        client.write(opened["resize"], b'{"Width":10')
        client.write(opened["resize"], b',"Height":20}\n{"Width":1,"Height":2}')
        client.write(opened["stdin"], b"", last=True)
        assert client.read(opened["stdout"]) == b"10x20\n"
        assert exit_code(client.read(opened["error"])) == 0


def test_what_cannot_be_run_is_told(server: Server) -> None:
    with Spdy(server.command(fails=NotFound("no such thing")), V4) as client:
        told = json.loads(client.read(_opened(client)["error"]))
        assert told["reason"] == "InternalError" and told["code"] == 500
        assert told["message"] == "Internal error occurred: error doing it in container: no such thing"


def test_a_client_that_leaves_ends_its_command(server: Server) -> None:
    with Spdy(server.command(-1), V4) as client:
        opened = _opened(client)
        client.write(opened["stdin"], b"x")
        client.until(opened["stdout"], b"x")
    assert server.cancelled.wait(10)


def test_a_client_that_leaves_though_nobody_reads_ends_its_command(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "LOOK_SECONDS", 0.1)

    async def run(streams: Streams) -> int:
        try:
            await asyncio.Event().wait()  # its input fills up, and the client's end is behind that
        except asyncio.CancelledError:
            server.cancelled.set()
            raise
        return 0

    url = server.promise("exec", Command(run, ["a"], "doing it in", True, True, False, False))
    with Spdy(url, V4) as client:
        opened = _opened(client, "error", "stdin", "stdout")
        client.write(opened["stdin"], b"x" * 400_000)
        time.sleep(0.5)
        assert not server.cancelled.is_set()
    assert server.cancelled.wait(10)


def test_connections_that_show_no_token_are_not_too_many(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "OPENING_MAX", 2)
    url = server.command(stdin=False)
    place = urlsplit(url)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((place.hostname, place.port))) for _ in range(3)]
        readable, _, _ = select.select(silent, [], [], 10)
        assert len(readable) == 1 and closed(readable[0])
    deadline = time.monotonic() + 10
    while server.streaming.busy and server.streaming._sessions:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with Spdy(url, V4) as client:  # there is room again
        assert exit_code(client.read(_opened(client, "error", "stdout", "stderr")["error"])) == 0


def test_streams_that_nobody_wants_are_refused(server: Server) -> None:
    with Spdy(server.command(stdin=False), V4) as client:
        for name in ("stdin", "resize", "strange"):
            assert client.open(streamType=name) in client.reset
        opened = _opened(client, "error", "stdout", "stderr")
        assert client.open(streamType="stdout") in client.reset or client.left
        assert exit_code(client.read(opened["error"])) == 0


def test_streams_that_do_not_come_are_waited_for_so_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "OPENING_SECONDS", 0.3)
    with Spdy(server.command(), V4) as client:
        client.open(streamType="error")
        assert client.leaves()


def test_a_silent_connection_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "IDLE_SECONDS", 0.4)
    with Spdy(server.command(), V4) as client:
        _opened(client)
        for _ in range(4):
            time.sleep(0.2)
            client.ping()
        began = time.monotonic()
        assert client.leaves() and time.monotonic() - began < 5


@pytest.mark.parametrize(
    "sent",
    [
        b"\x80\x02\0\1\0\0\0\0",  # another version
        b"\x80\x03\0\1\0\xff\xff\xff",  # a long control frame
        b"\x80\x03\0\1\0\0\0\4abcd",  # no number
        b"\x80\x03\0\1\0\0\0\x0c\0\0\0\1\0\0\0\0\0\0xx",  # no zlib
    ],
)
def test_what_is_no_spdy_ends_the_connection(server: Server, sent: bytes) -> None:
    with Spdy(server.command(), V4) as client:
        client.send(sent)
        assert client.leaves()


def test_headers_do_not_burst(server: Server) -> None:
    with Spdy(server.command(), V4) as client:
        client.open(x="0" * 40_000)
        for _ in range(3):
            client.open(streamType="strange")
        bomb = zlib.compressobj(zdict=spdy.DICTIONARY)
        block = bomb.compress(struct.pack(">III", 1, 1, 0) + bytes(50_000_000)) + bomb.flush(zlib.Z_SYNC_FLUSH)
        assert len(block) < spdy.CONTROL_MAX
        client.control(1, struct.pack(">IIH", 99, 0, 0) + block)
        assert client.leaves()


class Memory:
    """A Wire of bytes that are there, and then no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.sent = b""

    async def readexactly(self, count: int) -> bytes:
        if len(self._data) < count:
            raise EOFError
        data, self._data = self._data[:count], self._data[count:]
        return data

    async def send(self, data: bytes) -> None:
        self.sent += data


def noise(dice: random.Random) -> bytes:
    """Frames whose heads are almost right."""
    data = b""
    packed = zlib.compressobj(zdict=spdy.DICTIONARY)
    for number in range(dice.randrange(1, 12)):
        body = dice.randbytes(dice.randrange(40))
        if dice.random() < 0.5:
            block = packed.compress(struct.pack(">I", dice.choice([0, 1, 2, 1 << 31])) + dice.randbytes(12))
            body = struct.pack(">IIH", 2 * number + 1, 0, 0) + block + packed.flush(zlib.Z_SYNC_FLUSH)
        if dice.random() < 0.3:
            data += struct.pack(">IB", dice.randrange(12), dice.randrange(2)) + len(body).to_bytes(3, "big") + body
        else:
            head = struct.pack(">HHB", 0x8003, dice.randrange(1, 12), dice.randrange(3))
            data += head + len(body).to_bytes(3, "big") + body
    return data


@pytest.mark.parametrize("seed", range(300))
def test_noise_ends_a_connection_and_nothing_else(seed: int) -> None:
    dice = random.Random(seed)

    async def main() -> None:
        wire = Memory(noise(dice))
        streams: list[spdy.Stream] = []

        def accept(stream: spdy.Stream) -> bool:
            streams.append(stream)
            stream.incoming.drop()
            return True

        with contextlib.suppress(spdy.ProtocolError):
            await spdy.Connection(wire, accept).run()
        for stream in streams:
            assert await stream.incoming.read() == b""
            await stream.write(b"late")
        web = websocket.WebSocket(Memory(dice.randbytes(200)))
        while await web.receive() is not None:
            pass

    asyncio.run(main())


def test_a_reader_that_is_slow_holds_its_sender_up() -> None:
    async def main() -> None:
        pipe = Pipe()
        await pipe.put(b"x" * pipes.LIMIT)
        more = asyncio.create_task(pipe.put(b"y"))
        await asyncio.sleep(0.05)
        assert not more.done()
        assert len(await pipe.read()) == pipes.LIMIT + 1
        await more
        pipe.finish()
        assert await pipe.read() == b""
        await pipe.put(b"late" * pipes.LIMIT)  # nobody waits

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'{"Width":1,"Height":2}{"Width":3,"Height":4}', [(1, 2), (3, 4)]),
        (b'{"Width":0,"Height":2}[1]{"Width":"x","Height":4}{"Height":4}', []),
        (b"x" * 9000 + b'{"Width":1,"Height":2}', []),
        (b"[" * 200_000, []),
    ],
)
def test_sizes(text: bytes, told: list[tuple[int, int]]) -> None:
    async def main() -> list[tuple[int, int]]:
        pipe = Pipe()
        await pipe.put(text)
        pipe.finish()
        return [size async for size in pipes.sizes(pipe)]

    assert asyncio.run(main()) == told


@pytest.mark.parametrize("one", [b"{}", b"0 "])
def test_millions_of_sizes_hold_nobody_up(one: bytes) -> None:
    """A message of WebSocket has up to 16 MiB."""

    async def main() -> float:
        pipe, longest = Pipe(), 0.0
        filling = asyncio.create_task(pipe.put(one * (1 << 19)))
        following = asyncio.create_task(anext(pipes.sizes(pipe)))
        before, until = time.monotonic(), time.monotonic() + 0.5
        while before < until:
            await asyncio.sleep(0)
            now = time.monotonic()
            longest, before = max(longest, now - before), now
        for task in (following, filling):
            task.cancel()
        await asyncio.wait([following, filling])
        return longest

    assert asyncio.run(main()) < 2


# WebSocket


def test_the_accepted_key_is_the_specifications() -> None:
    assert streaming.accepted("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("protocol", ["", *CHANNELS, "base64.channel.k8s.io", "v4.base64.channel.k8s.io"])
def test_a_command_by_channels(server: Server, protocol: str) -> None:
    url = server.command(3, stderr=False, tty=True)
    with WebSocket(url, *([protocol] if protocol else [])) as client:
        assert client.protocol == protocol
        client.channel(4, b'{"Width":10,"Height":20}')
        assert client.until(1, b"10x20\n") == b"10x20\n"
        client.channel(9, b"nobody's")
        client.channel(0, b"text")
        assert client.until(1, b"text") == b"10x20\ntext"
        if protocol.startswith("v5"):
            client.channel(255, b"\0")
            found = client.finish()
            assert exit_code(found[3]) == 3 and client.code == 1000 and found[1] == b"10x20\ntext"


def test_how_a_command_ended_by_channels(server: Server) -> None:
    with WebSocket(server.command(3, stdin=False), "base64.channel.k8s.io") as client:
        assert client.finish()[3] == streaming.failure(["a", "b"], 3)["message"].encode()
    with WebSocket(server.command(3, stdin=False), "v4.base64.channel.k8s.io") as client:
        assert exit_code(client.finish()[3]) == 3
    with WebSocket(server.command(0, stdin=False), "v4.channel.k8s.io") as client:
        assert client.finish() == {1: b"", 3: b'{"metadata":{},"status":"Success"}'}


def test_messages_may_come_in_pieces(server: Server) -> None:
    with WebSocket(server.command(stderr=False), "v4.channel.k8s.io") as client:
        client.frame(b"\0one", 0x02)
        client.frame(b"ping", 0x89)
        for _ in range(100):
            client.frame(b"", 0x00)
        client.frame(b"two", 0x80)
        assert client.until(1, b"onetwo") == b"onetwo" and client.pongs == [b"ping"]
        client.channel(0, b"y" * 70_000)
        client.until(1, b"y" * 70_000)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\x82\x01x", 1002),  # not masked
        (b"\x80\x80abcd", 1002),  # a continuation of nothing
        (b"\xf2\x80abcd", 1002),  # an extension
        (b"\x82\xff\0\0\1\0\0\0\0\0abcd", 1009),  # a terabyte
        (b"\x88\x80abcd", 1000),
    ],
)
def test_what_is_no_websocket_ends_the_connection(server: Server, raw: bytes, code: int) -> None:
    with WebSocket(server.command(-1), V4) as client:
        client.http.socket.sendall(raw)
        client.finish()
        assert client.code == code
    assert server.cancelled.wait(10)


# Ports


class Echo:
    """A TCP server that gives back what it gets, and then ends; as a port of a pod."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    def job(self, *ports: int) -> Forward:
        async def connect(port: int) -> socket.socket:
            if port != self.port:
                raise OSError("nobody listens")
            one = socket.socket()
            one.setblocking(False)
            await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port))
            return one

        return Forward(connect, "pod", ports)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


@pytest.mark.parametrize("tunnel", [False, True])
@pytest.mark.parametrize("named", [True, False])
def test_a_port_is_forwarded(server: Server, echo: Echo, tunnel: bool, named: bool) -> None:
    url = server.promise("portforward", echo.job())
    protocol = "SPDY/3.1+portforward.k8s.io" if tunnel else "portforward.k8s.io"
    with Spdy(url, protocol, tunnel=tunnel) as client:
        for number in range(3):
            more = {"port": str(echo.port)} | ({"requestID": str(number)} if named else {})
            error = client.open(streamType="error", **more)
            client.write(error, b"", last=True)
            data = client.open(streamType="data", **more)
            client.write(data, b"hello")
            client.until(data, b"hello")
            client.write(data, b" there", last=True)
            assert client.read(data) == b"hello there" and client.read(error) == b""


def test_a_port_on_which_nobody_listens(server: Server, echo: Echo) -> None:
    with Spdy(server.promise("portforward", echo.job()), "portforward.k8s.io") as client:
        error = client.open(streamType="error", port="9", requestID="0")
        client.open(streamType="data", port="9", requestID="0")
        assert client.read(error) == b"error forwarding port 9 to pod pod, uid : nobody listens"
        # and the connection is good for another
        error = client.open(streamType="error", port=str(echo.port), requestID="1")
        data = client.open(streamType="data", port=str(echo.port), requestID="1")
        client.write(data, b"x", last=True)
        assert client.read(data) == b"x"


class Door:
    """A port of a pod to which one connects; the test has the other end."""

    def __init__(self) -> None:
        self._there, self.here = socket.socketpair()
        self._there.setblocking(False)
        self.here.settimeout(10)

    def job(self) -> Forward:
        async def connect(port: int) -> socket.socket:
            return self._there

        return Forward(connect, "pod", ())

    def open(self, client: Spdy) -> tuple[int, int]:
        error = client.open(streamType="error", port="80", requestID="0")
        return client.open(streamType="data", port="80", requestID="0"), error


def test_a_client_that_gives_a_connection_up_ends_it_in_the_pod(server: Server) -> None:
    door = Door()
    with door.here, Spdy(server.promise("portforward", door.job()), "portforward.k8s.io") as client:
        data, error = door.open(client)
        client.write(data, b"hello")
        assert door.here.recv(5) == b"hello"
        client.control(3, struct.pack(">II", data, 5))
        assert door.here.recv(1) == b"" and client.read(error) == b""
        with pytest.raises(OSError):  # both ways: it is not half open
            for _ in range(1000):
                door.here.sendall(b"x" * 65536)


def test_what_a_pod_still_reads_when_it_has_said_all(server: Server) -> None:
    door = Door()
    with door.here, Spdy(server.promise("portforward", door.job()), "portforward.k8s.io") as client:
        data, error = door.open(client)
        door.here.sendall(b"bye")
        door.here.shutdown(socket.SHUT_WR)
        assert client.read(data) == b"bye"
        client.write(data, b"late", last=True)
        assert door.here.recv(5) == b"late" and door.here.recv(1) == b"" and client.read(error) == b""


def test_a_pod_that_takes_nothing_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LINGER_SECONDS", 0.2)
    door = Door()
    with door.here, Spdy(server.promise("portforward", door.job()), "portforward.k8s.io") as client:
        data, error = door.open(client)
        client.write(data, b"x" * 2_000_000, last=True)
        door.here.shutdown(socket.SHUT_WR)
        assert client.read(data) == client.read(error) == b""


def test_halves_of_connections(server: Server, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "OPENING_SECONDS", 0.3)
    with Spdy(server.promise("portforward", echo.job()), "portforward.k8s.io") as client:
        for headers in (
            {"streamType": "data"},
            {"streamType": "data", "port": "0"},
            {"streamType": "data", "port": "70000"},
            {"streamType": "data", "port": "x"},
            {"streamType": "data", "port": "9" * 5000},  # more digits than Python makes a number of
            {"streamType": "other", "port": "1"},
        ):
            assert client.open(**headers) in client.reset
        half = client.open(streamType="data", port="7", requestID="a")
        assert client.open(streamType="data", port="7", requestID="a") in client.reset
        assert client.open(streamType="error", port="8", requestID="a") in client.reset
        client.read(half)
        assert half in client.reset


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
def test_ports_by_channels(server: Server, echo: Echo, protocol: str) -> None:
    url = server.promise("portforward", echo.job(echo.port, 9))
    with WebSocket(url, protocol) as client:
        port = struct.pack("<H", echo.port)
        client.channel(0, b"hello")
        assert client.until(0, b"hello") == port + b"hello"
        assert client.until(3, b"listens").startswith(b"\x09\0error forwarding port 9")
        assert client.data[1] == port and client.data[2] == b"\x09\0"


def test_more_ports_than_channels(server: Server, echo: Echo) -> None:
    url = server.promise("portforward", echo.job(*range(1, 130)))
    with pytest.raises(Refused, match="258 channels"):
        WebSocket(url, V4)


def test_connections_inside() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]

        async def main() -> None:
            one = await forward.connect(None, "", port)  # type: ignore[arg-type]
            assert one.family == socket.AF_INET6
            one.close()

        asyncio.run(main())

    async def refused() -> None:
        with pytest.raises(OSError, match="failed to connect to localhost:.*IPv4: Connection refused, IPv6: "):
            await forward.connect(None, "", port)  # type: ignore[arg-type]

    asyncio.run(refused())


# FIFOs of a process


def test_output_goes_to_the_client_as_fast_as_it_takes_it(tmp_path: Path) -> None:
    class Slow:
        def __init__(self) -> None:
            self.data = b""

        async def write(self, data: bytes) -> None:
            await asyncio.sleep(0.02)
            self.data += data

        async def end(self) -> None:
            pass

    async def main() -> bytes:
        sink = Slow()
        relay = execs.Relay(str(tmp_path / "out"), sink)
        task = asyncio.create_task(relay.run())
        writer = await asyncio.create_subprocess_exec("sh", "-c", f"head -c 1000000 /dev/zero > {relay.path}")
        await writer.wait()
        await execs._relayed([relay], [task])
        return sink.data

    assert asyncio.run(main()) == bytes(1_000_000)


def test_what_somebody_else_holds_open_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execs, "_DRAIN_SECONDS", 0.1)

    async def main() -> None:
        relay = execs.Relay(str(tmp_path / "out"), None)
        task = asyncio.create_task(relay.run())
        with open(relay.path, "wb", 0) as holder:
            holder.write(b"x")
            await execs._relayed([relay], [task])
            assert not task.done()
        await task

    asyncio.run(main())


def test_input_goes_to_the_process(tmp_path: Path) -> None:
    async def main() -> bytes:
        path, source = str(tmp_path / "in"), Pipe()
        os.mkfifo(path)
        await pipes.fill(path, source)  # nobody reads: thrown away
        source = Pipe()
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        task = asyncio.create_task(pipes.fill(path, source))
        await source.put(b"x" * 200_000)
        source.finish()
        found = b""
        while not task.done() or len(found) < 200_000:
            with contextlib.suppress(BlockingIOError):
                found += os.read(reader, 1 << 16)
            await asyncio.sleep(0)
        os.close(reader)
        source = Pipe()
        return found

    assert asyncio.run(main()) == b"x" * 200_000


def test_a_stopped_server_ends_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not close its own end is waited for, but not for ever."""
    monkeypatch.setattr(streaming, "LEAVING_SECONDS", 0.3)
    server = Server()
    with Spdy(server.command(-1), V4) as client:
        _opened(client)
        server.close()
        assert server.cancelled.is_set() and (client.left or closed(client._http.socket))
