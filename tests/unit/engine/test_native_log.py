# SPDX-License-Identifier: Apache-2.0
"""Containers that write to the journal themselves: which they are, and what journald is told of them."""

from __future__ import annotations

from pathlib import Path

import engine_parts as parts
import pytest

from teu.engine.containers import native_log
from teu.engine.containers.model import Container
from teu.engine.containers.state import MOUNT_POINT
from teu.linux import cgroup_files
from teu.systemd import logfields


def bound(made: Container, *sources: str) -> Container:
    made.mounts = [MOUNT_POINT.read({"Type": "bind", "Source": source, "Destination": "/x"}) for source in sources]
    return made


@pytest.mark.parametrize(
    ("sources", "wanted"),
    [
        ((), False),
        (("/run/systemd/journal/socket",), True),
        (("/srv", "/dev/log"), True),
        (("/run/systemd/",), True),
        (("/",), True),
        (("/run/systemd/journal/socket2", "/dev/lo", "/run/dbus"), False),
    ],
)
def test_those_that_have_a_socket(tmp_path: Path, sources: tuple[str, ...], wanted: bool) -> None:
    assert native_log.writes_itself(bound(parts.container(parts.engine(tmp_path)), *sources)) is wanted


def test_what_journald_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfields, "PREFIX", f"{tmp_path}/fields:")
    monkeypatch.setattr(cgroup_files, "own", lambda _pid: "/teu.slice/teu-a.scope/container")
    made = bound(parts.container(parts.engine(tmp_path)), "/dev/log")
    Path(made.runtime_directory).mkdir(parents=True)
    native_log.renamed(made)
    native_log.end(made)
    file = tmp_path / "fields:teu-a.scope"
    assert not file.exists(), "nothing was begun"
    native_log.begin(made, 1)
    native_log.begin(made, 1)
    content = file.read_bytes()
    name = f"CONTAINER_NAME={made.name}".encode()
    assert content.startswith(len(name).to_bytes(8, "little") + name)
    assert made.id.encode() in content and file.stat().st_mode & 0o777 == 0o644
    made.name = "other"
    native_log.renamed(made)
    assert b"CONTAINER_NAME=other" in file.read_bytes()
    native_log.end(made)
    native_log.end(made)
    assert not file.exists() and not list(tmp_path.glob("fields:*"))
    monkeypatch.setattr(cgroup_files, "own", lambda _pid: "/system.slice/web.service/teu-a/container")
    native_log.begin(made, 1)
    assert not list(tmp_path.glob("fields:*")), "a service has LogExtraFields="
