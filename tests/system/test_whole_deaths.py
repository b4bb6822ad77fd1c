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
from whole import DEATHS, out, teu

pytestmark = pytest.mark.timeout(600)


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


def listed() -> dict[str, tuple[str, str]]:
    """{name: (id, state)} of all containers, as soon as there is an answer."""
    command = ("ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.ID}} {{.State}}")
    found: list[str] = []

    def ask() -> bool:
        done = teu(*command, check=False, timeout=60)
        found[:] = done.stdout.splitlines()
        return done.returncode == 0

    whole.eventually("an answer", ask)
    return {name: (ident, state) for name, ident, state in map(str.split, found)}


def init_pid(ident: str) -> int:
    inside = whole.procs(whole.scope_of(ident) / "container")
    return inside[0] if inside else 0


def test_running_containers_keep_running(rounds: Callable[[int], int], dice: random.Random) -> None:
    """PIDs stay, and every line that a container wrote is in its log once, whichever driver logs it; also when it
    is journald that restarts."""
    kinds = DEATHS | {"restart journald": whole.Death(("systemd-journald.service",), restart=True, limited=False)}
    count = rounds(14)
    pause = 4000 * PATIENCE**2  # the lines are not to take the processor from the daemons
    script = f"i=0; while :; do i=$((i+1)); echo line $i; usleep {pause}; done"
    steady = whole.run_detached("steady", "sleep", "3600")
    writers = {driver: f"writer-{driver}" for driver in ("json-file", "journald")}
    before = {steady: init_pid(steady)}
    for driver, name in writers.items():
        ident = whole.run_detached(name, "sh", "-c", script, flags=("--log-driver", driver))
        before[ident] = init_pid(ident)
    assert all(before.values())
    done: Counter[str] = Counter()
    try:
        for name in whole.deaths(count, dice, kinds):
            victims = kinds[name].aim()
            time.sleep(dice.uniform(0, 0.3) * PATIENCE)
            kinds[name].strike(victims)
            whole.eventually(f"an answer after {name}", answers)
            done[name] += 1
            assert {ident: init_pid(ident) for ident in before} == before, f"after {name}"
        print(f"rounds: {sum(done.values())} {dict(done)}")
        teu("stop", "-t", "0", *writers.values())
        for driver, writer in writers.items():
            lines = [int(line.split()[1]) for line in teu("logs", writer).stdout.splitlines()]
            assert lines, f"nothing was logged by {driver}"
            missing = sorted(set(range(1, max(lines) + 1)) - set(lines))
            twice = len(lines) - len(set(lines))
            print(f"{driver}: lines {len(lines)}, missing {len(missing)}, twice {twice}")
            assert not missing, f"{driver}: {missing[:20]}"
            assert lines == sorted(lines), driver
            assert twice <= count, f"{driver}: more lines are there twice than daemons died"
    finally:
        teu("rm", "-f", "steady", *writers.values(), check=False)


def test_exits_meanwhile_are_known(rounds: Callable[[int], int], dice: random.Random) -> None:
    """A container exits while its daemons are dead or die; the code is known afterwards."""
    count = rounds(14)
    done: Counter[str] = Counter()
    for index, name in enumerate(whole.deaths(count, dice)):
        victims = DEATHS[name].aim()
        code = dice.randrange(1, 120)
        ident = whole.run_detached(f"mortal{index}", "sh", "-c", f"sleep {dice.uniform(0.05, 0.3):.2f}; exit {code}")
        while index % 2 and init_pid(ident):
            time.sleep(0.002)  # every other death comes while the exit is being handled
        DEATHS[name].strike(victims)
        whole.eventually("the container is gone", lambda i=ident: not init_pid(i))
        assert out("teu", "wait", f"mortal{index}") == str(code), f"after {name}"
        state = whole.inspect(f"mortal{index}")["State"]
        assert isinstance(state, dict) and state["ExitCode"] == code and state["Status"] == "exited"
        teu("rm", f"mortal{index}")
        done[name] += 1
    print(f"rounds: {sum(done.values())} {dict(done)}; every exit code was known")


