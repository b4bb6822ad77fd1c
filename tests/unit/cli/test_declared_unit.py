# SPDX-License-Identifier: Apache-2.0
"""teu-unit: the request that it makes, secrets, what a container may say, and the end."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from prepared import Daemon, Later

from teu.cli.command import GLOBAL_FLAGS, Cli
from teu.cli.declared import unit, watch
from teu.cli.errors import CommandError
from teu.cli.options import Options, parse, parse_table


def read(*words: str) -> Options:
    return parse(parse_table(unit.TABLES["container"]), list(words), interspersed=False)[0]


def request(*words: str) -> dict[str, Any]:
    return unit.body(read(*words), "busybox", ["sh"])


def client(tmp_path: Path) -> Cli:
    words = ["--host", f"unix://{tmp_path}/teud.sock", "--config", str(tmp_path)]
    options, _ = parse(parse_table(GLOBAL_FLAGS), words)
    return Cli(options)


def test_entry_points_and_checks_may_be_lists() -> None:
    made = request('--entrypoint=["/a","b c"]', '--health-cmd=["/x","y"]', "--health-interval=5s")
    assert made["Entrypoint"] == ["/a", "b c"] and made["Healthcheck"]["Test"] == ["CMD", "/x", "y"]
    assert request("--entrypoint=/a")["Entrypoint"] == ["/a"]
    with pytest.raises(ValueError, match="no list of words"):
        request("--entrypoint=[1]")


def test_masked_paths() -> None:
    host = request("--mask=/a:/b", "--unmask=/proc/kcore:/proc/sys")["HostConfig"]
    assert {"/a", "/b", "/proc/keys"} <= set(host["MaskedPaths"]) and "/proc/kcore" not in host["MaskedPaths"]
    assert "/proc/sys" not in host["ReadonlyPaths"]
    host = request("--unmask=ALL")["HostConfig"]
    assert (host["MaskedPaths"], host["ReadonlyPaths"]) == ([], [])


def test_a_read_only_root_has_places_to_write() -> None:
    host = request("--read-only", "--volume=/x:/run", "--tmpfs=/tmp:size=1m")["HostConfig"]
    assert host["Tmpfs"] == {"/tmp": "size=1m", "/var/tmp": "rw,nosuid,nodev"}
    assert not request("--read-only", "--read-only-tmpfs=false")["HostConfig"].get("Tmpfs")


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    devices = request("--device-if-there=/dev/null:/dev/x", f"--device-if-there={tmp_path}/none")["HostConfig"][
        "Devices"
    ]
    assert [device["PathInContainer"] for device in devices] == ["/dev/x"]


def test_a_time_zone_that_is_none() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        request("--tz=../../etc/passwd")


def test_environment_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_UNIT", "1")
    monkeypatch.setenv("http_proxy", "http://x")
    monkeypatch.setenv("GIVEN", "host")
    made: dict[str, Any] = {"Env": ["GIVEN=mine"]}
    unit.add_environment(made, read("--env-host"))
    assert "OF_THE_UNIT=1" in made["Env"] and made["Env"][0] == "GIVEN=mine" and "GIVEN=host" not in made["Env"]
    assert not any(one.startswith("PATH=") for one in made["Env"])
    made = {}
    unit.add_environment(made, read("--http-proxy"))
    assert made["Env"] == ["http_proxy=http://x"]


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, folder = tmp_path / "given", tmp_path / "unit"
    given.mkdir()
    folder.mkdir()
    for name in ("db", "key", "plain", "far"):
        (given / name).write_text(f"secret of {name}")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    made: dict[str, Any] = {"HostConfig": {}}
    values = ["db,type=env,target=DB", "key,target=other,mode=0400", "far,target=/etc/far"]
    unit.add_secrets(made, values, str(folder))
    assert made["Env"] == ["DB=secret of db", "CREDENTIALS_DIRECTORY=/run/secrets"]
    inside = folder / "run/secrets"
    assert sorted(os.listdir(inside)) == ["other", "plain"]
    assert (inside / "other").read_text() == "secret of key" and (inside / "other").stat().st_mode & 0o777 == 0o400
    assert (inside / "plain").stat().st_mode & 0o777 == 0o444
    assert made["HostConfig"]["Binds"] == [f"{folder}/secret-1:/etc/far:ro", f"{inside}:/run/secrets:ro"] or made[
        "HostConfig"
    ]["Binds"] == [f"{folder}/secret-2:/etc/far:ro", f"{inside}:/run/secrets:ro"]
    unit.forget(str(folder))
    assert not folder.exists()


def test_a_secret_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(CommandError, match="LoadCredential=db"):
        unit.add_secrets({"HostConfig": {}}, ["db"], str(tmp_path))
    for wrong in ("db,colour=red", "db,type=door", "db,uid=x"):
        with pytest.raises(ValueError):
            unit.Secret(wrong)


def test_sockets_that_systemd_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_FDNAMES", "a:b")
    made: dict[str, Any] = {"HostConfig": {}}
    unit.add_descriptors(made)
    pid, began, count = made["HostConfig"]["Annotations"][unit.DESCRIPTORS].split(":")
    assert (pid, count) == (str(os.getpid()), "2") and began.isdecimal() and made["Env"] == ["LISTEN_FDNAMES=a:b"]
    monkeypatch.setenv("LISTEN_PID", "1")
    made = {"HostConfig": {}}
    unit.add_descriptors(made)
    assert made == {"HostConfig": {}}


def test_outside_of_a_unit_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit.cgroup_files, "text", lambda *_: "0::/user.slice/session-1.scope\n")
    with pytest.raises(CommandError, match="started by systemd"):
        unit.own_cgroup()
    for wrong in ("", "a/b", ".x"):
        with pytest.raises(CommandError, match="--unit"):
            unit.runtime_folder(wrong)


def test_only_the_units_own_container_is_replaced(daemon: Daemon, tmp_path: Path) -> None:
    daemon.on("GET", "/containers/web/json", {"Id": "1" * 64, "Config": {"Labels": {"io.teu.unit": "web.service"}}})
    daemon.on("DELETE", f"/containers/{'1' * 64}")
    unit.remove(client(tmp_path), "web", "web.service")
    assert daemon.last.query == {"force": "1", "v": "1"}
    with pytest.raises(CommandError, match="the name web is taken"):
        unit.remove(client(tmp_path), "web", "other.service")
    unit.remove(client(tmp_path), "none", "web.service")
    options = Options()
    options["unit"] = "other.service"
    assert unit.remove_what_is_left(client(tmp_path), options, ["web"]) == 0


def test_a_missing_image_is_pulled_if_that_is_wanted(daemon: Daemon, tmp_path: Path) -> None:
    answers: list[Any] = [(404, "No such image: busybox:latest"), {"Id": "2" * 64, "Warnings": []}]
    daemon.on("POST", "/containers/create", lambda _: answers.pop(0))
    daemon.on("POST", "/images/create", {"status": "done"})
    assert unit.create(client(tmp_path), read("--name=web"), {"Image": "busybox"}) == "2" * 64
    assert "POST /images/create" in daemon.calls()
    answers[:] = [(404, "No such image: busybox:latest")]
    with pytest.raises(Exception, match="No such image"):
        unit.create(client(tmp_path), read("--name=web", "--pull=never"), {"Image": "busybox"})


def test_owners_of_volumes() -> None:
    assert (unit.owner("root", "user"), unit.owner("7", "group"), unit.owner("", "user")) == (0, 7, -1)
    with pytest.raises(CommandError, match="no group"):
        unit.owner("there-is-none", "group")


def watching(tmp_path: Path, *words: str) -> watch.Watch:
    found = watch.Watch(client(tmp_path), read(*words), str(tmp_path))
    found.id, found.path = "3" * 64, "/containers/web"
    return found


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """systemd's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "systemd"))
        end.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "systemd"))
        yield end


