# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost: the daemons die at random moments, while containers run and while work is under way.

Each test is a loop; the counts it ends with are printed.  The moment of death is random; the seed is printed, so
that a failure can be looked at again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator

import images
import pytest
import whole
from lab_kind import PATIENCE
from whole import out, teu

pytestmark = pytest.mark.timeout(600)
Death = Callable[[], None]


def kill_nine(unit: str) -> None:
    pid = whole.main_pid(unit)
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def engine_dies() -> None:
    kill_nine("teud.service")


def containerd_dies() -> None:
    kill_nine("teu-containerd.service")


def both_die() -> None:
    kill_nine("teu-containerd.service")
    kill_nine("teud.service")


def engine_restarts() -> None:
    whole.call("systemctl", "restart", "teud.service", check=False)


def containerd_restarts() -> None:
    whole.call("systemctl", "restart", "teu-containerd.service", check=False)


DEATHS: dict[str, Death] = {
    "kill -9 teud": engine_dies,
    "kill -9 teu-containerd": containerd_dies,
    "kill -9 both": both_die,
    "restart teud": engine_restarts,
    "restart teu-containerd": containerd_restarts,
}


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    images.need_busybox()
    whole.remove_everything()
    yield
    whole.remove_everything()
    whole.eventually("the host is clean at the end", lambda: not whole.leftovers(), timeout=30)


