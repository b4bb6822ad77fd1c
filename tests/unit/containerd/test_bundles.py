# SPDX-License-Identifier: Apache-2.0
"""Bundles on the disk, the programs of shims, and the sockets that killed shims leave."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from teu.containerd.core.errors import DeadlineExceeded, InvalidArgument, NotFound, Unimplemented, Unknown
from teu.containerd.runtime import bootstrap, sockets
from teu.containerd.runtime.bootstrap import binary_name, binary_to_start, find_binary, parse_bootstrap
from teu.containerd.runtime.bundle import Bundles, mapped_root_group, read, write_new
from teu.containerd.runtime.shim import Bootstrap, Exit, moment
from teu.ttrpc import messages as m


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    return Bundles(str(tmp_path / "state"), str(tmp_path / "root"))


def test_a_bundle_is_made_and_removed(bundles: Bundles) -> None:
    path = Path(bundles.make("ns", "c", b'{"a":1}'))
    assert str(path) == bundles.path("ns", "c") and os.path.samefile(path / "work", bundles.work("ns", "c"))
    assert sorted(os.listdir(path)) == ["config.json", "creating", "rootfs", "work"]
    assert (path / "config.json").stat().st_mode & 0o777 == 0o600  # it may have secrets
    (path / "work" / "old").touch()
    bundles.make("ns", "c", b"")  # over one that was left half made
    assert sorted(os.listdir(path)) == ["creating", "rootfs", "work"] and not os.listdir(path / "work")
    bundles.make("other", "d", b"")
    assert list(bundles.all()) == [("ns", "c"), ("other", "d")]
    bundles.remove(str(path))
    bundles.remove(str(path))
    assert not path.exists() and not os.path.exists(bundles.work("ns", "c"))
    assert list(bundles.all()) == [("other", "d")]


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "../../etc/passwd"])
def test_no_bundle_is_elsewhere(bundles: Bundles, id: str) -> None:
    for ask in (bundles.path, lambda namespace, id: bundles.make(namespace, id, b"")):
        with pytest.raises(InvalidArgument, match="no name of a folder"):
            ask("ns", id)


def test_there_may_be_no_bundles(bundles: Bundles) -> None:
    assert list(bundles.all()) == []


def test_the_group_of_a_mapped_root() -> None:
    mappings = [{"containerID": 5, "hostID": 1}, {"containerID": 0, "hostID": 165536, "size": 9}]
    assert mapped_root_group(json.dumps({"linux": {"gidMappings": mappings}}).encode()) == 165536
    assert mapped_root_group(json.dumps({"linux": {"gidMappings": mappings[:1]}}).encode()) == 0
    assert mapped_root_group(b'{"linux":{}}') == 0


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    assert read(path) == ""
    write_new(path, "one\n")
    write_new(path, "two\n")
    assert read(path) == "two" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("runtime", "binary"),
    [
        ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
        ("io.containerd.teu.v2", "containerd-shim-teu-v2"),
        ("a.b", "containerd-shim-a-b"),
        ("/usr/bin/shim", "/usr/bin/shim"),
    ],
)
def test_names_of_runtimes(runtime: str, binary: str) -> None:
    assert binary_name(runtime) == binary


@pytest.mark.parametrize("runtime", ["", "runc", "io.containerd.", ".v2"])
def test_what_is_no_runtime(runtime: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid runtime name"):
        binary_name(runtime)


def test_programs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "containerd-shim-x-v1"
    program.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match='runtime "io.x.v1" binary not installed'):
        find_binary("io.x.v1")
    program.chmod(0o755)
    assert find_binary("io.x.v1") == str(program) == find_binary(str(program))
    with pytest.raises(NotFound, match="invalid custom binary path: stat /nowhere"):
        find_binary("/nowhere")
    with pytest.raises(NotFound, match="^failed to start shim: failed to resolve runtime path: "):
        binary_to_start("/nowhere")


@pytest.mark.parametrize(
    ("printed", "understood"),
    [
        (b"unix:///s\n", Bootstrap(2, "unix:///s")),
        (b"/s", Bootstrap(2, "/s")),
        (b'{"version": 3, "address": "unix:///s", "protocol": "ttrpc"}', Bootstrap(3, "unix:///s")),
        (b'{"address": "unix:///s"}', Bootstrap(2, "unix:///s")),
        (
            m.encode(
                "containerd.runtime.bootstrap.v1.BootstrapResult",
                {"version": 3, "address": "unix:///s", "protocol": "ttrpc"},
            ),
            Bootstrap(3, "unix:///s"),
        ),
    ],
)
def test_what_a_start_prints(printed: bytes, understood: Bootstrap) -> None:
    assert parse_bootstrap(printed) == understood
    assert parse_bootstrap(understood.as_json().encode()) == understood


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        (b"", Unknown),
        (b'{"version": 4, "address": "unix:///s"}', Unimplemented),
        (b'{"version": 3, "address": "unix:///s", "protocol": "grpc"}', Unimplemented),
    ],
)
def test_what_cannot_be_spoken_to(printed: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_bootstrap(printed)


def test_a_start_that_takes_too_long(bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        namespace, id, binary, bundle = "ns", "c", str(tmp_path / "slow"), str(tmp_path)

    Path(Asked.binary).write_text("#!/bin/sh\nexec sleep 30\n")
    Path(Asked.binary).chmod(0o755)
    monkeypatch.setattr(bootstrap, "START_TIMEOUT", 0.1)
    programs = bootstrap.Programs(bundles, address="/a.sock", ttrpc_address="/a.sock.ttrpc", debug=True)
    with pytest.raises(DeadlineExceeded):
        programs.start(Asked(), b"")  # type: ignore[arg-type]
    command = programs.command(Asked(), "start")  # type: ignore[arg-type]
    assert command[1:] == [
        *("-namespace", "ns", "-address", "/a.sock", "-publish-binary", "/usr/sbin/teu-containerd"),
        *("-id", "c", "-debug", "start"),
    ]
    environment = programs.environment("ns")
    assert (environment["NAMESPACE"], environment["TTRPC_ADDRESS"]) == ("ns", "/a.sock.ttrpc")


def test_how_a_process_ended() -> None:
    at = {"seconds": -62135596800, "nanos": 0}
    assert moment(None) is None and moment(at) == -62135596800 * 10**9
    assert Exit.told({"exit_status": 3, "exited_at": at}) == Exit(3, -62135596800 * 10**9)
    assert Exit.told({"exit_status": 3, "exited_at": None, "pid": 9}) == Exit(3, None, 9)


def test_sockets_of_killed_shims_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listener(name: str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(tmp_path / name))
        made.listen()
        return made

    listener("dead").close()
    listener("young").close()
    (tmp_path / "file").touch()
    old = 1_000_000_000
    for name in ("dead", "file"):
        os.utime(tmp_path / name, (old, old))
    with listener("alive"):
        os.utime(tmp_path / "alive", (old, old))
        sockets.prune_sockets(str(tmp_path))
        assert sorted(os.listdir(tmp_path)) == ["alive", "file", "young"]
        # a table that does not name it, as another network namespace's does not: it is asked
        monkeypatch.setattr(sockets, "open", lambda *_, **__: open(os.devnull), raising=False)
        sockets.prune_sockets(str(tmp_path))
        assert "alive" in os.listdir(tmp_path)
    sockets.prune_sockets(str(tmp_path / "nowhere"))
