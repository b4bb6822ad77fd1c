# SPDX-License-Identifier: Apache-2.0
"""When the engine may leave while containers run, and how systemd watches their output meanwhile."""

from __future__ import annotations

import os
import subprocess
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
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    made = parts.engine(tmp_path)
    monkeypatch.setattr(made.containerd, "wakes", lambda: True)
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


def test_one_that_is_started_anew_keeps_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """For its health, say, which no client waits for: the next engine would take it for one that a user has stopped."""
    container = parts.container(engine)
    seen: list[str] = []

    def start(*_: object) -> None:
        seen.append(idle.needs(engine, container, 0))
        assert not idle.idle(engine, 0)

    monkeypatch.setattr(run, "start", start)
    run.restart(engine, container, None)
    assert seen == ["it is started anew"] and idle.idle(engine, 0)


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
        self.failing = ""

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def start(self, bus: object, name: str) -> None:
        if self.failing and self.failing in name:
            raise BusError("org.freedesktop.systemd1.JobFailed", "failed")
        self.calls.append(("start", name))

    def restart(self, bus: object, name: str) -> None:
        self.calls.append(("restart", name))

    def stop(self, bus: object, name: str) -> None:
        self.calls.append(("stop", name))


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    found = Manager()
    monkeypatch.setattr(output, "FOLDER", str(tmp_path / "units"))
    monkeypatch.setattr(output, "Bus", lambda: found)
    monkeypatch.setattr(output, "start_unit", found.start)
    monkeypatch.setattr(output, "restart_unit", found.restart)
    monkeypatch.setattr(output, "stop_unit", found.stop)
    monkeypatch.setattr(output, "systemd_is_running", lambda: True)
    return found


def test_systemd_watches_and_gives_back(manager: Manager, tmp_path: Path) -> None:
    output.unwatch(going_down=False)
    assert not manager.calls and not output.is_watched(), "nobody is asked where nothing is watched"
    output.watch(
        ["/run/teu/a/stdout", "/run/teu/50%/stderr"], ["teu-1.scope", "a%b.service"], ["x.service", "y.service"]
    )
    assert output.is_watched()
    away, fifos = sorted((tmp_path / "units").iterdir())
    text = fifos.read_text()
    assert "ListenFIFO=/run/teu/a/stdout\nListenFIFO=/run/teu/50%%/stderr\n" in text and "SocketMode=0700\n" in text
    assert "Conflicts" not in text and "DefaultDependencies=no" in text, "no shutdown stops it"
    for unit in (text, away.read_text()):
        assert "IgnoreOnIsolate=yes\n" in unit.partition("\n[S")[0], "systemctl isolate stops no container either"
    assert fifos.name.startswith("teud-output@") and away.name.startswith("teud-away@")
    assert " teu-1.scope a%%b.service\n" in away.read_text()
    assert "systemctl start --job-mode=ignore-dependencies x.service " in away.read_text()
    assert "\nBindsTo=teu-1.scope\n" in away.read_text(), "a service would be started by it"
    assert f"[ -e {away} ] || exit 0;" in away.read_text() and "--no-block x.service y.service;;" in away.read_text()
    assert manager.calls == [("start", away.name), ("start", fifos.name)]
    manager.calls.clear()
    output.unwatch(going_down=False)
    service = fifos.name.replace(".socket", ".service")
    # Its socket would empty the FIFOs if it listened when it is to be stopped.
    at = manager.calls.index(("restart", service))
    assert manager.calls[at : at + 3] == [("restart", service), ("stop", fifos.name), ("stop", service)]
    assert ("stop", away.name) in manager.calls and not list((tmp_path / "units").iterdir())


