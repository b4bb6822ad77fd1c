# SPDX-License-Identifier: Apache-2.0
"""Managed plugins without a containerd: what config.json says, privileges, settings, records, names, who uses one, the
specification; and how others find them."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine_parts
import pytest

from teu.engine.api.messages import Request, Response
from teu.engine.api.router import find, load
from teu.engine.backend import tasks
from teu.engine.core import plugins as protocol
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.core.managed import KNOWN
from teu.engine.plugins import bundles, collectors, config, record, runner, spec
from teu.engine.plugins.store import Plugins
from teu.engine.volumes.drivers.registry import Drivers
from teu.oci import tar

CONFIG: dict[str, Any] = {
    "Entrypoint": ["/bin/plugin"],
    "Interface": {"Types": ["docker.volumedriver/1.0", "docker.logdriver/1.0"], "Socket": "p.sock"},
    "Network": {"Type": "host"},
    "PropagatedMount": "/mnt/here",
    "Linux": {
        "Capabilities": ["CAP_SYS_ADMIN"],
        "Devices": [{"Name": "zero", "Path": "/dev/zero", "Settable": ["path"]}],
    },
    "Mounts": [{"Name": "m", "Source": "/srv", "Destination": "/m", "Type": "bind", "Settable": ["source"]}],
    "Env": [
        {"Name": "A", "Value": "1", "Settable": ["value"]},
        {"Name": "B", "Value": "2"},
        {"Name": "C", "Settable": ["value", "other"]},
        {"Name": "D", "Settable": ["value"]},
    ],
    "Args": {"Name": "args", "Settable": ["value"], "Value": ["x", "y"]},
}


def decoded(**changes: Any) -> config.Config:
    return config.decode(json.dumps({**CONFIG, **changes}).encode())


# -- what a plugin says of itself ----------------------------------------------------------------------------


def test_a_configuration_is_told_as_docker_does() -> None:
    told = config.encoded(decoded())
    assert told["Mounts"][0]["Options"] is None and told["Env"][1]["Settable"] is None
    assert told["User"] == {} and "rootfs" not in told and "ProtocolScheme" not in told["Interface"]
    assert config.encoded(config.decode(json.dumps(told).encode())) == told
    bare = config.encoded(config.decode(b"{}"))
    assert bare["Entrypoint"] is None and bare["Linux"] == {
        "AllowAllDevices": False,
        "Capabilities": None,
        "Devices": None,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        b"[]",
        b"{",
        b'{"Entrypoint": "x"}',
        b'{"Interface": {"Types": ["volumedriver"]}}',
        b'{"Interface": {"Socket": "../x"}}',
        b'{"Interface": {"Socket": ".."}}',
        b'{"PropagatedMount": "/a/../../etc"}',
        b'{"PropagatedMount": "a"}',
        b'{"WorkDir": "x"}',
        b'{"Env": [{"Name": "A\\u0000"}]}',
    ],
)
def test_what_is_no_configuration(wrong: bytes) -> None:
    with pytest.raises(BadRequest):
        config.decode(wrong)


def test_types() -> None:
    assert [tuple(one) for one in config.types(decoded())] == [
        ("docker", "volumedriver", "1.0"),
        ("docker", "logdriver", "1.0"),
    ]


def test_privileges() -> None:
    found = [(one.name, one.value) for one in config.privileges(decoded(PidHost=True, IpcHost=True))]
    assert found == [
        ("network", ["host"]),
        ("host ipc namespace", ["true"]),
        ("host pid namespace", ["true"]),
        ("mount", ["/srv"]),
        ("device", ["/dev/zero"]),
        ("capabilities", ["CAP_SYS_ADMIN"]),
    ]
    every = config.privileges(decoded(Linux={"AllowAllDevices": True}, Network={"Type": "bridge"}, Mounts=None))
    assert [one.name for one in every] == ["allow-all-devices"]
    assert config.privileges(config.decode(b"{}")) == []


def test_granted_is_exactly_what_is_wanted() -> None:
    wanted = decoded(Linux={"Capabilities": ["CAP_A", "CAP_B"]})
    whole = config.privileges(wanted)
    config.check_granted(wanted, whole)
    other_order = [config.Privilege(name=one.name, value=list(reversed(one.value or []))) for one in reversed(whole)]
    config.check_granted(wanted, other_order)
    more = config.Privilege(name="mount", value=["/"])
    for granted in (
        [],
        whole[1:],
        [*whole, more],
        [*whole[:-1], config.Privilege(name="capabilities", value=["CAP_A"])],
    ):
        with pytest.raises(EngineError, match="incorrect privileges"):
            config.check_granted(wanted, granted)


# -- settings ------------------------------------------------------------------------------------------------


def changed(*words: str) -> tuple[config.Config, config.Settings]:
    one = decoded()
    return config.change(one, config.defaults(one), words)


def test_settings() -> None:
    one = decoded()
    assert config.defaults(one).env == ["A=1", "B=2"]
    after, settings = changed("A=3", "D.value=4=5", "C.value=", "args=p q", "m=/opt", "zero.path=/dev/full")
    assert settings.env == ["A=3", "B=2", "D=4=5", "C="] and settings.args == ["p", "q"]
    assert after.mounts and after.mounts[0].source == settings.mounts[0].source == "/opt"
    assert after.linux.devices and after.linux.devices[0].path == settings.devices[0].path == "/dev/full"
    assert one == decoded(), "the ones before are as they were"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("B=1", '"B.*" is not settable'),
        ("A.other=1", '"A.other" is not settable'),
        ("C=1", "multiple fields are settable, one must be specified"),
        ("=1", "invalid format, must be <name>"),
        ("nobody=1", 'setting "nobody" not found in the plugin configuration'),
        ("m.path=/x", '"m.path" is not settable'),
    ],
)
def test_what_cannot_be_set(word: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        changed("A=7", word)


# -- an archive of a client's ----------------------------------------------------------------------------------


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("rootfs/link")
        link.type, link.linkname = tarfile.LNKTYPE, "rootfs/x"
        if "rootfs/x" in files:
            made.addfile(link)
    return buffer.getvalue()


def split(data: bytes) -> tuple[bytes | None, dict[str, Any]]:
    chunks, out = iter([data, b""]), io.BytesIO()
    found = bundles._split(tar.Source(lambda: next(chunks)), lambda piece: None if out.write(piece) else None)
    out.write(bytes(1024))
    out.seek(0)
    with tarfile.open(fileobj=out) as made:
        return found, {one.name: one.linkname or made.extractfile(one).read() for one in made}  # type: ignore[union-attr]


def test_an_archive_is_split() -> None:
    long = "rootfs/" + "d" * 90 + "/" + "f" * 120
    found, entries = split(archive(**{"config.json": b"{}", "rootfs/x": b"1" * 700, "other": b"2", long: b"3"}))
    assert found == b"{}"
    assert entries == {"x": b"1" * 700, "link": "x", long.removeprefix("rootfs/"): b"3"}


def test_an_archive_without_a_root() -> None:
    with pytest.raises(EngineError, match="no rootfs found"):
        split(archive(**{"config.json": b"{}"}))


def test_whose_snapshot_it_is() -> None:
    for name in ("abc", "abc-0", "extract-12ab abc-3"):
        assert bundles.base_of(name) == "abc"


# -- records, names, users ---------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Plugins]:
    made = engine_parts.engine(tmp_path)
    made.plugins._tell()
    yield made.plugins
    KNOWN.forget()
    engine_parts.close()


def add(
    store: Plugins, name: str = "house/shelf:latest", identity: str = "ab" * 32, enabled: bool = False, **changes: Any
) -> record.Plugin:
    one = decoded(**changes)
    made = record.PluginRecord(
        id=identity,
        name=name,
        reference=name,
        config=one,
        settings=config.defaults(one),
        base="b" * 32,
        enabled=enabled,
    )
    plugin = record.Plugin(made, store._data_root, store._exec_root)
    plugin.save()
    store._plugins[identity] = plugin
    return plugin


def test_a_record_is_read_as_it_was_written(store: Plugins) -> None:
    plugin = add(store, enabled=True)
    assert record.read(plugin.folder) == plugin.record
    assert plugin.shown()["Settings"]["Env"] == ["A=1", "B=2"]
    Path(plugin.folder, record.RECORD_FILE).write_text('{"Id": 1}')
    with pytest.raises(EngineError, match="damaged"):
        record.read(plugin.folder)


def test_records_come_back_and_are_a_reason_to_start_at_boot(tmp_path: Path) -> None:
    first = engine_parts.engine(tmp_path)
    add(first.plugins, enabled=True)
    engine_parts.close()
    second = engine_parts.engine(tmp_path)
    second.plugins.load()
    second.containers.load()
    marker = tmp_path / "data/starts-at-boot"
    assert second.plugins.get("house/shelf").enabled and marker.exists() and second.plugins.needs_engine()
    second.boot.keep("ab" * 32, False)
    assert not marker.exists()
    engine_parts.close()
    assert KNOWN.find("house/shelf") is None


def test_names(store: Plugins) -> None:
    plugin = add(store)
    for text in ("house/shelf", "house/shelf:latest", "docker.io/house/shelf", "ab" * 32, "abab"):
        assert store.get(text) is plugin
    for text in ("house/shelf:1", "shelf", "cd", "cd" * 32, "", "UPPER", "house/shelf@sha256:" + "0" * 64):
        with pytest.raises(NotFound, match=f'plugin "{text}" not found'):
            store.get(text)
    add(store, "other:latest", "ab" * 31 + "cd")
    with pytest.raises(BadRequest, match='multiple plugins found for "ab"'):
        store.get("ab")


@pytest.mark.parametrize(
    ("remote", "name", "called"),
    [
        ("house/shelf", "", "house/shelf:latest"),
        ("r.example:5/shelf:2", "", "r.example:5/shelf:2"),
        ("house/shelf:1@sha256:" + "0" * 64, "", "house/shelf:1"),
        ("house/shelf@sha256:" + "0" * 64, "", "house/shelf:latest"),
        ("house/shelf:2", "mine", "mine:latest"),
    ],
)
def test_what_a_pulled_one_is_called(store: Plugins, remote: str, name: str, called: str) -> None:
    assert store.name_of(remote, name) == called


def test_the_list_is_filtered_as_docker_does(store: Plugins) -> None:
    add(store, enabled=True)
    add(store, "other:latest", "cd" * 32, Interface={"Types": ["docker.authz/1.0"], "Socket": "x"})

    def names(**filters: list[str]) -> list[str]:
        return [one["Name"] for one in store.listing(filters)]

    assert names() == ["house/shelf:latest", "other:latest"]
    assert names(enabled=["true"]) == ["house/shelf:latest"] and names(enabled=["false"]) == ["other:latest"]
    assert names(capability=["authz"]) == ["other:latest"] and names(capability=["volumedriver"]) == []
    with pytest.raises(BadRequest, match="invalid filter 'colour'"):
        names(colour=["x"])


def test_what_is_in_use_stays(store: Plugins) -> None:
    plugin = add(store, enabled=True)
    with store._volumes._database.transaction() as cursor:
        cursor.execute("INSERT INTO volumes VALUES (?, ?)", ("books", json.dumps({"Driver": "house/shelf:latest"})))
    assert store.users(plugin) == ["volume books"]
    for verb in (store.disable, store.remove):
        with pytest.raises(Conflict, match="plugin house/shelf:latest is in use"):
            verb("house/shelf", False)
    with pytest.raises(EngineError, match="cannot set on an active plugin"):
        store.set("house/shelf", ["A=1"])
    with pytest.raises(Conflict, match="plugin already enabled: plugin house/shelf:latest is enabled"):
        store.enable("house/shelf", 0)


def test_settings_are_kept(store: Plugins) -> None:
    plugin = add(store)
    store.set("house/shelf", ["A=9"])
    assert record.read(plugin.folder).settings.env == ["A=9", "B=2"]
    with pytest.raises(EngineError):
        store.set("house/shelf", ["A=10", "nobody=1"])
    assert plugin.record.settings.env == ["A=9", "B=2"]


COLLECTOR = {"Types": ["docker.metricscollector/1.0"], "Socket": "x"}


def test_the_socket_of_a_collector(store: Plugins) -> None:
    """It is at the same place for each engine; a path of any length will do."""
    plugin = add(store, Interface=COLLECTOR)
    ended: list[int] = []

    def serve(listener: socket.socket) -> Callable[[], None]:
        return lambda: ended.append(listener.fileno()) or listener.close()

    made = collectors.Collectors(serve)
    for _ in range(2):
        made.open(plugin)
        with socket.socket(socket.AF_UNIX) as caller:
            protocol.connect(caller, f"{plugin.docker}/metrics.sock")
    assert len(ended) == 1
    made.close(plugin)
    made.close(plugin)
    assert len(ended) == 2 and runner._refusal(f"{plugin.docker}/metrics.sock") is not None
    assert Path(plugin.docker, "plugins").is_dir()
    found = [one["destination"] for one in spec.build(plugin)["mounts"] if one["destination"].startswith("/run/docker")]
    assert found == ["/run/docker", "/run/docker/plugins"]
    other = add(store, "other:latest", "cd" * 32)
    made.open(other)
    assert not Path(other.docker).exists()


def test_a_collector_that_does_not_listen_is_no_harm(store: Plugins, caplog: pytest.LogCaptureFixture) -> None:
    plugin = add(store, enabled=True, Interface=COLLECTOR)
    made = collectors.Collectors(lambda listener: listener.close)
    made.begin(plugin)
    made.end([plugin.name])
    assert [one.args[1] for one in caplog.records if one.args] == ["StartMetrics", "StopMetrics"]  # type: ignore[index]


# -- the specification ----------------------------------------------------------------------------------------


def test_the_specification(store: Plugins) -> None:
    plugin = add(store)
    made = spec.build(plugin)
    by_place = {one["destination"]: one for one in made["mounts"]}
    assert by_place["/mnt/here"]["source"] == plugin.mounts and "rshared" in by_place["/mnt/here"]["options"]
    assert by_place["/run/docker/plugins"]["source"] == plugin.run_folder
    assert by_place["/run/docker/logging"]["source"] == plugin.logging
    assert by_place["/m"]["source"] == "/srv" and by_place["/etc/resolv.conf"]["options"] == ["rbind", "ro"]
    assert made["linux"]["cgroupsPath"] == f"teu.slice:teu-plugin:{plugin.id}"
    assert {one["type"] for one in made["linux"]["namespaces"]} == {"mount", "uts", "ipc", "pid"}
    assert (
        made["linux"]["devices"][0]["path"] == "/dev/zero"
        and "CAP_SYS_ADMIN" in made["process"]["capabilities"]["effective"]
    )
    assert made["process"]["args"] == ["/bin/plugin", "x", "y"] and "A=1" in made["process"]["env"]
    assert "seccomp" not in made["linux"]


def test_what_is_not_there_is_said(store: Plugins) -> None:
    plugin = add(store, Mounts=[{"Name": "m", "Destination": "/m", "Type": "bind"}])
    with pytest.raises(EngineError, match="mount source is not specified"):
        spec.build(plugin)
    plugin = add(store, Linux={"Devices": [{"Name": "d", "Path": "/dev/nothing-here"}]})
    with pytest.raises(BadRequest, match="/dev/nothing-here.*no such file"):
        spec.build(plugin)
    plugin = add(store, Linux={"Devices": [{"Name": "d", "Path": "/etc/passwd"}]})
    with pytest.raises(BadRequest, match="not a device node"):
        spec.build(plugin)


def test_one_of_which_nobody_knows_how_it_is_goes_on(store: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shim does not answer in time: neither at the engine's start nor at a look is it started anew."""
    plugin = add(store, enabled=True)
    unknown = tasks.Task(plugin.id, 0, "UNKNOWN", tasks.Exit(0, 0))
    monkeypatch.setattr(tasks, "list_tasks", lambda client: {plugin.id: unknown})
    monkeypatch.setattr(tasks, "get", lambda client, identity: unknown)
    monkeypatch.setattr(store.client, "ensure_namespace", lambda: None)
    monkeypatch.setattr(store, "sweep", lambda: None)
    done: list[str] = []
    for name in ("adopt", "start", "clear"):
        monkeypatch.setattr(store._runner, name, lambda *_, name=name: done.append(name))
    store.recover()
    assert store.started.wait(10)
    store._revive(plugin)
    assert done == ["adopt"]


