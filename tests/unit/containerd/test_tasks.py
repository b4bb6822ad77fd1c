# SPDX-License-Identifier: Apache-2.0
"""Tasks below the wire, with a shim that has no container: what it is asked, what is on disk, what is told."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import root_only
from fakeshim import ENDED_NS, NS, House, Test
from google.protobuf import any_pb2
from layertools import Bind

from teu.api.events import task_pb2 as task_events
from teu.containerd.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
    Unknown,
)
from teu.containerd.core.filters import parse_all
from teu.containerd.runtime import shims
from teu.containerd.runtime.shim import Exit
from teu.containerd.runtime.tasks import Listed, Process, Stdio, Tasks
from teu.ttrpc import messages as m
from teu.ttrpc import status

NO_OPTIONS = any_pb2.Any()


def test_the_life_of_a_task(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        house.container()
        tasks, shim = house.tasks, house.shim
        stdio = Stdio("/in", "/out", "/err", False)
        mounts = [Bind("/somewhere", "ro")]
        pid = await tasks.create(NS, "c", stdio, mounts=mounts)  # type: ignore[arg-type]
        asked = shim.request("Create")
        assert (asked["stdin"], asked["stdout"], asked["stderr"]) == ("/in", "/out", "/err")
        assert asked["rootfs"] == [{"type": "bind", "source": "/somewhere", "target": "", "options": ["rbind", "ro"]}]
        assert asked["bundle"] == str(house.bundle()) and asked["options"] is None
        assert (await tasks.get(NS, "c")).status == m.CREATED
        assert await tasks.start(NS, "c") == pid
        found = await tasks.get(NS, "c")
        assert (found.id, found.pid, found.status, found.stdio, found.exited_at) == ("c", pid, m.RUNNING, stdio, None)
        assert [one.pid for one in await tasks.all(NS)] == [pid] and await tasks.all("other") == []
        waiting = asyncio.create_task(tasks.wait(NS, "c"))
        with pytest.raises(FailedPrecondition, match="^failed to delete task: process is running"):
            await tasks.delete(NS, "c")
        await tasks.kill(NS, "c", 9)
        assert await waiting == Exit(137, ENDED_NS)
        assert await tasks.delete(NS, "c") == Exit(137, ENDED_NS, pid)
        assert not house.bundle().exists() and tasks.count() == 0
        with pytest.raises(NotFound, match="task c not found"):
            await tasks.get(NS, "c")
        assert shim.methods()[-1] == "Shutdown" and shim.request("Shutdown") == {"id": "c", "now": False}

    house(test)


def test_the_bundle_of_a_task(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        bundle = house.bundle()
        assert (bundle / "config.json").read_bytes() == b'{"process":{}}'
        assert (bundle / "shim-binary-path").read_text() == house.shim.program
        assert json.loads((bundle / "bootstrap.json").read_text()) == {
            "version": 2,
            "address": f"unix://{house.shim.socket}",
            "protocol": "ttrpc",
        }
        assert not (bundle / "creating").exists()
        assert os.stat(bundle).st_mode & 0o7777 == 0o700
        assert os.path.isdir(os.readlink(bundle / "work"))

    house(test)


def test_what_cannot_be_created_leaves_nothing(house: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teu.containerd.runtime.shims.SHUTDOWN_TIMEOUT", 0.3)

    async def test(house: House) -> None:
        tasks, shim = house.tasks, house.shim
        with pytest.raises(NotFound, match='container "c"'):
            await tasks.create(NS, "c", Stdio())
        house.container()
        with pytest.raises(NotFound, match="binary not installed"):
            await tasks.create(NS, "c", Stdio(), runtime="io.containerd.nosuch.v9")
        with pytest.raises(InvalidArgument, match="invalid runtime name"):
            await tasks.create(NS, "c", Stdio(), runtime="nothing")
        shim.print("no space", code=3)
        with pytest.raises(Unknown, match="no space: exit status 3"):
            await tasks.create(NS, "c", Stdio())
        assert not house.bundle().exists()
        shim.print(f"unix://{shim.socket}.nowhere")
        with pytest.raises(Unavailable, match="cannot connect to the shim"):
            await tasks.create(NS, "c", Stdio())
        shim.print(f"unix://{shim.socket}")
        shim.refuse["Create"] = (status.UNIMPLEMENTED, "not today")
        shim.ends_when_told = False
        with pytest.raises(Unimplemented, match="^failed to create shim task: not today"):
            await tasks.create(NS, "c", Stdio())
        assert shim.request("Shutdown")["now"] is True
        assert not house.bundle().exists() and not house.context.shims.exists(NS, "c")
        del shim.refuse["Create"]
        assert await tasks.create(NS, "c", Stdio()) >= 100
        with pytest.raises(AlreadyExists, match="task c"):
            await tasks.create(NS, "c", Stdio())

    house(test)


def test_processes(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        tasks, shim = house.tasks, house.shim
        spec = any_pb2.Any(type_url="process", value=b"{}")
        for name in ("", "no/name"):
            with pytest.raises(InvalidArgument, match="invalid exec id"):
                await tasks.exec(NS, "c", name, Stdio(), spec)
        await tasks.exec(NS, "c", "e", Stdio(terminal=True), spec)
        assert shim.request("Exec")["spec"] == {"type_url": "process", "value": b"{}"}
        pid = await tasks.start(NS, "c", "e")
        assert (await tasks.get(NS, "c", "e")).id == "e"
        await tasks.resize(NS, "c", "e", 80, 25)
        assert shim.request("ResizePty") == {"id": "c", "exec_id": "e", "width": 80, "height": 25}
        await tasks.close_io(NS, "c", "e", stdin=False)
        assert "CloseIO" not in shim.methods()
        await tasks.close_io(NS, "c", "e")
        assert shim.request("CloseIO")["stdin"] is True
        await tasks.kill(NS, "c", 2, "e")
        assert await tasks.wait(NS, "c", "e") == Exit(130, ENDED_NS)
        assert await tasks.delete_process(NS, "c", "e") == Exit(130, ENDED_NS, pid)
        # a shim that finds no words for it: there is no such process
        shim.refuse["Kill"] = (status.UNKNOWN, "runc did not like it")
        with pytest.raises(NotFound):
            await tasks.kill(NS, "c", 2, "e")
        with pytest.raises(Unknown, match="runc did not like it"):
            await tasks.kill(NS, "c", 2)

    house(test)


def test_the_smaller_calls(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        tasks, shim = house.tasks, house.shim
        await tasks.pause(NS, "c")
        await tasks.resume(NS, "c")
        assert shim.methods()[-2:] == ["Pause", "Resume"]
        value = m.encode("task.StartResponse", {"pid": 7})
        assert await tasks.pids(NS, "c") == [Listed(1), Listed(2, "task.StartResponse", value)]
        await tasks.update(NS, "c", any_pb2.Any(type_url="limits", value=b"x"), {"a": "b"})
        asked = shim.request("Update")
        assert asked["resources"] == {"type_url": "limits", "value": b"x"} and asked["annotations"] == {"a": "b"}
        (stats,) = await tasks.stats(NS, parse_all(["id==c"]))
        assert (stats.id, stats.type_url) == ("c", "io.containerd.cgroups.v2.Metrics")
        assert await tasks.stats(NS, parse_all(["id==d"])) == []
        (figures,) = await tasks.cgroup_stats()
        assert (figures.namespace, figures.id, figures.runtime) == (NS, "c", shim.program)
        assert (figures.metrics.pids.current, figures.metrics.pids.limit) == (3, 9)
        shim.refuse["Stats"] = shim.refuse["State"] = (status.UNKNOWN, "broken")
        assert await tasks.stats(NS, parse_all([])) == [] == await tasks.cgroup_stats()
        unknown = Process("c", 0, 0, Stdio(), 0, None)  # there is one, of which nobody knows more
        assert await tasks.all(NS) == [unknown] and await tasks.told(NS, "c") == unknown
        with pytest.raises(Unknown, match="broken"):
            await tasks.get(NS, "c")
        shim.refuse["State"] = (status.NOT_FOUND, "no such task")
        assert await tasks.all(NS) == []
        with pytest.raises(NotFound):
            await tasks.told(NS, "c")

    house(test)


def test_all_who_wait_share_a_call(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        waits = [asyncio.create_task(house.tasks.wait(NS, "c")) for _ in range(5)]
        await asyncio.sleep(0.05)
        waits[0].cancel()  # a client leaves; the others are none the worse
        house.shim.processes["c", ""].exit(6)
        assert [await one for one in waits[1:]] == [Exit(6, ENDED_NS)] * 4
        assert house.shim.methods().count("Wait") == 1

    house(test)


def test_two_deletions_are_one(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        pid = await house.running()
        house.shim.processes["c", ""].exit(0)
        house.shim.hold["Delete"] = asyncio.Event()
        first, second = (asyncio.create_task(house.tasks.delete(NS, "c")) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()  # it goes on to its end though its client leaves
        house.shim.hold["Delete"].set()
        assert await second == Exit(0, ENDED_NS, pid)
        assert house.shim.methods().count("Delete") == 1 and not house.bundle().exists()

    house(test)


def test_a_shim_that_dies_takes_its_task(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        waiting = asyncio.create_task(house.tasks.wait(NS, "c"))
        await asyncio.sleep(0.05)
        house.shim.die()
        # what the program's `delete` found out
        assert await waiting == Exit(9, None, 42)
        assert house.shim.words() == ["start", "delete"]
        assert house.topics() == ["/tasks/exit", "/tasks/delete"]
        told = task_events.TaskExit.FromString(house.events[-2][1].value)
        assert (told.container_id, told.id, told.pid, told.exit_status) == ("c", "c", 42, 9)
        assert not house.bundle().exists()
        with pytest.raises(NotFound):
            await house.tasks.get(NS, "c")

    house(test)


def test_a_clean_up_that_is_killed_is_made_again(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        house.shim.mark("killed")
        waiting = asyncio.create_task(house.tasks.wait(NS, "c"))
        await asyncio.sleep(0.05)
        house.shim.die()
        assert await waiting == Exit(9, None, 42)
        assert house.shim.words() == ["start", "delete", "delete"] and not house.bundle().exists()

    house(test)


def test_a_client_that_leaves_while_the_shim_starts(house: Callable[[Test], None]) -> None:
    """The shim is there by then: it is told to end, not forgotten."""

    async def test(house: House) -> None:
        house.container()
        house.shim.mark("slow")
        creating = asyncio.create_task(house.tasks.create(NS, "c", Stdio()))
        while "start" not in house.shim.words():
            await asyncio.sleep(0.01)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert house.shim.request("Shutdown") == {"id": "c", "now": True} and "Create" not in house.shim.methods()
        assert not house.bundle().exists() and not house.context.shims.exists(NS, "c")

    house(test)


def test_a_creation_that_the_stop_cuts_short_is_left_to_the_next_life(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        house.container()
        house.shim.hold["Create"] = asyncio.Event()
        creating = asyncio.create_task(house.tasks.create(NS, "c", Stdio()))
        while "Create" not in house.shim.methods():
            await asyncio.sleep(0.01)
        await house.context.shims.close()
        with pytest.raises(Unavailable):
            await creating
        assert (house.bundle() / "creating").exists() and "delete" not in house.shim.words()
        shims = house.again()
        await shims.restore()
        assert not house.bundle().exists() and shims.all() == []
        await shims.close()

    house(test)


@pytest.mark.parametrize("told", [False, True])
def test_a_deletion_is_told_once_also_where_the_shim_does_not(
    house: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    monkeypatch.setattr(shims, "TOLD_SECONDS", 0.2)

    async def test(house: House) -> None:
        await house.running()
        await house.tasks.kill(NS, "c", 9)
        ended = await house.tasks.delete(NS, "c")
        assert house.topics() == []
        if told:
            house.context.events.publish(NS, "/tasks/delete", task_events.TaskDelete(container_id="c", exit_status=137))
        await asyncio.sleep(0.4)
        assert house.topics() == ["/tasks/delete"]
        event = task_events.TaskDelete.FromString(house.events[-1][1].value)
        assert (event.container_id, event.exit_status) == ("c", ended.status)

    house(test)


def test_an_exit_that_was_told_is_not_told_again(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        house.context.events.publish(NS, "/tasks/exit", task_events.TaskExit(container_id="c", id="c", pid=100))
        waiting = asyncio.create_task(house.tasks.wait(NS, "c"))
        await asyncio.sleep(0.05)
        house.shim.die()
        await waiting
        assert house.topics() == ["/tasks/exit", "/tasks/delete"]

    house(test)


def test_the_next_life_finds_its_tasks(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        pid = await house.running("lives")
        await house.context.shims.close()
        dead, half = house.bundle("dead"), house.bundle("half")
        for bundle in (dead, half):
            bundle.mkdir()
            (bundle / "shim-binary-path").write_text(house.shim.program)
            os.mkfifo(bundle / "log")
        (dead / "bootstrap.json").write_text(f'{{"version": 3, "address": "unix://{house.shim.socket}.gone"}}')
        (half / "creating").touch()
        shims = house.again()
        await shims.restore()
        try:
            assert [shim.id for shim in shims.all()] == ["lives"]
            tasks = Tasks(house.context.containers, house.context.checkpoints, shims, house.context.pool)
            assert (await tasks.get(NS, "lives")).pid == pid
            assert not dead.exists() and not half.exists()
            # only that of a task that was there is told
            assert house.topics() == ["/tasks/exit", "/tasks/delete"]
            assert task_events.TaskExit.FromString(house.events[-2][1].value).container_id == "dead"
        finally:
            await shims.close()

    house(test)


def test_a_slow_shim_is_waited_for(house: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teu.containerd.runtime.shims.SEEK_TIMEOUT", 0.1)

    async def test(house: House) -> None:
        pid = await house.running()
        await house.context.shims.close()
        house.shim.hold["State"] = asyncio.Event()
        shims = house.again()
        await shims.restore()  # it does not wait
        assert house.bundle().exists() and shims.exists(NS, "c") and "delete" not in house.shim.words()
        house.shim.hold.pop("State").set()
        tasks = Tasks(house.context.containers, house.context.checkpoints, shims, house.context.pool)
        assert (await tasks.get(NS, "c")).pid == pid
        await shims.close()

    house(test)


def test_options_name_the_images_to_restore_from(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        house.container()
        options = m.encode_any("containerd.runc.v1.Options", {"criu_image_path": "/images"})
        packed = any_pb2.Any(type_url=options["type_url"], value=options["value"])
        await house.tasks.create(NS, "c", Stdio(), options=packed)
        asked = house.shim.request("Create")
        assert asked["checkpoint"] == "/images" and asked["options"] == options

    house(test)


@root_only
def test_a_checkpoint_goes_into_the_store_and_out_of_it(house: Callable[[Test], None]) -> None:
    async def test(house: House) -> None:
        await house.running()
        named = m.encode_any("containerd.runc.v1.CheckpointOptions", {"image_path": "/images"})
        options = any_pb2.Any(type_url=named["type_url"], value=named["value"])
        assert await house.tasks.checkpoint(NS, "c", options) == []
        assert house.shim.request("Checkpoint")["path"] == "/images"
        with pytest.raises(InvalidArgument, match="invalid task checkpoint option"):
            await house.tasks.checkpoint(NS, "c", any_pb2.Any(type_url="other", value=b""))

        async def dump(request: dict[str, Any]) -> dict[str, Any]:
            Path(request["path"], "core-1.img").write_bytes(b"memory")
            return {}

        house.shim.do_Checkpoint = dump  # type: ignore[attr-defined]
        images, spec = await house.tasks.checkpoint(NS, "c", NO_OPTIONS)
        assert images.media_type.endswith("criu.tar") and spec.size > 0
        assert not os.listdir(Path(house.context.root, "checkpoints"))
        house.container("d")
        await house.tasks.create(NS, "d", Stdio(), checkpoint=images)
        folder = house.shim.request("Create")["checkpoint"]
        assert Path(folder, "core-1.img").read_bytes() == b"memory"
        with pytest.raises(InvalidArgument, match="unsupported checkpoint type"):
            house.context.checkpoints.restorer(NS, spec)

    house(test)
