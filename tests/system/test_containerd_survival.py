# SPDX-License-Identifier: Apache-2.0
"""Containers and sandboxes go on while teu-containerd is killed and restarted; the next one finds them all again.

TEU_ROUNDS scales the numbers: with 7 there are a hundred containers, twenty empty and twenty full sandboxes, twenty
kills and twenty restarts.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peers
import pytest
from taskhouse import OWN_SHIM, PATH, REAL_SHIM, TeuContainerd, alive, argv_of, parent_of

pytestmark = [pytest.mark.needs("ctr"), pytest.mark.timeout(900)]

CREATED, RUNNING = 1, 2  # containerd.v1.types.Status
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
RUNC_OPTIONS = "containerd.runc.v1.Options"
HEADERS = [("containerd-namespace", "default")]
SCOPES = Path("/sys/fs/cgroup/teu.slice")


class Pods:
    """Containers and sandboxes on a containerd, by its own API."""

    def __init__(self, daemon: Any, base: Path) -> None:
        self.daemon = daemon
        self._rootfs = peers.busybox_rootfs(base / "rootfs")
        self._spec = json.loads(peers.run("ctr", "oci", "spec").stdout)
        self._spec["linux"].pop("resources", None)
        self._spec["process"].update(args=["sleep", "6000"], env=[PATH], terminal=False)

    def call(self, service: str, method: str, /, timeout: float = 60, **fields: Any) -> Any:
        """For instance call("Tasks", "Start", container_id="x"), call("Controller", "Stop", sandbox_id="x")."""
        import grpc

        from teu.api.services.containers.v1 import containers_pb2
        from teu.api.services.sandbox.v1 import sandbox_pb2
        from teu.api.services.tasks.v1 import tasks_pb2

        module = {"Containers": containers_pb2, "Tasks": tasks_pb2}.get(service, sandbox_pb2)
        found = module.DESCRIPTOR.services_by_name[service]
        described = found.methods_by_name[method]
        with grpc.insecure_channel(f"unix:{self.daemon.address}") as channel:
            call = channel.unary_unary(
                f"/{found.full_name}/{method}",
                request_serializer=described.input_type._concrete_class.SerializeToString,
                response_deserializer=described.output_type._concrete_class.FromString,
            )
            return call(described.input_type._concrete_class(**fields), metadata=HEADERS, timeout=timeout)

    def fails(self, code: str, service: str, method: str, **fields: Any) -> str:
        """The message of a call that must fail with that status."""
        import grpc

        with pytest.raises(grpc.RpcError) as failed:
            self.call(service, method, **fields)
        assert failed.value.code().name == code, failed.value
        return str(failed.value.details())

    def start(self, name: str, sandbox: str = "", shim: str = OWN_SHIM, runtime: Path | None = None) -> int:
        """A running container; its first process. `runtime` is run in place of teu-runc."""
        from teu.ttrpc import messages as m

        options = None
        spec = json.loads(json.dumps(self._spec))
        spec["linux"]["cgroupsPath"] = f"/default/{name}"
        value = {"type_url": SPEC, "value": json.dumps(spec).encode()}
        made = {"id": name, "runtime": {"name": shim}, "spec": value, "sandbox": sandbox}
        if runtime:
            options = m.encode_any(RUNC_OPTIONS, {"binary_name": str(runtime)})
            made["runtime"] = {"name": shim, "options": options}
        self.call("Containers", "Create", container=made)
        bind = {"type": "bind", "source": str(self._rootfs), "options": ["rbind", "rw"]}
        self.call("Tasks", "Create", container_id=name, rootfs=[bind], options=options)
        return int(self.call("Tasks", "Start", container_id=name).pid)

    def remove(self, name: str) -> None:
        """Kill and delete a running container."""
        self.call("Tasks", "Kill", container_id=name, signal=9)
        assert self.call("Tasks", "Wait", container_id=name).exit_status == 137
        assert self.call("Tasks", "Delete", container_id=name).exit_status == 137
        self.call("Containers", "Delete", id=name)

    def sandbox(self, name: str, shim: str = OWN_SHIM, cgroup: str = "", options: dict[str, Any] | None = None) -> int:
        """A started sandbox; the process that keeps it, 0 with the real shim."""
        spec = json.dumps({"ociVersion": "1.0.2", "linux": {"cgroupsPath": cgroup}}).encode()
        self.call("Store", "Create", sandbox={"sandbox_id": name, "runtime": {"name": shim}, "spec": {"value": spec}})
        self.call("Controller", "Create", sandbox_id=name, options=options)
        return int(self.call("Controller", "Start", sandbox_id=name).pid)

    def remove_sandbox(self, name: str) -> None:
        self.call("Controller", "Stop", sandbox_id=name)
        self.call("Controller", "Shutdown", sandbox_id=name)
        self.call("Store", "Delete", sandbox_id=name)

    def tasks(self) -> dict[str, tuple[int, int]]:
        """(pid, status) of each."""
        return {one.id: (one.pid, one.status) for one in self.call("Tasks", "List").tasks}

    def records(self) -> set[str]:
        return {one.sandbox_id for one in self.call("Store", "List").list}

    def bundle(self, name: str) -> Path:
        return Path(self.daemon.run / "state" / "io.containerd.runtime.v2.task" / "default" / name)

    def shims(self) -> set[int]:
        """Those of this containerd."""
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        return {
            pid
            for pid in pids
            if str(self.daemon.address) in (words := argv_of(pid))
            and "-id" in words
            and "shim" in words[0]
            and alive(pid)
        }

    def nothing_is_left(self) -> None:
        def left() -> list[str]:
            bundles = self.bundle("x").parent
            return [str(path) for path in bundles.glob("*")] + [f"shim {pid}" for pid in self.shims()]

        peers.wait_until(lambda: not left(), f"nothing to be left: {left()}", 30)

    def restart(self, number: int = signal.SIGKILL) -> None:
        self.daemon.kill(number)
        self.daemon.launch()


@pytest.fixture
def pods() -> Iterator[Pods]:
    daemon = TeuContainerd()
    with tempfile.TemporaryDirectory(prefix="teu-pods-", dir="/var/lib") as base:
        try:
            daemon.launch()
            made = Pods(daemon, Path(base))
            yield made
        finally:
            daemon.stop()
            for pid in made.shims():  # of a test that failed
                scope = cgroup_of(pid).removesuffix("/shim")
                if scope.endswith(".scope"):
                    Path(f"/sys/fs/cgroup{scope}/cgroup.kill").write_text("1")
            daemon.remove()


def cgroup_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].strip()


def scope_of(pid: int) -> str:
    """The unit and the folder below it that a process is in."""
    return "/".join(cgroup_of(pid).split("/")[-2:])


def test_everything_survives(pods: Pods, rounds: Callable[[int], int]) -> None:
    """Every process is the same after each kill and restart, and every record can be stopped and removed."""
    count, times = rounds(15), rounds(3)
    containers = [f"own{n}" for n in range(count)]
    empty = [f"empty{n}" for n in range(max(1, count // 5))]
    full = [f"full{n}" for n in range(max(1, count // 5))]
    pids, keepers = {}, {}
    with ThreadPoolExecutor(4) as pool:
        pids.update(zip(containers, pool.map(pods.start, containers), strict=True))
        keepers.update(zip(empty + full, pool.map(pods.sandbox, empty + full), strict=True))
        members = [f"in-{name}-{n}" for name in full for n in (1, 2)]
        hosts = [name for name in full for _ in (1, 2)]
        pids.update(zip(members, pool.map(pods.start, members, hosts), strict=True))
    for member, host in zip(members, hosts, strict=True):
        assert parent_of(pids[member]) == keepers[host], "it is in its sandbox's shim"
        assert scope_of(pids[member]) == f"teu-{host}.scope/container-{member}"
    for name, pid in keepers.items():
        assert scope_of(pid) == f"teu-{name}.scope/shim"
    shims = pods.shims()
    assert len(shims) == len(containers) + len(keepers)

    def all_is_there() -> None:
        assert pods.shims() == shims
        assert pods.tasks() == {name: (pid, RUNNING) for name, pid in pids.items()}
        assert pods.records() == set(keepers)
        for name, pid in keepers.items():
            status = pods.call("Controller", "Status", sandbox_id=name, timeout=20)
            assert (status.pid, status.state) == (pid, "SANDBOX_READY"), name

    all_is_there()
    for number in (signal.SIGKILL, signal.SIGTERM):
        for _ in range(times):
            pods.restart(number)
            all_is_there()
    # What is there is alive: another container comes into a sandbox, and one leaves it.
    late = pods.start("late", full[0])
    assert parent_of(late) == keepers[full[0]]
    pods.remove("late")
    all_is_there()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(pods.remove, [*containers, *members]))
        assert pods.shims() == set(keepers.values()), "an empty sandbox's shim stays, and no other"
        list(pool.map(pods.remove_sandbox, keepers))
    pods.nothing_is_left()
    assert not [name for name in keepers if (SCOPES / f"teu-{name}.scope").exists()]


def test_sandboxes_of_the_real_shim_survive(pods: Pods) -> None:
    """It has no notion of being a sandbox: told to shut down by its last container, it would end."""
    pods.sandbox("theirs", REAL_SHIM)
    (shim,) = pods.shims()
    for number in (signal.SIGKILL, signal.SIGTERM):
        pods.restart(number)
        assert pods.shims() == {shim}
        assert parent_of(pods.start("member", "theirs", REAL_SHIM)) == shim
        pods.restart(number)
        pods.remove("member")
        assert pods.shims() == {shim}
    pods.remove_sandbox("theirs")
    pods.nothing_is_left()


def fill(path: str) -> list[socket.socket]:
    """Connections to a server that takes none, until its queue is full."""
    waiting = []
    while True:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        waiting.append(peer)
        try:
            peer.connect(path)
        except BlockingIOError:
            return waiting


def test_a_slow_shim_is_not_killed(pods: Pods) -> None:
    """Not if it takes no connection, and not if it takes one and does not answer; it is back when it goes on."""
    pids = {name: pods.start(name) for name in ("deaf", "mute", "well")}
    keepers = {name: pods.sandbox(name) for name in ("deaf-box", "mute-box")}
    pids["member"] = pods.start("member", "deaf-box")
    slow = [parent_of(pids["deaf"]), parent_of(pids["mute"]), *keepers.values()]
    crowd: list[socket.socket] = []
    pods.daemon.kill()
    for pid in slow:
        os.kill(pid, signal.SIGSTOP)
    try:
        for name in ("deaf", "deaf-box"):
            crowd += fill((pods.bundle(name) / "address").read_text().removeprefix("unix://"))
        pods.daemon.launch()
        # Others are served meanwhile, and nobody takes a slow one's name.
        assert pods.call("Tasks", "Get", container_id="well").process.pid == pids["well"]
        bind = {"type": "bind", "source": "/"}
        pods.fails("ALREADY_EXISTS", "Tasks", "Create", container_id="deaf", rootfs=[bind])
        pods.fails("ALREADY_EXISTS", "Controller", "Create", sandbox_id="deaf-box")
    finally:
        for peer in crowd:
            peer.close()
        for pid in slow:
            os.kill(pid, signal.SIGCONT)
    for name, pid in pids.items():
        process = pods.call("Tasks", "Get", container_id=name, timeout=30).process
        assert (process.pid, process.status) == (pid, RUNNING), name
    for name, pid in keepers.items():
        assert pods.call("Controller", "Status", sandbox_id=name, timeout=30).pid == pid
    for name in pids:
        pods.remove(name)
    for name in keepers:
        pods.remove_sandbox(name)
    pods.nothing_is_left()


def test_what_died_meanwhile_is_told_and_removed(pods: Pods) -> None:
    import grpc

    from teu.api.services.events.v1 import events_pb2, events_pb2_grpc

    keepers = {name: pods.sandbox(name) for name in ("dead-box", "live-box", "stopped-box")}
    pods.start("dead-member", "dead-box")
    member = pods.start("live-member", "live-box")
    pods.daemon.kill()
    os.kill(keepers["dead-box"], signal.SIGKILL)
    peers.run("systemctl", "stop", "teu-stopped-box.scope")
    peers.wait_until(lambda: not alive(keepers["stopped-box"]), "the stopped scope's shim to end")
    pods.daemon.launch()
    told = set()
    with grpc.insecure_channel(f"unix:{pods.daemon.address}") as channel:
        stream = events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest(), timeout=30)
        with contextlib.suppress(grpc.RpcError):
            for envelope in stream:
                told.add((envelope.topic, envelope.event.value[2 : 2 + envelope.event.value[1]].decode()))
                if len(told) == 3:
                    stream.cancel()
    assert told == {("/sandboxes/exit", "dead-box"), ("/sandboxes/exit", "stopped-box"), ("/tasks/exit", "dead-member")}
    assert pods.tasks() == {"live-member": (member, RUNNING)}
    assert pods.records() == set(keepers)
    for name in ("dead-box", "stopped-box"):
        assert not pods.bundle(name).exists()
        pods.call("Controller", "Stop", sandbox_id=name)  # it has stopped, as for containerd since 2.0
        assert pods.call("Controller", "Status", sandbox_id=name).HasField("exited_at")
        # What does not run any more need not be stopped.
        removed = peers.run("teu-ctr", "--address", str(pods.daemon.address), "sandboxes", "rm", name)
        assert f"deleted: {name}" in removed.stderr, removed.stderr
    assert pods.records() == {"live-box"}
    pods.remove("live-member")
    pods.remove_sandbox("live-box")
    pods.call("Containers", "Delete", id="dead-member")
    pods.nothing_is_left()


def test_half_made_creations_are_given_up(pods: Pods) -> None:
    """The mark in the bundle says so; without it, or with a container that is there, nothing is."""
    keepers = {name: pods.sandbox(name) for name in ("half-box", "whole-box", "old-box")}
    member = pods.start("member", "whole-box")
    pods.daemon.kill()
    (pods.bundle("old-box") / "sandbox.json").unlink()  # as an older version left it, without a word of its kind
    (pods.bundle("half-box") / "creating").touch()
    (pods.bundle("member") / "creating").touch()  # killed between the shim's answer and the client's
    pods.daemon.launch()
    whole = {keepers["whole-box"], keepers["old-box"]}
    peers.wait_until(lambda: pods.shims() == whole, "the half-made sandbox to be given up")
    pods.restart()
    assert pods.shims() == whole
    assert not pods.bundle("half-box").exists()
    assert not (pods.bundle("member") / "creating").exists()
    assert pods.tasks() == {"member": (member, RUNNING)}
    pods.call("Controller", "Create", sandbox_id="half-box")
    pods.call("Controller", "Shutdown", sandbox_id="half-box")
    pods.remove("member")
    for name in ("whole-box", "old-box"):
        pods.remove_sandbox(name)
    pods.nothing_is_left()


def runtime_that(folder: Path, script: str) -> Path:
    """teu-runc, with a few lines of shell before it; "$MARKS" is a folder of its own."""
    program = folder / "runtime"
    (folder / "marks").mkdir()
    program.write_text(f'#!/bin/sh\nMARKS={folder}/marks\n{script}\nexec teu-runc "$@"\n')
    program.chmod(0o755)
    return program


def test_a_runtime_that_is_killed_while_it_deletes(pods: Pods, tmp_path: Path) -> None:
    """By the OOM killer, for instance: what it left is deleted all the same, by the shim and without one."""
    killed = 'case " $* " in *" delete "*) mkdir "$MARKS/$$" && [ $(ls "$MARKS" | wc -l) -le 2 ] && kill -9 $$;; esac'
    runtime = runtime_that(tmp_path, killed)
    process = pods.start("torn", runtime=runtime)
    (shim,) = pods.shims()
    os.kill(shim, signal.SIGKILL)
    pods.nothing_is_left()
    assert not alive(process)
    assert not Path("/run/teu/runc/default/torn").exists()
    assert len(os.listdir(tmp_path / "marks")) > 2
    pods.call("Containers", "Delete", id="torn")
    for mark in (tmp_path / "marks").iterdir():
        mark.rmdir()
    pods.start("whole", runtime=runtime)
    pods.remove("whole")
    pods.nothing_is_left()
    assert not Path("/run/teu/runc/default/whole").exists()


def test_a_creation_that_the_daemon_does_not_see_the_end_of(pods: Pods, tmp_path: Path) -> None:
    """It stops in the middle: its shim is not left behind, and the next daemon undoes what was not acknowledged."""
    import grpc

    held = 'mkdir "$MARKS/begun"; until [ -e "$MARKS/go" ]; do sleep 0.02; done'
    runtime = runtime_that(tmp_path, f'case " $* " in *" create "*) {held};; esac')
    with ThreadPoolExecutor(1) as pool:
        client = pool.submit(pods.start, "cut", runtime=runtime)
        peers.wait_until(lambda: (tmp_path / "marks/begun").exists(), "the creation to be under way")
        pods.restart(signal.SIGTERM)
        (tmp_path / "marks/go").touch()
        with pytest.raises(grpc.RpcError):
            client.result()
    pods.nothing_is_left()
    assert pods.tasks() == {}
    assert not Path("/run/teu/runc/default/cut").exists()


def test_kills_while_sandboxes_come_and_go(pods: Pods, rounds: Callable[[int], int]) -> None:
    """What was acknowledged is there afterwards, what was not is there as a whole or not at all."""
    import grpc

    numbers = itertools.count()
    made: dict[str, set[str]] = {}  # members that were acknowledged, of the sandboxes that were

    def come_and_go() -> None:
        with contextlib.suppress(grpc.RpcError):
            while True:
                name = f"box{next(numbers)}"
                pods.sandbox(name)
                made[name] = set()
                for member in (f"{name}-a", f"{name}-b"):
                    pods.start(member, name)
                    made[name].add(member)
                for member in list(made[name]):
                    made[name].discard(member)
                    pods.remove(member)
                del made[name]
                pods.remove_sandbox(name)

    for _ in range(rounds(2)):
        with ThreadPoolExecutor(2) as pool:
            workers = [pool.submit(come_and_go) for _ in range(2)]
            time.sleep(random.uniform(0.3, 1.5))
            pods.daemon.kill()
            for worker in workers:
                worker.result(60)
        pods.daemon.launch()
        tasks = pods.tasks()
        for name, members in made.items():
            assert pods.call("Controller", "Status", sandbox_id=name).state == "SANDBOX_READY", name
            for member in members:
                assert tasks[member][1] == RUNNING, member
        for member in tasks:
            with contextlib.suppress(grpc.RpcError):  # one that was just made, or is being deleted
                pods.call("Tasks", "Kill", container_id=member, signal=9)
            pods.call("Tasks", "Wait", container_id=member)
            pods.call("Tasks", "Delete", container_id=member)
        for record in pods.records():
            for method in ("Stop", "Shutdown"):
                with contextlib.suppress(grpc.RpcError):  # one that was not created yet, or is gone
                    pods.call("Controller", method, sandbox_id=record)
            pods.call("Store", "Delete", sandbox_id=record)
        for one in pods.call("Containers", "List").containers:
            pods.call("Containers", "Delete", id=one.id)
        made.clear()
        pods.nothing_is_left()


def test_a_sandbox_that_is_not_there(pods: Pods) -> None:
    """As with containerd, a container comes into no other shim than its sandbox's."""
    said = pods.fails("UNKNOWN", "Tasks", "Create", container_id=made(pods, "nosuch"))
    assert said == "failed to start shim: can't find sandbox nosuch"
    # When a sandbox goes before its containers, its shim goes with the last of them.
    keeper = pods.sandbox("early")
    member = pods.start("member", "early")
    pods.remove_sandbox("early")
    pods.restart()
    assert pods.tasks() == {"member": (member, RUNNING)} and pods.shims() == {keeper}
    pods.remove("member")
    pods.nothing_is_left()


