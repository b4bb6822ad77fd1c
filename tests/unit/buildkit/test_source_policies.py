# SPDX-License-Identifier: Apache-2.0
"""Source policies: the last rule that matches holds, a conversion is looked at again, nothing goes round for ever."""

from __future__ import annotations

from typing import Any

import pytest

from teu.api.buildkit import ops_pb2, policy_pb2
from teu.buildkit.core.errors import InvalidArgument, PermissionDenied
from teu.buildkit.llb.policy import Policies

ALLOW, DENY, CONVERT = policy_pb2.ALLOW, policy_pb2.DENY, policy_pb2.CONVERT


def rule(action: int, identifier: str, to: str = "", kind: int = policy_pb2.WILDCARD, **attributes: str) -> Any:
    return policy_pb2.Rule(
        action=action,
        selector=policy_pb2.Selector(identifier=identifier, match_type=kind),
        updates=policy_pb2.Update(identifier=to, attrs=attributes),
    )


def apply(source: Any, *rules: Any) -> bool:
    return Policies([policy_pb2.Policy(version=1, rules=rules)]).apply(source)


def source(identifier: str, **attributes: str) -> Any:
    return ops_pb2.SourceOp(identifier=identifier, attrs=attributes)


BUSYBOX = "docker-image://docker.io/library/busybox:latest"


def test_the_last_rule_that_matches_holds() -> None:
    assert not apply(source(BUSYBOX), rule(DENY, "*"), rule(ALLOW, "docker-image://docker.io/library/*"))
    with pytest.raises(PermissionDenied, match="denied by policy"):
        apply(source(BUSYBOX), rule(ALLOW, "*"), rule(DENY, BUSYBOX, kind=policy_pb2.EXACT))
    assert not apply(source(BUSYBOX), rule(DENY, "docker-image://*:1", kind=policy_pb2.EXACT))


def test_a_conversion_takes_over_what_the_pattern_matched() -> None:
    asked = source(BUSYBOX)
    assert apply(
        asked, rule(CONVERT, "docker-image://docker.io/*:*", "docker-image://mirror.example/$1:${2}-slim"), *[]
    )
    assert asked.identifier == "docker-image://mirror.example/library/busybox:latest-slim"
    asked = source("https://example.com/a.tar")
    assert apply(asked, rule(CONVERT, r"https://([a-z]+)\.com/", "", policy_pb2.REGEX, **{"http.checksum": "sha256:0"}))
    assert dict(asked.attrs) == {"http.checksum": "sha256:0"}
    assert not apply(asked, rule(CONVERT, "https://*", "", **{"http.checksum": "sha256:0"}))


def test_what_was_converted_is_asked_about_again() -> None:
    denied = rule(DENY, "docker-image://other.example/*")
    with pytest.raises(PermissionDenied):
        apply(source(BUSYBOX), denied, rule(CONVERT, "docker-image://docker.io/*", "docker-image://other.example/$1"))


def test_conversions_in_a_circle_end() -> None:
    with pytest.raises(InvalidArgument, match="too many"):
        apply(source("https://a"), *(rule(CONVERT, f"*//{a}", f"https://{b}") for a, b in ("ab", "ba")))


def test_attributes_are_compared() -> None:
    one = rule(DENY, "https://*")
    constraint = policy_pb2.AttrConstraint(key="http.checksum", value="", condition=policy_pb2.EQUAL)
    one.selector.constraints.append(constraint)
    with pytest.raises(PermissionDenied):
        apply(source("https://example.com/x"), one)
    assert not apply(source("https://example.com/x", **{"http.checksum": "sha256:1"}), one)


def test_no_pattern_is_slow_and_stars_are_greedy() -> None:
    assert not apply(source("a" * 20_000), rule(DENY, "*a" * 1000 + "b"))
    asked = source("x:a:b:c")
    assert apply(asked, rule(CONVERT, "x:*:*", "y://$1/$2/$3"))
    assert asked.identifier == "y://a:b/c/"


def test_bad_rules_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="invalid regex"):
        apply(source("a"), rule(DENY, "(", kind=policy_pb2.REGEX))
    with pytest.raises(InvalidArgument, match="regular expressions"):
        Policies([], [policy_pb2.Policy(rules=[rule(DENY, "(a+)+b", kind=policy_pb2.REGEX)])], regexes=False)


def test_a_frontend_cannot_go_round_the_rules_of_others() -> None:
    forbidden = policy_pb2.Policy(rules=[rule(DENY, "https://*")])
    mine = policy_pb2.Policy(rules=[rule(CONVERT, "docker-image://*", "https://$1"), rule(ALLOW, "*")])
    with pytest.raises(PermissionDenied):
        Policies([forbidden], [mine], regexes=False).apply(source("docker-image://example.com/x"))
