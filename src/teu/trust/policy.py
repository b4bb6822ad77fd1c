# SPDX-License-Identifier: Apache-2.0
"""The policy for images of registries: /etc/teu/policy.yaml and its drop-ins. See teu-policy(5).

    default: {require: reject}
    scopes:
      docker.io/library: {require: insecure-accept-anything}
      registry.example/team:
        cosign: {keys: [/etc/teu/keys/team.pub]}

A scope is a registry, a part of a repository's path, a repository, or a reference with its tag or digest; or
`*.example.com`, all registries below a domain. The longest that fits decides alone. What stands in it must all be met.
Without a file there is no policy. A file with a mistake allows nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.config import ConfigError, Key, Settings, Wrong, list_of, load, map_of, matching, one_of, path, section, text
from teu.oci.reference import DEFAULT_DOMAIN, Reference, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TRUST_STORE = "/etc/teu/truststore"

SIGNED, REJECT, ANYTHING = "signed", "reject", "insecure-accept-anything"
ENFORCE, LOG, SKIP = "enforce", "log", "skip"
STRICT, PERMISSIVE, AUDIT = "strict", "permissive", "audit"
AUTHENTICITY, TIMESTAMP, EXPIRY, REVOCATION = "authenticity", "authentic-timestamp", "expiry", "revocation"

_STORE = r"(?:ca|signingAuthority):[A-Za-z0-9_.-]+"
_HOST = r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?"
_SCOPE = re.compile(
    rf"\*\.[A-Za-z0-9_.-]+|{_HOST}|{_HOST}(?:/[a-z0-9._-]+)+(?::[A-Za-z0-9_][A-Za-z0-9_.-]*|@[a-z0-9]+:[0-9a-f]+)?"
)


def _identity(value: Any) -> str:
    if isinstance(value, str) and (value in ("repository", "exact", "any") or _SCOPE.fullmatch(value)):
        return value
    raise Wrong("give repository, exact, any, or a scope that the name in the signature has to be of")


def _subject(value: Any) -> str:
    if value == "*":
        return "*"
    if isinstance(value, str) and value.startswith("x509.subject:"):
        try:
            found = subject(value)
        except ValueError as error:
            raise Wrong(f"{error}; give x509.subject: C=US, ST=WA, O=acme.example, CN=builder") from None
        missing = [name for name in ("C", "ST", "O") if name not in found]
        if missing:
            raise Wrong(f"{', '.join(missing)} is missing; a subject has at least C, ST and O")
        return value
    raise Wrong("give x509.subject: C=US, ST=WA, O=acme.example, or *")


def subject(value: str) -> dict[str, str]:
    """The attributes of an identity's distinguished name (trust-store-trust-policy, "Trusted Identities
    Constraints"). Raises ValueError."""
    found: dict[str, str] = {}
    for part in re.split(r"(?<!\\)[,+]", value.removeprefix("x509.subject:")):
        name, equals, content = part.strip().partition("=")
        if not equals or not content.strip():
            raise ValueError(f"{part.strip()!r} is no attribute of a subject")
        name = name.strip().upper()
        name = "ST" if name == "S" else name
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = re.sub(r"\\(.)", r"\1", content.strip())
    return found


_OVERRIDES = (
    Key(AUTHENTICITY, one_of("", ENFORCE, LOG), "", "that a certificate of the trust stores is in the chain"),
    Key(TIMESTAMP, one_of("", ENFORCE, LOG), "", "that the certificates are valid at the time that counts"),
    Key(EXPIRY, one_of("", ENFORCE, LOG), "", "that the signature's own time is not over"),
    Key(REVOCATION, one_of("", ENFORCE, LOG, SKIP), "", "that no certificate was taken back, by the store's *.crl"),
)
REQUIREMENTS = (
    Key(
        "require",
        one_of(SIGNED, REJECT, ANYTHING),
        SIGNED,
        "what an image must be: signed, as the sections beside it say; reject: no image; insecure-accept-anything",
    ),
    Key(
        "cosign",
        section(
            Key("keys", list_of(path), [], "files with public keys in PEM: a signature by one of them is enough"),
            Key(
                "identity",
                _identity,
                "repository",
                "which name the signature has to give: the repository's that is pulled from; exact: with its tag or"
                " digest as well; any; or one within this scope, for mirrors",
            ),
            Key("annotations", map_of(text), {}, "what the signature has to say beside the name"),
            Key(
                "rekor-keys",
                list_of(path),
                [],
                "files with public keys of transparency logs: one of them must have signed the entry that comes along",
            ),
            Key(
                "fulcio",
                section(
                    Key("roots", list_of(path), [], "files with the authorities' certificates, in PEM"),
                    Key(
                        "identities",
                        map_of(list_of(text)),
                        {},
                        "by the address of who knows them, the signers: mail addresses or URIs",
                    ),
                ),
                {},
                "signatures by certificates, which need rekor-keys",
            ),
        ),
        {},
        "a signature of cosign's",
    ),
    Key(
        "notation",
        section(
            Key(
                "trust-stores",
                list_of(matching(_STORE, "give ca:NAME or signingAuthority:NAME, a folder of the trust store")),
                [],
                f"folders below {TRUST_STORE}/x509 with the certificates that are trusted",
            ),
            Key("identities", list_of(_subject), [], "subjects of the signers' certificates; *: all that were issued"),
            Key("level", one_of(STRICT, PERMISSIVE, AUDIT), STRICT, "how much is enforced, and how much only logged"),
            Key("override", section(*_OVERRIDES), {}, "what is otherwise than the level has it: enforce, log, skip"),
        ),
        {},
        "a signature of the Notary Project's",
    ),
    Key(
        "attestations",
        map_of(
            section(
                Key("keys", list_of(path), [], "files with public keys in PEM: an attestation by one of them is enough")
            )
        ),
        {},
        "signed statements about the image that must be there, by their predicates' types",
    ),
)
KEYS = (
    Key("trust-store", path, TRUST_STORE, "folder of the trust stores that notation sections name"),
    Key("default", section(*REQUIREMENTS), {}, "for images that no scope is for; it must be there"),
    Key("scopes", map_of(section(*REQUIREMENTS)), {}, "by registry, part of a path, repository or reference"),
)


