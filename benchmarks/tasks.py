#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""teu-containerd with its shim and teu-runc against containerd with its own and runc, over gRPC alone, in turns.

    python3 benchmarks/tasks.py [--rounds 30] [--only life,crowd]

`./dev bench` calls `life` and `crowd`; both daemons must be running.  One client works both, so that only the daemons
differ.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import Row, rollup, table, turns
from runtimes import bundle, config

from teu.api.services.containers.v1 import containers_pb2, containers_pb2_grpc
from teu.api.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc

SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
NAMESPACE = "bench"
AT_ONCE = 10
CROWDS = (10, 100, 500)
_numbers = itertools.count()


class House:
    """A containerd and its containers."""

    def __init__(self, address: str, runtime: str, daemons: tuple[str, ...], shim: str, rootfs: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{address}")
        self._containers = containers_pb2_grpc.ContainersStub(self._channel)
        self._tasks = tasks_pb2_grpc.TasksStub(self._channel)
        self._call: dict[str, Any] = {"metadata": [("containerd-namespace", NAMESPACE)], "timeout": 120}
        self._runtime = runtime
        self._rootfs = rootfs
        self.daemons, self.shim = daemons, shim

    def record(self, name: str, *args: str) -> None:
        """The container's record, whose spec is docker's in shape."""
        spec = config(seccomp=False)
        spec["process"]["args"] = list(args)
        spec["linux"]["cgroupsPath"] = f"/{NAMESPACE}/{name}"
        self._containers.Create(
            containers_pb2.CreateContainerRequest(
                container={
                    "id": name,
                    "runtime": {"name": self._runtime},
                    "spec": {"type_url": SPEC, "value": json.dumps(spec).encode()},
                }
            ),
            **self._call,
        )

    def forget(self, name: str) -> None:
        self._containers.Delete(containers_pb2.DeleteContainerRequest(id=name), **self._call)

    def create(self, name: str) -> None:
        root = {"type": "bind", "source": str(self._rootfs), "options": ["rbind", "ro"]}
        self._tasks.Create(tasks_pb2.CreateTaskRequest(container_id=name, rootfs=[root]), **self._call)

    def start(self, name: str) -> None:
        self._tasks.Start(tasks_pb2.StartRequest(container_id=name), **self._call)

    def exit_of(self, name: str) -> Any:
        """Resolves to the exit status: asked for before the start, as clients do."""
        return self._tasks.Wait.future(tasks_pb2.WaitRequest(container_id=name), **self._call)

    def kill(self, name: str) -> None:
        self._tasks.Kill(tasks_pb2.KillRequest(container_id=name, signal=9), **self._call)

    def delete(self, name: str) -> None:
        self._tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=name), **self._call)

    def listed(self) -> int:
        return len(self._tasks.List(tasks_pb2.ListTasksRequest(), **self._call).tasks)

    def life(self, name: str) -> None:
        self.create(name)
        status = self.exit_of(name)
        self.start(name)
        if status.result().exit_status:
            raise RuntimeError(f"{name} exited with {status.result().exit_status}")
        self.delete(name)

    def begin(self, name: str) -> None:
        self.record(name, "/bin/sleep", "3600")
        self.create(name)
        self.start(name)

    def end(self, name: str) -> None:
        status = self.exit_of(name)
        self.kill(name)
        status.result()
        self.delete(name)
        self.forget(name)

    def memory(self) -> float:
        """MiB, proportional, of the daemon with its helpers and of all its shims."""
        wanted = {*self.daemons, self.shim}
        return sum(rollup(pid, "Pss") for pid in pids_of(wanted)) / 1024

    def close(self) -> None:
        self._channel.close()


def pids_of(programs: set[str]) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                # a script shows as: interpreter [options] program
                if programs & {os.path.basename(word).decode(errors="replace") for word in argv[:3]}:
                    yield int(entry)


@contextlib.contextmanager
def houses() -> Iterator[dict[str, House]]:
    with bundle() as folder:
        made = {
            "teu": House(
                "/run/teu/containerd.sock",
                "io.containerd.teu.v2",
                ("teu-containerd",),
                "containerd-shim-teu-v2",
                folder / "rootfs",
            ),
            "containerd": House(
                "/run/containerd/containerd.sock",
                "io.containerd.runc.v2",
                ("containerd",),
                "containerd-shim-runc-v2",
                folder / "rootfs",
            ),
        }
        try:
            yield made
        finally:
            for house in made.values():
                house.close()


def life(rounds: int) -> Iterator[Row]:
    """One task after another, from its creation to its deletion."""
    with houses() as both:
        names = {who: [f"life{next(_numbers)}" for _ in range(rounds + 2)] for who in both}
        for who, house in both.items():
            for name in names[who]:
                house.record(name, "/bin/true")
        try:
            yield turns(
                "task create + start + wait + delete, gRPC",
                {who: (lambda i, w=who, h=house: h.life(names[w][i])) for who, house in both.items()},
                rounds,
                warmup=2,
                note="to the end of /bin/true",
            )
        finally:
            for who, house in both.items():
                for name in names[who]:
                    house.forget(name)


def crowd() -> Iterator[Row]:
    """Many at once: how starting, memory, `list` and removing grow with how many there are."""
    with houses() as both:
        for count in CROWDS:
            made = {
                "start": Row(f"{count} containers, {AT_ONCE} at a time: start", "ms", note="each"),
                "memory": Row(f"{count} running: daemon and shims, proportional", "MiB", note="each"),
                "list": Row(f"{count} running: Tasks.List", "ms"),
                "remove": Row(f"{count} containers, {AT_ONCE} at a time: kill, delete", "ms", note="each"),
            }
            for who, house in both.items():
                names = [f"crowd{next(_numbers)}" for _ in range(count)]
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    began = time.perf_counter()
                    list(pool.map(house.begin, names))
                    made["start"].samples[who] = [(time.perf_counter() - began) * 1000 / count]
                    made["memory"].samples[who] = [house.memory() / count]
                    made["list"].samples[who] = []
                    for _ in range(7):
                        began = time.perf_counter()
                        if house.listed() != count:
                            raise RuntimeError(f"{who} does not list {count} tasks")
                        made["list"].samples[who].append((time.perf_counter() - began) * 1000)
                    began = time.perf_counter()
                    list(pool.map(house.end, names))
                    made["remove"].samples[who] = [(time.perf_counter() - began) * 1000 / count]
            yield from made.values()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", default="life,crowd")
    options = parser.parse_args()
    groups = {"life": lambda: life(options.rounds), "crowd": crowd}
    for group in options.only.split(","):
        for row in groups[group]():
            print(table([row]), end="", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
