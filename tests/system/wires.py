# SPDX-License-Identifier: Apache-2.0
"""Capture and decode what goes over each wire: HTTP and gRPC through a recording relay, ttrpc from strace.

The decoders are other people's (h11, hyperframe, hpack, protobuf), so that our own codecs are not their own judge.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass
class Connection:
    """The bytes of one connection, each way."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


class Relay:
    """A unix socket that passes everything on to another and keeps a copy."""

    def __init__(self, path: Path, upstream: str) -> None:
        self.path, self.upstream = path, upstream
        self.connections: list[Connection] = []
        self._listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.upstream)
            connection = Connection()
            self.connections.append(connection)
            for source, target, copy in ((client, server, connection.sent), (server, client, connection.received)):
                threading.Thread(target=self._pump, args=(source, target, copy), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, copy: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                copy += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)


def http_requests(connection: Connection) -> list[tuple[str, str, bytes]]:
    """(method, target, body) of each request of one HTTP/1.1 connection, up to a protocol switch."""
    import h11

    theirs = h11.Connection(h11.SERVER)
    answers = h11.Connection(h11.CLIENT)
    theirs.receive_data(bytes(connection.sent))
    answers.receive_data(bytes(connection.received))
    found: list[tuple[str, str, bytes]] = []
    while True:
        event = theirs.next_event()
        if isinstance(event, h11.Request):
            found.append((event.method.decode(), event.target.decode(), b""))
            answers.send(event)
        elif isinstance(event, h11.Data):
            method, target, body = found[-1]
            found[-1] = (method, target, body + bytes(event.data))
            answers.send(event)
        elif isinstance(event, h11.EndOfMessage):
            answers.send(event)
            while not isinstance(answers.next_event(), (h11.EndOfMessage, type(h11.NEED_DATA), type(h11.PAUSED))):
                pass
            if answers.our_state is h11.DONE and answers.their_state is h11.DONE:
                answers.start_next_cycle()
                theirs.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                theirs.send(h11.EndOfMessage())
                theirs.start_next_cycle()
            else:
                return found
        else:
            return found


@dataclass
class Call:
    """One gRPC or ttrpc call: service and method, the headers, and the decoded messages each way."""

    service: str
    method: str
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    responses: list[Any] = field(default_factory=list)


def load_protocols() -> Any:
    """Import every generated module, so that the default descriptor pool knows all services."""
    from google.protobuf import descriptor_pool

    import teu.api

    for module in pkgutil.walk_packages(teu.api.__path__, "teu.api."):
        if module.name.endswith("_pb2"):
            importlib.import_module(module.name)
    return descriptor_pool.Default()


def message_class(descriptor: Any) -> Any:
    from google.protobuf import message_factory

    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory().GetPrototype(descriptor)


def decode(descriptor: Any, data: bytes) -> Any:
    """Parse one message; a field that the protocol does not define fails."""
    message = message_class(descriptor)()
    message.ParseFromString(data)
    assert len(message.UnknownFields()) == 0, f"unknown fields in {descriptor.full_name}"
    return message


def grpc_calls(connection: Connection, pool: Any) -> list[Call]:
    """The calls of one gRPC connection, in the order of their streams."""
    import hpack
    from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame

    sent = bytes(connection.sent)
    assert sent.startswith(PREFACE), f"not HTTP/2: {sent[:40]!r}"
    calls: dict[int, Call] = {}
    bodies: dict[tuple[int, str], bytearray] = {}
    for side, data in (("request", sent[len(PREFACE) :]), ("response", bytes(connection.received))):
        decoder, block = hpack.Decoder(), b""
        while len(data) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            if len(data) < 9 + length:
                break
            frame.parse_body(memoryview(data[9 : 9 + length]))
            data = data[9 + length :]
            if isinstance(frame, (HeadersFrame, ContinuationFrame)):
                block += frame.data
                if "END_HEADERS" in frame.flags:
                    headers = {str(k): str(v) for k, v in decoder.decode(block)}
                    block = b""
                    if side == "request":
                        _, service, method = headers[":path"].split("/")
                        calls[frame.stream_id] = Call(service, method, headers)
                    else:
                        calls[frame.stream_id].headers.update(headers)
            elif isinstance(frame, DataFrame):
                bodies.setdefault((frame.stream_id, side), bytearray()).extend(frame.data)
    for (stream, side), body in bodies.items():
        call = calls[stream]
        method = pool.FindServiceByName(call.service).methods_by_name[call.method]
        kind = method.input_type if side == "request" else method.output_type
        while len(body) >= 5:
            compressed, length = struct.unpack(">BI", body[:5])
            assert not compressed
            if len(body) < 5 + length:
                break
            (call.requests if side == "request" else call.responses).append(decode(kind, bytes(body[5 : 5 + length])))
            del body[: 5 + length]
    return [calls[stream] for stream in sorted(calls)]


