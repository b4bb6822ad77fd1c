# SPDX-License-Identifier: Apache-2.0
"""What a shim promises besides the calls: its place in systemd, one shim for a group, no leak, output that
waits for its reader, exit codes that are known after the worst, and its command line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import peers
import pytest
import taskhouse
from taskhouse import House, says

pytestmark = pytest.mark.needs("systemd", "ctr")

SHIM = "/usr/bin/containerd-shim-teu-v2"


@pytest.fixture(scope="module")
def h() -> Iterator[House]:
    """Our whole stack below ctr."""
    with taskhouse.house("teu-containerd", runtime="teu-runc") as made:
        yield made
        made.check_left()


@pytest.fixture(scope="module")
def real() -> Iterator[House]:
    """Our shim under Debian's containerd."""
    with taskhouse.house("containerd", runtime="runc") as made:
        yield made
        made.check_left()


@pytest.mark.parametrize("shim", [taskhouse.OWN_SHIM, "io.containerd.runc.v2"])
def test_runtimes_find_themselves_in_the_bundle(shim: str, tmp_path: Path) -> None:
    """Also one that reads config.json as if it were given no --bundle."""
    wrapper = tmp_path / "runtime"
    note = f"[ -s config.json ] && pwd >>{tmp_path}/seen || echo none >>{tmp_path}/seen"
    wrapper.write_text(f'#!/bin/sh\n{note}\nexec runc "$@"\n')
    wrapper.chmod(0o755)
    with taskhouse.house("containerd", shim=shim, runtime=str(wrapper)) as made:
        bundle = made.bundle("there")
        assert made.run("there", "echo", "hello") == "hello\n"
        seen = (tmp_path / "seen").read_text().splitlines()
        # The shim's clean-up runs in it too, or after it has gone.
        assert set(seen[:2]) == {str(bundle)}
        made.check_left()


def show(unit: str, prop: str) -> str:
    return peers.run("systemctl", "show", "--value", "-p", prop, unit).stdout.strip()


def cgroup_of(pid: int) -> str:
    return next(line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))


def units(pattern: str) -> list[str]:
    return peers.run("systemctl", "list-units", "--all", "--plain", "--no-legend", pattern).stdout.split("\n")[:-1]


@pytest.mark.parametrize("which", ["h", "real"])
def test_place(which: str, request: pytest.FixtureRequest) -> None:
    """Scope, delegation, shim/ and container/, parents and command line: whoever starts it."""
    h: House = request.getfixturevalue(which)
    pid = h.start("place1", "sleep", "600")
    shim = h.shim_pid("place1")
    assert cgroup_of(shim) == "/teu.slice/teu-place1.scope/shim"
    assert cgroup_of(pid) == "/teu.slice/teu-place1.scope/container"
    assert show("teu-place1.scope", "Delegate") == "yes"
    assert show("teu-place1.scope", "CollectMode") == "inactive-or-failed"
    assert show("teu-place1.scope", "Slice") == "teu.slice"
    assert "place1" in show("teu-place1.scope", "Description")
    assert taskhouse.parent_of(shim) == 1
    assert taskhouse.argv_of(shim) == [
        SHIM,
        "-namespace",
        "default",
        "-id",
        "place1",
        "-address",
        str(h.daemon.address),
    ]
    assert Path(f"/proc/{shim}/comm").read_text() == "containerd-shim\n"
    assert len(os.listdir(f"/proc/{shim}/task")) == 1
    assert not any(
        "teu-runc" in " ".join(taskhouse.argv_of(int(p)))
        for p in os.listdir("/proc")
        if p.isdigit() and int(p) != os.getpid() and "pytest" not in " ".join(taskhouse.argv_of(int(p)))
    )
    h.remove("place1")
    peers.wait_until(lambda: not units("teu-place1*"), "the scope is gone")


def start_trapping(h: House, name: str, trap: str, flags: tuple[str, ...] = ()) -> None:
    """A container that waits for a signal, when its traps are set."""
    ready = h.rootfs / "tmp" / f"ready-{name}"
    script = f"{trap}; touch /tmp/{ready.name}; while :; do sleep 0.05; done"
    h.start(name, "sh", "-c", script, flags=flags)
    peers.wait_until(ready.exists, f"{name} has set its traps")
    ready.unlink()


