# SPDX-License-Identifier: Apache-2.0
"""The pure parts of update, events and list."""

from __future__ import annotations

import pytest

from teu.runc import arguments, events, update
from teu.runc.errors import RuncError
from teu.runc.list import table


def flags(*words: str) -> dict[str, object]:
    return update.from_flags(arguments.parse(list(words), update.FLAGS)[0])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("123", 123),
        ("1k", 1024),
        ("1K", 1024),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("3MB", 3 << 20),
        ("7b", 7),
        ("-1", -1),
        ("1t", 1 << 40),
    ],
)
def test_sizes(text: str, number: int) -> None:
    assert update.size(text, "memory") == number


@pytest.mark.parametrize("text", ["", "x", "-5", "1x", "m", "1kk"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(RuncError, match="invalid value for memory"):
        update.size(text, "memory")


def test_flags() -> None:
    assert flags(
        "--memory",
        "1m",
        "--memory-swap=-1",
        "--cpu-share",
        "512",
        "--cpuset-cpus=0",
        "--pids-limit",
        "0",
        "--blkio-weight=300",
        "--cpu-quota",
        "-1",
        "--cpu-idle=1",
    ) == {
        "cpu": {"shares": 512, "cpus": "0", "quota": -1, "idle": 1},
        "memory": {"limit": 1 << 20, "swap": -1},
        "pids": {"limit": 0},
        "blockIO": {"weight": 300},
    }
    for bad in ("--cpu-share=-1", "--cpu-period=x"):
        with pytest.raises(RuncError, match="is not a number"):
            flags(bad)


def test_merge_keeps_what_is_not_mentioned() -> None:
    old = {"memory": {"limit": 100, "swap": 200}, "cpu": {"period": 1000}, "pids": {"limit": 5}}
    assert update.merge(old, {"cpu": {"quota": 500}}) == {
        "memory": {"limit": 100, "swap": 200},
        "cpu": {"period": 1000, "quota": 500},
    }
    assert update.merge(old, {"memory": {"limit": -1}})["memory"] == {"limit": -1, "swap": 0}
    assert "shares" not in update.merge({"cpu": {"shares": 5}}, {"cpu": {"idle": 1}})["cpu"]


def test_merge_of_devices() -> None:
    rates = [{"major": 8, "minor": 0, "rate": 2}, {"major": 9, "minor": 0, "rate": 3}]
    old = {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]}}
    change = {"blockIO": {"throttleReadBpsDevice": rates}}
    assert update.merge(old, change)["blockIO"]["throttleReadBpsDevice"] == rates


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5.0), ("500ms", 0.5), ("1m30s", 90.0), ("1h", 3600.0)])
def test_durations(text: str, seconds: float) -> None:
    assert events.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "x", "0s", "-1s", "s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(RuncError):
        events.duration(text)


def test_table() -> None:
    assert table([["ID", "PID", "OWNER"], ["a-rather-long-id", "7", "root"]]) == (
        "ID                 PID         OWNER\na-rather-long-id   7           root\n"
    )
