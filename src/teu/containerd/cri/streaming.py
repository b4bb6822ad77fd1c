# SPDX-License-Identifier: Apache-2.0
"""The server that kubelet is sent to for exec, attach and port-forward: HTTP/1.1 that is upgraded to SPDY/3.1 or to
WebSocket. Called by `service`, which knows what is run and says it as a Command or a Forward.

    http://127.0.0.1:PORT/exec/TOKEN            a token is good for one request, and for a minute
    http://127.0.0.1:PORT/attach/TOKEN
    http://127.0.0.1:PORT/portforward/TOKEN

Of SPDY the client opens the streams, which say what they are: error, stdin, stdout, stderr, resize; or, for each
connection to a port, error and data. Of WebSocket they are the channels 0 to 4 in the order stdin, stdout, stderr,
error, resize; or two for each port.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import logging
import re
import secrets
import select
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from teu.containerd.core.errors import Error, ResourceExhausted
from teu.containerd.cri.pipes import LIMIT, Pipe, Sink, Streams
from teu.containerd.cri.spdy import Connection, ProtocolError, Stream, Wire
from teu.containerd.cri.websocket import Channel, Channels, Tunnel, WebSocket, accepted

log = logging.getLogger("teu.containerd.cri")

TOKEN_SECONDS = 60.0
TOKENS_MAX = 1000  # given out and not used
OPENING_SECONDS = 30.0  # for the head of a request, and until all streams are there
IDLE_SECONDS = 4 * 3600.0
LEAVING_SECONDS = 5.0  # until a client has taken the last bytes
LOOK_SECONDS = 5.0  # between two looks whether a client has left whose bytes nobody reads
LINGER_SECONDS = 1.0  # for what a client still sends to a port that has ended its own side; as containerd
OPENING_MAX = 1000  # connections that have not shown a token yet: anybody on this machine can make them
READ_LENGTH = LIMIT

COMMAND_PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
FORWARD_PROTOCOLS = ("portforward.k8s.io",)
TUNNEL = "SPDY/3.1+portforward.k8s.io"
BASE64_PROTOCOLS = ("v4.base64.channel.k8s.io", "base64.channel.k8s.io")
COMMAND_CHANNELS = ("v5.channel.k8s.io", *COMMAND_PROTOCOLS, *BASE64_PROTOCOLS, "")
FORWARD_CHANNELS = (TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "")
CHANNELS_MAX = 128  # of WebSocket: the number of one is a byte, or a character from "0" on
_PORT = re.compile(r"[0-9]{1,5}")
_PROTOCOL_HEADER = "x-stream-protocol-version"
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE = range(5)


@dataclass(frozen=True, slots=True)
class Command:
    """What is to be run with a client's streams: its exit code. A failure is told to the client."""

    run: Callable[[Streams], Awaitable[int]]
    words: Sequence[str]  # for messages
    doing: str  # the same: what it is that fails
    stdin: bool
    stdout: bool
    stderr: bool
    terminal: bool


@dataclass(frozen=True, slots=True)
class Forward:
    """Connections into a pod: a connected socket of a port there."""

    connect: Callable[[int], Awaitable[socket.socket]]
    pod: str  # for messages
    ports: Sequence[int]  # for WebSocket; of SPDY each stream says its port


class _Refused(Exception):
    """With a status, a text, and headers of the answer."""


def failure(words: Sequence[str], code: int) -> dict[str, Any]:
    """Kubernetes' Status of a command that has ended with another code than 0."""
    text = f"error executing command [{' '.join(words)}], exit code {code}"
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: {text}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def trouble(text: str) -> dict[str, Any]:
    """Kubernetes' Status of a command that could not be run."""
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {text}",
        "reason": "InternalError",
        "details": {"causes": [{"message": text}]},
        "code": 500,
    }


