# SPDX-License-Identifier: Apache-2.0
"""The standard streams of a process, with a shell in place of the shim."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from teu.buildkit.worker.stdio import Stdio


class Both:
    def __init__(self) -> None:
        self.out = bytearray()
        self.err = bytearray()

    def stdio(self, folder: Path, **more: bool) -> Stdio:
        return Stdio(str(folder), self.out.extend, self.err.extend, **more)


def started(stdio: Stdio, script: str) -> subprocess.Popen[bytes]:
    """As the shim does it: it has opened its ends before `begin`."""
    stdin, stdout, stderr = stdio.paths
    reading, writing = os.pipe()
    ends = f"exec >{stdout} 2>{stderr or stdout} " + (f"<{stdin}" if stdin else "</dev/null")
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"{ends}; echo ready >/proc/self/fd/{writing}; {script}"], pass_fds=(writing,)
    )
    os.close(writing)
    assert os.read(reading, 100) == b"ready\n"
    os.close(reading)
    stdio.begin()
    return process


def test_both_streams_come_whole(tmp_path: Path) -> None:
    both = Both()
    stdio = both.stdio(tmp_path)
    process = started(stdio, "echo one; echo two >&2; head -c 1000000 /dev/zero")
    process.wait()
    assert stdio.finish(10)
    assert both.out == b"one\n" + bytes(1000000)
    assert both.err == b"two\n"
    assert os.listdir(tmp_path) == []


def test_a_terminal_has_one_stream(tmp_path: Path) -> None:
    both = Both()
    stdio = both.stdio(tmp_path, terminal=True)
    assert stdio.paths[2] == ""
    started(stdio, "echo one; echo two >&2").wait()
    assert stdio.finish(10)
    assert both.out == b"one\ntwo\n"


def test_standard_input_has_an_end(tmp_path: Path) -> None:
    both = Both()
    stdio = both.stdio(tmp_path, stdin=True)
    process = started(stdio, "cat")
    text = b"x" * 300_000
    stdio.write(text)
    stdio.close_input()
    stdio.close_input()
    assert process.wait(10) == 0
    assert stdio.finish(10)
    assert both.out == text
    with pytest.raises(BrokenPipeError):
        stdio.write(b"more")


def test_input_that_nobody_reads(tmp_path: Path) -> None:
    both = Both()
    stdio = both.stdio(tmp_path, stdin=True)
    started(stdio, "exit 0").wait()
    with pytest.raises(BrokenPipeError):
        stdio.write(b"x" * 300_000)
    assert stdio.finish(10)


def test_who_holds_the_streams_is_not_waited_for(tmp_path: Path) -> None:
    both = Both()
    stdio = both.stdio(tmp_path)
    process = started(stdio, "echo one; sleep 30 & echo $! >&2")
    process.wait()
    assert not stdio.finish(0.3)
    assert both.out == b"one\n"
    os.kill(int(both.err), 9)


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    stdio = Both().stdio(tmp_path, stdin=True)
    stdio.discard()
    stdio.discard()
    assert os.listdir(tmp_path) == []
    assert not set(os.listdir("/proc/self/fd")) - before
    with pytest.raises(FileNotFoundError):
        Stdio(f"{tmp_path}/none", None, None)
    assert not set(os.listdir("/proc/self/fd")) - before


def test_no_thread_is_left(tmp_path: Path) -> None:
    ignore: Callable[[bytes], None] | None = None
    stdio = Stdio(str(tmp_path), ignore, ignore)
    started(stdio, "echo one").wait()
    assert stdio.finish(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "stdio" and thread.is_alive()]
