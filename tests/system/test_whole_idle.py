# SPDX-License-Identifier: Apache-2.0
"""Daemons with nothing to do exit, when they are told to; their sockets wake them, and nothing is missed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import images
import peers
import pytest
import whole
from whole import out, teu

UNITS = ("teud.service", "teu-containerd.service")
DROP_INS = (Path("/etc/teu/teud.yaml.d/idle.yaml"), Path("/etc/teu/containerd.yaml.d/idle.yaml"))


@pytest.fixture(autouse=True)
def idle_exit() -> Iterator[None]:
    images.need_busybox()
    whole.remove_everything()
    for path in DROP_INS:
        path.parent.mkdir(exist_ok=True)
        path.write_text("idle-exit: 1s\n")
    try:
        out("systemctl", "restart", *UNITS)
        yield
    finally:
        for path in DROP_INS:
            path.unlink()
        out("systemctl", "restart", *UNITS)


def gone() -> bool:
    return all(whole.show(unit, "ActiveState") == "inactive" for unit in UNITS)


def test_idle_daemons_leave_and_are_woken() -> None:
    for _ in range(3):
        whole.eventually("both daemons have left", gone)
        assert all(whole.show(unit, "Result") == "success" for unit in UNITS)
        assert "Server:" in out("teu", "version")
    whole.eventually("both daemons have left", gone)
    # a whole run, from no daemon to no daemon
    assert out("teu", "run", "--rm", whole.IMAGE, "echo", "woken") == "woken"
    whole.eventually("both daemons have left", gone)
    assert not whole.shims()


def test_a_client_that_waits_keeps_them() -> None:
    """When it has its answer they may go, and the exit code is known afterwards."""
    name = "keeper"
    try:
        whole.run_detached(name, "sh", "-c", "sleep 4; echo kept; exit 6")
        pids = [whole.main_pid(unit) for unit in UNITS]
        assert all(pids)
        assert out("teu", "wait", name) == "6"
        assert pids == [whole.main_pid(unit) for unit in UNITS]
        whole.eventually("both daemons have left", gone)
        assert teu("logs", name).stdout == "kept\n"
        assert out("teu", "inspect", "-f", "{{.State.ExitCode}}", name) == "6"
    finally:
        teu("rm", "-f", name, check=False)


def watchers() -> list[str]:
    """The units that watch the output of containers, and what else teud looks after, and those for a shutdown."""
    listed = out("systemctl", "list-units", "--plain", "--no-legend", "teud-output@*", "teud-away@*")
    return [line.split()[0] for line in listed.splitlines()]


QUIET = ("sh", "-c", "trap 'echo told; kill $!' USR1; while :; do sleep 600 & wait; done")
NO_PORTS = ("--network", "host")


@pytest.mark.parametrize("driver", ["journald", "json-file", "none"])
def test_quiet_containers_need_nobody(driver: str) -> None:
    """They run on without teud and teu-containerd; what one says wakes them, is logged, and they leave again."""
    name = f"quiet-{driver}"
    flags = (*NO_PORTS, "--log-driver", driver, "--stop-timeout", "0")
    try:
        whole.run_detached(name, *QUIET, flags=flags)
        pid = out("teu", "inspect", "-f", "{{.State.Pid}}", name)
        whole.eventually("both daemons have left", gone)
        kinds = {name.partition("@")[0] + Path(name).suffix: name for name in watchers()}
        assert sorted(kinds) == ["teud-away.service", "teud-output.path", "teud-output.socket"]
        after = out("systemctl", "show", "-P", "After", kinds["teud-away.service"]).split()
        assert f"teu-{out('teu', 'inspect', '-f', '{{.Id}}', name)}.scope" in after
        whole.eventually("both daemons have left again", gone)
        assert Path(f"/proc/{pid}").exists()
        os.kill(int(pid), signal.SIGUSR1)
        whole.eventually("its output has woken teud", lambda: whole.main_pid("teud.service"))
        whole.eventually("systemd has given the pipes back", lambda: not watchers())
        whole.eventually("both daemons have left again", gone)
        if driver != "none":
            assert teu("logs", name).stdout == "told\n"
        assert out("teu", "inspect", "-f", "{{.State.Running}}", name) == "true"
    finally:
        teu("rm", "-f", name, check=False)
    whole.eventually("both daemons have left", gone)
    assert not watchers() and not list(Path("/run/systemd/system").glob("teud-*@*"))


def test_much_output_wakes_once_and_is_all_there() -> None:
    """More than a pipe holds comes while nobody reads: the container waits for teud, and nothing is lost."""
    name = "flood"
    script = "trap 'seq 1 200000; kill $!' USR1; while :; do sleep 600 & wait; done"
    try:
        whole.run_detached(
            name, "sh", "-c", script, flags=(*NO_PORTS, "--log-driver", "json-file", "--stop-timeout", "0")
        )
        pid = int(out("teu", "inspect", "-f", "{{.State.Pid}}", name))
        whole.eventually("both daemons have left", gone)
        os.kill(pid, signal.SIGUSR1)
        whole.eventually("all of it is logged", lambda: teu("logs", "--tail", "1", name).stdout == "200000\n")
        assert teu("logs", name).stdout.split() == [str(number) for number in range(1, 200001)]
        assert not out("systemctl", "list-units", "--failed", "--plain", "--no-legend", "teud-output@*")
    finally:
        teu("rm", "-f", name, check=False)


@pytest.mark.timeout(300)
def test_nothing_is_lost_however_it_comes_back(rounds: Callable[[int], int]) -> None:
    """One writes all the time, with pauses that are longer than the idle time: it wakes teud, or a client does, in the
    middle of its writing; and teud is killed as well."""
    name = "writer"
    script = "n=0; while :; do for i in $(seq 300); do n=$((n+1)); echo $n; done; sleep 2.$((n % 7)); done"
    try:
        whole.run_detached(
            name, "sh", "-c", script, flags=(*NO_PORTS, "--log-driver", "json-file", "--stop-timeout", "0")
        )
        for number in range(rounds(12)):
            whole.eventually("teud has left", lambda: whole.show("teud.service", "ActiveState") == "inactive")
            if number % 3 == 1:
                teu("ps")
            pid = whole.eventually("teud is back", lambda: whole.main_pid("teud.service"))
            if number % 3 == 2:
                os.kill(int(str(pid)), signal.SIGKILL)
        lines = teu("logs", name).stdout.split()
        assert lines == [str(number) for number in range(1, len(lines) + 1)] and len(lines) >= 300
    finally:
        teu("rm", "-f", name, check=False)
        out("systemctl", "reset-failed")


def test_events_are_remembered() -> None:
    """As far as an engine that stays remembers them."""
    name = "remembered"
    since = out("date", "+%s.%N")
    try:
        whole.run_detached(name, "sleep", "600", flags=(*NO_PORTS, "--stop-timeout", "0"))
        ask = (
            "teu",
            "events",
            "--since",
            since,
            "--until",
            "0s",
            "--filter",
            f"container={name}",
            "--format",
            "{{.Action}}",
        )
        before = out(*ask).split()
        assert before[:2] == ["create", "start"] or before[:3] == ["create", "attach", "start"]
        for _ in range(2):
            whole.eventually("both daemons have left", gone)
            assert out(*ask).split() == before
    finally:
        teu("rm", "-f", name, check=False)


@pytest.mark.needs("memory")
def test_a_kill_for_memory_is_known_that_nobody_saw() -> None:
    """Of the container's own process, which ends it, and of another, after which it goes on."""
    eat = "a=x; while :; do a=$a$a; done"
    flags = (*NO_PORTS, "-m", "32m", "--memory-swap", "32m", "--stop-timeout", "0")
    wait = "trap 'tail /dev/zero & wait $!' USR1; while :; do sleep 600 & wait; done"
    try:
        whole.run_detached("eater", "sh", "-c", f"trap '{eat}' USR1; while :; do sleep 600 & wait; done", flags=flags)
        whole.run_detached("parent", "sh", "-c", wait, flags=flags)
        pids = {name: int(out("teu", "inspect", "-f", "{{.State.Pid}}", name)) for name in ("parent", "eater")}
        for name, running in (("parent", "true"), ("eater", "false")):
            whole.eventually("both daemons have left", gone)
            os.kill(pids[name], signal.SIGUSR1)
            whole.eventually("it has woken them", lambda: whole.main_pid("teud.service"))
            ask = ("teu", "inspect", "-f", "{{.State.OOMKilled}} {{.State.Running}}", name)
            wanted = f"true {running}"
            whole.eventually("it is known", lambda ask=ask, wanted=wanted: out(*ask) == wanted)
    finally:
        teu("rm", "-f", "eater", "parent", check=False)


