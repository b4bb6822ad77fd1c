# SPDX-License-Identifier: Apache-2.0
"""The restart monitor: its policies, and what it does to tasks, with a shim that has no container."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from fakeshim import NS, House, Test

from teu.api.services.containers.v1 import containers_pb2
from teu.containerd.core.errors import NotFound
from teu.containerd.runtime.restart import PREFIX, Restarts, wants_restart
from teu.ttrpc import messages as m


def labels(**wanted: str) -> dict[str, str]:
    return {PREFIX + key.replace("_", "-"): value for key, value in wanted.items()}


@pytest.mark.parametrize(
    ("wanted", "exit_status", "restarted"),
    [
        ({}, 0, True),
        ({"policy": "always"}, 0, True),
        ({"policy": "always", "explicitly_stopped": "true"}, 0, True),
        ({"policy": "no"}, 1, False),
        ({"policy": "on-failure"}, 0, False),
        ({"policy": "on-failure"}, 137, True),
        ({"policy": "on-failure", "count": "1000"}, 1, True),
        ({"policy": "on-failure:3", "count": "2"}, 1, True),
        ({"policy": "on-failure:3", "count": "3"}, 1, False),
        ({"policy": "on-failure:0", "count": "3"}, 1, True),
        ({"policy": "unless-stopped"}, 0, True),
        ({"policy": "unless-stopped", "explicitly_stopped": "false"}, 0, True),
        ({"policy": "unless-stopped", "explicitly_stopped": "1"}, 0, False),
    ],
)
def test_policies(wanted: dict[str, str], exit_status: int, restarted: bool) -> None:
    assert wants_restart(labels(**wanted), exit_status) is restarted


@pytest.mark.parametrize(
    "wanted",
    [
        {"policy": "sometimes"},
        {"policy": "always:3"},
        {"policy": "no:"},
        {"policy": "on-failure:many"},
        {"policy": "on-failure:"},
        {"policy": "on-failure:3", "count": "few"},
    ],
)
def test_what_is_no_policy(wanted: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        wants_restart(labels(**wanted), 1)


def monitor(house: House, interval: float = 10.0) -> Restarts:
    context = house.context
    return Restarts(
        context.containers,
        context.snapshots,
        context.tasks,
        context.events,
        context.pool,
        root=context.root,
        state=context.state,
        interval=lambda: interval,
    )


def relabel(house: House, **wanted: str) -> None:
    changed = containers_pb2.Container(id="c", labels=labels(**wanted))
    house.context.containers.update(NS, changed, [f"labels.{key}" for key in changed.labels])


def count(house: House) -> str:
    return str(house.context.containers.get(NS, "c").labels.get(PREFIX + "count", ""))


def test_a_task_is_kept_running(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        house.container(**labels(status="running", loguri="file:///log"))
        restarts = monitor(house)
        await restarts.reconcile()
        assert (await house.tasks.get(NS, "c")).status == m.RUNNING
        asked = house.shim.request("Create")
        assert (asked["stdout"], asked["stderr"], asked["terminal"]) == ("file:///log", "file:///log", False)
        assert count(house) == "1"
        await restarts.reconcile()  # it runs: nothing to be done
        assert house.shim.methods().count("Create") == 1
        house.shim.processes["c", ""].exit(0)
        await restarts.reconcile()
        assert house.shim.methods().count("Create") == 2 and count(house) == "2"

    house(test)


def test_a_task_is_stopped(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        relabel(house, status="stopped")
        await monitor(house).reconcile()
        assert house.shim.request("Kill") == {"id": "c", "exec_id": "", "signal": 9, "all": True}
        with pytest.raises(NotFound):
            await house.tasks.get(NS, "c")

    house(test)


def test_a_failure_is_tried_so_often(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        relabel(house, status="running", policy="on-failure:2")
        restarts = monitor(house)
        for expected in ("1", "2", "2"):
            house.shim.processes["c", ""].exit(1)
            await restarts.reconcile()
            assert count(house) == expected
        assert (await house.tasks.get(NS, "c")).status == m.STOPPED

    house(test)


def test_what_cannot_be_started_does_not_stop_the_others(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        wanted = labels(status="running")
        house.container("a", **wanted, **{"containerd.io/restart.count": "many"})
        house.container("b", **{**wanted, PREFIX + "policy": "sometimes"})
        house.container("c", **wanted)
        await monitor(house).reconcile()
        assert {id for id, _ in house.shim.processes} == {"a", "c"}

    house(test)


def test_the_end_of_the_machine_is_a_failure(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        relabel(house, status="running", policy="on-failure")
        await monitor(house).reconcile()
        record = Path(house.context.root, "running-on-failure")
        assert record.read_text() == f"{NS} c\n"
        # a boot: the tasks are gone, and so is what STATE had
        house.shim.processes["c", ""].exit(0)
        await house.tasks.delete(NS, "c")
        await monitor(house).reconcile()
        assert (await house.tasks.get(NS, "c")).status == m.RUNNING

    house(test)


def test_nothing_is_looked_at_without_labels(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        restarts = monitor(house, interval=0.01)
        assert not restarts.settled()
        work = asyncio.create_task(restarts.run())
        try:
            async with asyncio.timeout(20):
                while not restarts.settled():
                    await asyncio.sleep(0.01)
                house.container()
                await asyncio.sleep(0.05)
                assert restarts.settled() and not house.shim.processes
                relabel(house, status="running")
                while not house.shim.processes:
                    await asyncio.sleep(0.01)
        finally:
            work.cancel()

    house(test)
