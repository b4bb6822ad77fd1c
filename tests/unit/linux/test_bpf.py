# SPDX-License-Identifier: Apache-2.0
"""Device programs, run on samples by the evaluator and compared with the meaning of the rules."""

from __future__ import annotations

import itertools
from typing import Any

import evaluators
import pytest

from teu.linux import bpf

DENY_ALL = {"allow": False, "access": "rwm"}
NULL = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}


def allows(rules: list[dict[str, Any]], kind: str, major: int, minor: int, access: str) -> bool:
    return evaluators.device_program(bpf.compile_rules(rules), kind, major, minor, access)


def test_nothing_said_is_denied() -> None:
    assert not allows([], "c", 1, 3, "r")


def test_allow_all() -> None:
    assert allows([{"allow": True, "type": "a", "access": "rwm"}], "b", 8, 0, "rwm")


def test_the_default_devices() -> None:
    rules = [DENY_ALL, *bpf.DEFAULT_RULES]
    assert allows(rules, "c", 1, 3, "rw")
    assert allows(rules, "c", 136, 7, "rw")
    assert allows(rules, "b", 8, 0, "m")
    assert not allows(rules, "b", 8, 0, "r")
    assert not allows(rules, "b", 8, 0, "rm")
    assert not allows(rules, "c", 1, 11, "w")


@pytest.mark.parametrize("access", ["r", "w", "m", "rw", "rm", "wm", "rwm"])
def test_every_access_must_be_allowed(access: str) -> None:
    rules = [DENY_ALL, {**NULL, "access": "rm"}]
    assert allows(rules, "c", 1, 3, access) == ("w" not in access)


def test_accesses_may_come_from_several_rules() -> None:
    rules = [DENY_ALL, {**NULL, "access": "r"}, {**NULL, "access": "w"}]
    assert allows(rules, "c", 1, 3, "rw")
    assert not allows(rules, "c", 1, 3, "rwm")


def test_the_last_rule_wins() -> None:
    assert not allows([NULL, {**NULL, "allow": False, "access": "w"}], "c", 1, 3, "w")
    assert allows([NULL, {**NULL, "allow": False, "access": "w"}], "c", 1, 3, "r")
    assert allows([{**NULL, "allow": False, "access": "w"}, NULL], "c", 1, 3, "rw")


def test_a_hole_in_a_wildcard() -> None:
    rules = [
        DENY_ALL,
        {"allow": True, "type": "c", "major": 10, "access": "rwm"},
        {"allow": False, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
    ]
    assert allows(rules, "c", 10, 199, "rw")
    assert not allows(rules, "c", 10, 200, "r")


def test_a_deny_list() -> None:
    rules = [{"allow": True, "access": "rwm"}, {"allow": False, "type": "b", "major": 8, "access": "w"}]
    assert allows(rules, "b", 8, 1, "r")
    assert not allows(rules, "b", 8, 1, "rw")
    assert allows(rules, "b", 9, 1, "rw")


def test_a_rule_for_all_discards_those_before() -> None:
    rules = [NULL, DENY_ALL]
    assert not allows(rules, "c", 1, 3, "r")
    assert len(bpf.compile_rules(rules)) == len(bpf.compile_rules([]))


def test_negative_numbers_are_wildcards() -> None:
    rules = [DENY_ALL, {"allow": True, "type": "c", "major": -1, "minor": -1, "access": "r"}]
    assert allows(rules, "c", 200, 200, "r")
    assert not allows(rules, "b", 200, 200, "r")


def test_against_a_plain_model() -> None:
    """Every combination of a few rules on a few devices, against the meaning in three lines."""
    choices = [
        {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}
        for allow in (True, False)
        for kind, major, minor in (("c", 1, 3), ("c", 1, None), ("b", None, 3), ("a", 1, None))
        for access in ("r", "rwm")
    ]

    def model(rules: tuple[dict[str, Any], ...], kind: str, major: int, minor: int, access: str) -> bool:
        def decided(letter: str) -> bool:
            for rule in reversed(rules):
                same = rule["type"] in ("a", kind) and rule["major"] in (None, major)
                if same and rule["minor"] in (None, minor) and letter in rule["access"]:
                    return bool(rule["allow"])
            return False

        return all(decided(letter) for letter in access)

    for rules in itertools.product(choices, repeat=2):
        program = bpf.compile_rules(rules)
        for kind, major, minor in (("c", 1, 3), ("c", 1, 4), ("b", 7, 3), ("b", 1, 9)):
            for access in ("r", "w", "rw"):
                assert evaluators.device_program(program, kind, major, minor, access) == model(
                    rules, kind, major, minor, access
                )
