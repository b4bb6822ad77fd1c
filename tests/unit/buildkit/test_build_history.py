# SPDX-License-Identifier: Apache-2.0
"""history.db: what is kept of builds, for how long, and that nothing of it stays behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from teu.api.buildkit import control_pb2
from teu.buildkit.control.history import LOGS, Blob, History, pack_logs, unpack_logs
from teu.buildkit.core import errors


def record(ref: str, logs: Blob | None = None, created: float = 1.0) -> Any:
    made = control_pb2.BuildHistoryRecord(Ref=ref, FrontendAttrs={"filename": "Dockerfile"})
    made.CreatedAt.FromNanoseconds(int(created * 1e9))
    made.CompletedAt.FromNanoseconds(int(created * 1e9) + 1)
    if logs is not None:
        made.logs.CopyFrom(logs.descriptor())
    return made


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def kept(history: History) -> list[str]:
    request = control_pb2.BuildHistoryRequest(EarlyExit=True)
    return [event.record.Ref for event in history.listen(request, lambda: False)]


def test_it_is_bounded_by_number_and_age_and_pinned_ones_stay(tmp_path: Path) -> None:
    clock = Clock()
    history = History(str(tmp_path / "h.db"), max_age=100, max_entries=2, clock=clock)
    for number in range(4):
        clock.now += 1
        blob = Blob(LOGS, f"log {number}".encode())
        history.finish(record(f"b{number}", blob, number), [blob])
        if number == 0:
            history.pin("b0", True)
    assert kept(history) == ["b3", "b2", "b0"]
    with pytest.raises(errors.NotFound):
        history.blob(Blob(LOGS, b"log 1").digest)
    assert history.blob(Blob(LOGS, b"log 0").digest).data == b"log 0"
    clock.now += 1000
    assert history.clean() == 2
    assert kept(history) == ["b0"] and history.record("b0").pinned
    history.delete("b0")
    assert history._database.one("SELECT count(*) FROM blobs")[0] == 0
    history.close()


def test_who_asks_is_told_of_nothing_too_old(tmp_path: Path) -> None:
    """No build has to follow: the bounds may have come with a reload, and the last build long ago."""
    clock = Clock()
    history = History(str(tmp_path / "h.db"), max_age=100, max_entries=0, clock=clock)
    for ref in ("a", "b"):
        history.finish(record(ref))
        clock.now += 60
    assert kept(history) == ["b"]
    history.set_bounds(50, 0)
    assert kept(history) == []
    assert history._database.one("SELECT count(*) FROM builds")[0] == 0
    history.close()


def test_a_blob_of_two_builds_goes_with_the_second(tmp_path: Path) -> None:
    history = History(str(tmp_path / "h.db"), max_age=0, max_entries=0)
    blob = Blob(LOGS, b"the same")
    for ref in ("a", "b"):
        history.finish(record(ref, blob), [blob])
    history.delete("a")
    assert history.blob(blob.digest).data == b"the same"
    history.delete("b")
    with pytest.raises(errors.NotFound):
        history.blob(blob.digest)
    history.close()


def test_it_survives_a_restart_and_attributes_without_end_do_not(tmp_path: Path) -> None:
    history = History(str(tmp_path / "h.db"), max_age=0, max_entries=0)
    big = record("big")
    big.FrontendAttrs["build-arg:X"] = "x" * (2 << 20)
    history.finish(big)
    history.close()
    history = History(str(tmp_path / "h.db"), max_age=0, max_entries=0)
    assert kept(history) == ["big"] and not history.record("big").FrontendAttrs
    assert list(history.logs("big")) == []
    history.close()


def test_logs_are_packed_with_their_lengths_and_have_an_end() -> None:
    responses = [control_pb2.StatusResponse(logs=[control_pb2.VertexLog(msg=b"x" * (1 << 20))]) for _ in range(20)]
    blob = pack_logs(iter(responses))
    assert len(blob.data) <= 16 << 20
    assert len(list(unpack_logs(blob.data))) == 15
    assert list(unpack_logs(b"\0\0")) == []


def test_who_listens_and_does_not_read_is_cut_off(tmp_path: Path) -> None:
    history = History(str(tmp_path / "h.db"), max_age=0, max_entries=1)
    events = history.listen(control_pb2.BuildHistoryRequest(), lambda: False)
    history.start(record("first"))
    assert next(events).record.Ref == "first"
    for number in range(1100):
        history.start(record(f"b{number}"))
        history.abandon(f"b{number}")
    with pytest.raises(errors.ResourceExhausted):
        for _ in events:
            pass
    with pytest.raises(errors.InvalidArgument):
        next(history.listen(control_pb2.BuildHistoryRequest(Filter=["=="]), lambda: False))
    history.close()
