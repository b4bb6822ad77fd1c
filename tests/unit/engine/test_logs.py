# SPDX-License-Identifier: Apache-2.0
"""The json-file driver: docker's format, exact round trips, tails, rotation; the journal's export format."""

from __future__ import annotations

import json
import os
import random
import re
import socket
from pathlib import Path
from typing import Any

import drivers.logs
import pytest

from teu.engine.logs import journald
from teu.engine.logs.driver import LINE_LIMIT, LogSource, Selection, whole_lines
from teu.engine.logs.files import BLOCK
from teu.engine.logs.journald import _parse
from teu.engine.logs.jsonfile import JsonFile, _pieces
from teu.engine.logs.marker import Marker

NO_MARKER = Marker(None)


def container(folder: Path, kind: str = "json-file", **options: str) -> LogSource:
    folder.mkdir(exist_ok=True)
    return drivers.logs.source(folder, kind, {key.replace("_", "-"): value for key, value in options.items()})


def read(driver: JsonFile, **selection: Any) -> list[tuple[int, bytes]]:
    return [tuple(piece) for piece in driver.read(Selection(**selection)) if piece]  # type: ignore[misc]


def text(driver: JsonFile, **selection: Any) -> bytes:
    return b"".join(data for _, data in read(driver, **selection))