# -- how others find them --------------------------------------------------------------------------------------


def test_paths_on_the_host(store: Plugins) -> None:
    plugin = add(store, enabled=True)
    managed = KNOWN.find("house/shelf")
    assert managed is not None
    assert managed.on_host("/mnt/here/books") == f"{plugin.mounts}/books" and managed.on_host("") == ""
    assert managed.on_host("/mnt/here") == plugin.mounts
    assert managed.on_host("/mnt/here/../../../etc") == managed.on_host("../etc") == f"{plugin.rootfs}/etc"
    assert managed.on_host("/mnt/hereafter") == f"{plugin.rootfs}/mnt/hereafter"


def test_links_of_a_plugin_do_not_lead_to_the_host(store: Plugins) -> None:
    plugin = add(store, enabled=True)
    managed = KNOWN.find("house/shelf")
    assert managed is not None
    for tree in (plugin.mounts, plugin.rootfs):
        Path(tree).mkdir(parents=True, exist_ok=True)
        (Path(tree) / "out").symlink_to("/etc")
        (Path(tree) / "up").symlink_to("../../../../../../../../etc")
    (Path(plugin.rootfs) / "across").symlink_to("/mnt/here/up/books")
    for link in ("out", "up"):
        assert managed.on_host(f"/mnt/here/{link}/books") == f"{plugin.mounts}/etc/books"
    assert managed.on_host("/out/books") == managed.on_host("/up/books") == f"{plugin.rootfs}/etc/books"
    assert managed.on_host("/across") == f"{plugin.mounts}/etc/books"