LINE = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)$")


def strace_streams(trace: Path) -> dict[tuple[int, int], dict[str, bytes]]:
    """{(pid, descriptor): {"read": bytes, "write": bytes}} from `strace -f -xx` of read, write and their kin."""
    streams: dict[tuple[int, int], dict[str, bytes]] = {}
    pending: dict[int, str] = {}
    for line in trace.read_text(errors="replace").splitlines():
        found = LINE.match(line)
        if not found:
            continue
        pid, name, rest = int(found[1]), found[2], found[3]
        if rest.endswith("<unfinished ...>"):
            pending[pid] = rest.removesuffix("<unfinished ...>")
            continue
        if " resumed>" in line[:60]:
            rest = pending.pop(pid, "") + rest
        result = re.search(r"= (-?\d+)", rest[rest.rfind(")") :])
        number = re.match(r"(\d+)", rest)
        if not result or not number or int(result[1]) <= 0:
            continue
        side = {
            "read": "read",
            "recvfrom": "read",
            "recvmsg": "read",
            "write": "write",
            "sendto": "write",
            "sendmsg": "write",
            "writev": "write",
        }.get(name)
        if side is None:
            continue
        strings = re.findall(r'"((?:\\x[0-9a-f]{2})*)"', rest)
        data = b"".join(bytes.fromhex(s.replace("\\x", "")) for s in strings)[: int(result[1])]
        both = streams.setdefault((pid, int(number[1])), {"read": b"", "write": b""})
        both[side] += data
    return streams


def ttrpc_frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(stream, type, payload) of each frame; stops where the bytes are not ttrpc's."""
    while len(data) >= 10:
        length, stream, kind, _flags = struct.unpack(">IIBB", data[:10])
        if kind not in (1, 2, 3) or length > 4 << 20 or len(data) < 10 + length:
            return
        yield stream, kind, data[10 : 10 + length]
        data = data[10 + length :]


def fields(data: bytes) -> dict[int, list[Any]]:
    """The raw fields of a protobuf message: {number: [int or bytes]}; only for ttrpc's own two envelopes."""
    found: dict[int, list[Any]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            found.setdefault(key >> 3, []).append(varint())
        else:
            assert key & 7 == 2, "an envelope has varints and bytes only"
            length = varint()
            found.setdefault(key >> 3, []).append(data[at : at + length])
            at += length
    return found


def ttrpc_calls(served: dict[str, bytes], pool: Any) -> list[Call]:
    """The calls of one ttrpc connection as its server saw it (it reads requests and writes responses)."""
    calls: dict[int, Call] = {}
    for stream, kind, payload in ttrpc_frames(served["read"]):
        if kind == 1:
            envelope = fields(payload)
            service, method = envelope[1][0].decode(), envelope[2][0].decode()
            call = calls[stream] = Call(service, method)
            kinds = pool.FindServiceByName(service).methods_by_name[method]
            call.requests.append(decode(kinds.input_type, envelope.get(3, [b""])[0]))
    for stream, kind, payload in ttrpc_frames(served["write"]):
        if kind == 2 and stream in calls:
            envelope = fields(payload)
            call = calls[stream]
            kinds = pool.FindServiceByName(call.service).methods_by_name[call.method]
            if 2 in envelope:
                call.responses.append(decode(kinds.output_type, envelope[2][0]))
    return [calls[stream] for stream in sorted(calls)]
