# SPDX-License-Identifier: Apache-2.0
"""What all sources have in common. Called by ops.source, and by control for what clients ask of a source.

A Scheme (one file here each) opens what an operation of LLB names, `docker-image://…` with its attributes, as a Source.
A Source says what it is now (`key`), and has its files made (`snapshot`). Errors are those of core.errors.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

from teu.api.buildkit import gateway_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import without_credentials
from teu.buildkit.core.op import Record, Ref
from teu.buildkit.llb.platforms import Platform

VALUE = TypeVar("VALUE")
URL_MAX = 8192
POLL_SECONDS = 0.25
ATTRIBUTE_MAX = 1 << 20  # characters of one attribute


class Asker(Protocol):
    """Who a source works for: the part of core.op.Context that it uses."""

    @property
    def cancelled(self) -> bool: ...

    def check(self) -> None: ...

    def on_cancel(self, call: Callable[[], None]) -> AbstractContextManager[None]: ...

    def sessions(self) -> list[str]: ...

    def log(self, stream: int, data: bytes) -> None: ...

    def status(self, name: str, current: int, total: int, *, action: str = "", completed: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class Key:
    """What a source is now. `key` has BuildKit's meaning, and so have `also`, other names of the same files; one that
    begins with "session:" is never the same twice. `pin`: a digest or a commit, for the provenance."""

    key: str
    pin: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Material:
    """A source as the provenance of a result tells of it. `kind`: image, oci-layout, git, http, local."""

    kind: str
    name: str
    pin: str = ""
    platform: Platform | None = None
    secrets: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()


class Source(Protocol):
    """One operation's source. Its methods may be called by several threads."""

    def key(self, asker: Asker) -> Key: ...

    def snapshot(self, asker: Asker) -> Ref:
        """Its files, which the caller releases. `key` was called before."""

    def load(self, asker: Asker, record: Record) -> Ref:
        """The files that a cache has; not asked for the empty root. Raises op.Gone."""

    def material(self) -> Material:
        """After `key`."""

    def close(self) -> None:
        """No build has it any more: what it held for one is released."""


class Scheme(Protocol):
    """A kind of source."""

    def open(self, reference: str, attributes: Mapping[str, str], platform: Platform) -> Source:
        """Raises InvalidArgument; speaks with nobody."""

    def meta(self, request: Any, reference: str, platform: Platform, asker: Asker) -> Any:
        """The gateway_pb2.ResolveSourceMetaResponse, without `Source`, for a gateway_pb2.ResolveSourceMetaRequest."""


@dataclass
class Sources:
    """All schemes of the builder, by the word before "://"."""

    schemes: dict[str, Scheme] = field(default_factory=dict)

    def open(self, identifier: str, attributes: Mapping[str, str], platform: Platform) -> Source:
        scheme, reference = self._split(identifier)
        for name, value in attributes.items():
            if len(value) > ATTRIBUTE_MAX:
                raise errors.InvalidArgument(f"attribute {name} of {len(value)} characters")
        return scheme.open(reference, attributes, platform)

    def meta(self, request: Any, platform: Platform, asker: Asker) -> Any:
        """What a source is now: the answer to LLBBridge.ResolveSourceMeta. Policies have been asked before."""
        with plainly():
            scheme, reference = self._split(request.Source.identifier)
            answer = scheme.meta(request, reference, platform, asker)
        answer.Source.CopyFrom(request.Source)
        return answer

    def _split(self, identifier: str) -> tuple[Scheme, str]:
        name, separator, reference = identifier.partition("://")
        if not separator:
            raise errors.InvalidArgument(f"failed to parse {errors.cut(identifier, 200)}: invalid")
        scheme = self.schemes.get(name)
        if scheme is None:
            raise errors.NotFound(f"unknown scheme {errors.cut(name, 200)}: not found")
        if any(letter < " " or letter == "\x7f" for letter in reference):
            raise errors.InvalidArgument(
                f"a source's identifier has control characters: {errors.cut(identifier, 200)!r}"
            )
        return scheme, reference


@contextmanager
def plainly() -> Iterator[None]:
    """What a source refuses has no code on the wire, as in BuildKit: clients show one in front of the words."""
    try:
        yield
    except errors.Cancelled:
        raise
    except errors.Error as error:
        error.code = errors.Error.code
        raise


