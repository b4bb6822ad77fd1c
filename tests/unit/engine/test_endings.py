# SPDX-License-Identifier: Apache-2.0
"""What containerd is asked for when a container ends, by an engine whose containerd is recorded here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import engine_parts
import pytest

from teu.engine.backend import tasks
from teu.engine.containers.model import Container
from teu.engine.core.times import timestamp
from teu.engine.engine import Engine
from teu.engine.lifecycle import run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, str]]:
    """(call, the client, the container) of each."""
    found: list[tuple[str, Any, str]] = []
    for name in ("delete", "delete_container", "resume", "kill"):
        monkeypatch.setattr(tasks, name, lambda client, identity, *_, name=name: found.append((name, client, identity)))
    return found


def running(engine: Engine) -> Container:
    container = engine_parts.container(engine)
    container.state.runs(2**22 + 1, timestamp())
    return container


def test_the_end_of_a_container_is_the_end_of_containerds(tmp_path: Path, asked: list[tuple[str, Any, str]]) -> None:
    engine = engine_parts.engine(tmp_path)
    container = running(engine)
    engine.pump.start()
    try:
        run.exited(engine, container, 0, tasks.Exit(3, time.time_ns()))
    finally:
        engine.pump.stop()
    assert container.state.status == "exited" and container.state.exit_code == 3
    assert asked == [(name, engine.containerd, container.id) for name in ("delete", "delete_container")]


def test_a_paused_container_is_resumed_to_be_stopped(
    tmp_path: Path, asked: list[tuple[str, Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "wait_exit", lambda *_: True)
    engine = engine_parts.engine(tmp_path)
    container = running(engine)
    container.state.paused = True
    run.stop(engine, container, timeout=0)
    assert asked == [(name, engine.containerd, container.id) for name in ("kill", "resume")]
