# SPDX-License-Identifier: Apache-2.0
"""./dev soak: what its ledger takes for true, and what it takes for wrong."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from soak.ledger import ABSENT, DUE, UNSETTLED, Container, Ledger

sys.path.append(str(Path(__file__).resolve().parents[2] / "system"))
from soak.clients import log_problem, runs


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(1, stop=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_an_acknowledgement_leaves_one_state(ledger: Ledger) -> None:
    container = Container("container", "c")
    ledger.begin(container, "running", "created")
    assert container.possible() == {ABSENT, "created", "running"} and not container.certain("running")
    ledger.end(container, True, "running")
    assert container.possible() == {"running"} and container.certain("running")


def test_a_refusal_leaves_all_until_it_is_looked_at(ledger: Ledger, clock: list[float]) -> None:
    container = Container("container", "c")
    ledger.begin(container, "running")
    ledger.end(container, False, "running")
    assert container.possible() == {ABSENT, "running"}
    ledger.observed(container, ABSENT, container.version)
    assert container.possible() == {ABSENT, "running"}, "what was refused may still be under way"
    clock[0] += UNSETTLED + 1
    ledger.observed(container, ABSENT, container.version - 1)
    assert container.possible() == {ABSENT, "running"}, "what was seen before the last command says nothing"
    ledger.observed(container, ABSENT, container.version)
    assert container.certain(ABSENT)


def test_what_ends_by_itself_may_be_gone_after_it_was_seen(ledger: Ledger) -> None:
    container = Container("container", "c", role="foreground")
    ledger.begin(container, "created", "running", "exited")
    container.busy = False
    ledger.observed(container, "running", container.version)
    assert {ABSENT, "running"} <= container.possible()
    ledger.observed(container, ABSENT, container.version)
    assert container.certain(ABSENT)


def test_a_strike_has_to_be_seen(ledger: Ledger, clock: list[float]) -> None:
    container = Container("container", "c", states={"running"}, codes={7})
    ledger.strike(container, {137}, shim=True)
    assert container.possible() == {"running", "exited"} and container.codes == {7, 137} and container.torn
    ledger.observed(container, "running", container.version)
    clock[0] += DUE + 1
    assert container.possible() == {"exited"}, "its end has to be known by now"


def test_a_restart_policy_brings_it_back(ledger: Ledger, clock: list[float]) -> None:
    container = Container("container", "c", states={"running"}, keeps=True)
    ledger.strike(container, {137}, shim=False)
    assert container.possible() == {"running", "exited"}
    clock[0] += DUE + 1
    assert container.possible() == {"running"}


def test_what_never_ran_is_not_struck(ledger: Ledger) -> None:
    container = Container("container", "c", states={"created"})
    ledger.strike(container, {137}, shim=True)
    assert container.possible() == {"created"}


def test_a_contradiction_is_said_once_for_each(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    container = Container("container", "c")
    ledger.contradict("is lost", container)
    ledger.contradict("is lost", container)
    assert len(ledger.contradictions) == 1 and "container c: is lost" in capsys.readouterr().out
    assert "1 contradictions" in ledger.report()


@pytest.mark.parametrize(
    ("logged", "said", "torn", "lost", "twice", "wrong"),
    [
        ("a 1\na 2\na 3\n", "a 1\na 2\na 3\n", False, 0, 0, ""),
        ("a 1\na 2\nb 1\n", "a 1\na 2\nb 1\nb ", False, 0, 0, ""),  # a line that is not whole is none
        ("a 1\na 3\n", "", False, 0, 0, "lacks"),
        ("a 2\na 3\n", "", False, 0, 0, "lacks"),
        ("a 1\na 3\n", "", False, 1, 0, ""),
        ("a 1\na 2\n", "a 1\na 2\na 3\n", False, 0, 0, "ends at 2"),
        ("a 1\na 2\n", "a 1\na 2\na 3\n", True, 0, 0, ""),
        ("a 1\n", "b 1\n", False, 0, 0, "ends at 0"),
        ("a 1\na 1\na 2\n", "", False, 0, 0, "twice"),
        ("a 1\na 1\na 2\n", "", False, 0, 1, ""),
        ("a 1\na 3\na 2\n", "", False, 9, 9, "out of order"),
        ("a 1\na 2a 3\n", "", False, 9, 9, "no line"),
    ],
)
def test_logs(logged: str, said: str, torn: bool, lost: int, twice: int, wrong: str) -> None:
    problem = log_problem(runs(logged), runs(said), torn, lost, twice)
    assert wrong in problem and bool(wrong) == bool(problem)
