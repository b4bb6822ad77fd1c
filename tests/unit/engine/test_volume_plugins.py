# SPDX-License-Identifier: Apache-2.0
"""Volumes of docker's plugins: what the plugin is asked, and what becomes of a volume when one of the two dies."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from drivers.volumeplugin import VolumePlugin

from teu.engine.api.messages import Query
from teu.engine.api.routes.volumes import list_volumes, prune_volumes
from teu.engine.core import plugins
from teu.engine.core.database import Database
from teu.engine.core.errors import Conflict, EngineError, NotFound
from teu.engine.core.plugins import PluginError
from teu.engine.volumes.drivers import plugin as driver
from teu.engine.volumes.drivers import registry
from teu.engine.volumes.store import Volumes


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VolumePlugin]:
    monkeypatch.setattr(plugins, "SOCKETS", str(tmp_path / "sockets"))
    monkeypatch.setattr(plugins, "_known", {})
    monkeypatch.setattr(registry, "FOLDERS", (str(tmp_path / "sockets"),))
    found = VolumePlugin(tmp_path / "sockets/nas.sock", tmp_path / "nas")
    yield found
    found.close()


def store(tmp_path: Path) -> Volumes:
    """As a new engine has it."""
    containers: Any = SimpleNamespace(all=list, lost=False, using_volume=lambda name: [])
    events: Any = SimpleNamespace(publish=lambda *_: None)
    made = Volumes(str(tmp_path / "volumes"), containers, Database(str(tmp_path / "engine.db")), events)
    made.start()
    return made


def test_a_life(tmp_path: Path, plugin: VolumePlugin) -> None:
    volumes = store(tmp_path)
    volumes.ensure("data", "nas", {"colour": "blue"})
    assert plugin.of("Create") == [{"Name": "data", "Opts": {"colour": "blue"}}]
    shown = volumes.describe("data")
    assert (shown["Driver"], shown["Scope"], shown["Options"]) == ("nas", "global", {"colour": "blue"})
    assert shown["Mountpoint"] == str(tmp_path / "nas/mounted/data")
    path = volumes.mount("data", "c1")
    assert path == volumes.mount("data", "c2") == shown["Mountpoint"]
    Path(path, "file").write_text("x")
    volumes.unmount("data", "c1")
    assert os.path.isdir(path), "another has it"
    volumes.unmount("data", "c2")
    assert not os.path.exists(path)
    (mounted,), (unmounted,) = plugin.of("Mount"), plugin.of("Unmount")
    assert mounted == unmounted and mounted["ID"]
    assert volumes.drivers() == ["local", "nas"]
    volumes.remove("data")
    assert plugin.options == {} and volumes.names() == []
    assert os.listdir(volumes.root) == [], "nothing is left"
    with pytest.raises(NotFound):
        volumes.describe("data")


def test_what_the_plugin_has_already_is_taken(tmp_path: Path, plugin: VolumePlugin) -> None:
    plugin.answer("VolumeDriver.Create", {"Name": "old"})
    volumes = store(tmp_path)
    volumes.ensure("old", "nas")
    assert len(plugin.of("Create")) == 1
    assert volumes.describe("old")["Driver"] == "nas"


def test_what_a_plugin_alone_knows(tmp_path: Path, plugin: VolumePlugin) -> None:
    """Made by another engine, or by the plugin's own tools: it is shown, used by its name alone, and removed."""
    for name in ("theirs", "more"):
        plugin.answer("VolumeDriver.Create", {"Name": name})
    volumes = store(tmp_path)
    engine: Any = SimpleNamespace(volumes=volumes)

    def listed(**filters: list[str]) -> list[str]:
        request: Any = SimpleNamespace(query=Query(f"filters={json.dumps(filters)}" if filters else ""))
        return [row["Name"] for row in json.loads(bytes(list_volumes(engine, request).body))["Volumes"]]

    assert listed() == listed(dangling=["true"]) == listed(driver=["nas"]) == ["theirs", "more"]
    assert listed(name=["the"]) == listed(name=["^t.*s$"]) == ["theirs"] and listed(name=["^he"]) == []
    assert listed(label=["x"]) == listed(driver=["local"]) == listed(dangling=["false"]) == []
    shown = volumes.inspect("theirs")
    assert (shown["Driver"], shown["Scope"], shown["Status"]) == ("nas", "global", {"colour": "blue"})
    assert shown["Mountpoint"] == str(tmp_path / "nas/mounted/theirs")
    assert volumes.names() == [], "nobody has named it here"
    assert volumes.ensure("theirs").driver == "nas"
    assert volumes.names() == ["theirs"] and listed() == ["theirs", "more"]
    assert volumes.inspect("theirs")["Status"] == {"colour": "blue"}
    volumes.remove("more")
    assert list(plugin.options) == ["theirs"]
    with pytest.raises(NotFound):
        volumes.inspect("more")


