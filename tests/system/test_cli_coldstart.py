# SPDX-License-Identifier: Apache-2.0
"""The package's quick start of `teu` (teu.coldstart) is the one that happens, and nobody notices but by the time."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
from coldstarts import FOLDER, archive, without
from whole import call, out, teu

pytestmark = pytest.mark.needs("packages", "systemd")

PROGRAM = "/usr/bin/teu"
NAME = "quick"
# What changes from one `ps` to the next.
AGE = re.compile(rb"(Less than a second|\d+ seconds?|About a minute|\d+ minutes)( ago)?")


@pytest.fixture(scope="module", autouse=True)
def container() -> Iterator[None]:
    images.need_busybox()
    teu("run", "-d", "--name", NAME, "--network", "none", "busybox", "sh", "-c", "echo é; exec sleep 100000")
    yield
    teu("rm", "-f", NAME)


def traced(tmp_path: Path, *words: str) -> list[str]:
    """What files the client looks for."""
    log = tmp_path / "trace"
    call("strace", "-qq", "-e", "trace=%file", "-o", str(log), PROGRAM, *words)
    return log.read_text().splitlines()


QUICK = (
    "ps -a",
    f"inspect {NAME}",
    f"logs {NAME}",
    f"exec {NAME} true",
    f"exec -d {NAME} true",
    f"top {NAME}",
    "run --rm --network none busybox true",
    "run --name quick2 --network none -e A=é -v /tmp:/x busybox echo é",
    "start -a quick2",
    "start quick2",
    "wait quick2",
    "stop quick2",
    "rm quick2",
    "images",
    "network ls",
    "volume ls",
    "version",
    "--version",
)


def test_no_module_is_looked_for_in_files(tmp_path: Path) -> None:
    """Nor is Python's start completed: it would look for its library."""
    for words in QUICK:
        calls = traced(tmp_path, *words.split())
        assert any(str(archive("teu")) in call for call in calls)
        calls = [call for call in calls if str(archive("teu")) not in call and '"/usr/bin/python3"' not in call]
        others = [call for call in calls if "python" in call and "libpython" not in call and "lib-dynload" not in call]
        assert not others, f"{words}: {others}"


def test_what_is_left_out_is_made_up_for(tmp_path: Path) -> None:
    """Text files, regular expressions, templates, help, what is asked of the user."""
    variables = tmp_path / "variables"
    variables.write_text("A=é\n")
    said = teu("run", "--rm", "--network", "none", "--env-file", str(variables), "busybox", "sh", "-c", "echo $A")
    assert said.stdout == "é\n"
    assert teu("ps", "--format", "é {{.Names}}", "--filter", f"name=^{NAME}$").stdout == f"é {NAME}\n"
    assert teu("inspect", "-f", "{{.State.Status}}", NAME).stdout == "running\n"
    assert "Usage:  teu run" in teu("run", "--help").stdout
    assert "Local Volumes" in teu("system", "df").stdout
    asked = subprocess.run([PROGRAM, "volume", "prune"], input="n\n", capture_output=True, text=True, check=False)
    assert "Are you sure" in asked.stdout and "Traceback" not in asked.stderr


