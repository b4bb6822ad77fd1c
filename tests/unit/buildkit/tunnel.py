# SPDX-License-Identifier: Apache-2.0
"""A client's side of a session for tests: a real gRPC server (grpcio) behind a real connection, in this process."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from teu.buildkit.session.manager import Manager, Session

# method: (streams requests, streams answers, request, answer, function)
Methods = dict[str, tuple[bool, bool, Any, Any, Callable[..., Any]]]
KINDS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def headers(identifier: str, methods: Methods, key: str = "") -> list[tuple[str, str]]:
    prefix = "X-Docker-Expose-Session-"
    known = [(f"{prefix}Uuid", identifier), (f"{prefix}Name", "test"), (f"{prefix}Sharedkey", key)]
    return [*known, *((f"{prefix}Grpc-Method", method) for method in methods)]


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, methods: Methods) -> None:
        self._methods = {
            name: KINDS[asks, answers](function, request.FromString, answer.SerializeToString)
            for name, (asks, answers, request, answer, function) in methods.items()
        }

    def service(self, details: Any) -> Any:
        return self._methods.get(details.method)


@contextlib.contextmanager
def server(methods: Methods) -> Iterator[str]:
    """A gRPC server on a socket; its path."""
    with tempfile.TemporaryDirectory(prefix="teu-") as folder:
        path = os.path.join(folder, "s")
        running = grpc.server(ThreadPoolExecutor(16), handlers=[Handler(methods)])
        running.add_insecure_port(f"unix:{path}")
        running.start()
        try:
            yield path
        finally:
            running.stop(0).wait()


def connected(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return client


@contextlib.contextmanager
def client(methods: Methods, manager: Manager | None = None, identifier: str = "one") -> Iterator[Session]:
    """A session whose client serves these methods."""
    manager = manager or Manager()
    with server(methods) as path:
        thread = threading.Thread(
            target=manager.serve_socket, args=(headers(identifier, methods), connected(path)), daemon=True
        )
        thread.start()
        session = manager.get(identifier, 5)
        try:
            yield session
        finally:
            session.close()
            thread.join(5)
            assert not thread.is_alive()