def no_meta() -> Any:
    return gateway_pb2.ResolveSourceMetaResponse()


# Attributes

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|[1-9][0-9]*|0)")


def boolean(attributes: Mapping[str, str], name: str, default: bool = False) -> bool:
    text = attributes.get(name)
    if text is None:
        return default
    if text not in (*_TRUE, *_FALSE):
        raise errors.InvalidArgument(f"invalid value for {name} {text!r}")
    return text in _TRUE


def number(attributes: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    """An integer as Go reads one whose base its prefix says; None where nobody said."""
    text = attributes.get(name)
    if text is None:
        return None
    value = _integer(text)
    if value is None or not low <= value <= high:
        raise errors.InvalidArgument(f"invalid value for {name} {errors.cut(text, 100)!r}")
    return value


def _integer(text: str) -> int | None:
    if len(text) > 40 or not _NUMBER.fullmatch(text):
        return None
    digits = text.lstrip("+-")
    if digits.isdecimal() and len(digits) > 1 and digits.startswith("0"):
        digits = "0o" + digits
    return int(digits, 0) * (-1 if text.startswith("-") else 1)


def strings(attributes: Mapping[str, str], name: str) -> tuple[str, ...]:
    """A JSON list of texts."""
    text = attributes.get(name)
    if not text:
        return ()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None if text == "null" else 0
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise errors.InvalidArgument(f"invalid value for {name}: not a list of texts")
    return tuple(value)


def go_json(value: Any) -> bytes:
    """JSON, byte for byte as Go writes it, for keys that are digests of it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for letter, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(letter, escaped)
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return text.encode("utf-8", "replace")


def shown(url: str) -> str:
    """An address for people: without a name and a password that may be in it."""
    return errors.cut(without_credentials(url), 500)


def parsed_url(url: str) -> SplitResult:
    """Raises InvalidArgument for what is no address of HTTP."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or len(url) > URL_MAX or any(letter <= " " or letter == "\x7f" for letter in url):
        raise errors.InvalidArgument(f"{shown(url)!r} is no address to download from")
    return parts


def ask_any(sessions: Any, asker: Asker, function: Callable[[Any], VALUE], chosen: str = "") -> VALUE:
    """What `function` says of the first session of the asker's (`chosen`: this one at first) that can do it. Raises the
    last error, FailedPrecondition where there is no session."""
    identifiers: Sequence[str] = ([chosen] if chosen else []) + [one for one in asker.sessions() if one != chosen]
    if not identifiers:
        raise errors.FailedPrecondition("no active sessions")
    result: VALUE = sessions.any_of(identifiers, function)
    return result


class Recent(Generic[VALUE]):
    """The values that were used last, up to a number and a size in bytes."""

    def __init__(self, count: int, size: int = 1 << 62) -> None:
        self._lock = Lock()
        self._values: OrderedDict[Hashable, tuple[VALUE, int]] = OrderedDict()
        self._count, self._most = count, size
        self._size = 0

    def get(self, key: Hashable) -> VALUE | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: VALUE, size: int = 0) -> None:
        with self._lock:
            self._drop(key)
            self._values[key] = (value, size)
            self._size += size
            while self._values and (len(self._values) > self._count or self._size > self._most):
                self._drop(next(iter(self._values)))

    def drop(self, key: Hashable) -> None:
        with self._lock:
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        old = self._values.pop(key, None)
        if old is not None:
            self._size -= old[1]


class Locks:
    """One lock for each name that somebody has: the same remote is fetched by one at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: dict[str, tuple[Lock, int]] = {}

    @contextmanager
    def hold(self, name: str, asker: Asker) -> Iterator[None]:
        """Whoever nobody waits for any more stops waiting, too: Cancelled."""
        mine = self._enter(name)
        try:
            while not mine.acquire(timeout=POLL_SECONDS):
                asker.check()
            try:
                yield
            finally:
                mine.release()
        finally:
            self._leave(name)

    def _enter(self, name: str) -> Lock:
        with self._lock:
            lock, users = self._held.get(name, (Lock(), 0))
            self._held[name] = (lock, users + 1)
        return lock

    def _leave(self, name: str) -> None:
        with self._lock:
            lock, users = self._held[name]
            if users == 1:
                del self._held[name]
            else:
                self._held[name] = (lock, users - 1)