@pytest.fixture(scope="module")
def dice() -> random.Random:
    seed = int(os.environ.get("TEU_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
    print(f"seed: TEU_SEED={seed}")
    return random.Random(seed)


def answers() -> bool:
    return teu("ps", "-q", check=False, timeout=60).returncode == 0


def init_pid(ident: str) -> int:
    inside = whole.procs(whole.scope_of(ident) / "container")
    return inside[0] if inside else 0


def test_running_containers_keep_running(rounds: Callable[[int], int], dice: random.Random) -> None:
    """PIDs stay, and every line that a container wrote is in its log once."""
    count = rounds(50)
    pause = 4000 * PATIENCE**2  # the lines are not to take the processor from the daemons
    script = f"i=0; while :; do i=$((i+1)); echo line $i; usleep {pause}; done"
    steady = whole.run_detached("steady", "sleep", "3600")
    writer = whole.run_detached("writer", "sh", "-c", script, flags=("--log-driver", "json-file"))
    before = {ident: init_pid(ident) for ident in (steady, writer)}
    assert all(before.values())
    done: Counter[str] = Counter()
    try:
        for _ in range(count):
            name = dice.choice(list(DEATHS))
            time.sleep(dice.uniform(0, 0.3) * PATIENCE)
            DEATHS[name]()
            whole.eventually(f"an answer after {name}", answers)
            done[name] += 1
            assert {ident: init_pid(ident) for ident in before} == before, f"after {name}"
        time.sleep(0.5)
        lines = [int(line.split()[1]) for line in teu("logs", "writer").stdout.splitlines()]
        assert lines, "nothing was logged"
        missing = sorted(set(range(1, max(lines) + 1)) - set(lines))
        twice = len(lines) - len(set(lines))
        print(f"rounds: {sum(done.values())} {dict(done)}; lines {len(lines)}, missing {len(missing)}, twice {twice}")
        assert not missing, missing[:20]
        assert lines == sorted(lines)
        assert twice <= count, "more lines are there twice than daemons died"
    finally:
        teu("rm", "-f", "steady", "writer", check=False)


def test_exits_meanwhile_are_known(rounds: Callable[[int], int], dice: random.Random) -> None:
    """A container exits while its daemons are dead; the code is known afterwards."""
    count = rounds(50)
    done: Counter[str] = Counter()
    for index in range(count):
        name = dice.choice(list(DEATHS))
        code = dice.randrange(1, 120)
        ident = whole.run_detached(f"mortal{index}", "sh", "-c", f"sleep {dice.uniform(0.05, 0.3):.2f}; exit {code}")
        DEATHS[name]()
        whole.eventually("the container is gone", lambda i=ident: not init_pid(i))
        assert out("teu", "wait", f"mortal{index}") == str(code), f"after {name}"
        state = whole.inspect(f"mortal{index}")["State"]
        assert isinstance(state, dict) and state["ExitCode"] == code and state["Status"] == "exited"
        teu("rm", f"mortal{index}")
        done[name] += 1
    print(f"rounds: {sum(done.values())} {dict(done)}; every exit code was known")


def test_an_exit_wakes_the_stopped_daemons() -> None:
    """With both daemons stopped, an exit starts them: the engine removes a --rm container by itself."""
    ident = out("teu", "run", "-d", "--rm", "--name", "last", whole.IMAGE, "sleep", str(1.5 * PATIENCE))
    out("systemctl", "stop", "teud.service", "teu-containerd.service")
    assert init_pid(ident), "the container died with its daemons"
    whole.eventually("systemd has started teud again", lambda: whole.main_pid("teud.service"))
    whole.eventually("the container is removed", lambda: "last" not in out("teu", "ps", "-a"))


def test_an_exit_that_was_half_handled_keeps_its_code() -> None:
    """The engine died after containerd had deleted the task, and before it had recorded the exit that it had noted."""
    ident = whole.run_detached("half", "sleep", "3600")
    try:
        out("systemctl", "stop", "teud.socket", "teud.service")
        try:
            with contextlib.closing(sqlite3.connect("/var/lib/teu/engine/engine.db")) as database, database:
                (data,) = database.execute("SELECT data FROM containers WHERE id=?", (ident,)).fetchone()
                record = json.dumps({**json.loads(data), "ended": [77, time.time_ns()]})
                database.execute("UPDATE containers SET data=? WHERE id=?", (record, ident))
            # Its exit status is the task's.
            whole.call("teu-ctr", "-n", "teu", "tasks", "delete", "--force", ident, check=False)
        finally:
            out("systemctl", "start", "teud.socket")
        assert out("teu", "wait", "half") == "77"
        state = whole.inspect("half")["State"]
        assert isinstance(state, dict) and (state["Status"], state["ExitCode"]) == ("exited", 77)
    finally:
        teu("rm", "-f", "half", check=False)


@pytest.mark.parametrize("verb", ["create", "start", "stop", "remove", "run"])
def test_deaths_during_work(verb: str, rounds: Callable[[int], int], dice: random.Random) -> None:
    """A daemon dies while a container is made, started, stopped or removed.

    What was acknowledged holds; what was not is either whole or gone, and can be removed; nothing half-made stays.
    """
    count = rounds(10)  # five verbs: fifty rounds in all
    witness = whole.run_detached("witness", "sleep", "3600")
    alive = init_pid(witness)
    done: Counter[str] = Counter()
    try:
        for index in range(count):
            name = f"{verb}{index}"
            if verb in ("start", "stop", "remove"):
                teu("create", "--name", name, whole.IMAGE, "sleep", "3600")
            if verb in ("stop", "remove"):
                teu("start", name)
            argv = {
                "create": ["create", "--name", name, whole.IMAGE, "sleep", "3600"],
                "start": ["start", name],
                "stop": ["stop", "-t", "0", name],
                "remove": ["rm", "-f", name],
                "run": ["run", "-d", "--name", name, whole.IMAGE, "sleep", "3600"],
            }[verb]
            death = dice.choice(list(DEATHS))
            worker = subprocess.Popen(["teu", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            time.sleep(dice.uniform(0, 0.15) * PATIENCE)
            DEATHS[death]()
            worker.communicate(timeout=60 * PATIENCE)
            whole.eventually(f"an answer after {death}", answers)
            assert init_pid(witness) == alive
            found = name in out("teu", "ps", "-a", "--format", "{{.Names}}").split()
            ok = worker.returncode == 0
            done["acknowledged" if ok else "refused"] += 1
            if ok:
                assert found == (verb != "remove"), f"{argv} was acknowledged"
                if found:
                    state = whole.inspect(name)["State"]
                    assert isinstance(state, dict)
                    wanted = {"create": "created", "start": "running", "run": "running", "stop": "exited"}[verb]
                    assert state["Status"] == wanted, f"{argv} was acknowledged; {death}"
            if found:
                teu("rm", "-f", name)
            assert name not in out("teu", "ps", "-a", "--format", "{{.Names}}").split()
    finally:
        teu("rm", "-f", "witness", check=False)
    whole.eventually("nothing half-made stays", lambda: not whole.leftovers(), timeout=30)
    print(f"{verb}: rounds {count} {dict(done)}")
