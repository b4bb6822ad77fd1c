# SPDX-License-Identifier: Apache-2.0
"""Disk limits: what a container may write into its root, and what fits into a volume, by project quotas of ext4 and
xfs.

The daemons stand on a file system of their own, in a file. The kernel of the namespace lab has no quotas: there it is
shown what is said then, beside docker.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine
import peers
import pytest
import whole
from taskhouse import TeuContainerd

from teu.linux import quota
from teu.linux.syscalls import NR_quotactl_fd, buffer, syscall

MEGABYTE = 1 << 20
Q_XGETNEXTQUOTA = 0x5809
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-b", "4096", "-I", "256", "-O", "project,quota", "-E", "quotatype=prjquota"],
    "xfs": ["mkfs.xfs", "-q"],
}
FULL = re.compile("No space left on device|Disk quota exceeded")


class Disk:
    """A file system of one of the two kinds, in a file."""

    def __init__(self, base: Path, kind: str) -> None:
        self.kind = kind
        self.image, self.point = base / "disk", base / "mounted"
        self.point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(512 * MEGABYTE)
        peers.run(*MAKE[kind], str(self.image))
        self.mount("prjquota")

    def mount(self, option: str) -> None:
        peers.run("mount", "-t", self.kind, "-o", f"loop,{option}", str(self.image), str(self.point))

    def umount(self) -> None:
        free = lambda: peers.run("umount", str(self.point), code=None).returncode == 0  # noqa: E731
        peers.wait_until(free, "the disk to be in use by nobody", 30)

    def projects(self) -> dict[int, int]:
        """Teu's that have files or a limit: the limit in bytes."""
        found: dict[int, int] = {}
        folder = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY)
        following = quota.FIRST
        try:
            while following < quota.FIRST + quota.COUNT:
                data = buffer(bytes(quota._DISK_QUOTA.size))
                command = Q_XGETNEXTQUOTA << 8 | quota.PRJQUOTA
                try:
                    syscall("quotactl_fd", NR_quotactl_fd, folder, command, following, data)
                except FileNotFoundError:
                    break
                fields = quota._DISK_QUOTA.unpack(bytes(data)[: quota._DISK_QUOTA.size])
                if fields[3] < quota.FIRST + quota.COUNT and any(fields[4:]):
                    found[fields[3]] = fields[4] * quota.BLOCK
                following = fields[3] + 1
        finally:
            os.close(folder)
        return found


