# SPDX-License-Identifier: Apache-2.0
"""The builder's way to registries: places by its configuration, credentials and tokens from its clients. Called by the
image source, by caches that travel, and by exporters that push.

Nobody is asked before a registry wants to know who asks. Then the client of a session fetches a token itself (see
session.auth), or says name and password. A token is kept for whoever proves to have the same credentials: it is in no
log, and a session that ended leaves none that another could use without that proof.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from teu import __version__
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Descriptor
from teu.buildkit.session import auth
from teu.buildkit.session.manager import Manager, Session
from teu.buildkit.sources.base import Asker, Recent, ask_any
from teu.oci import image_spec
from teu.oci.reference import Reference
from teu.oci.registry_hosts import HostsError, Place

if TYPE_CHECKING:
    from teu.oci.distribution import Options, Registry
    from teu.oci.registries import Registries

TOKENS_MAX = 1000
CLIENT_ID = "teu"
EXPIRES_EARLY = 0.9  # of its time a token is used


@dataclass(frozen=True, slots=True)
class Host:
    """What the configuration says of one registry. `http`: it speaks plain HTTP; `insecure`: nobody looks at its
    certificate, and HTTP is spoken where it knows no TLS. Mirrors are asked first, to pull: host[:port][/path], or
    URLs."""

    mirrors: tuple[str, ...] = ()
    http: bool = False
    insecure: bool = False
    authorities: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Configuration:
    """`hosts`, by domain ("docker.io", "localhost:5000"); `folder`: of hosts.toml files (oci.registry_hosts), for those
    that are not among them; `certs`: of certificates, as docker has it; `insecure`: hosts and networks;
    `policy`: the file that says which images are let in."""

    hosts: Mapping[str, Host] = field(default_factory=dict)
    folder: str = ""
    certs: str = "/etc/teu/certs.d"
    insecure: tuple[str, ...] = ()
    policy: str = ""


class _Token(NamedTuple):
    token: str
    expires: float  # seconds since 1970
    session: str  # that fetched it


class Access:
    """Registries, for whoever has a session. One for the builder."""

    def __init__(self, sessions: Manager, configuration: Configuration | None = None) -> None:
        self.sessions = sessions
        self.configuration = configuration or Configuration()
        self.tokens: Recent[_Token] = Recent(TOKENS_MAX)

    def open(self, domain: str, asker: Asker, *, insecure: bool = False) -> Registries:
        """The places of a domain; nobody is spoken to yet. `insecure`: as of Host, for this once.

        Raises InvalidArgument where the configuration is not understood."""
        from teu.oci import registries  # http.client, 8 ms

        def make(domain: str, credentials: Any, options: Options, place: Place) -> Registry:
            return _registry(self, asker, domain, options, place)

        try:
            host = self.configuration.hosts.get(domain)
            if insecure:
                host = Host(insecure=True)
            if host is None:
                return registries.opened(domain, None, self._options(), self.configuration.folder, make=make)
            return registries.Registries(self._members(domain, host, make))
        except (HostsError, OSError) as error:
            raise errors.InvalidArgument(f"registry {domain}: {error}") from None

    def _options(self, *insecure: str) -> Options:
        from teu.oci.distribution import Options  # http.client, 8 ms

        configuration = self.configuration
        return Options(
            insecure=(*configuration.insecure, *insecure),
            certs=configuration.certs,
            user_agent=f"teu-buildkitd/{__version__}",
        )

    def _members(
        self, domain: str, host: Host, make: Callable[[str, Any, Options, Place], Registry]
    ) -> list[tuple[Place, Registry]]:
        members = []
        for mirror in host.mirrors:
            parts = urlsplit(mirror if "://" in mirror else f"//{mirror}")
            path = parts.path.rstrip("/")
            known = self.configuration.hosts.get(parts.netloc, Host())
            options = self._given(parts.netloc, known)
            if parts.scheme == "http":
                options = options._replace(schemes=("http",), insecure=(*options.insecure, parts.netloc))
            place = Place(parts.scheme, parts.netloc, path + "/v2", ("pull", "resolve"))
            members.append((place, make(domain, None, options, place)))
        members.append((Place(), make(domain, None, self._given(domain, host), Place())))
        return members

    def _given(self, netloc: str, host: Host) -> Options:
        options = self._options(*((netloc,) if host.http or host.insecure else ()))
        return options._replace(
            schemes=("http",) if host.http else (),
            verify=not host.insecure,
            authorities=host.authorities,
            pairs=host.pairs,
        )


def _registry(access: Access, asker: Asker, domain: str, options: Options, place: Place) -> Registry:
    from teu.oci.distribution import (  # http.client, 8 ms
        Credentials,
        Registry,
        RegistryError,
        Unauthorized,
    )

    fresh: set[str] = set()  # tokens that were fetched for this registry

    class Asked(Registry):
        """A registry that asks the clients when it has to."""

        challenges = 2  # the first may be answered with a token that is no longer good

        def learn(self) -> None:
            try:
                found = self._ask(lambda session: (session.id, auth.credentials(session, self.address)))
            except errors.Error as error:
                raise Unauthorized(f"failed to authorize: {error.message}") from None
            self.credentials = _credentials(found[1] if found else None)

        def _ask(self, function: Callable[[Session], Any]) -> Any:
            """None where there is no client to ask: then nobody is who asks."""
            if not asker.sessions():
                return None
            return ask_any(access.sessions, asker, function)

        def fetch_token(self, realm: str, service: str, scopes: list[str], refused: str) -> str:
            if refused in fresh:
                return refused  # another one would be no better
            place = (self.address, realm, service, tuple(sorted(scopes)))
            try:
                found = self._ask(lambda session: self._by_client(session, place, refused))
            except errors.Error as error:
                raise Unauthorized(f"failed to authorize: {error.message}") from None
            if found:
                return str(found)
            self.learn()
            known = "\0".join(self.credentials)
            key = (hashlib.sha256(known.encode("utf-8", "replace")).digest(), *place)
            kept = access.tokens.get(key)
            if kept is not None and kept.token != refused and kept.expires > time.time():
                return kept.token
            try:
                token = super().fetch_token(realm, service, scopes, refused)
            except RegistryError as error:
                error.args = (f"failed to authorize: failed to fetch oauth token: {error}",)
                raise
            fresh.add(token)
            expires = time.time() + EXPIRES_EARLY * auth.DEFAULT_EXPIRY
            access.tokens.put(key, _Token(token, expires, ""))
            return token

        def _by_client(self, session: Session, place: tuple[str, str, str, tuple[str, ...]], refused: str) -> str:
            """The token of a client that fetches tokens itself; empty where it does not."""
            host, realm, service, scopes = place
            authority = auth.token_authority(session, host)
            if authority is None:
                return ""

            def own(kept: _Token) -> bool:
                # A key is public: who says it has yet to show that the credentials are its own.
                return kept.session == session.id or auth.verify_authority(session, host, authority)

            key = (authority, *place)
            kept = access.tokens.get(key)
            if kept is not None and kept.token != refused and kept.expires > time.time() and own(kept):
                return kept.token
            fetched = auth.fetch_token(session, host, realm, service, scopes, CLIENT_ID)
            fresh.add(fetched.token)
            begin = min(fetched.issued_at or time.time(), time.time())
            access.tokens.put(key, _Token(fetched.token, begin + EXPIRES_EARLY * fetched.expires_in, session.id))
            return fetched.token

    return Asked(domain, Credentials(), options, place)


def _credentials(known: auth.Credentials | None) -> Any:
    from teu.oci.distribution import Credentials  # http.client, 8 ms

    if known is None or not known.secret:
        return Credentials()
    if not known.name:
        return Credentials(identity_token=known.secret)
    return Credentials(known.name, known.secret)


@contextmanager
def told(what: str) -> Iterator[None]:
    """What a registry refuses, as an error of the builder: `what` stands in front of it."""
    from teu.oci import distribution  # http.client, 8 ms

    kinds: tuple[tuple[type[Exception], type[errors.Error]], ...] = (
        (distribution.Aborted, errors.Cancelled),
        (distribution.NotFound, errors.NotFound),
        (distribution.Unauthorized, errors.PermissionDenied),
        (distribution.Unreachable, errors.Unavailable),
        (distribution.Truncated, errors.Unavailable),
    )
    try:
        yield
    except distribution.RegistryError as error:
        kind = next((made for known, made in kinds if isinstance(error, known)), errors.Error)
        text = str(error)
        if isinstance(error, distribution.NotFound):
            text = "not found"  # as BuildKit has it, for which clients look
        elif isinstance(error, distribution.Unauthorized) and not text.startswith("failed to authorize"):
            text = f"pull access denied, repository does not exist or may require authorization: server message: {text}"
        raise kind(f"{what}: {text}") from None
    except image_spec.SpecError as error:
        raise errors.InvalidArgument(f"{what}: {error}") from None


class Remote:
    """A repository as a place to get blobs from, for many threads. What is asked while another question is under way,
    or in a block of `opened`, goes over the same connections."""

    def __init__(self, access: Access, reference: Reference, asker: Asker, *, insecure: bool = False) -> None:
        self._access = access
        self._insecure = insecure
        self._lock = Lock()
        self._registries: Registries | None = None
        self._users = 0
        self.asker = asker
        self.reference = reference

    @contextmanager
    def opened(self) -> Iterator[Registries]:
        """While the block runs, a build that nobody waits for ends what is under way."""
        self.asker.check()
        registries = self._enter()
        try:
            with self.asker.on_cancel(registries.abort), told(str(self.reference)):
                yield registries
        except Exception:
            self.asker.check()  # nobody waits: that is the reason, whatever else was said
            raise
        finally:
            self._leave(registries)

    def _enter(self) -> Registries:
        with self._lock:
            if self._registries is None:
                self._registries = self._access.open(self.reference.domain, self.asker, insecure=self._insecure)
            self._users += 1
            return self._registries

    def _leave(self, registries: Registries) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                registries.close()
                self._registries = None

    def resolve(self) -> Descriptor:
        """The descriptor of what the reference names now."""
        with self.opened() as registries:
            return registries.resolve(self.reference.path, self.reference.digest or self.reference.tag)

    def manifest(self, digest: str) -> bytes:
        with self.opened() as registries:
            return registries.manifest(self.reference.path, digest)[1]

    def blob(self, descriptor: Descriptor, offset: int = 0) -> Iterator[bytes]:
        """Not checked yet: whoever keeps it does."""
        with self.opened() as registries:
            yield from registries.blob(self.reference.path, descriptor, offset)
