# SPDX-License-Identifier: Apache-2.0
"""The engine's volumes: names, options, removal, what an interrupted removal leaves."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from drivers import volumes as suite
from drivers.volumeplugin import VolumePlugin

from teu.engine.containers.state import MountPoint
from teu.engine.core import plugins
from teu.engine.core.database import Database
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.volumes.drivers.local import Local
from teu.engine.volumes.records import VolumeRecord
from teu.engine.volumes.store import ANONYMOUS_LABEL, Volumes


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    users: dict[str, list[Any]] = {}
    result: Any = SimpleNamespace(
        data_root=str(tmp_path),
        database=Database(str(tmp_path / "engine.db")),
        events=SimpleNamespace(publish=lambda *_: None),
        users=users,
        containers=SimpleNamespace(all=list, lost=False, using_volume=lambda name: users.get(name, [])),
    )
    result.volumes = made(result)
    result.volumes.start()
    return result


def made(engine: Any) -> Volumes:
    """The store, as a new engine has it."""
    return Volumes(f"{engine.data_root}/volumes", engine.containers, engine.database, engine.events)


def test_named_volume_is_made_once_and_kept(engine: Any) -> None:
    first = engine.volumes.ensure("data", labels={"a": "b"})
    Path(first.mountpoint, "file").write_text("x")
    second = engine.volumes.ensure("data")
    assert (first.created_now, second.created_now) == (True, False)
    assert not second.anonymous
    assert Path(second.mountpoint, "file").read_text() == "x"
    shown = engine.volumes.describe("data")
    assert shown["Labels"] == {"a": "b"}
    assert shown["Scope"] == "local"


def test_anonymous_volume_goes_with_its_container(engine: Any) -> None:
    one, named = engine.volumes.ensure(None), engine.volumes.ensure("named")
    assert one.anonymous
    assert len(one.name) == 64
    mounts = [MountPoint(type="volume", name=volume.name) for volume in (one, named)]
    engine.volumes.release_mounts("c1", mounts, False)
    assert engine.volumes.names() == sorted([one.name, "named"])
    engine.volumes.release_mounts("c1", mounts, True)
    assert engine.volumes.names() == ["named"]
    assert not os.path.exists(one.mountpoint)


def test_volume_in_use_stays(engine: Any) -> None:
    engine.volumes.ensure("data")
    engine.users["data"] = [SimpleNamespace(id="c1", running=True)]
    with pytest.raises(Conflict, match=r"remove data: volume is in use - \[c1\]"):
        engine.volumes.remove("data")
    engine.users.clear()
    engine.volumes.remove("data")
    with pytest.raises(NotFound, match="no such volume"):
        engine.volumes.remove("data")
    engine.volumes.remove("data", force=True)


@pytest.mark.parametrize("name", ["a", "../x", "a/b", "-x", "a" * 300, ".."])
def test_bad_names(engine: Any, name: str) -> None:
    with pytest.raises(BadRequest):
        engine.volumes.ensure(name)


def test_bad_options_and_drivers(engine: Any) -> None:
    with pytest.raises(BadRequest, match="invalid option"):
        engine.volumes.ensure("data", options={"nonsense": "1"})
    with pytest.raises(NotFound, match="plugin"):
        engine.volumes.ensure("data", driver="nope")
    assert engine.volumes.names() == []


def test_interrupted_removal_is_finished(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = engine.volumes.ensure("data")
    Path(volume.mountpoint, "file").write_text("x")
    monkeypatch.setattr(Volumes, "_finish_removal", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.volumes.remove("data")
    monkeypatch.undo()
    again = made(engine)
    assert again.names() == []
    again.start()
    assert not os.path.exists(f"{again.root}/data")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_mounted_volume_lives_while_used(engine: Any) -> None:
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nosuid"}
    volume = engine.volumes.ensure("ram", options=options)
    for container in ("c1", "c2"):
        assert engine.volumes.mount("ram", container) == volume.mountpoint
    assert os.path.ismount(volume.mountpoint)
    engine.volumes.unmount("ram", "c1")
    assert os.path.ismount(volume.mountpoint)
    engine.volumes.unmount("ram", "c2")
    assert not os.path.ismount(volume.mountpoint)


def test_volumes_of_a_container_that_never_came_to_be(engine: Any) -> None:
    engine.volumes.ensure(None, container_id="c1")
    engine.volumes.release("c1", True)
    assert engine.volumes.names() == []
    lost = engine.volumes.ensure(None, container_id="c2")
    kept = engine.volumes.ensure(None, container_id="c3")
    engine.volumes.release_mounts("c3", [MountPoint(type="volume", name=kept.name)], False)
    made(engine).start()
    assert engine.volumes.names() == [kept.name]
    assert not os.path.exists(lost.mountpoint)


def test_a_record_of_a_driver_that_is_not_here(engine: Any) -> None:
    """It can be inspected, and removed by force; its files are not taken for the local driver's."""
    engine.volumes.ensure("data")
    engine.volumes._write("data", VolumeRecord("2026-01-01T00:00:00Z", "nfs", {}, {}))
    shown = engine.volumes.describe("data")
    assert (shown["Driver"], shown["Mountpoint"]) == ("nfs", "")
    with pytest.raises(NotFound, match='plugin "nfs" not found'):
        engine.volumes.mount("data", "c1")
    with pytest.raises(Conflict, match='plugin "nfs" not found'):
        engine.volumes.remove("data")
    assert engine.volumes.names() == ["data"]
    engine.volumes.remove("data", force=True)
    assert engine.volumes.names() == []


