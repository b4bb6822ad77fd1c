# SPDX-License-Identifier: Apache-2.0
"""The service side of systemd: notify, watchdog, socket activation, journal entries."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from teu.systemd import activation, journal, notify

SRC = str(Path(notify.__file__).parents[2])


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "notify"))
    sock.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return sock


def test_notify_lines(manager: socket.socket) -> None:
    notify.ready("Serving")
    assert manager.recv(999) == b"READY=1\nSTATUS=Serving"
    notify.reloading()
    lines = manager.recv(999).decode().split("\n")
    assert lines[0] == "RELOADING=1" and lines[1].startswith("MONOTONIC_USEC=")
    notify.watchdog()
    assert manager.recv(999) == b"WATCHDOG=1"


def test_notify_passes_descriptors(manager: socket.socket) -> None:
    read, write = os.pipe()
    assert notify.notify("FDSTORE=1", "FDNAME=x", descriptors=[write])
    data, descriptors, _, _ = socket.recv_fds(manager, 999, 4)
    assert data == b"FDSTORE=1\nFDNAME=x"
    os.write(descriptors[0], b"same pipe")
    assert os.read(read, 99) == b"same pipe"


def test_nobody_to_notify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify.notify("READY=1") is False


def test_watchdog_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert notify.watchdog_interval() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_interval() is None
    monkeypatch.delenv("WATCHDOG_USEC")
    assert notify.watchdog_interval() is None


def test_activation_by_name(tmp_path: Path) -> None:
    listeners = []
    for name in ("one", "two"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / name))
        sock.listen()
        listeners.append(sock)
    program = f"""
import os, sys
sys.path.insert(0, {SRC!r})
os.environ["LISTEN_PID"] = str(os.getpid())
from teu.systemd.activation import listen_sockets
for name, sock in listen_sockets():
    print(name, sock.getsockname().rpartition("/")[2], os.get_inheritable(sock.fileno()))
print(listen_sockets(), "LISTEN_FDS" in os.environ)
"""

    def place() -> None:
        for index, sock in enumerate(listeners):
            os.dup2(sock.fileno(), activation.SD_LISTEN_FDS_START + index)

    done = subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=place,
        close_fds=False,
        env={"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["a one False", "b two False", "[] False"]


def test_not_activated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "2")
    assert activation.listen_sockets() == []


def test_journal_encoding() -> None:
    assert journal.encode({"MESSAGE": "hello", "PRIORITY": 6}) == b"MESSAGE=hello\nPRIORITY=6\n"
    assert journal.encode({"M": "a\nb"}) == b"M\n\x03\0\0\0\0\0\0\0a\nb\n"


def test_journal_entry_and_one_too_large_for_a_datagram(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "journal"))
        server.settimeout(5)
        sender = journal.Journal(str(tmp_path / "journal"))
        sender.send({"MESSAGE": "small"})
        assert server.recv(999) == b"MESSAGE=small\n"
        sender.send({"MESSAGE": b"x" * (64 << 20)})
        data, descriptors, _, _ = socket.recv_fds(server, 999, 1)
        assert data == b""
        assert os.pread(descriptors[0], 12, 0) == b"MESSAGE=xxxx"
        assert os.fstat(descriptors[0]).st_size == (64 << 20) + 9


def test_handler_sends_level_and_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "journal"))
        server.settimeout(5)
        handler = journal.JournalHandler("teud")
        handler._journal = journal.Journal(str(tmp_path / "journal"))
        logger = logging.getLogger("test.journal")
        logger.addHandler(handler)
        logger.warning("no %s", "space", extra={"CONTAINER_ID": "abc"})
        entry = server.recv(9999).decode().splitlines()
        assert {"MESSAGE=no space", "PRIORITY=4", "SYSLOG_IDENTIFIER=teud", "CONTAINER_ID=abc"} <= set(entry)


def test_stderr_when_it_is_not_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert not journal.connected()