class Containerd(TeuContainerd):
    """Ours, with its root on the disk."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.state.rmdir()
        self.state = disk.point / "containerd"
        self.state.mkdir()


class Engine(peers.Daemon):
    """teud, with its data on the disk. Calling it runs `teu`."""

    def __init__(self, disk: Disk, containerd: Containerd) -> None:
        super().__init__("teud")
        self.state.rmdir()
        self.state = disk.point / "engine"
        self.containerd = containerd
        self.socket = self.run / "teud.sock"
        self.client = ["teu", "-H", f"unix://{self.socket}"]
        self.config = self.run / "teud.yaml"

    def launch(self, settings: str = "") -> None:
        self.config.write_text(settings)
        self.start(
            ["/usr/sbin/teud", "--config", str(self.config), "--containerd", str(self.containerd.address)]
            + ["--data-root", str(self.state), "--exec-root", str(self.run / "exec"), "-H", f"unix://{self.socket}"],
            lambda: self.socket.exists() and peers.run(*self.client, "version", code=0),
        )

    def inside(self, script: str, *flags: str, code: int | None = 0) -> str:
        """What a container says that goes afterwards."""
        done = self.result("run", "--rm", "--network", "none", *flags, "busybox", "sh", "-c", script, code=code)
        return done.stdout + done.stderr


class House:
    def __init__(self, base: Path, kind: str) -> None:
        self.disk = Disk(base, kind)
        self.containerd = Containerd(self.disk)
        self.engine = Engine(self.disk, self.containerd)

    def start(self, settings: str = "") -> None:
        self.containerd.launch()
        self.engine.launch(settings)

    def stop(self) -> None:
        self.engine.stop()
        self.containerd.stop()

    def no_projects(self) -> None:
        """All are given back. What a removal has left is swept by containerd some moments later."""
        whole.eventually("no project is left", lambda: not self.disk.projects(), timeout=90)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            if found := self.engine("ps", "-aq").split():
                self.engine("rm", "-f", *found)
        self.stop()
        for daemon in (self.engine, self.containerd):
            peers.clear(daemon.run)
        self.disk.umount()


@pytest.fixture(scope="module", params=["ext4", pytest.param("xfs", marks=pytest.mark.needs("mkfs.xfs"))])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    whole.remove_everything()  # networks are the host's, and the installed engine is there, too
    with tempfile.TemporaryDirectory(dir="/var/lib", prefix="teu-limits-") as base:
        made = House(Path(base), request.param)
        try:
            made.start()
            made.engine("load", "-i", str(peers.archive()))
            yield made
        finally:
            made.close()


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    made = request.getfixturevalue("house") if "house" in request.fixturenames else None
    yield
    if made is not None:
        if found := made.engine("ps", "-aq").split():
            made.engine("rm", "-f", *found)
        if found := made.engine("volume", "ls", "-q").split():
            made.engine("volume", "rm", *found)
        made.no_projects()


in_the_vm = pytest.mark.needs("vm")
patient = pytest.mark.timeout(600)

SIZE_OF = "stat -f -c '%b %S' {} | while read blocks size; do echo $((blocks * size)); done"
FILL = "dd if=/dev/zero of={}/big bs=64k count=4096 2>&1; stat -c '%s' {}/big"


def filled(text: str, limit: int) -> None:
    """The file that FILL has made came close to its end and no further."""
    assert FULL.search(text), text
    written = int(text.split()[-1])
    assert limit // 2 < written <= limit, text


# -- where there are quotas ----------------------------------------------------------------------


@in_the_vm
@patient
def test_a_container_sees_its_limit_and_ends_at_it(house: House) -> None:
    flags = ("--storage-opt", "size=16m")
    assert house.engine.inside(SIZE_OF.format("/"), *flags).strip() == str(16 * MEGABYTE)
    assert "16.0M" in house.engine.inside("df -h /", *flags)
    filled(house.engine.inside(FILL.format("", ""), *flags, code=None), 16 * MEGABYTE)
    free = int(house.engine.inside(SIZE_OF.format("/")).strip())
    assert free > 256 * MEGABYTE, "without a limit there is the whole disk"


@in_the_vm
@patient
def test_each_container_has_its_own(house: House) -> None:
    for name in ("one", "two"):
        house.engine(
            "run", "-d", "--name", name, "--network", "none", "--storage-opt", "size=8m", "busybox", "sleep", "600"
        )
    filled(house.engine("exec", "one", "sh", "-c", FILL.format("", ""), code=None), 8 * MEGABYTE)
    house.engine("exec", "two", "sh", "-c", "dd if=/dev/zero of=/there bs=1M count=4")
    assert sorted(house.disk.projects().values()) == [8 * MEGABYTE] * 2
    # What is freed can be used again.
    house.engine("exec", "one", "sh", "-c", "rm /big; dd if=/dev/zero of=/there bs=1M count=4")
    shown = json.loads(house.engine("inspect", "one"))[0]
    assert shown["HostConfig"]["StorageOpt"] == {"size": "8m"}
    sizes = json.loads(house.engine("inspect", "--size", "one"))[0]
    assert 4 * MEGABYTE <= sizes["SizeRw"] < 5 * MEGABYTE


@in_the_vm
@patient
def test_files_of_the_image_are_changed_as_ever(house: House) -> None:
    """overlayfs copies them up in its working folder, and a file that changes its project cannot be renamed."""
    script = "echo more >>/etc/passwd && mv /etc/passwd /etc/other && mkdir /a && mv /a /b && rm -r /bin/* && echo well"
    assert "well" in house.engine.inside(script, "--storage-opt", "size=16m")


@in_the_vm
@patient
def test_what_else_is_done_with_a_container(house: House, tmp_path: Path) -> None:
    """cp, export, commit, rename, restart; an image made of it has no limit."""
    flags = ("--network", "none", "--storage-opt", "size=16m")
    house.engine("run", "-d", "--name", "one", *flags, "busybox", "sh", "-c", "echo there >/file; sleep 600")
    (tmp_path / "sent").write_bytes(b"x" * MEGABYTE)
    house.engine("cp", str(tmp_path / "sent"), "one:/sent")
    house.engine("cp", "one:/sent", str(tmp_path / "back"))
    assert (tmp_path / "back").stat().st_size == MEGABYTE
    house.engine("export", "-o", str(tmp_path / "all.tar"), "one")
    assert "file" in peers.run("tar", "tf", str(tmp_path / "all.tar")).stdout.split()
    house.engine("commit", "one", "made")
    house.engine("rename", "one", "two")
    house.engine("restart", "-t", "0", "two")
    assert house.engine("exec", "two", "sh", "-c", SIZE_OF.format("/")).strip() == str(16 * MEGABYTE)
    assert list(house.disk.projects().values()) == [16 * MEGABYTE]
    done = house.engine("run", "--rm", "--network", "none", "made", "sh", "-c", f"cat /file; {SIZE_OF.format('/')}")
    assert done.split()[0] == "there" and int(done.split()[1]) > 256 * MEGABYTE
    house.engine("rm", "-f", "two")
    house.engine("rmi", "made")


@in_the_vm
@patient
def test_a_volume_sees_its_limit_and_ends_at_it(house: House) -> None:
    house.engine("volume", "create", "-o", "size=16m", "data")
    assert json.loads(house.engine("volume", "inspect", "data"))[0]["Options"] == {"size": "16m"}
    assert house.engine.inside(SIZE_OF.format("/data"), "-v", "data:/data").strip() == str(16 * MEGABYTE)
    filled(house.engine.inside(FILL.format("/data", "/data"), "-v", "data:/data", code=None), 16 * MEGABYTE)
    house.engine.inside("dd if=/dev/zero of=/elsewhere bs=1M count=32", "-v", "data:/data")
    assert "data" in house.engine("system", "df", "-v")
    house.engine("volume", "rename", "data", "other")
    assert list(house.disk.projects().values()) == [16 * MEGABYTE]


@in_the_vm
@patient
def test_a_volume_of_a_run_has_its_limit(house: House) -> None:
    mount = "type=volume,source=data,target=/data,volume-opt=size=8m"
    filled(house.engine.inside(FILL.format("/data", "/data"), "--mount", mount, code=None), 8 * MEGABYTE)


@in_the_vm
@patient
def test_the_default_is_for_who_says_nothing(house: House) -> None:
    house.engine.stop()
    house.engine.launch("default-storage-size: 32m\n")
    try:
        assert house.engine.inside(SIZE_OF.format("/")).strip() == str(32 * MEGABYTE)
        assert house.engine.inside(SIZE_OF.format("/"), "--storage-opt", "size=8m").strip() == str(8 * MEGABYTE)
        assert int(house.engine.inside(SIZE_OF.format("/"), "--storage-opt", "size=0")) > 256 * MEGABYTE
        house.engine("create", "--name", "one", "busybox")
        assert "StorageOpt" not in json.loads(house.engine("inspect", "one"))[0]["HostConfig"]
    finally:
        house.engine.stop()
        house.engine.launch()


@in_the_vm
@patient
def test_info_tells_of_it(house: House) -> None:
    shown = dict(json.loads(house.engine("info", "--format", "{{json .DriverStatus}}")))
    assert shown["Backing Filesystem"] == ("extfs" if house.disk.kind == "ext4" else "xfs")
    assert shown["Supports size"] == "true"


@in_the_vm
@patient
def test_limits_outlive_the_daemons_and_the_mount(house: House) -> None:
    house.engine("volume", "create", "-o", "size=16m", "data")
    flags = ("--network", "none", "-v", "data:/data", "--storage-opt", "size=8m")
    house.engine(
        "create", "--name", "one", *flags, "busybox", "sh", "-c", SIZE_OF.format("/") + ";" + SIZE_OF.format("/data")
    )
    before = house.disk.projects()
    house.stop()
    house.disk.umount()
    # Without quotas nothing is limited, and that is said: at the start of containerd, and to who asks for a limit.
    house.disk.mount("noquota")
    house.start()
    assert "is not limited any more" in house.containerd.log.read_text()
    for arguments in (
        ("run", "--rm", "--network", "none", "--storage-opt", "size=8m", "busybox", "true"),
        ("volume", "create", "-o", "size=8m", "more"),
        ("start", "-a", "one"),  # the volume's
    ):
        assert "prjquota" in house.engine.result(*arguments, code=None).stderr, arguments
    shown = dict(json.loads(house.engine("info", "--format", "{{json .DriverStatus}}")))
    assert shown["Supports size"] == "false"
    house.stop()
    house.disk.umount()
    house.disk.mount("prjquota")
    house.start()
    assert house.disk.projects() == before
    assert house.engine("start", "-a", "one").split() == [str(8 * MEGABYTE), str(16 * MEGABYTE)]


@in_the_vm
@patient
def test_nothing_is_left_by_daemons_that_die(house: House, rounds: Any) -> None:
    dice = random.Random(12)
    for number in range(rounds(30)):
        name, victim = f"c{number}", dice.choice((house.containerd, house.engine))

        def work(name: str = name) -> None:
            flags = (
                "--network",
                "none",
                "--storage-opt",
                "size=8m",
                "--mount",
                f"source={name},target=/d,volume-opt=size=8m",
            )
            peers.run(*house.engine.client, "create", "--name", name, *flags, "busybox", code=None)
            peers.run(*house.engine.client, "rm", "-v", name, code=None)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(dice.random() * 0.6)
        victim.kill()
        thread.join()
        if victim is house.containerd:
            house.containerd.launch()
        else:
            house.engine.launch()
        # A name that a volume's folder was left under is used again, and so is what is left.
        house.engine("volume", "create", "-o", "size=8m", name)
        limits = house.disk.projects()
        assert set(limits.values()) <= {8 * MEGABYTE, 0}, limits
    for name in house.engine("ps", "-aq").split():
        house.engine("rm", "-f", name)
    house.engine("volume", "rm", *house.engine("volume", "ls", "-q").split())
    house.no_projects()


@in_the_vm
@pytest.mark.needs("dockerd", "docker")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("house", [pytest.param("xfs", marks=pytest.mark.needs("mkfs.xfs"))], indirect=True)
def test_docker_does_the_same(house: House) -> None:
    """dockerd on the same disk, which knows of xfs alone; and neither takes the other's projects."""
    house.engine(
        "run", "-d", "--name", "ours", "--network", "none", "--storage-opt", "size=8m", "busybox", "sleep", "600"
    )
    ours = house.disk.projects()
    said = []
    try:
        with peers.dockerd(options=["--data-root", str(house.disk.point / "docker")]) as daemon:
            daemon.load_busybox()
            for client in (daemon, house.engine):
                common = ["run", "--rm", "--network", "none"]
                done = client.result(*common, "--storage-opt", "size=16m", "busybox", "sh", "-c", SIZE_OF.format("/"))
                client("volume", "create", "-o", "size=16m", "data")
                more = client.result(*common, "-v", "data:/data", "busybox", "sh", "-c", SIZE_OF.format("/data"))
                found = client.result(
                    "run", "--storage-opt", "size=16m", "--network", "none", "--name", "shown", "busybox"
                )
                shown = client("inspect", "-f", "{{json .HostConfig.StorageOpt}}", "shown")
                wrong = client.result("create", "--storage-opt", "sise=16m", "busybox", code=None)
                client("rm", "shown")
                client("volume", "rm", "data")
                told = "unknown option" in wrong.stderr.lower()
                said.append((done.stdout, more.stdout, found.returncode, shown, told))
            assert house.disk.projects().items() >= ours.items()
    finally:
        peers.clear(house.disk.point / "docker")
    assert said[0] == said[1]


