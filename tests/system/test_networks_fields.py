# SPDX-License-Identifier: Apache-2.0
"""What requests about networks may say: every field of api_fields_networks.py is sent, and what it says there is so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import images
import pytest
import whole
from api_fields_networks import (
    CONTAINER,
    CREATE,
    ENDPOINT,
    FLAG,
    LIST,
    MAP,
    NUMBER,
    OBJECT,
    PARAMETERS,
    REFUSED,
    TEXT,
    Row,
)
from images import api

pytestmark = pytest.mark.needs("fast")


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    images.need_busybox()
    whole.remove_everything()
    yield
    whole.remove_everything()
    api("DELETE", "/networks/fields")


def body(row: Row, **base: Any) -> dict[str, Any]:
    """A request with this row's value at the place of its field."""
    result: dict[str, Any] = json.loads(json.dumps({**base, **row.more}))
    place: Any = result
    *parents, last = re.findall(r"\w+", row.field)
    for name in parents:
        if name.isdigit():
            continue
        default: Any = [{}] if f"{name}[0]" in row.field else {}
        place = place.setdefault(name, default)
        if isinstance(place, list):
            place = place[0]
    place[last] = row.value
    return result


def answers(row: Row, status: int, answer: Any, good: int) -> bool:
    """Whether it was taken."""
    if row.standing == REFUSED:
        assert status == row.status, (row, answer)
        assert isinstance(row.seen, str) and row.seen in answer["message"], (row, answer)
        return False
    assert status == good, (row, answer)
    return True


def see(row: Row, found: Any) -> None:
    if row.seen is not None:
        assert not isinstance(row.seen, str)
        assert row.seen(found), (row, found)


WRONG = {
    TEXT: (5, True, [], {}),
    FLAG: ("true", 1, []),
    NUMBER: ("1", 1.5, True, {}),
    LIST: ("x", {}, [5], [[]]),
    MAP: (True, -1, ["x"], {"a": 5}, {"a": []}),
    OBJECT: (1, "x", ["x"], True),
}


def ids(rows: list[Row]) -> list[str]:
    return [f"{row.field}-{row.standing.split()[0]}-{number}" for number, row in enumerate(rows)]


@pytest.mark.parametrize("row", CREATE, ids=ids(CREATE))
def test_create(row: Row) -> None:
    status, answer = api("POST", "/networks/create", body(row, **({} if row.field == "Name" else {"Name": "fields"})))
    if answers(row, status, answer, 201):
        try:
            see(row, api("GET", f"/networks/{answer['Id']}")[1])
        finally:
            assert api("DELETE", f"/networks/{answer['Id']}")[0] == 204
    assert [one["Name"] for one in api("GET", "/networks")[1]] == ["bridge", "host", "none"]


@pytest.fixture
def network() -> Iterator[str]:
    status, answer = api(
        "POST", "/networks/create", {"Name": "fields", "IPAM": {"Config": [{"Subnet": "10.93.0.0/24"}]}}
    )
    assert status in (201, 409), answer
    yield "fields"


