# SPDX-License-Identifier: Apache-2.0
"""The size of an exec's terminal, which a client gives as soon as the answer to its start begins."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from teu.engine.core.errors import Conflict
from teu.engine.core.fields import ExecConfig
from teu.engine.lifecycle import execs


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(execs, "Hub", lambda pump, tty: None)
    monkeypatch.setattr(execs.tasks, "resize", lambda client, identity, *size: found.append(size[:2]))
    return found


def execution() -> execs.Exec:
    config: Any = SimpleNamespace(user="", working_dir="")
    container: Any = SimpleNamespace(config=config, id="c")
    return execs.Exec(SimpleNamespace(pump=None, containerd=None), container, ExecConfig(cmd=["sh"], tty=True))  # type: ignore[arg-type]


def test_it_waits_for_the_process(sizes: list[tuple[int, int]]) -> None:
    one = execution()
    one.asked = True
    asks = threading.Thread(target=one.resize, args=(80, 25))
    asks.start()
    asks.join(0.1)
    assert asks.is_alive() and not sizes
    one.running, one.pid = True, 7
    one.begun.set()
    asks.join(5)
    assert sizes == [(80, 25)]


@pytest.mark.parametrize("asked", [False, True])
def test_there_is_none(sizes: list[tuple[int, int]], asked: bool) -> None:
    """Never asked for, or its start has failed: nothing is waited for."""
    one = execution()
    one.asked = asked
    if asked:
        one.begun.set()
    with pytest.raises(Conflict, match="is not running"):
        one.resize(80, 25)
    assert not sizes
