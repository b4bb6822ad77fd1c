# SPDX-License-Identifier: Apache-2.0
"""A whole set of stores in a folder of its own, without a server; and a daemon with one."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containerd_parts import Daemon, make_context
from fakeshim import FakeShim, House, Test
from places import quickest

from teu.containerd.state import Context


@pytest.fixture
def context() -> Iterator[Context]:
    with tempfile.TemporaryDirectory(dir=quickest(), prefix="teu-unit-") as folder:
        made = make_context(Path(folder))
        yield made
        made.close()


@pytest.fixture
def house(context: Context) -> Callable[[Test], None]:
    """Runs a test on an event loop of its own, with a shim that listens."""

    def run(test: Test) -> None:
        async def whole() -> None:
            async with FakeShim(Path(context.root, "shim")) as shim:
                try:
                    async with asyncio.timeout(60):
                        await test(House(context, shim))
                finally:
                    await context.shims.close()

        asyncio.run(whole())

    return run


@pytest.fixture
def make_daemon() -> Iterator[Callable[..., Daemon]]:
    made: list[Daemon] = []
    with tempfile.TemporaryDirectory(dir=quickest(), prefix="teu-unit-") as folder:

        def make(extra: str = "") -> Daemon:
            path = Path(folder) / str(len(made))
            path.mkdir()
            made.append(Daemon(path, extra))
            return made[-1].start()

        yield make
        for daemon in made:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill()


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """One for all tests of a module that leave no trace that another would stumble over."""
    with tempfile.TemporaryDirectory(dir=quickest(), prefix="teu-unit-") as folder:
        made = Daemon(Path(folder))
        yield made.start()
        made.kill()


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    return make_daemon()