def test_a_shim_that_does_not_answer_is_no_exit() -> None:
    """The daemons start again while a shim is too slow to say how its container is: it runs, by all that is known."""
    ident = whole.run_detached("mute", "sleep", "3600")
    out("teu", "exec", "-d", "mute", "sleep", "3601")
    first, (shim,) = init_pid(ident), whole.shims(ident)
    try:
        os.kill(shim, signal.SIGSTOP)
        try:
            DEATHS["kill -9 both"].strike(DEATHS["kill -9 both"].aim())
            assert listed()["mute"] == (ident, "running")
            state = whole.inspect("mute")["State"]
            assert isinstance(state, dict) and state["Pid"] == first
            time.sleep(1)  # of a second look, which comes soon after the start
            assert listed()["mute"] == (ident, "running")
        finally:
            os.kill(shim, signal.SIGCONT)
        assert out("teu", "exec", "mute", "echo", "well") == "well"
        assert "sleep 3601" in out("teu", "top", "mute"), "its other process has gone"
        assert init_pid(ident) == first
        teu("kill", "--signal", "KILL", "mute")
        assert out("teu", "wait", "mute") == "137"
    finally:
        teu("rm", "-f", "mute", check=False)


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


def test_a_client_in_the_foreground_may_lose_its_daemons(dice: random.Random) -> None:
    """`run --rm` ends with its container's exit code where it can be told, and the container is removed anyhow."""
    for number, death in enumerate(whole.deaths(len(DEATHS), dice)):
        name, victims = f"foreground{number}", DEATHS[death].aim()
        client = subprocess.Popen(
            ["teu", "run", "--rm", "--name", name, whole.IMAGE, "sh", "-c", "echo up; sleep 1; exit 7"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert client.stdout is not None and client.stdout.readline() == "up\n"
        DEATHS[death].strike(victims)
        _, said = client.communicate(timeout=60 * PATIENCE)
        if death.endswith(" teu-containerd"):
            assert client.returncode == 7, f"{death}: {said}"
        else:
            assert client.returncode in (7, 125), f"{death}: {said}"
            assert said or client.returncode == 7, death
        whole.eventually(f"{name} is removed after {death}", lambda n=name: n not in listed())


def attach(name: str, line: str) -> subprocess.Popen[str]:
    """A session that has sent the line to the container, and has seen it come back."""
    session = subprocess.Popen(
        ["teu", "attach", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert session.stdin and session.stdout
    session.stdin.write(f"{line}\n")
    session.stdin.flush()
    assert session.stdout.readline() == f"got {line}\n"
    return session


def test_sessions_over_a_death() -> None:
    """An exec'd process outlives the daemons that started it, and is forgotten when it ends; a container that was
    attached to can be attached to again."""
    ident = whole.run_detached("sessions", "sh", "-c", "while read line; do echo got $line; done", flags=("-i",))
    command = "mkfifo /go; echo up; read line < /go; touch /done; exit 3"
    session = subprocess.Popen(
        ["teu", "exec", "sessions", "sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert session.stdout and session.stdout.readline() == "up\n"
    attached = attach("sessions", "one")
    shells = whole.procs(whole.scope_of(ident) / "container")
    assert len(shells) == 2
    DEATHS["kill -9 both"].strike(DEATHS["kill -9 both"].aim())
    _, said = session.communicate(timeout=60 * PATIENCE)
    assert session.returncode != 0 and said, "an exec whose end nobody saw has not succeeded"
    attached.communicate(timeout=60 * PATIENCE)
    whole.eventually("an answer", answers)
    assert whole.procs(whole.scope_of(ident) / "container") == shells, "the exec'd process went with it"
    again = attach("sessions", "two")
    again.kill()
    again.communicate()
    assert len(whole.inspect("sessions")["ExecIDs"] or ()) == 1  # type: ignore[arg-type]
    teu("exec", "sessions", "sh", "-c", "echo > /go")
    whole.eventually(
        "the exec'd process went on to its end",
        lambda: teu("exec", "sessions", "test", "-e", "/done", check=False).returncode == 0,
    )
    whole.eventually("its session is forgotten", lambda: not whole.inspect("sessions")["ExecIDs"])
    teu("rm", "-f", "sessions")


def test_restart_policies_over_a_death() -> None:
    """What died while no daemon was there is started again or not, as its policy says."""
    always = whole.run_detached("always", "sleep", "3600", flags=("--restart", "always"))
    stopped = whole.run_detached("stopped", "sleep", "3600", flags=("--restart", "unless-stopped"))
    killed = whole.run_detached("killed", "sleep", "3600", flags=("--restart", "unless-stopped"))
    whole.run_detached("failing", "sh", "-c", "sleep 0.4; exit 1", flags=("--restart", "on-failure:3"))
    teu("stop", "-t", "0", "stopped")
    teu("kill", "killed")
    old = init_pid(always)
    DEATHS["kill -9 both"].strike(DEATHS["kill -9 both"].aim())
    os.kill(old, 9)
    whole.eventually("always runs again", lambda: init_pid(always) not in (0, old))

    def gave_up() -> bool:
        found = whole.inspect("failing")
        return found["RestartCount"] == 3 and listed()["failing"][1] == "exited"

    whole.eventually("on-failure:3 was tried three times", gave_up)
    states = {name: listed()[name][1] for name in ("always", "stopped", "killed")}
    assert states == {"always": "running", "stopped": "exited", "killed": "exited"}
    assert not init_pid(stopped) and not init_pid(killed)
    teu("rm", "-f", "always", "stopped", "killed", "failing")


def command(verb: str, name: str) -> list[str]:
    return {
        "create": ["create", "--name", name, whole.IMAGE, "sleep", "3600"],
        "start": ["start", name],
        "stop": ["stop", "-t", "0", name],
        "remove": ["rm", "-f", name],
        "run": ["run", "-d", "--name", name, whole.IMAGE, "sleep", "3600"],
    }[verb]


def prepare(verb: str, name: str) -> None:
    if verb == "start":
        teu(*command("create", name))
    if verb in ("stop", "remove"):
        teu(*command("run", name))


# What an acknowledged verb has made of its container.
MADE = {"create": "created", "start": "running", "run": "running", "stop": "exited", "remove": ""}


def test_the_first_answer_knows_what_has_ended() -> None:
    """As after a reboot: daemons, shims and containers went together, and none of these is shown as running."""
    idents = [whole.run_detached(f"gone{number}", "sleep", "3600") for number in range(12)]
    out("systemctl", "stop", "teud.service", "teu-containerd.service")
    for ident in idents:
        scope = whole.scope_of(ident)
        (scope / "cgroup.kill").write_text("1")
    assert sorted(out("teu", "ps", "-a", "--format", "{{.State}}").split()) == ["exited"] * len(idents)
    teu("rm", *idents)


@pytest.mark.parametrize("verb", list(MADE))
def test_deaths_during_work(verb: str, rounds: Callable[[int], int], dice: random.Random) -> None:
    """A daemon dies while a container is made, started, stopped or removed.

    What was acknowledged holds; what was not is either whole or gone, and can be started and removed; nothing
    half-made stays. Pulls are in test_images_deaths.
    """
    before = images.baseline()
    witness = whole.run_detached("witness", "sleep", "3600")
    alive = init_pid(witness)
    prepare(verb, "usual")
    began = time.monotonic()
    teu(*command(verb, "usual"))
    usual = time.monotonic() - began
    done: dict[str, Counter[str]] = {death: Counter() for death in DEATHS}
    try:
        for index, death in enumerate(whole.deaths(rounds(10), dice)):
            name = f"{verb}{index}"
            prepare(verb, name)
            victims = DEATHS[death].aim()
            worker = subprocess.Popen(
                ["teu", *command(verb, name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            time.sleep(dice.uniform(0, usual * 1.2))
            DEATHS[death].strike(victims)
            _, said = worker.communicate(timeout=60 * PATIENCE)
            ok = worker.returncode == 0
            done[death]["acknowledged" if ok else "refused"] += 1
            ident, state = listed().get(name, ("", ""))
            assert init_pid(witness) == alive, f"after {death}"
            if ok:
                assert state == MADE[verb], f"acknowledged, then {death}"
            else:
                assert said, f"refused without a word; {death}"
            if ident:
                # Asked again: what died with its daemon away may be about to be noticed.
                whole.eventually(
                    f"{state} and its processes agree; {death}",
                    lambda n=name, i=ident: bool(init_pid(i)) == (listed()[n][1] == "running"),
                )
                if not ok and not init_pid(ident):
                    teu("start", name)
                teu("rm", "-f", name)
    finally:
        teu("rm", "-f", "witness", "usual", check=False)
    whole.eventually("nothing half-made stays", lambda: not whole.leftovers(), timeout=30)
    images.settle(before)
    print(f"{verb}: {sum(sum(counts.values()) for counts in done.values())} deaths; {usual * 1000:.0f} ms without")
    for death, counts in done.items():
        print(f"    {death}: {dict(counts)}")
