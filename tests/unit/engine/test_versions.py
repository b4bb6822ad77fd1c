# SPDX-License-Identifier: Apache-2.0
"""What the versions of the API have different: the two tables, and the answers of several versions."""

from __future__ import annotations

import copy
import json
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.api import parameters
from teu.engine.api.messages import Request
from teu.engine.api.routes import system as routes
from teu.engine.api.server import API_MINIMUM, API_VERSION
from teu.engine.containers.state import ManifestDescriptor
from teu.engine.core import fields, versions
from teu.engine.core.errors import BadRequest
from teu.engine.core.events import Events
from teu.engine.engine import Engine
from teu.engine.lifecycle import create
from teu.engine.networks.ipam import Pool, ip_network
from teu.engine.views import containers
from teu.engine.views import images as images_view


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = parts.engine_before(tmp_path, "containers.sql")
    yield engine
    engine.database.close()


def test_every_line_of_the_tables_is_of_a_version_that_is_served() -> None:
    lines = [*sum(versions.ANSWERS.values(), ()), *sum(versions.BODIES.values(), ())]
    for line in lines:
        assert (line.since, line.until) != (versions.FIRST, versions.LAST), line
        for border in (line.since, line.until):
            assert border in (versions.FIRST, versions.LAST) or API_MINIMUM < border <= API_VERSION, line
    for table in (*versions.ANSWERS.values(), *versions.BODIES.values()):
        assert len({line.path for line in table}) == len(table)


def test_what_a_version_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (
        versions.Member("*.New", since=(1, 48)),
        versions.Member("*.Deep.*.Old", until=(1, 50)),
        versions.Member("*.Maybe", until=(1, 52), empty=True),
    )
    monkeypatch.setattr(versions, "ANSWERS", {"things": table})
    rows = [{"New": 1, "Deep": {"a": {"Old": 1, "B": 2}, "b": {}}, "Maybe": ""}, {"Maybe": "x", "Deep": [{"Old": 1}]}]

    def fitted(*version: int) -> Any:
        answer = copy.deepcopy(rows)
        versions.fit("things", answer, version)  # type: ignore[arg-type]
        return answer

    assert fitted(1, 48) == fitted(1, 49) == rows
    assert [sorted(row) for row in fitted(1, 47)] == [["Deep", "Maybe"], ["Deep", "Maybe"]]
    assert fitted(1, 50) == [{"New": 1, "Deep": {"a": {"B": 2}, "b": {}}, "Maybe": ""}, {"Maybe": "x", "Deep": [{}]}]
    assert fitted(1, 52)[0] == {"New": 1, "Deep": {"a": {"B": 2}, "b": {}}}
    assert fitted(1, 52)[1]["Maybe"] == "x"


MOUNT = {"Type": "volume", "Target": "/x", "VolumeOptions": {"Subpath": "a"}}


@pytest.mark.parametrize(
    ("version", "body", "refusal"),
    [
        ((1, 51), {"MacAddress": "02:00:00:00:00:01"}, ""),
        ((1, 52), {"MacAddress": "02:00:00:00:00:01"}, "container-wide MAC address no longer supported"),
        ((1, 52), {"MacAddress": ""}, ""),
        ((1, 45), {"HostConfig": {"Mounts": [MOUNT]}}, ""),
        ((1, 44), {"HostConfig": {"Mounts": [MOUNT]}}, "VolumeOptions.Subpath needs API v1.45 or newer"),
        ((1, 48), {"HostConfig": {"Mounts": [{"Type": "image"}]}}, ""),
        ((1, 47), {"HostConfig": {"Mounts": [{"Type": "image"}]}}, 'Mount type "image" needs API v1.48'),
        ((1, 47), {"HostConfig": {"Mounts": [{"Type": "bind"}]}}, ""),
        ((1, 43), {"HostConfig": {"Mounts": [{"BindOptions": {"ReadOnlyForceRecursive": True}}]}}, "needs API v1.44"),
        ((1, 24), {"HostConfig": {"Mounts": "no list", "Annotations": 5}, "NetworkingConfig": None}, ""),
    ],
)
def test_a_body_of_a_version_that_has_no_such_member(version: Any, body: dict[str, Any], refusal: str) -> None:
    if not refusal:
        versions.heed("create", body, version)
        return
    with pytest.raises(BadRequest, match=refusal):
        versions.heed("create", body, version)


