# SPDX-License-Identifier: Apache-2.0
"""A server of grpc with threads behind an inherited socket: in grpcio's place, by relay, and what its end leaves."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from teu.systemd import grpc_activation


def build() -> Any:
    server = grpc.server(ThreadPoolExecutor(4), options=(("grpc.so_reuseport", 0),))
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: request[::-1])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Turn": method}),))
    return server


def turned(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            return bool(channel.unary_unary("/test.Echo/Turn")(b"abc", timeout=5) == b"cba")
        except grpc.RpcError:
            return False


@pytest.fixture
def inherited(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/api.sock")
        listener.listen()
        yield listener


def refuse(private: str, inherited: socket.socket) -> int:
    raise LookupError("another grpcio")


@pytest.mark.parametrize("way", ["in its place", "cannot be put there", "does not answer there"])
def test_it_serves_and_leaves_the_socket_whole(
    way: str, inherited: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: Callable[[str], bool] = turned
    if way == "cannot be put there":
        monkeypatch.setattr(grpc_activation, "_put_in_place", refuse)
    elif way == "does not answer there":

        def answers(address: str) -> bool:
            return False

    server, release = grpc_activation.serve_in_threads(build, inherited, f"{tmp_path}/private.sock", answers)
    address = f"unix:{tmp_path}/api.sock"
    assert turned(address) and turned(address)
    release()
    server.stop(0).wait()
    # What systemd holds goes on listening: the next process finds who came meanwhile.
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/api.sock")
        inherited.settimeout(10)
        inherited.accept()[0].close()