def test_an_end_wakes_them_and_the_policy_holds() -> None:
    name = "again"
    try:
        whole.run_detached(name, "sleep", "600", flags=(*NO_PORTS, "--restart", "always", "--stop-timeout", "0"))
        pid = int(out("teu", "inspect", "-f", "{{.State.Pid}}", name))
        whole.eventually("both daemons have left", gone)
        os.kill(pid, signal.SIGKILL)
        whole.eventually("it runs again", lambda: out("teu", "inspect", "-f", "{{.RestartCount}}", name) == "1")
        whole.eventually("both daemons have left", gone)
        assert out("teu", "inspect", "-f", "{{.State.Running}}", name) == "true"
    finally:
        teu("rm", "-f", name, check=False)


def test_a_scope_that_ends_without_a_word_wakes_them() -> None:
    """All of it is killed, and the shim with it: systemd alone has seen it."""
    name = "felled"
    try:
        whole.run_detached(name, "sleep", "600", flags=(*NO_PORTS, "--restart", "always", "--stop-timeout", "0"))
        scope = f"teu-{out('teu', 'inspect', '-f', '{{.Id}}', name)}.scope"
        whole.eventually("both daemons have left", gone)
        out("systemctl", "kill", "--kill-whom=all", "--signal=KILL", scope)
        # Nobody asks: that would wake them, too.
        whole.eventually("it has woken them", lambda: whole.main_pid("teud.service"))
        whole.eventually("it is started again", lambda: whole.show(scope, "ActiveState") == "active")
        whole.eventually("it runs", lambda: out("teu", "inspect", "-f", "{{.State.Running}}", name) == "true")
        whole.eventually("both daemons have left", gone)
    finally:
        teu("rm", "-f", name, check=False)


