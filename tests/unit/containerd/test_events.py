# SPDX-License-Identifier: Apache-2.0
"""The exchange: order, filters, slow subscribers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from teu.api.events import container_pb2, task_pb2
from teu.api.types import event_pb2
from teu.containerd.core.errors import InvalidArgument, ResourceExhausted
from teu.containerd.core.events import Exchange


def exit_event(id: str) -> Any:
    return task_pb2.TaskExit(container_id=id, id=id, pid=7)


def take(exchange: Exchange, filters: list[str], publish: Any, count: int) -> list[Any]:
    async def run() -> list[Any]:
        subscription = exchange.subscribe(filters)
        await asyncio.to_thread(publish)
        found: list[Any] = []
        async for envelope in subscription:
            found.append(envelope)
            if len(found) == count:
                break
        subscription.close()
        return found

    return asyncio.run(asyncio.wait_for(run(), 10))


def test_order_and_stamp() -> None:
    exchange = Exchange()

    def publish() -> None:
        for number in range(500):
            exchange.publish("default", "/tasks/exit", exit_event(f"c{number}"))

    found = take(exchange, [], publish, 500)
    ids = [task_pb2.TaskExit.FromString(one.event.value).container_id for one in found]
    assert ids == [f"c{number}" for number in range(500)]
    assert found[0].event.type_url == "containerd.events.TaskExit"
    assert found[0].timestamp.seconds > 1_600_000_000
    assert exchange.subscribers() == 0


@pytest.mark.parametrize(
    "filter",
    ['topic=="/tasks/exit",namespace==a', "event.container_id==x", "topic~=|^/tasks/|,event.id==x", "event.id~=/^x$/"],
)
def test_filters_see_the_event(filter: str) -> None:
    exchange = Exchange()

    def publish() -> None:
        exchange.publish("b", "/tasks/exit", exit_event("y"))
        exchange.publish("a", "/containers/create", container_pb2.ContainerCreate(id="z"))
        exchange.publish("a", "/tasks/exit", exit_event("x"))

    (found,) = take(exchange, [filter], publish, 1)
    assert task_pb2.TaskExit.FromString(found.event.value).container_id == "x"


def test_forward_keeps_origin_and_checks() -> None:
    exchange = Exchange()
    envelope = event_pb2.Envelope(namespace="n", topic="/tasks/exit")
    with pytest.raises(InvalidArgument, match="event must be set"):
        exchange.forward(envelope)
    envelope.timestamp.seconds = 5
    envelope.event.type_url = "some.Unknown"
    (found,) = take(exchange, [], lambda: exchange.forward(envelope), 1)
    assert (found.timestamp.seconds, found.namespace) == (5, "n")


def test_exits_of_the_first_seconds_wait_for_subscribers() -> None:
    exchange = Exchange()
    exchange.publish("n", "/tasks/start", task_pb2.TaskStart(container_id="x"))
    exchange.publish("n", "/tasks/exit", exit_event("x"))
    for _ in range(2):  # to each who comes
        (found,) = take(exchange, [], lambda: None, 1)
        assert found.topic == "/tasks/exit"
    exchange._early_until = 0.0
    (found,) = take(exchange, [], lambda: exchange.publish("n", "/tasks/exit", exit_event("late")), 1)
    assert task_pb2.TaskExit.FromString(found.event.value).container_id == "late"


@pytest.mark.parametrize("topic", ["", "x", "/", "/a//b", "/a b"])
def test_bad_topics(topic: str) -> None:
    with pytest.raises(InvalidArgument):
        Exchange().publish("n", topic, exit_event("x"))


def test_slow_subscriber_is_cut_off_alone() -> None:
    exchange = Exchange(queue_limit=10)

    async def run() -> int:
        slow, quick = exchange.subscribe([]), exchange.subscribe(["event.id==c15"])
        for number in range(20):
            exchange.publish("n", "/tasks/exit", exit_event(f"c{number}"))
        async for envelope in quick:
            assert envelope.topic == "/tasks/exit"
            break
        seen = 0
        with pytest.raises(ResourceExhausted):
            async for _ in slow:
                seen += 1
        return seen

    assert asyncio.run(run()) == 10
