# SPDX-License-Identifier: Apache-2.0
"""Log drivers that are docker's plugins, before one of our own: what it is told, what it gives back, and its deaths."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drivers import logs
from drivers.logplugin import LogPlugin

from teu.engine.core import plugins
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.logs import plugin as driver
from teu.engine.logs import registry
from teu.engine.logs.marker import Marker


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plugins, "SOCKETS", str(tmp_path / "plugins"))
    monkeypatch.setattr(plugins, "SPECIFICATIONS", ())
    monkeypatch.setattr(plugins, "_known", {})
    monkeypatch.setattr(plugins, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(driver, "FOLDER", str(tmp_path / "logging"))
    (tmp_path / "plugins").mkdir()
    (tmp_path / "c").mkdir()
    return tmp_path


@pytest.fixture
def house(folders: Path) -> Iterator[LogPlugin]:
    plugin = LogPlugin(folders / "plugins" / "house.sock")
    yield plugin
    plugin.close()


def run(folders: Path, **options: str) -> logs.Run:
    return logs.Run(folders / "c", "house", {key.replace("_", "-"): value for key, value in options.items()})


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + logs.SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_a_plugin_is_told(folders: Path, house: LogPlugin) -> None:
    made = run(folders, anything="it knows", tag="t")
    made.driver.open()
    ((started),) = house.of("StartLogging")
    path = started["File"]
    assert stat.S_ISFIFO(os.stat(path).st_mode) and os.path.dirname(path) == str(folders / "logging")
    source = made.source
    assert started["Info"] == {
        "Config": {"anything": "it knows", "tag": "t"},
        "ContainerID": source.id,
        "ContainerName": "/web",
        "ContainerEntrypoint": "sh",
        "ContainerArgs": ["-c", "true"],
        "ContainerImageID": source.image_id,
        "ContainerImageName": "busybox",
        "ContainerCreated": "2026-01-02T03:04:05.000000006Z",
        "ContainerEnv": ["A=1"],
        "ContainerLabels": {"l": 'v"'},
        "LogPath": "",
        "DaemonName": "teud",
    }
    made.log(1, b"one\n")
    made.log(2, b"two\n")
    until(lambda: house.lines(source.id) == [b"one", b"two"])
    made.driver.flush()
    until(lambda: house.of("StopLogging") == [{"File": path}] and not os.path.exists(path))
    made.log(1, b"next run\n")
    until(lambda: house.lines(source.id)[-1] == b"next run")
    assert len(house.of("StartLogging")) == 2


def test_what_a_plugin_has_is_asked_of_it(folders: Path, house: LogPlugin) -> None:
    made = run(folders)
    made.log(1, b"one\ntwo\n")
    made.log(2, b"three\n")
    until(lambda: len(house.lines(made.source.id)) == 3)
    assert made.text() == b"one\ntwo\nthree\n"
    assert made.text(stdout=False) == b"three\n"
    assert made.text(tail=1) == b"three\n"
    assert made.text(since=time.time_ns()) == b"" and made.text(until=1) == b""
    assert made.text(timestamps=True, tail=1).endswith(b"Z three\n")
    assert house.of("ReadLogs")[0]["Config"] == {
        "Since": "0001-01-01T00:00:00Z",
        "Until": "0001-01-01T00:00:00Z",
        "Tail": -1,
        "Follow": False,
    }
    assert list((folders / "c").iterdir()) == [] and registry.readable(made.source)
    made.driver.flush()
    assert made.text(follow=True) == b"one\ntwo\nthree\n"


def test_of_one_that_cannot_be_read_from_there_is_a_copy(folders: Path, house: LogPlugin) -> None:
    house.reads = False
    made = run(folders)
    made.log(1, b"one\n")
    assert made.text() == b"one\n" and not house.of("ReadLogs")
    assert registry.readable(made.source)
    assert not registry.readable(made.source._replace(options={"cache-disabled": "true"}))
    house.close()
    (folders / "plugins" / "house.sock").unlink()
    assert made.text() == b"one\n"
    again = registry.create(made.source)
    assert again is not None
    made.driver = again
    assert made.text() == b"one\n"
    with pytest.raises(EngineError, match='plugin "house" not found'):
        made.driver.open()


def test_output_waits_for_a_plugin_that_does_not_read(folders: Path, house: LogPlugin) -> None:
    made = run(folders)
    house.slow.clear()
    line = 15000 * b"x" + b"\n"
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        made.driver.write(1, line, False, Marker(None))
        time.sleep(0.001)
    assert made.driver.stalled
    house.slow.set()
    made.log(1, line)  # the one that waits
    made.log(1, b"last\n")
    until(lambda: house.lines(made.source.id)[-1] == b"last")
    made.driver.remove()


def test_fifos_of_a_killed_engine_are_removed(folders: Path, house: LogPlugin) -> None:
    made = run(folders)
    made.driver.open()
    (first,) = (folders / "logging").iterdir()
    again = registry.create(made.source)
    assert again is not None
    again.open()
    (second,) = (folders / "logging").iterdir()
    assert first != second


def test_who_is_no_log_plugin_is_refused(folders: Path) -> None:
    with pytest.raises(BadRequest, match="no log driver named 'house' is registered"):
        registry.check("house", {})
    plugin = LogPlugin(folders / "plugins" / "house.sock")
    registry.check("house", {"its": "own", "mode": "non-blocking"})
    for options in ({"mode": "x"}, {"tag": "{{"}, {"cache-disabled": "x"}):
        with pytest.raises(BadRequest):
            registry.check("house", options)
    assert registry.for_the_default("house", {"any": "thing"}, []) == {"any": "thing"}
    plugin.close()
    plugins._known.clear()
    with pytest.raises(BadRequest, match="error looking up logging plugin house"):
        registry.check("house", {})
