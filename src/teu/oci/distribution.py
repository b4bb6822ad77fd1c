# SPDX-License-Identifier: Apache-2.0
"""Client of image registries: the OCI distribution specification over HTTP. Called by teud and teu-ctr.

A `Registry` speaks for one domain and one set of credentials. It may be used from many threads; connections are
kept and reused. What it owes its callers: credentials go only to the registry and to the token server that it
names (never along a redirect to another host), plain HTTP only where it is allowed, transfers go on where they
broke off, and every document is checked against the digest it was asked for by.

    Unreachable     no answer: names, connections, TLS, time
    Unauthorized    401 and 403 after authentication was tried
    NotFound        404 of a manifest, a blob or a repository
    Aborted         `abort` was called, by a caller that waits no longer
    RegistryError   any other refusal, with the registry's own words

urllib3 would spare the pool, the proxies and TLS, a hundred lines, for 37 ms and 2.7 MB in each daemon (Debian 12;
63 ms and 4.9 MB in 13). What is left, to abort from another thread, the traces of ctr, redirects that carry no
credentials, to resume, would stand on its internals, which differ between 1.26 and 2.3.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import ipaddress
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit

from teu.oci import digest as digests
from teu.oci import image_spec, jsontext
from teu.oci.registry_hosts import Place

if TYPE_CHECKING:
    import ssl

CHUNK = 1 << 18
ATTEMPTS = 5
CONNECT_SECONDS = 20.0
READ_SECONDS = 60.0
BACKOFF_SECONDS = 0.25
REDIRECTS = 10
PAGES_MAX = 64  # of one list of referrers
NO_REFERRERS = (400, 404, 405, 406, 501)  # what registries without that call answer to it
ERROR_BODY_LIMIT = 64 << 10
DOCKER_IO = "registry-1.docker.io"
ACCEPT = ", ".join((*image_spec.INDEXES, *image_spec.MANIFESTS, image_spec.DOCKER_SCHEMA1))
CERTS_DIRECTORY = "/etc/teu/certs.d"
SHOWN = 200  # characters of an address that is none
URL_CHARACTERS = "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~"  # what is left as it is: all but blanks and what is not ASCII
OF_CONNECTING = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EACCES, errno.EINVAL)


class RegistryError(Exception):
    """The registry refused; `code` is its own ("MANIFEST_UNKNOWN"), `status` HTTP's."""

    def __init__(self, message: str, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class NotFound(RegistryError):
    """404: there is no such manifest, blob or repository, or it is not shown to these credentials."""


class Unauthorized(RegistryError):
    """401 or 403, after the credentials were tried."""


class Unreachable(RegistryError):
    """No answer came: the name is not known, nobody listens, TLS does not agree, or the time is over."""


class Truncated(RegistryError):
    """Less, or more, came than the descriptor says, however often it was asked for."""


class Aborted(RegistryError):
    """`abort` was called while this was going on."""


class Credentials(NamedTuple):
    """A user and a password; or a token to be exchanged for another one (identity), or to be sent as it is
    (registry)."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""


def credentials_from_header(header: str) -> Credentials:
    """X-Registry-Auth: base64url JSON. Raises ValueError."""
    if not header:
        return Credentials()
    text = header.replace("+", "-").replace("/", "_")
    try:
        decoded = base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), b"-_", validate=True)
        data = jsontext.loads(decoded.decode("utf-8", "replace") or "{}")
    except ValueError as error:
        raise ValueError(f"invalid X-Registry-Auth header: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("invalid X-Registry-Auth header: not a JSON object")
    fields = ("username", "password", "identitytoken", "registrytoken")
    values = [str(data.get(field) or "") for field in fields]
    if not values[0] and data.get("auth"):
        with contextlib.suppress(ValueError):
            user, _, password = base64.b64decode(str(data["auth"])).decode().partition(":")
            values[0], values[1] = user, password
    # A JSON text may name half of a surrogate pair, which cannot be sent.
    return Credentials(*(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for value in values))


class Options(NamedTuple):
    """How registries are reached. `insecure`: hosts ("host", "host:port") and networks where certificates are
    not verified and plain HTTP may be spoken; loopback always is such a place. `mirrors`: bases asked before
    docker.io. `schemes`: what is spoken to the registry, the first at first. `verify`: certificates are looked at.
    `authority`: file of those that are trusted in place of the system's; `authorities`, `pairs`: as of a `Place`.
    `watch` is told of every exchange, for those who want to see them. `attempts`: how often a request that fails for a
    reason that may pass is made before it is given up."""

    insecure: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    certs: str = CERTS_DIRECTORY
    user_agent: str = "teu"
    schemes: tuple[str, ...] = ()
    verify: bool = True
    authority: str = ""
    authorities: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    watch: Watch | None = None
    attempts: int = ATTEMPTS


class Watch:
    """What a client wants to hear of its exchanges with registries; what it does not want stays as here."""

    def connected(self, address: str, reused: bool) -> None:
        """A request goes over this connection."""

    def sent(self, head: str, body: bytes | None) -> None:
        """A request, its head in HTTP's form; of a body that is a stream, nothing."""

    def received(self, head: str, response: http.client.HTTPResponse) -> Any:
        """An answer's head; what is returned stands in the response's place."""
        return response


class Answer(NamedTuple):
    """An answer whose body is still to be read; `give_back` is called with whether the connection can be used again."""

    status: int
    headers: http.client.HTTPMessage
    response: http.client.HTTPResponse
    give_back: Callable[[bool], None]

    def read(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes of it; the connection is free again."""
        try:
            data = self.response.read(limit + 1)
        except (OSError, http.client.HTTPException):
            self.give_back(False)
            raise
        self.give_back(len(data) <= limit and self.response.isclosed())
        if len(data) > limit:
            raise RegistryError(f"the registry's answer is larger than {limit} bytes", self.status)
        return data


class _Proxy(NamedTuple):
    """What the environment has between this process and a host; `headers` are for the proxy alone."""

    host: str
    port: int
    headers: dict[str, str]


_shared: tuple[object, ssl.SSLContext] | None = None


def _common() -> ssl.SSLContext:
    """What all hosts share that have no authorities or certificates of their own: made anew when the system's
    authorities have changed, as each holds all of them (60 ms)."""
    global _shared
    import ssl  # as below

    paths = ssl.get_default_verify_paths()
    stamp = [_stamp(path) for path in (paths.cafile, paths.capath) if path]
    if _shared is None or _shared[0] != stamp:
        _shared = stamp, _verifying("")
    return _shared[1]


def _stamp(path: str) -> tuple[str, int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return path, status.st_ino, status.st_size, status.st_mtime_ns


def _verifying(authority: str) -> ssl.SSLContext:
    import ssl  # as below

    context = ssl.create_default_context(cafile=authority or None)
    # Python 3.13 refuses authorities without a key usage, which is what openssl makes, and docker takes
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


class _Host:
    """Connections to one scheme, host and port."""

    def __init__(self, scheme: str, netloc: str, options: Options, insecure: bool) -> None:
        self.scheme = scheme
        self.netloc = netloc
        self.insecure = insecure
        self._options = options
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            import ssl  # 14 ms and 2.8 MB

            options = self._options
            directory = Path(options.certs) / self.netloc if options.certs else None
            own = options.authority or options.authorities or options.pairs or (directory and directory.is_dir())
            believed = self.insecure or not options.verify
            if not own and not believed:
                self._context = _common()
                return self._context
            # No authorities are loaded where none is asked: they take 60 ms.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if believed else _verifying(options.authority)
            for path in sorted(directory.glob("*.crt")) if directory and directory.is_dir() else []:
                context.load_verify_locations(path)
            for path in sorted(directory.glob("*.cert")) if directory and directory.is_dir() else []:
                context.load_cert_chain(path, path.with_suffix(".key"))
            for authority in options.authorities:
                context.load_verify_locations(authority)
            for certificate, key in options.pairs:
                context.load_cert_chain(certificate, key or None)
            if believed:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._context = context
        return self._context

    def connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        with self._lock:
            if self._idle:
                self._busy.add(self._idle[-1])
                return self._idle.pop(), True
        host, port = _split_port(self.netloc)
        proxy = _proxy(self.scheme, self.netloc, host)
        address = (proxy.host, proxy.port) if proxy else (host, port)
        made: http.client.HTTPConnection
        if self.scheme == "https":
            made = http.client.HTTPSConnection(address[0], address[1], timeout=CONNECT_SECONDS, context=self._tls())
            if proxy:
                place = f"[{host}]:{port or 443}" if ":" in host else f"{host}:{port or 443}"
                made.set_tunnel(host, port or 443, {"Host": place, **proxy.headers})
        else:
            made = http.client.HTTPConnection(address[0], address[1], timeout=CONNECT_SECONDS)
        with self._lock:
            self._busy.add(made)
        return made, False

    def request(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None,
        headers: Mapping[str, str],
    ) -> None:
        """Ask on a connection of here; a proxy is told the whole address, where nothing is enciphered."""
        if self.scheme == "http" and (proxy := _proxy("http", self.netloc, _split_port(self.netloc)[0])):
            path, headers = f"http://{self.netloc}{path}", {**headers, **proxy.headers}
        connection.request(method, path, body, headers)

    def give_back(self, connection: http.client.HTTPConnection, reusable: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if reusable and len(self._idle) < 8:
                self._idle.append(connection)
                return
        connection.close()

    def abort(self) -> None:
        """End the connection for all that read or write here."""
        with self._lock:
            for connection in self._busy:
                sock = connection.sock
                if sock is not None:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()


def _split_port(netloc: str) -> tuple[str, int | None]:
    """Raises RegistryError where it is no host and port."""
    try:
        parts = urlsplit(f"//{netloc}")
        return parts.hostname or "", parts.port
    except ValueError:
        raise RegistryError(f"{netloc[:SHOWN]!r} is no address of a registry") from None


def _joined(base: str, given: str, what: str) -> str:
    """The address that a registry gives in an answer, where it has one: nobody has looked at it before. Raises
    RegistryError."""
    try:
        parts = urlsplit(urljoin(base, given))
        _split_port(parts.netloc)[0].encode("idna")
        path, query = (quote(part, URL_CHARACTERS, "latin-1") for part in (parts.path, parts.query))
        return parts._replace(path=path, query=query, fragment="").geturl()
    except (ValueError, RegistryError):
        raise RegistryError(f"the registry gives {given[:SHOWN]!r} as {what}, which is no address") from None


def _number(text: str) -> int | None:
    """A number in a header, which may be anything."""
    return int(text) if 0 < len(text) <= 18 and text.isascii() and text.isdigit() else None


def _resolvable(host: str) -> None:
    """Raises gaierror for what the C library takes for an address and nobody else does: 80, 10.1, 0x7f000001. (No name
    ends in a number, or in such a one.)"""
    if re.fullmatch(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?", host, re.DOTALL):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise socket.gaierror(socket.EAI_NONAME, "no such host") from None


def _proxy(scheme: str, netloc: str, host: str) -> _Proxy | None:
    """What HTTP_PROXY, HTTPS_PROXY and NO_PROXY say of a host. Raises RegistryError where it is no address."""
    names = (f"{scheme.upper()}_PROXY", f"{scheme}_proxy")
    name = next((os.environ[n] for n in names if os.environ.get(n)), "")
    if not name or _is_loopback(host):
        return None
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # 34 ms and 5.6 MB

    if proxy_bypass_environment(netloc):
        return None
    try:
        parts = urlsplit(name if "//" in name else f"http://{name}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise RegistryError(f"the proxy that {names[0]} names is no address") from None
    headers = {}
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return _Proxy(parts.hostname or "", port, headers)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_insecure(netloc: str, options: Options) -> bool:
    """Whether plain HTTP, and certificates that nobody signed, are allowed there: on loopback, or where `insecure`
    names the host, HOST:PORT or its network."""
    host, _ = _split_port(netloc)
    if _is_loopback(host):
        return True
    for entry in options.insecure:
        if entry in (netloc, host):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry):
                return True
        except ValueError:
            continue
    return False


def _challenge(header: str) -> tuple[str, dict[str, str]]:
    """WWW-Authenticate: the scheme in lower case, its parameters."""
    scheme, _, rest = header.partition(" ")
    values = re.findall(r'([a-zA-Z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))', rest)
    return scheme.lower(), {name.lower(): quoted or plain for name, quoted, plain in values}


class Registry:
    """`place` is where to ask in the place of the domain itself, which is then named in each request."""

    resource = "repository"
    """What tokens are asked for, by distribution's token specification; of plugins it is repository(plugin)."""
    challenges = 1  # that are answered for one request; a token that is kept elsewhere may be refused at first

    def __init__(
        self,
        domain: str,
        credentials: Credentials | None = None,
        options: Options | None = None,
        place: Place | None = None,
    ) -> None:
        place = place or Place()
        self.domain = domain
        self.options = options or Options()
        self.credentials = credentials or Credentials()
        self._hosts: dict[tuple[str, str], _Host] = {}
        self._tokens: dict[str, str] = {}
        self._basic = False
        self._lock = threading.Lock()
        self._aborted = threading.Event()
        own = DOCKER_IO if domain == "docker.io" else domain
        netloc = place.netloc or own
        self._insecure = is_insecure(netloc, self.options)
        self._schemes = ["https", "http"] if self._insecure else ["https"]
        if self.options.schemes:
            self._schemes = list(self.options.schemes)
        self._netloc = netloc
        self._path = place.path
        self._headers = dict(place.headers)
        self._asked_for = domain if netloc not in (own, domain) else ""

    def close(self) -> None:
        """Close the connections that are kept. Calls that are going on are not ended: `abort` does that."""
        for host in self._hosts.values():
            host.close()

    def abort(self) -> None:
        """End what is under way, in whatever thread, and all that would follow: Aborted. What connects only now may
        take its time for that, and no more."""
        self._aborted.set()
        with self._lock:
            hosts = list(self._hosts.values())
        for host in hosts:
            host.abort()

    def _wait(self, seconds: float) -> None:
        self._aborted.wait(seconds)
        self._check()

    def _check(self) -> None:
        if self._aborted.is_set():
            raise Aborted(f"what was asked of {self.domain} was given up")

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one exchange --------------------------------------------------------------------------

    def _host(self, scheme: str, netloc: str) -> _Host:
        with self._lock:
            key = (scheme, netloc)
            if key not in self._hosts:
                self._hosts[key] = _Host(scheme, netloc, self.options, is_insecure(netloc, self.options))
            return self._hosts[key]

    def _exchange(self, method: str, url: str, headers: dict[str, str], body: bytes | Iterable[bytes] | None) -> Answer:
        parts = urlsplit(url)
        host = self._host(parts.scheme, parts.netloc)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        headers = {"User-Agent": self.options.user_agent, **headers}
        watch = self.options.watch
        while True:
            self._check()
            connection, used = host.connection()
            try:
                if connection.sock is None:
                    _resolvable(connection.host)
                    connection.connect()
                self._check()
                if watch:
                    watch.connected(_address(connection.sock), used)
                    watch.sent(
                        _head(f"{method} {path or '/'} HTTP/1.1", {"Host": parts.netloc, **headers}),
                        body if isinstance(body, bytes) else None,
                    )
                host.request(connection, method, path or "/", body, headers)
                if connection.sock is not None:
                    connection.sock.settimeout(READ_SECONDS)
                response = connection.getresponse()
                if watch:
                    first = f"HTTP/1.1 {response.status} {response.reason}"
                    response = watch.received(_head(first, response.headers), response)
                break
            except RegistryError:
                host.give_back(connection, False)
                raise
            except (OSError, http.client.HTTPException):
                host.give_back(connection, False)
                self._check()
                # The other side may close a connection that was idle; that is no failure of this request.
                if not used or not (body is None or isinstance(body, bytes)):
                    raise
            except UnicodeError:  # of the name: no resolver takes a label of 64 characters
                host.give_back(connection, False)
                raise socket.gaierror(socket.EAI_NONAME, "no such host") from None
            except ValueError:  # a header or a path that cannot be sent; what is in it may be secret
                host.give_back(connection, False)
                raise RegistryError(
                    f"a request to {parts.netloc} cannot be written: it has a control character"
                ) from None
        return Answer(
            response.status, response.headers, response, lambda reusable: host.give_back(connection, reusable)
        )

    def _base(self) -> str:
        return f"{self._schemes[0]}://{self._netloc}"

    def _url(self, path: str) -> str:
        """Of a path below /v2/ at the place that is asked, or of an address that the registry gave."""
        if "://" in path:
            return path
        if path.startswith("/v2/"):
            path = self._path + path.removeprefix("/v2")
            if self._asked_for:
                path += ("&" if "?" in path else "?") + urlencode({"ns": self._asked_for})
        return self._base() + path

    def request(
        self,
        method: str,
        path: str,
        scope: str = "",
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        stream: Callable[[], Iterable[bytes]] | None = None,
        accept: tuple[int, ...] = (200,),
    ) -> Answer:
        """One request below /v2/ or to an address that the registry gave; authenticates, follows, tries again."""
        failure: RegistryError | None = None
        for attempt in range(self.options.attempts):
            if attempt:
                self._wait(BACKOFF_SECONDS * 2 ** (attempt - 1))
            spoken = self._schemes[0]
            try:
                answer = self._authorized(method, path, scope, headers or {}, body, stream)
            except (OSError, http.client.HTTPException) as error:
                if self._falls_back(error, spoken):
                    return self.request(method, path, scope, headers, body, stream, accept)
                failure = self._unreachable(method, path, error)
                if _is_final(error):
                    break
                continue
            if answer.status in accept:
                return answer
            failure = self._refusal(answer, method, path)
            if answer.status not in (408, 429, 500, 502, 503, 504):
                break
            if wait := _number(answer.headers.get("Retry-After", "")):
                self._wait(min(wait, 10))
        assert failure
        raise failure

    def _falls_back(self, error: Exception, spoken: str) -> bool:
        """From HTTPS to HTTP, once, where that is allowed and the other side does not speak TLS."""
        if spoken != self._schemes[0]:
            return True  # another thread has just found out
        if len(self._schemes) < 2 or self._schemes[0] != "https":
            return False
        import ssl  # 14 ms and 2.8 MB

        plain = isinstance(error, (ssl.SSLError, ConnectionResetError, http.client.HTTPException))
        plain = plain and not isinstance(error, ssl.SSLCertVerificationError)
        no_port = _split_port(self._netloc)[1] is None and isinstance(error, ConnectionRefusedError)
        if plain or no_port:
            self._schemes = ["http"]
            return True
        return False

    def _unreachable(self, method: str, path: str, error: Exception) -> Unreachable:
        url = self._url(path)
        return Unreachable(f'{method.capitalize()} "{url}": {_reason(error, self._netloc)}')

    def _refusal(self, answer: Answer, method: str, path: str) -> RegistryError:
        try:
            data = answer.read(ERROR_BODY_LIMIT)
        except (OSError, http.client.HTTPException, RegistryError):
            data = b""
        code = message = ""
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, AttributeError):
            first = jsontext.loads(data)["errors"][0]
            code, message = str(first.get("code", "")), str(first.get("message", ""))
        status = answer.status
        words = f"{code.lower().replace('_', ' ')}: {message}" if code else ""
        if not words:
            url = self._url(path)
            name = http.client.responses.get(status, "")
            words = f"unexpected status from {method} request to {url}: {status} {name}"
        kind = {401: Unauthorized, 403: Unauthorized, 404: NotFound}.get(status, RegistryError)
        return kind(words.strip(), status, code)

    def _authorized(
        self,
        method: str,
        path: str,
        scope: str,
        headers: dict[str, str],
        body: bytes | None,
        stream: Callable[[], Iterable[bytes]] | None,
    ) -> Answer:
        for attempt in range(self.challenges + 1):
            url = self._url(path)
            answer = self._follow(method, url, scope, headers, stream() if stream else body)
            if answer.status != 401 or attempt == self.challenges:
                return answer
            challenges = answer.headers.get_all("WWW-Authenticate") or []
            answer.give_back(False)
            if not self._answer_challenge(challenges, scope):
                return answer
        return answer

    def _follow(
        self, method: str, url: str, scope: str, headers: dict[str, str], body: bytes | Iterable[bytes] | None
    ) -> Answer:
        own = urlsplit(url)[:2]
        for _ in range(REDIRECTS):
            sent = dict(headers)
            parts = urlsplit(url)
            if parts.netloc == self._netloc:
                sent = {**self._headers, **sent}
            if parts[:2] == own and parts.netloc == self._netloc:
                authorization = self._authorization(scope)
                if authorization:
                    sent["Authorization"] = authorization
            answer = self._exchange(method, url, sent, body)
            if answer.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD"):
                return answer
            location = answer.headers.get("Location", "")
            answer.give_back(False)
            target = _joined(url, location, "another address")
            scheme = urlsplit(target).scheme
            if not location or scheme not in ("http", "https"):
                raise RegistryError(f"the registry redirects to {location!r}, which is no address", answer.status)
            if scheme == "http" and parts.scheme == "https" and not is_insecure(urlsplit(target).netloc, self.options):
                raise RegistryError(f"the registry redirects from https to plain http: {target}", answer.status)
            url = target
        raise RegistryError(f"stopped after {REDIRECTS} redirects")

    # -- authentication ------------------------------------------------------------------------

    def _authorization(self, scope: str) -> str:
        if self.credentials.registry_token:
            return f"Bearer {self.credentials.registry_token}"
        if self._basic:
            return self._basic_header()
        token = self._tokens.get(scope)
        return f"Bearer {token}" if token else ""

    def _basic_header(self) -> str:
        pair = f"{self.credentials.username}:{self.credentials.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()

    def _answer_challenge(self, challenges: list[str], scope: str) -> bool:
        for header in challenges:
            scheme, parameters = _challenge(header)
            if scheme == "bearer" and parameters.get("realm"):
                realm = _joined("", parameters["realm"], "the token server's address")
                scopes = (parameters.get("scope") or scope).split()
                refused = self._tokens.get(scope, "")
                self._tokens[scope] = self.fetch_token(realm, parameters.get("service", ""), scopes, refused)
                return True
        for header in challenges:
            if _challenge(header)[0] == "basic" and not self._basic:
                self.learn()
                self._basic = bool(self.credentials.username)
                return self._basic
        return False

    def learn(self) -> None:
        """The registry wants to know who asks: `credentials` are used after this. For those who ask only now."""

    def fetch_token(self, realm: str, service: str, scopes: list[str], refused: str) -> str:
        """A token of the token server `realm`; `refused` is one that was not taken, or empty. Raises RegistryError."""
        parts = urlsplit(realm)
        if parts.scheme != "https" and not is_insecure(parts.netloc, self.options):
            raise RegistryError(f"the registry names a token server without TLS: {realm}")
        query: list[tuple[str, str]] = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        headers: dict[str, str] = {}
        if self.credentials.identity_token:
            form = [*query, ("grant_type", "refresh_token"), ("client_id", "teu")]
            form.append(("refresh_token", self.credentials.identity_token))
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            answer = self._exchange("POST", realm, headers, urlencode(form).encode())
        else:
            if self.credentials.username:
                headers["Authorization"] = self._basic_header()
                query.append(("account", self.credentials.username))
            separator = "&" if parts.query else "?"
            answer = self._exchange("GET", realm + separator + urlencode(query), headers, None)
        if answer.status != 200:
            raise self._refusal(answer, "GET", realm)
        with contextlib.suppress(ValueError, AttributeError):
            data = jsontext.loads(answer.read(1 << 20))
            token = data.get("token") or data.get("access_token")
            if token:
                return str(token)
        raise RegistryError(f"the token server {realm} gave no token")

    @property
    def address(self) -> str:
        """host[:port] that is asked."""
        return self._netloc

    # -- pulling -------------------------------------------------------------------------------

    def pull_scope(self, repository: str) -> str:
        """What a token must allow to read a repository (distribution's token specification)."""
        return f"{self.resource}:{repository}:pull"

    def push_scope(self, repository: str) -> str:
        """What a token must allow to read and to write a repository."""
        return f"{self.resource}:{repository}:pull,push"

    def resolve(self, repository: str, reference: str) -> image_spec.Descriptor | None:
        """The descriptor of a tag or digest by a HEAD request; None where the registry does not say it all."""
        path = f"/v2/{repository}/manifests/{quote(reference, safe=':')}"
        answer = self.request("HEAD", path, self.pull_scope(repository), {"Accept": ACCEPT}, accept=(200, 405))
        answer.read(0)
        if answer.status == 405:  # it knows GET only
            return None
        digest = answer.headers.get("Docker-Content-Digest", "")
        media_type = (answer.headers.get("Content-Type") or "").split(";")[0].strip()
        length = _number(answer.headers.get("Content-Length", ""))
        if not digests.is_digest(digest) or not media_type or length is None:
            return None
        return {"mediaType": media_type, "digest": digest, "size": length}

    def manifest(self, repository: str, reference: str) -> tuple[image_spec.Descriptor, bytes]:
        """(descriptor, bytes) of a manifest or index, by tag or digest; verified."""
        path = f"/v2/{repository}/manifests/{quote(reference, safe=':')}"
        answer = self.request("GET", path, self.pull_scope(repository), {"Accept": ACCEPT})
        try:
            data = answer.read(image_spec.MANIFEST_SIZE_LIMIT)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable("GET", path, error) from None
        digest = digests.of(data)
        wanted = reference if ":" in reference else answer.headers.get("Docker-Content-Digest", "")
        if digests.is_digest(wanted):
            digester = digests.for_digest(wanted)
            digester.update(data)
            digest = digester.digest()
            if digest != wanted:
                raise RegistryError(f"manifest verification failed for digest {wanted}: it is {digest}")
        document = image_spec.decode(data, "manifest")
        given = (answer.headers.get("Content-Type") or "").split(";")[0].strip()
        media_type = image_spec.media_type_of(document, given)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}, data

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository, page by page (distribution-spec, "Listing Tags"). Raises RegistryError."""
        path = f"/v2/{repository}/tags/list"
        result: list[str] = []
        while path:
            answer = self.request("GET", path, self.pull_scope(repository))
            document = image_spec.decode(answer.read(image_spec.MANIFEST_SIZE_LIMIT), "tags list")
            result += [str(tag) for tag in document.get("tags") or []]
            link = re.match(r"<([^>]+)>;\s*rel=\"?next", answer.headers.get("Link", ""))
            path = _joined(self._base() + path, link[1], "the rest of its tags") if link else ""
        return result

    def referrers(self, repository: str, digest: str) -> list[image_spec.Descriptor]:
        """Descriptors of the manifests that name this one as their subject, with `artifactType` and annotations where
        the registry tells them (distribution-spec, "Listing Referrers"); of a registry that has no such call those of
        its index for them ("Referrers Tag Schema"). Nobody has looked at what they say. Raises RegistryError."""
        path = f"/v2/{repository}/referrers/{quote(digest, safe=':')}"
        found: list[image_spec.Descriptor] = []
        for _page in range(PAGES_MAX):
            try:
                answer = self.request("GET", path, self.pull_scope(repository), {"Accept": image_spec.OCI_INDEX})
                data = answer.read(image_spec.MANIFEST_SIZE_LIMIT)
            except RegistryError as error:
                if error.status not in NO_REFERRERS:
                    raise
                return self._referrers_by_tag(repository, digest)
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable("GET", path, error) from None
            kind = (answer.headers.get("Content-Type") or "").split(";")[0].strip()
            if kind != image_spec.OCI_INDEX:  # a page for people, of what takes every path for its own
                return self._referrers_by_tag(repository, digest)
            found += image_spec.index(image_spec.decode(data, "list of referrers"))["manifests"]
            link = re.match(r"<([^>]+)>;\s*rel=\"?next", answer.headers.get("Link", ""))
            if not link:
                break
            path = _joined(self._base() + path, link[1], "the rest of the referrers")
        return found

    def _referrers_by_tag(self, repository: str, digest: str) -> list[image_spec.Descriptor]:
        algorithm, _, value = digest.partition(":")
        try:
            descriptor, data = self.manifest(repository, f"{algorithm[:32]}-{value[:64]}")
        except NotFound:
            return []
        if descriptor["mediaType"] not in image_spec.INDEXES:
            return []
        return image_spec.index(image_spec.decode(data, "list of referrers"))["manifests"]

    def blob(self, repository: str, descriptor: image_spec.Descriptor, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from `offset`; goes on by itself after a broken connection. Not verified here:
        the content store does that when it commits."""
        path = f"/v2/{repository}/blobs/{descriptor['digest']}"
        size = descriptor["size"]
        fruitless = 0
        while offset < size:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            answer = self.request("GET", path, self.pull_scope(repository), headers, accept=(200, 206))
            skip = offset
            if answer.status == 206:
                match = re.match(r"bytes ([0-9]{1,18})-", answer.headers.get("Content-Range", ""))
                skip = offset - int(match[1]) if match else 0
                if skip < 0:
                    answer.give_back(False)
                    raise RegistryError(f"the registry sent another range of {descriptor['digest']} than asked for")
            before = offset
            failure = "unexpected EOF"
            try:
                while chunk := answer.response.read(CHUNK):
                    if skip:
                        dropped = min(skip, len(chunk))
                        chunk, skip = chunk[dropped:], skip - dropped
                        if not chunk:
                            continue
                    offset += len(chunk)
                    if offset > size:
                        raise Truncated(f"blob {descriptor['digest']} is larger than its descriptor says: {size} bytes")
                    yield chunk
                answer.give_back(offset >= size and answer.response.isclosed())
            except (OSError, http.client.HTTPException) as error:
                answer.give_back(False)
                self._check()
                failure = _reason(error, self._netloc)
            except BaseException:
                answer.give_back(False)
                raise
            if offset >= size:
                return
            fruitless = 0 if offset > before and fruitless < self.options.attempts else fruitless + 1
            if offset == before:
                fruitless += 1
            if fruitless >= self.options.attempts or answer.headers.get("Content-Length") == str(offset):
                raise Truncated(f"blob {descriptor['digest']} ends after {offset} of {size} bytes: {failure}")
            self._wait(BACKOFF_SECONDS)

    # -- pushing -------------------------------------------------------------------------------

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether the repository has the blob, asked with the right to write. Raises RegistryError but for NotFound."""
        try:
            self.request("HEAD", f"/v2/{repository}/blobs/{digest}", self.push_scope(repository)).read(0)
        except NotFound:
            return False
        return True

    def mount_blob(self, repository: str, digest: str, source: str) -> str:
        """Ask for the blob of another repository of the registry: "" when it was given, else an upload's address."""
        query = urlencode({"mount": digest, "from": source})
        answer = self.request(
            "POST",
            f"/v2/{repository}/blobs/uploads/?{query}",
            self.push_scope(repository),
            {"Content-Length": "0"},
            accept=(201, 202),
        )
        answer.read(ERROR_BODY_LIMIT)
        return "" if answer.status == 201 else self._location(answer)

    def upload(
        self,
        repository: str,
        descriptor: image_spec.Descriptor,
        content: Callable[[], Iterable[bytes]],
        address: str = "",
    ) -> None:
        """Push a blob in one piece."""
        scope = self.push_scope(repository)
        if not address:
            path = f"/v2/{repository}/blobs/uploads/"
            answer = self.request("POST", path, scope, {"Content-Length": "0"}, accept=(202,))
            answer.read(ERROR_BODY_LIMIT)
            address = self._location(answer)
        address += ("&" if "?" in address else "?") + urlencode({"digest": descriptor["digest"]})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(descriptor["size"])}
        self.request("PUT", address, scope, headers, stream=content, accept=(201,)).read(ERROR_BODY_LIMIT)

    def _location(self, answer: Answer) -> str:
        location = answer.headers.get("Location", "")
        if not location:
            raise RegistryError("the registry gave no address for an upload", answer.status)
        return _joined(self._base() + "/", location, "an upload's address")

    def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> None:
        """Store a manifest under a tag or its digest (distribution-spec, "Pushing Manifests"). The blobs that it names
        are there. Raises RegistryError."""
        path = f"/v2/{repository}/manifests/{quote(reference, safe=':')}"
        headers = {"Content-Type": media_type}
        self.request("PUT", path, self.push_scope(repository), headers, data, accept=(201, 202)).read(ERROR_BODY_LIMIT)

    def ping(self) -> None:
        """GET /v2/: whether the registry is there and takes the credentials (login)."""
        self.request("GET", "/v2/").read(1 << 20)


