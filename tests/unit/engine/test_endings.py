# SPDX-License-Identifier: Apache-2.0
"""What containerd is asked for when a container ends, by an engine whose containerd is recorded here."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import engine_parts
import pytest

from teu.engine.backend import tasks
from teu.engine.containers.model import Container
from teu.engine.core.errors import EngineError
from teu.engine.core.times import timestamp
from teu.engine.engine import Engine
from teu.engine.lifecycle import run
from teu.engine.streams import hub


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


def test_the_log_has_all_before_the_task_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the task goes the shim, and what is in the FIFOs with it, if the engine is killed at that moment."""
    engine = engine_parts.engine(tmp_path)
    container = running(engine)
    folder = Path(container.runtime_directory)
    folder.mkdir(parents=True)
    Path(container.directory).mkdir(parents=True)
    engine.pump.start()
    seen: list[str] = []
    monkeypatch.setattr(tasks, "delete", lambda *_: seen.append(logged(container)))
    monkeypatch.setattr(tasks, "delete_container", lambda *_: None)
    try:
        container.hub.open(run.stdio_paths(container), run.marker_path(container))
        out, error = (os.open(folder / name, os.O_RDWR | os.O_NONBLOCK) for name in ("stdout", "stderr"))
        container.hub.begin()
        os.write(out, b"whole\nand the last words")
        # What the shim still has of standard error it hands over a moment later.
        os.close(out)
        late = threading.Timer(0.05, lambda: (os.write(error, b"late\n"), os.close(error)))
        late.start()
        run.exited(engine, container, 0, tasks.Exit(0, time.time_ns()))
        late.join()
    finally:
        engine.pump.stop()
    assert len(seen) == 1
    assert {json.loads(line)["log"] for line in seen[0].splitlines()} == {"whole\n", "and the last words", "late\n"}


def logged(container: Container) -> str:
    return Path(container.directory, f"{container.id}-json.log").read_text()


def test_who_was_left_behind_does_not_hold_the_end_up(
    tmp_path: Path, asked: list[tuple[str, Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that outlives the container's first one has its standard error still."""
    monkeypatch.setattr(hub, "WRITERS_SECONDS", 0.02)
    engine = engine_parts.engine(tmp_path)
    container = running(engine)
    Path(container.runtime_directory).mkdir(parents=True)
    Path(container.directory).mkdir(parents=True)
    engine.pump.start()
    try:
        container.hub.open(run.stdio_paths(container), run.marker_path(container))
        held = os.open(f"{container.runtime_directory}/stderr", os.O_RDWR | os.O_NONBLOCK)
        container.hub.begin()
        os.write(held, b"half")
        run.exited(engine, container, 0, tasks.Exit(0, time.time_ns()))
        os.close(held)
    finally:
        engine.pump.stop()
    assert json.loads(logged(container))["log"] == "half"
    assert [call for call, *_ in asked] == ["delete", "delete_container"]


def test_a_paused_container_is_resumed_to_be_stopped(
    tmp_path: Path, asked: list[tuple[str, Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "wait_exit", lambda *_: True)
    engine = engine_parts.engine(tmp_path)
    container = running(engine)
    container.state.paused = True
    run.stop(engine, container, timeout=0)
    assert asked == [(name, engine.containerd, container.id) for name in ("kill", "resume")]


def test_a_restart_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for the end is not told of one that the engine itself makes up for, until that has failed."""
    engine = engine_parts.engine(tmp_path)
    container = running(engine)
    seen: list[int] = []

    def stopped(*_: object) -> None:
        container.state.ends(0, timestamp(), False)
        seen.append(container.comes_back)

    def not_started(*_: object) -> None:
        seen.append(container.comes_back)
        raise EngineError("the image is gone")

    monkeypatch.setattr(run, "stop", stopped)
    monkeypatch.setattr(run, "start", not_started)
    with pytest.raises(EngineError):
        run.restart(engine, container, None)
    assert seen == [1, 1] and container.comes_back == 0
