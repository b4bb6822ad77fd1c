# SPDX-License-Identifier: Apache-2.0
"""teud's client of containerd on a daemon of ours: two that write the same, and clients that leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from containerd_parts import Daemon, root_only

from teu.engine.backend import content
from teu.engine.backend.containerd import Client
from teu.engine.core.departure import NOBODY, Departure, Left
from teu.engine.images import unpack
from teu.oci.labels import BUILDER

pytestmark = root_only


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    made = Client(daemon.address)
    made.ensure_namespace()
    yield made
    made.close()


def eventually(probe: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not probe():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_who_waits_for_an_ingest_keeps_it_from_the_sweep(client: Client) -> None:
    """The second tries again and again: at no moment does the ingest belong to nobody."""
    first = content.Writer(client, "shared")
    second: list[content.Writer] = []
    thread = threading.Thread(target=lambda: second.append(content.Writer(client, "shared")))
    thread.start()
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        assert "shared" in client.working
    assert not second
    first.close()
    assert "shared" in client.working
    thread.join(20)
    second[0].close()
    second[0].close()
    assert "shared" not in client.working


def test_who_leaves_waits_for_nothing(client: Client) -> None:
    """Not for another's ingest, nor for another thread; and what failed because of it is no failure of its own."""
    left = threading.Event()
    departure = Departure(left.is_set)
    failures: list[BaseException] = []

    def attempt(work: Callable[[], object]) -> threading.Thread:
        def guard() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=guard)
        thread.start()
        return thread

    def locked() -> None:
        with unpack.exclusive("name", departure):
            pass

    def cancelled() -> None:
        done = threading.Event()
        with departure.during(done.set):
            assert done.wait(20)
            raise ValueError("the connection is gone")

    with content.Writer(client, "held"), unpack.exclusive("name", NOBODY):
        threads = [
            attempt(lambda: content.Writer(client, "held", departure=departure)),
            attempt(locked),
            attempt(cancelled),
        ]
        time.sleep(0.3)
        assert not failures
        left.set()
        for thread in threads:
            thread.join(20)
    assert [type(error) for error in failures] == [Left] * 3
    eventually(lambda: "held" not in client.working)
    with pytest.raises(Left):
        departure.check()
    with content.Writer(client, "held", departure=NOBODY) as writer:
        writer.write(b"x")
        writer.commit()


def test_what_the_engine_ends_at_its_stop_says_so(client: Client) -> None:
    """Not what gRPC says of its channel: calls under way, streams, and those that come after it."""
    from teu.api.services.content.v1 import content_pb2
    from teu.api.services.events.v1 import events_pb2
    from teu.engine.backend.containerd import Unavailable

    failures: list[BaseException] = []

    def guard(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    stream = client.events.Subscribe(events_pb2.SubscribeRequest(), timeout=None)
    following = threading.Thread(target=guard, args=(lambda: list(stream),))
    following.start()
    client.content.Info  # noqa: B018  (its stub is made before the stop)
    after = client.content
    time.sleep(0.2)
    client.close()
    following.join(20)
    for call in (
        lambda: after.Info(content_pb2.InfoRequest(digest="sha256:" + "0" * 64)),
        lambda: list(after.List(content_pb2.ListContentRequest())),
    ):
        guard(call)
    assert len(failures) == 3
    for failure in failures:
        assert isinstance(failure, Unavailable) and "stopping" in str(failure), repr(failure)


def test_what_no_record_stands_for_is_removed_but_a_builders_steps(client: Client) -> None:
    """Both programs work in one namespace of containerd."""
    from teu.api.services.containers.v1 import containers_pb2
    from teu.engine.backend import tasks
    from teu.engine.lifecycle import recovery

    for identity, labels in (("stray", {"teu.name": "x"}), ("step", {BUILDER: "worker"})):
        message = containers_pb2.Container(id=identity, labels=labels)
        message.runtime.name = "io.containerd.teu.v2"
        client.containers.Create(containers_pb2.CreateContainerRequest(container=message))
    assert tasks.list_containers(client) == (["stray"], ["step"])
    engine: Any = SimpleNamespace(
        containers=SimpleNamespace(lost=set(), find=lambda _: None),
        containerd=client,
        config={"storage-driver": "overlayfs", "default-runtime": "io.containerd.teu.v2"},
        data_root="/nonexistent",
        exec_root="/nonexistent",
    )
    with pytest.raises(FileNotFoundError):  # of its folders, which come last
        recovery.sweep(engine)
    assert tasks.list_containers(client) == ([], ["step"])
