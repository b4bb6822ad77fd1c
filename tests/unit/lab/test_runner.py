# SPDX-License-Identifier: Apache-2.0
"""What `./dev test` runs where: nothing is left out and nothing runs twice."""

from __future__ import annotations

from lab import runner


def test_the_shares_hold_every_file_once() -> None:
    dealt = runner.shares("ns")
    assert len(dealt) == runner.SHARES["ns"]
    files = [path for share in dealt for path in share]
    assert sorted(files) == sorted(
        str(path.relative_to(runner.SOURCE)) for path in runner.SOURCE.glob("tests/system/test_*.py")
    )
    for share in dealt:
        assert share == sorted(share)
    assert any(share[-1] == "tests/system/test_zz_purge.py" for share in dealt)


def test_every_stage_is_a_part() -> None:
    found = runner.parts(list(runner.STAGES))
    assert {part.stage for part in found} == set(runner.STAGES)
    assert len({part.tag for part in found}) == len(found)
    assert runner.parts(["unit"])[0].files == []


def test_shares_are_joined_to_their_stage() -> None:
    first = runner.Part("ns", "ns-1", [], result=runner.Result("ns", passed=3, failures=["a"], failed=1, seconds=2))
    second = runner.Part("ns", "ns-2", [], result=runner.Result("ns", passed=4, skipped=1, error="x", seconds=3))
    (whole,) = runner.joined(["ns"], [first, second])
    assert (whole.passed, whole.failed, whole.skipped, whole.seconds) == (7, 1, 1, 5)
    assert whole.failures == ["a"] and whole.error == "x"
    assert runner.joined(["lab"], [first]) == []


def test_three_tests_of_a_run_may_be_run_again_and_no_more() -> None:
    """A test that failed and then passed is named as flaky. The bound is one for all stages together."""
    two = runner.Result("ns", failed=2, failures=["a", "b"])
    one = runner.Result("unit", failed=1, failures=["c"])
    more = runner.Result("lab", failed=1, failures=["d"])
    well, broken = runner.Result("vm", passed=9), runner.Result("fuzz", failed=2, failures=["e"], error="ended with 3")
    assert runner.forgivable([two, one, well, broken], []) == [two, one]
    assert runner.forgivable([two, one, more], []) == []
    assert runner.forgivable([one], ["-k", "some"]) == []
    assert runner.forgivable([runner.Result("deb", failed=1, failures=["f"])], []) == []