class _Head:
    """A request's first lines. Raises _Refused."""

    def __init__(self, data: bytes) -> None:
        lines = data.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise _Refused(400, "this is no request of HTTP/1.1", {})
        self.method, target, _ = words
        self.path = target.partition("?")[0]
        self._headers: dict[str, list[str]] = {}
        for line in lines[1:]:
            if line:
                name, colon, value = line.partition(":")
                if not colon:
                    raise _Refused(400, "a header has no colon", {})
                self._headers.setdefault(name.strip().lower(), []).append(value.strip())

    def one(self, name: str) -> str:
        """A header's value; "" without one."""
        return (self._headers.get(name) or [""])[0]

    def words(self, name: str) -> list[str]:
        """A header that is a list, and may be there more than once."""
        found = ",".join(self._headers.get(name, ()))
        return [word for part in found.split(",") if (word := part.strip())]

    def upgrades_to(self, name: str) -> bool:
        """Whether the client wants to go on in another protocol."""
        wants = "upgrade" in (word.lower() for word in self.words("connection"))
        return wants and name in (word.lower() for word in self.words("upgrade"))


class _Socket:
    """A TCP connection as a Wire."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.last = time.monotonic()  # when something has moved
        self._taken = 0  # bytes

    async def readexactly(self, count: int) -> bytes:
        """As of a Wire."""
        data = await self._reader.readexactly(count)
        self._taken += count
        self.last = time.monotonic()
        return data

    async def send(self, data: bytes) -> None:
        """As of a Wire."""
        self._writer.write(data)
        await self._writer.drain()
        self.last = time.monotonic()

    async def watch(self) -> None:
        """End a connection on which nothing moves for long, and one whose client has left while nobody reads what it
        has sent: its end is behind that."""
        while (left := self.last + IDLE_SECONDS - time.monotonic()) > 0:
            before = self._taken
            await asyncio.sleep(min(left, LOOK_SECONDS))
            if self._taken == before and self._has_left():
                break
        self._writer.transport.abort()

    def _has_left(self) -> bool:
        descriptor = self._writer.get_extra_info("socket").fileno()
        if descriptor < 0:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLRDHUP)
        return bool(poll.poll(0))

    async def leave(self) -> None:
        """Close it when the client has got everything, or takes too long."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LEAVING_SECONDS):
                await self._writer.drain()
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while await self._reader.read(READ_LENGTH):
                    pass
        self._writer.close()


async def until_one_ends(working: Iterable[Awaitable[None]]) -> None:
    """Run all of them until one has ended; the rest is cancelled, and waited for. Raises what they have raised."""
    tasks = [asyncio.ensure_future(one) for one in working]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
    if errors:
        raise errors[0]


