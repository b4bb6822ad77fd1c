# SPDX-License-Identifier: Apache-2.0
"""Volumes that get another name, and volumes as archives: what teud alone has."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
import whole
from whole import out, teu

ROOT = Path("/var/lib/teu/engine/volumes")

pytestmark = pytest.mark.needs("fast")


@pytest.fixture(scope="module", autouse=True)
def busybox() -> None:
    images.need_busybox()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    whole.remove_everything()
    yield
    whole.remove_everything()
    for name in out("teu", "volume", "ls", "-q").split():
        teu("volume", "rm", name)
    assert os.listdir(ROOT) == []


def box(volume: str, script: str) -> str:
    return out("teu", "run", "--rm", "--network", "none", "-v", f"{volume}:/v", whole.IMAGE, "sh", "-c", script)


def test_from_a_volume_into_another(tmp_path: Path) -> None:
    box(
        "one",
        "mkdir -m 711 /v/sub; echo kept >/v/sub/file; chown 33:34 /v/sub/file; chown 999 /v; ln -s /etc/passwd /v/link",
    )
    teu("volume", "export", "-o", str(tmp_path / "one.tar"), "one")
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert {"./sub/file", "./link"} <= set(archive.getnames())
    teu("volume", "create", "two")
    subprocess.run(["gzip", "-k", str(tmp_path / "one.tar")], check=True, timeout=60)
    teu("volume", "import", "two", str(tmp_path / "one.tar.gz"))
    shown = "stat -c '%a %u %g %n' /v /v/sub /v/sub/file; readlink /v/link; cat /v/sub/file"
    assert box("one", shown) == box("two", shown)
    piped = "teu volume create three && teu volume export one | teu volume import three"
    subprocess.run(["sh", "-ec", piped], check=True, capture_output=True, timeout=100)
    assert box("one", shown) == box("three", shown)
    done = teu("volume", "import", "nobody", str(tmp_path / "one.tar"), check=False)
    assert "no such volume" in done.stderr


def test_one_that_is_in_use_and_one_with_options() -> None:
    whole.run_detached("user", "sh", "-c", "echo now >/v/file; sleep 600", flags=("-v", "one:/v"))
    whole.eventually("it has written", (ROOT / "one/_data/file").exists)
    assert (
        b"now" in subprocess.run(["teu", "volume", "export", "one"], check=True, capture_output=True, timeout=60).stdout
    )
    flags = ("--opt", "type=none", "--opt", "o=bind", "--opt", f"device={ROOT}/one/_data")
    teu("volume", "create", *flags, "bound")
    assert (
        b"now"
        in subprocess.run(["teu", "volume", "export", "bound"], check=True, capture_output=True, timeout=60).stdout
    )
    assert not os.path.ismount(ROOT / "bound/_data"), "it is let go of"
    done = teu("volume", "rename", "one", "other", check=False)
    assert done.returncode == 1 and "volume is in use" in done.stderr
    teu("rm", "-f", "user")


def test_another_name() -> None:
    box("one", "echo kept >/v/file")
    teu("volume", "rename", "one", "other")
    assert out("teu", "volume", "ls", "-q") == "other"
    whole.call("systemctl", "restart", "teud")
    assert box("other", "cat /v/file") == "kept"
    teu("create", "--name", "holds", "-v", "/v", whole.IMAGE, "true")
    teu("rm", "holds")
    (anonymous,) = (name for name in out("teu", "volume", "ls", "-q").split() if name != "other")
    teu("volume", "rename", anonymous, "named")
    teu("volume", "prune", "-f")
    assert out("teu", "volume", "ls", "-q").split() == ["named", "other"]
