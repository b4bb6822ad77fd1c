# SPDX-License-Identifier: Apache-2.0
"""Containers that are declared in files: each is a service of systemd, from its start to its end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from declared import HOST_PYTHON, PLACE, SPEAK, Declared, becomes, declare, inspect, journal, shared_run, start, state
from whole import CGROUPS, call, cgroup_of, eventually, main_pid, out, show, teu

pytestmark = pytest.mark.needs("systemd", "teud")
__all__ = ["declare", "shared_run"]

# A first process hears of no signal that it has no handler for.
SLEEP = "[Container]\nImage=busybox\nExec=sleep 1000\nStopSignal=SIGKILL\n"


def pid_of(name: str) -> int:
    return int(teu("inspect", "-f", "{{.State.Pid}}", name).stdout)


def test_a_container_is_one_with_its_unit(declare: Declared) -> None:
    declare.write(
        web_container="[Unit]\nDescription=A declared one\n[Container]\nImage=busybox\n"
        "Exec=sh -c 'echo the first line; trap \"exit 0\" TERM; sleep 1000 & wait'\nEnvironment=WHO=me\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    assert show("web.service", "SourcePath") == str(PLACE / "web.container")
    assert "web.service" in out("systemctl", "list-dependencies", "--plain", "multi-user.target")
    start("web.service")
    assert state("web.service") == "active"
    pid = pid_of("systemd-web")
    inside = cgroup_of(pid)
    assert re.fullmatch(r"/system\.slice/web\.service/teu-[0-9a-f]{64}/container", inside)
    assert cgroup_of(main_pid("web.service")) == "/system.slice/web.service/teu-unit"
    assert not call("systemctl", "list-units", "--plain", "--no-legend", "teu-*.scope").stdout.count("systemd-web")
    eventually("the line is in the unit's journal", lambda: "the first line" in journal("web.service"))
    status = out("systemctl", "status", "web.service")
    assert "sleep 1000" in status and "the first line" in status and "A declared one" in status
    assert "WHO=me" in teu("exec", "systemd-web", "env").stdout
    assert "the first line" in teu("logs", "systemd-web").stdout
    call("systemctl", "stop", "web.service")
    assert (state("web.service"), show("web.service", "Result")) == ("inactive", "success")
    assert teu("inspect", "systemd-web", check=False).returncode
    assert not (CGROUPS / "system.slice/web.service").exists()


def test_the_stop_signal_and_its_time_are_the_containers(declare: Declared) -> None:
    script = 'trap "echo interrupted; exit 0" INT; echo up; while :; do sleep 0.1; done'
    declare.write(
        web_container=f"[Container]\nImage=busybox\nStopSignal=SIGINT\nExec=sh -c '{script}'\n",
        deaf_container="[Container]\nImage=busybox\nStopTimeout=1\n"
        "Exec=sh -c 'trap \"\" TERM; while :; do sleep 0.1; done'\n",
    )
    start("web.service")
    eventually("it is up", lambda: "up" in journal("web.service"))
    call("systemctl", "stop", "web.service")
    assert "interrupted" in journal("web.service")
    assert show("web.service", "Result") == "success"
    start("deaf.service")
    began = time.monotonic()
    call("systemctl", "stop", "deaf.service")
    assert time.monotonic() - began < 8
    assert show("deaf.service", "ExecMainStatus") == "137"


def test_the_exit_code_is_the_units_and_systemd_starts_it_again(declare: Declared) -> None:
    declare.write(
        once_container="[Container]\nImage=busybox\nExec=sh -c 'exit 3'\n",
        again_container="[Container]\nImage=busybox\nExec=sh -c 'sleep 0.3; exit 4'\n"
        "[Service]\nRestart=on-failure\nRestartSec=50ms\n[Unit]\nStartLimitBurst=3\nStartLimitIntervalSec=300\n",
        task_container="[Container]\nImage=busybox\nExec=echo done\n[Service]\nType=oneshot\n",
        broken_container="[Container]\nImage=busybox\nExec=/no/such/program\n",
    )
    start("once.service", check=False)
    becomes("once.service", "failed")
    assert show("once.service", "ExecMainStatus") == "3"
    start("again.service")
    eventually("it was started again", lambda: int(show("again.service", "NRestarts")) >= 2)
    becomes("again.service", "failed")
    assert inspect_policy("again") == ""
    assert start("task.service") == 0
    assert state("task.service") == "inactive" and "done" in journal("task.service")
    assert start("broken.service", check=False)
    assert "/no/such/program" in journal("broken.service")


def inspect_policy(name: str) -> str:
    """The engine's own restart policy: none, for systemd's is the one. "" where there is no such container."""
    done = teu("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", f"systemd-{name}", check=False)
    return done.stdout.strip() if not done.returncode else ""


def test_restart_while_it_runs_is_another_container(declare: Declared) -> None:
    declare.write(web_container=SLEEP)
    start("web.service")
    first = inspect("systemd-web")["Id"]
    assert inspect_policy("web") == "no"
    call("systemctl", "restart", "web.service")
    assert inspect("systemd-web")["Id"] != first and state("web.service") == "active"


def test_ready_when_it_says_so(declare: Declared) -> None:
    program = f"{SPEAK}; say('MAINPID=1'); time.sleep(1); say('READY=1\\\\nSTATUS=at work'); time.sleep(1000)"
    declare.write(
        web_container=f"[Container]\nImage=busybox\nNotify=yes\nStopTimeout=1\n{HOST_PYTHON}"
        f'Exec=/usr/bin/python3 -c "{program}"\n'
    )
    began = time.monotonic()
    start("web.service")
    assert time.monotonic() - began >= 1
    assert show("web.service", "StatusText") == "at work"
    assert Path(f"/proc/{main_pid('web.service')}/cmdline").read_bytes().count(b"teu-unit"), "MAINPID= was not obeyed"


def test_what_it_sends_to_the_journal_has_its_name(declare: Declared) -> None:
    program = (
        "import socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        " s.sendto(b'MESSAGE=by itself' + bytes([10]), '/run/systemd/journal/socket'); time.sleep(1000)"
    )
    journald = "/run/systemd/journal/socket"
    declare.write(
        web_container=f"[Container]\nImage=busybox\nStopSignal=SIGKILL\n{HOST_PYTHON}Volume={journald}:{journald}\n"
        f'Exec=/usr/bin/python3 -c "{program}"\n',
    )
    start("web.service")
    matches = ("CONTAINER_NAME=systemd-web", "_SYSTEMD_UNIT=web.service")
    eventually("it is there", lambda: "by itself" in out("journalctl", "-o", "cat", "--no-pager", *matches))


def test_a_container_that_never_says_so_fails(declare: Declared) -> None:
    declare.write(web_container=f"{SLEEP}Notify=yes\n[Service]\nTimeoutStartSec=2\n")
    assert start("web.service", check=False)
    assert show("web.service", "Result") == "timeout"


def test_ready_when_it_is_healthy_and_ended_when_it_is_not(declare: Declared) -> None:
    check = "HealthCmd=test -e /tmp/well\nHealthInterval=1s\nHealthRetries=1\nHealthStartPeriod=60s\n"
    declare.write(
        web_container="[Container]\nImage=busybox\nNotify=healthy\nHealthOnFailure=kill\nStopTimeout=1\n"
        f"Exec=sh -c 'sleep 1; touch /tmp/well; sleep 1000'\n{check}",
        none_container=f"{SLEEP}Notify=healthy\n",
    )
    start("web.service")
    assert teu("inspect", "-f", "{{.State.Health.Status}}", "systemd-web").stdout.strip() == "healthy"
    assert show("web.service", "StatusText") == "Healthy"
    teu("exec", "systemd-web", "rm", "/tmp/well")
    becomes("web.service", "failed")
    assert show("web.service", "ExecMainStatus") == "137"
    assert start("none.service", check=False)
    assert "Notify=healthy needs a check" in journal("none.service")


def test_what_it_says_of_itself_is_shown(declare: Declared) -> None:
    program = f"{SPEAK}; say('READY=1\\\\nSTATUS=Serving 5: good'); time.sleep(1000)"
    declare.write(
        web_container=f'[Container]\nImage=busybox\nNotify=yes\n{HOST_PYTHON}Exec=/usr/bin/python3 -c "{program}"\n',
        mute_container=SLEEP,
    )
    start("web.service")
    start("mute.service")
    eventually("systemd has heard it", lambda: show("web.service", "StatusText") == "Serving 5: good")
    shown = teu("ps", "--filter", "name=systemd-web", "--format", "{{.Status}}").stdout
    assert shown.startswith("Up ") and shown.endswith(": Serving 5: good\n")
    assert '"StatusText":"Serving 5: good"' in teu("inspect", "-f", "{{json .State}}", "systemd-web").stdout
    assert ":" not in teu("ps", "--filter", "name=systemd-mute", "--format", "{{.Status}}").stdout


def test_an_unhealthy_one_is_started_again_by_the_engine_or_stopped(declare: Declared) -> None:
    check = "HealthCmd=test -e /tmp/well\nHealthInterval=1s\nHealthRetries=1\nNotify=healthy\n"
    declare.write(
        again_container="[Container]\nImage=busybox\nHealthOnFailure=restart\nStopSignal=SIGKILL\n"
        f"Exec=sh -c 'touch /tmp/well; exec sleep 1000'\n{check}",
        stop_container="[Container]\nImage=busybox\nHealthOnFailure=stop\nStopTimeout=1\n"
        f"Exec=sh -c 'trap \"exit 0\" TERM; touch /tmp/well; while :; do sleep 0.1; done'\n{check}",
    )
    start("again.service")
    start("stop.service")
    main, first = main_pid("again.service"), pid_of("systemd-again")
    for name in ("again", "stop"):
        teu("exec", f"systemd-{name}", "rm", "/tmp/well")
    becomes("stop.service", "inactive")
    assert show("stop.service", "Result") == "success"
    eventually("the engine has started it again", lambda: pid_of("systemd-again") not in (0, first))
    assert (state("again.service"), main_pid("again.service")) == ("active", main)
    assert cgroup_of(pid_of("systemd-again")).startswith("/system.slice/again.service/")
    # A restart by hand is no end of the unit either.
    second = pid_of("systemd-again")
    teu("restart", "systemd-again")
    eventually("it runs again", lambda: pid_of("systemd-again") not in (0, second))
    time.sleep(1.5)
    assert (state("again.service"), main_pid("again.service")) == ("active", main)
    call("systemctl", "stop", "again.service")
    assert show("again.service", "Result") == "success"


def test_the_watchdog_is_fed_from_inside(declare: Declared) -> None:
    program = f"{SPEAK}; say('READY=1'); [(say('WATCHDOG=1'), time.sleep(0.5)) for n in range(4)]; time.sleep(1000)"
    declare.write(
        web_container=f'[Container]\nImage=busybox\nNotify=yes\n{HOST_PYTHON}Exec=/usr/bin/python3 -c "{program}"\n'
        "[Service]\nWatchdogSec=2\n",
        quiet_container=f"{SLEEP}[Service]\nWatchdogSec=1\n",
    )
    start("quiet.service")
    start("web.service")
    began = time.monotonic()
    becomes("web.service", "failed")
    assert show("web.service", "Result") == "watchdog" and time.monotonic() - began > 1
    assert state("quiet.service") == "active", "without Notify=yes teu-unit feeds it"


def test_order_and_needs_between_files(declare: Declared) -> None:
    declare.write(
        db_container=f"{SLEEP}ContainerName=db\nNotify=healthy\nHealthCmd=true\nHealthInterval=1s\n",
        web_container=f"[Unit]\nRequires=db.container\nAfter=db.container\n{SLEEP}",
    )
    start("web.service")
    assert state("db.service") == "active"
    started = [int(show(unit, "ActiveEnterTimestampMonotonic")) for unit in ("db.service", "web.service")]
    began = int(show("web.service", "InactiveExitTimestampMonotonic"))
    assert started[0] <= began < started[1]
    call("systemctl", "stop", "db.service")
    assert state("web.service") == "inactive"


def test_templates_instances_and_drop_ins(declare: Declared) -> None:
    declare.file(PLACE / "t@.container.d/10.conf", "[Container]\nEnvironment=ALL=1\n")
    declare.file(PLACE / "t@b.container.d/10.conf", "[Container]\nEnvironment=ONLY=b\n")
    declare.file(PLACE / "t@b.container", "")
    (PLACE / "t@b.container").unlink()
    (PLACE / "t@b.container").symlink_to("t@.container")
    declare.write(
        t___container="[Container]\nImage=busybox\nExec=sh -c 'echo I am %i; sleep 1000'\nStopTimeout=1\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    start("t@a.service")
    start("t@b.service")
    assert "I am a" in eventually("a speaks", lambda: journal("t@a.service"))  # type: ignore[operator]
    assert teu("exec", "systemd-t_a", "sh", "-c", "echo $ALL $ONLY").stdout == "1\n"
    assert teu("exec", "systemd-t_b", "sh", "-c", "echo $ONLY").stdout == "b\n"
    assert "t@b.service" in out("systemctl", "list-dependencies", "--plain", "multi-user.target")


def test_limits_of_the_unit_hold_for_the_container(declare: Declared) -> None:
    declare.write(web_container=f"{SLEEP}[Service]\nTasksMax=20\nSlice=mine.slice\n")
    start("web.service")
    assert cgroup_of(pid_of("systemd-web")).startswith("/mine.slice/web.service/")
    if (CGROUPS / "cgroup.controllers").exists() and "pids" in (CGROUPS / "cgroup.controllers").read_text():
        done = teu("exec", "systemd-web", "sh", "-c", "for n in $(seq 40); do sleep 5 & done; wait", check=False)
        assert "can't fork" in done.stderr
        assert int(show("web.service", "TasksCurrent")) <= 20


def test_a_mistake_is_told_with_its_line(declare: Declared) -> None:
    declare.write(bad_container="[Container]\nImage=busybox\nImagination=1\n[Install]\nWantedBy=multi-user.target\n")
    place = f"{PLACE}/bad.container:3: [Container] has no key Imagination"
    call("journalctl", "--sync")
    assert place in out("journalctl", "-q", "-o", "cat", "-t", "teu-system-generator", "-n", "20")
    assert start("bad.service", check=False)
    assert place in journal("bad.service") and place in call("systemctl", "status", "bad.service", check=False).stdout
    done = teu("system", "validate", check=False)
    assert done.returncode == 1 and place in done.stderr
    (PLACE / "bad.container").write_text(SLEEP)
    declare.reload()
    assert teu("system", "validate").stdout == f"{PLACE}/bad.container: bad.service\n"
    start("bad.service")


def test_sockets_are_passed_and_it_ends_when_idle(declare: Declared) -> None:
    program = (
        "import os,socket; assert os.environ['LISTEN_FDS']=='1' and os.environ['LISTEN_PID']==str(os.getpid()); "
        "s=socket.socket(fileno=3); s.settimeout(2); c,_=s.accept(); "
        "c.sendall(os.environ['LISTEN_FDNAMES'].encode()); c.close()"
    )
    declare.write(
        hello_container=f"[Container]\nImage=busybox\nNetwork=none\n{HOST_PYTHON}"
        f'Exec=/usr/bin/python3 -c "{program}"\n',
        hello_socket="[Socket]\nListenStream=127.0.0.1:8099\nFileDescriptorName=greeting\n",
    )
    start("hello.socket")
    for _ in range(2):
        assert state("hello.service") == "inactive"
        with socket.create_connection(("127.0.0.1", 8099), timeout=60) as connection:
            assert connection.recv(100) == b"greeting"
        becomes("hello.service", "inactive")
        assert show("hello.service", "Result") == "success"


def test_credentials(declare: Declared, tmp_path: Path, shared_run: None) -> None:
    (tmp_path / "key").write_text("a key")
    Path("/etc/credstore").mkdir(exist_ok=True)
    stored = Path("/etc/credstore/teu-test")
    stored.write_text("from the store")
    sealed = subprocess.run(
        ["systemd-creds", "encrypt", "--with-key=host", "--name=sealed", "-", "-"],
        input="never in a file",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("\n", "")
    look = "id -u; cat /run/secrets/key /run/secrets/set /run/secrets/renamed /run/secrets/sealed; echo $$STORED; "
    look += "ls -l $$CREDENTIALS_DIRECTORY; sleep 1000"
    try:
        declare.write(
            web_container=f"[Container]\nImage=busybox\nUser=1000\nStopTimeout=1\nExec=sh -c '{look}'\n"
            "Secret=teu-test,type=env,target=STORED\nSecret=key2,target=renamed,uid=1000,mode=0400\n"
            f"[Service]\nLoadCredential=key:{tmp_path}/key\nLoadCredential=key2:{tmp_path}/key\n"
            f"SetCredential=set:as text\nSetCredentialEncrypted=sealed: {sealed}\n",
            none_container=f"{SLEEP}Secret=there-is-none\n",
        )
        start("web.service")
        told = str(eventually("it has looked", lambda: "renamed" in journal("web.service") and journal("web.service")))
        assert "a keyas texta keynever in a file" in told and "from the store" in told, told
        assert re.search(r"-r-------- +1 1000 .* renamed", told), told
        for folder in Path("/run/teu/units").iterdir():
            assert folder.stat().st_mode & 0o077 == 0
        assert start("none.service", check=False)
        assert "no credential there-is-none" in journal("none.service")
    finally:
        stored.unlink()


@pytest.mark.needs("vm")
@pytest.mark.parametrize("network", ["bridge", "host"])
def test_addresses_that_its_unit_denies(declare: Declared, network: str) -> None:
    """systemd's filter is of the control group: it holds in whatever network the container has."""
    hosts = {"allowed": "198.51.100.6", "denied": "198.51.100.7"}
    tries = "".join(
        f"nc -w 2 {address} 8097 </dev/null && echo reached {name} || echo cut off from {name}; "
        for name, address in hosts.items()
    )
    text = f"[Container]\nImage=busybox\nNetwork={network}\nStopTimeout=1\nExec=sh -c '{tries}sleep 1000'\n"
    filters = f"[Service]\nIPAddressDeny=any\nIPAddressAllow={hosts['allowed']}\n"
    with socket.create_server(("0.0.0.0", 8097)) as server, contextlib.ExitStack() as stack:

        def answer() -> None:
            with contextlib.suppress(OSError):  # it is closed in the end
                while True:
                    server.accept()[0].close()

        threading.Thread(target=answer, daemon=True).start()
        stack.callback(server.shutdown, socket.SHUT_RDWR)
        for address in hosts.values():
            call("ip", "address", "add", f"{address}/32", "dev", "lo")
            stack.callback(call, "ip", "address", "del", f"{address}/32", "dev", "lo")
        declare.write(web_container=text + filters, open_container=text)
        for unit, word in (("open.service", "reached denied"), ("web.service", "cut off from denied")):
            start(unit)
            eventually(f"{unit}: {word}", lambda unit=unit, word=word: word in journal(unit))  # type: ignore[misc]
            assert "reached allowed" in journal(unit)