def test_at_shutdown_a_daemon_that_is_just_leaving_is_started_once_it_has(manager: Manager, tmp_path: Path) -> None:
    """systemd takes no start of it before: the shutdown's stop is under way."""
    output.watch(["/run/teu/a/stdout"], [], ["leaving.service", "away.service"])
    away = next((tmp_path / "units").glob("teud-away@*"))
    line = away.read_text().partition("\nExecStop=-/bin/sh -c '")[2].partition("'\n")[0].replace("$$", "$")
    systemctl = """#!/bin/sh
        echo "$@" >>told
        case "$*" in
            is-system-running) echo stopping ;;
            *leaving.service) [ "$(grep -c leaving told)" = 3 ] ;;
            *) ;;
        esac"""
    for name, text in (("systemctl", systemctl), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", line], check=True, cwd=tmp_path, env={"PATH": path}, timeout=30)
    start = "start --job-mode=ignore-dependencies"
    told = (tmp_path / "told").read_text().splitlines()
    assert told == ["is-system-running", *[f"{start} leaving.service"] * 3, f"{start} away.service"]


def test_files_and_the_ruleset_are_watched_too(manager: Manager, tmp_path: Path) -> None:
    output.watch(["/run/a"], [], ["teud.service"], ["/etc/resolv.conf", "/run/50%"], rules=True)
    units = {path.name: path.read_text() for path in (tmp_path / "units").iterdir()}
    (files,) = (name for name in units if name.endswith(".path"))
    (rules,) = (name for name in units if "ListenNetlink=netfilter 64\n" in units[name])
    assert "PathChanged=/etc/resolv.conf\nPathChanged=/run/50%%\n" in units[files]
    for unit in (units[files], units[rules]):
        assert {"DefaultDependencies=no", "Conflicts=shutdown.target"} <= set(unit.split("\n")), "no stop is waited for"
    fifos = files.replace(".path", ".socket")
    assert f"Unit={fifos.replace('.socket', '.service')}\n" in units[files]
    assert "ListenFIFO" not in units[rules] and "OnFailure=teud.service\n" in units[rules], (
        "it is not to take those along"
    )
    assert {name for call, name in manager.calls if call == "start"} == units.keys()
    manager.calls.clear()
    output.unwatch(going_down=False)
    stops = [name for call, name in manager.calls if call == "stop"]
    assert units.keys() <= set(stops) and not list((tmp_path / "units").iterdir())
    assert stops.index(files) < manager.calls.index(("restart", fifos.replace(".socket", ".service")))


def test_at_shutdown_what_starts_the_engine_is_not_waited_for(manager: Manager, tmp_path: Path) -> None:
    """It waits for the engine."""
    output.watch(["/run/teu/a/stdout"], [], ["teud.service"])
    manager.calls.clear()
    output.unwatch(going_down=True)
    assert [call for call, name in manager.calls if name.startswith("teud-away@")] == []
    assert ("stop", "teud-output@") in [(call, name[:12]) for call, name in manager.calls]
    assert not output.is_watched()


@pytest.mark.parametrize("kind", ["socket", "service", "path"])
def test_what_cannot_be_watched_leaves_nothing(manager: Manager, tmp_path: Path, kind: str) -> None:
    manager.failing = kind
    with pytest.raises(BusError):
        output.watch(["/run/teu/a/stdout"], [], ["teud.service"], ["/etc/resolv.conf"])
    started = [name for call, name in manager.calls if call == "start"]
    assert [name for call, name in manager.calls if call == "stop"] == started[::-1]
    assert not list((tmp_path / "units").iterdir())


def test_the_unit_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {
        1: "/teu.slice/teu-1.scope/container",
        2: "/system.slice/web.service/teu-1/container",
        3: "/user.slice/user-0.slice/user@0.service/app.slice/x.scope",
        4: "/teu/plain",
        5: "/teu.slice/teu-5.scope/container/init.scope",
        6: "/system.slice/db.service/teu-6/container/system.slice/teud.service",
    }
    monkeypatch.setattr(idle.cgroup_files, "own", places.__getitem__)
    assert [idle.unit_of(pid) for pid in places] == [
        "teu-1.scope",
        "web.service",
        "user@0.service",
        "",
        "teu-5.scope",
        "db.service",
    ]
    monkeypatch.undo()
    assert idle.unit_of(2**22 + 1) == "", "it has gone"


def test_it_stays_where_nobody_would_tell_of_an_end(
    manager: Manager, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """containerd knows no engine that is away: restart policies and --rm would wait for the next client."""
    from teu.containerd.core.version import advertised
    from teu.engine.backend import containerd

    container = running(engine)
    asked = type(engine.containerd).wakes
    monkeypatch.setattr(engine.containerd, "wakes", lambda: asked(engine.containerd))
    told = [advertised()]
    version = SimpleNamespace(Version=lambda _, **__: SimpleNamespace(version=told[0]))
    monkeypatch.setattr(engine.containerd, "version", version, raising=False)
    for told[0] in ("1.7.24~ds1", "v2.1.4"):
        assert not idle.hand_over(engine, set()) and not manager.calls

    def away(_: object, **__: object) -> None:
        raise containerd.Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(version, "Version", away)
        assert not idle.hand_over(engine, set()) and not manager.calls
    told[0] = advertised()
    assert idle.hand_over(engine, set()) and manager.calls
    container.hub.discard()


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
    watched: set[idle.Pipe] = set()
    assert idle.hand_over(engine, watched) and not manager.calls, "nothing runs: nothing is to be watched"
    container = running(engine)
    manager.failing = "socket"
    assert not idle.hand_over(engine, watched) and not watched and not list((tmp_path / "units").iterdir())
    manager.failing = ""
    assert idle.hand_over(engine, watched) and {pipe.path for pipe in watched} == set(run.stdio_paths(container)[1:])
    (files,) = (tmp_path / "units").glob("*.path")
    assert "PathChanged=/etc/resolv.conf\n" in files.read_text()
    assert not any("Netlink" in path.read_text() for path in (tmp_path / "units").iterdir()), "there are no rules"
    calls = len(manager.calls)
    assert idle.hand_over(engine, watched) and len(manager.calls) == calls, "what is watched is watched"
    for path in run.stdio_paths(container)[1:]:
        os.rename(path, path + ".before")
    container.hub.discard()
    container.hub.open(run.stdio_paths(container))
    assert idle.hand_over(engine, watched) and len(manager.calls) > calls, "it was started anew meanwhile"
    idle.take_back(going_down=False)
    assert not list((tmp_path / "units").iterdir())
    container.hub.discard()


def test_a_path_that_no_unit_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be in a unit"):
        output.unit_text(["/run/a\nExecStartPre=/bin/true"])


def test_who_has_an_end_on_its_way_is_not_left(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit was told to this engine, which goes, and nobody would wake the next."""
    from teu.engine.backend import containerd, tasks

    assert idle.all_run(engine), "nobody is asked where nothing runs"
    container = running(engine)
    task = tasks.Task(container.id, container.pid, "RUNNING", tasks.Exit(0, 0))
    for known, well in (
        ({container.id: task}, True),
        ({container.id: task._replace(status="STOPPED")}, False),
        ({}, False),
    ):
        monkeypatch.setattr(tasks, "list_tasks", lambda _, known=known: known)
        assert idle.all_run(engine) == well

    def away(_: object, **__: object) -> None:
        raise containerd.Unavailable("away")

    monkeypatch.setattr(tasks, "list_tasks", away)
    assert not idle.all_run(engine)
    container.hub.discard()


def test_the_daemon_that_has_left_is_needed_at_once_or_not(
    tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come between the decision to go and the last connection is seen after it."""
    from teu.engine.backend import tasks
    from teu.engine.daemon import Daemon

    known: dict[str, tasks.Task] = {}
    monkeypatch.setattr(tasks, "list_tasks", lambda _: known)
    daemon = Daemon(parts.settings(tmp_path))
    engine = daemon.engine
    monkeypatch.setattr(engine.containerd, "wakes", lambda: True)
    engine.pump.start()
    assert daemon.left_idle(), "it never was ready: whoever waits for that is still there"
    engine.ready.set()
    engine.events.publish("container", "start", "x")
    assert not daemon.left_idle()
    assert Path(engine.exec_root, "idle").exists() and "start" in Path(engine.exec_root, "events").read_text()
    container = running(engine)
    known[container.id] = tasks.Task(container.id, container.pid, "RUNNING", tasks.Exit(0, 0))
    with monkeypatch.context() as patched:
        patched.setattr("teu.engine.daemon.host.is_going_down", lambda: True)
        assert not daemon.leave_idle(), "the sockets are about to be stopped, and would wake nobody"
    assert daemon.leave_idle() and not daemon.left_idle()
    container.health = SimpleNamespace(stop=lambda: None)
    assert daemon.left_idle(), "it was started at the last moment, with checks"
    container.health = None
    known.clear()
    assert daemon.left_idle(), "it has ended"
    container.hub.discard()
    daemon.stop()


def test_the_next_engine_is_called_by_a_connection(tmp_path: Path) -> None:
    import socket

    from teu.engine import main

    with socket.socket(socket.AF_UNIX) as held, socket.socket(socket.AF_INET) as other:
        for listener, place in ((held, str(tmp_path / "teud.sock")), (other, ("127.0.0.1", 0))):
            listener.bind(place)
            listener.listen()
        ours = [socket.socket(fileno=os.dup(listener.fileno())) for listener in (other, held)]
        addresses = [sock.getsockname() for sock in ours]
        for sock in ours:
            sock.close()
        main._knock(ours[1:], addresses[1:])
        held.settimeout(5)
        held.accept()[0].close()
        main._knock(ours[:1], addresses[:1])
        other.settimeout(5)
        other.accept()[0].close()
