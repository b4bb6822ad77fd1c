# SPDX-License-Identifier: Apache-2.0
"""What a daemon has open it closes when it goes: descriptors, inotify instances, threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import engine_parts as parts
import networkhouse as house
import pytest
from drivers import networks as suite

from teu.engine.streams.pump import Pump


def opened() -> list[str]:
    """What this process has open."""
    result = []
    for name in os.listdir("/proc/self/fd"):
        try:
            result.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # that of the list itself
            continue
    return result


def leaves_nothing(round_: Callable[[], None]) -> None:
    """The first time may open what the process has once for all, such as nftables' library."""
    round_()
    before, threads = sorted(opened()), threading.active_count()
    kinds = [len(before), sum("inotify" in one for one in before)]
    for _ in range(3):
        round_()
    after = sorted(opened())
    assert [len(after), sum("inotify" in one for one in after)] == kinds, set(after) - set(before)
    assert threading.active_count() <= threads


def test_an_engine_that_is_closed_has_nothing_open(tmp_path: Path) -> None:
    def round_() -> None:
        engine = parts.engine(tmp_path)
        engine.pump.start()
        engine.endpoints._host_names.watch()
        engine.close()
        engine.close()

    leaves_nothing(round_)


def test_one_that_has_started_nothing_has_neither(tmp_path: Path) -> None:
    leaves_nothing(lambda: parts.engine(tmp_path).close())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")
def test_networks_that_are_closed_have_nothing_open(tmp_path: Path) -> None:
    """Neither the socket to the kernel, nor the watch of the ruleset, nor a namespace, nor a port."""
    numbers = iter(range(1, 100))

    def round_() -> None:
        engine = house.Engine(tmp_path)
        one = house.container(engine, tmp_path, next(numbers), PortBindings={"80/tcp": [{"HostPort": "8080"}]})
        house.start(engine, one)
        engine.stopping.set()
        engine.endpoints.close()
        engine.endpoints.close()
        engine.database.close()

    with suite.own_namespace():
        leaves_nothing(round_)


def test_who_comes_late_to_a_pump_wakes_nothing() -> None:
    """Its descriptors' numbers may be others' by then."""
    pump = Pump()
    pump.start()
    pump.stop()
    reader, writer = os.pipe()
    try:
        pump.later(lambda: None)
        pump.stop()
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 8)
    finally:
        os.close(reader)
        os.close(writer)
