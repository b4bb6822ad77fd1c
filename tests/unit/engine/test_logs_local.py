# SPDX-License-Identifier: Apache-2.0
"""The driver local: docker's records, exact round trips, what is found from the end; and how much of a file is read."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import time
from pathlib import Path
from typing import Any

import drivers.logs
import pytest

from teu.engine.logs import jsonfile, local, registry
from teu.engine.logs.driver import LINE_LIMIT, Selection
from teu.engine.logs.files import BACKWARDS, Files
from teu.engine.logs.marker import Marker

NO_MARKER = Marker(None)


def made(folder: Path, kind: str = "local", **options: str) -> Files:
    folder.mkdir(exist_ok=True)
    named = {key.replace("_", "-"): value for key, value in options.items()}
    driver = registry.create(drivers.logs.source(folder, kind, named))
    assert isinstance(driver, Files)
    return driver


def text(driver: Files, **selection: Any) -> bytes:
    return b"".join(piece.data for piece in driver.read(Selection(**selection)) if piece)


def write(driver: Files, kind: int, data: bytes, final: bool = False) -> None:
    while data:
        taken = driver.write(kind, data, final, NO_MARKER)
        assert taken
        data = data[taken:]


def entries(path: str) -> list[list[tuple[int, Any]]]:
    """The fields of each record, by protobuf's own rules."""
    data = Path(path).read_bytes()
    found = []
    while data:
        (size,) = struct.unpack(">I", data[:4])
        assert data[4 + size : 8 + size] == data[:4]
        found.append(_fields(data[4 : 4 + size]))
        data = data[8 + size :]
    return found


def _fields(data: bytes) -> list[tuple[int, Any]]:
    found: list[tuple[int, Any]] = []
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            found.append((tag >> 3, number()))
        else:
            length = number()
            found.append((tag >> 3, data[at : at + length]))
            at += length
    return found


def test_records_are_dockers(tmp_path: Path) -> None:
    driver = made(tmp_path, labels="l", env="A")
    before = time.time_ns()
    write(driver, 1, b"one\n\n" + 200 * b"x" + b"\n")
    write(driver, 2, b"err\n")
    assert os.path.relpath(driver.path, tmp_path) == "local-logs/container.log"
    found = entries(driver.path)
    assert [fields[0] for fields in found] == 3 * [(1, b"stdout")] + [(1, b"stderr")]
    assert all(before <= fields[1][1] <= time.time_ns() and fields[1][0] == 2 for fields in found)
    assert [dict(fields).get(3, b"") for fields in found] == [b"one", b"", 200 * b"x", b"err"]
    attributes = [_fields(value) for number, value in found[0] if number == 6]
    assert attributes == [[(1, b"A"), (2, b"1")], [(1, b"l"), (2, b'v"')]]
    assert not any(number in (4, 5) for fields in found for number, _ in fields)


def test_a_long_line_is_in_parts(tmp_path: Path) -> None:
    driver = made(tmp_path)
    line = random.Random(1).randbytes(2 * LINE_LIMIT + 5).replace(b"\n", b"n")
    write(driver, 1, line + b"\n")
    found = [dict(fields) for fields in entries(driver.path)]
    assert b"".join(fields[3] for fields in found) == line and [fields[4] for fields in found] == [1, 1, 1]
    about = [dict(_fields(fields[5])) for fields in found]
    assert [(each.get(1, 0), each[3]) for each in about] == [(0, 1), (0, 2), (1, 3)]
    assert len({each[2] for each in about}) == 1
    assert text(driver) == line + b"\n"


def test_every_byte_comes_back(tmp_path: Path) -> None:
    dice = random.Random(7)
    driver = made(tmp_path)
    wanted: list[bytes] = []
    for _ in range(400):
        line = dice.randbytes(dice.choice((0, 1, 3, 127, 128, 300, 20000))).replace(b"\n", b"")[
            : dice.randrange(1, 20000)
        ]
        write(driver, 1, line + b"\n")
        wanted.append(line + b"\n")
    write(driver, 2, b"\x0a\x06stdout\x10\x01\x1a\x01x\n no end", final=True)
    assert text(driver, stderr=False) == b"".join(wanted)
    assert text(driver, stdout=False) == b"\x0a\x06stdout\x10\x01\x1a\x01x\n no end"
    again = made(tmp_path)
    again.path = driver.path
    assert text(again, tail=2) == b"\x06stdout\x10\x01\x1a\x01x\n no end"


