# SPDX-License-Identifier: Apache-2.0
"""What is of one domain, asked for at the places that a folder names (`registry_hosts`): one after the other until
one has it. Without such a folder it is the registry itself. Called by teu-ctr and by teu-containerd's transfers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from teu.oci import image_spec
from teu.oci.distribution import (
    DOCKER_IO,
    Aborted,
    Answer,
    Credentials,
    NotFound,
    Options,
    Registry,
    RegistryError,
)
from teu.oci.registry_hosts import HostsError, Place, places

Result = TypeVar("Result")


class Registries:
    """Of each method: as of `Registry`."""

    def __init__(self, members: list[tuple[Place, Registry]]) -> None:
        self._members = members

    def __enter__(self) -> Registries:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of all members."""
        for _place, registry in self._members:
            registry.close()

    def abort(self) -> None:
        """End what is going on with any member: it raises Aborted."""
        for _place, registry in self._members:
            registry.abort()

    def _able(self, *operations: str) -> list[Registry]:
        return [one for place, one in self._members if all(each in place.operations for each in operations)]

    def _first(self, what: str, members: list[Registry], ask: Callable[[Registry], Result]) -> Result:
        """The first answer."""
        failures: list[RegistryError] = []
        for registry in members:
            try:
                return ask(registry)
            except Aborted:
                raise
            except RegistryError as error:
                failures.append(error)
        raise self._told(what, failures)

    def _told(self, what: str, failures: list[RegistryError]) -> RegistryError:
        """The first refusal that is more than "not here"."""
        more = [error for error in failures if not isinstance(error, NotFound)]
        return (more or failures or [NotFound(f"no place to ask for {what}")])[0]

    def _for_reference(self, reference: str) -> list[Registry]:
        """A digest may come from anywhere; what a tag means says who is trusted with that."""
        return self._able("pull") if ":" in reference else self._able("pull", "resolve")

    def resolve(self, repository: str, reference: str) -> image_spec.Descriptor:
        """The descriptor of a tag or digest, from the first member that has it. Raises RegistryError."""

        def ask(registry: Registry) -> image_spec.Descriptor:
            return registry.resolve(repository, reference) or registry.manifest(repository, reference)[0]

        return self._first(f"{repository}:{reference}", self._for_reference(reference), ask)

    def manifest(self, repository: str, reference: str) -> tuple[image_spec.Descriptor, bytes]:
        """A manifest's descriptor and its bytes, from the first member that has it. Raises RegistryError."""
        members = self._for_reference(reference)
        return self._first(f"{repository}:{reference}", members, lambda one: one.manifest(repository, reference))

    def blob(self, repository: str, descriptor: image_spec.Descriptor, offset: int = 0) -> Iterator[bytes]:
        """Where one breaks off, the next goes on from there."""
        failures: list[RegistryError] = []
        for registry in self._able("pull"):
            try:
                for chunk in registry.blob(repository, descriptor, offset):
                    offset += len(chunk)
                    yield chunk
                return
            except Aborted:
                raise
            except RegistryError as error:
                failures.append(error)
        raise self._told(descriptor["digest"], failures)

    def referrers(self, repository: str, digest: str) -> list[image_spec.Descriptor]:
        """Of all members together: a mirror may have an image, and nothing of what is signed of it. Raises
        RegistryError where none of them answers."""
        found: dict[str, image_spec.Descriptor] = {}
        failures: list[RegistryError] = []
        members = self._able("pull")
        for registry in members:
            try:
                for each in registry.referrers(repository, digest):
                    found.setdefault(each["digest"], each)
            except Aborted:
                raise
            except RegistryError as error:
                failures.append(error)
        if len(failures) == len(members):
            raise self._told(digest, failures)
        return list(found.values())

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository, from the first member that tells them. Raises RegistryError."""
        return self._first(repository, self._able("pull", "resolve"), lambda one: one.tags(repository))

    def open_blob(self, repository: str, digest: str, kind: str = "") -> Answer:
        """A blob of which nothing but the digest is known; and its kind, where the registry is to be told of one."""
        headers = {"Accept": f"{kind}, */*"} if kind else {}

        def ask(registry: Registry) -> Answer:
            path, scope = f"/v2/{repository}/blobs/{digest}", registry.pull_scope(repository)
            return registry.request("GET", path, scope, headers=headers)

        return self._first(digest, self._able("pull"), ask)

    def _to_push(self) -> Registry:
        for registry in self._able("push"):
            return registry
        raise RegistryError("no push hosts")

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether the member that is pushed to has the blob. Raises RegistryError."""
        return self._to_push().has_blob(repository, digest)

    def upload(
        self, repository: str, descriptor: image_spec.Descriptor, content: Callable[[], Iterable[bytes]]
    ) -> None:
        """Push a blob to the member for that; `content` is called again where it has to begin anew. Raises
        RegistryError."""
        self._to_push().upload(repository, descriptor, content)

    def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> None:
        """Store a manifest at the member that is pushed to. Raises RegistryError."""
        self._to_push().put_manifest(repository, reference, media_type, data)


def opened(
    domain: str,
    credentials: Credentials | None,
    options: Options,
    folder: str = "",
    plain: bool = False,
    headers: dict[str, str] | None = None,
    make: Callable[[str, Credentials | None, Options, Place], Registry] = Registry,
) -> Registries:
    """The places of `domain` by `folder`. `plain`: HTTP where the folder says nothing of it; `headers` go to all of
    them; `make` makes each of them. Raises HostsError and OSError."""
    members = []
    for place in places(folder, domain) if folder else [Place()]:
        given = options._replace(
            certs="" if folder else options.certs,
            pairs=options.pairs + place.pairs,
            authorities=place.authorities,
            verify=options.verify if place.verify is None else place.verify,
        )
        explicit = bool(options.authority or options.pairs or not options.verify)
        explicit = explicit or bool(place.authorities or place.pairs) or place.verify is not None
        netloc, scheme = place.netloc, place.scheme
        if not netloc and domain == "docker.io":
            netloc, scheme = DOCKER_IO, "https"
        elif not netloc and plain:
            netloc, scheme = domain, "http"
        if scheme == "http":
            # Where TLS is configured for the registry it is used, unless the port says otherwise.
            both = explicit and not netloc.endswith(":80")
            if both:
                given = given._replace(schemes=("https", "http"))
            else:
                given = given._replace(schemes=("http",), insecure=(*given.insecure, netloc))
        elif scheme:
            given = given._replace(schemes=(scheme,))
        _check_files(given)
        place = place._replace(headers=(*(headers or {}).items(), *place.headers))
        members.append((place, make(domain, credentials, given, place)))
    return Registries(members)


def _check_files(options: Options) -> None:
    """That certificates and keys are there and are some, before any host is spoken to."""
    if not (options.authorities or options.pairs or options.authority):
        return
    import ssl  # 14 ms and 2.8 MB

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in filter(None, (options.authority, *options.authorities)):
        try:
            context.load_verify_locations(name)
        except ssl.SSLError:
            raise HostsError(f'unable to load CA cert "{name}"') from None
        except OSError as error:
            raise HostsError(f'unable to read CA cert "{name}": {(error.strerror or "").lower()}') from None
    for certificate, key in options.pairs:
        try:
            context.load_cert_chain(certificate, key or None)
        except OSError as error:
            raise HostsError(f'failed to load X509 key pair "{certificate}": {error}') from None
