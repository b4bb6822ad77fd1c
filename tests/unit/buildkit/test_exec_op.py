# SPDX-License-Identifier: Apache-2.0
"""A step from its operation to its results, with an executor that only says what it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from unit.buildkit.test_exec_mounts import FakeSessions, FakeTree, FakeWorker, Waiting

from teu.api.buildkit import errdefs_pb2, gateway_pb2
from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.core import errors
from teu.buildkit.llb.load import Edge, Metadata, Vertex
from teu.buildkit.ops.exec import ExecOp, Steps
from teu.buildkit.worker.executor import Wish
from teu.buildkit.worker.spec import Process

PLAIN = Metadata()


class Context(Waiting):
    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, bytes]] = []
        self.calls: list[Callable[[], None]] = []

    @contextmanager
    def on_cancel(self, call: Callable[[], None]) -> Iterator[None]:
        self.calls.append(call)
        yield

    def log(self, stream: int, data: bytes) -> None:
        self.logged.append((stream, data))


class FakeExecutor:
    """Its own box, too."""

    def __init__(self) -> None:
        self.code = 0
        self.out_of_memory = False
        self.samples: Any = None
        self.warmed: list[int] = []
        self.wishes: list[Wish] = []
        self.processes: list[Process] = []
        self.released = 0
        self.problem: errors.Error | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def warm(self, mode: int) -> None:
        self.warmed.append(mode)

    def box(self, wish: Wish) -> FakeExecutor:
        self.wishes.append(wish)
        return self

    def start(self, process: Process, out: Any, err: Any) -> FakeExecutor:
        if self.problem is not None:
            raise self.problem
        self.processes.append(process)
        out(b"out\n")
        err(b"err\n")
        return self

    def wait(self) -> int:
        self.meanwhile()
        return self.code

    def kill(self) -> None:
        self.code = 137

    @contextmanager
    def releasing(self) -> Iterator[None]:
        yield

    def release(self) -> None:
        self.released += 1


class House:
    def __init__(self) -> None:
        self.worker: Any = FakeWorker()
        self.worker.platforms = ["linux/amd64"]
        self.executor: Any = FakeExecutor()
        sessions: Any = FakeSessions()
        self.steps = Steps(self.worker, self.executor, sessions)
        self.context: Any = Context()
        self.base: Any = FakeTree("base")

    def run(self, metadata: Metadata = PLAIN, **more: Any) -> list[Any]:
        op = pb.Op(inputs=[pb.Input(digest="sha256:0")])
        meta = {"args": ["make", 'a "b"'], "cwd": "/work", **more.pop("meta", {})}
        mounts = [pb.Mount(dest="/", input=0, output=0), *more.pop("more_mounts", ())]
        op.exec.CopyFrom(pb.ExecOp(meta=pb.Meta(**meta), mounts=mounts, **more))
        vertex = Vertex("sha256:x", op, (Edge("sha256:0", 0),), "", metadata, "sha256:x")
        return list(ExecOp(vertex, self.steps).execute(self.context, [self.base]))


@pytest.fixture
def house() -> House:
    return House()


def test_what_a_step_is_run_with(house: House) -> None:
    resources = pb.LinuxResources(memory=5, cpuQuota=7)
    (result,) = house.run(
        Metadata(linux_resources=resources),
        network=pb.NONE,
        security=pb.INSECURE,
        meta={
            "env": ["A=b"],
            "user": "www",
            "hostname": "h",
            "proxy_env": pb.ProxyEnv(http_proxy="p"),
            "extraHosts": [pb.HostIP(Host="db", IP="10.0.0.1")],
            "ulimit": [pb.Ulimit(Name="nofile", Soft=1, Hard=2)],
            "cgroupParent": "my.slice",
        },
    )
    assert result.id == "active0"
    assert house.base.held == 1
    (process,) = house.executor.processes
    assert process.args == ("make", 'a "b"')
    assert process.env[:3] == ("A=b", "HTTP_PROXY=p", "http_proxy=p")
    assert process.env[3].startswith("PATH=/usr/local/sbin:")
    assert (process.cwd, process.user) == ("/work", "www")
    (wish,) = house.executor.wishes
    assert wish.first is process
    assert (wish.network, wish.insecure, wish.hostname, wish.recursive) == (2, True, "h", False)
    assert list(wish.extra_hosts) == [("db", "10.0.0.1")]
    assert wish.cgroup_parent == "my.slice"
    assert (wish.limits.ulimits, wish.limits.memory, wish.limits.quota) == ((("nofile", 1, 2),), 5, 7)
    assert house.context.logged == [(1, b"out\n"), (2, b"err\n")]
    assert house.executor.warmed == [pb.NONE]
    assert house.executor.released == 1


def test_a_path_of_its_own_stays(house: House) -> None:
    house.run(meta={"env": ["PATH=/x"]})
    assert house.executor.processes[0].env == ("PATH=/x",)


def test_a_failure_has_all_that_clients_look_for(house: House) -> None:
    house.executor.code = 2
    with pytest.raises(errors.Error) as caught:
        house.run(Metadata(description={"llb.customname": "[1/1] RUN"}))
    assert caught.value.message == r'process "make a \"b\"" did not complete successfully: exit code: 2'
    exited, solve = caught.value.details
    assert exited == gateway_pb2.ExitMessage(Code=2)
    # For debuggers: the root as it was, and as the step has left it.
    assert caught.value.kept is not None
    (given,), (left,) = caught.value.kept.clones()
    assert given is house.base and left is not None and left.id == "active0"
    assert house.base.held == 3
    given.release()
    caught.value.kept.release()
    caught.value.kept.release()
    assert house.base.held == 1 and caught.value.kept.clones() == ([], [])
    assert isinstance(solve, errdefs_pb2.Solve)
    assert solve.op.exec.meta.args[0] == "make"
    assert solve.description == {"llb.customname": "[1/1] RUN"}
    assert house.worker.made[0].state == "committed"
    assert house.executor.released == 1


def test_valid_exit_statuses(house: House) -> None:
    house.executor.code = 5
    assert len(house.run(meta={"validExitCodes": [4, 5]})) == 1
    house.executor.code = 0
    with pytest.raises(errors.Error, match="exit code: 0"):
        house.run(meta={"validExitCodes": [4, 5]})


def test_a_start_that_fails(house: House) -> None:
    house.executor.problem = errors.NotFound('exec: "make": executable file not found in $PATH')
    with pytest.raises(errors.NotFound, match=r'^process "make .*" did not complete successfully: exec: "make"'):
        house.run()
    assert house.executor.released == 1


def test_nobody_waits_for_it(house: House) -> None:
    def leave() -> None:
        house.context.cancelled.set()
        for call in house.context.calls:
            call()

    house.executor.meanwhile = leave
    with pytest.raises(errors.Cancelled) as caught:
        house.run()
    assert caught.value.details == []
    assert house.worker.made[0].state == "released"
    assert house.executor.code == 137


def test_it_is_sampled_where_somebody_asked(house: House) -> None:
    house.run()
    assert not house.executor.wishes[0].sampled
    house.steps.sampled = lambda context: True
    house.executor.samples = SimpleNamespace(found=lambda: [{"timestamp": "now"}])
    house.run()
    assert house.executor.wishes[1].sampled


@pytest.mark.parametrize(
    "meta",
    [
        {"args": ["a\0b"]},
        {"env": ["A\0=b"]},
        {"cwd": "/a\0b"},
        {"user": "a\0"},
        {"hostname": "a\0"},
        {"extraHosts": [pb.HostIP(Host="a\0", IP="10.0.0.1")]},
        {"cgroupParent": "a\0.slice"},
    ],
    ids=lambda meta: next(iter(meta)),
)
def test_a_zero_byte_is_refused(house: House, meta: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"has a zero byte: .*\\x00"):
        house.run(meta=meta)
    assert not house.executor.processes


@pytest.mark.parametrize("place", [{"dest": "/a\0b"}, {"dest": "/a", "selector": "b\0"}])
def test_a_mount_s_zero_byte_is_refused(house: House, place: dict[str, str]) -> None:
    with pytest.raises(errors.InvalidArgument, match="of a mount has a zero byte"):
        house.run(more_mounts=[pb.Mount(input=0, output=-1, readonly=True, **place)])
    assert not house.executor.processes


def test_a_variable_s_value_is_not_told(house: House) -> None:
    with pytest.raises(errors.InvalidArgument, match="value has a zero byte$"):
        house.run(meta={"env": ["A=secret\0"]})