def test_a_container_may_not_name_processes(tmp_path: Path, manager: socket.socket) -> None:
    found = watching(tmp_path, "--notify=container")
    found.listen()
    read_end, write_end = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as container:
        container.connect(str(tmp_path / "notify"))
        container.send(b"MAINPID=1\nREADY=1\nSTATUS=well\nNOTIFYACCESS=all")
        socket.send_fds(container, [b"BARRIER=1"], [write_end])
        container.send(b"MAINPID=1")
    os.close(write_end)
    before = len(os.listdir("/proc/self/fd"))
    assert found.inbox is not None and found.inbox.hand_on()
    assert manager.recv(4096) == b"READY=1\nSTATUS=well"
    message, descriptors, _, _ = socket.recv_fds(manager, 4096, 4)
    assert message == b"BARRIER=1" and len(descriptors) == 1
    os.close(descriptors[0])
    assert os.read(read_end, 1) == b"", "our copy of the barrier is closed"
    os.close(read_end)
    assert len(os.listdir("/proc/self/fd")) <= before
    found.inbox.close()


def ended(daemon: Daemon, tmp_path: Path, code: int, *, asked: bool = False) -> int | None:
    daemon.on("POST", "/containers/web/wait", {"StatusCode": code, "Error": None})
    found = watching(tmp_path)
    found.asked = asked
    found._open_end()
    for _ in range(2):  # the head may come before the rest
        if (told := found._ended()) is not None:
            return told
    return None


