# SPDX-License-Identifier: Apache-2.0
"""Commands in containers, for clients that leave at the worst moment: what a shim has begun is taken away."""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teu.containerd.core.errors import FailedPrecondition, NotFound
from teu.containerd.cri import execs
from teu.containerd.cri.pipes import Streams
from teu.containerd.cri.records import RUNNING


class Tasks:
    """A shim that goes on with what it has begun, whether its caller is there or not; a start and an addition take
    their time."""

    def __init__(self, slow: str) -> None:
        self.slow = slow
        self.reached = asyncio.Event()
        self.processes: dict[str, str] = {}
        self._ended = asyncio.Event()
        self._works: list[asyncio.Task[None]] = []

    async def _do(self, what: str, name: str) -> None:
        async def work() -> None:
            if what == self.slow:
                self.reached.set()
                await asyncio.sleep(0.2)
            self.processes[name] = what

        self._works.append(asyncio.create_task(work()))
        await asyncio.shield(self._works[-1])

    async def exec(self, _namespace: str, _id: str, name: str, *_: Any) -> None:
        await self._do("made", name)

    async def start(self, _namespace: str, _id: str, name: str) -> None:
        await self._do("running", name)

    async def wait(self, _namespace: str, _id: str, _name: str) -> Any:
        self.reached.set()
        await self._ended.wait()
        return SimpleNamespace(status=137)

    async def kill(self, _namespace: str, _id: str, _signal: int, name: str) -> None:
        if self.processes.get(name) != "running":
            raise FailedPrecondition("process not created")
        self.processes[name] = "ended"
        self._ended.set()

    async def delete_process(self, _namespace: str, _id: str, name: str) -> None:
        if name not in self.processes:
            raise NotFound(name)
        if self.processes[name] == "running":
            raise FailedPrecondition("cannot delete a running process")
        del self.processes[name]

    async def finish(self) -> None:
        await asyncio.gather(*self._works)


def made(tmp_path: Path, tasks: Tasks, pool: ThreadPoolExecutor) -> tuple[execs.Execs, Any]:
    (tmp_path / "c").mkdir(exist_ok=True)
    record = SimpleNamespace(spec=SimpleNamespace(value=b'{"process": {}}'))
    context: Any = SimpleNamespace(tasks=tasks, pool=pool, containers=SimpleNamespace(get=lambda *_: record))
    containers: Any = SimpleNamespace(state_of=lambda id: str(tmp_path / id))
    return execs.Execs(context, containers), SimpleNamespace(id="c", state=RUNNING)


@pytest.mark.parametrize("slow", ["made", "running", "neither"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_leaves_no_process(tmp_path: Path, slow: str, streamed: bool) -> None:
    async def main() -> None:
        tasks = Tasks(slow)
        with ThreadPoolExecutor(2) as pool:
            commands, container = made(tmp_path, tasks, pool)
            if streamed:
                none = Streams(None, None, None, None)
                work: Any = commands.stream(container, ["sleep"], none, terminal=False)
            else:
                work = commands.run(container, ["sleep"], 0)
            running = asyncio.create_task(work)
            await tasks.reached.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await tasks.finish()
            assert tasks.processes == {}
            assert os.listdir(tmp_path / "c") == []

    asyncio.run(main())


def test_a_terminal_has_a_name(tmp_path: Path) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            commands, container = made(tmp_path, Tasks(""), pool)
            record = commands._context.containers.get("k8s.io", "c")
            for env, told in ([], ["TERM=xterm"]), (["A=b", "TERM=dumb"], ["A=b", "TERM=xterm"]):
                record.spec.value = json.dumps({"process": {"env": env}}).encode()
                with_one = json.loads(commands._process(container, ["sh"], True).value)
                without = json.loads(commands._process(container, ["sh"], False).value)
                assert with_one == {"args": ["sh"], "terminal": True, "env": told}
                assert without == {"args": ["sh"], "terminal": False, "env": env}

    asyncio.run(main())


def test_commands_of_an_earlier_daemon_are_taken_away(tmp_path: Path) -> None:
    async def main() -> None:
        tasks = Tasks("")
        tasks.processes = {"exec-1": "running", "exec-2": "ended", "another": "running"}
        with ThreadPoolExecutor(2) as pool:
            commands, container = made(tmp_path, tasks, pool)
            for name in ("exec-1", "exec-2", "exec-3", "stays"):
                (tmp_path / "c" / name).mkdir()
                (tmp_path / "c" / name / "stdout").touch()
            ended = SimpleNamespace(id="none", state=RUNNING)
            left = commands.left([container, ended])
            (tmp_path / "c" / "exec-4").mkdir()  # it is of this daemon
            await commands.take_away(left)
            assert tasks.processes == {"another": "running"}
            assert sorted(os.listdir(tmp_path / "c")) == ["exec-4", "stays"]

    asyncio.run(main())