@pytest.mark.parametrize("sample", suite.samples(mounted=False), ids=str)
@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_what_every_driver_does(
    check: Any, sample: suite.Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "SOCKETS", str(tmp_path / "sockets"))
    monkeypatch.setattr(plugins, "_known", {})
    plugin = VolumePlugin(tmp_path / "sockets/teu-test-plugin.sock", tmp_path / "plugin")
    try:
        check(sample.driver(str(tmp_path / "volumes")), sample.options)
        assert not any(plugin.mounts.values()), "each Mount has its Unmount"
    finally:
        plugin.close()


def test_where_a_volume_is_mounted_is_told(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str, dict[str, str]]] = []
    monkeypatch.setattr(
        engine.volumes._events, "publish", lambda kind, action, name, given: told.append((action, name, given))
    )
    engine.volumes.ensure("data")
    engine.volumes.mount("data", "c1", "/there", False, "rslave")
    where = {"driver": "local", "container": "c1", "destination": "/there"}
    assert told[-1] == ("mount", "data", {**where, "read/write": "false", "propagation": "rslave"})


def test_what_was_given_empty_is_told_so(engine: Any) -> None:
    """Portainer sends empty objects, and docker's command line leaves them out: docker tells the two apart."""
    engine.volumes.ensure("plain")
    engine.volumes.ensure("blank", "local", {}, {})
    engine.volumes.ensure("labelled", "local", None, {"a": "b"})
    told = [engine.volumes.describe(name) for name in ("plain", "blank", "labelled")]
    assert [(one["Options"], one["Labels"]) for one in told] == [(None, None), ({}, {}), (None, {"a": "b"})]
    engine.volumes.rename("blank", "other")
    assert engine.volumes.describe("other")["Labels"] == {}


def test_another_name(engine: Any) -> None:
    volume = engine.volumes.ensure(None)
    Path(volume.mountpoint, "file").write_text("x")
    engine.volumes.rename(volume.name, "named")
    assert engine.volumes.names() == ["named"]
    assert Path(engine.volumes.mountpoint("named"), "file").read_text() == "x"
    assert ANONYMOUS_LABEL not in engine.volumes.labels("named")
    engine.volumes.ensure("other")
    for old, new, says in (
        ("named", "other", "there is a volume other already"),
        ("named", "named", "that is its name"),
        ("nobody", "new", "no such volume"),
        ("named", "../x", "invalid characters"),
    ):
        with pytest.raises(EngineError, match=says):
            engine.volumes.rename(old, new)
    with engine.volumes.visited("named", "tar 1"), pytest.raises(Conflict, match=r"volume is in use - \[tar 1\]"):
        engine.volumes.rename("named", "new")
    with engine.volumes.visited("named", "tar 1"), pytest.raises(Conflict, match=r"volume is in use - \[tar 1\]"):
        engine.volumes.remove("named")


@pytest.mark.parametrize("moved", [False, True])
def test_a_change_of_the_name_that_was_interrupted(engine: Any, monkeypatch: pytest.MonkeyPatch, moved: bool) -> None:
    """Before the folder had it, or after; the next start goes on."""
    volume = engine.volumes.ensure("data")
    Path(volume.mountpoint, "file").write_text("x")
    real = Local.rename

    def killed(driver: Local, name: str, new: str) -> None:
        if moved:
            real(driver, name, new)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Local, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            engine.volumes.rename("data", "new")
    engine.volumes.start()
    assert engine.volumes.names() == ["new"]
    assert Path(engine.volumes.mountpoint("new"), "file").read_text() == "x"


def test_a_name_that_cannot_be_had(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.volumes.ensure("data")
    Path(engine.volumes.root, "new/_data").mkdir(parents=True)
    with pytest.raises(Conflict, match="rename data: Directory not empty"):
        engine.volumes.rename("data", "new")
    assert engine.volumes.names() == ["data"]
    engine.volumes.start()
    assert engine.volumes.names() == ["data"], "it is not tried again"