def test_links_that_are_made_later_do_not_lead_to_the_host(store: Plugins, tmp_path: Path) -> None:
    plugin = add(store, enabled=True)
    managed = KNOWN.find("house/shelf")
    assert managed is not None
    books = Path(plugin.mounts, "books")
    books.mkdir(parents=True)
    told = managed.on_host("/mnt/here/books")
    assert KNOWN.tree_of(told) == (plugin.mounts, "/books") and KNOWN.tree_of(f"{plugin.mounts}x")[0] == ""
    books.rmdir()
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    books.symlink_to(outside)
    assert Path(told, "inner").exists(), "as a path, it leads out"
    with pytest.raises(FileNotFoundError):
        KNOWN.open_folder(told)
    own = Path(plugin.mounts, *outside.parts[1:])
    own.mkdir(parents=True)
    folder = KNOWN.open_folder(told)
    try:
        assert os.path.sameopenfile(folder, other := os.open(own, os.O_PATH))
        os.close(other)
    finally:
        os.close(folder)
    os.close(KNOWN.open_folder(str(outside)))
    with pytest.raises(OSError):
        KNOWN.open_folder(told, os.O_NOFOLLOW)


def test_one_of_ours_is_found_first(store: Plugins) -> None:
    plugin = add(store, enabled=True)
    assert protocol.find("house/shelf") == protocol.Place("unix", plugin.socket)
    found = protocol.get("house/shelf", protocol.VOLUMES)
    assert found.name == "house/shelf:latest" and set(found.implements) == {"VolumeDriver", "LogDriver"}
    with pytest.raises(EngineError, match='plugin does not provide "networkdriver" capability'):
        protocol.get("house/shelf", protocol.NETWORKS)
    assert (
        Drivers("/nowhere")["house/shelf"] is Drivers.plugin(drivers := Drivers("/nowhere"), "house/shelf") or drivers
    )
    assert drivers["house/shelf"] is drivers["house/shelf:latest"]
    assert [one.name for one in drivers.plugins()] == ["house/shelf:latest"]
    plugin.record.enabled = False
    with pytest.raises(Conflict, match="plugin house/shelf found but disabled"):
        protocol.get("house/shelf", protocol.VOLUMES)
    assert KNOWN.enabled("volumedriver") == [] and KNOWN.named("nobody") == "nobody"