def test_reload(declare: Declared) -> None:
    script = 'trap "echo heard" HUP; echo up; while :; do sleep 0.1; done'
    declare.write(
        web_container=f"[Container]\nImage=busybox\nReloadSignal=HUP\nStopTimeout=1\nExec=sh -c '{script}'\n",
        cmd_container=f"{SLEEP}ReloadCmd=touch /tmp/reloaded\n",
    )
    start("web.service")
    eventually("it is up", lambda: "up" in journal("web.service"))
    call("systemctl", "reload", "web.service")
    eventually("it has heard", lambda: "heard" in journal("web.service"))
    start("cmd.service")
    call("systemctl", "reload", "cmd.service")
    assert teu("exec", "systemd-cmd", "ls", "/tmp/reloaded").stdout
    call("systemctl", "kill", "--kill-whom=main", "-s", "HUP", "web.service")
    eventually("signals are passed on", lambda: journal("web.service").count("heard") == 2)


def test_daemons_may_go_and_come_back(declare: Declared) -> None:
    declare.write(web_container=SLEEP)
    start("web.service")
    pid = pid_of("systemd-web")
    call("systemctl", "restart", "teud.service", "teu-containerd.service")
    os.kill(main_pid("teud.service"), signal.SIGKILL)
    call("systemctl", "stop", "teud.service", "teu-containerd.service")
    time.sleep(1.5)  # nothing tells that nobody connects
    assert state("teud.service") in ("inactive", "failed"), "a running container needs no daemon"
    eventually("teud is back", lambda: not teu("ps", check=False).returncode)
    assert (state("web.service"), pid_of("systemd-web")) == ("active", pid)
    call("systemctl", "stop", "web.service")
    assert show("web.service", "Result") == "success"


