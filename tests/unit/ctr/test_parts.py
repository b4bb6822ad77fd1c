# SPDX-License-Identifier: Apache-2.0
"""Parts of teu-ctr that need no daemon: classes of block I/O, CNI, remapped ids, errors, events, the copying loop."""

from __future__ import annotations

import json
import os
import select
import stat
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("grpc")

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from memorydaemon import MemoryDaemon

from teu.api.events import container_pb2, task_pb2
from teu.ctr import blockio, client, cni, events, fifos, install, remap
from teu.ctr.errors import AlreadyExists, CommandError, Locked, NotFound

# Block I/O -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"), [("5", 5), ("64M", 64_000_000), ("1Ki", 1024), ("1.5k", 1500), ("1500m", 2), ("", None)]
)
def test_quantities(text: str, number: int | None) -> None:
    assert blockio.quantity("ThrottleReadBps", text, 0, None) == number


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("Weight", "5", 'value of "Weight" (5) smaller than minimum (10)'),
        ("Weight", "2k", 'value of "Weight" (2000) bigger than maximum (1000)'),
        ("Weight", "5x", 'syntax error in "Weight" ("5x")'),
        ("Weight", "M", 'syntax error in "Weight" ("M")'),
    ],
)
def test_quantities_refused(name: str, text: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        blockio.quantity(name, text, 10, 1000)
    assert str(caught.value) == told


def test_a_class_of_block_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml")
    monkeypatch.setattr(blockio, "devices", lambda patterns: [(8, number) for number in range(len(patterns))])
    file = tmp_path / "classes.yaml"
    file.write_text(
        "Classes:\n  slow:\n    - Weight: 20\n    - Devices: [a, b]\n      Weight: 100\n      ThrottleReadBps: 1M\n"
        "    - Devices: [a]\n      ThrottleReadBps: 2M\n  bad:\n    - ThrottleWriteBps: 5\n      Weight: 5\n"
    )
    with pytest.raises(CommandError, match="2 errors occurred"):
        blockio.of_class(str(file), "slow")
    file.write_text(file.read_text().partition("  bad:")[0])
    assert blockio.of_class(str(file), "slow") == {
        "weight": 20,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 100}, {"major": 8, "minor": 1, "weight": 100}],
        "throttleReadBpsDevice": [
            {"major": 8, "minor": 1, "rate": 1_000_000},
            {"major": 8, "minor": 0, "rate": 2_000_000},
        ],
    }
    assert blockio.of_class(str(file), "") is None
    with pytest.raises(CommandError, match='no OCI BlockIO parameters for class "x"'):
        blockio.of_class(str(file), "x")
    with pytest.raises(CommandError, match="failed to read config file"):
        blockio.of_class(str(tmp_path / "none"), "x")


def test_devices_of_patterns_are_told_when_they_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert blockio.devices([str(tmp_path / "f*"), str(tmp_path / "none"), "/dev/null"]) == []
    told = capsys.readouterr().err
    for text in ("is not a device", "does not match any device nodes", "is a character device", "no matches on any"):
        assert text in told


# CNI -------------------------------------------------------------------------------------------------------