def made(pods: Pods, sandbox: str) -> str:
    value = {"type_url": SPEC, "value": b"{}"}
    pods.call(
        "Containers",
        "Create",
        container={"id": "lost", "runtime": {"name": OWN_SHIM}, "spec": value, "sandbox": sandbox},
    )
    return "lost"


def test_the_place_of_a_sandbox(pods: Pods) -> None:
    """A scope and slice by its cgroupsPath, or the cgroup that the options name for shims, for its containers too."""
    from teu.ttrpc import messages as m

    keeper = pods.sandbox("placed", cgroup="teu-pods.slice:pod:one")
    member = pods.start("member", "placed")
    base = cgroup_of(keeper).removesuffix("/shim")
    assert base.endswith("/teu-pods.slice/pod-one.scope") and cgroup_of(member) == f"{base}/container-member"
    chosen = Path("/sys/fs/cgroup/teu-chosen")
    chosen.mkdir()
    try:
        options = m.encode_any("containerd.runc.v1.Options", {"shim_cgroup": "/teu-chosen"})
        keeper = pods.sandbox("chosen", options=options)
        pods.start("other", "chosen")
        assert cgroup_of(keeper) == "/teu-chosen"
        for name in ("member", "other"):
            pods.remove(name)
        for name in ("placed", "chosen"):
            pods.remove_sandbox(name)
        peers.wait_until(lambda: not (chosen / "cgroup.procs").read_text(), "the shim to be gone")
        bad = m.encode_any("containerd.runc.v1.Options", {"shim_cgroup": "/teu-nosuch"})
        record = {"sandbox_id": "bad", "runtime": {"name": OWN_SHIM}}
        said = pods.fails("UNKNOWN", "Controller", "Create", sandbox_id="bad", sandbox=record, options=bad)
        assert "No such file or directory" in said
        pods.nothing_is_left()
    finally:
        chosen.rmdir()


