# SPDX-License-Identifier: Apache-2.0
"""Importing from an address: fromSrc=URL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from teu.engine.core.errors import BadRequest, EngineError, Forbidden, NotFound
from teu.engine.images import download

BODY = b"x" * 300_000


@pytest.fixture
def address() -> Iterator[str]:
    """/STATUS answers with it, /short breaks off, /moved leads to /200, /ftp out of HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            if name in ("moved", "ftp"):
                self.send_response(302)
                self.send_header("Location", "/200" if name == "moved" else "ftp://127.0.0.1:1/x")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200 if name == "short" else int(name))
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[:1000] if name == "short" else BODY)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def read(address: str) -> bytes:
    stream, answer = download.opened(download.checked(address))
    data = b""

    def messages() -> Iterator[dict[str, object]]:
        nonlocal data
        while part := stream.read(70_000):
            data += part
        yield {"status": "sha256:1"}

    told = list(download.told(address, answer, messages()))
    assert [message["status"] for message in told] == [f"Downloading from {address}", "sha256:1"]
    assert answer.closed
    return data


def test_what_is_there_is_read(address: str) -> None:
    assert read(f"{address}/200") == read(f"http://{address}/moved") == BODY


@pytest.mark.parametrize(
    ("path", "error"), [("404", NotFound), ("403", Forbidden), ("410", EngineError), ("500", EngineError)]
)
def test_a_refusal_is_told(address: str, path: str, error: type[EngineError]) -> None:
    with pytest.raises(EngineError, match=f"failed to GET http://{address}/{path} with status {path} ") as raised:
        read(f"{address}/{path}")
    assert type(raised.value) is error and len(str(raised.value)) < 2000


def test_a_download_that_breaks_off(address: str) -> None:
    with pytest.raises(EngineError, match="broke off"):
        read(f"{address}/short")
    with pytest.raises(EngineError, match="failed to GET http://127.0.0.1:1/x: Connection refused$"):
        read("127.0.0.1:1/x")


def test_a_redirect_leads_to_http_alone(address: str) -> None:
    with pytest.raises(EngineError, match="unknown url type: ftp"):
        read(f"{address}/ftp")


@pytest.mark.parametrize(
    "wrong", ["", "http://", "ftp://a/b", "file:///etc/passwd", "http://a:0/", "http://a:b/", "a b"]
)
def test_what_is_no_address(wrong: str) -> None:
    with pytest.raises(BadRequest, match="invalid source"):
        download.checked(wrong)
