# SPDX-License-Identifier: Apache-2.0
"""teu-runc checkpoint and restore with Debian's criu.

What restores runs in the VM lab only: on the namespace lab's kernel, newer than criu 4.1, processes
die when criu lets go of them, with runc as well; criu 3.17 of Debian 12 cannot even save there.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runc_bundle import RUNC, Bundle, exec_in, new_bundle

pytestmark = pytest.mark.needs("criu", "teu-runc")
COUNT = "n=0; while true; do n=$((n+1)); ln -sfn $n /count; sleep 0.05; done"


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        made.linux["cgroupsPath"] = f"/teutest/{made.folder.name}"
        yield made


def quiet(bundle: Bundle, *words: str) -> None:
    """A command whose process has no file of the host as output: such a one cannot be saved."""
    null = subprocess.DEVNULL
    argv = [RUNC, "--root", str(bundle.root), *words]
    done = subprocess.run(argv, cwd=bundle.folder, stdin=null, stdout=null, stderr=null, timeout=60, check=False)
    assert done.returncode == 0, words


def detached(bundle: Bundle, *args: str) -> str:
    """A running container without a thread to the host."""
    bundle.process["args"] = list(args or ("sleep", "1000"))
    bundle.write()
    identifier = bundle.new_id()
    quiet(bundle, "run", "-d", identifier)
    return identifier


def count(bundle: Bundle) -> int:
    try:
        return int(os.readlink(bundle.rootfs / "count"))
    except (OSError, ValueError):
        return 0


def wait_past(bundle: Bundle, number: int) -> None:
    deadline = time.monotonic() + 60
    while count(bundle) <= number:
        assert time.monotonic() < deadline, f"it stands at {count(bundle)}"
        time.sleep(0.02)


# ---- refusals ----------------------------------------------------------------------------------


def test_of_nobody(bundle: Bundle) -> None:
    done = bundle.runc("checkpoint", "nobody")
    assert done.returncode == 1 and "container does not exist" in done.stderr


def test_only_a_running_one(bundle: Bundle) -> None:
    identifier = bundle.created()
    done = bundle.runc("checkpoint", identifier)
    assert done.returncode == 1 and "Container cannot be checkpointed in created state" in done.stderr
    bundle.ok("kill", identifier, "KILL")
    bundle.wait_status(identifier, "stopped")
    done = bundle.runc("checkpoint", identifier)
    assert done.returncode == 1 and "stopped state" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--manage-cgroups-mode", "loose"), "invalid manage-cgroups-mode value"),
        (("--parent-path", "/absolute"), "--parent-path must be relative"),
        (("--parent-path", "../missing"), "invalid --parent-path"),
        (("--page-server", "nonsense"), "Use --page-server ADDRESS:PORT"),
        (("--page-server", "127.0.0.1:http"), "Invalid port number"),
        (("--empty-ns", "pid"), "is not supported"),
    ],
)
def test_bad_options(bundle: Bundle, words: tuple[str, ...], said: str) -> None:
    identifier = detached(bundle)
    done = bundle.runc("checkpoint", *words, identifier)
    assert done.returncode == 1 and said in done.stderr
    assert bundle.status(identifier) == "running"


def test_restore_of_nothing(bundle: Bundle, tmp_path: Path) -> None:
    bundle.write()
    identifier = bundle.new_id()
    done = bundle.runc("restore", "--image-path", str(tmp_path / "none"), identifier)
    assert done.returncode == 1 and "no checkpoint to restore" in done.stderr
    done = bundle.runc("restore", "--image-path", str(tmp_path), identifier)
    assert done.returncode == 1 and "is this a checkpoint?" in done.stderr
    for bad in ('["pipe:[1]", "pipe:[2]", "pipe:[3]", "pipe:[4]"]', "[1]", "{}", "["):
        # A fourth would be the socket by which criu is told what to do.
        (tmp_path / "descriptors.json").write_text(bad)
        done = bundle.runc("restore", "--image-path", str(tmp_path), identifier)
        assert done.returncode == 1 and "descriptors.json" in done.stderr, bad
    assert not (bundle.root / identifier).exists()
    assert not Path(f"/sys/fs/cgroup/teutest/{bundle.folder.name}").exists()


@pytest.mark.needs("trixie")
def test_the_container_is_gone_afterwards(bundle: Bundle, tmp_path: Path) -> None:
    identifier = detached(bundle, "sh", "-c", COUNT)
    wait_past(bundle, 1)
    images = tmp_path / "images"
    bundle.ok("checkpoint", "--image-path", str(images), identifier)
    assert (images / "inventory.img").exists() and (images / "descriptors.json").exists()
    assert images.stat().st_mode & 0o777 == 0o700
    assert not (bundle.root / identifier).exists()
    assert not Path(f"/sys/fs/cgroup/teutest/{bundle.folder.name}").exists()


@pytest.mark.needs("trixie")
def test_logs_elsewhere(bundle: Bundle, tmp_path: Path) -> None:
    identifier = detached(bundle)
    bundle.ok("checkpoint", "--image-path", str(tmp_path / "images"), "--work-path", str(tmp_path / "work"), identifier)
    assert (tmp_path / "work/dump.log").exists()
    assert not (tmp_path / "images/dump.log").exists()


# ---- there and back ----------------------------------------------------------------------------


@pytest.mark.needs("vm")
@pytest.mark.timeout(240)
def test_there_and_back(bundle: Bundle, tmp_path: Path) -> None:
    identifier = detached(bundle, "sh", "-c", COUNT)
    wait_past(bundle, 5)
    images = str(tmp_path / "images")
    bundle.ok("checkpoint", "--image-path", images, identifier)
    before = count(bundle)
    pid_file = tmp_path / "pid"
    quiet(bundle, "restore", "-d", "--image-path", images, "--pid-file", str(pid_file), identifier)
    wait_past(bundle, before)
    assert bundle.status(identifier) == "running"
    assert bundle.pid(identifier) == int(pid_file.read_text())
    assert exec_in(bundle, identifier, "hostname") == "teu"
    group = Path(f"/proc/{bundle.pid(identifier)}/cgroup").read_text()
    assert f"0::/teutest/{bundle.folder.name}" in group
    bundle.ok("pause", identifier)
    bundle.ok("resume", identifier)
    # And once more, from what was restored.
    bundle.ok("checkpoint", "--image-path", str(tmp_path / "again"), identifier)
    before = count(bundle)
    quiet(bundle, "restore", "-d", "--image-path", str(tmp_path / "again"), identifier)
    wait_past(bundle, before)
    bundle.ok("delete", "-f", identifier)
    assert not (bundle.root / identifier).exists()


@pytest.mark.needs("vm")
def test_leave_running(bundle: Bundle, tmp_path: Path) -> None:
    identifier = detached(bundle, "sh", "-c", COUNT)
    wait_past(bundle, 1)
    bundle.ok("checkpoint", "--leave-running", "--image-path", str(tmp_path / "images"), identifier)
    assert bundle.status(identifier) == "running"
    wait_past(bundle, count(bundle))


@pytest.mark.needs("vm")
@pytest.mark.timeout(240)
def test_in_the_foreground(bundle: Bundle, tmp_path: Path) -> None:
    """restore without -d waits, and ends with the container's exit code."""
    identifier = detached(bundle, "sh", "-c", "while [ ! -e /stop ]; do sleep 0.05; done; exit 7")
    bundle.ok("checkpoint", "--image-path", str(tmp_path / "images"), identifier)
    (bundle.rootfs / "stop").write_text("")
    done = bundle.runc("restore", "--image-path", str(tmp_path / "images"), identifier)
    assert done.returncode == 7, done.stderr
    assert not (bundle.root / identifier).exists()


@pytest.mark.needs("vm")
@pytest.mark.timeout(240)
def test_bind_mounts_come_back(bundle: Bundle, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("content\n")
    bundle.mount("/data", "bind", str(data), ["rbind", "ro"])
    bundle.mount("/etc/one", "bind", str(data / "file"), ["bind", "ro"])
    # A sleep of a thousand seconds would end by being saved: the kernel cannot take it up again (EINTR).
    identifier = detached(bundle, "sh", "-c", COUNT)
    wait_past(bundle, 1)
    bundle.ok("checkpoint", "--image-path", str(tmp_path / "images"), identifier)
    before = count(bundle)
    quiet(bundle, "restore", "-d", "--image-path", str(tmp_path / "images"), identifier)
    assert exec_in(bundle, identifier, "cat /data/file /etc/one") == "content\ncontent"
    wait_past(bundle, before)
    refused = exec_in(bundle, identifier, "touch /data/new 2>&1 || echo refused")
    assert "Read-only file system" in refused and refused.endswith("refused")