def test_an_emptied_ruleset_wakes_it() -> None:
    """A container on a bridge has its way out by rules, which somebody takes away with all others."""
    name = "outward"
    try:
        # With a server of names that it reaches itself, as the host's own may not be.
        flags = ("--network", "bridge", "--dns", "192.0.2.53", "--stop-timeout", "0")
        whole.run_detached(name, "sleep", "600", flags=flags)
        rules = out("nft", "list", "table", "inet", "teu")
        whole.eventually("both daemons have left", gone)
        assert out("nft", "list", "table", "inet", "teu") == rules
        out("nft", "flush", "ruleset")
        whole.eventually("the rules are there again", lambda: "table inet teu" in out("nft", "list", "tables"))
        whole.eventually("all of them", lambda: out("nft", "list", "table", "inet", "teu") == rules)
        whole.eventually("both daemons have left again", gone)
    finally:
        teu("rm", "-f", name, check=False)
    whole.eventually("both daemons have left", gone)
    assert not watchers()


def test_a_changed_resolv_conf_wakes_it() -> None:
    name, place = "following", Path("/etc/resolv.conf")
    before = place.read_text()
    try:
        whole.run_detached(name, "sleep", "600", flags=(*NO_PORTS, "--stop-timeout", "0"))
        pid = out("teu", "inspect", "-f", "{{.State.Pid}}", name)
        inside = Path(f"/proc/{pid}/root/etc/resolv.conf")
        for number in (1, 2):
            whole.eventually("both daemons have left", gone)
            if number == 1:
                place.write_text(f"nameserver 192.0.2.{number}\n")
            else:  # as programs do it
                fresh = place.with_name("resolv.conf.new")
                fresh.write_text(f"nameserver 192.0.2.{number}\n")
                fresh.rename(place)
            wanted = f"nameserver 192.0.2.{number}"
            whole.eventually("it has the new server", lambda wanted=wanted: wanted in inside.read_text())
    finally:
        place.write_text(before)
        teu("rm", "-f", name, check=False)


@pytest.mark.parametrize("unit", UNITS)
def test_who_serves_figures_stays(unit: str) -> None:
    import time

    drop, text = {
        UNITS[0]: (Path("/etc/teu/teud.yaml.d/figures.yaml"), "metrics-addr: 127.0.0.1:18323\n"),
        UNITS[1]: (Path("/etc/teu/containerd.yaml.d/figures.yaml"), "metrics: {address: 127.0.0.1:18323}\n"),
    }[unit]
    drop.write_text(text)
    try:
        out("systemctl", "restart", unit)
        pid = whole.main_pid(unit)
        time.sleep(4)
        assert whole.main_pid(unit) == pid
    finally:
        drop.unlink()


def test_output_does_not_press_a_teud_that_cannot_start() -> None:
    """It asks again every ten seconds, and is logged when the mistake is mended."""
    import time

    name, bad = "pressed", Path("/etc/teu/teud.yaml.d/zz-bad.yaml")
    try:
        whole.run_detached(name, *QUIET, flags=(*NO_PORTS, "--stop-timeout", "0"))
        pid = int(out("teu", "inspect", "-f", "{{.State.Pid}}", name))
        whole.eventually("both daemons have left", gone)
        bad.write_text("no-such-key: 1\n")
        os.kill(pid, signal.SIGUSR1)
        time.sleep(5)
        tried = out("journalctl", "-q", "-u", "teud.service", "--since=-5s", "-o", "cat").count("no-such-key")
        assert 1 <= tried <= 3
        bad.unlink()
        whole.eventually("it is logged", lambda: teu("logs", name).stdout == "told\n")
    finally:
        bad.unlink(missing_ok=True)
        out("systemctl", "reset-failed")
        teu("rm", "-f", name, check=False)