def test_dead_sockets_are_removed(pods: Pods) -> None:
    """Those of shims that were killed, also of a daemon whose state is lost; no others."""
    sockets = Path("/run/teu/s")
    other = TeuContainerd()
    with tempfile.TemporaryDirectory(prefix="teu-pods-", dir="/var/lib") as base:
        other.launch()
        theirs = Pods(other, Path(base))
        theirs.start("lost")
        lost = Path((theirs.bundle("lost") / "address").read_text().removeprefix("unix://"))
        other.kill()
        (SCOPES / "teu-lost.scope" / "cgroup.kill").write_text("1")
        peers.wait_until(lambda: not theirs.shims(), "the shim to be gone")
        peers.run("umount", str(theirs.bundle("lost") / "rootfs"))
        peers.run("teu-runc", "--root", "/run/teu/runc/default", "delete", "--force", "lost")
        other.stop()
        other.remove()
    with socket.socket(socket.AF_UNIX) as console:  # of a shim that was killed while a runtime made a terminal
        console.bind(str(sockets / "pty-999999999-1"))
    pid = pods.start("here")
    here = Path((pods.bundle("here") / "address").read_text().removeprefix("unix://"))
    (sockets / "file").touch()
    pods.restart()
    dead = {lost, sockets / "pty-999999999-1"}
    peers.wait_until(lambda: not dead & set(sockets.iterdir()), "dead sockets to be removed", 30)
    assert here.is_socket() and (sockets / "file").exists()
    (sockets / "file").unlink()
    assert pods.tasks() == {"here": (pid, RUNNING)}
    pods.remove("here")
    pods.nothing_is_left()


