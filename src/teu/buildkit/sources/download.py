# SPDX-License-Identifier: Apache-2.0
"""One HTTP exchange to download something: over proxies, through redirects, with an end to both. For sources.http.

An Authorization goes to the host that it was meant for, and along no redirect to another one. Proxies are those of the
builder's environment, certificates are trusted as the host trusts them. This module, and http.client with it, is loaded
when the first download begins.
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from teu.buildkit.core import errors
from teu.buildkit.sources.base import Asker, parsed_url, shown

REDIRECTS_MAX = 10
ATTEMPTS = 3  # where nothing came at all
BACKOFF_SECONDS = 0.5
CONNECT_SECONDS = 30.0
READ_SECONDS = 60.0  # without a byte
CHUNK = 1 << 18
SAFE = "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~"  # what stays as it is in a path
TRIED_AGAIN = (429, 502, 503, 504)


class Response:
    """An answer whose body is read once. `url`: where it came from in the end."""

    def __init__(self, response: http.client.HTTPResponse, url: str, asker: Asker) -> None:
        self.status = response.status
        self.url = url
        self._response = response
        self._asker = asker

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    @property
    def length(self) -> int:
        """Bytes of the body; 0 where nobody told."""
        return self._response.length or 0

    def body(self, limit: int) -> Iterator[bytes]:
        """The body. Raises ResourceExhausted beyond `limit` bytes, Unavailable where it breaks off."""
        size, expected = 0, self._response.length
        if expected is not None and expected > limit:
            raise errors.ResourceExhausted(f"{shown(self.url)}: {expected} bytes, and {limit} are the most")
        try:
            while chunk := self._response.read1(CHUNK):
                self._asker.check()
                size += len(chunk)
                if size > limit:
                    raise errors.ResourceExhausted(f"{shown(self.url)}: more than {limit} bytes")
                yield chunk
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._asker.check()
            raise errors.Unavailable(f"{shown(self.url)}: {_reason(error)} after {size} bytes") from None
        if expected is not None and size < expected:
            raise errors.Unavailable(f"{shown(self.url)}: it ends after {size} of {expected} bytes")


@contextmanager
def get(url: str, headers: Mapping[str, str], asker: Asker) -> Iterator[Response]:
    """The answer to a GET, after redirects; any status. Raises InvalidArgument, Unavailable, Cancelled."""
    first = parsed_url(url)
    sent = {"Accept-Encoding": "identity", **headers}
    for _ in range(REDIRECTS_MAX + 1):
        parts = parsed_url(url)
        if _origin(parts) != _origin(first):
            sent = {name: value for name, value in sent.items() if name.lower() not in ("authorization", "cookie")}
        connection = _Connection(parts, asker)
        with connection:
            response = connection.request(sent)
            location = response.headers.get("Location", "")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                yield Response(response, url, asker)
                return
        try:
            url = urljoin(url, location)
        except ValueError:
            raise errors.InvalidArgument(f"{shown(first.geturl())}: a redirect to what is no address") from None
        if urlsplit(url).scheme not in ("http", "https"):
            raise errors.InvalidArgument(f"{shown(first.geturl())}: a redirect to {shown(url)}, which is not HTTP")
    raise errors.FailedPrecondition(f"{shown(first.geturl())}: stopped after {REDIRECTS_MAX} redirects")


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


class _Connection:
    """To one host; it ends when nobody waits any more."""

    def __init__(self, parts: SplitResult, asker: Asker) -> None:
        self._parts = parts
        self._asker = asker
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._over = False

    def __enter__(self) -> _Connection:
        self._cancelling = self._asker.on_cancel(self._abort)
        self._cancelling.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self._cancelling.__exit__(None, None, None)
        with self._lock:
            self._over = True
            if self._connection is not None:
                self._connection.close()

    def _abort(self) -> None:
        with self._lock:
            self._over = True
            sock = self._connection.sock if self._connection is not None else None
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def request(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """The answer's head; tried again where nothing came, or the server says that it is busy."""
        failure = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._wait(BACKOFF_SECONDS * 2**attempt)
            self._asker.check()
            try:
                response = self._once(headers)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._asker.check()
                failure = _reason(error)
                if _final(error):
                    break
                continue
            if response.status not in TRIED_AGAIN or attempt + 1 == ATTEMPTS:
                return response
        raise errors.Unavailable(f"{shown(self._parts.geturl())}: {failure}")

    def _wait(self, seconds: float) -> None:
        wait = getattr(self._asker, "wait", None)
        if wait is not None:
            wait(seconds)

    def _once(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        parts = self._parts
        connection, target, more = _connect(parts)
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = connection
        connection.connect()
        if self._over:
            self._asker.check()
        path = quote(parts.path or "/", SAFE) + (f"?{quote(parts.query, SAFE)}" if parts.query else "")
        sent = {**headers, **more}
        if parts.username and "Authorization" not in sent:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            sent["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        sent["Host"] = parts.netloc.rpartition("@")[2]
        connection.request("GET", target + path, headers=sent)
        connection.sock.settimeout(READ_SECONDS)
        return connection.getresponse()


def _connect(parts: SplitResult) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """(connection, what stands before the path, headers for the proxy)."""
    host = parts.hostname or ""
    proxy = _proxy(parts.scheme, parts.netloc.rpartition("@")[2], host)
    more: dict[str, str] = {}
    address = (host, parts.port)
    if proxy is not None:
        address = (proxy.hostname or "", proxy.port or (443 if proxy.scheme == "https" else 80))
        if proxy.username:
            pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            more["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    if parts.scheme == "https":
        context = ssl.create_default_context()
        # Python 3.13 refuses authorities without a key usage, which is what openssl makes.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        secure = http.client.HTTPSConnection(address[0], address[1], timeout=CONNECT_SECONDS, context=context)
        if proxy is not None:
            secure.set_tunnel(host, parts.port or 443, more)
        return secure, "", {}
    plain = http.client.HTTPConnection(address[0], address[1], timeout=CONNECT_SECONDS)
    if proxy is None:
        return plain, "", {}
    return plain, f"http://{parts.netloc.rpartition('@')[2]}", more


def _proxy(scheme: str, netloc: str, host: str) -> SplitResult | None:
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    text = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if not text or host == "localhost" or host.startswith("127.") or host == "::1":
        return None
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # 2 ms

    if proxy_bypass_environment(netloc):
        return None
    try:
        proxy = urlsplit(text if "://" in text else f"http://{text}")
        proxy.port  # noqa: B018 (it raises)
    except ValueError:
        proxy = None
    if proxy is None or not proxy.hostname:
        raise errors.InvalidArgument(f"the proxy {shown(text)!r} of the builder's environment is no address")
    return proxy


def _final(error: Exception) -> bool:
    return isinstance(error, (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError, ValueError))


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "i/o timeout"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server closed the connection without an answer"
    if isinstance(error, http.client.IncompleteRead):
        return "unexpected EOF"
    if isinstance(error, http.client.InvalidURL | UnicodeError):
        return "it is no address"
    if isinstance(error, ValueError):
        return "a request cannot be written with these headers"  # which may be secret
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
