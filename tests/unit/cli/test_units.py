# SPDX-License-Identifier: Apache-2.0
"""Sizes, durations, times."""

from __future__ import annotations

import pytest

from teu.cli import networks, units


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("5", 5), ("5b", 5), ("1k", 1024), ("1kb", 1024), ("1KiB", 1024), ("1.5g", 3 << 29), ("64M", 64 << 20)],
)
def test_parse_bytes(text: str, value: int) -> None:
    assert units.parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1.2.3", "1q", ".5m"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        units.parse_bytes(text)


def test_parse_nano() -> None:
    assert units.parse_nano("1.5") == 1_500_000_000
    assert units.parse_nano("1/4") == 250_000_000
    with pytest.raises(ValueError, match="too precise"):
        units.parse_nano("0.0000000001")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1s", 10**9), ("1h2m3.5s", 3723_500_000_000), ("500ms", 5 * 10**8), ("0", 0), ("-5s", -5 * 10**9)],
)
def test_parse_duration(text: str, value: int) -> None:
    assert units.parse_duration(text) == value


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1.2.3s"])
def test_parse_duration_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="time: "):
        units.parse_duration(text)


def test_sizes() -> None:
    assert units.human_size(4_261_501, 3) == "4.26MB"
    assert units.human_size(0) == "0B"
    assert units.human_size(999, 3) == "999B"
    assert units.human_size(2_026_123) == "2.026MB"
    assert units.binary_size(25_276_502_016) == "23.54GiB"


def test_times() -> None:
    assert units.parse_time("1970-01-01T00:00:00Z") == (0, 0)
    assert units.parse_time("2026-11-23T21:01:15.5+01:00") == (1795464075, 500_000_000)
    assert units.seconds_of("0001-01-01T00:00:00Z") == 0
    assert units.timestamp("1136073600") == "1136073600.000000000"
    assert units.timestamp("1136073600.5") == "1136073600.5"
    assert units.timestamp("2006-01-02T15:04:05Z") == "1136214245.000000000"
    with pytest.raises(ValueError, match="failed to parse value"):
        units.timestamp("foo")


def test_names_are_sorted_as_people_do() -> None:
    names = ["net10", "net2", "net", "net\u00b2", "10"]
    assert sorted(names, key=networks.natural_key) == ["10", "net", "net2", "net10", "net\u00b2"]
