# SPDX-License-Identifier: Apache-2.0
"""What is asked of systemd while it executes itself anew."""

from __future__ import annotations

import pytest

from teu.systemd import scope
from teu.systemd.bus import BusError

AWAY = BusError("org.freedesktop.DBus.Error.NoReply", "")


def answers(*given: OSError | str) -> tuple[list[OSError | str], object]:
    left = list(given)

    def ask() -> str:
        now = left.pop(0)
        if isinstance(now, OSError):
            raise now
        return now

    return left, ask


@pytest.mark.parametrize("error", [AWAY, ConnectionRefusedError(), ConnectionResetError(), FileNotFoundError()])
def test_one_that_is_away_is_asked_again(error: OSError) -> None:
    _, ask = answers(error, error, "here")
    assert scope.patiently(ask) == "here"  # type: ignore[arg-type]


def test_a_refusal_is_no_absence() -> None:
    left, ask = answers(BusError(scope.UNIT_EXISTS, ""), "never")
    with pytest.raises(BusError, match="UnitExists"):
        scope.patiently(ask)  # type: ignore[arg-type]
    assert left == ["never"]


def test_patience_ends_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts from when systemd went, not from when it was asked: a start may take minutes, and two absences."""
    clock = [0.0]
    monkeypatch.setattr(scope.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(scope.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    times = 0

    def ask() -> str:
        nonlocal times
        times += 1
        if times in (1, 3):
            clock[0] += 100  # the unit is being started; then it goes
        if times < 5:
            raise AWAY
        return "started"

    assert scope.patiently(ask) == "started"
    began = clock[0]
    with pytest.raises(BusError):
        scope.patiently(lambda: (_ for _ in ()).throw(AWAY))
    assert scope.RETURN_SECONDS <= clock[0] - began < scope.RETURN_SECONDS + 1