def test_a_stop_while_the_daemons_are_away(declare: Declared) -> None:
    """They come before the unit in systemd's order, which would hold their start back until it has stopped."""
    declare.write(web_container=SLEEP)
    start("web.service")
    call("systemctl", "stop", "teud.service", "teu-containerd.service")
    assert state("teud.service") == "inactive"
    call("systemctl", "stop", "web.service")
    assert show("web.service", "Result") == "success"
    assert teu("inspect", "systemd-web", check=False).returncode


def test_a_teu_unit_that_is_killed_takes_its_container_along(declare: Declared) -> None:
    declare.write(web_container=SLEEP)
    start("web.service")
    pid = pid_of("systemd-web")
    os.kill(main_pid("web.service"), signal.SIGKILL)
    becomes("web.service", "failed")
    assert not Path(f"/proc/{pid}").exists()
    assert teu("inspect", "systemd-web", check=False).returncode
    start("web.service")


def test_a_name_that_is_taken_stays_with_its_owner(declare: Declared) -> None:
    teu("run", "-d", "--name", "mine", "busybox", "sleep", "1000")
    try:
        declare.write(web_container=f"{SLEEP}ContainerName=mine\n")
        assert start("web.service", check=False)
        assert "the name mine is taken" in journal("web.service")
        assert teu("inspect", "-f", "{{.State.Running}}", "mine").stdout == "true\n"
    finally:
        teu("rm", "-f", "mine")


def test_a_container_that_is_removed_ends_its_unit(declare: Declared) -> None:
    declare.write(web_container=SLEEP)
    start("web.service")
    teu("rm", "-f", "systemd-web")
    becomes("web.service", "failed")
