# SPDX-License-Identifier: Apache-2.0
"""teu-containerd killed at every step of what a client does: pull, unpack, create, start, exec, delete, collection.

A client goes through these steps over and over and keeps account of what was acknowledged.  The daemon is killed with
-9 at a random moment, or when one of its threads enters its Nth call of a kind (by strace: mkdir, rename, fsync...).
A new daemon must then know all that was acknowledged, and nothing half-made may stay.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
import taskhouse
from test_containerd_faults import ROOTED, Daemon, Services, layer, no_garbage

pytestmark = [pytest.mark.needs("containerd", "strace", "fast"), pytest.mark.timeout(400)]

# What the daemon does to the disk, one kind of call after another.
CALLS = (
    "mkdir",
    "rename",
    "unlink",
    "rmdir",
    "fdatasync",
    "fsync",
    "fchmod",
    "symlink",
    "vfork,clone3",
    "mknod,mknodat",
)
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
STOPPED = 3  # containerd.v1.types.Status
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
ARGS = ["sh", "-c", "until [ -e /go ]; do sleep 0.02; done; exit $CODE"]


class Client(Services):
    """The calls of a container's life besides those of its image."""

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)
        from teu.api.services.containers.v1 import containers_pb2, containers_pb2_grpc
        from teu.api.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc

        self.containers, self.tasks = containers_pb2, tasks_pb2
        self._containers = containers_pb2_grpc.ContainersStub(channel)
        self._tasks = tasks_pb2_grpc.TasksStub(channel)

    def container(self, name: str, spec: dict[str, Any]) -> None:
        value = {"type_url": SPEC, "value": json.dumps(spec).encode()}
        made = {
            "id": name,
            "runtime": {"name": taskhouse.OWN_SHIM},
            "spec": value,
            "snapshotter": "overlayfs",
            "snapshot_key": name,
        }
        self._containers.Create(self.containers.CreateContainerRequest(container=made), **self._call)

    def prepare(self, name: str, parent: str) -> Any:
        request = self.snapshots.PrepareSnapshotRequest(snapshotter="overlayfs", key=name, parent=parent, labels=ROOTED)
        return self._snapshots.Prepare(request, **self._call).mounts

    def task(self, method: str, request: str, **fields: Any) -> Any:
        return getattr(self._tasks, method)(getattr(self.tasks, request)(**fields), **self._call)

    def states(self) -> dict[str, tuple[int, int]]:
        """(status, exit status) of each task."""
        found = self.task("List", "ListTasksRequest").tasks
        return {task.id: (task.status, task.exit_status) for task in found}

    def forget(self, name: str) -> None:
        """Delete the container's record and snapshot, as far as they are there."""
        import grpc

        for delete in (
            lambda: self._containers.Delete(self.containers.DeleteContainerRequest(id=name), **self._call),
            lambda: self._snapshots.Remove(
                self.snapshots.RemoveSnapshotRequest(snapshotter="overlayfs", key=name), **self._call
            ),
        ):
            try:
                delete()
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise

    def records(self) -> set[str]:
        found = self._containers.List(self.containers.ListContainersRequest(), **self._call)
        return {one.id for one in found.containers}


class Struck(Exception):
    """strace's signal has met a process below the daemon: a shim, a runtime, what runs in the container."""


class Account:
    """What was acknowledged of one container."""

    def __init__(self, code: int) -> None:
        self.code = code  # which it will exit with, when it is let go
        self.steps: list[str] = []
        self.deleting = False  # the task; then the rest
        self.forgetting = False


