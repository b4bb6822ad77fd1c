# SPDX-License-Identifier: Apache-2.0
"""What `./dev test` runs where: nothing is left out and nothing runs twice."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from lab import runner, seconds


@pytest.mark.parametrize("stage", list(runner.SHARES))
def test_the_shares_hold_every_file_once(stage: str) -> None:
    dealt = [files for files, _ in runner.shares(stage, seconds.load())]
    assert len(dealt) == runner.SHARES[stage] and all(dealt)
    files = [path for share in dealt for path in share]
    assert sorted(files) == sorted(
        str(path.relative_to(runner.SOURCE)) for path in runner.SOURCE.glob(runner.FILES[stage])
    )
    for share in dealt:
        assert share == sorted(share)
    if stage == "ns":
        assert any(share[-1] == "tests/system/test_zz_purge.py" for share in dealt)


def test_shares_take_as_long() -> None:
    """None is longer than the even part by more than its last file, and a file that is new is in one of them."""
    table = {path: cost for path, cost in seconds.load().items() if path != "tests/system/test_ctr.py"}
    dealt = runner.shares("ns", table)
    cost = seconds.of_files([path for files, _ in dealt for path in files], table)
    assert cost["tests/system/test_ctr.py"] > 0
    even = sum(cost.values()) / len(dealt)
    for files, long in dealt:
        assert long == pytest.approx(sum(cost[path] for path in files))
        assert long <= even + min(cost[path] for path in files)


def test_the_table_is_of_what_there_is() -> None:
    for name, long in seconds.load().items():
        assert name in runner.STAGES or (runner.SOURCE / name).is_file(), f"{name}: python3 -m lab.seconds"
        assert long >= 0
    assert not runner.BUSY - set(runner.STAGES) - set(seconds.load())


def test_a_run_brings_the_table_up_to_date(tmp_path: Path) -> None:
    case = '<testcase classname="tests.{0}" name="a" time="{1}"/>'
    for place, file, long in (
        ("ns-1/junit.xml", "system.test_ctr", 2.5),
        ("ns-2/junit.xml", "system.test_gone", 9),
        ("lab-1.xml", "lab.test_vm", 60),
        ("vm.xml", "system.test_ctr", 500),
    ):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        cases = case.format(file, long) * 2
        (tmp_path / place).write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    (tmp_path / "vm.json").write_text('{"stage": "vm", "seconds": 700.04}')
    (tmp_path / "ns-1.json").write_text('{"stage": "ns", "seconds": 1}')
    assert seconds.measured(tmp_path) == {"tests/system/test_ctr.py": 5, "tests/lab/test_vm.py": 120, "vm": 700}


def scheduled(stages: list[str], jobs: int = 2) -> list[list[runner.Part]]:
    """What goes on at a time, the last of it having just begun, where each part takes as long as the table says."""
    waiting, going, pictures, now = runner.parts(stages), [], [], 0.0
    while waiting or going:
        built = not any(part.stage == "deb" for part in [*waiting, *(part for _, part in going)])
        ready = [part for part in waiting if built or part.stage not in runner.LABS]
        if ready and (chosen := runner.next_of(ready, [part for _, part in going], jobs)):
            waiting.remove(chosen)
            going.append((now + chosen.seconds, chosen))
            pictures.append([part for _, part in going])
            continue
        now, ended = min(going, key=lambda entry: entry[0])
        going.remove((now, ended))
    return pictures


def test_the_longest_begin_first_one_that_is_busy_beside_one_that_waits() -> None:
    begun = [picture[-1] for picture in scheduled(list(runner.STAGES))]
    assert sorted(part.tag for part in begun) == sorted(part.tag for part in runner.parts(list(runner.STAGES)))
    assert [part.tag for part in begun[:2]] == ["deb", "unit"]
    labs = [part for part in begun if part.stage in runner.LABS]
    assert {part.busy for part in labs[:2]} == {True, False}
    for kind in (True, False):
        long = [part.seconds for part in labs if part.busy is kind and part.stage not in runner.EARLY]
        assert long == sorted(long, reverse=True)


def test_one_that_is_early_does_not_wait_for_longer_ones() -> None:
    begun = [picture[-1] for picture in scheduled(list(runner.STAGES))]
    labs = [part for part in begun if part.stage in runner.LABS and not part.busy]
    assert labs[0].stage in runner.EARLY and labs[0].seconds < labs[1].seconds


def test_so_many_at_a_time_and_one_more_where_all_wait() -> None:
    pictures = scheduled(list(runner.STAGES))
    assert max(map(len, pictures)) == 3
    for picture in pictures:
        assert len(picture) <= 2 or not any(part.busy for part in picture)
    assert max(map(len, scheduled(list(runner.STAGES), jobs=1))) == 1


def test_what_labs_stand_on_is_made_for_those_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be made holds up none of the others."""
    made: list[str] = []

    def ensure(release: str, kind: str = "lab") -> None:
        made.append(f"{release} {kind}")
        if kind == "fresh":
            raise SystemExit("no network")

    monkeypatch.setattr(runner.rootfs, "ensure", ensure)
    monkeypatch.setattr(runner.vm, "ensure", lambda release: made.append(f"{release} VM"))
    assert runner.images("images", ["bookworm"]) == runner.Result("images")
    assert made == ["bookworm lab"]
    made.clear()
    runner.images("images", ["forky"])
    assert made == ["forky lab"]
    made.clear()
    runner.images("images", ["lab"])
    assert made == ["trixie lab", "trixie fresh", "trixie qemu", "trixie VM", "bookworm fresh", "trixie host"]
    assert frozenset().union(*(needed for _, needed, _ in runner.IMAGES)) == runner.LABS


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[runner.Part]:
    """Parts that end at once in place of processes; what was begun, in its order."""
    begun: list[runner.Part] = []

    def start(part: runner.Part, lock: threading.Lock) -> threading.Thread:
        begun.append(part)
        part.result = runner.Result(part.stage, passed=1)
        thread = threading.Thread(target=lock.locked)
        thread.start()
        return thread

    monkeypatch.setattr(runner.Part, "start", start)
    monkeypatch.setattr(runner, "time", SimpleNamespace(sleep=lambda seconds: None))
    return begun


