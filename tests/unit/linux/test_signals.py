# SPDX-License-Identifier: Apache-2.0
"""Names of signals, which every program reads alike."""

from __future__ import annotations

import signal

import pytest

from teu.linux import signals


def test_the_table_is_this_kernel_s() -> None:
    assert signals.MAX == signal.NSIG - 1
    for name, number in signals.NUMBERS.items():
        assert getattr(signal, f"SIG{name}", number) == number, name
    names = {one.name.removeprefix("SIG") for one in signal.Signals}
    assert names <= set(signals.NUMBERS)


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGKILL", 9), ("hup", 1), ("9", 9), ("64", 64), ("rtmin+3", 37), ("SIGRTMAX-1", 63)],
)
def test_numbers(text: str, number: int) -> None:
    assert signals.number(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "-1", "NOPE", "_IGN", "_DFL", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN+", "KILL+1", "٩"]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="unknown signal"):
        signals.number(text)