class Work:
    def __init__(self, daemon: Daemon, spec: dict[str, Any]) -> None:
        self._daemon = daemon
        self._spec = spec
        self._numbers = itertools.count(1)
        self.accounts: dict[str, Account] = {}
        self.blobs: set[str] = set()
        self.layers: dict[str, dict[str, str]] = {}
        self.acknowledged = 0
        self.codes = 0
        self.lives = 0
        self.cut = ""
        self.trouble: BaseException | None = None
        self.traced = False  # strace may strike the daemon's children in its place
        self.struck = False  # it was the daemon

    def client(self) -> Any:
        import grpc

        return grpc.insecure_channel(f"unix:{self._daemon.address}")

    def until_cut(self) -> None:
        import grpc

        try:
            with self.client() as channel:
                client = Client(channel)
                while True:
                    self._life(client)
                    self.lives += 1
        except grpc.RpcError as error:
            self.cut = f"{error.code().name}: {error.details()}"
        except Struck as error:
            self.cut = str(error)
        except BaseException as error:
            self.trouble = error

    def _life(self, client: Client) -> None:
        number = next(self._numbers)
        name = f"life{number}"
        data, files = layer(number)
        digest = client.write(f"ref-{number}", data)
        self.blobs.add(digest)
        client.unpack(digest, len(data), f"layer-{number}")
        self.layers[f"layer-{number}"] = files
        account = Account(7 + number % 90)
        mounts = client.prepare(name, "busybox")
        spec = json.loads(json.dumps(self._spec))
        spec["process"].update(args=ARGS, env=[taskhouse.PATH, f"CODE={account.code}"])
        spec["linux"]["cgroupsPath"] = f"/default/{name}"
        client.container(name, spec)
        self.accounts[name] = account

        def step(what: str, method: str, request: str, **fields: Any) -> Any:
            answer = client.task(method, request, container_id=name, **fields)
            account.steps.append(what)
            self.acknowledged += 1
            return answer

        step("create", "Create", "CreateTaskRequest", rootfs=mounts)
        step("start", "Start", "StartRequest")
        go = {
            "type_url": PROCESS,
            "value": json.dumps(
                {"cwd": "/", "args": ["touch", "/go"], "env": [taskhouse.PATH], "user": {"uid": 0, "gid": 0}}
            ).encode(),
        }
        step("exec", "Exec", "ExecProcessRequest", exec_id="go", spec=go)
        step("exec start", "Start", "StartRequest", exec_id="go")
        # The first process may see the file and go before touch has ended, and the kernel then ends that.
        assert step("exec wait", "Wait", "WaitRequest", exec_id="go").exit_status in (0, 137)
        step("exec delete", "DeleteProcess", "DeleteProcessRequest", exec_id="go")
        self._exited(step("exit", "Wait", "WaitRequest").exit_status, account.code)
        self.codes += 1
        account.deleting = True
        assert step("delete", "Delete", "DeleteTaskRequest").exit_status == account.code
        account.forgetting = True
        client.forget(name)
        del self.accounts[name]

    def _exited(self, status: int, wanted: int) -> None:
        if self.traced and status == 128 + signal.SIGKILL:
            raise Struck(f"exit status {status}")
        assert status == wanted

    def verify(self) -> None:
        """After a kill: everything acknowledged is there; then finish what was begun."""
        with self.client() as channel:
            client = Client(channel)
            states, records = client.states(), client.records()
            assert not self.blobs - client.digests(), "a blob is lost"
            assert not self.layers.keys() - client.committed(), "a snapshot is lost"
            unknown = states.keys() - self.accounts.keys()
            assert not unknown, f"tasks of nobody: {unknown}"
            for name, account in self.accounts.items():
                assert name in records or account.forgetting, f"the record of {name} is lost"
                self._verify_one(client, name, account, states.get(name))
            for name in self.accounts:
                client.forget(name)
            for name in records - self.accounts.keys():
                client.forget(name)  # made, and not acknowledged
            self.accounts.clear()

    def _verify_one(self, client: Client, name: str, account: Account, state: tuple[int, int] | None) -> None:
        others = self.traced and not self.struck
        if "create" in account.steps and not account.deleting and not others:
            assert state, f"the task of {name} is lost after {account.steps}"
        if "exit" in account.steps and state and not others:
            assert state == (STOPPED, account.code), f"the exit of {name} is lost: {state}"
        if not state:
            return
        if state[0] != STOPPED:
            client.task("Kill", "KillRequest", container_id=name, signal=9)
        status = client.task("Wait", "WaitRequest", container_id=name).exit_status
        # let go by the exec, it may have ended before our signal
        assert status in (account.code, 137) if "exec" in account.steps else status == 137, (status, account.steps)
        assert client.task("Delete", "DeleteTaskRequest", container_id=name).exit_status == status


