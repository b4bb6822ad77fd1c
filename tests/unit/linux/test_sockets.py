# SPDX-License-Identifier: Apache-2.0
"""Sockets of the shim, which are not the standard library's."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from teu.linux import sockets


def test_a_descriptor_goes_along_and_executed_programs_do_not_get_it() -> None:
    one, other = sockets.pair()
    with one, other:
        assert not os.get_inheritable(one.fileno())
        read_end, write_end = os.pipe()
        sockets.send_with(one, b"words", write_end)
        os.close(write_end)
        data, fd = sockets.receive_with(other, 100)
        assert data == b"words"
        assert not os.get_inheritable(fd)
        os.write(fd, b"x")
        os.close(fd)
        assert os.read(read_end, 10) == b"x"
        assert os.read(read_end, 10) == b""
        os.close(read_end)
        one.sendall(b"no descriptor")
        assert sockets.receive_with(other, 100) == (b"no descriptor", -1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.send(b"x")


def test_who_sends_two_descriptors_leaves_none_open() -> None:
    one, other = socket.socketpair()
    with one, sockets.Socket(fileno=other.detach()) as peer:
        before = set(os.listdir("/proc/self/fd"))
        socket.send_fds(one, [b"x"], [0, 1])
        _, fd = sockets.receive_with(peer, 100)
        os.close(fd)
        assert set(os.listdir("/proc/self/fd")) == before


def test_an_accepted_connection_waits_though_its_listener_does_not(tmp_path: Path) -> None:
    with sockets.Socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            peer, _ = listener.accept()
            with peer:
                assert not os.get_inheritable(peer.fileno())
                assert peer.gettimeout() is None
                client.sendall(b"hello")
                assert peer.recv(10) == b"hello"