@pytest.mark.parametrize("row", ENDPOINT, ids=ids(ENDPOINT))
def test_endpoint_of_a_new_container(row: Row, network: str) -> None:
    base = {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": network}}
    networking = {"EndpointsConfig": {network: body(row)}}
    status, answer = api("POST", "/containers/create?name=fields", {**base, "NetworkingConfig": networking})
    if answers(row, status, answer, 201):
        found = api("GET", "/containers/fields/json")[1]
        assert api("DELETE", "/containers/fields")[0] == 204
        see(row, found["NetworkSettings"]["Networks"][network])
    assert api("GET", "/containers/fields/json")[0] == 404


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    assert api("POST", "/containers/create?name=joiner", {"Image": "busybox", "Cmd": ["true"]})[0] == 201
    yield "joiner"
    api("DELETE", "/containers/joiner")


@pytest.mark.parametrize("row", ENDPOINT, ids=ids(ENDPOINT))
def test_endpoint_of_connect(row: Row, network: str, other: str) -> None:
    asked = {"container": other, "endpointconfig": body(row)}
    status, answer = api("POST", f"/networks/{network}/connect", asked, version="1.54")  # the first that heeds all
    networks = api("GET", f"/containers/{other}/json")[1]["NetworkSettings"]["Networks"]
    if answers(row, status, answer, 200):
        see(row, networks[network])
        assert api("POST", f"/networks/{network}/disconnect", {"Container": other, "Force": True})[0] == 200
    else:
        assert list(networks) == ["bridge"]


@pytest.mark.parametrize("row", CONTAINER, ids=ids(CONTAINER))
def test_container(row: Row) -> None:
    status, answer = api("POST", "/containers/create?name=fields", body(row, Image="busybox", Cmd=["true"]))
    if answers(row, status, answer, 201):
        found = api("GET", "/containers/fields/json")[1]
        assert api("DELETE", "/containers/fields")[0] == 204
        see(row, found)
    assert api("GET", "/containers/fields/json")[0] == 404


@pytest.mark.parametrize(("request_", "query", "status", "says"), PARAMETERS)
def test_parameters(request_: str, query: dict[str, str], status: int, says: str) -> None:
    method, path = request_.split()
    found, answer = api(method, f"{path}?{urlencode(query)}")
    assert found == status, answer
    assert says in json.dumps(answer)


def test_wrong_types_as_deep_as_they_go(network: str, other: str) -> None:
    """400 with the path of the field, never an error of the engine's own, and nothing is made."""
    for rows, ask in (
        (CREATE, lambda row: ("POST", "/networks/create", body(row, Name="wrong"))),
        (
            ENDPOINT,
            lambda row: (
                "POST",
                "/containers/create?name=wrong",
                {
                    "Image": "busybox",
                    "Cmd": ["true"],
                    "HostConfig": {"NetworkMode": network},
                    "NetworkingConfig": {"EndpointsConfig": {network: body(row)}},
                },
            ),
        ),
        (
            ENDPOINT,
            lambda row: ("POST", f"/networks/{network}/connect", {"Container": other, "EndpointConfig": body(row)}),
        ),
    ):
        for field in dict.fromkeys((row.field, row.kind) for row in rows):
            for value in WRONG[field[1]]:
                row = Row(field[0], field[1], value, REFUSED)
                status, answer = api(*ask(row))
                assert status == 400, (row, answer)
                assert field[0] in answer["message"], (row, answer)
    for path, given, says in (
        ("/networks/create", [], "object"),
        (f"/networks/{network}/connect", {"Container": 5}, "Container"),
        (f"/networks/{network}/connect", {"Container": other, "EndpointConfig": 5}, "EndpointConfig"),
        (f"/networks/{network}/disconnect", {"Container": other, "Force": "x"}, "Force"),
    ):
        status, answer = api("POST", path, given)
        assert (status, says in answer["message"]) == (400, True), answer


def test_what_is_answered_beside() -> None:
    """Warnings, keys in any case, clients that know one network only, and networks that do not exist yet."""
    status, answer = api("POST", "/networks/create", {"name": "lower", "labels": {"a": "b"}, "options": {"x": "y"}})
    assert status == 201
    assert answer["Warning"] == "options without an effect on a bridge network: x"
    assert api("GET", "/networks/lower")[1]["Labels"] == {"a": "b"}
    base = {"Image": "busybox", "Cmd": ["true"]}
    two = {"NetworkingConfig": {"EndpointsConfig": {"lower": {}, "bridge": {}}}}
    status, answer = api("POST", "/containers/create?name=two", {**base, **two}, "1.43")
    assert status == 400
    assert answer["message"] == "Container cannot be created with multiple network endpoints: bridge, lower"
    assert api("POST", "/containers/create?name=two", {**base, **two})[0] == 201
    # With endpoints named, those are meant, whatever the mode is.
    one = {"HostConfig": {"NetworkMode": "bridge"}, "NetworkingConfig": {"EndpointsConfig": {"lower": {}}}}
    assert api("POST", "/containers/create?name=one", {**base, **one})[0] == 201
    assert list(api("GET", "/containers/one/json")[1]["NetworkSettings"]["Networks"]) == ["lower"]
    status, answer = api(
        "POST", "/containers/create?name=none", {**base, "NetworkingConfig": {"EndpointsConfig": {"lower": None}}}
    )
    assert status == 400 and "EndpointsConfig is nil" in answer["message"]
    status, answer = api(
        "POST",
        "/containers/create?name=host",
        {**base, "HostConfig": {"NetworkMode": "host", "PortBindings": {"80/tcp": [{"HostPort": "8099"}]}}},
    )
    assert answer["Warnings"] == ["Published ports are discarded when using host network mode"]
    status, answer = api("POST", "/containers/create?name=later", {**base, "HostConfig": {"NetworkMode": "not yet"}})
    assert status == 201, answer
    status, answer = api("POST", "/containers/later/start")
    assert (status, answer["message"]) == (
        404,
        "failed to set up container networking: network not yet not found",
    )
    assert api("POST", "/networks/create", {"Name": "not yet"})[0] == 201
    assert api("POST", "/containers/later/start")[0] == 204
    whole.remove_everything()
    for name in ("lower", "not%20yet"):
        assert api("DELETE", f"/networks/{name}")[0] == 204
