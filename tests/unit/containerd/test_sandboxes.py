# SPDX-License-Identifier: Apache-2.0
"""Sandboxes at work, with a shim that has no container."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakeshim import NS, House, Test
from google.protobuf import any_pb2

from teu.api.events import sandbox_pb2 as sandbox_events
from teu.api.types import sandbox_pb2
from teu.containerd.core.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented, Unknown
from teu.containerd.runtime.sandboxes import Manager
from teu.containerd.runtime.tasks import Stdio
from teu.ttrpc import status


async def create(house: House, id: str = "s", record: Any = None) -> None:
    if record is None:
        record = sandbox_pb2.Sandbox(sandbox_id=id)
        record.runtime.name = house.shim.program
    await house.context.sandbox_manager.create(
        NS, id, record=record, rootfs=(), options=any_pb2.Any(), netns_path="/net", annotations={"a": "b"}
    )


async def started(house: House, id: str = "s") -> None:
    await create(house, id)
    house.context.sandbox_manager.get(NS, id).shim.note(started=True)
    house.context.sandbox_manager.watch(NS, id)


def test_the_life_of_a_sandbox(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        manager = house.context.sandbox_manager
        await create(house)
        asked = house.shim.request("CreateSandbox")
        assert (asked["sandbox_id"], asked["netns_path"]) == ("s", "/net") and asked["annotations"] == {"a": "b"}
        with pytest.raises(AlreadyExists, match='sandbox "s"'):
            await create(house)
        sandbox = manager.get(NS, "s")
        assert (await sandbox.call("StartSandbox", sandbox_id="s")).pid == 77
        assert json.loads((house.bundle("s") / "sandbox.json").read_text()) == {"started": False, "told": False}
        sandbox.shim.note(started=True)
        manager.watch(NS, "s")
        manager.watch(NS, "s")  # again does nothing
        house.shim.sandbox_ended.set()
        assert (await sandbox.wait()).exit_status == 4
        await asyncio.sleep(0.05)
        assert house.topics() == ["/sandboxes/exit"]
        told = sandbox_events.SandboxExit.FromString(house.events[-1][1].value)
        assert (told.sandbox_id, told.exit_status, told.exited_at.seconds) == ("s", 4, 1_700_000_000)
        await manager.shutdown(NS, "s")
        assert house.shim.request("ShutdownSandbox") == {"sandbox_id": "s"}
        assert not house.bundle("s").exists()
        with pytest.raises(NotFound):
            await manager.shutdown(NS, "s")

    house(test)


def test_a_refused_creation_leaves_nothing(house: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teu.containerd.runtime.shims.SHUTDOWN_TIMEOUT", 0.3)

    async def test(house: House) -> None:
        house.shim.refuse["CreateSandbox"] = (status.UNIMPLEMENTED, "no sandboxes here")
        house.shim.ends_when_told = False
        with pytest.raises(Unimplemented, match="no sandboxes here"):
            await create(house)
        assert not house.bundle("s").exists() and house.topics() == []
        with pytest.raises(NotFound):
            house.context.sandbox_manager.get(NS, "s")
        with pytest.raises(InvalidArgument, match="must match"):
            await create(house, "../t")
        with pytest.raises(NotFound, match='sandbox "t"'):
            await create(house, "t", sandbox_pb2.Sandbox())  # the record of the store, which has none

    house(test)


def test_a_sandbox_whose_shim_dies(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await started(house)
        waiting = house.context.sandbox_manager.get(NS, "s").shim.gone
        house.shim.die()
        await waiting
        await asyncio.sleep(0.05)
        assert house.topics() == ["/sandboxes/exit"]  # once
        with pytest.raises(NotFound):
            house.context.sandbox_manager.get(NS, "s")

    house(test)


def test_the_next_of_a_name_waits_for_what_a_dead_one_has_left(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await started(house)
        shim = house.context.sandbox_manager.get(NS, "s").shim
        Path(f"{house.shim.program}.lazy").touch()
        house.shim.die()
        while house.shim.words() != ["start", "delete"]:
            await asyncio.sleep(0.001)
        await house.shim.__aenter__()  # its socket is there again
        await create(house)
        await asyncio.sleep(0.7)
        assert house.bundle("s").exists() and shim.gone.done()
        assert house.shim.words() == ["start", "delete", "start"]

    house(test)


def test_a_shim_that_does_not_answer_stops_no_removal(
    house: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teu.containerd.runtime.shims.SHUTDOWN_TIMEOUT", 0.2)
    monkeypatch.setattr("teu.containerd.runtime.sandboxes.STOP_TIMEOUT", 0.2)

    async def test(house: House) -> None:
        await started(house)
        house.shim.hold["ShutdownSandbox"] = asyncio.Event()
        assert await house.context.sandbox_manager.shutdown(NS, "s") is False
        assert not house.bundle("s").exists()
        await started(house, "t")
        house.shim.hold.clear()
        assert await house.context.sandbox_manager.shutdown(NS, "t") is True

    house(test)


@pytest.mark.parametrize(
    ("name", "dies", "words"),
    [
        ("containerd-shim-teu-v2", False, ["start"]),
        ("containerd-shim-teu-v2", True, ["start", "delete"]),
        ("containerd-shim-other-v1", False, ["start", "delete"]),
    ],
)
def test_after_our_own_shim_that_ends_by_itself_nothing_is_cleaned_up(
    house: Callable[[Test], None], name: str, dies: bool, words: list[str]
) -> None:
    async def test(house: House) -> None:
        house.shim.is_named(name)
        await started(house)
        shim = house.context.sandbox_manager.get(NS, "s").shim
        if dies:
            house.shim.die()
        else:
            assert await house.context.sandbox_manager.shutdown(NS, "s")
        await shim.gone
        assert house.shim.words() == words and not house.bundle("s").exists()

    house(test)


def test_a_shim_that_says_so_and_does_not_end_is_cleaned_up_after(
    house: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teu.containerd.runtime.shims.SHUTDOWN_TIMEOUT", 0.3)

    async def test(house: House) -> None:
        house.shim.is_named("containerd-shim-teu-v2")
        house.shim.ends_when_told = False
        await started(house)
        assert await house.context.sandbox_manager.shutdown(NS, "s")
        assert house.shim.words() == ["start", "delete"] and not house.bundle("s").exists()

    house(test)


def test_a_container_comes_into_the_shim_of_its_sandbox(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await started(house)
        house.container("c", sandbox="s")
        house.container("d", sandbox="elsewhere")
        pid = await house.tasks.create(NS, "c", Stdio())
        assert (house.bundle() / "sandbox").read_text() == "s"
        assert house.shim.words() == ["start"]  # one shim for both
        with pytest.raises(Unknown, match="can't find sandbox elsewhere"):
            await house.tasks.create(NS, "d", Stdio())
        house.shim.processes["c", ""].exit(0)
        assert (await house.tasks.delete(NS, "c")).pid == pid
        assert "Shutdown" not in house.shim.methods()  # the sandbox is there

    house(test)


def test_a_shim_ends_though_all_that_it_serves_is_deleted_at_once(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        for id in ("c", "d"):
            house.container(id)
            await house.tasks.create(NS, id, Stdio())
            house.shim.processes[id, ""].exit(0)
        house.shim.hold["Delete"] = asyncio.Event()
        deletions = [asyncio.ensure_future(house.tasks.delete(NS, id)) for id in ("c", "d")]
        while house.shim.methods().count("Delete") < 2:
            await asyncio.sleep(0.01)
        house.shim.hold["Delete"].set()
        await asyncio.gather(*deletions)
        assert "Shutdown" in house.shim.methods()

    house(test)


def test_the_next_life_takes_over_its_sandboxes(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await started(house)
        await house.context.shims.close()
        shims = house.again()
        await shims.restore()
        manager = Manager(house.context.sandboxes, shims, "default")
        with pytest.raises(NotFound):
            manager.get(NS, "s")
        manager.take_over()
        assert manager.get(NS, "s").watched
        house.events.clear()
        house.shim.sandbox_ended.set()
        await asyncio.sleep(0.1)
        assert house.topics() == ["/sandboxes/exit"]
        await shims.close()

    house(test)
