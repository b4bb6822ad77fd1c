# SPDX-License-Identifier: Apache-2.0
"""Requests and responses of the Engine API, as handlers see them. Called by the server and routes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qs

from teu.engine.core import versions
from teu.engine.core.departure import NOBODY, Departure
from teu.engine.core.errors import BadRequest, TimedOut, TooLarge
from teu.engine.core.fields import FALSE
from teu.engine.core.kinds import ListOf, Shape, loads, natural, whole_characters

if TYPE_CHECKING:
    from teu.engine.images.transfer import Message

log = logging.getLogger("teu.engine")

T = TypeVar("T")

JSON_LIMIT = 16 << 20
JSON_SECONDS = 300
NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


class Query:
    """Query parameters in the API's own reading of them."""

    def __init__(self, text: str = "") -> None:
        self.values: dict[str, list[str]] = parse_qs(text, keep_blank_values=True) if text else {}

    def get(self, name: str, default: str = "") -> str:
        return self.values.get(name, (default,))[0]

    def every(self, name: str) -> list[str]:
        return self.values.get(name, [])

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        return default if value is None else value[0].strip().lower() not in FALSE

    def integer(self, name: str, default: int | None = None) -> int | None:
        text = self.get(name)
        if text == "":
            return default
        if not NUMBER.fullmatch(text):
            raise BadRequest(f"query parameter {name}: {text[:40]!r} is not a whole number")
        return int(text)

    def filters(self, name: str = "filters") -> dict[str, list[str]]:
        """Both forms: {"label": ["a"]} and {"label": {"a": true}}."""
        text = self.get(name)
        if not text:
            return {}
        try:
            value = loads(text.encode())
            if value is None:  # as scripts write what they have not set
                return {}
            if not isinstance(value, dict):
                raise ValueError
            result: dict[str, list[str]] = {}
            for key, items in value.items():
                if items is None:
                    continue
                if isinstance(items, dict) and all(isinstance(wanted, bool) for wanted in items.values()):
                    result[key] = [item for item, wanted in items.items() if wanted]
                elif isinstance(items, list) and all(isinstance(item, str) for item in items):
                    result[key] = items
                else:
                    raise ValueError
            return result
        except ValueError:
            raise BadRequest(f"invalid filters: {text[:200]!r} is not a JSON object of lists") from None


