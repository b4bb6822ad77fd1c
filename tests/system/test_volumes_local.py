# SPDX-License-Identifier: Apache-2.0
"""Volumes through the whole house: named, anonymous, binds, tmpfs, copy-up, options, what is left."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import threading
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


# -- volumes that are mounted: the host's own folders are behind them ------------------------------------------------


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Path]:
    """A folder of the host, of the same file system as the volumes: no mount of it changes st_dev."""
    folder = ROOT.parent / "behind-a-volume"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/precious").write_text("of the host\n")
    yield folder
    assert (folder / "sub/precious").read_text() == "of the host\n"
    shutil.rmtree(folder)


def bound(name: str, folder: Path) -> None:
    teu("volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", f"device={folder}", name)


def stacked(name: str) -> int:
    """How many mounts are on a volume's place."""
    place = f" {ROOT}/{name}/_data "
    return sum(place in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def kill_teud() -> None:
    os.kill(whole.main_pid("teud.service"), 9)
    whole.eventually("teud is back", lambda: teu("version", check=False).returncode == 0)


@pytest.mark.needs("fast")
def test_what_is_behind_a_volume_outlives_it(behind: Path) -> None:
    bound("bound", behind)
    for _ in range(2):
        assert box("cat", "/v/sub/precious", flags=("-v", "bound:/v")) == "of the host"
        assert stacked("bound") == 0, "the last container has gone, its volume stays mounted"
    whole.run_detached("one", "sleep", "600", flags=("-v", "bound:/v"))
    whole.run_detached("two", "sleep", "600", flags=("-v", "bound:/v"))
    assert stacked("bound") == 1
    teu("rm", "-f", "one")
    assert stacked("bound") == 1
    assert out("teu", "exec", "two", "cat", "/v/sub/precious") == "of the host"
    teu("rm", "-f", "-v", "two")
    assert stacked("bound") == 0
    teu("volume", "rm", "bound")


@pytest.mark.needs("fast")
def test_a_stale_mount_is_no_part_of_its_volume(behind: Path) -> None:
    """teud may die between any two steps: a volume may be found mounted, even more than once."""
    bound("bound", behind)
    for _ in range(2):
        whole.call("mount", "--bind", str(behind), str(ROOT / "bound/_data"))
    assert box("cat", "/v/sub/precious", flags=("-v", "bound:/v")) == "of the host"
    for _ in range(2):
        whole.call("mount", "--bind", str(behind), str(ROOT / "bound/_data"))
    assert "bound" not in teu("volume", "prune", "-af").stdout, "it is of others"
    teu("volume", "rm", "bound")
    assert not (ROOT / "bound").exists()
    assert stacked("bound") == 0


@pytest.mark.needs("fast")
def test_a_mounted_volume_and_a_killed_daemon(behind: Path) -> None:
    bound("bound", behind)
    whole.run_detached("runs", "sleep", "600", flags=("-v", "bound:/v"))
    kill_teud()
    assert stacked("bound") == 1
    assert box("cat", "/v/sub/precious", flags=("-v", "bound:/v")) == "of the host"
    assert stacked("bound") == 1, "a container that ran before the daemon does has it"
    teu("rm", "-f", "runs")
    assert stacked("bound") == 0
    # Mounted, and nobody's: as if it had died between the mount and the start, or between the exit and the unmount.
    whole.call("mount", "--bind", str(behind), str(ROOT / "bound/_data"))
    kill_teud()
    whole.eventually("the volume that nobody uses is unmounted", lambda: stacked("bound") == 0)
    teu("volume", "rm", "bound")


@pytest.mark.needs("fast")
def test_a_removal_that_was_cut_off(behind: Path) -> None:
    """Written down as being removed, still mounted: the next start unmounts it first."""
    bound("bound", behind)
    whole.call("systemctl", "stop", "teud.service", "teud.socket")
    with sqlite3.connect(ROOT.parent / "engine.db") as database:
        (text,) = database.execute("SELECT data FROM volumes WHERE name='bound'").fetchone()
        record = {**json.loads(text), "Removing": True}
        database.execute("UPDATE volumes SET data=? WHERE name='bound'", (json.dumps(record),))
    database.close()
    whole.call("mount", "--bind", str(behind), str(ROOT / "bound/_data"))
    whole.call("systemctl", "start", "teud.socket")
    assert out("teu", "volume", "ls", "-q") == ""
    assert stacked("bound") == 0
    assert not (ROOT / "bound").exists()


@pytest.mark.needs("fast")
def test_what_is_behind_a_volume_is_filled(tmp_path: Path) -> None:
    """A new, empty folder of the host gets what the image has there, as a plain volume does."""
    (tmp_path / "empty").mkdir()
    bound("bound", tmp_path / "empty")
    teu("create", "--name", "cc", "-v", "bound:/etc", whole.IMAGE, "true")
    assert "passwd" in os.listdir(tmp_path / "empty")
    assert stacked("bound") == 0
    assert os.listdir(ROOT / "bound/_data") == []
    bound("missing", tmp_path / "missing")
    done = teu("create", "-v", "missing:/etc", whole.IMAGE, "true", check=False)
    assert "failed to populate volume: error while mounting volume" in done.stderr
    assert "no such file or directory" in done.stderr


@pytest.mark.needs("fast")
def test_no_removal_goes_through_a_mount(behind: Path) -> None:
    """Something of the host's that was mounted below a plain volume: the volume cannot be removed, and says why."""
    teu("volume", "create", "plain")
    place = ROOT / "plain/_data/below"
    place.mkdir()
    whole.call("mount", "--bind", str(behind), str(place))
    try:
        done = teu("volume", "rm", "plain", check=False)
        assert done.returncode == 1
        assert "mount" in done.stderr
        assert out("teu", "volume", "ls", "-q") == "plain"
    finally:
        whole.call("umount", str(place))
    teu("volume", "rm", "plain")


# -- parts of volumes --------------------------------------------------------------------------------------------------


def part(name: str, subpath: str, destination: str) -> tuple[str, str]:
    return "--mount", f"type=volume,src={name},dst={destination},volume-subpath={subpath}"


@pytest.mark.needs("fast")
def test_a_part_that_is_a_file() -> None:
    box("sh", "-c", "echo foo >/v/f; echo me:x:1234:5678::/home/me:/bin/sh >/v/passwd", flags=("-v", "files:/v"))
    assert box("cat", "/x", flags=part("files", "f", "/x")) == "foo"
    assert box("id", "-u", flags=(*part("files", "passwd", "/etc/passwd"), "-u", "me")) == "1234"
    teu("create", "--name", "stopped", *part("files", "f", "/x"), whole.IMAGE, "cat", "/x")
    assert teu("cp", "stopped:/x", "-").stdout.count("foo\n") == 1
    assert out("teu", "start", "-a", "stopped") == "foo"


@pytest.mark.needs("fast")
def test_what_is_mounted_in_a_part_stays_mounted() -> None:
    """The place that a part is bound to for a start is taken away, and nothing of the volume with it, though mounts are
    shared there, as they are on a host with systemd."""
    box("mkdir", "-p", "/v/sub/inner", flags=("-v", "parts:/v"))
    top, inner = ROOT / "parts", ROOT / "parts/_data/sub/inner"
    whole.call("mount", "--bind", "--make-shared", str(top), str(top))
    try:
        whole.call("mount", "-t", "tmpfs", "none", str(inner))
        (inner / "file").touch()
        for _ in range(2):
            assert box("ls", "/m/inner", flags=part("parts", "sub", "/m")) == "file"
        assert os.path.ismount(inner)
    finally:
        whole.call("umount", "--recursive", str(top))


@pytest.mark.needs("fast")
def test_a_stopped_container_shows_no_more_of_a_volume_than_a_running_one(tmp_path: Path) -> None:
    box("sh", "-c", "mkdir /v/sub; touch /v/outside /v/sub/in", flags=("-v", "parts:/v"))
    teu("create", "--name", "sp", *part("parts", "sub", "/m"), whole.IMAGE, "sleep", "600")
    (tmp_path / "new").touch()
    for state in ("created", "running"):
        shown = teu("cp", "sp:/m", "-").stdout
        assert "m/in" in shown, state
        assert "outside" not in shown, state
        teu("cp", str(tmp_path / "new"), f"sp:/m/{state}")
        teu("start", "sp")
    assert sorted(os.listdir(ROOT / "parts/_data")) == ["outside", "sub"]
    assert sorted(os.listdir(ROOT / "parts/_data/sub")) == ["created", "in", "running"]


@pytest.mark.needs("fast")
def test_a_stopped_containers_mounted_volume(behind: Path, tmp_path: Path) -> None:
    """cp sees what is behind it, as the container does; a read-only mount stays so; a look-up leaves no trace."""
    bound("bound", behind)
    teu("create", "--name", "cc", "-v", "bound:/v", "-v", "bound:/ro:ro", whole.IMAGE, "cat", "/v/new")
    (tmp_path / "new").write_text("came by cp\n")
    assert "of the host" in teu("cp", "cc:/v/sub/precious", "-").stdout
    assert out("teu", "diff", "cc") == ""
    assert "ead-only" in teu("cp", str(tmp_path / "new"), "cc:/ro/new", check=False).stderr
    teu("cp", str(tmp_path / "new"), "cc:/v/new")
    assert (behind / "new").read_text() == "came by cp\n"
    assert stacked("bound") == 0
    assert out("teu", "start", "-a", "cc") == "came by cp"


# -- a server that does not answer ------------------------------------------------------------------------------------


class Silent:
    """A file system (FUSE) whose server says what its top folder is, and never answers anything else."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        self.device = os.open("/dev/fuse", os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        data = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if libc.mount(b"silent", str(place).encode(), b"fuse", 0, data.encode()):
            raise OSError(ctypes.get_errno(), "mount of a FUSE file system")
        self.asked = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self.device, 1 << 17)
            except OSError:
                return
            opcode, unique = struct.unpack_from("=IQ", request, 4)
            if opcode == 26:  # INIT
                answer = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 4096, 0, 0, 0, 0)
            elif opcode == 3:  # GETATTR
                answer = struct.pack("=QII6Q3I7I", 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
            else:
                self.asked.set()
                continue
            os.write(self.device, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)

    def end(self) -> None:
        """Who waits gets an error."""
        whole.call("umount", "-l", str(self.place))
        for connection in Path("/sys/fs/fuse/connections").glob("*/abort"):
            connection.write_text("1")
        os.close(self.device)
        self.place.rmdir()


@pytest.mark.needs("fast")
def test_a_silent_server_holds_up_nobody_else(tmp_path: Path) -> None:
    """One container's mount waits for its server in the kernel; all others are looked at and started meanwhile."""
    before = set(Path("/tmp").glob("teud-*"))
    kill_teud()
    silent = Silent(tmp_path / "silent")
    looking = None
    try:
        flags = ("-v", f"{silent.place}:/h", "-v", "own:/h/below")
        teu("create", "--name", "waits", *flags, whole.IMAGE, "true")
        teu("create", "--name", "other", "-v", "own:/v", whole.IMAGE, "true")
        looking = subprocess.Popen(
            ["teu", "cp", "waits:/etc/passwd", "-"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert silent.asked.wait(30)
        assert "root" in teu("cp", "other:/etc/group", "-", timeout=20).stdout
        assert teu("start", "-a", "other", timeout=20).stderr == ""
        assert looking.poll() is None
    finally:
        silent.end()
        if looking is not None:
            looking.communicate(timeout=60)
    assert set(Path("/tmp").glob("teud-*")) == before, "a start leaves something behind"


# -- what belongs into a folder that a volume is mounted over ---------------------------------------------------------


@pytest.mark.needs("fast")
def test_a_volume_over_etc_does_not_hide_the_names(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("mine\n")
    look = "cat /etc/own; grep -c localhost /etc/hosts; cat /etc/hostname; test -f /etc/resolv.conf && echo there"
    for mount in (("-v", f"{tmp_path}:/etc"), ("-v", "etc:/etc", "-v", f"{tmp_path}/own:/etc/own")):
        shown = box("sh", "-c", look, flags=(*mount, "--hostname", "named")).split("\n")
        assert shown == ["mine", "2", "named", "there"]
    nested = ("--tmpfs", "/a/b/c", "-v", f"{tmp_path}:/a/b", "-v", "top:/a")
    assert box("sh", "-c", "cat /a/b/own; grep -c ' /a/b/c ' /proc/mounts", flags=nested).split() == ["mine", "1"]
    host = box("sh", "-c", "grep -c ' /dev/pts ' /proc/mounts; ls -d /dev/shm", flags=("-v", "/dev:/dev"))
    assert host.split() == ["1", "/dev/shm"]


@pytest.mark.needs("fast")
def test_a_read_only_root_has_read_only_names(tmp_path: Path) -> None:
    write = "for f in hosts resolv.conf hostname; do (echo evil >>/etc/$f) 2>/dev/null && echo wrote $f; done; true"
    assert box("sh", "-c", write, flags=("--read-only",)) == ""
    assert box("sh", "-c", write, flags=("--read-only", "-v", "etc:/etc")) == ""
    assert box("sh", "-c", write) == "wrote hosts\nwrote resolv.conf\nwrote hostname"
    (tmp_path / "hosts").touch()  # what was asked for is as it was asked for
    assert box("sh", "-c", write, flags=("--read-only", "-v", f"{tmp_path}/hosts:/etc/hosts")) == "wrote hosts"
