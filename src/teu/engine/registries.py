# SPDX-License-Identifier: Apache-2.0
"""The engine's way to registries: options from its configuration, errors in the API's terms. For pull and push."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teu import __version__
from teu.engine import errors
from teu.oci import distribution

if TYPE_CHECKING:
    from teu.engine.engine import Engine
    from teu.oci.reference import Reference


def options(engine: Engine) -> distribution.Options:
    return distribution.Options(
        insecure=tuple(engine.config.get("insecure-registries") or ()),
        mirrors=tuple(engine.config.get("registry-mirrors") or ()),
        user_agent=f"teu/{__version__}",
    )


def connect(engine: Engine, domain: str, auth: str) -> distribution.Registry:
    try:
        credentials = distribution.credentials_from_header(auth)
    except ValueError as error:
        raise errors.BadRequest(str(error)) from None
    return distribution.Registry(domain, credentials, options(engine))


def login(engine: Engine, given: dict[str, Any]) -> None:
    """Raises Unauthorized where the registry does not take them, another EngineError where it cannot be asked.

    given: AuthConfig of the API; serveraddress is a host, or a URL as docker.io's is (https://index.docker.io/v1/)."""
    domain = str(given.get("serveraddress") or "").rpartition("://")[2].partition("/")[0]
    if domain in ("", "index.docker.io", "registry-1.docker.io"):
        domain = "docker.io"
    fields = ("username", "password", "identitytoken", "registrytoken")
    credentials = distribution.Credentials(*(str(given.get(field) or "") for field in fields))
    with distribution.Registry(domain, credentials, options(engine)) as registry:
        try:
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