def test_all_parts_run_and_labs_are_made_beside_them(started: list[runner.Part]) -> None:
    ended = runner.together(runner.parts(list(runner.STAGES)), 2)
    assert sorted(part.tag for part in ended) == sorted(part.tag for part in runner.parts(list(runner.STAGES)))
    assert (started[0].stage, started[0].files) == ("images", sorted(runner.LABS))
    assert [part.stage for part in runner.together(runner.parts(["lint", "unit"]), 2)] == ["unit", "lint"]
    assert [part.stage for part in started].count("images") == 1, "lint and unit need no lab"


def test_idle_processors_are_told_of() -> None:
    assert runner.idle((100, 1000), (150, 1200)) == "processors idle for 25%"
    assert runner.idle((100, 1000), (100, 1000)) == "processors idle for 0%"
    free, all_of_it = runner.ticks()
    assert 0 <= free <= all_of_it


def test_without_packages_no_lab_runs(started: list[runner.Part], monkeypatch: pytest.MonkeyPatch) -> None:
    begin = runner.Part.start

    def start(part: runner.Part, lock: threading.Lock) -> threading.Thread:
        thread = begin(part, lock)
        if part.stage == "deb":
            part.result = runner.Result("deb", failed=1)
        return thread

    monkeypatch.setattr(runner.Part, "start", start)
    ended = runner.together(runner.parts(list(runner.STAGES)), 2)
    assert sorted(part.stage for part in ended) == ["deb", "lint", "unit"]


def test_every_stage_is_a_part() -> None:
    found = runner.parts(list(runner.STAGES))
    assert {part.stage for part in found} == set(runner.STAGES)
    assert len({part.tag for part in found}) == len(found)
    assert runner.parts(["unit"])[0].files == []


def test_shares_are_joined_to_their_stage() -> None:
    first = runner.Part("ns", "ns-1", [], result=runner.Result("ns", passed=3, failures=["a"], failed=1, seconds=2))
    first.result.reasons["a"] = "assert 1 == 2"
    second = runner.Part("ns", "ns-2", [], result=runner.Result("ns", passed=4, skipped=1, error="x", seconds=3))
    (whole,) = runner.joined(["ns"], [first, second])
    assert (whole.passed, whole.failed, whole.skipped, whole.seconds) == (7, 1, 1, 5)
    assert whole.failures == ["a"] and whole.error == "x" and whole.reasons == {"a": "assert 1 == 2"}
    assert runner.joined(["lab"], [first]) == []


def test_what_a_failure_said_is_kept(tmp_path: Path) -> None:
    """Of a test that failed at its end, too, and the first of two."""
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="2" skipped="0">'
        '<testcase classname="tests.system.test_x" name="test_a[b]"><failure message="assert 1&#10;  == 2">x</failure>'
        '<error message="failed on teardown with: left">more</error></testcase>'
        '<testcase classname="tests.system.test_x" name="test_c"><error message="failed on setup">x</error></testcase>'
        '<testcase classname="tests.system.test_x" name="test_d" /></testsuite></testsuites>'
    )
    result = runner.count(runner.Result("ns"), junit, 1)
    assert result.failed == 3 and result.failures == [
        "tests/system/test_x.py::test_a[b]",
        "tests/system/test_x.py::test_c",
    ]
    assert list(result.reasons.values()) == ["assert 1 == 2", "failed on setup"]


def test_three_tests_of_a_run_may_be_run_again_and_no_more() -> None:
    """A test that failed and then passed is named as flaky. The bound is one for all stages together."""
    assert runner.RERUN_AT_MOST == 3
    two = runner.Result("ns", failed=2, failures=["a", "b"])
    one = runner.Result("unit", failed=1, failures=["c"])
    more = runner.Result("lab", failed=1, failures=["d"])
    well, broken = runner.Result("vm", passed=9), runner.Result("fuzz", failed=2, failures=["e"], error="ended with 3")
    assert runner.forgivable([two, one, well, broken], []) == [two, one]
    assert runner.forgivable([two, one, more], []) == []
    assert runner.forgivable([one], ["-k", "some"]) == []
    assert runner.forgivable([runner.Result("deb", failed=1, failures=["f"])], []) == []
