# SPDX-License-Identifier: Apache-2.0
"""Both daemons as systemd's services: what they tell it, what it does when they hang, their mistakes, their journal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import need_busybox
from whole import call, eventually, main_pid, out, procs, run_detached, scope_of, show, teu

pytestmark = pytest.mark.needs("packages", "systemd")

DAEMONS = ("teud", "teu-containerd")
DROP_INS = {"teud": Path("/etc/teu/teud.yaml.d"), "teu-containerd": Path("/etc/teu/containerd.yaml.d")}
# A key of each that a reload applies, and a value that it does not take.
BAD_VALUE = {
    "teud": ("max-concurrent-downloads: many\n", "give a whole number, 1 to 64"),
    "teu-containerd": ("gc:\n  delay: soon\n", "give a time such as"),
}


@pytest.fixture(autouse=True)
def configuration_as_it_was() -> Iterator[None]:
    yield
    for folder in DROP_INS.values():
        for name in ("10-test.yaml", "20-test.yaml"):
            (folder / name).unlink(missing_ok=True)
    for daemon in DAEMONS:
        call("systemctl", "start", f"{daemon}.socket", check=False)
    teu("ps")
    for daemon in DAEMONS:
        call("systemctl", "reload", f"{daemon}.service")


def drop_in(daemon: str, name: str, content: str) -> Path:
    file = DROP_INS[daemon] / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    return file


def entries(daemon: str, cursor: str) -> list[dict[str, object]]:
    """What the daemon itself wrote to the journal after the cursor."""
    call("journalctl", "--sync")
    text = out("journalctl", "-q", "-o", "json", "-u", f"{daemon}.service", "--after-cursor", cursor, f"_COMM={daemon}")
    return [json.loads(line) for line in text.splitlines()]


def cursor() -> str:
    call("journalctl", "--sync")
    shown = out("journalctl", "-q", "-n", "1", "--show-cursor", "-o", "cat").splitlines()
    return shown[-1].removeprefix("-- cursor: ")


def foreground(daemon: str, tmp_path: Path) -> list[str]:
    config = tmp_path / "config.yaml"
    config.write_text("log-level: info\n")
    if daemon == "teud":
        return [
            "teud",
            "-H",
            f"unix://{tmp_path}/sock",
            "--config",
            str(config),
            "--data-root",
            str(tmp_path / "data"),
            "--exec-root",
            str(tmp_path / "exec"),
            "--containerd",
            "/run/teu/containerd.sock",
        ]
    return [
        "teu-containerd",
        "-H",
        f"unix://{tmp_path}/sock",
        "--config",
        str(config),
        "--root",
        str(tmp_path / "root"),
        "--state",
        str(tmp_path / "state"),
    ]


@pytest.mark.parametrize("daemon", DAEMONS)
def test_what_it_tells_the_service_manager(daemon: str, tmp_path: Path) -> None:
    """In the foreground, where the test is the manager: ready, a reload with its clock, the watchdog, the stop."""
    if daemon == "teud":
        teu("ps")  # its containerd is the host's
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)

        def until(word: str) -> dict[str, str]:
            while True:
                told = dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())
                if word in told:
                    return told

        environment = dict(os.environ, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
        environment.pop("LISTEN_FDS", None)
        log = (tmp_path / "log").open("wb")
        process = subprocess.Popen(foreground(daemon, tmp_path), env=environment, stdin=subprocess.DEVNULL, stderr=log)
        try:
            assert until("READY")["STATUS"].startswith("Serving ")
            until("WATCHDOG")
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            process.send_signal(signal.SIGHUP)
            told = until("RELOADING")
            assert told["RELOADING"] == "1"
            assert before <= int(told["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            assert until("READY")["STATUS"].startswith("Serving ")
            if daemon == "teud":
                assert teu("-H", f"unix://{tmp_path}/sock", "ps", "-q").stdout == ""
            else:
                assert "server" in out("teu-ctr", "-a", str(tmp_path / "sock"), "version").lower()
            process.send_signal(signal.SIGTERM)
            assert until("STOPPING")["STOPPING"] == "1"
            assert process.wait(60) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
            log.close()
    assert not (tmp_path / "sock").exists() or daemon == "teu-containerd"


@pytest.mark.parametrize("daemon", DAEMONS)
@pytest.mark.timeout(240)
def test_the_watchdog_bites_a_daemon_that_hangs(daemon: str) -> None:
    teu("rm", "-f", "watched", check=False)
    teu("load", "-q", "-i", "/usr/share/teu/images/busybox.oci.tar")
    run_detached("watched", "sleep", "600")
    pid = out("teu", "inspect", "-f", "{{.State.Pid}}", "watched")
    service = f"{daemon}.service"
    lowered = Path(f"/run/systemd/system/{service}.d/10-watchdog.conf")
    lowered.parent.mkdir(exist_ok=True)
    lowered.write_text("[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\nLimitCORE=0\n")
    try:
        call("systemctl", "daemon-reload")
        call("systemctl", "restart", service)
        hung = main_pid(service)
        since = cursor()
        os.kill(hung, signal.SIGSTOP)
        eventually("systemd starts it again", lambda: main_pid(service) not in (0, hung), timeout=120)
        assert "Watchdog timeout" in out("journalctl", "-q", "-u", service, "--after-cursor", since)
        assert show(service, "ActiveState") in ("active", "activating")
        assert out("teu", "inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "watched") == f"{pid} running"
        assert out("teu", "exec", "watched", "echo", "here") == "here"
    finally:
        lowered.unlink()
        lowered.parent.rmdir()
        call("systemctl", "daemon-reload")
        call("systemctl", "restart", service)
        teu("rm", "-f", "watched", check=False)


@pytest.mark.parametrize("daemon", DAEMONS)
@pytest.mark.parametrize("mistake", ["unknown key", "bad value"])
def test_a_mistake_stops_the_start_until_it_is_mended(daemon: str, mistake: str) -> None:
    """systemd is not made to try again and again, and mending the file is all there is to do."""
    teu("ps")
    content, says = ("log-levle: info\n", "unknown key; did you mean log-level?")
    if mistake == "bad value":
        content, says = BAD_VALUE[daemon]
    line = content.count("\n") + 1
    file = drop_in(daemon, "20-test.yaml", f"# a comment\n{content}")
    if daemon == "teu-containerd":
        # Its clients' connections start it as well, each time for nothing.
        call("systemctl", "stop", "teud.service", "teud.socket")
    since = cursor()
    assert call("systemctl", "restart", f"{daemon}.service", check=False).returncode != 0
    assert show(f"{daemon}.service", "ExecMainStatus") == "78"
    # The start has failed when the main process has: what follows takes a moment more.
    eventually("it ends", lambda: show(f"{daemon}.service", "ActiveState") != "deactivating")
    assert show(f"{daemon}.service", "ActiveState") == "failed", "and it stays so"
    said = out("journalctl", "-q", "-o", "cat", "-u", f"{daemon}.service", "--after-cursor", since)
    assert f"{daemon}: {file}:{line}: " in said and says in said, said
    file.unlink()
    call("systemctl", "restart", f"{daemon}.service")
    call("systemctl", "start", "teud.socket")
    assert teu("ps").returncode == 0


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_reload_of_a_broken_file_keeps_the_configuration(daemon: str) -> None:
    teu("ps")
    service = f"{daemon}.service"
    pid = main_pid(service)
    # The drop-ins in the order of their names: the last one wins.
    drop_in(daemon, "20-test.yaml", "log-level: debug\n")
    drop_in(daemon, "10-test.yaml", "log-level: error\n")
    since = cursor()
    call("systemctl", "reload", service)
    eventually("it says so", lambda: any("changed log-level" in str(e["MESSAGE"]) for e in entries(daemon, since)))
    since = cursor()
    file = drop_in(daemon, "20-test.yaml", "log-level: debug\nlog-level: info\n")
    call("systemctl", "reload", service)
    wanted = f"the configuration is kept as it was: {file}:2: log-level: is set twice, first in line 1; remove one"
    kept = eventually("it says so", lambda: [e for e in entries(daemon, since) if e["MESSAGE"] == wanted])
    assert isinstance(kept, list) and kept[0]["PRIORITY"] == "3"
    # It was still at the level of debug: what the mended file says is a change. And it is the same process.
    since = cursor()
    file.write_text("log-level: info\n")
    call("systemctl", "reload", service)
    eventually("it says so", lambda: any("changed log-level" in str(e["MESSAGE"]) for e in entries(daemon, since)))
    assert main_pid(service) == pid
    assert show(service, "StatusText").startswith("Serving ")


@pytest.mark.needs("trixie")
@pytest.mark.parametrize("daemon", DAEMONS)
def test_notify_reload_understands_it(daemon: str) -> None:
    """systemd's own reader of RELOADING=1 and MONOTONIC_USEC: Type=notify-reload waits for both, and for READY=1."""
    service = f"{daemon}.service"
    changed = Path(f"/run/systemd/system/{service}.d/10-type.conf")
    changed.parent.mkdir(exist_ok=True)
    changed.write_text("[Service]\nType=notify-reload\nExecReload=\nTimeoutStartSec=30\n")
    try:
        call("systemctl", "daemon-reload")
        call("systemctl", "restart", service)
        pid = main_pid(service)
        call("systemctl", "reload", service)
        assert (main_pid(service), show(service, "ActiveState")) == (pid, "active")
    finally:
        changed.unlink()
        changed.parent.rmdir()
        call("systemctl", "daemon-reload")
        call("systemctl", "restart", service)


