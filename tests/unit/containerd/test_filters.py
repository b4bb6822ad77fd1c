# SPDX-License-Identifier: Apache-2.0
"""containerd's filter language."""

from __future__ import annotations

import pytest

from teu.containerd.core.errors import InvalidArgument
from teu.containerd.core.filters import in_map, parse, parse_all

LABELS = {"a": "1", "containerd.io/x": "y", "with space": "v w"}


def adapt(path: list[str]) -> str | None:
    if path[0] == "labels":
        return in_map(path[1:], LABELS)
    return {"name": "docker.io/library/busybox:latest", "kind": "active"}.get(path[0])


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("name", True),
        ("nothing", False),
        ("kind==active", True),
        ("kind==view", False),
        ("kind!=view", True),
        ("nothing!=view", True),
        ("name~=busy", True),
        ("name~=^busy", False),
        ("name~=/busybox:lat.*$/", True),
        ("name~=|library/|", True),
        ("name~=/docker.io\\/library/", True),
        ("labels.a==1", True),
        ('labels."containerd.io/x"==y', True),
        ('labels."with space"=="v w"', True),
        ("kind==active,labels.a==1", True),
        ("kind==active,labels.a==2", False),
        ("kind==active, labels.a == 1", True),
        ('kind=="act\\x69ve"', True),
        ("name==docker.io/library/busybox:latest", True),
    ],
)
def test_holds(text: str, holds: bool) -> None:
    assert parse(text)(adapt) is holds


@pytest.mark.parametrize(
    "text",
    ["kind=active", "kind==", "==x", "kind==active,", 'kind=="x', "kind==a b", "kind==active ,labels.a", "kind==/a/"],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="filters: parse error"):
        parse(text)


def test_a_bad_regular_expression_matches_nothing() -> None:
    assert not parse("name~=/(/")(adapt)


def test_any_of_many() -> None:
    assert parse_all(["kind==view", "labels.a==1"])(adapt)
    assert not parse_all(["kind==view", "labels.a==2"])(adapt)
    assert parse_all([])(adapt)
