# SPDX-License-Identifier: Apache-2.0
"""`teu run --sdnotify` in units of a user's own: when systemd takes them for ready, beside podman's."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from declared import HOST_PYTHON, SPEAK, UNITS, becomes, start, state
from images import need_busybox
from whole import call, eventually, out, show, teu

pytestmark = pytest.mark.needs("systemd", "teud")
NAME = "sd-notify"
UNIT = f"{NAME}.service"
SERVICE = "[Service]\nType=notify\nNotifyAccess=all\nRuntimeDirectory=sd-notify\nTimeoutStartSec=60\nExecStart="
# A first process hears of no signal that it has no handler for.
STAYS = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")
CHECK = ("--health-cmd", "test -e /tmp/well", "--health-interval", "1s", "--health-retries", "1")
# The host's Python inside, for a program that speaks to systemd.
PYTHON = tuple(word.replace("Volume=", "-v") for word in HOST_PYTHON.split())


class Engine:
    """teu, or podman without cgroups of its own, for which the namespace lab has no controllers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.run = [f"/usr/bin/{name}", "run", "--rm", "--name", NAME, "--network", "host"]
        self.run += ["--cgroups=disabled", "--log-driver=none"] if name == "podman" else []

    def declare(self, kind: str, *words: str) -> None:
        # A program of systemd's is not given to a shell: words are between quotes, with its own signs twice.
        quoted = " ".join('"' + word.replace("%", "%%").replace('"', '\\"') + '"' for word in words)
        (UNITS / UNIT).write_text(f"{SERVICE}{' '.join(self.run)} --sdnotify={kind} {quoted}\n")
        call("systemctl", "daemon-reload")


@pytest.fixture(params=["teu", "podman"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    need_busybox()
    if name == "podman":
        teu("save", "-o", str(tmp_path / "busybox.tar"), "busybox")
        call("podman", "load", "-q", "-i", str(tmp_path / "busybox.tar"))
    try:
        yield Engine(name)
    finally:
        call("systemctl", "stop", UNIT, check=False)
        (UNITS / UNIT).unlink(missing_ok=True)
        call("systemctl", "daemon-reload")
        call("systemctl", "reset-failed", check=False)
        call(name, "rm", "-f", NAME, check=False)
    assert not list(Path("/run").glob("sd-notify*")), "a folder is left"


def events(since: str) -> list[str]:
    words = ("--since", since, "--until", f"{time.time():.6f}", "--filter", f"container={NAME}", "--format", "json")
    return [json.loads(line)["Action"] for line in teu("events", *words).stdout.splitlines()]


def test_ready_when_it_runs(engine: Engine) -> None:
    since = f"{time.time():.6f}"
    engine.declare("conmon", "busybox", *STAYS)
    start(UNIT)
    assert state(UNIT) == "active"
    assert call(engine.name, "exec", NAME, "true").returncode == 0
    if engine.name == "teu":
        assert show(UNIT, "StatusText") == "Running"
        eventually("there is an event", lambda: "ready" in events(since))
    call("systemctl", "stop", UNIT)
    if engine.name == "teu":  # with the unit systemd ends what podman has started to remove it
        eventually("it has gone", lambda: NAME not in out("teu", "ps", "-a", "--format", "{{.Names}}").split())


def test_ready_when_it_says_so(engine: Engine) -> None:
    since = f"{time.time():.6f}"
    program = (
        f"import signal; {SPEAK}; signal.signal(15, lambda *_: sys.exit()); say('STATUS=warming up');"
        " [time.sleep(0.05) for _ in iter(lambda: os.path.exists('/tmp/go'), True)];"
        " say('READY=1\\\\nSTATUS=serving'); time.sleep(1000)"
    )
    engine.declare("container", *PYTHON, "busybox", "/usr/bin/python3", "-c", program)
    assert not call("systemctl", "start", "--no-block", UNIT).returncode
    eventually("it is heard", lambda: show(UNIT, "StatusText") == "warming up")
    assert state(UNIT) == "activating"
    if engine.name == "teu":
        assert "ready" not in events(since)
    call(engine.name, "exec", NAME, "/bin/busybox", "touch", "/tmp/go")
    becomes(UNIT, "active")
    eventually("it is heard", lambda: show(UNIT, "StatusText") == "serving")
    if engine.name == "teu":
        eventually("there is an event", lambda: "ready" in events(since))
        assert teu("ps", "--filter", f"name={NAME}", "--format", "{{.Status}}").stdout.endswith(": serving\n")
        assert '"StatusText":"serving"' in teu("inspect", "-f", "{{json .State}}", NAME).stdout


def test_ready_when_it_is_healthy(engine: Engine) -> None:
    since = f"{time.time():.6f}"
    engine.declare("healthy", *CHECK, "busybox", *STAYS)
    assert not call("systemctl", "start", "--no-block", UNIT).returncode
    eventually("it runs", lambda: call(engine.name, "exec", NAME, "true", check=False).returncode == 0)
    if engine.name == "teu":
        eventually("a check has failed", lambda: "health_status: unhealthy" in events(since))
        assert "ready" not in events(since)
    assert state(UNIT) == "activating"
    call(engine.name, "exec", NAME, "touch", "/tmp/well")
    becomes(UNIT, "active")
    if engine.name == "teu":
        assert show(UNIT, "StatusText") == "Healthy"
        eventually("there is an event", lambda: "ready" in events(since))


def test_what_cannot_be_ready() -> None:
    need_busybox()
    done = teu("run", "-d", "--sdnotify=conmon", "busybox", "true", check=False)
    assert done.returncode == 125 and "leave out --detach" in done.stderr
    done = teu("run", "--rm", "--sdnotify=soon", "busybox", "true", check=False)
    assert done.returncode == 125 and "must be one of container, healthy, conmon, ignore" in done.stderr
    assert teu("run", "--rm", "--network", "none", "--sdnotify=healthy", "busybox", "echo", "x").stdout == "x\n"


def test_no_check_that_could_tell() -> None:
    need_busybox()
    mine = Engine("teu")
    mine.declare("healthy", "busybox", *STAYS)
    try:
        assert start(UNIT, check=False)
        call("journalctl", "--sync")
        assert "give --health-cmd" in out("journalctl", "-q", "-o", "cat", "-u", UNIT)
    finally:
        teu("rm", "-f", NAME, check=False)
        (UNITS / UNIT).unlink()
        call("systemctl", "daemon-reload")
        call("systemctl", "reset-failed", check=False)
