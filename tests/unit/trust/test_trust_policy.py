# SPDX-License-Identifier: Apache-2.0
"""policy.yaml: which rule is for which image, and what a mistake in it is told as."""

from __future__ import annotations

from pathlib import Path

import pytest

from teu.config import ConfigError
from teu.oci import reference
from teu.trust import files, policy

POLICY = """\
default: {require: reject}
scopes:
  docker.io/library: {require: insecure-accept-anything}
  docker.io/library/alpine:3: {require: reject}
  registry.example/team:
    cosign:
      keys: [/k/team.pub]
      annotations: {env: prod}
  registry.example/team/app:
    notation:
      trust-stores: [ca:acme]
      identities: ["x509.subject: C=DE, ST=Hamburg, O=acme.example"]
      override: {revocation: skip}
    attestations:
      https://slsa.dev/provenance/v1: {keys: [/k/slsa.pub]}
  localhost:5000: {require: insecure-accept-anything}
  "*.example.org": {require: insecure-accept-anything}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.mark.parametrize(
    ("image", "scope"),
    [
        ("busybox", "docker.io/library"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("alpine:3.1", "docker.io/library"),
        ("user/app", ""),
        ("registry.example/team/other:1", "registry.example/team"),
        ("registry.example/team/app:1", "registry.example/team/app"),
        ("registry.example/team/app2:1", "registry.example/team"),
        ("registry.example/teams/app:1", ""),
        ("localhost:5000/x", "localhost:5000"),
        ("localhost:5001/x", ""),
        ("a.b.example.org:80/x", "*.example.org"),
        ("example.org/x", ""),
        ("notexample.org/x", ""),
        # Other ways to write the name of a registry are no way around its scope.
        ("REGISTRY.Example/team/app:1", "registry.example/team/app"),
        ("registry.example:443/team/app:1", "registry.example/team/app"),
        ("registry.example:4443/team/app:1", ""),
        ("registry-1.docker.io/library/alpine:3", "docker.io/library/alpine:3"),
        ("index.docker.io/library/alpine:3", "docker.io/library/alpine:3"),
        ("A.B.Example.ORG/x", "*.example.org"),
    ],
)
def test_the_narrowest_scope_decides(file: Path, image: str, scope: str) -> None:
    assert policy.read(str(file)).rule(reference.parse(image).with_default_tag()).scope == scope


def test_what_is_asked_for(file: Path) -> None:
    rule = policy.read(str(file)).rule(reference.parse("registry.example/team/app:1"))
    assert rule.cosign is None and rule.notation and rule.require == policy.SIGNED
    assert rule.notation.stores == (("ca", Path("/etc/teu/truststore/x509/ca/acme")),)
    assert rule.notation.actions == {
        "authenticity": "enforce",
        "authentic-timestamp": "enforce",
        "expiry": "enforce",
        "revocation": "skip",
    }
    assert [each.predicate for each in rule.attestations] == ["https://slsa.dev/provenance/v1"]
    rule = policy.read(str(file)).rule(reference.parse("registry.example/team/x:1"))
    assert rule.cosign and rule.cosign.identity == "repository" and rule.cosign.annotations == {"env": "prod"}
    assert rule.cosign.place == f"{file}:6: scopes.registry.example/team.cosign"


def test_drop_ins_add_scopes(file: Path) -> None:
    folder = file.with_name("policy.yaml.d")
    folder.mkdir()
    (folder / "mine.yaml").write_text("scopes: {registry.example: {require: reject}}\n")
    read = policy.read(str(file))
    assert read.rule(reference.parse("registry.example/x:1")).place == f"{folder}/mine.yaml:1: scopes.registry.example"
    assert read.rule(reference.parse("busybox:1")).scope == "docker.io/library"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scopes: {}\n", "policy.yaml: default: is missing"),
        ("default: {}\n", ":1: default: asks for no signature"),
        ("default: {require: maybe}\n", ":1: default.require: bad value 'maybe'; give one of signed, reject"),
        ("default: {require: reject, cosign: {keys: [/k]}}\n", ":1: default.cosign: is never looked at"),
        ("default:\n  cosign: {keys: []}\n", ":2: default.cosign: keys are missing"),
        ("default: {cosign: {keys: [k.pub]}}\n", ":1: default.cosign.keys: bad value 'k.pub'; give an absolute path"),
        ("default: {cosign: {keys: [/k], identity: x y}}\n", "default.cosign.identity: bad value 'x y'"),
        ("default: {cosign: {keys: [/k], fulcio: {}}}\n", "default.cosign.fulcio: roots are missing"),
        ("default: {cosign: {fulcio: {roots: [/r]}}}\n", "default.cosign.fulcio: identities are missing"),
        (
            "default: {cosign: {fulcio: {roots: [/r], identities: {a: [b]}}}}\n",
            "default.cosign: rekor-keys are missing: a certificate is good for minutes",
        ),
        ("default: {cosign: {fulcio: {roots: [/r], identities: {a: b}}}}\n", "bad value 'b'; give a list"),
        ("default: {notation: {identities: ['*']}}\n", "default.notation: trust-stores is missing"),
        ("default: {notation: {trust-stores: ['ca:x']}}\n", "default.notation: identities is missing"),
        ("default: {notation: {trust-stores: ['tsa:x'], identities: ['*']}}\n", "bad value 'tsa:x'"),
        ("default: {notation: {trust-stores: ['ca:../x/y'], identities: ['*']}}\n", "bad value 'ca:../x/y'"),
        ("default: {notation: {trust-stores: ['ca:x'], identities: ['*', 'x509.subject: C=a, ST=b, O=c']}}\n", "has *"),
        ("default: {notation: {trust-stores: ['ca:x'], identities: ['x509.subject: CN=a']}}\n", "C, ST, O is missing"),
        ("default: {notation: {trust-stores: ['ca:x'], identities: ['x509.subject: CN']}}\n", "'CN' is no attribute"),
        ("default: {notation: {trust-stores: ['ca:x'], identities: [me]}}\n", "give x509.subject: "),
        ("default: {notation: {trust-stores: ['ca:x'], identities: ['*'], level: skip}}\n", "strict, permissive"),
        ("default: {attestations: {}}\n", "default.attestations: names no predicate's type"),
        ("default: {attestations: {x: {}}}\n", "default.attestations.x: keys are missing"),
        ("default: {require: reject}\nscopes: {Bad Name: {require: reject}}\n", ":2: scopes.Bad Name: is no scope"),
        ("default: {require: reject}\nscopes: {'*.x.org/y': {require: reject}}\n", "is no scope"),
        (
            "default: {require: reject}\nscopes:\n  x.org: {require: reject}\n  X.org:443: {require: reject}\n",
            ":4: scopes.X.org:443: is x.org, which is there",
        ),
        ("default: {require: reject}\nscopes: {x: {requires: reject}}\n", "did you mean require?"),
    ],
)
def test_mistakes_are_told_by_line(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        policy.read(str(file))
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_subjects() -> None:
    assert policy.subject("x509.subject: C=DE, ST=Hamburg,O=a\\, b, CN=x=y") == {
        "C": "DE",
        "ST": "Hamburg",
        "O": "a, b",
        "CN": "x=y",
    }
    with pytest.raises(ValueError, match="CN is there twice"):
        policy.subject("x509.subject: CN=a, CN=b")


def test_whether_there_is_one(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    assert not files.configured(str(file)) and not files.configured("")
    before = files.stamp(str(file))
    (tmp_path / "policy.yaml.d").mkdir()
    assert not files.configured(str(file))
    (tmp_path / "policy.yaml.d/x.yaml").write_text("default: {require: reject}\n")
    assert files.configured(str(file))
    assert files.stamp(str(file)) != before
    # One that leads nowhere is a mistake, and not the absence of a policy.
    (tmp_path / "policy.yaml.d/x.yaml").unlink()
    file.symlink_to("nowhere")
    assert files.configured(str(file))