def test_records_are_dockers(tmp_path: Path) -> None:
    driver = JsonFile(container(tmp_path, labels="l", env="A"))
    data = b'one "two" \\three\n\ttab\x1b[0m\n\numl\xc3\xa4ut\n'
    assert driver.write(1, data, False, NO_MARKER) == len(data)
    assert driver.write(2, b"err\n", False, NO_MARKER) == 4
    records = [json.loads(line) for line in Path(driver.path).read_text().splitlines()]
    assert "".join(record["log"] for record in records[:4]) == data.decode()
    assert [record["stream"] for record in records] == ["stdout"] * 4 + ["stderr"]
    assert records[0]["attrs"] == {"l": 'v"', "A": "1"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", record["time"]) for record in records)


def test_every_byte_comes_back(tmp_path: Path) -> None:
    dice = random.Random(7)
    alphabet = ["a", "\\", '"', "\n", "\t", "é", "}", '{"log":"', '"}\n', "\\n", "\x00", '","stream":"stdout"']
    driver = JsonFile(container(tmp_path))
    wanted = b""
    for _ in range(300):
        chunk = "".join(dice.choice(alphabet) for _ in range(dice.randrange(1, 80))).encode() + b"\n"
        assert driver.write(dice.choice((1, 2)), chunk, False, NO_MARKER) == len(chunk)
        wanted += chunk
    assert text(driver) == wanted
    lines = wanted.splitlines(keepends=True) if False else wanted.split(b"\n")[:-1]
    for count in (0, 1, 2, 17, len(lines) - 1, len(lines), len(lines) + 5):
        expected = b"".join(line + b"\n" for line in lines[len(lines) - count :]) if count < len(lines) else wanted
        assert text(driver, tail=count) == (expected if count else b"")


def test_bytes_that_are_not_text_do_not_break_the_file(tmp_path: Path) -> None:
    driver = JsonFile(container(tmp_path))
    driver.write(1, b"\xff\xfe\nfine\n", False, NO_MARKER)
    assert text(driver).endswith(b"\nfine\n")
    for line in Path(driver.path).read_bytes().splitlines():
        json.loads(line)


def test_streams_and_time_stamps(tmp_path: Path) -> None:
    driver = JsonFile(container(tmp_path))
    driver.write(1, b"out\nout2\n", False, NO_MARKER)
    driver.write(2, b"err\n", False, NO_MARKER)
    assert read(driver, stdout=False) == [(2, b"err\n")]
    assert read(driver, stderr=False) == [(1, b"out\nout2\n")]
    stamped = text(driver, timestamps=True).splitlines()
    assert len(stamped) == 3
    assert all(re.match(rb"\S{30} (out|err)", line) for line in stamped)


def test_since_and_until(tmp_path: Path) -> None:
    driver = JsonFile(container(tmp_path))
    driver.write(1, b"old\n", False, NO_MARKER)
    import time

    border = time.time_ns()
    driver.write(1, b"new\n", False, NO_MARKER)
    assert text(driver, since=border) == b"new\n"
    assert text(driver, until=border) == b"old\n"


def test_unfinished_lines_wait(tmp_path: Path) -> None:
    driver = JsonFile(container(tmp_path))
    assert driver.write(1, b"a\nprompt> ", False, NO_MARKER) == 2
    assert driver.write(1, b"prompt> ", False, NO_MARKER) == 0
    assert driver.write(1, b"prompt> ", True, NO_MARKER) == 8
    assert text(driver) == b"a\nprompt> "


def test_long_lines_are_logged_in_parts(tmp_path: Path) -> None:
    driver = JsonFile(container(tmp_path))
    line = b"x" * (2 * LINE_LIMIT + 100) + b"\n"
    assert driver.write(1, line, False, NO_MARKER) == len(line)
    records = [json.loads(record)["log"] for record in Path(driver.path).read_text().splitlines()]
    assert [len(record) for record in records] == [LINE_LIMIT, LINE_LIMIT, 101]
    assert text(driver) == line
    assert whole_lines(b"y" * (LINE_LIMIT + 5), False) == LINE_LIMIT


def test_a_burst_is_rotated_too(tmp_path: Path) -> None:
    driver = JsonFile(container(tmp_path, max_size="20k", max_file="3"))
    data = b"".join(b"line %d\n" % number for number in range(2000))
    position = 0
    while position < len(data):
        taken = driver.write(1, data[position:], False, NO_MARKER)
        assert taken > 0
        position += taken
    assert max(os.path.getsize(tmp_path / name) for name in os.listdir(tmp_path)) <= 20 << 10
    lines = text(driver).decode().split("\n")[:-1]
    assert 300 < len(lines) < 2000
    assert lines == [f"line {number}" for number in range(2000 - len(lines), 2000)]


@pytest.mark.parametrize("compress", ["false", "true"])
def test_rotation(tmp_path: Path, compress: str) -> None:
    driver = JsonFile(container(tmp_path, max_size="2k", max_file="3", compress=compress))
    for number in range(200):
        driver.write(1, f"line {number}\n".encode(), False, NO_MARKER)
    import time

    for _ in range(100):
        names = sorted(name.removeprefix(os.path.basename(driver.path)) for name in os.listdir(tmp_path))
        if compress == "false" or names == ["", ".1.gz", ".2.gz"]:
            break
        time.sleep(0.02)
    suffix = ".gz" if compress == "true" else ""
    assert names == ["", f".1{suffix}", f".2{suffix}"]
    lines = text(driver).decode().split("\n")[:-1]
    assert lines[-1] == "line 199"
    assert lines == [f"line {number}" for number in range(200 - len(lines), 200)]
    assert len(lines) > 40
    assert text(driver, tail=50).decode().split("\n")[0] == f"line {max(150, 200 - len(lines))}"
    driver.remove()
    assert os.listdir(tmp_path) == []


def test_a_write_that_was_cut_is_undone(tmp_path: Path) -> None:
    driver = JsonFile(container(tmp_path))
    driver.write(1, b"whole\n", False, NO_MARKER)
    size = os.path.getsize(driver.path)
    with open(driver.path, "ab") as file:
        file.write(b'{"log":"hal')
    fresh = JsonFile(driver.source)
    fresh.rewind(size)
    assert text(fresh) == b"whole\n"


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = JsonFile(container(tmp_path))
    driver.write(1, b"before\n", False, NO_MARKER)
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        real(descriptor, bytes(data)[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert driver.write(1, b"during\n", False, NO_MARKER) == 0 and driver.stalled
    monkeypatch.setattr(os, "write", real)
    assert driver.write(1, b"during\n", False, NO_MARKER) == 7 and not driver.stalled
    assert text(driver) == b"before\nduring\n"


class Counted(bytes):
    """Bytes that count how many of them were looked through."""

    looked = 0

    def rfind(self, what: Any, start: Any = 0, end: Any = None) -> int:
        Counted.looked += min(len(self), len(self) if end is None else end) - start
        return super().rfind(what, start, end)

    def find(self, what: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(what, start, end)
        Counted.looked += (found if found >= 0 else len(self)) - start
        return found


@pytest.mark.parametrize("equal", [1, 2, 3, 400, 16000])
def test_a_block_is_looked_through_once(equal: int) -> None:
    """However many of its records are of one moment."""
    lines = [
        b'{"log":"line %d\\n","stream":"stdout","time":"2026-01-01T00:00:00.%09dZ"}\n' % (number, number // equal)
        for number in range(16000)
    ]
    block = Counted(b"".join(lines))
    Counted.looked = 0
    pieces = list(_pieces(block, Selection()))
    assert b"".join(piece.data for piece in pieces) == b"".join(b"line %d\n" % number for number in range(16000))
    assert Counted.looked < 100 * len(block)
    assert len(pieces) >= 16000 // equal


def test_records_between_those_of_one_moment(tmp_path: Path) -> None:
    """Not as we write them; all the same no line is lost, and the order is kept."""
    records = b"".join(
        b'{"log":"line %d\\n","stream":"%s","time":"2026-01-01T00:00:00Z"}\n'
        % (number, (b"stdout", b"stderr")[number % 3 == 2])
        for number in range(60)
    )
    pieces = list(_pieces(records, Selection()))
    assert b"".join(piece.data for piece in pieces) == b"".join(b"line %d\n" % number for number in range(60))
    assert {piece.kind for piece in pieces} == {1, 2}


def test_an_entry_of_the_journal_may_be_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels do not make it vanish: what no datagram holds is passed as a memfd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.settimeout(30)
        monkeypatch.setattr(journald, "SOCKET", str(tmp_path / "socket"))
        made = container(tmp_path / "c", "journald", labels="l")
        driver = journald.Journald(made._replace(labels={"l": "x" * 20_000_000}))
        assert driver.write(1, b"text\n", False, NO_MARKER) == 5 and not driver.stalled
        data, descriptors, _, _ = socket.recv_fds(listener, 1 << 16, 1)
        assert data == b"" and len(descriptors) == 1
        with open(descriptors[0], "rb") as file:
            file.seek(0)
            content = file.read()
        assert b"\nMESSAGE=text\n" in content and len(content) > 20_000_000
        listener.close()
        assert driver.write(1, b"more\n", False, NO_MARKER) == 0 and driver.stalled
        driver.close()


def test_reading_over_many_blocks(tmp_path: Path) -> None:
    driver = JsonFile(container(tmp_path))
    chunk = b"".join(b"%07d %s\n" % (number, b"x" * 62) for number in range(900))
    for _ in range(140):
        driver.write(1, chunk, False, NO_MARKER)
    assert Path(driver.path).stat().st_size > 2 * BLOCK
    assert text(driver) == 140 * chunk


def test_export_format_of_the_journal() -> None:
    message = b"binary\nwith newline"
    data = b"__CURSOR=c1\n__REALTIME_TIMESTAMP=1000000\nPRIORITY=6\nMESSAGE=plain\n\n"
    data += b"__CURSOR=c2\n__REALTIME_TIMESTAMP=2000000\nPRIORITY=3\nCONTAINER_PARTIAL_MESSAGE=true\nMESSAGE\n"
    data += len(message).to_bytes(8, "little") + message + b"\n\n"
    for step in (1, 7, 4096):
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb", buffering=0) as stream:
            import threading

            def feed(to: int = writing, size: int = step) -> None:
                for start in range(0, len(data), size):
                    os.write(to, data[start : start + size])
                os.close(to)

            thread = threading.Thread(target=feed)
            thread.start()
            pieces = [entry.piece(Selection()) for entry in _parse(stream)]
            thread.join()
        assert pieces == [(1, b"plain\n"), (2, message)]