# The same words to the program and to the script.
SAME: tuple[tuple[bytes, ...], ...] = (
    (b"ps", b"--no-such"),
    (b"ps", b"-\xff"),
    (b"no\xffsuch",),
    (b"inspect", b"no\xff such"),
    (b"inspect", "no é".encode()),
    (b"run", b"--rm", b"\xff"),
    (b"run", b"--rm", b"--network", b"none", b"busybox", b"echo", b"\xff \xed\xa0\x80 \xc3\xa9 \xed\x95\x9c"),
    (b"run", b"--rm", b"--network", b"none", b"-e", b"ODD", b"busybox", b"env"),
    (b"run", b"--rm", b"--network", b"none", b"-e", b"A=\xff", b"busybox", b"env"),
    (b"run", b"--rm", b"--detach-keys", "é".encode(), b"busybox", b"true"),
    (b"exec", NAME.encode(), b"ec\xffho"),
    (b"exec", NAME.encode(), b"sh", b"-c", b"printf '\\377x'; exit 7"),
    (b"ps", b"--format", b"\xff {{.Names}}"),
    (b"ps", b"--filter", b"name=\xff"),
    (b"logs", NAME.encode()),
    (b"logs", b"--since", b"\xff", NAME.encode()),
    (b"--config", b"/nonexistent\xff", b"ps", b"-q", b"--filter", b"name=x"),
    (b"-H", b"unix:///nonexistent\xff", b"ps"),
    (b"-H", b"tcp://\xff:1", b"ps"),
    (b"-H", b"nonsense://x", b"ps"),
    (b"--context", b"no\xff", b"ps"),
    (b"cp", NAME.encode() + b":/no\xff", b"/tmp"),
    (b"volume", b"create", b"\xff"),
    (b"network", b"inspect", b"\xff"),
)


