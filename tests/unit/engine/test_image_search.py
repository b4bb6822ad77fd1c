# SPDX-License-Identifier: Apache-2.0
"""GET /images/search, of a registry on loopback."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.images import search

SETTINGS: dict[str, Any] = {"insecure-registries": [], "registry-mirrors": []}
FOUND = [
    {"name": "box", "description": "a\nbox", "star_count": 50, "is_official": True, "is_automated": True, "more": 1},
    {"name": "me/box", "description": None, "star_count": 3, "is_official": False},
    {"name": 5, "star_count": "many"},
    "nothing",
]


class Searched:
    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, json.dumps({"results": FOUND}).encode())
        self.asked: list[tuple[str, dict[str, list[str]], str]] = []
        self.demands = ""
        house = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                authorization = self.headers.get("Authorization", "")
                house.asked.append((parts.path, parse_qs(parts.query), authorization))
                status, body = house.answer
                if house.demands and authorization != house.demands:
                    status, body = 401, b"{}"
                self.send_response(status)
                if status == 401:
                    self.send_header("WWW-Authenticate", 'Basic realm="here"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def house() -> Iterator[Searched]:
    house = Searched()
    yield house
    house.server.shutdown()
    house.server.server_close()


def names(house: Searched, limit: str = "", auth: str = "", **filters: list[str]) -> list[str]:
    given = {name.replace("_", "-"): values for name, values in filters.items()}
    return [one["name"] for one in search.search(SETTINGS, f"{house.host}/a box", limit, given, auth)]


def test_what_a_registry_finds(house: Searched) -> None:
    (first, second, third) = search.search(SETTINGS, f"{house.host}/a box", "", {}, "")
    assert first == {
        "name": "box",
        "description": "a\nbox",
        "star_count": 50,
        "is_official": True,
        "is_automated": False,
    }
    assert second["description"] == "" and third == {**second, "name": "", "star_count": 0}
    assert house.asked == [("/v1/search", {"q": ["a box"], "n": ["25"]}, "")]
    assert names(house, "100", "no base64 at all") and house.asked[-1][1]["n"] == ["100"]


def test_credentials_go_where_they_are_asked_for(house: Searched) -> None:
    house.demands = "Basic " + base64.b64encode(b"me:secret").decode()
    auth = base64.urlsafe_b64encode(json.dumps({"username": "me", "password": "secret"}).encode()).decode()
    assert names(house, auth=auth) == ["box", "me/box", ""]
    with pytest.raises(EngineError):
        names(house)


def test_filters(house: Searched) -> None:
    assert names(house, is_official=["true"]) == ["box"]
    assert names(house, is_official=["false"]) == ["me/box", ""]
    assert names(house, stars=["3"]) == ["box", "me/box"] and names(house, stars=["3", "10"]) == ["box"]
    assert names(house, is_automated=["false"]) == names(house) and names(house, is_automated=["true"]) == []
    for wrong in ({"colour": ["blue"]}, {"stars": ["many"]}, {"is_official": ["perhaps"]}):
        with pytest.raises(BadRequest, match="invalid filter"):
            names(house, **wrong)
    for limit in ("101", "-1", "many"):
        with pytest.raises(BadRequest, match="limit"):
            names(house, limit)


@pytest.mark.parametrize("term", ["https://docker.io/box", "bad domain.:x/box"])
def test_a_term_that_is_none(term: str) -> None:
    with pytest.raises(BadRequest, match="invalid repository name"):
        search.search(SETTINGS, term, "", {}, "")


def test_where_a_term_is_looked_for() -> None:
    split = search._split
    for term in ("box", "library/box", "docker.io/box", "docker.io/library/box", "index.docker.io/box"):
        assert split(term) == ("index.docker.io", "box")
    assert split("me/box") == ("index.docker.io", "me/box")
    assert split("localhost/me/box") == ("localhost", "me/box") and split("quay.example/box") == ("quay.example", "box")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"{}", "cannot be searched"),
        (500, b"oh", "500"),
        (200, b"[1]", "cannot be read"),
        (200, b"<html>", "cannot be read"),
        (200, b'{"results": null}', "cannot be read"),
    ],
)
def test_a_registry_that_does_not_answer_that(
    house: Searched, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, said: str
) -> None:
    monkeypatch.setattr("teu.oci.distribution.BACKOFF_SECONDS", 0.001)
    house.answer = (status, body)
    with pytest.raises(EngineError, match=said) as raised:
        names(house)
    assert raised.value.status == 500
