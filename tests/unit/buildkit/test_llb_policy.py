# SPDX-License-Identifier: Apache-2.0
"""Source policies: what is allowed, denied, or becomes another source."""

from __future__ import annotations

import time
from typing import Any

import pytest

from teu.api.buildkit import ops_pb2, policy_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.errors import PermissionDenied as Denied
from teu.buildkit.llb import build, load
from teu.buildkit.llb.policy import Policies, _stars, normalized

BUSYBOX = "docker-image://docker.io/library/busybox:latest"
ALPINE = "docker-image://docker.io/library/alpine:latest"


def rule(action: str, identifier: str, update: str = "", match: str = "WILDCARD", **attributes: str) -> Any:
    made = policy_pb2.Rule(action=policy_pb2.PolicyAction.Value(action))
    made.selector.identifier = identifier
    made.selector.match_type = policy_pb2.MatchType.Value(match)
    if update or attributes:
        made.updates.identifier = update
        made.updates.attrs.update(attributes)
    return made


def asked(identifier: str, *policies: list[Any], **attributes: str) -> tuple[str, bool]:
    source = ops_pb2.SourceOp(identifier=identifier, attrs=attributes)
    changed = Policies([policy_pb2.Policy(rules=rules) for rules in policies]).apply(source)
    return source.identifier, changed


def test_what_no_rule_fits_is_allowed() -> None:
    assert asked(BUSYBOX) == (BUSYBOX, False)
    assert asked(BUSYBOX, [rule("DENY", ALPINE)]) == (BUSYBOX, False)


def test_the_last_rule_wins() -> None:
    with pytest.raises(Denied, match=r'source "docker-image://docker.io/library/busybox:latest" denied by policy'):
        asked(BUSYBOX, [rule("ALLOW", BUSYBOX), rule("DENY", "*")])
    assert asked(BUSYBOX, [rule("DENY", "*"), rule("ALLOW", "docker-image://docker.io/library/*")])[1] is False
    with pytest.raises(Denied):
        asked(BUSYBOX, [rule("ALLOW", "*")], [rule("DENY", "*busybox*")])


def test_another_way_to_write_it_does_not_get_by() -> None:
    for identifier in ("docker-image://busybox", "docker-image://docker.io/busybox:latest", BUSYBOX):
        with pytest.raises(Denied):
            asked(identifier, [rule("DENY", BUSYBOX, match="EXACT")])
    for identifier in ("git://me@github.com/a/b.git#main", "git://https://me:x@github.com/a/b.git#main"):
        with pytest.raises(Denied):
            asked(identifier, [rule("DENY", "git://github.com/a/*")])
    assert normalized("https://host/x") == "https://host/x"


def test_convert() -> None:
    to = ALPINE.replace("latest", "3")
    assert asked(BUSYBOX, [rule("CONVERT", BUSYBOX, to, match="EXACT")]) == (to, True)
    pinned = rule("CONVERT", "docker-image://docker.io/library/(.*):1", "docker-image://mirror/$1:${1}x", match="REGEX")
    assert asked("docker-image://docker.io/library/go:1", [pinned]) == ("docker-image://mirror/go:gox", True)
    # What it became is asked about again, by all policies.
    with pytest.raises(Denied):
        asked(BUSYBOX, [rule("DENY", ALPINE)], [rule("CONVERT", BUSYBOX, ALPINE)])


def test_convert_by_wildcard() -> None:
    one = rule("CONVERT", "docker-image://docker.io/*/golang:*", "docker-image://mirror.local/$2/${1}:x")
    assert asked("docker-image://docker.io/library/golang:1.19", [one]) == (
        "docker-image://mirror.local/1.19/library:x",
        True,
    )


def test_convert_attributes() -> None:
    source = ops_pb2.SourceOp(identifier="https://host/x")
    one = rule("CONVERT", "https://host/x", **{"http.checksum": "sha256:abc"})
    assert Policies([policy_pb2.Policy(rules=[one])]).apply(source)
    assert dict(source.attrs) == {"http.checksum": "sha256:abc"} and source.identifier == "https://host/x"


def test_a_loop_has_an_end() -> None:
    rules = [rule("CONVERT", BUSYBOX, ALPINE), rule("CONVERT", ALPINE, BUSYBOX)]
    with pytest.raises(errors.InvalidArgument, match="too many mutations"):
        asked(BUSYBOX, rules)


def test_constraints() -> None:
    denied = rule("DENY", "*")
    denied.selector.constraints.add(key="http.checksum", value="", condition=policy_pb2.EQUAL)
    with pytest.raises(Denied):
        asked("https://host/x", [denied])
    assert asked("https://host/x", [denied], **{"http.checksum": "sha256:0"})[1] is False
    denied.selector.constraints[0].CopyFrom(
        policy_pb2.AttrConstraint(key="git.keepgitdir", value="^t.*e$", condition=policy_pb2.MATCHES)
    )
    with pytest.raises(Denied):
        asked("git://host/x", [denied], **{"git.keepgitdir": "true"})
    denied.selector.constraints[0].condition = policy_pb2.NOTEQUAL
    with pytest.raises(Denied):
        asked("git://host/x", [denied], **{"git.keepgitdir": "true"})


def test_rules_that_cannot_be_understood() -> None:
    for one in (
        rule("DENY", "(", match="REGEX"),
        rule("DENY", "(a+)+", match="REGEX"),
        rule("DENY", "((a*)b)*", match="REGEX"),
        rule("DENY", "a*b*c*d*e*f", match="REGEX"),
        rule("DENY", "a**"),
        policy_pb2.Rule(action=policy_pb2.CONVERT, selector=policy_pb2.Selector(identifier=BUSYBOX)),
        policy_pb2.Rule(action=7, selector=policy_pb2.Selector(identifier=BUSYBOX)),
        policy_pb2.Rule(selector=policy_pb2.Selector(identifier="x", match_type=9)),
    ):
        with pytest.raises(errors.InvalidArgument):
            asked(BUSYBOX, [one])


def test_no_rule_takes_long() -> None:
    begin = time.monotonic()
    asked("https://" + "a" * 8000, [rule("DENY", "*a" * 2000 + "b")])
    with pytest.raises(errors.InvalidArgument):
        asked("https://" + "a" * 9000, [rule("DENY", "^x", match="REGEX")])
    asked("https://" + "a" * 2000, [rule("DENY", "^h.*a.*x$", match="REGEX")])
    assert time.monotonic() - begin < 5


def _stars_of(pattern: str, text: str) -> list[str] | None:
    return _stars(pattern.split("*"), text)


def test_wildcards() -> None:
    assert _stars_of("a*", "abc") == ["bc"]
    assert _stars_of("*/*:*", "x/y/z:1:2") == ["x/y", "z:1", "2"]
    assert _stars_of("a*a", "a") is None
    assert _stars_of("abc", "abc") == []
    assert _stars_of("a*c*", "abd") is None


def test_a_graph_with_a_policy() -> None:
    """llb.load asks of every source, and what stands on a changed one is another vertex."""
    state = build.image("docker.io/library/busybox:latest").run(("true",)).root
    definition = state.definition()
    plain = load.load(definition)
    converted = load.load(definition, policy=Policies([policy_pb2.Policy(rules=[rule("CONVERT", BUSYBOX, ALPINE)])]))
    names = [vertex.op.source.identifier for vertex in converted.vertexes.values() if vertex.kind == "source"]
    assert names == [ALPINE]
    assert converted.root.vertex != plain.root.vertex
    with pytest.raises(Denied):
        load.load(definition, policy=Policies([policy_pb2.Policy(rules=[rule("DENY", "*")])]))
