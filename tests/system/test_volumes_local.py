# SPDX-License-Identifier: Apache-2.0
"""Volumes through the whole house: named, anonymous, binds, tmpfs, copy-up, options, what is left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
import whole
from whole import out, teu

ROOT = Path("/var/lib/teu/engine/volumes")


@pytest.fixture(scope="module", autouse=True)
def busybox() -> None:
    images.need_busybox()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    whole.remove_everything()
    before = sorted(os.listdir(ROOT)) if ROOT.exists() else []
    yield
    whole.remove_everything()
    for name in out("teu", "volume", "ls", "-q").split():
        if name not in before:
            teu("volume", "rm", name)
    assert sorted(os.listdir(ROOT)) == before


def box(*argv: str, flags: tuple[str, ...] = ()) -> str:
    return out("teu", "run", "--rm", *flags, whole.IMAGE, *argv)


def test_named_volume_outlives_containers() -> None:
    box("sh", "-c", "echo kept > /data/file", flags=("-v", "kept:/data"))
    assert box("cat", "/data/file", flags=("-v", "kept:/data:ro")) == "kept"
    done = teu("run", "--rm", "-v", "kept:/data:ro", whole.IMAGE, "touch", "/data/x", check=False)
    assert "Read-only file system" in done.stderr
    found = json.loads(out("teu", "volume", "inspect", "kept"))[0]
    assert Path(found["Mountpoint"], "file").read_text() == "kept\n"
    whole.run_detached("user", "sleep", "600", flags=("-v", "kept:/data"))
    done = teu("volume", "rm", "kept", check=False)
    assert done.returncode == 1
    assert "volume is in use" in done.stderr


def test_copy_up_of_the_image() -> None:
    listed = box("sh", "-c", "ls /etc | sort").split()
    mixed = box("sh", "-c", "ls /copy/etc /etc | grep -c passwd", flags=("-v", "copied:/etc"))
    assert mixed
    stored = set(os.listdir(ROOT / "copied/_data"))
    assert {"passwd", "group"} <= stored
    assert set(listed) <= stored | {"hosts", "hostname", "resolv.conf", "mtab"}
    assert box("ls", "/etc/passwd", flags=("--mount", "type=volume,source=empty,target=/x,volume-nocopy")) != ""


@pytest.mark.needs("fast")
def test_anonymous_volumes_go_with_rm() -> None:
    box("true", flags=("-v", "/data"))
    assert out("teu", "volume", "ls", "-q") == ""
    teu("run", "--name", "stays", "-v", "/data", whole.IMAGE, "true")
    name = out("teu", "volume", "ls", "-q")
    assert len(name) == 64
    teu("rm", "stays")
    assert out("teu", "volume", "ls", "-q", "-f", "dangling=true") == name
    assert name in teu("volume", "prune", "-f").stdout


def test_binds(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("host\n")
    assert box("cat", "/in/file", flags=("-v", f"{tmp_path}:/in")) == "host"
    made = tmp_path / "made/here"
    box("touch", "/in/x", flags=("-v", f"{made}:/in"))
    assert (made / "x").exists()
    missing = f"type=bind,source={tmp_path}/none,target=/in"
    done = teu("run", "--rm", "--mount", missing, whole.IMAGE, "true", check=False)
    assert done.returncode == 125
    assert "bind source path does not exist" in done.stderr
    done = teu("run", "--rm", "-v", f"{tmp_path}:/in:ro", whole.IMAGE, "touch", "/in/y", check=False)
    assert "Read-only file system" in done.stderr


def test_propagation(tmp_path: Path) -> None:
    whole.call("mount", "-t", "tmpfs", "tmpfs", str(tmp_path))
    whole.call("mount", "--make-shared", str(tmp_path))
    (tmp_path / "sub").mkdir()
    try:
        for kind in ("rslave", "rprivate"):
            whole.run_detached(kind, "sleep", "600", flags=("-v", f"{tmp_path}:/in:{kind}"))
        whole.call("mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "sub"))
        (tmp_path / "sub/seen").touch()
        for kind, expected in (("rslave", "seen"), ("rprivate", "")):
            assert out("teu", "exec", kind, "ls", "/in/sub") == expected
    finally:
        whole.remove_everything()
        whole.call("umount", "-R", str(tmp_path))


@pytest.mark.needs("fast")
def test_tmpfs() -> None:
    shown = box("sh", "-c", "grep ' /scratch ' /proc/mounts", flags=("--tmpfs", "/scratch:size=1m,mode=700"))
    assert shown.startswith("tmpfs")
    assert "size=1024k" in shown


@pytest.mark.needs("fast")
def test_volume_with_options() -> None:
    teu("volume", "create", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m", "ram")
    assert "size=1024k" in box("sh", "-c", "grep ' /r ' /proc/mounts", flags=("-v", "ram:/r"))
    assert str(ROOT) not in Path("/proc/self/mounts").read_text()


@pytest.mark.needs("fast")
@pytest.mark.parametrize(
    ("name", "message"), [("a", "too short"), ("../x", "includes invalid characters"), ("x y", "invalid characters")]
)
def test_bad_names(name: str, message: str) -> None:
    done = teu("volume", "create", name, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert teu("volume", "inspect", "none-such", check=False).returncode == 1
