# SPDX-License-Identifier: Apache-2.0
"""teu-runc as an ordinary user with subordinate ids."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from runc_bundle import RUNC, Bundle, exec_in, full_proc

USER, UID, FIRST = "teurootless", 4711, 600000

pytestmark = pytest.mark.needs("newuidmap")


@pytest.fixture(scope="module", autouse=True)
def user() -> Iterator[None]:
    """A user with subordinate ids; and a whole proc, without which no user namespace may mount one."""
    full_proc()
    subprocess.run(["useradd", "-u", str(UID), "-m", "-s", "/bin/bash", USER], check=False, capture_output=True)
    for name in ("/etc/subuid", "/etc/subgid"):
        lines = Path(name).read_text().splitlines() if Path(name).exists() else []
        others = [line for line in lines if not line.startswith(USER + ":")]
        Path(name).write_text("\n".join([*others, f"{USER}:{FIRST}:65536"]) + "\n")
    yield
    subprocess.run(["userdel", "-r", USER], check=False, capture_output=True)


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    folder = Path(tempfile.mkdtemp(prefix="teu-rootless-", dir="/var/lib"))
    folder.chmod(0o755)
    made = Bundle(folder)
    made.config["mounts"] = [m for m in made.config["mounts"] if m["destination"] not in ("/sys", "/dev/mqueue")]
    made.namespace("user")
    made.linux["uidMappings"] = [
        {"containerID": 0, "hostID": UID, "size": 1},
        {"containerID": 1, "hostID": FIRST, "size": 65536},
    ]
    made.linux["gidMappings"] = made.linux["uidMappings"]
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)
    made.user = UID
    yield made
    made.clean()
    shutil.rmtree(folder, ignore_errors=True)


def test_run_with_subordinate_ids(bundle: Bundle) -> None:
    said = bundle.says("id -u; cat /proc/self/uid_map; touch /tmp/x; chown 5:6 /tmp/x && stat -c %u:%g /tmp/x")
    assert said.split() == ["0", "0", str(UID), "1", "1", str(FIRST), "65536", "5:6"]
    assert (bundle.rootfs / "tmp/x").stat().st_uid == FIRST + 4


def test_life_cycle_and_exec(bundle: Bundle) -> None:
    id = bundle.created()
    assert bundle.status(id) == "created"
    bundle.ok("start", id)
    assert exec_in(bundle, id, "id -u; hostname") == "0\nteu"
    assert exec_in(bundle, id, "id -u", "--user", "7") == "7"
    assert bundle.runc("exec", id, "sh", "-c", "exit 9").returncode == 9
    bundle.ok("kill", id, "KILL")
    bundle.wait_status(id, "stopped")
    bundle.ok("delete", id)
    assert not (bundle.root / id).exists()


def test_own_id_alone_needs_no_helper(bundle: Bundle) -> None:
    one = [{"containerID": 0, "hostID": UID, "size": 1}]
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = one
    for mount in bundle.config["mounts"]:
        mount["options"] = [o for o in mount.get("options", []) if not o.startswith("gid=")]
    said = bundle.says("id -u; cat /proc/self/setgroups")
    assert said == "0\ndeny"
    id = bundle.detached()
    assert exec_in(bundle, id, "id -u") == "0"


def test_devices_are_the_hosts_own(bundle: Bundle) -> None:
    said = bundle.says("echo x > /dev/null && head -c 4 /dev/zero | od -An -tx1; stat -c %t:%T /dev/null")
    assert said.split() == ["00", "00", "00", "00", "1:3"]


def test_a_limit_that_cannot_be_set_is_an_error(bundle: Bundle) -> None:
    bundle.linux["resources"] = {"pids": {"limit": 10}}
    error = bundle.refuses()
    assert "cgroup" in error or "pids" in error


@pytest.mark.parametrize(("flag", "status"), [("auto", 0), ("true", 0), ("false", 1)])
def test_a_user_is_rootless_unless_it_says_no(bundle: Bundle, flag: str, status: int) -> None:
    """That no cgroup can be made is passed over, or is not."""
    bundle.process["args"] = ["true"]
    bundle.write()
    done = bundle.runc("--rootless", flag, "run", bundle.new_id())
    assert done.returncode == status, done.stderr
    assert not status or "unable to apply cgroup configuration" in done.stderr


@pytest.mark.parametrize("option", ["ro", "rw"])
def test_the_users_other_cgroups_are_not_shown(bundle: Bundle, option: str) -> None:
    """CVE-2023-25809: without a cgroup and a cgroup namespace of its own it has no tree that it could write."""
    bundle.without_namespace("cgroup")
    bundle.mount("/sys", "bind", "/sys", ["rbind", "nosuid", "noexec", "nodev", "ro"])
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "noexec", "nodev", "relatime", option])
    said = bundle.says("ls -A /sys/fs/cgroup; mkdir /sys/fs/cgroup/x 2>&1 || grep ' /sys/fs/cgroup ' /proc/mounts")
    lines = said.split("\n")
    assert "Read-only file system" in lines[0], said
    assert lines[-1].startswith("tmpfs /sys/fs/cgroup tmpfs ro,"), said


def test_default_state_folder_is_the_users(bundle: Bundle) -> None:
    runtime = bundle.folder / "xdg"
    runtime.mkdir()
    os.chown(runtime, UID, UID)
    bundle.process["args"] = ["true"]
    bundle.write()
    done = subprocess.run(
        [RUNC, "run", bundle.new_id()],
        cwd=bundle.folder,
        user=UID,
        group=UID,
        extra_groups=[],
        env={"XDG_RUNTIME_DIR": str(runtime), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert (runtime / "teu-runc").stat().st_mode & 0o7777 == 0o1700


def test_ids_that_are_not_ours_are_refused(bundle: Bundle) -> None:
    foreign = {"containerID": 1, "hostID": 1, "size": 9}
    bundle.linux["uidMappings"] = [{"containerID": 0, "hostID": UID, "size": 1}, foreign]
    assert "/etc/subuid" in bundle.refuses()
