# SPDX-License-Identifier: Apache-2.0
"""Those who look on while a container writes its log."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from teu.shim import attach
from teu.shim.crilog import LogFile
from teu.shim.loop import Loop


class House:
    """A log with both streams and a socket, on a loop that runs when it is asked to."""

    def __init__(self, folder: Path, path: str = "log") -> None:
        self.loop = Loop()
        self.folder = folder
        self.file = LogFile(str(folder / path) if path else "", attach=str(folder / "attach"))
        self.out, self.err = self.file.stream("stdout"), self.file.stream("stderr")
        os.set_blocking(self.out, False)
        self.file.start(self.loop)
        self.clients: list[socket.socket] = []

    def turn(self, seconds: float = 0.05) -> None:
        """Run for so long."""
        self.loop.after(seconds, self.loop.stop)
        self.loop.run()

    def join(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(5)
        client.connect(str(self.folder / "attach"))
        self.clients.append(client)
        self.turn()
        return client

    def write_much(self, count: int) -> int:
        """As much of so many bytes as goes in."""
        written = 0
        for _ in range(200):
            with contextlib.suppress(BlockingIOError):
                written += os.write(self.out, b"x" * min(count - written, 1 << 16))
            if written == count:
                break
            self.turn(0.001)
        return written

    def end(self) -> None:
        for one in (self.out, self.err):
            with contextlib.suppress(OSError):
                os.close(one)
        self.file.close()
        for client in self.clients:
            client.close()
        self.loop.close()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def everything(client: socket.socket) -> list[bytes]:
    found = []
    while packet := client.recv(70_000):
        found.append(packet)
    return found


def test_everybody_gets_what_is_written_from_then_on(house: House) -> None:
    os.write(house.out, b"early\n")
    house.turn()
    first = house.join()
    os.write(house.out, b"one\n")
    os.write(house.err, b"no line")
    house.turn()
    second = house.join()
    os.write(house.out, b"two\n")
    house.turn()
    house.file.finish()
    assert house.file.drained.done
    assert sorted(everything(first)) == [b"\1one\n", b"\1two\n", b"\2no line"]
    assert everything(second) == [b"\1two\n"]
    house.end()
    assert [line.split(b" ", 1)[1] for line in (house.folder / "log").read_bytes().splitlines()] == [
        b"stdout F early",
        b"stdout F one",
        b"stdout F two",
        b"stderr P no line",
    ]


def test_what_is_left_at_the_end_is_told(house: House) -> None:
    client = house.join()
    os.write(house.out, b"last")
    house.file.finish()
    assert everything(client) == [b"\1last"]
    house.end()


def test_one_who_leaves_is_forgotten(house: House) -> None:
    house.join().close()
    house.turn()
    client = house.join()
    assert house.file._audience is not None and len(house.file._audience._clients) == 1
    os.write(house.out, b"x")
    house.turn()
    assert client.recv(10) == b"\1x"
    house.end()


def take(client: socket.socket) -> int:
    """How many bytes of output are there for a client."""
    found = 0
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while packet := client.recv(70_000):
            found += len(packet) - 1
    return found


def test_one_who_is_slow_loses_nothing(house: House) -> None:
    client = house.join()
    count = 3_000_000
    written, found = house.write_much(count), 0
    assert written < count  # it is waited for
    while found < count:
        found += take(client)
        written += house.write_much(count - written) if written < count else 0
        house.turn(0.001)
    assert found == count
    house.end()


def test_one_who_takes_nothing_is_cut_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "PATIENCE_SECONDS", 0.2)
    house.join()
    count, written = 3_000_000, 0
    while written < count:
        written += house.write_much(count - written)
        house.turn(0.1)
    client = house.join()
    os.write(house.out, b"still there\n")
    house.turn()
    assert client.recv(70_000).endswith(b"still there\n")
    assert (house.folder / "log").read_bytes().endswith(b"still there\n")
    house.end()


def test_the_end_waits_for_one_who_is_slow(house: House) -> None:
    client = house.join()
    written = house.write_much(1_000_000)
    house.file.finish()
    assert not house.file.drained.done
    found = 0
    while not house.file.drained.done:
        found += take(client)
        house.turn(0.01)
    client.setblocking(True)
    assert found + sum(len(packet) - 1 for packet in everything(client)) == written
    house.end()


def test_the_end_may_be_sudden(house: House) -> None:
    client = house.join()
    house.write_much(1_000_000)
    house.file.end()
    assert house.file.drained.done
    everything(client)
    house.end()


def test_without_a_log_they_look_on_all_the_same(tmp_path: Path) -> None:
    house = House(tmp_path, "")
    client = house.join()
    os.write(house.out, b"x\n")
    house.turn()
    assert client.recv(10) == b"\1x\n" and sorted(os.listdir(tmp_path)) == ["attach"]
    house.end()


def test_a_socket_of_a_start_that_failed_is_replaced(tmp_path: Path) -> None:
    House(tmp_path).end()
    house = House(tmp_path)
    house.join()
    house.end()