@pytest.mark.parametrize(
    "flags",
    [
        ("-p", "127.0.0.1:18081:80"),
        ("--network", "none", "--health-cmd", "true", "--health-interval", "1s"),
        ("--network", "idle-names"),
    ],
    ids=["a port", "a check", "names"],
)
def test_what_teud_does_for_a_container_keeps_it(flags: tuple[str, ...]) -> None:
    import time

    name = "kept"
    teu("network", "create", "idle-names")
    try:
        whole.run_detached(name, "sleep", "600", flags=(*flags, "--stop-timeout", "0"))
        pid = whole.main_pid("teud.service")
        time.sleep(4)
        assert whole.main_pid("teud.service") == pid and not watchers()
    finally:
        teu("rm", "-f", name, check=False)
        teu("network", "rm", "idle-names", check=False)


def test_a_prompt_does_not_wake_it_for_ever() -> None:
    """An unfinished line stays in the pipe, so teud stays with it."""
    import time

    name = "prompt"
    try:
        whole.run_detached(name, "sh", "-c", "printf 'name? '; sleep 600", flags=(*NO_PORTS, "--stop-timeout", "0"))
        pid = whole.main_pid("teud.service")
        time.sleep(4)
        assert whole.main_pid("teud.service") == pid and not watchers()
    finally:
        teu("rm", "-f", name, check=False)


def test_a_restart_label_outlives_the_daemon(tmp_path: Path) -> None:
    """A container that is to run is looked after before the daemon leaves, and when its end wakes it again."""
    name, label = "kept-running", "containerd.io/restart.status"
    rootfs = peers.busybox_rootfs(tmp_path / "rootfs")

    def pid() -> int:
        lines = out("teu-ctr", "tasks", "ls").splitlines()
        return next(
            (
                int(number)
                for line in lines[1:]
                for id, number, state in [line.split()]
                if (id, state) == (name, "RUNNING")
            ),
            0,
        )

    out("teu-ctr", "run", "-d", "--rootfs", str(rootfs), name, "sleep", "600")
    try:
        out("teu-ctr", "containers", "label", name, f"{label}=running")
        first = pid()
        # The default interval is longer than the idle time here.
        os.kill(first, signal.SIGKILL)
        second = whole.eventually("the task runs again", lambda: (found := pid()) != first and found)
        whole.eventually("both daemons have left", gone)
        os.kill(int(str(second)), signal.SIGKILL)
        whole.eventually("its end has woken the daemon", lambda: not gone())
        third = whole.eventually("the task runs once more", lambda: (found := pid()) != second and found)
        assert third not in (first, second)
    finally:
        out("teu-ctr", "containers", "label", name, f"{label}=")
        out("teu-ctr", "tasks", "delete", "--force", name)
        out("teu-ctr", "containers", "delete", name)


def test_what_a_user_stopped_is_not_started_by_the_wake() -> None:
    """A restart of the daemon starts it, as dockerd's does; a wake is none."""
    name = "stopped-always"
    try:
        whole.run_detached(name, "sleep", "600", flags=("--restart", "always", "--stop-timeout", "0"))
        out("teu", "stop", name)
        for _ in range(2):
            whole.eventually("both daemons have left", gone)
            assert out("teu", "inspect", "-f", "{{.State.Status}}", name) == "exited"
        out("systemctl", "restart", "teud.service")
        state = ("teu", "inspect", "-f", "{{.State.Status}} {{.RestartCount}}", name)
        whole.eventually("it runs again", lambda: out(*state) == "running 0")
        # And is kept running, for nobody has stopped it since.
        os.kill(int(out("teu", "inspect", "-f", "{{.State.Pid}}", name)), signal.SIGKILL)
        whole.eventually("it runs once more", lambda: out(*state) == "running 1")
    finally:
        teu("rm", "-f", name, check=False)


def test_a_connection_keeps_teud() -> None:
    import socket
    import time

    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/teu/teud.sock")
        pid = whole.eventually("teud runs", lambda: whole.main_pid("teud.service"))
        time.sleep(3)
        assert whole.main_pid("teud.service") == pid
        client.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    whole.eventually("both daemons have left", gone)
