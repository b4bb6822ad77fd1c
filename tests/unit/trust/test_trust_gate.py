# SPDX-License-Identifier: Apache-2.0
"""The one question of who pulls."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teu.oci import reference
from teu.trust import gate, verify

WANTED = reference.parse("r.example/app:1")
log = logging.getLogger("teu.test")


class Forbidden(Exception):
    """Of the one who asks."""


def test_without_a_policy_nothing_is_asked(tmp_path: Path) -> None:
    def ways() -> Iterator[list[Any]]:
        raise AssertionError("nobody looks at what is to be pulled")
        yield []

    source: Any = None
    for file in ("", str(tmp_path / "policy.yaml")):
        gate.let_in(source, WANTED, ways(), file, Forbidden, log)


def test_a_refusal_is_the_asker_s_own_error(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("default: {require: reject}\n")
    source: Any = None
    with pytest.raises(Forbidden, match=r"r\.example/app:1 is refused by .*:1: default: it lets no image in"):
        gate.let_in(source, WANTED, [], str(file), Forbidden, log)


def test_what_is_only_to_be_told_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("default: {require: anything}\n")
    seen: list[Any] = []
    monkeypatch.setattr(verify, "allow", lambda *given: seen.append(given) or ["it has expired"])
    source: Any = object()
    gate.let_in(source, WANTED, iter([[]]), str(file), Forbidden, log)
    assert seen == [(source, WANTED, [[]], str(file))]
    assert caplog.messages == ["image r.example/app:1: the policy lets it in, and: it has expired"]
