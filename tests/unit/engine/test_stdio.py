# SPDX-License-Identifier: Apache-2.0
"""Hubs: what comes out of a FIFO goes to the log once and to every client, also over a death of the engine."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drivers.logs
import pytest

from teu.engine.logs.marker import Marker
from teu.engine.streams.hub import Hub
from teu.engine.streams.pump import Pump


class Memory:
    """A log driver that keeps whole lines, and stops accepting on demand."""

    def __init__(self) -> None:
        self.data = b""
        self.stalled = False

    def write(self, kind: int, data: bytes, final: bool, marker: Marker) -> int:
        if self.stalled:
            return 0
        count = len(data) if final else data.rfind(b"\n") + 1
        self.data += data[:count]
        return count

    def rewind(self, position: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def read(self, selection: Any) -> Any: ...

    def remove(self) -> None: ...


@pytest.fixture
def pump() -> Iterator[Pump]:
    pump = Pump()
    pump.start()
    yield pump
    pump.stop()


def eventually(probe: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not probe():
        assert time.monotonic() < deadline, "not within 20 s"
        time.sleep(0.002)


def opened(pump: Pump, folder: Path, tty: bool = False) -> tuple[Hub, Memory, tuple[str, str, str]]:
    memory = Memory()
    hub = Hub(pump, tty, lambda: memory)
    paths = (str(folder / "in"), str(folder / "out"), "" if tty else str(folder / "err"))
    hub.open(paths)
    hub.begin()
    return hub, memory, paths


def writer(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


def frames(data: bytes) -> list[tuple[int, bytes]]:
    result = []
    while data:
        kind, size = struct.unpack_from(">BxxxI", data)
        result.append((kind, data[8 : 8 + size]))
        data = data[8 + size :]
    return result


def all_of(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def test_lines_are_logged_and_sent(pump: Pump, tmp_path: Path) -> None:
    hub, memory, paths = opened(pump, tmp_path)
    ours, theirs = socket.socketpair()
    hub.attach(theirs, True, True)
    out, err = writer(paths[1]), writer(paths[2])
    os.write(out, b"one\ntwo\nprompt> ")
    eventually(lambda: memory.data == b"one\ntwo\n")
    os.write(err, b"oops\n")
    eventually(lambda: memory.data == b"one\ntwo\noops\n")
    os.write(out, b"yes\n")
    os.close(out)
    os.close(err)
    hub.finish()
    received = frames(all_of(ours))
    assert b"".join(data for kind, data in received if kind == 1) == b"one\ntwo\nprompt> yes\n"
    assert b"".join(data for kind, data in received if kind == 2) == b"oops\n"
    assert memory.data == b"one\ntwo\noops\nprompt> yes\n"


def test_an_unfinished_line_reaches_clients_at_once(pump: Pump, tmp_path: Path) -> None:
    hub, _, paths = opened(pump, tmp_path, tty=True)
    out = writer(paths[1])
    ours, theirs = socket.socketpair()
    hub.attach(theirs, True, False)
    os.write(out, b"login: ")
    assert ours.recv(100) == b"login: "
    late, theirs2 = socket.socketpair()
    hub.attach(theirs2, True, False)
    assert late.recv(100) == b"login: "
    hub.finish()


def test_a_stalled_log_loses_nothing(pump: Pump, tmp_path: Path) -> None:
    hub, memory, paths = opened(pump, tmp_path)
    memory.stalled = True
    out = writer(paths[1])
    wanted = b""
    for number in range(200):
        wanted += b"line %d\n" % number
    os.write(out, wanted)
    time.sleep(0.05)
    assert memory.data == b""
    memory.stalled = False
    eventually(lambda: memory.data == wanted)
    hub.finish()


def test_a_client_that_does_not_read_holds_back_only_its_container(pump: Pump, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    slow, slow_memory, slow_paths = opened(pump, tmp_path / "a")
    _, other_memory, other_paths = opened(pump, tmp_path / "b")
    ours, theirs = socket.socketpair()
    slow.attach(theirs, True, True)
    out = writer(slow_paths[1])
    line = b"x" * 1023 + b"\n"
    sent = 0
    idle = 0
    while idle < 50:
        try:
            sent += os.write(out, line * 32)
            idle = 0
        except BlockingIOError:
            idle += 1
            time.sleep(0.002)
    assert sent < 32 << 20
    os.write(writer(other_paths[1]), b"fine\n")
    eventually(lambda: other_memory.data == b"fine\n")
    received = bytearray()
    ours.setblocking(False)

    def all_is_there() -> bool:
        # A client has its bytes a moment before the log has them.
        with contextlib.suppress(BlockingIOError):
            while data := ours.recv(1 << 20):
                received.extend(data)
        return len(slow_memory.data) == sent and len(received) > sent

    eventually(all_is_there)
    slow.finish()


def test_a_client_that_vanishes_is_forgotten(pump: Pump, tmp_path: Path) -> None:
    hub, memory, paths = opened(pump, tmp_path)
    ours, theirs = socket.socketpair()
    client = hub.attach(theirs, True, True)
    ours.close()
    out = writer(paths[1])
    os.write(out, b"a\n")
    eventually(client.ended.is_set)
    os.write(out, b"b\n")
    eventually(lambda: memory.data == b"a\nb\n")
    hub.finish()


def test_stdin(pump: Pump, tmp_path: Path) -> None:
    hub, _, paths = opened(pump, tmp_path)
    reader = os.open(paths[0], os.O_RDONLY | os.O_NONBLOCK)
    assert hub.write_stdin(b"hello")
    assert os.read(reader, 100) == b"hello"
    hub.close_stdin()
    assert os.read(reader, 100) == b""
    assert not hub.write_stdin(b"more")
    hub.finish()


def test_a_marker_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    """What a stop finds in memory that is shared is what a kill at that moment would have left; to make a writer for
    each moment is a hundred times the work."""
    marker = Marker(str(tmp_path / "position"))
    states = [(1 << 40, 0, 0), (1 << 41, 1 << 20, 0xFFFFFFFF), (0, 0, 0)]
    dice = random.Random(1)
    child = os.fork()
    if child == 0:
        while True:
            for state in states:
                marker.set(1, *state)
    try:
        found = []
        deadline = time.monotonic() + 60
        while len(found) < 200 or set(found) < set(states):  # a busy machine may not let it write for a while
            assert time.monotonic() < deadline
            time.sleep(dice.uniform(0.0001, 0.001))
            os.kill(child, signal.SIGSTOP)
            os.waitpid(child, os.WUNTRACED)
            found.append(marker.get(1))
            os.kill(child, signal.SIGCONT)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert set(found) == set(states)
    assert marker.get(1) in states
    assert Marker(str(tmp_path / "position")).get(1) == marker.get(1)


@pytest.mark.parametrize("rounds", [30])
def test_killed_at_any_moment_the_log_is_exact(tmp_path: Path, rounds: int) -> None:
    """A child is the engine and is killed again and again; the writer goes on; json-file has each line once."""
    import json

    from teu.engine.logs.jsonfile import JsonFile

    source = drivers.logs.source(tmp_path, "json-file", {})
    paths = ("", str(tmp_path / "out"), "")
    os.mkfifo(paths[1])
    keeper = writer(paths[1])

    def engine() -> None:
        pump = Pump()
        pump.start()
        hub = Hub(pump, False, lambda: JsonFile(source))
        hub.open(paths, str(tmp_path / "marker"))
        hub.begin()
        signal.pause()

    dice = random.Random(3)
    number = 0
    poll = select.poll()
    poll.register(keeper, select.POLLOUT)
    for _ in range(rounds):
        child = os.fork()
        if child == 0:
            try:
                engine()
            finally:
                os._exit(1)
        until = time.monotonic() + dice.uniform(0.0, 0.04)
        while time.monotonic() < until:
            if poll.poll(1):
                try:
                    os.write(keeper, b"".join(b"line %d\n" % (number + step) for step in range(50)))
                    number += 50
                except BlockingIOError:
                    pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    pump = Pump()
    pump.start()
    hub = Hub(pump, False, lambda: JsonFile(source))
    hub.open(paths, str(tmp_path / "marker"))
    hub.begin()
    hub.finish()
    pump.stop()
    os.close(keeper)
    lines = [json.loads(line)["log"] for line in open(tmp_path / f"{source.id}-json.log")]
    assert number > rounds
    assert lines == [f"line {index}\n" for index in range(number)]