@pytest.mark.parametrize("which", ["h", "real"])
def test_systemctl_stop(which: str, request: pytest.FixtureRequest, lab: str) -> None:
    """Stopping the scope is docker stop: the process may end in its own way, and how it did is known."""
    h: House = request.getfixturevalue(which)
    start_trapping(h, "stop1", "trap 'exit 42' TERM")
    began = time.monotonic()
    peers.run("systemctl", "stop", "teu-stop1.scope")
    assert time.monotonic() - began < (60 if lab == "vm-emulated" else 8), "it waited for the grace to end"
    assert h.task("stop1") is not None and (h.task("stop1") or (0, ""))[1] == "STOPPED"
    assert h.remove("stop1") == 42
    peers.wait_until(lambda: not units("teu-stop1*"), "the scopes are gone")


def test_systemctl_stop_ends_with_sigkill(h: House) -> None:
    h.start("stop2", "sleep", "600", flags=("--annotation", "io.teu.stop-timeout=0.5"))
    peers.run("systemctl", "stop", "teu-stop2.scope")
    assert h.remove("stop2") == 137


def test_stop_signal_of_the_image(h: House) -> None:
    start_trapping(
        h,
        "stop3",
        "trap '' TERM; trap 'exit 3' QUIT",
        flags=("--annotation", "org.opencontainers.image.stopSignal=SIGQUIT"),
    )
    peers.run("systemctl", "stop", "teu-stop3.scope")
    assert h.remove("stop3") == 3


def test_a_stop_sends_nothing_but_the_stop_signal(h: House) -> None:
    """Not to the first process, and not to its children."""
    traps = "trap 'touch /tmp/told' TERM HUP INT; sh -c \"trap 'touch /tmp/told' TERM HUP INT USR1; sleep 600\" & "
    start_trapping(
        h, "stop4", traps + "trap 'exit 4' USR1", flags=("--annotation", "org.opencontainers.image.stopSignal=SIGUSR1")
    )
    peers.run("systemctl", "stop", "teu-stop4.scope")
    assert h.remove("stop4") == 4
    assert not (h.rootfs / "tmp/told").exists()


def test_a_scope_ends_before_the_mounts_that_it_uses(h: House) -> None:
    place = Path("/run/order1")
    place.mkdir()
    peers.run("mount", "-t", "tmpfs", "tmpfs", str(place))
    try:
        (place / "below").mkdir()
        h.start("order1", "sleep", "600", flags=("--mount", f"type=bind,src={place}/below,dst=/mnt,options=rbind:rw"))
        assert {"run-order1.mount", "teu.slice"} <= set(show("teu-order1.scope", "After").split())
        h.remove("order1")
    finally:
        peers.run("umount", str(place))
        place.rmdir()


@pytest.mark.parametrize("which", ["h", "real"])
def test_group(which: str, request: pytest.FixtureRequest) -> None:
    """Containers of a pod have one shim, which ends with the last of them."""
    h: House = request.getfixturevalue(which)
    note = ("--annotation", "io.kubernetes.cri.sandbox-id=pod1")
    first = h.start("pod1", "sleep", "600", flags=note)
    second = h.start("pod2", "sleep", "600", flags=note)
    shim = taskhouse.parent_of(first)
    assert taskhouse.parent_of(second) == shim
    assert cgroup_of(first) != cgroup_of(second)
    assert h.exec("pod2", "e", *says("two")) == "two\n"
    h.remove("pod1")
    assert taskhouse.alive(shim) and h.task("pod2") == (second, "RUNNING")
    h.remove("pod2")
    peers.wait_until(lambda: not taskhouse.alive(shim), "the shim ends with its last container")