class Streaming:
    """The server, and what it has promised."""

    def __init__(self, address: str, certificate: str, key: str) -> None:
        """`address` is HOST:PORT, with port 0 for a free one. With a certificate and its key it speaks TLS."""
        self._host, _, port = address.rpartition(":")
        self._host = self._host.strip("[]")
        self._port = int(port)
        self._certificate = certificate
        self._key = key
        self._promised: dict[str, tuple[str, Command | Forward, float]] = {}
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[Any]] = set()
        self._opening: set[_Socket] = set()  # of them: such that have not shown a token

    @property
    def busy(self) -> bool:
        """Whether a client is served, or may come."""
        self._forget_old()
        return bool(self._sessions or self._promised)

    async def start(self) -> None:
        """Listen. OSError, ssl.SSLError."""
        context = None
        if self._certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self._certificate, self._key or None)
        self._server = await asyncio.start_server(
            self._connected, self._host, self._port, limit=READ_LENGTH, ssl=context
        )

    async def close(self) -> None:
        """End all sessions: commands are killed, as their clients are gone."""
        if self._server is not None:
            self._server.close()
        for session in self._sessions:
            session.cancel()
        if self._sessions:
            await asyncio.wait(self._sessions, timeout=LEAVING_SECONDS)

    def promise(self, kind: str, job: Command | Forward) -> str:
        """The address at which it is done, once. Raises ResourceExhausted."""
        assert self._server is not None
        self._forget_old()
        if len(self._promised) >= TOKENS_MAX:
            raise ResourceExhausted("maximum number of in-flight requests exceeded")
        token = secrets.token_urlsafe(16)
        self._promised[token] = kind, job, time.monotonic() + TOKEN_SECONDS
        host, port = self._server.sockets[0].getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f"{'https' if self._certificate else 'http'}://{place}/{kind}/{token}"

    def _forget_old(self) -> None:
        now = time.monotonic()
        for token in [token for token, (_, _, until) in self._promised.items() if until <= now]:
            del self._promised[token]

    def _redeem(self, path: str) -> Command | Forward:
        _, kind, token, *more = [*path.split("/"), "", ""]
        self._forget_old()
        known = self._promised.get(token)
        if known is None or known[0] != kind or any(more):
            raise _Refused(404, "404 page not found", {})
        del self._promised[token]
        return known[1]

    # a connection

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._opening) >= OPENING_MAX:
            writer.transport.abort()
            return
        self._sessions.add(task)
        wire = _Socket(reader, writer)
        self._opening.add(wire)
        try:
            await until_one_ends((self._serve(reader, wire), wire.watch()))
        except (OSError, EOFError, ProtocolError) as error:
            log.debug("streaming: %s", error)
        finally:
            await wire.leave()
            self._opening.discard(wire)
            self._sessions.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, wire: _Socket) -> None:
        try:
            try:
                async with asyncio.timeout(OPENING_SECONDS):
                    head = _Head(await reader.readuntil(b"\r\n\r\n"))
            except asyncio.LimitOverrunError:
                raise _Refused(431, "the request's head is too long", {}) from None
            except TimeoutError:
                return
            if head.method not in ("GET", "POST"):
                raise _Refused(405, "use GET or POST", {"Allow": "GET, POST"})
            job = self._redeem(head.path)
            self._opening.discard(wire)
            if head.upgrades_to("websocket"):
                await _by_websocket(job, head, wire)
            else:
                await _by_spdy(job, head, wire)
        except _Refused as error:
            status, text, headers = error.args
            await _answer(wire, status, {"Content-Type": "text/plain; charset=utf-8", **headers}, text)


async def _answer(wire: Wire, status: int, headers: dict[str, str], text: str = "") -> None:
    body = f"{text}\n".encode() if text else b""
    if status != http.HTTPStatus.SWITCHING_PROTOCOLS:
        headers = {**headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", *(f"{key}: {one}" for key, one in headers.items())]
    await wire.send("\r\n".join([*lines, "", ""]).encode() + body)


# SPDY


async def _by_spdy(job: Command | Forward, head: _Head, wire: Wire) -> None:
    supported = COMMAND_PROTOCOLS if isinstance(job, Command) else FORWARD_PROTOCOLS
    offered = head.words(_PROTOCOL_HEADER)
    if not offered:
        raise _Refused(400, "unable to upgrade: X-Stream-Protocol-Version is required", {})
    protocol = next((one for one in offered if one in supported), None)
    if protocol is None:
        told = f"unable to upgrade: client supports {', '.join(offered)}, server accepts {', '.join(supported)}"
        raise _Refused(403, told, {"X-Accepted-Stream-Protocol-Versions": ", ".join(supported)})
    if not head.upgrades_to("spdy/3.1"):
        raise _Refused(400, "unable to upgrade: missing upgrade headers in request", {})
    headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocol}
    await _answer(wire, http.HTTPStatus.SWITCHING_PROTOCOLS, headers)
    if isinstance(job, Command):
        await _CommandStreams(job, wire, as_json=protocol == COMMAND_PROTOCOLS[0]).serve()
    else:
        await _ForwardStreams(job, wire).serve()


