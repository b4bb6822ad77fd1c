# SPDX-License-Identifier: Apache-2.0
"""Progress of builds: what listeners are told, early or late, of own and of shared steps."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from teu.api.buildkit import control_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.progress import CLIPPED, LOG_MESSAGES_MAX, LOG_SIZE_MAX, Progress, Step


def read(progress: Progress) -> control_pb2.StatusResponse:
    whole = control_pb2.StatusResponse()
    for response in progress.listen():
        whole.MergeFrom(response)
    return whole


def test_listeners_get_the_same_early_and_late() -> None:
    progress = Progress()
    got: list[control_pb2.StatusResponse] = []
    early = threading.Thread(target=lambda: got.append(read(progress)))
    early.start()
    with progress.vertex("sha256:1", "[1/2] FROM x") as step:
        step.status("layer", "pulling", 5, 10)
        time.sleep(0.15)
        step.status("layer", "pulling", 10, 10, done=True)
    with pytest.raises(errors.Error), progress.vertex("sha256:2", "[2/2] RUN y", ["sha256:1"]) as step:
        step.log(2, b"y: not found\n")
        step.warn("careful", ["because"], "https://docs")
        raise errors.Error("exit code: 127")
    progress.close()
    early.join(5)
    late = read(progress)
    assert [(v.digest, v.HasField("started"), v.HasField("completed"), v.error) for v in late.vertexes] == [
        ("sha256:1", False, False, ""),
        ("sha256:1", True, False, ""),
        ("sha256:1", True, True, ""),
        ("sha256:2", False, False, ""),
        ("sha256:2", True, False, ""),
        ("sha256:2", True, True, "exit code: 127"),
    ]
    assert got[0].vertexes == late.vertexes and got[0].logs == late.logs
    assert [status.current for status in got[0].statuses] == [5, 10]
    assert [(s.vertex, s.ID, s.current, s.HasField("completed")) for s in late.statuses] == [
        ("sha256:1", "layer", 10, True)
    ]
    assert late.vertexes[3].inputs == ["sha256:1"] and late.logs[0].msg == b"y: not found\n"
    assert (late.warnings[0].short, late.warnings[0].detail, late.warnings[0].level) == (b"careful", [b"because"], 1)
    assert progress.counts() == {
        "numTotalSteps": 2,
        "numCompletedSteps": 2,
        "numCachedSteps": 0,
        "numWarnings": 1,
    }


def test_two_builds_are_told_of_one_step() -> None:
    one, other, step = Progress(), Progress(), Step("sha256:1", "shared")
    one.attach(step)
    step.start()
    step.log(1, b"a")
    other.attach(step)
    other.attach(step)
    step.log(1, b"b")
    one.close()
    step.complete(cached=True)
    other.close()
    step.log(1, b"nobody hears")
    assert [log.msg for log in read(one).logs] == [b"a", b"b"] == [log.msg for log in read(other).logs]
    assert other.counts()["numCachedSteps"] == 1 and one.counts()["numCompletedSteps"] == 0


def test_output_is_limited() -> None:
    progress = Progress()
    step = progress.vertex("sha256:1", "loud")
    for _ in range(40):
        step.log(1, bytes(100_000))
    few = progress.vertex("sha256:2", "many words")
    for _ in range(LOG_MESSAGES_MAX + 100):
        few.log(1, b"x")
    for number in range(11_000):
        few.status(str(number))
        few.warn("w")
    progress.close()
    responses = list(progress.listen())
    assert max(response.ByteSize() for response in responses) < 2 << 20
    logs = [log for response in responses for log in response.logs]
    loud = b"".join(log.msg for log in logs if log.vertex == "sha256:1")
    assert loud == bytes(LOG_SIZE_MAX) + CLIPPED
    assert b"".join(log.msg for log in logs if log.vertex == "sha256:2").endswith(CLIPPED)
    assert sum(len(response.statuses) for response in responses) == 10_000
    assert sum(len(response.warnings) for response in responses) == 1000


def test_a_slow_listener_gets_the_last_state() -> None:
    progress = Progress()
    step = progress.vertex("sha256:1", "x")
    listening = progress.listen()
    next(listening)
    for number in range(1000):
        step.status("layer", current=number)
    progress.close()
    rest: list[Any] = [status for response in listening for status in response.statuses]
    assert [status.current for status in rest] == [999]


def test_who_has_gone_is_not_waited_for() -> None:
    progress = Progress()
    progress.vertex("sha256:1", "x")
    listening = progress.listen(gone=lambda: True)
    assert len(next(listening).vertexes) == 1
    assert list(listening) == []
    abandoned = progress.listen()
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    assert progress._listeners == []