def test_a_socket_s_path_may_be_long(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    short = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(str(short))
        listener.listen()
        short.rename(folder / "s")
        protocol.connect(caller, str(folder / "s"))
    assert "no such file" in (runner._refusal(str(folder / "nobody")) or "")


# -- routes ----------------------------------------------------------------------------------------------------


def ask(store: Plugins, method: str, target: str, body: bytes = b"") -> Response:
    from types import SimpleNamespace

    load()
    path, _, query = target.partition("?")
    handler, _, arguments = find(method, path)
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    house: Any = SimpleNamespace(plugins=store)
    return handler(house, Request(method, path, query, headers, io.BytesIO(body)), **arguments)  # type: ignore[arg-type]


def test_routes(store: Plugins) -> None:
    add(store)
    assert json.loads(ask(store, "GET", "/plugins/house/shelf:latest/json").body)["Name"] == "house/shelf:latest"
    assert len(json.loads(ask(store, "GET", "/plugins").body)) == 1
    assert ask(store, "POST", "/plugins/house/shelf/set", b'["A=5"]').status == 204
    assert ask(store, "POST", "/plugins/house/shelf/set", b"null").status == 204
    for method, target, body, error in (
        ("POST", "/plugins/house/shelf/enable", b"", BadRequest),
        ("POST", "/plugins/house/shelf/set", b'{"A": 5}', BadRequest),
        ("POST", "/plugins/house/shelf/disable", b"", Conflict),
        ("POST", "/plugins/pull?remote=UPPER", b"[]", BadRequest),
        ("POST", "/plugins/pull?remote=x&name=house/shelf", b"[]", BadRequest),
        ("POST", "/plugins/nobody/upgrade?remote=x", b"[]", NotFound),
        ("POST", "/plugins/nobody/push", b"", NotFound),
        ("DELETE", "/plugins/nobody?force=1", b"", NotFound),
        ("POST", "/plugins/create?name=house/shelf", b"", Conflict),
    ):
        with pytest.raises(EngineError) as raised:
            ask(store, method, target, body)
        assert type(raised.value) is error, target
