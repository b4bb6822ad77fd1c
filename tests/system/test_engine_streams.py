# SPDX-License-Identifier: Apache-2.0
"""Terminals, attach, detach, stdin and logs through Debian's docker CLI."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import images
import pytest
from engine import (
    ENVIRONMENT,
    HOST,
    IMAGE,
    SOCKET,
    Terminal,
    detached,
    docker,
    eventually,
    inspect,
    need_busybox,
    out,
    remove,
    run,
    state,
)
from whole import out as out_of

pytestmark = pytest.mark.needs("docker")


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    need_busybox()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    mine = "s-" + re.sub(r"\W+", "-", request.node.name)[:40].strip("-")
    remove(mine)
    yield mine
    remove(mine)


def test_stdin_goes_in_and_ends() -> None:
    data = bytes(range(256)) * 4000
    done = run("-i", IMAGE, "sh", "-c", "wc -c; echo end", stdin=data)
    assert done.stdout.split() == [str(len(data)), "end"]


def test_output_streams_are_apart() -> None:
    done = run(IMAGE, "sh", "-c", "echo out; echo err >&2; head -c 3000000 /dev/zero | tr '\\0' y")
    assert done.stdout.startswith("out\n") and len(done.stdout) == 3_000_004
    assert done.stderr == "err\n"


def test_terminal(name: str) -> None:
    terminal = Terminal("run", "-it", "--name", name, *HOST, IMAGE, "sh", rows=33, columns=99)
    try:
        terminal.expect("# ")
        terminal.type("stty size; tty\n")
        terminal.expect("33 99")
        terminal.expect("/dev/")
        terminal.resize(40, 111)
        for _ in range(50):
            terminal.type("stty size\n")
            try:
                terminal.expect("40 111", timeout=0.5)
                break
            except AssertionError:
                continue
        else:
            raise AssertionError("the new size did not arrive")
        terminal.type("sleep 600\n")
        time.sleep(0.2)
        terminal.type("\x03")
        terminal.type("echo still-$((1+1))\n")
        terminal.expect("still-2")
        terminal.type("\x10\x11")
        assert terminal.wait() == 0
        assert state(name)["Running"]
        again = Terminal("attach", name)
        try:
            time.sleep(0.3)
            again.type("echo back-$((2+2))\n")
            again.expect("back-4")
            again.type("exit 6\n")
            assert again.wait() == 6
        finally:
            again.close()
    finally:
        terminal.close()


def test_terminal_of_exec(name: str) -> None:
    detached(name, "sleep", "600")
    terminal = Terminal("exec", "-it", "--detach-keys", "ctrl-x,z", name, "sh", rows=20, columns=70)
    try:
        terminal.expect("# ")
        terminal.type("stty size\n")
        terminal.expect("20 70")
        terminal.type("\x18z")
        terminal.wait()
        assert "sh" in out("top", name)
    finally:
        terminal.close()


def test_signals_are_forwarded(name: str) -> None:
    script = "trap 'echo got; exit 8' TERM; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        ["docker", "run", "--name", name, *HOST, IMAGE, "sh", "-c", script],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.read() == "got\n"
    assert process.wait(20) == 8


def test_attach_shows_what_comes(name: str) -> None:
    detached(name, "sh", "-c", "while read line; do echo got $line; done", flags=(*HOST, "-i"))
    process = subprocess.Popen(
        ["docker", "attach", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("one\n")
    process.stdin.flush()
    assert process.stdout.readline() == "got one\n"
    out("kill", name)
    assert process.wait(20) == 137


@pytest.mark.parametrize("driver", ["journald", "json-file", "local"])
def test_logs(name: str, driver: str) -> None:
    script = "for i in 1 2 3 4; do echo out$i; echo err$i >&2; sleep 0.02; done; printf 'tail \"x\\\\'"
    docker("run", "--name", name, *HOST, "--log-driver", driver, IMAGE, "sh", "-c", script)
    both = docker("logs", name)
    assert both.stdout == 'out1\nout2\nout3\nout4\ntail "x\\'
    assert both.stderr == "err1\nerr2\nerr3\nerr4\n"
    tail = docker("logs", "--tail", "3", name)
    # Which of two pipes was read first, where both had a line, nobody knows.
    assert both.stdout.endswith(tail.stdout) and both.stderr.endswith(tail.stderr)
    assert len([*tail.stdout.splitlines(), *tail.stderr.splitlines()]) == 3 and tail.stdout.endswith('tail "x\\')
    stamped = out("logs", "-t", "--tail", "1", name)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z tail \"x\\", stamped)
    assert docker("logs", "--since", "1h", name).stdout.startswith("out1")
    assert docker("logs", "--since", f"{time.time() + 60:.0f}", name).stdout == ""
    assert docker("logs", "--until", "1h", name).stdout == ""
    assert docker("logs", "--tail", "0", name).stdout == ""


@pytest.mark.parametrize("driver", ["journald", "json-file"])
def test_logs_are_followed(name: str, driver: str) -> None:
    script = "echo first; read x; echo second; read x; echo third"
    detached(name, "sh", "-c", script, flags=(*HOST, "-i", "--log-driver", driver))
    eventually("the first line is logged", lambda: out("logs", name))
    process = subprocess.Popen(["docker", "logs", "-f", name], stdout=subprocess.PIPE, env=ENVIRONMENT, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    feeder = subprocess.Popen(
        ["docker", "attach", "--no-stdin=false", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=ENVIRONMENT,
        text=True,
    )
    assert feeder.stdin is not None
    feeder.stdin.write("\n")
    feeder.stdin.flush()
    assert process.stdout.readline() == "second\n"
    feeder.stdin.write("\n")
    feeder.stdin.flush()
    assert process.stdout.read() == "third\n"
    assert process.wait(20) == 0
    feeder.wait(20)


def test_an_exec_outlives_the_engine(name: str) -> None:
    """Its output keeps flowing with nobody attached, so that it comes to its end."""
    detached(name, "sleep", "600")
    script = (
        "i=0; while [ $i -lt 40 ]; do i=$((i+1)); head -c 20000 /dev/zero; sleep 0.02; done; touch /tmp/done; sleep 600"
    )
    process = subprocess.Popen(["docker", "exec", name, "sh", "-c", script], stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    eventually("the exec runs", lambda: "head -c" in out("top", name) or "sleep 0.02" in out("top", name))
    subprocess.run(["systemctl", "kill", "-s", "KILL", "teud"], check=True)
    process.wait(20)
    eventually(
        "the exec comes to its end",
        lambda: docker("exec", name, "test", "-e", "/tmp/done", check=False).returncode == 0,
    )
    assert len(inspect(name)["ExecIDs"]) == 1
    out("exec", name, "killall", "sleep")
    eventually("the exec is forgotten", lambda: not inspect(name)["ExecIDs"])


def test_no_log(name: str) -> None:
    done = docker("run", "--name", name, *HOST, "--log-driver", "none", IMAGE, "echo", "x")
    assert done.stdout == "x\n"
    assert "does not support reading" in docker("logs", name, check=False).stderr


def test_the_journal_has_dockers_fields(name: str) -> None:
    long = "y" * 40_000
    docker(
        "run",
        "--name",
        name,
        *HOST,
        "--label",
        "team=blue",
        "--log-opt",
        "labels=team",
        "--log-opt",
        "tag=T/{{.Name}}",
        IMAGE,
        "sh",
        "-c",
        "echo plain; echo bad >&2; head -c 40000 /dev/zero | tr '\\0' y; echo",
    )
    identity = inspect(name)["Id"]

    def entries() -> list[dict[str, str]]:
        text = subprocess.run(
            ["journalctl", "-q", "-o", "json", "--all", f"CONTAINER_NAME={name}", f"CONTAINER_ID_FULL={identity}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return [json.loads(line) for line in text.splitlines()]

    found = eventually("all entries are in the journal", lambda: len(entries()) == 5 and entries())
    assert isinstance(found, list)
    first = found[0]
    assert first["MESSAGE"] == "plain" and first["PRIORITY"] == "6"
    assert first["CONTAINER_ID_FULL"] == identity and first["CONTAINER_ID"] == identity[:12]
    assert first["IMAGE_NAME"] == "busybox" and first["CONTAINER_TAG"] == f"T/{name}" == first["SYSLOG_IDENTIFIER"]
    assert first["TEAM"] == "blue"
    assert {entry["PRIORITY"] for entry in found if entry["MESSAGE"] == "bad"} == {"3"}
    parts = [entry for entry in found if "CONTAINER_PARTIAL_ID" in entry]
    assert "".join(entry["MESSAGE"] for entry in parts) == long
    assert [entry.get("CONTAINER_PARTIAL_MESSAGE") for entry in parts] == ["true", "true", None]
    assert docker("logs", name).stdout == f"plain\n{long}\n"


def test_journald_may_be_restarted(name: str) -> None:
    """Not a line is lost, nor there twice (moby#19728)."""
    script = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo line $i; usleep 2000; done"
    detached(name, "sh", "-c", script)
    for _ in range(3):
        time.sleep(0.2)
        subprocess.run(["systemctl", "restart", "systemd-journald"], check=True)
    assert out("wait", name) == "0\n"
    assert out("logs", name).splitlines() == [f"line {number}" for number in range(1, 601)]


def test_rotation_keeps_the_end(name: str) -> None:
    flags = (*HOST, "--log-driver", "json-file", "--log-opt", "max-size=20k", "--log-opt", "max-file=3")
    detached(name, "sh", "-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done", flags=flags)
    assert out("wait", name) == "0\n"
    lines = out("logs", name).splitlines()
    assert 300 < len(lines) < 2000
    assert lines == [f"line {number}" for number in range(2001 - len(lines), 2001)]


def test_a_reader_that_leaves_holds_nothing(name: str) -> None:
    detached(name, "sh", "-c", "while :; do echo line; usleep 1000; done", flags=(*HOST, "--log-driver", "json-file"))
    readers = [
        subprocess.Popen(["docker", "logs", "-f", name], stdout=subprocess.DEVNULL, env=ENVIRONMENT) for _ in range(5)
    ]
    time.sleep(0.5)
    for reader in readers:
        reader.kill()
        reader.wait()
    before = len(out("logs", "--tail", "100000", name))
    eventually("the log grows", lambda: len(out("logs", "--tail", "100000", name)) > before)


def test_many_at_once(name: str) -> None:
    codes: list[int] = []

    def one(number: int) -> None:
        done = run(IMAGE, "sh", "-c", f"echo {number}; exit {number}", check=False)
        codes.append(done.returncode if done.stdout == f"{number}\n" else -1)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == list(range(1, 13))


def _threads_of_teud() -> int:
    pid = out_of("systemctl", "show", "--value", "-p", "MainPID", "teud")
    return len(os.listdir(f"/proc/{pid}/task"))


def _take_over(target: str, body: bytes, data: bytes) -> None:
    """A client that takes the connection over, sends, says that nothing more comes, and vanishes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(SOCKET)
        head = f"POST /v1.45{target} HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n"
        client.sendall(head.encode() + b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + body)
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.2)


def test_a_client_that_vanishes_after_its_last_word_holds_no_thread(name: str) -> None:
    """Of a process that neither reads nor writes, and of a container that is never started."""
    idle = f"{name}-idle"[-60:].lstrip("-")
    detached(name, "sleep", "1000")
    remove(idle)
    out("create", "-i", "--name", idle, *HOST, IMAGE, "cat")
    try:
        before = _threads_of_teud()
        for _ in range(10):
            body = {"AttachStdin": True, "AttachStdout": True, "Cmd": ["sleep", "1000"]}
            status, made = images.api("POST", f"/containers/{name}/exec", body)
            assert status == 201
            _take_over(f"/exec/{made['Id']}/start", b"{}", b"")
            _take_over(f"/containers/{idle}/attach?stream=1&stdin=1&stdout=1", b"", b"typed")
        eventually("no thread is held", lambda: _threads_of_teud() < before + 8)
    finally:
        remove(idle)