@pytest.mark.timeout(1500)
def test_no_leak(rounds: Callable[[int], int]) -> None:
    """Descriptors, threads, mounts, files, zombies and memory after many execs are those of before.

    The execs come by ttrpc on a connection of our own; TEU_ROUNDS=5 makes them 10,000."""
    from teu.ttrpc import client as ttrpc
    from teu.ttrpc import messages as m
    from teu.ttrpc.status import StatusError

    with taskhouse.house("teu-containerd", runtime="crun") as h:
        pid = h.start("leak1", "sleep", "6000")
        shim = h.shim_pid("leak1")
        address = json.loads((h.bundle("leak1") / "bootstrap.json").read_text())["address"]

        def holdings() -> dict[str, object]:
            children = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
            return {
                "descriptors": sorted(
                    re.sub(r"\d+", "N", os.readlink(f"/proc/{shim}/fd/{fd}")) for fd in os.listdir(f"/proc/{shim}/fd")
                ),
                "threads": os.listdir(f"/proc/{shim}/task"),
                "mounts": len(Path(f"/proc/{shim}/mounts").read_text().splitlines()),
                "children": [int(child) for child in children],
                "files": sorted(path.name for path in h.bundle("leak1").iterdir()),
            }

        def spec(args: list[str]) -> dict[str, object]:
            process = {"cwd": "/", "args": args, "env": [taskhouse.PATH], "user": {"uid": 0, "gid": 0}}
            return {
                "type_url": "types.containerd.io/opencontainers/runtime-spec/1/Process",
                "value": json.dumps(process).encode(),
            }

        async def execs(start: int, count: int) -> None:
            client = await ttrpc.connect(address)

            async def call(method: str, exec_id: str, **fields: object) -> dict[str, object]:
                return await client.task(m.TASK_SERVICES[1], method, {"id": "leak1", "exec_id": exec_id, **fields}, 60)

            async def one(n: int) -> None:
                name = f"e{n}"
                await call("Exec", name, spec=spec(["sh", "-c", f"exit {n % 7}"]), terminal=n % 5 == 0)
                await call("Start", name)
                assert (await call("Wait", name))["exit_status"] == n % 7
                assert (await call("Delete", name))["exit_status"] == n % 7

            for first in range(start, start + count, 4):
                await asyncio.gather(*(one(n) for n in range(first, min(first + 4, start + count))))
            await call("Exec", "missing", spec=spec(["/nonsense"]))
            try:
                await call("Start", "missing")
                raise AssertionError("a missing program was started")
            except StatusError as error:
                assert "nonsense" in error.message
            await call("Delete", "missing")
            client.close()
            await client.closed.wait()

        def settled() -> dict[str, object] | None:
            """The shim notices a moment later that the connection is closed."""
            first = holdings()
            time.sleep(0.3)
            return first if first == holdings() and first["children"] == [pid] else None

        asyncio.run(execs(0, 20))
        before = peers.wait_until(settled, "the shim to have nothing to do")
        memory = memory_of([shim])
        count = rounds(500)
        asyncio.run(execs(100, count))
        peers.wait_until(lambda: holdings() == before, "the shim holds what it held before", 10)
        assert holdings()["children"] == [pid]
        grown = memory_of([shim]) - memory
        print(f"{count} execs: nothing is left of them; memory {memory:.0f} kB, then {grown:+.0f} kB")
        assert grown < 1000
        assert (h.task("leak1") or (0, ""))[1] == "RUNNING"
        h.remove("leak1")
        peers.wait_until(lambda: h.leftovers() == [], "all is gone")


def test_output_waits_for_its_reader(h: House, tmp_path: Path) -> None:
    """FIFOs are held open: output of a time without reader is read later, up to the last byte."""
    fifo = tmp_path / "stdout"
    os.mkfifo(fifo)
    before = taskhouse.Events(h.daemon)
    # ctr has no flag for FIFOs of one's own: a bare path as log URI is one.
    h.start("fifo1", "sh", "-c", "echo first; echo second; exit 5", flags=("--log-uri", str(fifo)))
    h.stopped("fifo1")
    before.close()
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 4096) == b"first\nsecond\n"
    assert os.read(reader, 4096) == b""
    os.close(reader)
    assert h.remove("fifo1") == 5


