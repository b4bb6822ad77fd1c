# SPDX-License-Identifier: Apache-2.0
"""Work that may hang: nobody waits for it without an end, and others go on meanwhile."""

from __future__ import annotations

import os
import threading

import pytest

from teu.engine.core.errors import EngineError
from teu.engine.files import rootfs


def test_one_that_hangs_holds_up_nobody() -> None:
    workers, answer, came = rootfs.Workers("test"), threading.Event(), threading.Event()
    late = os.open("/dev/null", os.O_RDONLY)

    def hangs() -> int:
        answer.wait()
        came.set()
        return late

    with pytest.raises(EngineError, match="the server: no answer"):
        workers.run("", hangs, "the server", seconds=0.05)
    threads = {workers.run("", threading.get_native_id, "another") for _ in range(20)}
    assert len(threads) <= 2, "threads are used again"
    answer.set()
    assert came.wait(10)
    for _ in range(1000):
        try:
            os.fstat(late)
        except OSError:
            return
        threading.Event().wait(0.01)
    raise AssertionError("what came late was not closed")


def test_errors_are_the_callers() -> None:
    workers = rootfs.Workers("test")

    def fails() -> int:
        raise FileNotFoundError("none")

    with pytest.raises(FileNotFoundError):
        workers.run("", fails, "it")
    assert workers.run("", lambda: 7, "it") == 7


def test_too_many_that_hang_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "WAITING_MOST", 2)
    workers, answer = rootfs.Workers("test"), threading.Event()

    def hangs() -> int:
        answer.wait()
        return -1

    for _ in range(2):
        with pytest.raises(EngineError, match="no answer"):
            workers.run("", hangs, "it", seconds=0.05)
    with pytest.raises(rootfs.Busy):
        workers.run("", hangs, "it", seconds=0.05)
    answer.set()


def test_a_thread_that_could_not_be_prepared_fails_one_job_only() -> None:
    tries: list[str] = []

    def prepare(place: str) -> None:
        tries.append(place)
        if len(tries) == 1:
            raise PermissionError("not now")

    workers = rootfs.Workers("test", prepare)
    with pytest.raises(PermissionError):
        workers.run("here", lambda: 1, "it")
    assert workers.run("here", lambda: 2, "it") == 2