@pytest.mark.parametrize("kind", ["local", "json-file"])
@pytest.mark.parametrize("width", [1, 100, 3000, 16000])
def test_the_end_is_found_from_the_end(kind: str, width: int, tmp_path: Path) -> None:
    driver = made(tmp_path, kind)
    count_all = 300 if width < 1000 else 30
    lines = [b"%06d " % number + width * b"\x01" + b"\n" for number in range(count_all)]
    moments = []
    for line in lines:
        moments.append(time.time_ns())
        write(driver, 1, line)
    for count in (1, 2, 7, count_all - 1, count_all, count_all + 1):
        assert text(driver, tail=count) == b"".join(lines[-count:])
    for first in (0, 1, count_all // 2, count_all - 2, count_all - 1):
        assert text(driver, since=moments[first]) == b"".join(lines[first:])
    assert text(driver, since=time.time_ns()) == b""


class Counted(io.FileIO):
    looked = 0

    def read(self, size: int | None = -1, /) -> Any:
        found = super().read(-1 if size is None else size)
        self.looked += len(found or b"")
        return found


@pytest.mark.parametrize("kind", ["local", "json-file"])
def test_what_is_read_of_a_file_is_what_is_wanted_of_it(kind: str, tmp_path: Path) -> None:
    driver = made(tmp_path, kind)
    for _ in range(40):
        write(driver, 1, b"".join(b"line %d\n" % number for number in range(5000)))
    border = time.time_ns()
    write(driver, 1, b"wanted\n")
    with Counted(driver.path) as file:
        end = os.fstat(file.fileno()).st_size
        assert end > 100 * BACKWARDS
        offset = driver._since(file, end, border)  # type: ignore[arg-type]
        assert 0 < end - offset <= BACKWARDS + 100 and file.looked <= 2 * BACKWARDS
        file.looked = 0
        assert driver._last(file, end, 10)[0] == 10 and file.looked <= BACKWARDS  # type: ignore[arg-type]
    assert text(driver, since=border) == b"wanted\n"


@pytest.mark.parametrize("kind", ["local", "json-file"])
@pytest.mark.parametrize("compress", ["false", "true"])
def test_rotated_files_that_are_older_are_not_opened(kind: str, compress: str, tmp_path: Path) -> None:
    driver = made(tmp_path, kind, max_size="4k", max_file="5", compress=compress)
    for number in range(1000):
        write(driver, 1, b"old %d\n" % number)
    if driver._compressor:
        driver._compressor.join()
    old = driver._old_files()
    assert len(old) == 4
    for number, path in enumerate(old):  # ages of 5, 4, 3 and 2 seconds
        os.utime(path, (0, time.time() - 5 + number))
    assert driver._beginning(list(old), None, Selection(since=time.time_ns() - 3 * 10**9 + 10**8))[0] == old[-2:]
    border = time.time_ns()
    write(driver, 1, b"new\n")
    assert text(driver, since=border) == b"new\n"
    lines = text(driver).splitlines()
    assert lines[-1] == b"new" and lines[-2] == b"old 999"
    assert text(driver, tail=60).splitlines() == lines[-60:]


def test_a_compressed_file_says_when_its_last_line_came(tmp_path: Path) -> None:
    driver = made(tmp_path, max_size="2k", max_file="2")
    for number in range(100):
        write(driver, 1, b"line %d\n" % number)
        if driver._compressor:
            driver._compressor.join()
    (path,) = driver._old_files()
    data = Path(path).read_bytes()
    assert path.endswith(".1.gz") and data[3] == 4
    (length,) = struct.unpack_from("<H", data, 10)
    assert json.loads(data[12 : 12 + length])["lastTime"].startswith("20")
    assert gzip.decompress(data).count(b"stdout") > 20


def test_after_a_machines_end_it_goes_on_behind_the_last_whole_record(tmp_path: Path) -> None:
    driver = made(tmp_path)
    write(driver, 1, b"whole\nlast\n")
    driver.close()
    size = os.path.getsize(driver.path)
    data = Path(driver.path).read_bytes()
    for torn in (data[:-1], data[:-10], data + b"\0", data + bytes(100), data + b"\0\0\0\x20half"):
        Path(driver.path).write_bytes(torn)
        fresh = made(tmp_path)
        write(fresh, 1, b"after\n")
        found = text(fresh)
        assert found in (b"whole\nlast\nafter\n", b"whole\nafter\n") and (len(torn) < size or b"last" in found)
        fresh.close()


def test_damage_ends_no_reader(tmp_path: Path) -> None:
    dice = random.Random(3)
    driver = made(tmp_path)
    write(driver, 1, b"".join(b"line %d\n" % number for number in range(100)))
    data = Path(driver.path).read_bytes()
    for _ in range(300):
        torn = bytearray(data)
        for _ in range(dice.randrange(1, 4)):
            torn[dice.randrange(len(torn))] = dice.randrange(256)
        Path(driver.path).write_bytes(torn)
        for selection in ({}, {"tail": 5}, {"since": time.time_ns() - 10**9}, {"timestamps": True}):
            text(driver, **selection)


def test_a_container_that_has_a_log_of_before_keeps_its_form(tmp_path: Path) -> None:
    (tmp_path / "local-log").write_text('{"log":"old\\n","stream":"stdout","time":"2026-01-01T00:00:00.000000000Z"}\n')
    driver = made(tmp_path)
    assert isinstance(driver, jsonfile.JsonFile)
    write(driver, 1, b"new\n")
    assert text(driver) == b"old\nnew\n"
    driver.remove()
    assert isinstance(made(tmp_path), local.Local)