class Fulcio(NamedTuple):
    """Signers by certificates: files with roots, and by issuer their subjects."""

    roots: tuple[str, ...]
    identities: Mapping[str, tuple[str, ...]]


class Cosign(NamedTuple):
    """`place` is the line of the policy, for errors; so in the others."""

    place: str
    keys: tuple[str, ...]
    identity: str
    annotations: Mapping[str, str]
    rekor_keys: tuple[str, ...]
    fulcio: Fulcio | None = None


class Notation(NamedTuple):
    """`stores` are folders; `actions`: enforce, log or skip, by the name of the validation."""

    place: str
    stores: tuple[tuple[str, Path], ...]  # (ca or signingAuthority, its folder)
    identities: tuple[str, ...]
    actions: Mapping[str, str]


class Attestation(NamedTuple):
    """One predicate's type, and who may have signed the statement."""

    place: str
    predicate: str
    keys: tuple[str, ...]


class Rule(NamedTuple):
    """What one scope asks for, all of it."""

    place: str
    scope: str
    require: str
    cosign: Cosign | None
    notation: Notation | None
    attestations: tuple[Attestation, ...]


class Policy:
    """All rules of the files."""

    def __init__(self, settings: Settings, file: str | Path) -> None:
        """Raises ConfigError."""
        if settings.where("default") == "default":
            raise ConfigError(f"{file}: default: is missing; say what other images need, such as {{require: reject}}")
        store = Path(settings["trust-store"])
        self._default = _rule(settings, "default", settings["default"], "", store)
        self._scopes: dict[str, Rule] = {}
        for scope, found in settings["scopes"].items():
            if not _SCOPE.fullmatch(scope) or "*" in scope and "/" in scope:
                raise ConfigError(
                    f"{settings.where(f'scopes.{scope}')}: scopes.{scope}: is no scope; give registry.example,"
                    " registry.example/team/app:1, docker.io/library or *.example.com"
                )
            host, slash, rest = scope.partition("/")
            if (name := f"{known_as(host)}{slash}{rest}") in self._scopes:
                raise ConfigError(
                    f"{settings.where(f'scopes.{scope}')}: scopes.{scope}: is {name}, which is there; remove one"
                )
            self._scopes[name] = _rule(settings, f"scopes.{scope}", found, scope, store)

    @property
    def rules(self) -> list[Rule]:
        """All of them, the default first."""
        return [self._default, *self._scopes.values()]

    def rule(self, wanted: Reference) -> Rule:
        """What is asked for an image of that name: the rule of the narrowest scope, or the default."""
        for scope in scopes_of(wanted):
            if scope in self._scopes:
                return self._scopes[scope]
        return self._default


def known_as(domain: str) -> str:
    """The one name of a registry that has several: nobody gets around a scope by writing it in capitals, with the port
    that it has anyway, or by docker.io's other names."""
    domain = domain.lower().removesuffix(":443")
    return DEFAULT_DOMAIN if domain in OF_DOCKER else domain


OF_DOCKER = ("index.docker.io", "registry-1.docker.io")