class _CommandStreams:
    """A command whose streams are SPDY's."""

    def __init__(self, command: Command, wire: Wire, *, as_json: bool) -> None:
        self._command = command
        self._as_json = as_json
        wanted = {"error": True, "stdin": command.stdin, "stdout": command.stdout, "stderr": command.stderr}
        # Versions before 3 have no sizes of terminals: then this stream never comes, and nobody waits for it.
        self._wanted = {name for name, is_wanted in wanted.items() if is_wanted}
        self._opened: dict[str, Stream] = {}
        self._complete = asyncio.Event()
        self._resize = Pipe()
        self._connection = Connection(wire, self._accept)

    def _accept(self, stream: Stream) -> bool:
        kind = stream.headers.get("streamtype", "")
        if kind == "resize" and self._command.terminal and kind not in self._opened:
            stream.incoming = self._resize
        elif kind not in self._wanted or kind in self._opened:
            return False
        self._opened[kind] = stream
        if self._wanted <= self._opened.keys():
            self._complete.set()
        return True

    async def serve(self) -> None:
        """Until the command has ended, or the client has left."""
        await until_one_ends((self._work(), self._connection.run()))

    async def _work(self) -> None:
        async with asyncio.timeout(OPENING_SECONDS):
            await self._complete.wait()
        opened = self._opened
        stdin = opened["stdin"].incoming if "stdin" in opened else None
        resize = self._resize if self._command.terminal else None
        streams = Streams(stdin, opened.get("stdout"), opened.get("stderr"), resize)
        await _carry_out(self._command, streams, opened["error"], as_json=self._as_json)
        for stream in opened.values():
            await stream.end()
        await self._connection.goodbye()


async def _carry_out(command: Command, streams: Streams, error_sink: Sink, *, as_json: bool) -> None:
    """Run a command, and say how it ended: as a Status, or as a text of what is wrong."""
    status: dict[str, Any] = {"metadata": {}, "status": "Success"}
    try:
        if code := await command.run(streams):
            status = failure(command.words, code)
    except (Error, OSError) as error:
        text = error.message if isinstance(error, Error) else str(error)
        status = trouble(f"error {command.doing} container: {text}")
    if as_json:
        await error_sink.write(json.dumps(status, separators=(",", ":")).encode())
    elif "message" in status:
        await error_sink.write(status["message"].encode())


