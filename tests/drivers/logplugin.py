# SPDX-License-Identifier: Apache-2.0
"""A log plugin of docker's: a program that listens on a socket, reads FIFOs, and gives back what it has read."""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import struct
import threading
import time
from pathlib import Path
from typing import Any


class LogPlugin:
    """`stored`: the entries that came, by container, as (stream, nanoseconds, line, more)."""

    def __init__(self, socket: Path, reads: bool = True) -> None:
        self.reads = reads
        self.asked: list[tuple[str, Any]] = []
        self.stored: dict[str, list[bytes]] = {}
        self.slow = threading.Event()
        self.slow.set()
        self._ended: dict[str, threading.Event] = {}
        plugin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                plugin._answer(self, self.path.lstrip("/"), json.loads(body) if body.strip() else None)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        socket.unlink(missing_ok=True)
        self.server = Server(str(socket), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def of(self, method: str) -> list[Any]:
        return [body for name, body in self.asked if name == f"LogDriver.{method}"]

    def lines(self, container: str) -> list[bytes]:
        """Without what is around them: those of our own form of entry."""
        return [_line(entry) for entry in self.stored.get(container, [])]

    def _answer(self, handler: Any, method: str, body: Any) -> None:
        self.asked.append((method, body))
        if method == "LogDriver.ReadLogs":
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            self._read(handler, body)
            return
        answer: dict[str, Any] = {"Err": ""}
        if method == "Plugin.Activate":
            answer = {"Implements": ["LogDriver"]}
        elif method == "LogDriver.Capabilities":
            answer = {"Cap": {"ReadLogs": self.reads}}
        elif method == "LogDriver.StartLogging":
            ended = self._ended[body["File"]] = threading.Event()
            fifo = os.open(body["File"], os.O_RDONLY)
            kept = self.stored.setdefault(body["Info"]["ContainerID"], [])
            threading.Thread(target=self._keep, args=(fifo, kept, ended), daemon=True).start()
        elif method == "LogDriver.StopLogging":
            self._ended[body["File"]].set()
        data = json.dumps(answer).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _keep(self, fifo: int, kept: list[bytes], ended: threading.Event) -> None:
        with open(fifo, "rb") as file:
            while len(head := file.read(4)) == 4:
                self.slow.wait()
                (size,) = struct.unpack(">I", head)
                kept.append(file.read(size))

    def _read(self, handler: Any, body: Any) -> None:
        kept = self.stored.get(body["Info"]["ContainerID"], [])
        tail = body["Config"]["Tail"]
        position = max(0, len(kept) - tail) if tail >= 0 else 0
        deadline = time.monotonic() + 20
        while True:
            for entry in kept[position:]:
                line = _line(entry) + b"\n"
                entry = entry[: entry.index(b"\x1a")] + b"\x1a" + bytes((len(line),)) + line
                data = struct.pack(">I", len(entry)) + entry
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                position += 1
            if not body["Config"]["Follow"] or all(each.is_set() for each in self._ended.values()):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        handler.wfile.write(b"0\r\n\r\n")


def _line(entry: bytes) -> bytes:
    """Of a short one."""
    start = entry.index(b"\x1a", 8) if b"\x1a" in entry[8:] else -1
    return entry[start + 2 : start + 2 + entry[start + 1]] if start >= 0 else b""
