# SPDX-License-Identifier: Apache-2.0
"""Small parts of the engine without a host: what wakes containerd, mounts of volumes."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from teu.engine import wake
from teu.engine.backend import tasks
from teu.engine.volumes.drivers import local_mount
from teu.linux.mounts import MS_BIND, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT, MS_SHARED

# wake -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--containerd", "PATH"], ["-H", "fd://", "--containerd=unix://PATH"]])
def test_the_other_daemon_is_knocked_at(words: list[str], tmp_path: Path) -> None:
    path = str(tmp_path / "c.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(5)
        wake.wake([word.replace("PATH", path) for word in words])
        knock, _ = listener.accept()
        assert knock.recv(1) == b"", "it says nothing"
        knock.close()


def test_who_only_asks_wakes_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "c.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        for words in ([], ["--containerd"], *(["--containerd", path, asks] for asks in ("--validate", "-v", "--help"))):
            wake.wake(words)
        with pytest.raises(BlockingIOError):
            listener.accept()
    wake.wake(["--containerd", str(tmp_path / "nobody")])


# local_mount ------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What mount(2) is asked for: source, target, type, flags, data."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(local_mount, "syscall", lambda what, number, *arguments: calls.append(arguments))
    return calls


def test_options_become_flags_and_data(mounted: list[tuple[Any, ...]]) -> None:
    local_mount.mount("/v", {"type": "nfs", "device": ":/x", "o": "addr=1.2.3.4,ro,nosuid"})
    assert mounted == [(b":/x", b"/v", b"nfs", MS_RDONLY | MS_NOSUID, b"addr=1.2.3.4")]
    del mounted[:]
    local_mount.mount("/v", {"type": "tmpfs", "device": "tmpfs"})
    assert mounted == [(b"tmpfs", b"/v", b"tmpfs", 0, None)]


def test_a_bind_mount_is_made_read_only_by_a_second_call(mounted: list[tuple[Any, ...]]) -> None:
    """The kernel takes no other flag with a new bind; propagation is a call of its own as well."""
    local_mount.mount("/v", {"type": "none", "device": "/d", "o": "rbind,ro,rshared"})
    assert mounted == [
        (b"/d", b"/v", b"", MS_BIND | MS_REC | MS_RDONLY, None),
        (None, b"/v", None, MS_BIND | MS_REC | MS_RDONLY | MS_REMOUNT, None),
        (None, b"/v", None, MS_SHARED | MS_REC, None),
    ]


def test_the_reason_is_told_and_nothing_is_stacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(what: str, *_: Any) -> None:
        raise OSError(2, f"{what}: No such file or directory")

    monkeypatch.setattr(local_mount, "syscall", refuse)
    asked = {"path": str(tmp_path), "options": {"type": "ext4", "device": "/dev/none"}}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked)))
    assert local_mount.main() == 1
    assert capsys.readouterr().err == (f"mount /dev/none:{tmp_path}, flags: 0x0, data: : no such file or directory")
    monkeypatch.setattr(local_mount.trees, "is_mount_root", lambda path: path == os.fspath(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked)))
    assert local_mount.main() == 0, "something is mounted there already"


# what did not start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ('exec: "/etc/passwd": permission denied: unknown', 126),
        ('exec: "/etc": is a directory', 126),
        ('exec: "x": Executable file not found in $PATH', 127),
        ('exec: "./x": stat ./x: no such file or directory', 127),
        ("mount /a to /b: not a directory", 127),
        ("cgroup is busy", 128),
    ],
)
def test_the_exit_code_of_what_did_not_start(words: str, code: int) -> None:
    assert tasks.code_of_refusal(f"OCI runtime create failed: {words}") == code
