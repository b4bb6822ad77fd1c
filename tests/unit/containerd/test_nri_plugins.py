# SPDX-License-Identifier: Apache-2.0
"""Plugins on their connections: who comes, who is asked, and who is disconnected."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from test_nri_merge import CHECKS

from teu.api.nri.v1alpha1 import nri_pb2 as nri
from teu.containerd.core.errors import Unknown
from teu.containerd.nri import names
from teu.containerd.nri.plugin import ALL_EVENTS, METHODS, PLUGIN_STREAM, RUNTIME_STREAM, Plugin, Runtime, requests
from teu.containerd.nri.plugins import Plugins
from teu.ttrpc import frames, messages, mux, status
from teu.ttrpc.client import Client
from teu.ttrpc.status import StatusError

RUNTIME = Runtime("containerd", "1", 0.5, 0.5)
Handler = Callable[[Any], Any]


class Fake(asyncio.Protocol):
    """The other end: a plugin that answers as its handlers do, or not at all where they give None."""

    def __init__(self, events: int, handlers: dict[str, Handler]) -> None:
        self.events, self.handlers = events, handlers
        self.calls: list[tuple[str, Any]] = []
        self.mux = mux.Mux()
        self.client = Client()
        self.mux.on_open = self.opened
        self.reader = frames.Reader()
        self.lane: Any = None

    def opened(self) -> None:
        self.mux.open(PLUGIN_STREAM, self)
        self.mux.open(RUNTIME_STREAM, self.client)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.lane = transport

    def data_received(self, data: bytes) -> None:
        for stream, _, _, payload in self.reader.feed(data):
            asked = messages.decode("ttrpc.Request", payload)
            method = asked["method"]
            service = nri.DESCRIPTOR.services_by_name["Plugin"].methods_by_name[method]
            request = getattr(nri, service.input_type.name).FromString(asked["payload"])
            self.calls.append((method, request))
            answer: Any = getattr(nri, service.output_type.name)()
            if method == "Configure":
                answer.events = self.events
            if method == "Synchronize":
                answer.more = request.more
            response: dict[str, Any] = {}
            try:
                if method in self.handlers:
                    answer = self.handlers[method](request)
                if answer is None:
                    continue
                response["payload"] = answer if isinstance(answer, bytes) else answer.SerializeToString()
            except StatusError as error:
                response["status"] = {"code": error.code, "message": error.message}
            self.lane.write(frames.pack(stream, frames.RESPONSE, messages.encode("ttrpc.Response", response)))

    async def ask(self, method: str, request: Any) -> bytes:
        return await self.client.call_raw("nri.pkg.api.v1alpha1.Runtime", method, request.SerializeToString(), 5)

    async def register(self, index: str = "10", name: str = "one") -> None:
        await self.ask("RegisterPlugin", nri.RegisterPluginRequest(plugin_idx=index, plugin_name=name))

    def methods(self) -> list[str]:
        return [method for method, _ in self.calls]


class House:
    """Plugins, and those that connect to them."""

    def __init__(self, checks: dict[str, Any] | None = None) -> None:
        self.updates: list[Any] = []
        self.pods: list[Any] = []
        self.plugins = Plugins(RUNTIME, self.join, self.update, checks or {**CHECKS, "enable": False})

    async def join(self, plugin: Plugin) -> None:
        async with self.plugins.lock:
            self.updates += await plugin.synchronize(self.pods, [])
            self.plugins.add(plugin)

    async def update(self, plugin: Plugin, request: Any) -> Any:
        self.updates += request.update
        return nri.UpdateContainersResponse(failed=request.update)

    async def connect(self, events: int = ALL_EVENTS, **handlers: Handler) -> Fake:
        loop, fake = asyncio.get_running_loop(), Fake(events, handlers)
        ours, theirs = socket.socketpair()
        for peer in (ours, theirs):
            peer.setblocking(False)
        await loop.create_connection(self.plugins.accept, sock=ours)
        await loop.create_connection(lambda: fake.mux, sock=theirs)
        return fake

    async def joined(self, index: str = "10", name: str = "one", events: int = ALL_EVENTS, **handlers: Handler) -> Fake:
        before = len(self.plugins._active)
        fake = await self.connect(events, **handlers)
        await fake.register(index, name)
        await until(lambda: len(self.plugins._active) > before)
        return fake


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def house(checks: dict[str, Any] | None = None) -> AsyncIterator[House]:
    made = House(checks)
    try:
        yield made
    finally:
        await made.plugins.close()


def run(scenario: Callable[[House], Awaitable[None]], checks: dict[str, Any] | None = None) -> None:
    async def inside() -> None:
        async with house(checks) as made:
            await scenario(made)

    asyncio.run(inside())


POD = nri.RunPodSandboxRequest(pod=nri.PodSandbox(id="p", name="pod"))


def test_a_plugin_registers_and_is_configured_and_synchronized() -> None:
    async def scenario(made: House) -> None:
        assert not made.plugins and not made.plugins.connected
        made.pods = [nri.PodSandbox(id="p")]
        update = nri.ContainerUpdate(container_id="c")
        fake = await made.joined(Synchronize=lambda request: nri.SynchronizeResponse(update=[update]))
        (_, configure), (_, synchronize) = fake.calls
        assert (configure.runtime_name, configure.request_timeout, configure.registration_timeout) == (
            "containerd",
            500,
            500,
        )
        assert configure.NRI_version.startswith("v0.") and [one.id for one in synchronize.pods] == ["p"]
        assert made.updates == [update] and made.plugins and made.plugins.connected

    run(scenario)


@pytest.mark.parametrize(("index", "name"), [("1", "one"), ("1x", "one"), ("123", "one"), ("10", ""), ("10", "a/b")])
def test_bad_names_are_refused(index: str, name: str) -> None:
    async def scenario(made: House) -> None:
        fake = await made.connect()
        with pytest.raises(StatusError, match="invalid plugin"):
            await fake.register(index, name)
        await fake.client.closed.wait()
        assert not made.plugins.connected

    run(scenario)


def test_who_does_not_register_is_disconnected() -> None:
    async def scenario(made: House) -> None:
        fake = await made.connect()
        await fake.client.closed.wait()
        assert fake.calls == [] and not made.plugins.connected

    run(scenario)


@pytest.mark.parametrize(
    "handlers",
    [
        {"Configure": lambda request: nri.ConfigureResponse(events=1 << 20)},
        {"Configure": lambda request: None},
        {"Configure": lambda request: b"\xff"},
        {"Synchronize": lambda request: None},
    ],
    ids=["unknown events", "no answer", "no message", "no answer to what there is"],
)
def test_who_is_not_ready_is_disconnected(handlers: dict[str, Handler]) -> None:
    async def scenario(made: House) -> None:
        fake = await made.connect(**handlers)
        await fake.register()
        await fake.client.closed.wait()
        assert not made.plugins

    run(scenario)


def test_they_are_asked_in_the_order_of_their_indices() -> None:
    async def scenario(made: House) -> None:
        order: list[str] = []

        def of(name: str) -> Handler:
            return lambda request: order.append(name) or nri.RunPodSandboxResponse()  # type: ignore[func-returns-value]

        for index in ("50", "10", "30"):
            await made.joined(index, "x", RunPodSandbox=of(index))
        await made.joined("20", "deaf", events=1 << nri.STOP_POD_SANDBOX - 1, RunPodSandbox=of("20"))
        await made.plugins.ask(nri.RUN_POD_SANDBOX, POD)
        assert order == ["10", "30", "50"]

    run(scenario)


def test_the_first_is_asked_of_what_happens_while_it_is_told_what_there_is() -> None:
    async def scenario(house: House) -> None:
        asked: list[asyncio.Task[None]] = []

        def synchronize(request: Any) -> Any:
            assert house.plugins
            asked.append(asyncio.create_task(house.plugins.ask(nri.RUN_POD_SANDBOX, POD)))
            return nri.SynchronizeResponse()

        assert not house.plugins
        fake = await house.joined(Synchronize=synchronize)
        await asked[0]
        assert fake.methods() == ["Configure", "Synchronize", "RunPodSandbox"]

    run(scenario)


def test_a_refusal_ends_what_may_be_refused() -> None:
    async def scenario(made: House) -> None:
        def refuse(request: Any) -> Any:
            raise StatusError(status.UNKNOWN, "not here")

        await made.joined("10", "one", RunPodSandbox=refuse, StopPodSandbox=refuse)
        second = await made.joined("20", "two")
        with pytest.raises(Unknown, match="not here"):
            await made.plugins.ask(nri.RUN_POD_SANDBOX, POD)
        await made.plugins.tell(nri.STOP_POD_SANDBOX, nri.StopPodSandboxRequest())
        assert second.methods()[2:] == ["StopPodSandbox"]

    run(scenario)


def test_who_hangs_or_goes_is_left_out() -> None:
    async def scenario(made: House) -> None:
        hanging = await made.joined("10", "hangs", RunPodSandbox=lambda request: None)
        going = await made.joined("11", "goes", RunPodSandbox=lambda request: going.mux.close())
        wrong = await made.joined("12", "wrong", RunPodSandbox=lambda request: b"\xff")
        good = await made.joined("20", "good")
        await made.plugins.ask(nri.RUN_POD_SANDBOX, POD)
        for fake in (hanging, going, wrong):
            await fake.client.closed.wait()
        await until(lambda: len(made.plugins._active) == 1)
        await made.plugins.ask(nri.RUN_POD_SANDBOX, POD)
        assert good.methods()[2:] == ["RunPodSandbox", "RunPodSandbox"]

    run(scenario)


def unimplemented(request: Any) -> Any:
    raise StatusError(status.UNIMPLEMENTED, "what?")


def test_older_plugins_know_events_by_another_name() -> None:
    async def scenario(made: House) -> None:
        fake = await made.joined(RunPodSandbox=unimplemented, StartContainer=unimplemented)
        for _ in range(2):
            await made.plugins.ask(nri.RUN_POD_SANDBOX, POD)
        request = nri.StartContainerRequest(pod=POD.pod, container=nri.Container(id="c"))
        await made.plugins.ask(nri.START_CONTAINER, request)
        methods = ["RunPodSandbox", "StateChange", "StateChange", "StartContainer", "StateChange"]
        assert fake.methods()[2:] == methods
        event = fake.calls[-1][1]
        assert event.event == nri.START_CONTAINER and event.pod.name == "pod" and event.container.id == "c"

    run(scenario)


def test_who_wants_everything_need_not_know_everything() -> None:
    async def scenario(made: House) -> None:
        fake = await made.joined(events=0, UpdatePodSandbox=unimplemented)
        for _ in range(2):
            await made.plugins.ask(nri.UPDATE_POD_SANDBOX, nri.UpdatePodSandboxRequest())
        assert fake.methods()[2:] == ["UpdatePodSandbox"]

    run(scenario)


def test_a_creation_is_changed_and_checked() -> None:
    def args(*words: str) -> Handler:
        return lambda request: nri.CreateContainerResponse(
            adjust={"args": words}, evict=[{"container_id": "old", "reason": "room"}]
        )

    async def scenario(made: House) -> None:
        first = await made.joined("10", "one", CreateContainer=args("a"))
        found = await made.plugins.create(creating())
        assert list(found.adjust.args) == ["a"] and [one.container_id for one in found.evictions] == ["old"]
        (checked,) = (request for method, request in first.calls if method == "ValidateContainerAdjustment")
        assert list(checked.container.args) == ["own"] and list(checked.adjust.args) == ["a"]
        assert checked.owners.owners["c"].simple[nri.Args] == "10-one"
        assert [(one.index, one.name) for one in checked.plugins] == [("10", "one")]
        await made.joined("20", "two", CreateContainer=args("b"))
        with pytest.raises(Unknown, match='"20-two" and "10-one" both tried to set Args'):
            await made.plugins.create(creating())

    run(scenario)


def creating() -> Any:
    return nri.CreateContainerRequest(container=nri.Container(id="c", args=["own"]))


def test_validators_reject() -> None:
    async def scenario(made: House) -> None:
        def reject(request: Any) -> Any:
            return nri.ValidateContainerAdjustmentResponse(reject=True, reason="no such thing")

        await made.joined(ValidateContainerAdjustment=reject)
        with pytest.raises(Unknown, match='validator "10-one" rejected container adjustment, reason: no such thing'):
            await made.plugins.create(creating())

    run(scenario)


def test_the_built_in_validator_needs_no_plugin() -> None:
    async def scenario(made: House) -> None:
        assert made.plugins
        with pytest.raises(Unknown, match="not present"):
            await made.plugins.create(creating())

    run(scenario, {**CHECKS, "required-plugins": ["missing"]})


def test_updates_are_put_together() -> None:
    def shares(id: str, value: int) -> Handler:
        update = nri.ContainerUpdate(container_id=id, linux={"resources": {"cpu": {"shares": {"value": value}}}})
        return lambda request: nri.UpdateContainerResponse(update=[update])

    async def scenario(made: House) -> None:
        await made.joined("10", "one", UpdateContainer=shares("c", 5))
        second = await made.joined("20", "two", UpdateContainer=shares("d", 6), StopContainer=shares("d", 7))
        request = nri.UpdateContainerRequest(container=nri.Container(id="c"))
        updates, evictions = await made.plugins.change(request)
        assert updates.own().linux.resources.cpu.shares.value == 5 and not evictions
        assert [one.container_id for one in updates.others()] == ["d"]
        assert second.calls[-1][1].linux_resources.cpu.shares.value == 5
        stopped = await made.plugins.stop(nri.StopContainerRequest(container=nri.Container(id="c")))
        assert [one.linux.resources.cpu.shares.value for one in stopped.others()] == [7]

    run(scenario)


def test_a_plugin_asks_by_itself() -> None:
    async def scenario(made: House) -> None:
        fake = await made.joined()
        update = nri.ContainerUpdate(container_id="c")
        answer = await fake.ask("UpdateContainers", nri.UpdateContainersRequest(update=[update]))
        assert nri.UpdateContainersResponse.FromString(answer).failed[:] == [update] == made.updates
        for method, request, text in (("Other", nri.Empty(), "not served"), ("UpdateContainers", None, "malformed")):
            with pytest.raises(StatusError, match=text):
                payload = b"\xff" if request is None else b""
                await fake.client.call_raw("nri.pkg.api.v1alpha1.Runtime", method, payload, 5)

    run(scenario)


def test_what_is_much_comes_in_pieces() -> None:
    pods = [nri.PodSandbox(id=str(number), name="x" * 1000) for number in range(10)]
    containers = [nri.Container(id=str(number), name="x" * 1000) for number in range(10)]
    found = requests(pods, containers, 4000)
    assert [one.more for one in found] == [True] * (len(found) - 1) + [False] and len(found) > 4
    assert [pod.id for one in found for pod in one.pods] == [pod.id for pod in pods]
    assert [each.id for one in found for each in one.containers] == [each.id for each in containers]
    assert all(one.ByteSize() <= 4000 for one in found)
    assert requests([], []) == [nri.SynchronizeRequest()]


def test_who_cannot_take_pieces_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teu.containerd.nri.plugin.requests", lambda pods, containers: requests(pods, containers, 100))

    async def scenario(made: House) -> None:
        made.pods = [nri.PodSandbox(id=str(number), name="x" * 80) for number in range(3)]
        good = await made.joined()
        assert good.methods() == ["Configure", *["Synchronize"] * 3]
        bad = await made.connect(Synchronize=lambda request: nri.SynchronizeResponse())
        await bad.register()
        await bad.client.closed.wait()

    run(scenario)


def test_whatever_comes_ends_no_more_than_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    register = nri.RegisterPluginRequest(plugin_idx="10", plugin_name="one").SerializeToString()
    asked = messages.encode(
        "ttrpc.Request", {"service": "nri.pkg.api.v1alpha1.Runtime", "method": "RegisterPlugin", "payload": register}
    )
    whole = mux.pack(RUNTIME_STREAM, frames.pack(1, frames.REQUEST, asked))

    async def scenario(made: House) -> None:
        loop, dice = asyncio.get_running_loop(), random.Random(1)
        peers = []
        for _ in range(300):
            data = bytearray(whole * 2)
            for _ in range(dice.randrange(1, 6)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.sendall(bytes(data[: dice.randrange(1, len(data))] if dice.random() < 0.3 else data))
            await loop.create_connection(made.plugins.accept, sock=ours)
            peers.append(theirs)
        good = await made.joined("20", "good")
        await until(lambda: len(made.plugins._connected) == 1)  # nobody of them has answered to its configuration
        assert good.methods() == ["Configure", "Synchronize"] and len(made.plugins._active) == 1
        for peer in peers:
            peer.close()

    run(scenario)
    assert not [one for one in caplog.records if one.exc_info]


def test_methods_are_named_as_the_interface_has_them() -> None:
    known = {one.name for one in nri.DESCRIPTOR.services_by_name["Plugin"].methods}
    assert set(METHODS.values()) <= known and len(METHODS) == nri.LAST - 1
    assert known - set(METHODS.values()) == {"Configure", "Synchronize", "Shutdown", "StateChange"}


# Programs


def program(folder: Path, name: str, text: str, mode: int = 0o755) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(mode)


def test_programs_of_a_folder(tmp_path: Path) -> None:
    assert names.programs(str(tmp_path / "none")) == []
    (tmp_path / "40-folder").mkdir()
    for name, mode in (("20-b", 0o755), ("10-a-b", 0o755), ("30-data", 0o644)):
        program(tmp_path, name, "", mode)
    assert [(index, name) for index, name, _ in names.programs(str(tmp_path))] == [("10", "a-b"), ("20", "b")]
    for bad in ("plain", "1-x", "100-x", "10-", "10-a b"):
        with pytest.raises(ValueError, match="invalid plugin"):
            names.split(bad)


def test_configurations(tmp_path: Path) -> None:
    assert names.configuration(str(tmp_path), "10", "one") == ""
    (tmp_path / "one.conf").write_text("common")
    assert names.configuration(str(tmp_path), "10", "one") == "common"
    (tmp_path / "10-one.conf").write_text("own")
    assert names.configuration(str(tmp_path), "10", "one") == "own"


def test_programs_that_are_no_plugins_are_left_out(tmp_path: Path) -> None:
    async def scenario(made: House) -> None:
        program(tmp_path, "10-ends", "#!/bin/sh\nexit 1\n")
        program(tmp_path, "11-stays", f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
        program(tmp_path, "12-none", "no program")
        program(tmp_path, "none", "#!/bin/sh\n")
        (tmp_path / "13-wasm").write_bytes(b"\0asm\1\0\0\0 and more")
        (tmp_path / "13-wasm").chmod(0o755)
        await made.plugins.start(str(tmp_path), str(tmp_path))
        assert not made.plugins and not made.plugins.connected
        pid = int((tmp_path / "pid").read_text())
        await until(lambda: not os.path.exists(f"/proc/{pid}"))

    run(scenario)