def test_a_name_that_is_none_is_no_plugins(
    tmp_path: Path, plugin: VolumePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some plugins say that they have whatever they are asked for; what is known of a volume is in a file."""
    volumes = store(tmp_path)
    volumes.ensure("data", "nas")
    precious = tmp_path / "precious"
    precious.write_text("")
    monkeypatch.setattr(plugin, "answer", lambda *_: {"Volume": {"Name": "x"}})
    for name in ("../../precious", "..", ".data.new", "a/b"):
        with pytest.raises(NotFound):
            volumes.remove(name)
        with pytest.raises(NotFound):
            volumes.inspect(name)
    assert precious.exists()


def test_one_that_got_a_user_meanwhile_stays(
    tmp_path: Path, plugin: VolumePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plugins are asked for seconds whether the name is theirs; a container may be made with it then."""
    plugin.answer("VolumeDriver.Create", {"Name": "theirs"})
    volumes = store(tmp_path)
    looked = volumes._elsewhere

    def meanwhile(name: str) -> Any:
        found = looked(name)
        if "theirs" not in volumes.names():
            volumes.ensure("theirs", container_id="c1")
        return found

    with volumes.promised("c1"):
        monkeypatch.setattr(volumes, "_elsewhere", meanwhile)
        monkeypatch.setattr(volumes, "ensure", lambda *a, **b: Volumes.ensure(volumes, "theirs", "nas", **b))
        with pytest.raises(Conflict, match="in use"):
            volumes.remove("theirs")
    assert plugin.options.keys() == {"theirs"}


def test_who_looks_does_not_wait_long(tmp_path: Path, plugin: VolumePlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not again and again for one that hangs."""
    volumes, over = store(tmp_path), threading.Event()
    volumes.ensure("data", "nas")
    asked: list[str] = []

    def hanging(method: str, _body: Any) -> dict[str, Any]:
        asked.append(method)
        over.wait(20)
        return {}

    monkeypatch.setattr(driver, "LOOK_SECONDS", 0.2)
    plugin.answer = hanging  # type: ignore[method-assign]
    rows, (warning,) = volumes.elsewhere()
    assert rows == [] and "nas: " in warning and "no answer within" in warning
    assert volumes.ensure("own").driver == "local"
    assert "Status" not in volumes.inspect("data")
    assert asked == ["VolumeDriver.List"]
    over.set()


def test_one_of_two_kinds_is_not_waited_for_longer(
    tmp_path: Path, plugin: VolumePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it can as a driver of networks is asked of it at first, too."""
    over, began = threading.Event(), time.monotonic()

    def hanging(method: str, _body: Any) -> dict[str, Any]:
        if method == "Plugin.Activate":
            return {"Implements": ["NetworkDriver", "VolumeDriver"]}
        over.wait(20)
        return {}

    monkeypatch.setattr(driver, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(plugins, "ANSWER_SECONDS", 10.0)
    monkeypatch.setattr(plugin, "answer", hanging)
    rows, (warning,) = store(tmp_path).elsewhere()
    assert rows == [] and "no answer within" in warning and time.monotonic() - began < 5
    over.set()


def test_plugins_are_looked_for_where_they_are() -> None:
    assert (plugins.SOCKETS, *plugins.SPECIFICATIONS) == registry.FOLDERS


def test_a_name_is_one_drivers(tmp_path: Path, plugin: VolumePlugin) -> None:
    volumes = store(tmp_path)
    volumes.ensure("data", "nas")
    volumes.ensure("own")
    assert volumes.ensure("data").driver == "nas", "who names no driver gets the one that has it"
    with pytest.raises(Conflict, match="driver nas has it"):
        volumes.ensure("data", "local")  # a folder of this host was asked for
    with pytest.raises(Conflict, match="create own: volume name must be unique: driver local has it"):
        volumes.ensure("own", "nas")
    assert "own" not in plugin.options


def test_an_engine_that_died_does_not_mount_again(tmp_path: Path, plugin: VolumePlugin) -> None:
    volumes = store(tmp_path)
    volumes.ensure("data", "nas")
    volumes.mount("data", "c1")
    after = store(tmp_path)
    after.mount("data", "c1")
    assert len(plugin.of("Mount")) == 1
    after.unmount("data", "c1")
    assert plugin.mounts["data"] == []
    after.mount("data", "c2")
    last = store(tmp_path)
    last.settle()
    assert plugin.mounts["data"] == [], "nobody has it any more"


def test_a_reboot_ends_what_was_mounted(tmp_path: Path, plugin: VolumePlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = store(tmp_path)
    volumes.ensure("data", "nas")
    volumes.mount("data", "c1")
    monkeypatch.setattr(driver, "_boot", lambda: "another")
    volumes.unmount("data", "c1")
    assert not plugin.of("Unmount"), "the plugin has forgotten it as well"
    volumes.mount("data", "c1")
    assert len(plugin.of("Mount")) == 2


def test_what_a_plugin_refuses(tmp_path: Path, plugin: VolumePlugin) -> None:
    volumes = store(tmp_path)
    plugin.refuses = {"Create"}
    with pytest.raises(PluginError, match="Create is refused"):
        volumes.ensure("data", "nas")
    assert volumes.names() == []
    plugin.refuses = {"Mount"}
    volumes.ensure("data", "nas")
    with pytest.raises(PluginError, match="Mount is refused"):
        volumes.mount("data", "c1")
    plugin.refuses = {"Remove"}
    with pytest.raises(Conflict, match="remove data: .*Remove is refused"):
        volumes.remove("data")
    assert volumes.names() == ["data"], "it is still a volume"
    plugin.refuses = {"Capabilities"}
    volumes.ensure("more", "nas")
    assert volumes.describe("more")["Scope"] == "local", "the method came later than the protocol"


def test_a_mount_in_doubt_is_asked_for_again(
    tmp_path: Path, plugin: VolumePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin went while it unmounted, and has come back without what was mounted: at the place of the volume is a
    folder of the host's."""
    monkeypatch.setattr(plugins, "WAIT_SECONDS", 0.0)
    volumes = store(tmp_path)
    volumes.ensure("data", "nas")
    volumes.mount("data", "c1")
    plugin.close()
    with pytest.raises(OSError, match=r"VolumeDriver\.Unmount"):
        volumes.unmount("data", "c1")
    kept = json.loads((tmp_path / "volumes/.plugins/data").read_text())
    assert kept["Doubt"] == "Unmount"
    again = VolumePlugin(tmp_path / "sockets/nas.sock", tmp_path / "nas")
    again.answer("VolumeDriver.Create", {"Name": "other"})
    again.options["data"] = {}
    volumes.mount("data", "c2")
    assert [body["ID"] for body in again.of("Mount")] == [kept["ID"]]
    again.close()


def test_an_engine_that_is_killed_while_it_asks(tmp_path: Path, plugin: VolumePlugin) -> None:
    """Nobody knows whether it was mounted: the next one asks with the same id, and lets go of it."""
    volumes = store(tmp_path)
    volumes.ensure("data", "nas")
    answer, seen = plugin.answer, []

    def killed(method: str, body: Any) -> dict[str, Any]:
        if method.endswith(".Mount"):
            seen.append(json.loads((tmp_path / "volumes/.plugins/data").read_text()))
        return answer(method, body)

    plugin.answer = killed  # type: ignore[method-assign]
    volumes.mount("data", "c1")
    (asked,), (mounted,) = seen, plugin.of("Mount")
    assert (asked["ID"], asked["Doubt"]) == (mounted["ID"], "Mount"), "it is on disk before the plugin does it"
    (tmp_path / "volumes/.plugins/data").write_text(json.dumps(asked))
    store(tmp_path).settle()
    assert plugin.mounts["data"] == []


def test_a_plugin_that_hangs_loses_nothing(
    tmp_path: Path, plugin: VolumePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it has such a volume already it did not say: then nothing is made, and nothing is removed."""
    plugin.answer("VolumeDriver.Create", {"Name": "old"})
    answer, over = plugin.answer, threading.Event()

    def slow(method: str, body: Any) -> dict[str, Any]:
        if method.endswith(".Get"):
            over.wait(20)
        return answer(method, body)

    monkeypatch.setattr(plugins, "ANSWER_SECONDS", 0.2)
    plugin.answer = slow  # type: ignore[method-assign]
    volumes = store(tmp_path)
    with pytest.raises(PluginError, match="no answer within 0 s"):
        volumes.ensure("old", "nas")
    over.set()
    assert len(plugin.of("Create")) == 1 and not plugin.of("Remove")


def test_a_removal_that_was_interrupted(tmp_path: Path, plugin: VolumePlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of the engine asks no plugin, which may hang; what follows the start does."""
    volumes = store(tmp_path)
    volumes.ensure("data", "nas")
    volumes.ensure("kept", "nas")
    with monkeypatch.context() as broken:
        broken.setattr(driver.Remote, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            volumes.remove("data")
    after = store(tmp_path)
    assert after.names() == ["kept"] and not plugin.of("Remove")
    after.settle()
    assert plugin.of("Remove") == [{"Name": "data"}] and after.names() == ["kept"]


def test_a_plugin_that_is_away(tmp_path: Path, plugin: VolumePlugin) -> None:
    volumes = store(tmp_path)
    with pytest.raises(NotFound, match='create x1: error looking up volume plugin nobody: plugin "nobody" not found'):
        volumes.ensure("x1", "nobody")
    volumes.ensure("data", "nas")
    plugin.close()
    (tmp_path / "sockets/nas.sock").unlink()
    after = store(tmp_path)
    assert after.describe("data")["Mountpoint"], "it is listed all the same"
    with pytest.raises(EngineError, match='plugin "nas" not found'):
        after.mount("data", "c1")
    with pytest.raises(Conflict, match='plugin "nas" not found'):
        after.remove("data")


def test_a_plugin_of_another_kind(tmp_path: Path, plugin: VolumePlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = plugin.answer
    monkeypatch.setattr(
        plugin,
        "answer",
        lambda method, body: {"Implements": ["LogDriver"]} if "Activate" in method else answer(method, body),
    )
    with pytest.raises(EngineError, match="does not implement the requested driver"):
        store(tmp_path).ensure("data", "nas")


def test_a_place_that_is_none(tmp_path: Path, plugin: VolumePlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = store(tmp_path)
    volumes.ensure("data", "nas")
    answer = plugin.answer

    def nowhere(method: str, body: Any) -> dict[str, Any]:
        said = answer(method, body)
        return {"Mountpoint": "../etc"} if method.endswith(".Mount") else said

    monkeypatch.setattr(plugin, "answer", nowhere)
    with pytest.raises(PluginError, match="says no place of volume data"):
        volumes.mount("data", "c1")
    assert plugin.mounts["data"] == [], "what was mounted is let go of"


def test_a_prune_takes_nothing_of_a_plugin(tmp_path: Path, plugin: VolumePlugin) -> None:
    volumes = store(tmp_path)
    volumes.ensure("data", "nas")
    volumes.ensure("own")
    engine: Any = SimpleNamespace(volumes=volumes, events=SimpleNamespace(publish=lambda *_: None))
    request: Any = SimpleNamespace(version=(1, 45), query=Query('filters={"all":["true"]}'))
    prune_volumes(engine, request)
    assert volumes.names() == ["data"]