def test_messages_about_a_container_name_it_in_the_journal() -> None:
    load = ("load", "-q", "-i", "/usr/share/teu/images/busybox.oci.tar")
    eventually("the image is there", lambda: not teu(*load, check=False).returncode)
    ident = run_detached("noted", "sleep", "600")
    try:
        since = cursor()
        # Behind both daemons' backs: the shim dies, and teu-containerd says so.
        shim = int(out("ps", "-o", "ppid=", "-p", out("teu", "inspect", "-f", "{{.State.Pid}}", "noted")))
        os.kill(shim, signal.SIGKILL)
        found = eventually(
            "teu-containerd says so",
            lambda: [
                entry
                for entry in entries("teu-containerd", since)
                if entry.get("TEU_CONTAINER") == ident and entry["PRIORITY"] == "4"
            ],
        )
        assert isinstance(found, list)
        assert found[0]["TEU_NAMESPACE"] == "teu"
        assert found[0]["SYSLOG_IDENTIFIER"] == "teu-containerd" and found[0]["CODE_FUNC"]
        assert "CONTAINER_ID" not in found[0], "that is the field of what containers write"
    finally:
        eventually("it is removed", lambda: not teu("rm", "-f", "noted", check=False).returncode)


@pytest.mark.needs("trixie")
def test_the_engine_has_no_more_than_it_needs() -> None:
    """Each directive of the unit, as the kernel sees the process; the score guards against one that gets lost."""
    teu("ps")
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{main_pid('teud.service')}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    bounding = int(status["CapBnd"], 16)
    for name, number in (
        ("sys_module", 16),
        ("sys_rawio", 17),
        ("sys_boot", 22),
        ("sys_time", 25),
        ("mac_override", 32),
        ("syslog", 34),
        ("bpf", 39),
        ("checkpoint_restore", 40),
    ):
        assert not bounding >> number & 1, f"CAP_{name.upper()} is in the bounding set"
    call("systemd-analyze", "security", "--threshold=62", "teud.service")
    # The other daemon's children are the containers' runtimes: what it lost, no container could have.
    runtime = Path(f"/proc/{main_pid('teu-containerd.service')}/status").read_text()
    assert "NoNewPrivs:\t0" in runtime and "Seccomp:\t0" in runtime


@pytest.mark.timeout(300)
def test_containers_have_their_scopes_while_systemd_executes_itself_anew() -> None:
    """An upgrade of systemd does so; what is asked meanwhile is asked again."""
    need_busybox()
    over = threading.Event()
    times = 0

    def execute_anew() -> None:
        nonlocal times
        while not over.is_set():
            call("systemctl", "daemon-reexec", check=False)
            times += 1
            over.wait(0.2)

    cursors = cursor()
    other = threading.Thread(target=execute_anew)
    other.start()
    names: list[str] = []
    try:
        while len(names) < 10 or times < 3 and len(names) < 50:
            name = f"anew{len(names)}"
            names.append(name)
            ident = run_detached(name, "sleep", "1000")
            assert procs(scope_of(ident) / "container"), f"{name} has no scope, after {times} executions"
    finally:
        over.set()
        other.join()
        teu("rm", "-f", *names, check=False)
    assert times > 2
    complaints = [line for line in entries("teu-containerd", cursors) if "no scope" in str(line["MESSAGE"])]
    assert complaints == []
