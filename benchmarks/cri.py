#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The CRI of teu-containerd against that of Debian's containerd, in turns, by one client: `./dev bench cri`.

Both daemons are of the group's own, with CNI's real bridge plugin, as tests/system/crihouse.py starts them. A pod of
theirs has its pause container.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/system"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import crihouse
import grpc
import peers
from measure import Row, rollup
from runc_bundle import full_proc
from tasks import pids_of

from teu.api.cri.v1 import cri_pb2 as cri

PODS = 110
LISTED = 500
AT_ONCE = 10
SHIMS = {"teu": "containerd-shim-teu-v2", "containerd": "containerd-shim-runc-v2"}
FOREVER = ["sleep", "1000000"]
HOST: dict[str, Any] = {
    "linux": {"security_context": {"namespace_options": {"network": cri.NODE, "pid": cri.CONTAINER}}}
}
_numbers = itertools.count()

Clients = tuple[crihouse.Client, ...]


def rows(rounds: int) -> Iterator[Row]:
    """All of them: one pod, then many."""
    full_proc()
    begun = peers.Daemon.start

    def start(self: peers.Daemon, argv: list[str], ready: Callable[[], object], env: Any = None) -> None:
        self.command, self.variables = argv, env  # type: ignore[attr-defined]
        begun(self, argv, ready, env)

    peers.Daemon.start = start  # type: ignore[method-assign]
    try:
        with crihouse.both() as clients:
            yield from _one(clients, rounds)
            yield from _many(clients)
    finally:
        peers.Daemon.start = begun  # type: ignore[method-assign]


def _timed(name: str, clients: Clients, rounds: int, job: Callable[[crihouse.Client], Iterator[None]]) -> Row:
    """What `job` does between its first and its second yield, in turns; the first round does not count."""
    row = Row(name, "ms", {client.name: [] for client in clients})
    for number in range(rounds + 1):
        for client in clients:
            steps = job(client)
            next(steps)
            began = time.perf_counter()
            next(steps)
            spent = (time.perf_counter() - began) * 1000
            for _ in steps:
                pass
            if number:
                row.samples[client.name].append(spent)
    return row


def _name() -> str:
    return f"bench{next(_numbers)}"


def _hosts(client: crihouse.Client) -> Any:
    """(id, config) of a new pod in the host's network, whose name it has."""
    config = client.pod_config(_name())
    config.hostname = ""
    config.linux.security_context.namespace_options.network = cri.NODE
    Path(config.log_directory).mkdir()
    return client.call("RunPodSandbox", config=config).pod_sandbox_id, config


def _bridged(client: crihouse.Client) -> Any:
    return client.run_pod(_name())


def _one(clients: Clients, rounds: int) -> Iterator[Row]:
    def pod(run: Callable[[crihouse.Client], Any]) -> Callable[[crihouse.Client], Iterator[None]]:
        def job(client: crihouse.Client) -> Iterator[None]:
            yield
            made = run(client)
            yield
            client.remove_pod(made)

        return job

    def container(client: crihouse.Client) -> Iterator[None]:
        made = _hosts(client)
        yield
        client.run_container(made, "c", FOREVER)
        yield
        client.remove_pod(made)

    def end(client: crihouse.Client) -> Iterator[None]:
        made = _hosts(client)
        id = client.run_container(made, "c", FOREVER)
        yield
        client.call("StopContainer", container_id=id, timeout=0)
        client.call("RemoveContainer", container_id=id)
        client.remove_pod(made)
        yield

    yield _timed("RunPodSandbox, host network", clients, rounds, pod(_hosts))
    yield _timed("RunPodSandbox, CNI bridge", clients, rounds, pod(_bridged))
    yield _timed("CreateContainer + StartContainer", clients, rounds, container)
    yield _timed("stop + remove of a container and its pod", clients, rounds, end)
    running = {client.name: _hosts(client) for client in clients}
    ids = {client.name: client.run_container(running[client.name], "c", FOREVER) for client in clients}

    def asks(call: Callable[[crihouse.Client], object]) -> Callable[[crihouse.Client], Iterator[None]]:
        def job(client: crihouse.Client) -> Iterator[None]:
            yield
            call(client)
            yield

        return job

    yield _timed("ExecSync true", clients, rounds, asks(lambda one: one.exec(ids[one.name], "true")))
    yield _timed("ContainerStatus", clients, rounds, asks(lambda one: one.status(ids[one.name])))
    pods = {name: made[0] for name, made in running.items()}
    status = asks(lambda one: one.call("PodSandboxStatus", pod_sandbox_id=pods[one.name]))
    yield _timed("PodSandboxStatus", clients, rounds, status)
    for client in clients:
        client.remove_pod(running[client.name])