def scopes_of(wanted: Reference) -> Iterator[str]:
    """The scopes that a reference is in, the narrowest first."""
    wanted = wanted._replace(domain=known_as(wanted.domain))
    if wanted.digest:
        yield f"{wanted.name}@{wanted.digest}"
    if wanted.tag:
        yield f"{wanted.name}:{wanted.tag}"
    name = wanted.name
    while name:
        yield name
        name = name.rpartition("/")[0]
    host = wanted.domain.partition(":")[0] if not wanted.domain.startswith("[") else ""
    while "." in host:
        host = host.partition(".")[2]
        yield f"*.{host}"


def _rule(settings: Settings, full: str, found: dict[str, Any], scope: str, store: Path) -> Rule:
    def where(name: str = "") -> str:
        key = f"{full}.{name}" if name else full
        return f"{settings.where(key)}: {key}"

    def given(name: str) -> bool:
        return settings.where(f"{full}.{name}") != "default"

    def wrong(name: str, says: str) -> ConfigError:
        return ConfigError(f"{where(name)}: {says}")

    sections = [name for name in ("cosign", "notation", "attestations") if given(name)]
    if found["require"] != SIGNED:
        if sections:
            raise wrong(sections[0], f"is never looked at with `require: {found['require']}`; remove one of them")
        return Rule(where(), scope, found["require"], None, None, ())
    if not sections:
        raise wrong("", "asks for no signature; add cosign, notation or attestations, or `require: reject`")
    return Rule(
        where(),
        scope,
        SIGNED,
        _cosign(where("cosign"), found["cosign"], given("cosign.fulcio")) if "cosign" in sections else None,
        _notation(where("notation"), found["notation"], store) if "notation" in sections else None,
        _attestations(where, found["attestations"]) if "attestations" in sections else (),
    )


def _cosign(place: str, values: dict[str, Any], by_certificates: bool) -> Cosign:
    fulcio = None
    if by_certificates:
        for name in ("roots", "identities"):
            if not values["fulcio"][name]:
                raise ConfigError(f"{place}.fulcio: {name} are missing")
        if not values["rekor-keys"]:
            raise ConfigError(
                f"{place}: rekor-keys are missing: a certificate is good for minutes, and a log says when it was used"
            )
        identities = {issuer: tuple(names) for issuer, names in values["fulcio"]["identities"].items()}
        fulcio = Fulcio(tuple(values["fulcio"]["roots"]), identities)
    elif not values["keys"]:
        raise ConfigError(f"{place}: keys are missing; name files with public keys, such as /etc/teu/keys/team.pub")
    return Cosign(
        place,
        tuple(values["keys"]),
        values["identity"],
        dict(values["annotations"]),
        tuple(values["rekor-keys"]),
        fulcio,
    )


def _notation(place: str, values: dict[str, Any], store: Path) -> Notation:
    for name in ("trust-stores", "identities"):
        if not values[name]:
            raise ConfigError(f"{place}: {name} is missing")
    if "*" in values["identities"] and len(values["identities"]) > 1:
        raise ConfigError(f"{place}: identities has * and others; remove one or the other")
    stores = [each.partition(":") for each in values["trust-stores"]]
    return Notation(
        place,
        tuple((kind, store / "x509" / kind / name) for kind, _, name in stores),
        tuple(values["identities"]),
        _actions(values["level"], values["override"]),
    )


def _attestations(where: Callable[[str], str], found: dict[str, Any]) -> tuple[Attestation, ...]:
    result = []
    for predicate, values in found.items():
        place = where(f"attestations.{predicate}")
        if not values["keys"]:
            raise ConfigError(f"{place}: keys are missing")
        result.append(Attestation(place, predicate, tuple(values["keys"])))
    if not result:
        raise ConfigError(f"{where('attestations')}: names no predicate's type, such as https://slsa.dev/provenance/v1")
    return tuple(result)


def _actions(level: str, override: Mapping[str, str]) -> dict[str, str]:
    """The table of the levels (trust-store-trust-policy, "Signature Verification details"). Integrity is always
    enforced."""
    strict = level == STRICT
    result = {
        AUTHENTICITY: LOG if level == AUDIT else ENFORCE,
        TIMESTAMP: ENFORCE if strict else LOG,
        EXPIRY: ENFORCE if strict else LOG,
        REVOCATION: ENFORCE if strict else LOG,
    }
    return {name: override[name] or action for name, action in result.items()}


def read(file: str) -> Policy:
    """The policy of a file and its drop-ins, as they are now. Raises ConfigError."""
    return Policy(load(file, KEYS), file)


def within(wanted: Reference, scope: str) -> bool:
    """Whether a reference is in a scope."""
    host, slash, rest = scope.partition("/")
    return f"{known_as(host)}{slash}{rest}" in scopes_of(wanted)


def signed_reference(text: str) -> Reference:
    """The name that a signature gives, its registry as `known_as`. Raises ValueError."""
    found = parse(text)
    return found._replace(domain=known_as(found.domain))