def test_texts_that_are_no_unicode() -> None:
    """Where the core of Python alone would end in a crash, or lose a byte."""
    environment = {**os.environ, "ODD": "\udcff\udc80é"}
    environment.pop("DOCKER_HOST", None)
    for words in SAME:
        told = []
        for program in ([PROGRAM], ["/usr/bin/python3", "-IS", f"{FOLDER}/teu"]):
            done = subprocess.run(
                [*program, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=120,
                check=False,
                env=environment,
            )
            texts = [re.sub(rb"[0-9a-f]{12,64}", b"ID", text) for text in (done.stdout, done.stderr)]
            told.append((done.returncode, *texts))
        assert told[0] == told[1], words
        assert told[0][0] >= 0 and b"Traceback" not in told[0][2]


def test_files_that_are_no_unicode(tmp_path: Path) -> None:
    """The user's file, and one of variables."""
    odd = tmp_path / "odd"
    odd.mkdir()
    for data in (
        b'{"psFormat": "\xff{{.Names}}"}',
        b'{"HttpHeaders": {"A": "\xff"}}',
        b"\xff\xfe",
        b'{"proxies": {"\\ud800": 1}}',
    ):
        (odd / "config.json").write_bytes(data)
        told = []
        for program in ([PROGRAM], ["/usr/bin/python3", "-IS", f"{FOLDER}/teu"]):
            done = subprocess.run([*program, "--config", str(odd), "ps"], capture_output=True, timeout=60, check=False)
            told.append((done.returncode, AGE.sub(b"some time", done.stdout), done.stderr))
        assert told[0] == told[1], data
    variables = tmp_path / "variables"
    variables.write_bytes(b"A=\xff\n")
    done = teu("run", "--rm", "--env-file", str(variables), "busybox", "true", check=False)
    assert done.returncode == 125 and "invalid utf8 bytes at line 1" in done.stderr


@pytest.mark.parametrize("missing", ["archive", "stale", "libpython"])
def test_without_a_part_it_starts_as_a_script(tmp_path: Path, missing: str) -> None:
    quick = json.loads(teu("inspect", NAME).stdout)
    if missing == "stale":
        # byte code of another Python
        whole = archive("teu").read_bytes()
        archive("teu").write_bytes(whole[:8] + b"\0\0\0\0" + whole[12:])
        try:
            slow = teu("inspect", NAME).stdout
        finally:
            archive("teu").write_bytes(whole)
    else:
        (library,) = Path("/usr/lib").glob(f"*/libpython{archive('teu').suffix.removeprefix('.cpython-')[0]}.*.so.1.0")
        with without(archive("teu") if missing == "archive" else library):
            calls = traced(tmp_path, "ps")
            slow = teu("inspect", NAME).stdout
        script = f'execve("/usr/bin/python3", ["/usr/bin/python3", "-IS", "{FOLDER}/teu"'
        assert any(script in call for call in calls)
    assert json.loads(slow) == quick


def test_the_environment_does_not_reach_the_interpreter(tmp_path: Path) -> None:
    """As with python -I: no PYTHON* variable changes what runs, neither at once nor when the start is completed."""
    for name in ("os", "re", "json", "encodings", "codecs", "socket"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hostile')\n")
    variables = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "PYTHONSTARTUP": "x"}
    for words in (["ps"], ["run", "--help"], ["ps", "--format", "{{.Names}} é"], ["-H", "tcp://127.0.0.1:1", "ps"]):
        done = subprocess.run(
            [PROGRAM, *words],
            env={**os.environ, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "hostile" not in done.stderr and "Traceback" not in done.stderr
        assert done.returncode == (1 if "-H" in words else 0), done.stderr


# -- signals ------------------------------------------------------------------------------------------


def begun(*words: str, **options: object) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([PROGRAM, *words], text=True, **{**pipes, **options})  # type: ignore[call-overload,no-any-return]


def waits_in(child: subprocess.Popen[str], *states: str) -> None:
    """Until it sleeps in a call that has no end of its own."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if any(state in Path(f"/proc/{child.pid}/syscall").read_text().split()[:1] for state in states):
            return
        time.sleep(0.01)
    raise AssertionError(f"{child.args} does not wait")


# recvfrom and poll, by their numbers on x86-64 and arm64; ppoll.
CALLS = ("45", "207", "7", "73")


def test_an_interrupted_command_says_what_it_has_done() -> None:
    for words in (["wait", NAME], ["logs", "-f", NAME], ["events"]):
        child = begun(*words)
        if words[0] == "logs":
            assert child.stdout is not None and child.stdout.readline() == "é\n"
        waits_in(child, *CALLS)
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=60) == ("", ""), words
        assert child.returncode == 130, words


def test_an_interrupted_run_leaves_no_file(tmp_path: Path) -> None:
    """--cidfile: what was begun is undone, though most commands are ended at once."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "silent"))
    listener.listen()
    child = begun("-H", f"unix://{tmp_path}/silent", "run", "--cidfile", str(tmp_path / "cid"), "busybox")
    connection, _ = listener.accept()
    waits_in(child, *CALLS)
    assert (tmp_path / "cid").exists()
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 130 and not (tmp_path / "cid").exists()
    connection.close()


def test_an_interrupt_that_the_caller_ignores_is_ignored() -> None:
    child = begun("wait", NAME, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    waits_in(child, *CALLS)
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGTERM


def test_signals_reach_the_process_that_is_attached() -> None:
    """By the signalfd: those that come together, and one that the caller ignores."""
    script = 'trap "echo INT" INT; trap "echo TERM" TERM; trap "echo USR1; exit 9" USR1; echo ready; '
    script += "while :; do sleep 0.05; done"
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for options in ({}, ignored):
        child = begun("run", "--rm", "--init", "--network", "none", "busybox", "sh", "-c", script, **options)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for number, word in ((signal.SIGINT, "INT\n"), (signal.SIGTERM, "TERM\n"), (signal.SIGUSR1, "USR1\n")):
            child.send_signal(number)
            assert child.stdout.readline() == word
        assert child.wait(60) == 9


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{PROGRAM} inspect {NAME} {NAME} {NAME} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() in ("0", "141") and done.stderr == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(closed: str) -> None:
    """None of them becomes the socket to the daemon."""
    call("bash", "-c", f"{PROGRAM} run --rm --network none busybox true {closed}")
    assert out("bash", "-c", f"{PROGRAM} ps -q {closed} | cat") in ("", out(PROGRAM, "ps", "-q"))


def test_what_cannot_be_written_is_an_error() -> None:
    done = call("bash", "-c", f"{PROGRAM} ps >/dev/full", check=False)
    assert done.returncode == 1
