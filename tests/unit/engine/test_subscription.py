# SPDX-License-Identifier: Apache-2.0
"""The hand-made call of the event stream, against grpcio's server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from teu.engine.backend.containerd import Unavailable
from teu.engine.backend.subscription import Subscription

METHOD = "/containerd.services.events.v1.Events/Subscribe"
# Many more octets than the first window has, in messages of one frame, of many frames, and empty ones.
MESSAGES = [b"x" * (size % 70_000) for size in range(0, 3_000_000, 9_973)]


class Handler(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self.asked: list[tuple[bytes, dict[str, Any]]] = []
        self.left = threading.Event()

    def service(self, details: Any) -> Any:
        if details.method != METHOD:
            return None

        def answer(request: bytes, context: Any) -> Iterator[bytes]:
            self.asked.append((request, dict(context.invocation_metadata())))
            yield from MESSAGES
            if request == b"stay":
                context.add_callback(self.left.set)
                self.left.wait(30)
            elif request == b"fail":
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such filter")

        return grpc.unary_stream_rpc_method_handler(answer)


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[Handler]:
    made = Handler()
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=(made,))
        server.add_insecure_port(f"unix:{tmp_path}/sock")
        server.start()
        yield made
        made.left.set()
        server.stop(None).wait()


@pytest.mark.parametrize("request_", [b"", b"fail", b"r" * 5000])
def test_messages_come_whole_and_the_end_is_told(handler: Handler, tmp_path: Path, request_: bytes) -> None:
    stream = Subscription(f"{tmp_path}/sock", METHOD, "teu", request_)
    got = []
    with pytest.raises(Unavailable):
        for message in stream:
            got.append(message)
    stream.close()
    assert got == MESSAGES
    asked, metadata = handler.asked[0]
    assert asked == request_
    assert metadata["containerd-namespace"] == "teu"


def test_it_can_be_cancelled_from_elsewhere(handler: Handler, tmp_path: Path) -> None:
    stream = Subscription(f"{tmp_path}/sock", METHOD, "teu", b"stay")
    messages = iter(stream)
    for wanted in MESSAGES:
        assert next(messages) == wanted
    threading.Timer(0.05, stream.cancel).start()
    with pytest.raises(Unavailable):
        next(messages)
    stream.close()
    assert handler.left.wait(30), "the server was not told"


def test_unknown_methods_and_absent_servers(handler: Handler, tmp_path: Path) -> None:
    stream = Subscription(f"{tmp_path}/sock", "/no.such/Method", "teu", b"")
    with pytest.raises(Unavailable):
        next(iter(stream))
    stream.close()
    with pytest.raises(Unavailable):
        Subscription(f"{tmp_path}/nobody", METHOD, "teu", b"")