PLUGIN = """#!/bin/sh
cat > {folder}/$CNI_COMMAND-$(basename $0)
echo "$CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME" >> {folder}/called
[ $CNI_COMMAND = DEL ] || echo '{{"ips": ["10.0.0.2"]}}'
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.d").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(cni, "CONFIGURATIONS", str(tmp_path / "net.d"))
    monkeypatch.setattr(cni, "PLUGINS", (str(tmp_path / "bin"),))
    monkeypatch.setattr(cni, "RESULTS", str(tmp_path / "results"))
    for name in ("bridge", "firewall"):
        path = tmp_path / "bin" / name
        path.write_text(PLUGIN.format(folder=tmp_path))
        path.chmod(0o755)
    return tmp_path


def test_plugins_are_called_one_after_the_other_and_back(network: Path) -> None:
    found = {"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}, {"type": "firewall"}]}
    (network / "net.d/10-n.conflist").write_text(json.dumps(found))
    cni.network().add("ns-c", "/proc/1/ns/net")
    assert (network / "called").read_text() == "ns-c /proc/1/ns/net eth0\n" * 2
    given = json.loads((network / "ADD-firewall").read_text())
    assert given["prevResult"] == {"ips": ["10.0.0.2"], "cniVersion": "1.0.0"} and given["name"] == "n"
    kept = network / "results/n-ns-c-eth0"
    assert json.loads(kept.read_text())["containerId"] == "ns-c"
    cni.network().remove("ns-c")
    assert json.loads((network / "DEL-bridge").read_text())["prevResult"]["ips"] == ["10.0.0.2"]
    assert not kept.exists()


def test_a_single_configuration_becomes_a_list(network: Path) -> None:
    (network / "net.d/10-n.conf").write_text('{"name": "n", "type": "bridge"}')
    assert [plugin["type"] for plugin in cni.network().plugins] == ["bridge"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.conflist", "{", "error parsing configuration list"),
        ("a.conflist", "{}", "no name"),
        ("a.conflist", '{"name": "n"}', "no 'plugins' key"),
        ("a.conflist", '{"name": "n", "plugins": []}', "no plugins in list"),
        ("a.conflist", '{"name": "n", "plugins": [{}]}', "failed to parse plugin config 0"),
        ("a.conf", "{}", "missing 'type'"),
        ("a.txt", "{}", "no network config found"),
    ],
)
def test_wrong_configurations(network: Path, name: str, text: str, told: str) -> None:
    (network / "net.d" / name).write_text(text)
    with pytest.raises(CommandError, match=told):
        cni.network()


def test_what_a_plugin_says_of_its_failure(network: Path) -> None:
    (network / "net.d/a.conf").write_text('{"name": "n", "type": "bridge"}')
    plugin = network / "bin/bridge"
    for script, told in (
        ('echo \'{"msg": "no", "details": "why"}\'; exit 1', "failed \\(add\\): no; why"),
        ("echo oh >&2; exit 1", "netplugin failed: "),
        ("exit 3", "no error message: exit status 3"),
        ("echo x; exit 1", "error parsing its diagnostic message"),
    ):
        plugin.write_text(f"#!/bin/sh\n{script}\n")
        with pytest.raises(CommandError, match=told):
            cni.network().add("c", "/x")
    plugin.unlink()
    with pytest.raises(CommandError, match='failed to find plugin "bridge"'):
        cni.network().add("c", "/x")


# Remapped ids ----------------------------------------------------------------------------------------------


def given(**more: Any) -> dict[str, Any]:
    return {"uidmap": ["0:1000:10"], "gidmap": ["5:2005:10"], "remap-labels": False, **more}


def test_the_snapshot_of_other_owners_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = MemoryDaemon()
    made = []
    monkeypatch.setattr(remap, "_copy", lambda *values: made.append(values[3:]))
    assert remap.prepared(daemon, "overlayfs", "top", given()) == ("top-1000-2000", {})  # type: ignore[arg-type]
    assert made == [("top-1000-2000", 1000, 2000)]
    daemon.snapshot_store.kept["top-1000-2000"] = SimpleNamespace()
    remap.prepared(daemon, "overlayfs", "top", given())  # type: ignore[arg-type]
    assert len(made) == 1


def test_a_snapshotter_that_can_is_only_told() -> None:
    daemon = MemoryDaemon()
    daemon.plugins = [SimpleNamespace(capabilities=["remap-ids"])]
    parent, labels = remap.prepared(daemon, "overlayfs", "top", given(**{"remap-labels": True}))  # type: ignore[arg-type]
    assert parent == "top" and labels == {remap.UID_LABEL: "0:1000:10", remap.GID_LABEL: "5:2005:10"}
    with pytest.raises(CommandError, match="container-id:host-id:size"):
        remap.prepared(daemon, "overlayfs", "top", given(uidmap=["0:x"]))  # type: ignore[arg-type]


def test_owners_are_shifted_once_each(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("chown is for root")
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub/file"
    file.touch()
    os.link(file, tmp_path / "link")
    os.chmod(file, 0o4755)
    (tmp_path / "symlink").symlink_to("/")
    remap._shift(str(tmp_path), 100, 200)
    for path in (tmp_path, tmp_path / "sub", file, tmp_path / "symlink"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (100, 200), path
    assert stat.S_IMODE(file.stat().st_mode) == 0o4755


# Errors and events -----------------------------------------------------------------------------------------


class Refused(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize(
    ("code", "details", "kind", "text"),
    [
        (grpc.StatusCode.NOT_FOUND, 'image "x": not found', NotFound, 'image "x": not found'),
        (grpc.StatusCode.NOT_FOUND, "x", NotFound, "x: not found"),
        (grpc.StatusCode.ALREADY_EXISTS, "x", AlreadyExists, "x: already exists"),
        (grpc.StatusCode.UNAVAILABLE, "ref x locked", Locked, "ref x locked: unavailable"),
        (grpc.StatusCode.UNAVAILABLE, "gone", CommandError, "gone: unavailable"),
        (grpc.StatusCode.INTERNAL, "oh", CommandError, "oh"),
    ],
)
def test_errors_have_ctrs_words(code: grpc.StatusCode, details: str, kind: type, text: str) -> None:
    with pytest.raises(CommandError) as caught, client.errors():
        raise Refused(code, details)
    assert (type(caught.value), caught.value.text) == (kind, text)


def test_a_stream_of_requests_tells_its_own_failure() -> None:
    def source() -> Any:
        yield 1
        raise CommandError("broken")

    requests = client.Requests(source())
    assert list(requests) == [1]
    with pytest.raises(CommandError, match="broken"):
        requests.finish()


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no such file or directory: is the daemon running"):
        client.Client(f"unix://{tmp_path}/none", "default")


def test_times_have_as_many_digits_as_needed() -> None:
    assert client.rfc3339(Timestamp(seconds=0)) == "1970-01-01T00:00:00Z"
    assert client.rfc3339(Timestamp(seconds=1, nanos=500_000_000)) == "1970-01-01T00:00:01.5Z"
    assert client.local_time(Timestamp(seconds=2, nanos=250_000_000)) == 2.25


def test_events_are_shown_as_go_does() -> None:
    made = container_pb2.ContainerCreate(id="c", image="i")
    made.runtime.name = "r"
    packed = SimpleNamespace(type_url="containerd.events.ContainerCreate", value=made.SerializeToString())
    assert events.decoded(packed) == {"id": "c", "image": "i", "runtime": {"name": "r"}}
    ended = task_pb2.TaskExit(container_id="c", pid=5)
    assert events.plain(ended) == {"container_id": "c", "pid": 5}
    unknown = SimpleNamespace(type_url="x/none.Such", value=b"\x01")
    assert events.decoded(unknown) == {"type_url": "x/none.Such", "value": "AQ=="}


# Programs of an image --------------------------------------------------------------------------------------


def test_a_program_takes_its_place_whole(tmp_path: Path) -> None:
    packed = tmp_path / "layer.tar"
    (tmp_path / "tool").write_text("new")
    with tarfile.open(packed, "w") as tar:
        tar.add(tmp_path / "tool", "bin/tool")
        link = tarfile.TarInfo("bin/alias")
        link.type, link.linkname = tarfile.SYMTYPE, "tool"
        tar.addfile(link)
        hard = tarfile.TarInfo("bin/other")
        hard.type, hard.linkname = tarfile.LNKTYPE, "/etc/passwd"
        tar.addfile(hard)
    root = tmp_path / "opt"
    with tarfile.open(packed) as tar:
        program, alias, other = tar.getmembers()
        install.put(tar, program, root / "bin/tool", root, ["bin"])
        install.put(tar, alias, root / "bin/alias", root, ["bin"])
        with pytest.raises(CommandError, match="which is not installed"):
            install.put(tar, other, root / "bin/other", root, ["bin"])
    assert (root / "bin/alias").read_text() == "new"
    assert sorted(path.name for path in (root / "bin").iterdir()) == ["alias", "tool"]


def test_the_daemons_own_folder_for_programs() -> None:
    daemon = MemoryDaemon()
    with pytest.raises(CommandError, match="opt service not enabled"):
        install.opt_folder(daemon)  # type: ignore[arg-type]
    daemon.plugins = [SimpleNamespace(exports={})]
    with pytest.raises(CommandError, match="opt path not exported"):
        install.opt_folder(daemon)  # type: ignore[arg-type]
    daemon.plugins = [SimpleNamespace(exports={"path": "/opt/x"})]
    assert install.opt_folder(daemon) == "/opt/x"  # type: ignore[arg-type]


# The copying loop ------------------------------------------------------------------------------------------


class Future:
    """The answer of Wait, which comes when the test says so."""

    def __init__(self) -> None:
        self.told: Any = None
        self.ended = False

    def add_done_callback(self, call: Any) -> None:
        self.told = call

    def end(self) -> None:
        self.ended = True
        self.told(self)

    def done(self) -> bool:
        return self.ended

    def exception(self) -> None:
        return None

    def result(self) -> Any:
        return SimpleNamespace(exit_status=5)


@pytest.fixture
def talking(tmp_path: Path) -> Any:
    """(a conversation with a process that the test plays, its Wait, the paths of its FIFOs)."""
    future = Future()
    daemon = MemoryDaemon()
    closed: list[Any] = []
    tasks = SimpleNamespace(future=lambda name, request: future, CloseIO=closed.append, Kill=closed.append)
    daemon.tasks = tasks  # type: ignore[assignment]
    made = fifos.Fifos.make("c", False, str(tmp_path / "fifos"))
    conversation = fifos.Conversation(daemon, "c", "", made, False)  # type: ignore[arg-type]
    made.open()
    conversation.wait()
    yield conversation, future, made, closed
    made.remove()


def test_output_and_input_are_copied_until_the_process_has_ended(
    talking: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    conversation, future, made, closed = talking
    (tmp_path / "in").write_bytes(b"typed")
    kept = os.dup(0)
    file = os.open(tmp_path / "in", os.O_RDONLY)
    os.dup2(file, 0)

    # A shim opens its sides before the process is started.
    taken = os.open(made.stdin, os.O_RDONLY | os.O_NONBLOCK)
    out, err = os.open(made.stdout, os.O_WRONLY), os.open(made.stderr, os.O_WRONLY)

    def process() -> None:
        got = b""
        while got != b"typed":
            select.select([taken], [], [], 5)
            got += os.read(taken, 100)
        while not closed:
            time.sleep(0.005)
        os.write(out, b"got " + got)
        os.write(err, b"note")
        future.end()
        for number in (taken, out, err):
            os.close(number)

    thread = threading.Thread(target=process)
    thread.start()
    try:
        assert conversation.run() == 5
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(file)
        thread.join()
    assert capfd.readouterr() == ("got typed", "note")
    assert closed[0].stdin


def test_an_output_that_another_process_holds_open_is_given_up(talking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation, future, made, _ = talking
    monkeypatch.setattr(fifos, "PATIENCE", 0.05)
    held = os.open(made.stdout, os.O_WRONLY)
    future.end()
    started = time.monotonic()
    assert conversation.run() == 5
    assert time.monotonic() - started < 3
    os.close(held)


def test_a_terminal_has_no_fifo_for_errors(tmp_path: Path) -> None:
    made = fifos.Fifos.make("x", True, str(tmp_path))
    assert made.stderr == "" and Path(made.stdin).is_fifo()
    made.remove()