def nothing_is_left(daemon: Daemon) -> None:
    """Of no container: bundle, shim, mount, cgroup, scope."""
    bundles = daemon.run / "state" / "io.containerd.runtime.v2.task" / "default"

    def left() -> list[str]:
        found = [str(path) for path in bundles.glob("*")] if bundles.exists() else []
        found += [
            line.split()[1]
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if line.split()[1].startswith(f"{daemon.run}/")
        ]
        for entry in os.listdir("/proc"):
            words = taskhouse.argv_of(int(entry)) if entry.isdigit() else []
            if "-id" in words and str(daemon.address) in words:
                found.append(" ".join(words))
        return found + [str(path) for path in Path("/sys/fs/cgroup/teu.slice").glob("teu-life*")]

    peers.wait_until(lambda: not left(), f"nothing to be left: {left()}", 40)


@pytest.fixture
def work() -> Iterator[tuple[Daemon, Work]]:
    spec = json.loads(peers.run("ctr", "oci", "spec").stdout)
    spec["linux"].pop("resources", None)
    daemon = Daemon()
    try:
        daemon.launch()
        made = Work(daemon, spec)
        with made.client() as channel:
            client = Client(channel)
            data = peers.busybox_layer()
            client.unpack(client.write("busybox", data), len(data), "busybox")
        yield daemon, made
        daemon.kill()
        daemon.launch()
        nothing_is_left(daemon)
        no_garbage(daemon)
    finally:
        daemon.stop()
        daemon.remove()


def one_round(daemon: Daemon, made: Work, kill: Callable[[], None]) -> None:
    made.struck = False
    worker = threading.Thread(target=made.until_cut)
    worker.start()
    kill()
    daemon.kill()
    worker.join()
    if made.trouble:
        raise made.trouble
    assert made.cut.startswith("UNAVAILABLE") or (made.traced and not made.struck), made.cut
    daemon.launch()
    made.verify()
    nothing_is_left(daemon)


def report(rounds: int, made: Work) -> None:
    print(
        f"{rounds} kills: {made.lives} whole lives, {made.acknowledged} acknowledged steps of tasks, {made.codes} exit "
        f"codes, {len(made.blobs)} blobs and {len(made.layers)} layers kept; nothing lost, nothing left"
    )
    assert made.acknowledged and made.blobs


def test_kills_at_random_moments(work: tuple[Daemon, Work], rounds: Callable[[int], int]) -> None:
    daemon, made = work
    count = rounds(20)

    def moment() -> None:
        if not made.acknowledged:  # the first round, on however slow a machine
            peers.wait_until(lambda: made.acknowledged or made.cut or made.trouble, "a step to be acknowledged", 60)
        time.sleep(random.uniform(0.02, 1.2))

    for _ in range(count):
        one_round(daemon, made, moment)
    report(count, made)


def test_kills_at_chosen_calls(work: tuple[Daemon, Work], rounds: Callable[[int], int]) -> None:
    daemon, made = work
    made.traced = True
    struck: list[str] = []
    steps = [(calls, number) for number in (1, 2, 3, 4, 5) for calls in CALLS][: rounds(20)]
    for calls, number in steps:
        assert daemon.process
        tracer = subprocess.Popen(
            [
                "strace",
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                f"trace={calls}",
                "-e",
                f"inject={calls}:signal=SIGKILL:when={number}",
                "-p",
                str(daemon.process.pid),
            ],
        )
        process = daemon.process

        def attached(process: subprocess.Popen[bytes] = process) -> bool:
            """Whether strace is at work, or has struck already: a collection, after what the last round removed."""
            status = Path(f"/proc/{process.pid}/status").read_text()
            return "TracerPid:\t0\n" not in status or process.poll() is not None

        peers.wait_until(attached, "strace to attach")

        def kill(process: subprocess.Popen[bytes] = process, what: str = f"{calls}:{number}") -> None:
            """Wait for the call; a kind of call that happens too seldom ends after some lives."""
            last, deadline = made.lives + 5, time.monotonic() + 60
            while made.lives < last and time.monotonic() < deadline:
                if process.poll() == -signal.SIGKILL:
                    made.struck = True
                    struck.append(what)
                    return
                time.sleep(0.01)

        one_round(daemon, made, kill)
        tracer.terminate()
        tracer.wait()
    report(len(steps), made)
    print("struck at", " ".join(struck))
    assert len(struck) > len(steps) / 2