class Request:
    def __init__(
        self,
        method: str,
        path: str,
        query: str = "",
        headers: dict[str, str] | None = None,
        body: io.RawIOBase | None = None,
        version: tuple[int, int] = (1, 55),
        departure: Departure = NOBODY,
        hangup: Callable[[Callable[[], None]], contextlib.AbstractContextManager[threading.Event]] | None = None,
        pairs: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`headers` has one value for each name, in small letters; `pairs` all of them as they came."""
        self.method = method
        self.pairs = pairs
        self.path = path
        self.query = Query(query)
        self.headers = headers or {}
        self.body: io.RawIOBase | io.BytesIO = body if body is not None else io.BytesIO()
        self.version = version
        self.departure = departure
        self._hangup = hangup

    def hangup(self, notice: Callable[[], None]) -> contextlib.AbstractContextManager[threading.Event]:
        """While the context lasts: an event that is set when the client goes away, and `notice` is called then."""
        return self._hangup(notice) if self._hangup else contextlib.nullcontext(threading.Event())

    def json(self, optional: bool = False) -> dict[str, object]:
        """The body as a JSON object; empty is {} when optional."""
        value = self._value(optional)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise BadRequest(f"the request body is a JSON {type(value).__name__}; an object is expected")
        return value

    def items(self, kind: ListOf[T]) -> list[T]:
        """The body as a JSON list of this kind; empty, or null, is []."""
        return kind.read(self._value(optional=True), "") or []

    def _value(self, optional: bool) -> object:
        """The body as JSON; None for null, and when optional for nothing."""
        kind = self.headers.get("content-type", "").split(";")[0].strip().lower()
        if not kind and (self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers):
            raise BadRequest("the Content-Type header is missing: a body must be 'application/json'")
        if kind and kind != "application/json":
            raise BadRequest(f"unsupported Content-Type header ({kind}): must be 'application/json'")
        chunks: list[bytes] = []
        size = 0
        if self.length > JSON_LIMIT:  # said beforehand: not a byte of it is read
            raise TooLarge(f"the request body is larger than {JSON_LIMIT >> 20} MiB")
        end = time.monotonic() + JSON_SECONDS
        while chunk := self.body.read(1 << 16):
            if time.monotonic() > end:
                raise TimedOut(f"the request body did not come within {JSON_SECONDS} seconds")
            size += len(chunk)
            if size > JSON_LIMIT:
                raise TooLarge(f"the request body is larger than {JSON_LIMIT >> 20} MiB")
            chunks.append(chunk)
        text = b"".join(chunks)
        if not text.strip():
            if optional:
                return None
            raise BadRequest("the request body is empty; a JSON object is expected")
        try:
            return loads(text)
        except ValueError as error:
            raise BadRequest(_not_json(error)) from None

    def decode(self, kind: Shape[T], optional: bool = False, heed: str = "") -> T:
        """The body as an object of this kind, of what was given of its fields, with their types. `heed`: which of the
        bodies it is that differ from version to version (core/versions.py)."""
        body = self.json(optional)
        if heed:
            versions.heed(heed, body, self.version)
        return kind.read(body)

    @property
    def length(self) -> int:
        """What the client says that its body is long; 0 when it does not."""
        return natural(self.headers.get("content-length", "0")[:20], 20) or 0


def _not_json(error: Exception) -> str:
    """What is wrong with a body, in the words that Docker's clients know where there are any."""
    if not isinstance(error, json.JSONDecodeError):
        return f"invalid JSON: {error}"
    if error.msg == "Extra data":
        return "unexpected content after JSON"
    found = error.doc[error.pos : error.pos + 1]
    if not found:
        return "invalid JSON: unexpected EOF"
    wanted = {
        "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
        "Expecting value": "looking for beginning of value",
        "Expecting ':' delimiter": "after object key",
    }.get(error.msg)
    return f"invalid JSON: invalid character {found!r} {wanted}" if wanted else f"invalid JSON: {error}"


class Response:
    """One whole answer (body), a stream of chunks (chunks), or a take-over of the connection (hijack)."""

    def __init__(
        self,
        status: int = 200,
        body: bytes = b"",
        content_type: str | None = None,
        headers: dict[str, str] | None = None,
        chunks: Iterable[bytes] | None = None,
        hijack: Callable[[socket.socket, bytes], None] | None = None,
        done: Callable[[], None] | None = None,
    ) -> None:
        """`done` is called when the answer has ended, however it ended, and whether or not it began."""
        self.done = done
        self.status = status
        self.body = body
        self.headers = headers or {}
        if content_type:
            self.headers["Content-Type"] = content_type
        self.chunks = chunks
        self.hijack = hijack


def encoded(value: object) -> bytes:
    """A JSON text. What stands for a byte that is no UTF-8, as in a file's name, is the sign for what cannot be shown,
    as Go has it: half of a surrogate pair is refused by many who read JSON."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    if "\\ud" in text:
        text = whole_characters(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    return text.encode()


def json_response(value: object, status: int = 200) -> Response:
    return Response(status, encoded(value) + b"\n", "application/json")


def empty(status: int = 204) -> Response:
    return Response(status)


def text(value: str, status: int = 200) -> Response:
    return Response(status, value.encode(), "text/plain; charset=utf-8")


def stream(
    chunks: Iterable[bytes],
    content_type: str = "application/octet-stream",
    done: Callable[[], None] | None = None,
) -> Response:
    return Response(chunks=chunks, content_type=content_type, done=done)


def hijack(function: Callable[[socket.socket, bytes], None], content_type: str) -> Response:
    """Give the connection to function(socket, bytes already read beyond the request)."""
    return Response(content_type=content_type, hijack=function)


def switch(
    function: Callable[[socket.socket, bytes], None], protocol: str, headers: dict[str, str] | None = None
) -> Response:
    """The same for a client that asked for another protocol (RFC 9110 section 7.8), which is spoken from then on.
    `headers`: what that protocol has in the answer besides."""
    return Response(hijack=function, headers={**(headers or {}), "Upgrade": protocol})


def progress(items: Iterator[Message]) -> Response:
    """JSON messages, a line each. An error before the first is a normal error response."""
    first = next(items, None)

    def lines() -> Iterator[bytes]:
        try:
            item = first
            while item is not None:
                yield encoded(item) + b"\r\n"
                item = next(items, None)
        except GeneratorExit:
            raise
        except Exception as error:
            log.debug("stream ended by an error", exc_info=True)
            message = str(error)
            yield encoded({"errorDetail": {"message": message}, "error": message}) + b"\r\n"

    return stream(lines(), "application/json", getattr(items, "close", None))
