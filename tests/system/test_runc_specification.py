# SPDX-License-Identifier: Apache-2.0
"""teu-runc: sentences of the runtime-spec, and habits of runc that others rely on, one test each."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_kind import PATIENCE
from runc_bundle import RUNC, Bundle, exec_in, full_proc, new_bundle

pytestmark = pytest.mark.needs("teu-runc")


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        yield made


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for(what: Any) -> Any:
    deadline = time.monotonic() + 60 * PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


# -- mounts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(bundle: Bundle) -> Iterator[Path]:
    """A tmpfs whose mount, not its file system, is read-only, noexec and nosymfollow."""
    place = bundle.folder / "locked"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro,noexec,nosymfollow", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def attributes(bundle: Bundle, source: Path, *options: str) -> set[str]:
    bundle.config["mounts"] = [one for one in bundle.config["mounts"] if one["destination"] != "/m"]
    bundle.mount("/m", "bind", str(source), ["bind", *options])
    line = next(one for one in bundle.says("cat /proc/self/mountinfo").splitlines() if one.split()[4] == "/m")
    return set(line.split()[5].split(",")) - {"relatime"}


def test_attributes_of_a_bind_mount_that_nobody_gives(bundle: Bundle, locked: Path) -> None:
    assert attributes(bundle, locked) == {"ro", "noexec", "nosymfollow"}, "none given: as the source"
    assert attributes(bundle, locked, "rprivate") == {"ro", "noexec", "nosymfollow"}
    assert attributes(bundle, locked, "nosuid") == {"rw", "nosuid"}, "one given: the others are off"
    assert attributes(bundle, locked, "dev") == {"rw"}
    assert attributes(bundle, locked, "rw", "nodev") == {"rw", "nodev"}


def test_a_user_namespace_unlocks_no_attribute(bundle: Bundle, locked: Path) -> None:
    full_proc()
    bundle.map_ids()
    assert attributes(bundle, locked) == {"ro", "noexec", "nosymfollow"}
    assert attributes(bundle, locked, "nosuid") == {"ro", "noexec", "nosuid"}
    for option in ("rw", "exec"):
        bundle.config["mounts"][-1]["options"] = ["bind", option]
        error = bundle.refuses()
        assert "error mounting" in error and "operation not permitted" in error, option


def test_remount(bundle: Bundle) -> None:
    bundle.mount("/m", "tmpfs", "tmpfs", ["size=64k", "mode=700"])
    bundle.mount("/m", "tmpfs", "tmpfs", ["remount", "ro", "noexec"])
    said = bundle.says("stat -c %a /m; touch /m/x 2>&1 | grep -c Read-only; grep -c ' /m ' /proc/mounts")
    assert said.split() == ["700", "1", "1"]
    bundle.config["mounts"][-1]["options"].append("size=1k")
    assert "remount cannot change size=1k" in bundle.refuses()


def test_id_map_of_a_user_namespace_that_is_joined(bundle: Bundle) -> None:
    full_proc()
    bundle.map_ids(300000)
    first = bundle.detached()
    source = bundle.folder / "source"
    source.mkdir()
    os.chown(source, 3, 4)
    bundle.namespace("user", f"/proc/{bundle.pid(first)}/ns/user")
    del bundle.linux["uidMappings"], bundle.linux["gidMappings"]
    bundle.mount("/m", "bind", str(source), ["bind", "idmap"])
    assert bundle.says("stat -c %u:%g /m") == "3:4"


# -- devices, of both kinds -------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_a_device(bundle: Bundle) -> None:
    (bundle.rootfs / "data").write_text("mine")
    bundle.linux["devices"] = [{"type": "c", "path": "/data", "major": 1, "minor": 3}]
    assert "error creating device /data: another file is in its place" in bundle.refuses()
    assert (bundle.rootfs / "data").read_text() == "mine"


def test_network_device_into_a_namespace_that_is_joined(bundle: Bundle) -> None:
    """By a template, whose number the kernel chooses; its sysctl has a dot in the name."""
    name = f"teus{os.getpid() % 10000}"
    id = bundle.detached()
    bundle.namespace("network", f"/proc/{bundle.pid(id)}/ns/net")
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    try:
        subprocess.run(["ip", "addr", "add", "10.99.9.7/24", "dev", name], check=True)
        bundle.linux["netDevices"] = {name: {"name": "in.%d"}}
        bundle.linux["sysctl"] = {"net/ipv4/conf/in.0/forwarding": "1"}
        said = bundle.says("ip addr show in.0; cat /proc/sys/net/ipv4/conf/in.0/forwarding")
        assert "10.99.9.7/24" in said and "UP" in said.split(">")[0] and said.split()[-1] == "1"
        assert "in.0" in exec_in(bundle, id, "ip link")
        bundle.linux["netDevices"] = {f"{name}p": {"name": "in.0"}}
        assert "the container has an interface 'in.0' already" in bundle.refuses()
        assert subprocess.run(["ip", "link", "show", f"{name}p"], check=False, capture_output=True).returncode == 0
    finally:
        subprocess.run(["ip", "link", "del", f"{name}p"], check=False, capture_output=True)


# -- process and hooks ------------------------------------------------------------------------------------------


def test_console_size_without_a_terminal_is_ignored(bundle: Bundle) -> None:
    bundle.process["consoleSize"] = {"height": -1}
    assert bundle.says("echo fine") == "fine"


def test_create_container_hooks_are_in_the_root(bundle: Bundle) -> None:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "pwd -P > from-hook"]}
    bundle.config["hooks"] = {"createContainer": [hook]}
    assert bundle.says("cat /from-hook") == str(bundle.rootfs)


def test_the_cgroup_belongs_to_the_processs_user(bundle: Bundle) -> None:
    """runtime-spec, "Cgroup ownership": also without a user namespace; nothing but what may be delegated."""
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "noexec", "nodev"])

    def owners() -> tuple[int, int, int]:
        state = json.loads((bundle.root / bundle.detached() / "state.json").read_text())
        path = Path(state["cgroup"]["path"])
        return path.stat().st_uid, (path / "cgroup.procs").stat().st_uid, (path / "cgroup.freeze").stat().st_uid

    assert owners() == (1000, 1000, 0)
    bundle.config["mounts"][-1]["options"].append("ro")
    assert owners() == (0, 0, 0)
    bundle.config["mounts"][-1]["options"].pop()
    bundle.without_namespace("cgroup")
    assert owners() == (0, 0, 0)


def test_exec_follows_init_to_another_cgroup(bundle: Bundle) -> None:
    """Where the one that it was made in is gone."""
    other = Path(f"/sys/fs/cgroup/teu-other-{os.getpid()}")
    other.mkdir()
    try:
        id = bundle.detached()
        own = Path(json.loads((bundle.root / id / "state.json").read_text())["cgroup"]["path"])
        (other / "cgroup.procs").write_text(str(bundle.pid(id)))
        own.rmdir()
        bundle.ok("exec", id, "sh", "-c", "cat /proc/self/cgroup > /where; sleep 0")
        assert (bundle.rootfs / "where").read_text().strip().endswith(f"/{other.name}")
        bundle.ok("delete", "--force", id)
    finally:
        wait_for(lambda: not (other / "cgroup.procs").read_text())
        other.rmdir()


def test_a_label_without_selinux(bundle: Bundle) -> None:
    if Path("/sys/fs/selinux/enforce").exists():
        pytest.fail("a machine with SELinux: this test needs one without")
    id = bundle.detached()
    done = bundle.runc("exec", "--process-label", "system_u:system_r:container_t:s0", id, "true")
    assert done.returncode == 255 and "process.selinuxLabel" in done.stderr and "SELinux" in done.stderr
    bundle.process["selinuxLabel"] = "system_u:system_r:container_t:s0"
    assert "process.selinuxLabel" in bundle.refuses()


# -- flags ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [(), ("--no-subreaper",)], ids=["subreaper", "no-subreaper"])
def test_who_gets_the_orphans(bundle: Bundle, flag: tuple[str, ...]) -> None:
    bundle.without_namespace("pid")
    bundle.process["args"] = ["sh", "-c", "sh -c 'sleep 1000 & echo $! > /orphan.new'; mv /orphan.new /orphan; cat"]
    bundle.write()
    words = [RUNC, "--root", str(bundle.root), "run", *flag, bundle.new_id()]
    running = subprocess.Popen(words, cwd=bundle.folder, stdin=subprocess.PIPE)
    try:
        pid = int(wait_for(lambda: (bundle.rootfs / "orphan").exists() and (bundle.rootfs / "orphan").read_text()))
        assert (parent_of(pid) == running.pid) == (not flag)
    finally:
        assert running.stdin is not None
        running.stdin.close()
        assert running.wait(60 * PATIENCE) == 0


@pytest.mark.parametrize(("flag", "runs"), [("true", True), ("false", False), ("auto", False)])
def test_rootless_for_root(bundle: Bundle, flag: str, runs: bool) -> None:
    """Where no cgroup can be made, it goes without one if it is told that it is rootless; auto: root is not."""
    bundle.process["args"] = ["true"]
    bundle.write()
    words = [RUNC, "--root", str(bundle.root), "--rootless", flag, "run", bundle.new_id()]
    script = 'mount -o remount,bind,ro /sys/fs/cgroup && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *words],
        cwd=bundle.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == runs, done.stderr
    assert runs or "unable to apply cgroup configuration" in done.stderr


def test_rootless_takes_nothing_else(bundle: Bundle) -> None:
    done = bundle.runc("--rootless", "maybe", "list")
    assert done.returncode == 1 and "invalid value 'maybe' for --rootless" in done.stderr
