# SPDX-License-Identifier: Apache-2.0
"""Wait, given up: by a connection that closes, by a deadline, by clients of teu-containerd who cancel it.

Nothing of it stays in the shim, however often it happens: a poller would fill the memory otherwise."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
import shimwire
from shimwire import Bench, Client, Receiver
from taskhouse import House, house

pytestmark = [pytest.mark.timeout(180)]

WAITS = 3000


def resident(pid: int) -> int:
    """KiB of memory that are a process's own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="teu-wire-", dir="/var/lib") as base:
        folder = Path(base)
        with Receiver(folder / "events") as events, Bench(shimwire.OWN, folder, events) as made:
            yield made


def begin(client: Client, name: str, seconds: float = 0) -> int:
    """A Wait that is not waited for; its stream."""
    from teu.ttrpc import messages as m

    payload = m.encode("task.WaitRequest", {"id": name})
    return client.send(client.service, "Wait", payload, seconds)


def test_waits_end_with_their_connection_or_deadline(bench: Bench) -> None:
    from teu.ttrpc.status import DEADLINE_EXCEEDED, StatusError

    bench.bundle("x", ["sleep", "600"])
    address = bench.start("x")
    client = bench.client(address)
    bench.create(client, "x")
    client.task("Start", id="x")
    shim = client.task("Connect", id="x")["shim_pid"]

    def give_up(count: int) -> None:
        """By a connection that closes; when its end has been seen, all of them have."""
        other = bench.client(address)
        for _ in range(count):
            begin(other, "x")
        other.task("State", id="x")
        other.close()
        client.task("State", id="x")

    give_up(WAITS)  # so many at once take their room, which is used again
    before = resident(shim)
    for _ in range(4):
        give_up(WAITS)
    assert resident(shim) - before < 2000, "what was given up is kept"
    # A deadline ends it on a connection that stays, and is told.
    with pytest.raises(StatusError) as late:
        client.receive(begin(client, "x", 0.2))
    assert late.value.code == DEADLINE_EXCEEDED
    # The others still wait, and are answered.
    waiting, forever = begin(client, "x", 60), begin(client, "x")
    client.task("Kill", id="x", signal=9)
    for stream in (waiting, forever):
        assert client.end("Wait", stream)["exit_status"] == 137
    client.task("Delete", id="x")
    client.shut_down()


@pytest.fixture(scope="module")
def h() -> Iterator[House]:
    with house("teu-containerd", runtime="teu-runc") as made:
        yield made


@pytest.mark.needs("ctr")
def test_cancelled_waits_do_not_pile_up(h: House) -> None:
    import grpc

    from teu.api.services.tasks.v1 import tasks_pb2 as pb
    from teu.api.services.tasks.v1 import tasks_pb2_grpc

    h.start("polled", "sleep", "600")
    shim = h.shim_pid("polled")
    call = {"metadata": [("containerd-namespace", "default")], "timeout": 60}
    with grpc.insecure_channel(f"unix:{h.daemon.address}") as channel:
        tasks = tasks_pb2_grpc.TasksStub(channel)

        def give_up(count: int) -> None:
            for _ in range(count // 100):
                waits = [tasks.Wait.future(pb.WaitRequest(container_id="polled"), **call) for _ in range(100)]
                tasks.Get(pb.GetRequest(container_id="polled"), **call)
                for wait in waits:
                    wait.cancel()

        give_up(200)
        before = resident(shim)
        kept = tasks.Wait.future(pb.WaitRequest(container_id="polled"), **call)
        give_up(WAITS)
        assert resident(shim) - before < 1500, "each cancelled wait is kept by the shim"
        with pytest.raises(grpc.RpcError) as unknown:
            tasks.Wait(pb.WaitRequest(container_id="polled", exec_id="nosuch"), **call)
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
        h.kill("polled")
        assert kept.result(30).exit_status == 137
    peers.wait_until(lambda: (h.task("polled") or (0, ""))[1] == "STOPPED", "it to stop")
    assert h.remove("polled") == 137
