# SPDX-License-Identifier: Apache-2.0
"""The process that writes the log of a container of another shim: what it takes from FIFOs, and when it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_crilog import lines

PROGRAM = Path(__file__).resolve().parents[3] / "bin/containerd-shim-teu-v2"


def until(said: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := said()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


class Writer:
    """Such a process, and the other ends of its FIFOs, as a shim has them."""

    def __init__(self, folder: Path, log: str | None = None, *, terminal: bool = False, stdin: bool = False) -> None:
        self.folder = folder / "state"
        self.folder.mkdir()
        self.log = folder / "pods/0.log"
        told = {"log": str(self.log) if log is None else log, "cgroup": str(folder / "no-cgroup")}
        (self.folder / "log.json").write_text(json.dumps(told))
        self.names = ["stdout"] if terminal else ["stdout", "stderr"]
        for name in [*self.names, *(["stdin"] if stdin else [])]:
            os.mkfifo(self.folder / name)
        done = subprocess.run([PROGRAM, "-bundle", self.folder, "cri-log"], capture_output=True, timeout=30)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def open(self) -> dict[str, int]:
        """As containerd's shim does: it keeps what it writes to open for reading, too."""
        return {name: os.open(self.folder / name, os.O_RDWR) for name in self.names}

    def ended(self) -> bool:
        return not (self.folder / "stdout").exists()

    def end(self) -> None:
        for name in self.names:
            try:
                os.close(os.open(self.folder / name, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                pass
        until(self.ended)


def test_both_outputs_are_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    assert writer.log.read_bytes() == b""  # before anything is said
    ends = writer.open()
    os.write(ends["stdout"], b"one\ntw")
    until(lambda: len(lines(writer.log)) == 1)
    os.write(ends["stderr"], b"bad\n")
    until(lambda: len(lines(writer.log)) == 2)
    os.close(ends["stderr"])
    os.write(ends["stdout"], b"o\nlast")
    os.close(ends["stdout"])
    until(writer.ended)
    assert lines(writer.log) == [
        ("stdout", "F", b"one"),
        ("stderr", "F", b"bad"),
        ("stdout", "F", b"two"),
        ("stdout", "P", b"last"),
    ]
    assert not (writer.folder / "stderr").exists()


def test_it_waits_for_the_first_writer_and_not_for_ever(tmp_path: Path) -> None:
    writer = Writer(tmp_path, terminal=True)
    time.sleep(0.2)
    assert not writer.ended()
    writer.end()


def test_without_a_log_it_only_takes(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "")
    ends = writer.open()
    os.write(ends["stdout"], b"x" * 60_000)
    os.write(ends["stdout"], b"x" * 60_000)  # more than a pipe has
    for end in ends.values():
        os.close(end)
    until(writer.ended)
    assert not writer.log.exists()


def test_a_renamed_log_is_followed(tmp_path: Path) -> None:
    writer = Writer(tmp_path, terminal=True)
    ends = writer.open()
    os.write(ends["stdout"], b"old\n")
    until(lambda: lines(writer.log))
    writer.log.rename(tmp_path / "old")
    os.write(ends["stdout"], b"new\n")
    until(lambda: writer.log.exists() and lines(writer.log))
    assert lines(writer.log) == [("stdout", "F", b"new")]
    os.close(ends["stdout"])
    until(writer.ended)


def test_others_may_look_on(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    ends = writer.open()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        here = os.getcwd()
        os.chdir(writer.folder)  # a socket's path is short
        try:
            client.connect("attach")
        finally:
            os.chdir(here)
        client.setblocking(False)
        found: list[bytes] = []

        def packets() -> list[bytes]:
            try:
                found.append(client.recv(1000))
            except BlockingIOError:
                pass
            return found

        def heard() -> list[bytes]:
            os.write(ends["stdout"], b"out")  # what comes before it is let in is not for it
            return packets()

        until(heard)
        os.write(ends["stderr"], b"err")
        until(lambda: b"\x02err" in packets())
        for end in ends.values():
            os.close(end)
        until(lambda: b"" in packets())
        assert all(one.startswith(b"\x01out") for one in found if one not in (b"", b"\x02err"))
    until(writer.ended)


def test_an_input_is_held_open(tmp_path: Path) -> None:
    writer = Writer(tmp_path, stdin=True)
    ends = writer.open()
    reader = os.open(writer.folder / "stdin", os.O_RDONLY | os.O_NONBLOCK)
    for text in (b"first", b"second"):
        client = os.open(writer.folder / "stdin", os.O_WRONLY)
        os.write(client, text)
        os.close(client)
        assert os.read(reader, 100) == text
        with pytest.raises(BlockingIOError):
            os.read(reader, 100)  # and not an end
    for end in ends.values():
        os.close(end)
    until(writer.ended)
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_a_log_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(json.dumps({"log": "/proc/no/such", "cgroup": ""}))
    done = subprocess.run([PROGRAM, "-bundle", tmp_path, "cri-log"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "/proc/no" in done.stderr