def test_a_reader_that_does_not_read(h: House, tmp_path: Path) -> None:
    """It holds up the writer, and nobody else."""
    fifo = tmp_path / "stdout"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    h.start("stuck1", "sh", "-c", "head -c 1000000 /dev/zero; exit 8", flags=("--log-uri", str(fifo)))
    assert h.exec("stuck1", "e", *says("not stuck")) == "not stuck\n"
    assert (h.task("stuck1") or (0, ""))[1] == "RUNNING"
    os.set_blocking(reader, True)
    got = 0
    while data := os.read(reader, 65536):
        got += len(data)
    os.close(reader)
    assert got == 1000000
    h.stopped("stuck1")
    assert h.remove("stuck1") == 8


def test_a_shim_that_hangs(h: House) -> None:
    """The others are served meanwhile, and it is found again when it goes on, also by a new daemon."""
    h.start("hung1", "sleep", "600")
    h.start("hung2", "sleep", "600")
    shim = h.shim_pid("hung1")
    os.kill(shim, signal.SIGSTOP)
    try:
        assert h.exec("hung2", "e", *says("served")) == "served\n"
        assert h.task("hung2")
        h.restart()
        assert h.exec("hung2", "e2", *says("served")) == "served\n"
    finally:
        os.kill(shim, signal.SIGCONT)
    assert (h.task("hung1") or (0, ""))[1] == "RUNNING"
    assert h.exec("hung1", "e", *says("back")) == "back\n"
    h.remove("hung1")
    h.remove("hung2")


def test_a_subscriber_that_hangs(h: House) -> None:
    """Who reads no events holds up neither the shims nor the other subscribers; when it goes on, it has missed none."""
    hung, awake = taskhouse.Events(h.daemon), taskhouse.Events(h.daemon)
    try:
        os.kill(hung.pid, signal.SIGSTOP)
        try:
            h.start("unheard", "sleep", "600")
            for n in range(10):
                h.exec("unheard", f"e{n}", "sh", "-c", f"exit {n}", code=n)
            h.remove("unheard")
            peers.wait_until(lambda: "/tasks/delete" in awake.topics("unheard"), "the other one is told")
        finally:
            os.kill(hung.pid, signal.SIGCONT)
        peers.wait_until(lambda: "/tasks/delete" in hung.topics("unheard"), "it is told when it goes on")
        assert hung.tasks("unheard") == awake.tasks("unheard")
        assert awake.topics("unheard").count("/tasks/exit") == 11
    finally:
        hung.close()
        awake.close()


def memory_of(pids: list[int]) -> float:
    """Mean proportional memory of processes, in kB."""
    total = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))
    return total / len(pids)


@pytest.mark.needs("fast")
def test_memory(h: House) -> None:
    """A shim costs about half of containerd's own, with twenty of each."""
    means = {}
    for kind, made in (("own", h), ("real", House(h.daemon, taskhouse.REAL_SHIM, "runc", h.base))):
        pids = [made.start(f"{kind}{n}", "sleep", "600") for n in range(20)]
        means[kind] = memory_of([taskhouse.parent_of(pid) for pid in pids])
        for n in range(20):
            made.remove(f"{kind}{n}")
    print(f"proportional memory per shim with 20 running: {means}, ratio {means['own'] / means['real']:.2f}")
    assert means["own"] < 0.6 * means["real"]


def test_killed_shim_and_daemon(h: House) -> None:
    """Daemon and shim killed: at the next start the container is gone, and so is everything of it."""
    pid = h.start("dead1", "sleep", "600")
    shim = h.shim_pid("dead1")
    h.daemon.kill()
    os.kill(shim, 9)
    peers.wait_until(lambda: not taskhouse.alive(shim), "the shim is dead")
    h.daemon.launch()
    assert h.task("dead1") is None
    peers.wait_until(lambda: not taskhouse.alive(pid), "the container is gone")
    assert not h.bundle("dead1").exists()
    peers.wait_until(lambda: not units("teu-dead1*"), "the scope is gone")
    h.daemon("containers", "delete", "dead1")