def test_what_a_later_version_has_brought_is_passed_over() -> None:
    def heeded(version: versions.Version) -> Any:
        body = {
            "HostConfig": {"Annotations": {"a": "b"}, "ConsoleSize": [1, 2]},
            "Healthcheck": {"Test": ["NONE"], "StartInterval": 5},
            "NetworkingConfig": {"EndpointsConfig": {"n": {"GwPriority": 7, "Aliases": []}, "m": None}},
        }
        versions.heed("create", body, version)
        return body

    assert heeded((1, 48)) == heeded((1, 55))
    assert heeded((1, 47))["NetworkingConfig"] == {"EndpointsConfig": {"n": {"Aliases": []}, "m": None}}
    assert heeded((1, 43))["Healthcheck"] == {"Test": ["NONE"]}
    assert heeded((1, 42))["HostConfig"] == {"ConsoleSize": [1, 2]}
    assert heeded((1, 41))["HostConfig"] == {}


NONE_GIVEN = {"BlkioWeightDevice": [], "BlkioDeviceReadBps": []}
WEIGHTS = {"BlkioWeightDevice": [{"Path": "/dev/null", "Weight": 5}]}


@pytest.mark.parametrize(
    ("body", "since", "given", "before"),
    [
        ("update", (1, 40), {"PidsLimit": 5, "Memory": 6}, {"Memory": 6}),
        ("update", (1, 55), NONE_GIVEN, {}),
        ("update", (1, 55), WEIGHTS, WEIGHTS),
        ("exec", (1, 42), {"ConsoleSize": [1, 2], "Cmd": []}, {"Cmd": []}),
        ("network", (1, 48), {"EnableIPv4": False, "EnableIPv6": True}, {"EnableIPv6": True}),
        ("create", (1, 25), {"HostConfig": {"AutoRemove": True}}, {"HostConfig": {}}),
        ("create", (1, 25), {"hostConfig": {"autoremove": True}}, {"hostConfig": {}}),
        (
            "create",
            (1, 44),
            {"MacAddress": "a", "NetworkingConfig": {"EndpointsConfig": {"n": {"MacAddress": "b"}}}},
            {"MacAddress": "a", "NetworkingConfig": {"EndpointsConfig": {"n": {}}}},
        ),
    ],
)
def test_a_body_before_and_since(body: str, since: Any, given: dict[str, Any], before: dict[str, Any]) -> None:
    for version, heeded in ((since, given), ((1, since[1] - 1), before)):
        found = copy.deepcopy(given)
        versions.heed(body, found, version)
        assert found == heeded


def test_what_a_version_warns_of() -> None:
    mounts = [{"Type": "volume", "Target": "/a"}, {"Type": "bind", "Source": "/", "Target": "/b"}]
    host = fields.HOST_CONFIG.read({"VolumeDriver": "local", "Mounts": mounts, "PortBindings": {"80/tcp": []}})
    assert create.warnings_of(host, (1, 47)) == []
    (driver,) = create.warnings_of(host, (1, 51))
    assert "volume-driver configuration is ignored" in driver
    assert create.warnings_of(host, (1, 52))[1].startswith(
        "Following container port(s) have an empty list of port-bindings: 80/tcp."
    )
    named = {**mounts[0], "VolumeOptions": {"DriverConfig": {"Name": "local"}}}
    host = fields.HOST_CONFIG.read({"VolumeDriver": "local", "Mounts": [named], "PortBindings": {"80/tcp": [{}]}})
    assert create.warnings_of(host, (1, 55)) == []


