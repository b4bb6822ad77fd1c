# SPDX-License-Identifier: Apache-2.0
"""Records as they are read, and the store of containers over a real engine.db: names, out of memory, what ends."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teu.engine.containers import hostconfig, names, records
from teu.engine.containers.boot import Boot
from teu.engine.containers.state import SAVED, Saved
from teu.engine.containers.store import Containers
from teu.engine.core import fields
from teu.engine.core.database import Database
from teu.engine.core.errors import BadRequest, Conflict, NotFound, Unreadable
from teu.engine.core.fields import Config, HostConfig
from teu.engine.lifecycle import run
from teu.engine.lifecycle.monitor import Monitor


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    result: Any = SimpleNamespace(
        data_root=str(tmp_path),
        exec_root=str(tmp_path),
        database=Database(str(tmp_path / "engine.db")),
        events=SimpleNamespace(publish=lambda *_: None),
        containerd=SimpleNamespace(untidy=threading.Event()),
        config={"log-driver": "json-file"},
        stopping=threading.Event(),
    )
    boot = Boot(str(tmp_path), str(tmp_path))
    around: Any = SimpleNamespace(**vars(result), boot=boot, pump=None)
    result.containers = Containers(around, boot, result.containerd.untidy)
    return result


def record(number: int = 1, name: str = "") -> Saved:
    return Saved(
        id=f"{number:064x}",
        name=name or f"name{number}",
        created="2026-01-01T00:00:00.000000001Z",
        config=Config(image="busybox"),
        host_config=hostconfig.clean_host_config(HostConfig(), "json-file", {}),
    )


def as_json() -> dict[str, Any]:
    """As it stands in engine.db."""
    saved: dict[str, Any] = json.loads(json.dumps(SAVED.write(record())))
    return saved


def test_what_is_written_is_read_back_without_a_fault(engine: Any) -> None:
    container = engine.containers.make(record())
    engine.containers.add(container)
    read, faults, known = records.container(container.id, container.name, container.record())
    assert (faults, known) == ([], True)
    again = engine.containers.make(read)
    assert again.record() == container.record()
    assert (again.config, again.host_config, again.state) == (container.config, container.host_config, container.state)


def test_a_record_of_an_older_engine_gets_defaults() -> None:
    old = as_json()
    for key in ("CgroupnsMode", "PublishAllPorts", "ShmSize"):
        del old["host_config"][key]
    read, faults, _known = records.container(old["id"], old["name"], json.dumps(old))
    assert not faults
    assert read.host_config.shm_size == 64 << 20
    assert read.state.running is False


@pytest.mark.parametrize("seed", range(40))
def test_any_json_is_read(engine: Any, seed: int) -> None:
    """Whatever stands there: there is a record, of the shape that everybody relies on, and it can be written."""
    dice = random.Random(seed)

    def anything(depth: int = 0) -> Any:
        kind = dice.randrange(9 if depth < 4 else 6)
        if kind > 5:
            keys = [*Saved.members, "x", "\ud800"] if not depth else ["a", "Type", "Test", "Name", "Config"]
            return dice.choice([{dice.choice(keys): anything(depth + 1) for _ in range(5)}, [anything(depth + 1)]])
        return [None, True, dice.randrange(-5, 1 << 70), "text", "\udfff", 0.5][kind]

    broken = as_json()
    place = dice.choice([broken, broken["config"], broken["host_config"]])
    for key in dice.sample(sorted(place), min(5, len(place))):
        place[key] = anything(1)
    text = json.dumps(broken if seed % 4 else anything())
    read, _faults, _known = records.container(f"{1:064x}", "good", text)
    engine.containers.make(read).record().encode()
    config, host = fields.CONFIG.write(read.config), fields.HOST_CONFIG.write(read.host_config)
    for written, fields_of in ((config, fields.CONFIG.fields), (host, fields.HOST_CONFIG.fields)):
        for key in written.keys() & fields_of.keys():
            if written[key] is not None:
                fields_of[key].kind.read(written[key], key)  # as the API would
    container = engine.containers.make(read)
    assert container.log_type
    assert container.running in (True, False)
    assert isinstance(container.pid, int)


def test_no_two_get_the_same_name(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of our choice are chosen before they are reserved: who comes second gets another one."""
    monkeypatch.setattr(names, "pick", lambda: "calm_bay")
    made = [engine.containers.make(record(number, engine.containers.random_name())) for number in range(8)]
    assert {container.name for container in made} == {"calm_bay"}
    threads = [threading.Thread(target=engine.containers.add, args=(one, False)) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({container.name for container in engine.containers.all()}) == 8
    rows = engine.database.query("SELECT name, data FROM containers")
    assert all(json.loads(row["data"])["name"] == row["name"] for row in rows)
    with pytest.raises(Conflict):
        engine.containers.add(engine.containers.make(record(99, "calm_bay")))


def test_a_removed_container_is_not_renamed(engine: Any) -> None:
    container = engine.containers.make(record())
    engine.containers.add(container)
    engine.containers.remove(container)
    container.removed = True
    with pytest.raises(NotFound):
        engine.containers.rename(container, "other")
    engine.containers.check_name("other")


def test_a_restart_that_is_done_leaves_another_its_protection(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two restarts at once of an --rm container: its end while the second one stops it is not its end."""
    container = engine.containers.make(record())
    container.host_config.auto_remove = True
    container.state.running = True
    assert container.auto_remove
    both, second = threading.Barrier(2), threading.Event()
    seen = []

    def stop(_engine: Any, _container: Any, timeout: int | None, _signal: str) -> None:
        both.wait(30)
        if timeout == 2:
            second.wait(30)
            seen.append(container.auto_remove)

    monkeypatch.setattr(run, "stop", stop)
    monkeypatch.setattr(run, "start", lambda *_: None)
    threads = [threading.Thread(target=run.restart, args=(engine, container, timeout)) for timeout in (1, 2)]
    for thread in threads:
        thread.start()
    threads[0].join()
    second.set()
    threads[1].join()
    assert seen == [False]
    assert container.auto_remove


def test_out_of_memory_is_saved(engine: Any) -> None:
    from google.protobuf.any_pb2 import Any as Wrapped

    from teu.api.events import task_pb2
    from teu.api.types import event_pb2

    container = engine.containers.make(record())
    container.state.at_once(running=True, pid=4711)
    engine.containers.add(container)
    event = Wrapped(value=task_pb2.TaskOOM(container_id=container.id).SerializeToString())
    Monitor(engine)._event(event_pb2.Envelope(topic="/tasks/oom", event=event))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        saved = json.loads(engine.database.query("SELECT data FROM containers")[0]["data"])
        if saved["state"]["OOMKilled"]:
            break
        time.sleep(0.01)
    assert saved["state"]["OOMKilled"]


def test_out_of_memory_is_learnt_of_cgroups() -> None:
    """What nobody heard of, for nobody was there: of those that are asked about, and that tell it."""
    from teu.api.cgroups.v2 import metrics_pb2
    from teu.api.services.tasks.v1 import tasks_pb2
    from teu.engine.backend import tasks

    asked: list[list[str]] = []

    def metrics(request: tasks_pb2.MetricsRequest, timeout: float = 60.0) -> tasks_pb2.MetricsResponse:
        assert timeout < 10, "containers that are to run again wait for it at the start"
        asked.append(list(request.filters))
        answer = tasks_pb2.MetricsResponse()
        for id, kills in (("a", 0), ("b", 2), ("c", None)):
            metric = answer.metrics.add(id=id)
            if kills is not None:
                figures = metrics_pb2.Metrics(memory_events=metrics_pb2.MemoryEvents(oom_kill=kills, oom=5))
                metric.data.type_url = "types.containerd.io/io.containerd.cgroups.v2.Metrics"
                metric.data.value = figures.SerializeToString()
        return answer

    client: Any = SimpleNamespace(tasks=SimpleNamespace(Metrics=metrics))
    assert tasks.short_of_memory(client, []) == set() and not asked
    assert tasks.short_of_memory(client, ["a", "b", "c"]) == {"b"}
    assert asked == [["id==a", "id==b", "id==c"]]


def test_a_full_disk_is_not_a_damaged_file(engine: Any) -> None:
    import sqlite3

    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    with pytest.raises(sqlite3.OperationalError), engine.database._telling():
        raise error
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorname = "SQLITE_CORRUPT_INDEX"
    with pytest.raises(Unreadable, match=r"engine.db is damaged.*sqlite3 .* \.recover"), engine.database._telling():
        raise error


def test_what_could_not_be_read_back_has_words() -> None:
    broken = as_json()
    broken["config"]["Labels"] = {"half": "\ud800"}
    faults = records.container(broken["id"], broken["name"], json.dumps(broken))[1]
    assert faults == ["config.Labels.half is a string with half of a character (a lone surrogate), not a text"]
    assert BadRequest(faults[0]).status == 400
