# SPDX-License-Identifier: Apache-2.0
"""Visitors of a container's files, and how a start and a removal get past them; the first process and its start."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teu.engine.containers import proc, visits
from teu.engine.core.errors import Conflict


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for process in made:
        process.kill()
        process.wait()


def visit(sleepers: list[subprocess.Popen[bytes]], holds: bool = True, shares: bool = False) -> visits.Visit:
    sleepers.append(subprocess.Popen(["sleep", "600"]))
    return visits.Visit(sleepers[-1], holds, shares)


def test_a_start_ends_who_does_not_move(sleepers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "STALLED", 0.05)
    present = visits.Visits()
    still, reader = visit(sleepers), visit(sleepers, holds=False)
    present.enter(still)
    present.enter(reader)
    present.give_way("web")
    with pytest.raises(Conflict, match="web is being started: the copy was cut off"):
        still.check()
    reader.check()  # it is in nobody's way


def test_a_start_waits_for_who_moves(sleepers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "STALLED", 5.0)
    present = visits.Visits()
    moving = visit(sleepers)
    present.enter(moving)
    starting = threading.Thread(target=present.give_way, args=("web",), daemon=True)
    starting.start()
    time.sleep(0.1)
    assert starting.is_alive()
    present.leave(moving)
    starting.join(10)
    assert not starting.is_alive()
    moving.check()


def test_a_removal_waits_for_nobody(sleepers: Any) -> None:
    present = visits.Visits()
    one = visit(sleepers)
    present.enter(one)
    present.end("web")
    with pytest.raises(Conflict, match="web was removed"):
        one.check()


def test_who_writes_shares_one_root(sleepers: Any) -> None:
    present = visits.Visits()
    opened: list[str] = []

    @contextlib.contextmanager
    def root() -> Iterator[int]:
        opened.append("open")
        yield 7
        opened.append("closed")

    first = visit(sleepers, shares=True)
    assert present.writable_root(root) == 7
    present.enter(first)
    second = visit(sleepers, shares=True)
    assert present.writable_root(root) == 7
    present.enter(second)
    present.leave(first)
    assert opened == ["open"]
    present.leave(second)
    assert opened == ["open", "closed"]
    present.settle()
    assert opened == ["open", "closed"]


def container(pid: int, started: int) -> Any:
    return SimpleNamespace(pid=pid, pid_started=started, running=True, id="c" * 64, name="web")


def test_a_process_is_known_by_its_start(sleepers: Any) -> None:
    sleepers.append(subprocess.Popen(["sleep", "600"]))
    pid = sleepers[0].pid
    began = proc.started(pid)
    assert began > 0
    with proc.held(container(pid, began)) as folder:
        assert proc.read(folder, "comm").strip() in ("sleep", "python3")
        assert os.path.samestat(os.stat("ns/net", dir_fd=folder), os.stat("/proc/self/ns/net"))
    with pytest.raises(ProcessLookupError), proc.held(container(pid, began + 1)):
        pass
    sleepers[0].kill()
    sleepers[0].wait()
    assert proc.started(pid) == 0
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(ProcessLookupError), proc.held(container(pid, began)):
        pass