def test_a_connection_that_is_lost(pods: Pods) -> None:
    """A shim that drops its connection, as it does with a client that reads no answers, is not taken for dead."""
    pid = pods.start("dropped")
    shim = parent_of(pid)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pods.call, "Tasks", "Wait", container_id="dropped")
        time.sleep(0.3)
        drop_connections(shim)
        peers.wait_until(lambda: pods.tasks() == {"dropped": (pid, RUNNING)}, "the shim to be found again", 20)
        pods.call("Tasks", "Kill", container_id="dropped", signal=9)
        assert waiting.result(30).exit_status == 137, "who waits has not noticed"
    assert pods.call("Tasks", "Delete", container_id="dropped").exit_status == 137
    pods.nothing_is_left()


def drop_connections(shim: int) -> None:
    """Shut the connections of a shim's socket down from outside, by copies of its descriptors (pidfd_getfd)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(shim)
    for entry in os.listdir(f"/proc/{shim}/fd"):
        fd = libc.syscall(438, process, int(entry), 0)
        if fd < 0:
            continue
        try:
            copy = socket.socket(fileno=os.dup(fd))
            if not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and "/run/teu/s/" in str(
                copy.getsockname()
            ):
                copy.shutdown(socket.SHUT_RDWR)
            copy.close()
        except OSError:
            pass
        finally:
            os.close(fd)
    os.close(process)