def test_exit_codes(daemon: Daemon, tmp_path: Path) -> None:
    assert ended(daemon, tmp_path, 0) == 0
    assert ended(daemon, tmp_path, 3) == 3
    assert ended(daemon, tmp_path, 143) == 143
    assert ended(daemon, tmp_path, 143, asked=True) == 0
    assert ended(daemon, tmp_path, 137, asked=True) == 137


def test_teud_may_go_meanwhile(daemon: Daemon, tmp_path: Path) -> None:
    daemon.on("POST", "/containers/web/wait", Later(lambda: 1 / 0))
    found = watching(tmp_path)
    found._open_end()
    assert found.end is not None
    found.end.sock.shutdown(socket.SHUT_RDWR)
    assert found._ended() is None
    assert found.end is None or found._ended() is None, "the head had come already"
    assert found.end is None
    assert found.head is None


def test_the_end_is_seen_without_the_daemon(tmp_path: Path) -> None:
    found = watching(tmp_path)
    with subprocess.Popen(["sleep", "60"]) as child:
        found.id = Path(f"/proc/{child.pid}/cgroup").read_text().rpartition("::")[2].strip()
        found._follow({"State": {"Pid": child.pid, "Health": {"Status": "starting"}}})
        assert found.process >= 0 and found.has_check
        child.kill()
    assert select.select([found.process], [], [], 10)[0]
    os.close(found.process)
    for pid in (0, child.pid):
        found._follow({"State": {"Pid": pid}})
        assert found.process == -1
    found.id = "of another"
    found._follow({"State": {"Pid": os.getpid()}})
    assert found.process == -1 and not found.has_check


def eventually_told(daemon: Daemon, path: str) -> None:
    """The one call that the daemon was asked for; nobody waits for its answer, so that it may not have come yet."""
    deadline = time.monotonic() + 10
    while len(daemon.requests) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert daemon.calls() == ["GET /_ping", f"POST {path}"]


def test_health_is_told_and_the_engine_acts(daemon: Daemon, tmp_path: Path, manager: socket.socket) -> None:
    found = watching(tmp_path, "--notify=healthy", "--health-on-failure=kill")
    found._heard("starting")
    found._heard("healthy")
    assert manager.recv(4096) == b"READY=1\nSTATUS=Healthy"
    found._heard("unhealthy")
    assert manager.recv(4096) == b"STATUS=Unhealthy"
    eventually_told(daemon, f"/containers/{found.id}/ready")
    assert request("--health-cmd=x", "--health-on-failure=kill")["HostConfig"]["Annotations"] == {
        "io.teu.health-on-failure": "kill"
    }


def test_an_end_that_is_none_is_followed(daemon: Daemon, tmp_path: Path) -> None:
    """The engine has started the container again: its next process is the one to wait for."""
    daemon.on("POST", "/containers/web/wait", Later(lambda: time.sleep(0.5) or {}))
    found = watching(tmp_path)
    found._open_end()
    daemon.on("GET", "/containers/web/json", {"State": {"Running": False}})
    found._follow_again()
    assert found.end is not None and found.process < 0
    with subprocess.Popen(["sleep", "60"]) as child:
        found.id = Path(f"/proc/{child.pid}/cgroup").read_text().rpartition("::")[2].strip()
        daemon.on("GET", "/containers/web/json", {"State": {"Running": True, "Pid": child.pid}})
        found._follow_again()
        assert found.end is None and found.process >= 0
        child.kill()
    os.close(found.process)
    deadline = time.monotonic() + 10
    while not any(one.path.endswith("/wait") for one in daemon.requests) and time.monotonic() < deadline:
        time.sleep(0.01)  # nobody waits for its answer any more: it may not have come there yet
    assert [one.query for one in daemon.requests if one.path.endswith("/wait")] == [{"condition": "ended"}]


def test_the_watchdog_is_fed_while_the_check_is_well(
    daemon: Daemon, tmp_path: Path, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    found = watching(tmp_path)
    assert found.watchdog == 2000
    found._feed()
    assert manager.recv(4096) == b"WATCHDOG=1", "nobody is asked where there is no check"
    found.has_check = True
    assert watching(tmp_path, "--notify=container").watchdog == 0
    daemon.on("GET", "/containers/web/json", {"State": {"Health": {"Status": "healthy"}}})
    found._feed()
    assert manager.recv(4096) == b"WATCHDOG=1"
    daemon.on("GET", "/containers/web/json", {"State": {"Health": {"Status": "unhealthy"}}})
    found._feed()
    manager.settimeout(0.05)
    with pytest.raises(TimeoutError):
        manager.recv(4096)


def test_signal_names() -> None:
    assert [watch.signal_number(text) for text in ("", "9", "INT", "SIGQUIT", "none")] == [15, 9, 2, 3, 15]