def test_random_deaths_of_the_daemon(h: House, rounds: Callable[[int], int]) -> None:
    """kill -9 of teu-containerd at any moment of a container's life: afterwards the task either is there and
    works, or was never acknowledged; nothing is left of the others."""
    import random

    seed = random.Random(7)
    counts = {"acknowledged": 0, "undone": 0, "lost": 0}
    for n in range(rounds(20)):
        name = f"death{n}"
        client = subprocess.Popen(
            [*h.daemon.client, "run", "-d", *h.flags, str(h.rootfs), name, "sleep", "600"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        time.sleep(seed.random() * 0.25)
        h.daemon.kill()
        acknowledged = client.wait() == 0
        h.daemon.launch()
        task = h.task(name)
        if task and task[1] == "RUNNING":
            assert h.exec(name, "e", *says("works")) == "works\n"
        counts["acknowledged" if acknowledged else "undone"] += 1
        if acknowledged and not task:
            counts["lost"] += 1
        h.daemon.result("tasks", "delete", "--force", name, code=None)
        h.daemon.result("containers", "delete", name, code=None)
        peers.wait_until(lambda: h.leftovers() == [], f"round {n} leaves nothing", 20)
    print(counts)
    assert counts["lost"] == 0


def test_events_wait_for_the_daemon(h: House) -> None:
    """Events of a time without daemon are told by the next one, in order."""
    h.start("late1", "sh", "-c", "while [ ! -e /tmp/late ]; do sleep 0.02; done; exit 6")
    pid = h.pid("late1")
    h.daemon.kill()
    (h.rootfs / "tmp" / "late").touch()
    peers.wait_until(lambda: not taskhouse.alive(pid), "it has ended")
    h.daemon.launch()
    h.daemon("namespaces", "ls")
    assert (h.task("late1") or (0, ""))[1] == "STOPPED"
    (h.rootfs / "tmp" / "late").unlink()
    assert h.remove("late1") == 6


def test_command_line(tmp_path: Path) -> None:
    """start, delete and -info by hand, with address and with JSON."""
    assert peers.run(SHIM, "-v").stdout.startswith("containerd-shim-teu-v2")
    result = peers.run(SHIM, "-id", "x", "start", code=1)
    assert "namespace" in result.stderr
    assert (
        b"io.containerd.teu.v2"
        in subprocess.run([SHIM, "-info"], stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    )
    for version, expected in (("", 0), ("2", 2), ("3", 3), ("7", 3)):
        bundle = tmp_path / f"b{version}"
        bundle.mkdir()
        (bundle / "config.json").write_text("{}")
        environment = {"PATH": os.environ["PATH"], "TTRPC_ADDRESS": ""}
        if version:
            environment["MAX_SHIM_VERSION"] = version
        shown = subprocess.run(
            [SHIM, "-namespace", "n", "-id", f"x{version}", "-address", str(tmp_path), "start"],
            cwd=bundle,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if expected:
            answer = json.loads(shown)
            assert (answer["version"], answer["protocol"]) == (expected, "ttrpc")
            address = answer["address"]
        else:
            address = shown
        assert address.startswith("unix://") and (bundle / "address").read_text() == address
        path = address.removeprefix("unix://")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            # Shutdown, of a shim without containers: it goes.
            payload = b"\x0a\x17containerd.task.v3.Task\x12\x08Shutdown\x1a\x00"
            peer.sendall(len(payload).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"\x01\x00" + payload)
            while peer.recv(4096):
                pass
        peers.wait_until(lambda path=path: not os.path.exists(path), "the socket is gone")
        cleaned = subprocess.run(
            [SHIM, "-namespace", "n", "-id", f"x{version}", "-bundle", str(bundle), "delete"],
            cwd=bundle,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        ).stdout
        assert b"\x10\x89\x01" in cleaned  # exit_status 137


@pytest.mark.needs("memory")
def test_oom(h: House) -> None:
    """An OOM kill is told as an event, before the exit."""
    events = taskhouse.Events(h.daemon)
    try:
        h.start(
            "oom1",
            "sh",
            "-c",
            "head -c 200000000 /dev/zero | tail -c 190000000 | wc",
            flags=("--memory-limit", "20000000"),
        )
        peers.wait_until(lambda: "/tasks/oom" in events.topics("oom1"), "the OOM kill is told")
        h.remove("oom1")
    finally:
        events.close()