class _ForwardStreams:
    """Connections to a pod's ports whose streams are SPDY's."""

    def __init__(self, forward: Forward, wire: Wire) -> None:
        self._forward = forward
        # By the connection's name: the stream that is there, and who waits for the other.
        self._halves: dict[str, tuple[Stream, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection = Connection(wire, self._accept)

    async def serve(self) -> None:
        """Until the client has left."""
        try:
            await self._connection.run()
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _accept(self, stream: Stream) -> bool:
        kind, port = stream.headers.get("streamtype", ""), stream.headers.get("port", "")
        if kind not in ("data", "error") or not _PORT.fullmatch(port) or not 0 < int(port) < 1 << 16:
            return False
        # A client that names no connection opens a data stream right after its error stream.
        name = stream.headers.get("requestid") or str(stream.id - 2 if kind == "data" else stream.id)
        if name not in self._halves:
            self._halves[name] = stream, self._run(self._half(name, stream))
            return True
        other, waiting = self._halves[name]
        if other.headers["streamtype"] == kind or other.headers["port"] != port:
            return False
        del self._halves[name]
        waiting.cancel()
        data, error = (stream, other) if kind == "data" else (other, stream)
        self._run(self._pair(int(port), data, error))
        return True

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _half(self, name: str, stream: Stream) -> None:
        await asyncio.sleep(OPENING_SECONDS)
        del self._halves[name]
        await stream.reset()

    async def _pair(self, port: int, data: Stream, error: Stream) -> None:
        await _forward_one(self._forward, port, data.incoming, data, error)
        for stream in (data, error):
            await stream.end()
            stream.release()


async def _forward_one(forward: Forward, port: int, incoming: Pipe, data: Sink, error_sink: Sink) -> None:
    """One connection, until the pod's side has ended it, or the client has given it up; what is wrong is told to the
    client."""
    try:
        connected = await forward.connect(port)
        reader, writer = await asyncio.open_connection(sock=connected, limit=READ_LENGTH)
    except (Error, OSError) as error:
        text = error.message if isinstance(error, Error) else str(error)
        told = f"error forwarding port {port} to pod {forward.pod}, uid : {text}"
        await error_sink.write(told.encode())
        return
    inwards = asyncio.create_task(_forward_inwards(incoming, writer))
    try:
        while piece := await reader.read(READ_LENGTH):
            await data.write(piece)
        await data.end()
        async with asyncio.timeout(LINGER_SECONDS):
            await inwards
            writer.close()
            await writer.wait_closed()
    except OSError as error:  # of time, too
        log.debug("port %d of pod %s: %s", port, forward.pod, error)
    finally:
        inwards.cancel()
        writer.transport.abort()  # does not wait for a pod that takes nothing


async def _forward_inwards(incoming: Pipe, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await incoming.read():
            writer.write(piece)
            await writer.drain()
        if incoming.broken:
            writer.transport.abort()  # what the pod still sends is nobody's
        else:
            writer.write_eof()
    except OSError:
        incoming.drop()


# WebSocket


async def _by_websocket(job: Command | Forward, head: _Head, wire: Wire) -> None:
    supported = COMMAND_CHANNELS if isinstance(job, Command) else FORWARD_CHANNELS
    offered = head.words("sec-websocket-protocol") or [""]
    protocol = next((one for one in offered if one in supported), None)
    if protocol is None:
        raise _Refused(403, f"unable to upgrade: the server accepts {', '.join(filter(None, supported))}", {})
    key = head.one("sec-websocket-key")
    if not key or head.method != "GET":
        raise _Refused(400, "unable to upgrade: the handshake of WebSocket is a GET with a key", {})
    if head.one("sec-websocket-version") != "13":
        raise _Refused(426, "unable to upgrade: only version 13 is known", {"Sec-WebSocket-Version": "13"})
    count = 5 if isinstance(job, Command) else 2 * len(job.ports)
    if protocol != TUNNEL and count > CHANNELS_MAX:
        raise _Refused(400, f"unable to upgrade: {count} channels are more than {CHANNELS_MAX}", {})
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Accept": accepted(key)}
    if protocol:
        headers["Sec-WebSocket-Protocol"] = protocol
    await _answer(wire, http.HTTPStatus.SWITCHING_PROTOCOLS, headers)
    web = WebSocket(wire)
    if protocol == TUNNEL:
        assert isinstance(job, Forward)
        await _ForwardStreams(job, Tunnel(web)).serve()
        return
    channels = Channels(web, count, text="base64" in protocol, closing=protocol.startswith("v5"))
    if isinstance(job, Command):
        work = _command_by_channels(job, channels.all, as_json=protocol.startswith(("v4", "v5")))
    else:
        work = _forward_by_channels(job, channels.all)
    await until_one_ends((work, channels.run()))
    await web.close()


async def _command_by_channels(command: Command, channels: list[Channel], *, as_json: bool) -> None:
    stdin, stdout, stderr, error, resize = channels
    if not command.stdin:
        stdin.incoming.drop()
    if not command.terminal:
        resize.incoming.drop()
    first = stdout if command.stdout else stderr if command.stderr else error
    await first.write(b"")  # by which clients know that it has begun
    streams = Streams(
        stdin.incoming if command.stdin else None,
        stdout if command.stdout else None,
        stderr if command.stderr else None,
        resize.incoming if command.terminal else None,
    )
    await _carry_out(command, streams, error, as_json=as_json)


async def _forward_by_channels(forward: Forward, channels: list[Channel]) -> None:
    pairs = list(zip(forward.ports, channels[::2], channels[1::2], strict=True))
    for port, data, error in pairs:
        for channel in (data, error):
            await channel.write(struct.pack("<H", port))
    await asyncio.gather(*(_forward_one(forward, port, data.incoming, data, error) for port, data, error in pairs))