def test_a_container_in_the_shape_of_its_version(engine: Engine) -> None:
    web = engine.containers.get("web")
    web.image_manifest = ManifestDescriptor(
        media_type="m", digest="sha256:1", size=2, platform={"os": "linux", "architecture": "amd64"}
    )
    shown: dict[int, Any] = {
        minor: json.loads(json.dumps(containers.inspect(engine, web, False, (1, minor))))
        for minor in (24, 44, 45, 47, 48, 51, 52, 55)
    }
    descriptor = {
        "mediaType": "m",
        "digest": "sha256:1",
        "size": 2,
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    for minor, answer in shown.items():
        assert answer.get("ImageManifestDescriptor") == (descriptor if minor >= 48 else None)
        assert ("GraphDriver" in answer) == ("IPAddress" in answer["NetworkSettings"]) == (minor < 52)
        assert ("Storage" in answer) == (minor >= 52)
        assert all(("GwPriority" in one) == (minor >= 48) for one in answer["NetworkSettings"]["Networks"].values())
    assert set(shown[52]["NetworkSettings"]) == {"Networks", "Ports", "SandboxID", "SandboxKey"}
    assert shown[52]["Storage"] == {"RootFS": {"Snapshot": {"Name": engine.config["storage-driver"]}}}
    assert shown[52] == shown[55] and shown[24] == shown[44] and shown[45] == shown[47] and shown[48] == shown[51]
    # It is a part of the record, which is the same whichever version asked.
    assert json.loads(web.record())["image_manifest"] == descriptor


def test_aliases_that_older_versions_have(engine: Engine) -> None:
    web = engine.containers.get("web")
    settings = web.network_settings
    settings.networks = {"bridge": settings.networks["bridge"] if "bridge" in settings.networks else _endpoint()}
    settings.networks["mine"] = _endpoint(["w", web.id[:12]])
    for minor, aliases in ((44, ["w", web.id[:12], web.config.hostname]), (45, ["w", web.id[:12]])):
        found: Any = containers.inspect(engine, web, False, (1, minor))["NetworkSettings"]
        assert found["Networks"]["mine"]["Aliases"] == aliases
        assert web.id[:12] not in (found["Networks"]["bridge"]["Aliases"] or ())


def _endpoint(aliases: list[str] | None = None) -> Any:
    from teu.engine.containers.network_settings import EndpointSettings

    return EndpointSettings(aliases=aliases)


def test_rows_of_containers_in_the_shape_of_their_version(engine: Engine) -> None:
    web = engine.containers.get("web")
    web.host_config.annotations = {"a": "b"}
    assert web.state.health is not None
    for minor in (45, 46, 51, 52):
        row = containers.summary(web, "busybox")
        versions.fit("containers", [row], (1, minor))
        host: Any = row["HostConfig"]
        assert ("Annotations" in host) == (minor >= 46)
        health = {"Status": web.state.health.status, "FailingStreak": web.state.health.failing_streak}
        assert row.get("Health") == (health if minor >= 52 else None)


def test_an_image_in_the_shape_of_its_version() -> None:
    def shape(minor: int) -> Any:
        answer = {
            "Parent": "",
            "Comment": "c",
            "Author": "",
            "Container": "",
            "ContainerConfig": {},
            "GraphDriver": {},
            "VirtualSize": 1,
            "Size": 1,
            "Created": "",
            "Identity": {},
            "Config": images_view.container_config({"Cmd": ["x"], "User": ""}),
        }
        versions.fit("image", answer, (1, minor))
        return answer

    assert "VirtualSize" in shape(43) and "VirtualSize" not in shape(44) and "Created" not in shape(44)
    assert "ContainerConfig" in shape(44) and not {"Container", "ContainerConfig"} & set(shape(45))
    assert "Hostname" in shape(49)["Config"] and "Hostname" not in shape(50)["Config"]
    assert shape(51)["Config"]["User"] == "" and shape(52)["Config"] == {"Cmd": ["x"]}
    assert set(shape(52)) == {"Comment", "Size", "Config"} == set(shape(53)) - {"Identity"}


def test_what_a_network_has_to_give() -> None:
    network = ip_network("10.0.0.0/24")
    pool = Pool(network, network[1], ip_network("10.0.0.128/25"), [network[9]])
    assert pool.status() == {"IPsInUse": 4, "DynamicIPsAvailable": 127}  # the broadcast address is in the range
    pool.take()
    assert pool.status() == {"IPsInUse": 5, "DynamicIPsAvailable": 126}
    wide = ip_network("fd00::/48")
    assert Pool(wide, wide[1]).status() == {"IPsInUse": 2, "DynamicIPsAvailable": (1 << 64) - 1}
    for damage, minor, status in (
        ({}, 51, None),
        ({}, 52, {"IPAM": {}}),
        ({"Error": "x"}, 51, {"Error": "x"}),
    ):
        answer: dict[str, Any] = {"EnableIPv4": True, "Status": damage or {"IPAM": {}}}
        versions.fit("network", answer, (1, minor))
        assert answer.get("Status") == status


def request(accept: str = "", version: versions.Version = (1, 55), query: str = "until=1") -> Request:
    pairs = [("Accept", accept)] if accept else []
    return Request("GET", "/events", query, {}, version=version, pairs=pairs)


@pytest.mark.parametrize(
    ("accept", "version", "kind"),
    [
        ("", (1, 55), "application/jsonl"),
        ("", (1, 51), "application/json"),
        ("*/*, application/*", (1, 51), "application/json"),
        ("application/json-seq", (1, 51), "application/json"),
        ("application/json-seq", (1, 52), "application/json-seq"),
        ("application/json-seq, application/x-ndjson", (1, 52), "application/x-ndjson"),
        ("application/json-seq, application/x-ndjson;q=0.5", (1, 52), "application/json-seq"),
        ("application/x-ndjson;q=0, text/html", (1, 52), "application/jsonl"),
        ("application/x-ndjson;q=much", (1, 52), "application/jsonl"),
        ("Application/JSONL", (1, 52), "application/jsonl"),
    ],
)
def test_the_events_come_as_they_are_asked_for(accept: str, version: versions.Version, kind: str) -> None:
    house: Any = types.SimpleNamespace(events=Events())
    house.events.publish("container", "start", "abc", {"image": "busybox"})
    answer = routes.events(house, request(accept, version, "since=1&until=2000000000"))
    assert answer.headers["Content-Type"] == kind
    chunks = iter(answer.chunks or ())
    assert next(chunks) == b""
    line = next(chunks)
    assert line.startswith(b"\x1e") == (kind == "application/json-seq") and line.endswith(b"}\n")
    event = json.loads(line.lstrip(b"\x1e"))
    assert ({"status", "id", "from"} <= event.keys()) == (version < (1, 52))
    assert event["Actor"]["ID"] == "abc"
    assert answer.done is not None
    answer.done()
    assert house.events.subscribers() == 0


def test_events_that_older_versions_do_not_have() -> None:
    house: Any = types.SimpleNamespace(events=Events())
    house.events.publish("image", "create", "sha256:1", {"name": "sha256:1"})
    house.events.publish("image", "tag", "sha256:1", {"name": "a:b"})
    for minor, actions in ((45, ["tag"]), (46, ["create", "tag"])):
        answer = routes.events(house, request("", (1, minor), f"since=1&until={time.time() + 0.2:.3f}"))
        chunks = [chunk for chunk in answer.chunks or () if chunk]
        assert [json.loads(chunk)["Action"] for chunk in chunks] == actions


def test_no_offer_is_chosen_by_one_who_takes_anything() -> None:
    assert parameters.accepted(request("*/*"), ("a/b",)) == ""
    assert parameters.accepted(request("a/b;q=0.1, c/d"), ("a/b", "e/f")) == "a/b"
