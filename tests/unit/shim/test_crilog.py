# SPDX-License-Identifier: Apache-2.0
"""The log that the shim writes for the CRI: lines, parts of them, rotation, and a disk that is full."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from teu.shim import crilog
from teu.shim.crilog import LINE_LENGTH, LogFile, timestamp
from teu.shim.loop import Loop
from teu.shim.stdio import parse_uri

LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([FP]) (.*)", re.DOTALL)


def lines(path: Path) -> list[tuple[str, str, bytes]]:
    """(stream, tag, text) of each line."""
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        match = LINE.fullmatch(line)
        assert match is not None, line
        found.append((match[2].decode(), match[3].decode(), match[4]))
    return found


class Output:
    """A log with one stream, to which a test writes as a container does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.complaints: list[str] = []
        self.loop = Loop()
        self.file = LogFile(str(path), self.complaints.append)
        self.sink = self.file.stream("stdout")
        self.file.start(self.loop)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.sink, data[: 32 << 10]) :]
            self.file._streams[0]._read()

    def end(self) -> None:
        os.close(self.sink)
        self.file.close()


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "pod/name/0.log")


def test_the_file_is_there_before_the_first_line(output: Output) -> None:
    assert output.path.read_bytes() == b"" and output.path.stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_lines_come_whole(output: Output) -> None:
    output.write(b"one\ntw")
    assert lines(output.path) == [("stdout", "F", b"one")]
    output.write(b"o\n\nlast")
    output.end()
    assert lines(output.path) == [
        ("stdout", "F", b"one"),
        ("stdout", "F", b"two"),
        ("stdout", "F", b""),
        ("stdout", "P", b"last"),
    ]


@pytest.mark.parametrize("length", [LINE_LENGTH - 1, LINE_LENGTH, LINE_LENGTH + 1, 3 * LINE_LENGTH, 100_000])
def test_long_lines_come_in_parts(output: Output, length: int) -> None:
    text = bytes(97 + number % 26 for number in range(length))
    output.write(text + b"\nnext\n")
    output.end()
    found = lines(output.path)
    assert found[-1] == ("stdout", "F", b"next")
    parts = found[:-1]
    assert b"".join(part for _, _, part in parts) == text and all(len(part) <= LINE_LENGTH for _, _, part in parts)
    assert [tag for _, tag, _ in parts] == ["P"] * (len(parts) - 1) + ["F"]


def test_what_the_pipe_has_at_the_end_is_written(output: Output) -> None:
    os.write(output.sink, b"a\nb\n")
    output.file.close()  # another process holds the pipe open
    assert [text for _, _, text in lines(output.path)] == [b"a", b"b"]
    os.close(output.sink)


def test_an_output_that_was_never_started_is_the_runtimes(tmp_path: Path) -> None:
    file = LogFile(str(tmp_path / "log"))
    sink = file.stream("stderr")
    os.write(sink, b"runc: no such file\n")
    file.close()
    os.close(sink)
    assert (tmp_path / "log").read_bytes() == b""


def test_a_renamed_file_is_left(output: Output) -> None:
    output.write(b"one\n")
    output.path.rename(output.path.with_suffix(".old"))
    output.write(b"two\n")
    output.end()
    assert [text for _, _, text in lines(output.path)] == [b"two"]
    assert [text for _, _, text in lines(output.path.with_suffix(".old"))] == [b"one"]


def test_a_full_disk_loses_lines_and_stops_nobody(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    output.file.close()
    full = Output(output.path)
    os.dup2(os.open("/dev/full", os.O_WRONLY), full.file._file)
    full.write(b"lost\n")
    full.write(b"lost as well\n")
    assert len(full.complaints) == 1 and "output is lost" in full.complaints[0]
    full.end()


def test_times_have_nine_digits() -> None:
    assert timestamp(1_700_000_000_000_000_007) == b"2023-11-14T22:13:20.000000007Z"


def test_the_path_of_a_log_is_taken_as_it_is() -> None:
    assert parse_uri("cri:///var/log/pods/a?b=%20/0.log") == ("cri", "/var/log/pods/a?b=%20/0.log", [])
    assert crilog.SCHEME == "cri"
