# SPDX-License-Identifier: Apache-2.0
"""The engine's way to registries: options from its configuration, errors in the API's terms. For pull and push."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from teu import __version__
from teu.config import Settings
from teu.engine.core import errors
from teu.oci import distribution
from teu.oci.registries import Registries
from teu.oci.registry_hosts import Place
from teu.trust import files, gate

log = logging.getLogger("teu.engine")
_LABEL = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
DOMAIN = re.compile(rf"|(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")

if TYPE_CHECKING:
    from collections.abc import Sequence

    from teu.engine.core.fields import Login
    from teu.oci.image_spec import Descriptor
    from teu.oci.reference import Reference


def options(settings: Settings) -> distribution.Options:
    return distribution.Options(
        insecure=tuple(settings.get("insecure-registries") or ()),
        mirrors=tuple(settings.get("registry-mirrors") or ()),
        user_agent=f"teu/{__version__}",
        attempts=int(settings.get("max-download-attempts") or distribution.ATTEMPTS),
    )


def credentials(auth: str) -> distribution.Credentials:
    """Those of an X-Registry-Auth header. One that cannot be read is none, as with docker: whether any are needed is
    the registry's to say."""
    try:
        return distribution.credentials_from_header(auth)
    except ValueError as error:
        log.warning("%s; the registry is asked without credentials", error)
        return distribution.Credentials()


def connect(settings: Settings, domain: str, auth: str, resource: str = "") -> distribution.Registry:
    """`resource`: what is asked for, where that is no image (distribution.Registry)."""
    try:
        registry = distribution.Registry(domain, credentials(auth), options(settings))
    except ValueError as error:
        raise errors.BadRequest(str(error)) from None
    except distribution.RegistryError as error:
        raise errors.EngineError(str(error)) from None
    registry.resource = resource or registry.resource
    return registry


class Mirrored(Registries):
    """The mirrors, and then the registry itself, which has the last word."""

    def _told(self, what: str, failures: list[distribution.RegistryError]) -> distribution.RegistryError:
        return failures[-1] if failures else super()._told(what, failures)


def to_pull(settings: Settings, domain: str, auth: str, resource: str = "") -> Registries:
    """What is asked for an image: of docker.io the mirrors first, which get no credentials. Each blob may come from
    another of them than the one before."""
    registry = connect(settings, domain, auth, resource)
    members = []
    for mirror in registry.options.mirrors if domain == "docker.io" else ():
        parts = urlsplit(mirror if "//" in mirror else f"https://{mirror}")
        given = registry.options
        if parts.scheme == "http":
            given = given._replace(schemes=("http",), insecure=(*given.insecure, parts.netloc))
        mirror_ = distribution.Registry(parts.netloc, None, given)
        mirror_.resource = registry.resource
        members.append((Place(), mirror_))
    return Mirrored([*members, (Place(), registry)])


def has_policy(settings: Settings) -> bool:
    """Whether images of registries have to be let in by a policy (teu-policy(5))."""
    return files.configured(str(settings.get("image-policy") or ""))


def let_in(settings: Settings, registry: Registries, wanted: Reference, ways: Sequence[Sequence[Descriptor]]) -> None:
    """Ask the policy, where there is one, before anything is stored. `ways`: as of `trust.gate.let_in`.

    Raises Forbidden where it refuses, RegistryError where the registry does not tell its signatures."""
    policy = str(settings.get("image-policy") or "")
    gate.let_in(registry, wanted, ways, policy, errors.Forbidden, log)


def login(settings: Settings, given: Login) -> None:
    """Raises Unauthorized where the registry does not take them, another EngineError where it cannot be asked.

    given: AuthConfig of the API; serveraddress is a host, or a URL as docker.io's is (https://index.docker.io/v1/)."""
    domain = given.server.rpartition("://")[2].partition("/")[0]
    if not DOMAIN.fullmatch(domain):
        raise errors.BadRequest(f"serveraddress {domain!r} is no registry's address, like registry.example:5000")
    if domain in ("", "index.docker.io", "registry-1.docker.io"):
        domain = "docker.io"
    told = distribution.Credentials(given.user, given.password, given.identity_token, given.registry_token)
    try:
        with distribution.Registry(domain, told, options(settings)) as registry:
            registry.ping()
    except distribution.Unauthorized as error:
        raise errors.Unauthorized(f"login attempt to {domain} failed: {error}") from None
    except distribution.RegistryError as error:
        raise errors.EngineError(str(error)) from None


def convert(error: distribution.RegistryError, wanted: Reference) -> errors.EngineError:
    """A registry's refusal as the API says it."""
    text = str(error)
    if isinstance(error, distribution.NotFound):
        if error.code == "NAME_UNKNOWN":
            return errors.NotFound(_denied(wanted, text))
        return errors.NotFound(f"manifest for {wanted.familiar()} not found: {text}")
    if isinstance(error, distribution.Unauthorized):
        return errors.NotFound(_denied(wanted, text))
    return errors.EngineError(text)


def _denied(wanted: Reference, text: str) -> str:
    return (
        f"pull access denied for {wanted.familiar_name}, repository does not exist or may require "
        f"'docker login': {text}"
    )
