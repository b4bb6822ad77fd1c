# SPDX-License-Identifier: Apache-2.0
"""When the engine may leave while containers run, and how systemd watches their output meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.containers.model import Container
from teu.engine.core.times import timestamp
from teu.engine.engine import Engine
from teu.engine.lifecycle import idle, run
from teu.systemd import output
from teu.systemd.bus import BusError


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = parts.engine(tmp_path)
    made.pump.start()
    yield made
    made.pump.stop()


def running(engine: Engine, name: str = "web", **more: Any) -> Container:
    """One whose FIFOs are read."""
    container = parts.container(engine, name, **more)
    container.state.runs(2**22 + 1, timestamp())
    for folder in (container.runtime_directory, container.directory):
        Path(folder).mkdir(parents=True)
    container.hub.open(run.stdio_paths(container), run.marker_path(container))
    container.hub.begin()
    return container


def writer(container: Container, stream: str = "stdout") -> int:
    return os.open(f"{container.runtime_directory}/{stream}", os.O_RDWR | os.O_NONBLOCK)


def test_a_quiet_container_needs_nobody(engine: Engine) -> None:
    container = running(engine)
    assert idle.needs(engine, container, 60) == "" and idle.idle(engine, 60)
    container.hub.discard()


def test_one_that_does_not_run_needs_nobody(engine: Engine) -> None:
    assert idle.needs(engine, parts.container(engine), 60) == ""


def test_output_has_to_be_over_and_whole(engine: Engine) -> None:
    container = running(engine)
    out = writer(container)
    os.write(out, b"a line\n")
    deadline = time.monotonic() + 20
    while not Path(container.directory, f"{container.id}-json.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert "quiet" in idle.needs(engine, container, 60)
    assert idle.needs(engine, container, 0) == ""
    os.write(out, b"half")
    while container.hub.quiet(time.monotonic()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert "middle of a line" in idle.needs(engine, container, 0), "it would wake the engine at once"
    os.close(out)
    container.hub.discard()


def test_who_needs_the_engine_keeps_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    container = running(engine)
    container.state.restarting = True
    assert "start" in idle.needs(engine, container, 0)
    container.state.restarting = False
    container.health = SimpleNamespace(stop=lambda: None)
    assert "health" in idle.needs(engine, container, 0)
    container.health = None
    going: Any = SimpleNamespace(ended=SimpleNamespace(is_set=lambda: False))
    container.execs["x"] = going
    assert "process" in idle.needs(engine, container, 0)
    container.execs.clear()
    with monkeypatch.context() as patched:
        patched.setattr(engine.endpoints, "serves", lambda _: True)
        assert "ports" in idle.needs(engine, container, 0)
    for kind, options in (("syslog", {}), ("json-file", {"mode": "non-blocking"})):
        container.host_config.log_config.type = kind
        container.host_config.log_config.config = options
        assert "log" in idle.needs(engine, container, 0)
    container.hub.discard()


def test_networks_keep_it_where_it_serves_them(engine: Engine) -> None:
    from teu.engine.networks.model import Active

    container = parts.container(engine, "web")
    endpoints = engine.endpoints
    assert not endpoints.serves(container)
    active = endpoints._active[container.id] = Active()
    assert not endpoints.serves(container)
    active.named = True
    assert endpoints.serves(container)
    container.state.runs(2**22 + 1, timestamp())
    beside = parts.container(engine, "beside", NetworkMode=f"container:{container.id}")
    assert endpoints.serves(beside)
    active.named = False
    assert not endpoints.serves(beside)
    active.published.append(SimpleNamespace())  # type: ignore[arg-type]
    assert endpoints.serves(beside)


# -- systemd --


class Manager:
    """The calls of systemd's manager."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.failing = False

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def start(self, bus: object, name: str) -> None:
        if self.failing:
            raise BusError("org.freedesktop.systemd1.JobFailed", "failed")
        self.calls.append(("start", name))

    def stop(self, bus: object, name: str) -> None:
        self.calls.append(("stop", name))


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    found = Manager()
    monkeypatch.setattr(output, "FOLDER", str(tmp_path / "units"))
    monkeypatch.setattr(output, "Bus", lambda: found)
    monkeypatch.setattr(output, "start_unit", found.start)
    monkeypatch.setattr(output, "stop_unit", found.stop)
    monkeypatch.setattr(output, "systemd_is_running", lambda: True)
    return found


def test_systemd_watches_and_gives_back(manager: Manager, tmp_path: Path) -> None:
    output.unwatch()
    assert not manager.calls, "nobody is asked where nothing is watched"
    output.watch(["/run/teu/a/stdout", "/run/teu/50%/stderr"])
    (unit,) = (tmp_path / "units").iterdir()
    text = unit.read_text()
    assert "ListenFIFO=/run/teu/a/stdout\nListenFIFO=/run/teu/50%%/stderr\n" in text and "SocketMode=0700\n" in text
    assert unit.name.startswith("teud-output@") and manager.calls == [("start", unit.name)]
    output.unwatch()
    assert manager.calls[1:] == [("stop", unit.name)] and not list((tmp_path / "units").iterdir())


def test_the_unit_that_it_starts_is_shipped() -> None:
    top = Path(__file__).parents[3]
    assert "systemctl start teud.service" in (top / "systemd/teud-output@.service").read_text()
    assert "systemd/teud-output@.service " in (top / "packaging/debian/teu.install").read_text()


def test_the_mode_of_fifos_is_the_one_that_systemd_takes(engine: Engine) -> None:
    container = running(engine)
    for path in run.stdio_paths(container)[1:]:
        assert os.stat(path).st_mode & 0o777 == output.MODE
    container.hub.discard()


def test_an_engine_that_cannot_hand_over_stays(manager: Manager, engine: Engine, tmp_path: Path) -> None:
    watched: set[str] = set()
    assert idle.hand_over(engine, watched) and not manager.calls, "nothing runs: nothing is to be watched"
    container = running(engine)
    manager.failing = True
    assert not idle.hand_over(engine, watched) and not watched and not list((tmp_path / "units").iterdir())
    manager.failing = False
    assert idle.hand_over(engine, watched) and watched == set(run.stdio_paths(container)[1:])
    assert idle.hand_over(engine, watched) and len(manager.calls) == 1, "what is watched is watched"
    idle.take_back()
    assert not list((tmp_path / "units").iterdir())
    container.hub.discard()


def test_a_path_that_no_unit_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be in a unit"):
        output.unit_text(["/run/a\nExecStartPre=/bin/true"])