def _head(first: str, headers: Any) -> str:
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in headers.items()), "", ""])


def _address(sock: socket.socket) -> str:
    host, port = sock.getpeername()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_final(error: Exception) -> bool:
    """Trying again will not help."""
    import ssl  # 14 ms and 2.8 MB

    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return False
    return isinstance(error, (ConnectionRefusedError, socket.gaierror, ssl.SSLError))


def _reason(error: Exception, netloc: str) -> str:
    host, port = _split_port(netloc)
    if isinstance(error, socket.gaierror):
        return f"dial tcp: lookup {host}: no such host"
    if isinstance(error, ConnectionRefusedError):
        return f"dial tcp {host}:{port or 443}: connect: connection refused"
    if isinstance(error, TimeoutError):
        return f"dial tcp {host}:{port or 443}: i/o timeout"
    if isinstance(error, http.client.IncompleteRead):
        return "unexpected EOF"
    text = str(error) or type(error).__name__
    if isinstance(error, http.client.RemoteDisconnected):
        return "EOF"
    if isinstance(error, OSError) and error.strerror and error.errno and not hasattr(error, "reason"):  # not of TLS
        words = error.strerror[:1].lower() + error.strerror[1:]
        return f"dial tcp {host}:{port or 443}: connect: {words}" if error.errno in OF_CONNECTING else words
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            f"tls: failed to verify certificate: {getattr(error, 'verify_message', text)}; put the authority's "
            f"certificate into {CERTS_DIRECTORY}/{netloc}/ca.crt"
        )
    return text
