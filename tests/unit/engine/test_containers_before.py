# SPDX-License-Identifier: Apache-2.0
"""An engine.db with containers that a teud wrote before its records had types, and what `inspect` of that one said.
(The folder of its engine is called FOLDER.)"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.containers import boot, records
from teu.engine.containers.model import Container
from teu.engine.containers.state import MountOptions, Probe
from teu.engine.core.fields import HealthCheck, RestartPolicy, Ulimit
from teu.engine.engine import Engine
from teu.engine.views import containers


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = parts.engine_before(tmp_path, "containers.sql")
    yield engine
    engine.database.close()


def given(value: Any) -> Any:
    """Without what is null, which is as good as absent in a record."""
    if isinstance(value, dict):
        return {key: given(item) for key, item in value.items() if item is not None}
    return [given(item) for item in value] if isinstance(value, list) else value


def test_containers_are_what_they_were(engine: Engine, tmp_path: Path) -> None:
    before = json.loads((parts.BEFORE / "inspect.json").read_text().replace("FOLDER", str(tmp_path)))
    assert {container.name for container in engine.containers.all()} == set(before) == {"plain", "web", "done"}
    for name, answer in before.items():
        container = engine.containers.get(name)
        assert not container.damage
        assert json.loads(json.dumps(containers.inspect(engine, container, False, (1, 45)))) == answer


def test_their_records_have_types(engine: Engine) -> None:
    web, done = engine.containers.get("web"), engine.containers.get("done")
    assert web.config.healthcheck == HealthCheck(test=["CMD-SHELL", "exit 0"], retries=2, interval=5_000_000_000)
    assert web.host_config.restart_policy == RestartPolicy(name="on-failure", maximum_retry_count=3)
    assert web.host_config.ulimits == [Ulimit(name="nofile", soft=5, hard=6), Ulimit(name="core")]
    assert web.state.health is not None and [probe.output for probe in web.state.health.log] == ["fine\n"]
    assert isinstance(web.state.health.log[0], Probe)
    points = {point.destination: point for point in web.mounts}
    assert (points["/host"].rw, points["/host"].options.shallow, points["/host"].options.create) == (False, False, True)
    assert points["/part"].options == MountOptions(subpath="a/b")
    assert points["/data"].options == MountOptions(copy_image=True)
    assert points["/t"].options.tmpfs and "mode=700" in points["/t"].options.tmpfs
    assert (web.pid_started, web.running, web.pid) == (77, True, 4711)
    assert (done.ended, done.manually_stopped, done.state.oom_killed) == ((3, 1767571200000000000), True, True)


def test_they_are_written_as_before(engine: Engine) -> None:
    """So a teud that is older can be installed again."""
    for row in engine.database.query("SELECT id, name, data FROM containers"):
        before, after = json.loads(row["data"]), json.loads(engine.containers.get(row["id"]).record())
        assert before.pop("ports_exposed") == {}  # never had anything in it
        assert before.pop("network_settings")["Networks"].keys() == after.pop("network_settings")["Networks"].keys()
        for point in before["mounts"]:
            options = after["mounts"][before["mounts"].index(point)]["Options"]
            assert not any(options[key] for key in options.keys() - point.get("Options", {}).keys())
            point["Options"] = {**options, **point.get("Options", {})}
        assert given(after) == given(before)
        assert records.container(row["id"], row["name"], json.dumps(after))[1] == []


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in inner:
        yield from places(item, (*path, step))


POISONS = (None, True, -1, 1 << 70, 0.5, "text", "\ud800", "0001", [], [None, 5], {}, {"a": [5]})


@pytest.mark.parametrize("name", ["plain", "web", "done"])
def test_no_value_in_a_record_stops_the_engine(engine: Engine, name: str) -> None:
    """Wherever it stands: the container is there, listed, shown and removed."""
    row = engine.database.query("SELECT id, name, data FROM containers WHERE name = ?", (name,))[0]
    whole = json.loads(row["data"])
    members = {key: value for key, value in whole.items() if key != "network_settings"}
    for number, path in enumerate(places(members)):
        for poison in POISONS[number % 3 :: 3] if len(path) > 1 else POISONS:
            broken = json.loads(row["data"])
            place = broken
            for step in path[:-1]:
                place = place[step]
            if path:
                place[path[-1]] = poison
            else:
                broken = poison
            read, faults, known = records.container(row["id"], row["name"], json.dumps(broken))
            container = Container(engine.containers._around, read, "it is damaged" if faults else "")
            assert known and container.name == name
            assert json.dumps(containers.inspect(engine, container, False)).encode()
            assert containers.summary(container, "busybox")
            assert container.record().encode() and container.log_source()
            assert boot.starts_again(container) in (True, False)


def test_what_a_newer_teud_wrote_is_kept(engine: Engine) -> None:
    row = engine.database.query("SELECT id, name, data FROM containers WHERE name = 'web'")[0]
    newer = json.loads(row["data"])
    for part in (newer["config"], newer["host_config"], newer["state"], newer["mounts"][0]):
        part["Colour"] = {"of": ["the", "sky"]}
    read, faults, _ = records.container(row["id"], row["name"], json.dumps(newer))
    assert not faults
    after = json.loads(engine.containers.make(read).record())
    for part in (after["config"], after["host_config"], after["state"], after["mounts"][0]):
        assert part["Colour"] == {"of": ["the", "sky"]}
