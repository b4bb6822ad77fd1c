# SPDX-License-Identifier: Apache-2.0
"""Requests to teud for the targets of images and archives: whole requests, whose answers are looked at."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from typing import Any

SOCKET = "/run/teu/teud.sock"
PATIENCE = 100

# What a fault of ours looks like in an answer: the names of Python's errors, its words, its places.
FAULT = re.compile(
    rb"internal error|unexpected error|Traceback|(?:Key|Type|Attribute|Index|Value|Unicode\w*|Assertion|Runtime)Error\b"
    rb"|(?:Overflow|Recursion|Unbound\w*|Name|Lookup|Zero\w*|Struct|Binascii|Memory)Error\b|invalid literal for int"
    rb"|NoneType|object has no|not subscriptable|can't decode|can't encode|codec can|list index|embedded null"
    rb"|surrogates not allowed|unhashable",
    re.IGNORECASE,
)


class Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(SOCKET)


def call(method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, bytes, float]:
    """(status, body of the answer, seconds that it took)"""
    connection = Connection("teu")
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    began = time.monotonic()
    try:
        try:
            connection.request(method, f"/v1.45{path}", data, {"Content-Type": kind} if data is not None else {})
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was read: the answer is there
        response = connection.getresponse()
        return response.status, response.read(), time.monotonic() - began
    except http.client.HTTPException as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from None
    finally:
        connection.close()


def wrong(status: int, body: bytes) -> str:
    """What no answer may say, or "". A status of 500 may be: it is dockerd's for much of what is bad input."""
    if found := FAULT.search(body):
        at = max(0, found.start() - 60)
        return f"{status}: {body[at : found.end() + 160]!r}"
    if len(body) > 64 << 10 and status >= 400:
        return f"{status}: an error of {len(body)} bytes"
    return ""