def _many(clients: Clients) -> Iterator[Row]:
    each = f"{PODS} pods with a container and an address, {AT_ONCE} at a time"
    names = [client.name for client in clients]
    start = Row(f"{each}: start", "ms", note="each")
    memory = Row(f"{PODS} pods: daemon, shims, pause; proportional", "MiB", note="each")
    lists = Row(f"ListContainers of {LISTED}", "ms", {name: [] for name in names})
    pods = Row(f"ListPodSandbox of {PODS}", "ms", {name: [] for name in names})
    again = Row(f"restart with {PODS} pods, until Ready", "ms")
    end = Row(f"{each}: remove", "ms", note="each")
    for client in clients:  # one after the other: two hundred pods of both would be more than the machine
        with ThreadPoolExecutor(AT_ONCE) as pool:

            def begin(name: str, client: crihouse.Client = client) -> Any:
                made = client.run_pod(name)
                client.run_container(made, "c", FOREVER)
                return made

            began = time.perf_counter()
            made = list(pool.map(begin, [_name() for _ in range(PODS)]))
            start.samples[client.name] = [(time.perf_counter() - began) * 1000 / PODS]
            memory.samples[client.name] = [_memory(client) / PODS]

            def create(number: int, client: crihouse.Client = client, made: list[Any] = made) -> None:
                client.create(made[number % PODS], f"more{number}", FOREVER)

            list(pool.map(create, range(LISTED - PODS)))
            for row, method, count in ((lists, "ListContainers", LISTED), (pods, "ListPodSandbox", PODS)):
                # As it comes: what this client needs to read it is not to be counted.
                ask = client.channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
                for _ in range(9):
                    began = time.perf_counter()
                    answer = ask(b"", timeout=60)
                    row.samples[client.name].append((time.perf_counter() - began) * 1000)
                read = getattr(cri, f"{method}Response").FromString(answer)
                if len(read.containers if method == "ListContainers" else read.items) != count:
                    raise RuntimeError(f"{client.name}: {method} does not show {count}")
            again.samples[client.name] = [_restart(client) for _ in range(3)]
            began = time.perf_counter()
            list(pool.map(client.remove_pod, made))
            end.samples[client.name] = [(time.perf_counter() - began) * 1000 / PODS]
    yield from (start, memory, lists, pods, again, end)


def _memory(client: crihouse.Client) -> float:
    """MiB of the daemon, its shims and their pause containers."""
    assert client.daemon.process
    found = {client.daemon.process.pid, *pids_of({SHIMS[client.name]})}
    pause = b"sleep\0" + b"100000000\0"
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if Path(f"/proc/{entry}/cmdline").read_bytes() == pause:
                    found.add(int(entry))
            except OSError:
                continue
    return sum(rollup(pid, "Pss") for pid in found) / 1024


def _restart(client: crihouse.Client) -> float:
    """Milliseconds from the start of the daemon to an answer that says Ready."""
    daemon = client.daemon
    daemon.stop()
    began = time.perf_counter()
    peers.Daemon.start(daemon, daemon.command, lambda: True, daemon.variables)  # type: ignore[attr-defined]
    while True:
        client.connect()
        try:
            conditions = client.call("Status", _deadline=5.0).status.conditions
            if all(one.status for one in conditions if one.type in ("RuntimeReady", "NetworkReady")):
                return (time.perf_counter() - began) * 1000
        except grpc.RpcError:
            time.sleep(0.005)