# -- where there are none ------------------------------------------------------------------------


@pytest.mark.needs("namespace")
def test_without_quotas_it_is_said_why_and_what_to_do() -> None:
    engine.need_busybox()
    whole.remove_everything()
    done = whole.teu("create", "--name", "limited", "--storage-opt", "size=8m", "busybox", check=False)
    assert done.returncode == 1
    assert "--storage-opt is supported only for overlay over xfs or ext4" in done.stderr and "prjquota" in done.stderr
    assert whole.teu("inspect", "limited", check=False).returncode
    done = whole.teu("volume", "create", "-o", "size=8m", "limited", check=False)
    assert done.returncode == 1 and "quota size requested but no quota support: " in done.stderr
    assert "prjquota" in done.stderr
    assert whole.teu("volume", "inspect", "limited", check=False).returncode
    whole.teu("run", "--rm", "--network", "none", "--storage-opt", "size=0", "busybox", "true")
    shown = dict(json.loads(whole.out("teu", "info", "--format", "{{json .DriverStatus}}")))
    assert shown["Supports size"] == "false" and shown["Backing Filesystem"]


@pytest.mark.needs("namespace", "docker", "dockerd")
def test_docker_refuses_the_same() -> None:
    engine.need_busybox()
    with peers.dockerd() as daemon:
        daemon.load_busybox()
        for arguments, words in (
            (("create", "--storage-opt", "size=8m", "busybox"), "--storage-opt is supported only for overlay over xfs"),
            (("volume", "create", "-o", "size=8m", "limited"), "quota size requested but no quota support"),
            (("volume", "create", "-o", "size=much", "limited"), "invalid size"),
        ):
            theirs = daemon.result(*arguments, code=None)
            ours = whole.teu(*arguments, check=False)
            assert (words in theirs.stderr, words in ours.stderr) == (True, True), (theirs.stderr, ours.stderr)
            assert theirs.returncode == ours.returncode
