# SPDX-License-Identifier: Apache-2.0
"""The engine's defences, one test per known hole of the field (by its CVE number where another engine had it).
Each fails when its defence is taken out. The runtime's own are in test_runc_security, hostile layers in
test_images_registry, the host's loopback in test_networks_bridge."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import images
import pytest
import whole
from whole import out, teu

pytestmark = pytest.mark.needs("fast")

SECRET = "/root/teu-secret"  # a folder of the host
HOSTILE = "hostile"


@pytest.fixture(scope="module", autouse=True)
def image() -> Iterator[None]:
    """Besides busybox, an image whose name service is a library of its own, and that names the host's folder."""
    images.need_busybox()
    program = Path("/usr/bin/busybox").read_bytes()
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in (
            ("bin/busybox", program),
            ("etc/nsswitch.conf", b"passwd: evil\ngroup: evil\n"),
            ("lib/x86_64-linux-gnu/libnss_evil.so.2", b"not a library"),
            ("home/file", b"contents"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uid, entry.gid = len(data), 0o755, 12345, 12345
            archive.addfile(entry, io.BytesIO(data))
        for name, target in (("bin/sh", "busybox"), ("data", SECRET), ("way", SECRET)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    path = Path("/tmp/teu-hostile.tar")
    path.write_bytes(made.getvalue())
    volumes = f"VOLUME /../../../../../..{SECRET} /data"
    teu("import", "-c", volumes, "-c", 'CMD ["/bin/sh"]', str(path), HOSTILE)
    path.unlink()
    yield
    whole.remove_everything()
    teu("rmi", "-f", HOSTILE, check=False)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    whole.remove_everything()
    Path(SECRET).mkdir(exist_ok=True)
    Path(SECRET, "key").write_text("of the host")
    Path(SECRET).chmod(0o700)
    yield
    whole.remove_everything()
    for name in ("key", "planted", "file"):
        Path(SECRET, name).unlink(missing_ok=True)
    Path(SECRET).rmdir()


def untouched() -> None:
    assert sorted(os.listdir(SECRET)) == ["key"]
    assert Path(SECRET).stat().st_mode & 0o7777 == 0o700
    assert Path(SECRET, "key").read_text() == "of the host"


# -- cp ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def traced(pid: int, calls: str) -> Iterator[list[str]]:
    """strace's lines about a process and all that it starts, after the block."""
    lines: list[str] = []
    path = Path("/tmp/teu-strace")
    path.unlink(missing_ok=True)
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-e", f"trace={calls}", "-o", str(path), "-p", str(pid)])
    try:
        whole.eventually(
            "strace has attached",
            lambda: all(
                "TracerPid:\t0" not in status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status")
            ),
        )
        yield lines
    finally:
        tracer.terminate()
        tracer.wait()
        lines += path.read_text(errors="replace").splitlines()
        path.unlink()


@pytest.mark.needs("strace")
def test_cp_loads_nothing_from_the_container(tmp_path: Path) -> None:
    """CVE-2019-14271: once the work begins, nothing is looked up by a path: neither names of users, libraries nor
    modules. What is opened is below a descriptor."""
    teu("create", "--name", "box", HOSTILE)
    (tmp_path / "file").write_text("new")
    with traced(whole.main_pid("teud.service"), "%file") as lines:
        teu("cp", "box:/home", str(tmp_path))
        teu("cp", str(tmp_path / "file"), "box:/home/other")
        teu("export", "-o", str(tmp_path / "all.tar"), "box")
    confined: set[str] = set()
    below, free = [], []
    for line in lines:
        process, _, call = line.strip().partition(" ")
        if re.match(r"\s*chroot\(.* = 0", call):
            confined.add(process)
        elif process in confined and (found := re.match(r'\s*(\w+)\((?:(\d+), )?(?:AT_FDCWD, )?"([^"]*)"', call)):
            _, folder, path = found.groups()
            # Without a folder: the process's own descriptors by their numbers, where it stands.
            (below if folder and not path.startswith("/") or path.isdigit() else free).append(path)
    assert len(confined) >= 3, "cp and export did not confine themselves"
    assert "file" in below and "nsswitch.conf" in below
    assert not free
    # export reads every file once; a second look would be that of the name service.
    assert sum("nsswitch.conf" in line and "O_RDONLY" in line for line in lines) == 1


HOSTILE_MODULES = (
    "traceback.py",
    "linecache.py",
    "tokenize.py",
    "codecs.py",
    "encodings/__init__.py",
    "encodings/evil.py",
    "sitecustomize.py",
    "pwd.py",
    "grp.py",
    "warnings.py",
    "bz2.py",
    "importlib/__init__.py",
)


def test_work_that_fails_runs_nothing_of_the_container() -> None:
    """The interpreter that works on a container's files finds no module of its own there, whatever is raised: a
    traceback would be printed by the container's code, as root of the host."""
    code = b"open('/pwned', 'w').close()\n"
    source = b"# coding: evil\n"  # which codec reads it is its own choice, where a traceback shows a line of it
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for version in ("", ".11", ".12", ".13", ".14"):
            for folder in ("usr/lib/python3", "usr/local/lib/python3"):
                for name in (*HOSTILE_MODULES, "tarfile.py", "json/__init__.py", "site-packages/evil.pth"):
                    data = source if name in ("tarfile.py", "json/__init__.py") else code
                    entry = tarfile.TarInfo(f"{folder}{version}/{name}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    whole.run_detached("box", "sleep", "1000")
    assert daemon_says("PUT", "/containers/box/archive?path=/", made.getvalue())[0] == 200
    # Deeper than an interpreter recurses, and at once, deeper than a path is long; names that are no text.
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for depth in range(1, 1200):
            entry = tarfile.TarInfo("/".join(["d"] * depth))
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
    assert daemon_says("PUT", "/containers/box/archive?path=/tmp", made.getvalue())[0] == 200
    entry = tarfile.TarInfo("/".join(["e"] * 5000) + "/f")
    daemon_says("PUT", "/containers/box/archive?path=/tmp", entry.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    pid = json.loads(out("teu", "inspect", "box"))[0]["State"]["Pid"]
    Path(f"/proc/{pid}/root/tmp/no\udcfftext").touch()
    for header in ({"mtime": "nan"}, {"mtime": "1e300"}, {"uid": "-5"}, {"path": "a\0b"}, {"GNU.sparse.map": "a,b"}):
        entry = tarfile.TarInfo("x")
        entry.pax_headers = header
        daemon_says("PUT", "/containers/box/archive?path=/tmp", entry.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    daemon_says("GET", "/containers/box/archive?path=/a%00b")
    daemon_says("GET", "/containers/box/archive?path=/%ff%fe")
    for target in ("/containers/box/archive?path=/tmp", "/containers/box/export"):
        with contextlib.suppress(http.client.HTTPException, OSError):
            daemon_says("GET", target)
    assert daemon_says("HEAD", "/containers/box/archive?path=/pwned")[0] == 404
    assert not Path("/pwned").exists()


def test_who_works_on_files_can_do_little_else() -> None:
    """Its root is an empty folder, and of the capabilities it has those for owners, modes and devices."""
    whole.run_detached("box", "sh", "-c", "head -c 10000000 /dev/zero >/large; sleep 1000")
    whole.eventually("it is large", lambda: teu("exec", "box", "pidof", "sleep", check=False).returncode == 0)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("/run/teu/teud.sock")
        connection.sendall(b"GET /v1.45/containers/box/export HTTP/1.1\r\nHost: d\r\n\r\n")
        connection.recv(512)

        def at_work() -> list[Path]:
            return [
                process
                for process in Path("/proc").iterdir()
                if process.name.isdigit()
                and any(word.endswith("/visitor.py") for word in whole.argv_of(int(process.name)))
            ]

        found = whole.eventually("somebody works on the files", at_work)
        assert isinstance(found, list) and len(found) == 1
        process = found[0]
        whole.eventually("it has confined itself", lambda: os.listdir(process / "root") == [])
        with pytest.raises(OSError):
            (process / "root" / "planted").touch()
        assert os.readlink(process / "cwd") == f"/proc/{process.name}/fd"
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, MKNOD, SETFCAP
        may = sum(1 << bit for bit in (0, 1, 2, 3, 4, 27, 31))
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == may
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"


def daemon_says(method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
    """teud's answer."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(100)
    connection.sock.connect("/run/teu/teud.sock")
    try:
        connection.request(method, f"/v1.45{target}", body, {"Content-Type": "application/x-tar"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_cp_does_not_follow_links_out_of_the_container(tmp_path: Path) -> None:
    """CVE-2018-15664, CVE-2021-41089: a link to a folder that only the host has."""
    teu("create", "--name", "box", HOSTILE)
    (tmp_path / "planted").write_text("x")
    assert teu("cp", "box:/way/key", str(tmp_path), check=False).returncode != 0
    assert not (tmp_path / "key").exists()
    teu("cp", str(tmp_path / "planted"), "box:/way/", check=False)
    teu("cp", str(tmp_path), "box:/way", check=False)
    untouched()


def test_cp_while_the_container_swaps_folder_and_link(tmp_path: Path, rounds: Callable[[int], int]) -> None:
    """CVE-2018-15664: the path is checked and used in one: what is a folder now may be a link a moment later."""
    swap = f"mkdir -p /x{SECRET} /y; ln -s / /y/l; while :; do mv /x /z; mv /y/l /x; mv /x /y/l; mv /z /x; done"
    whole.run_detached("box", "sh", "-c", swap)
    (tmp_path / "planted").write_text("x")
    for _ in range(rounds(12)):
        teu("cp", str(tmp_path / "planted"), f"box:/x{SECRET}/", check=False)
        teu("cp", f"box:/x{SECRET}/key", str(tmp_path), check=False)
        assert not (tmp_path / "key").exists()
        untouched()


# -- images --------------------------------------------------------------------------------------------


def test_volumes_of_an_image_show_nothing_of_the_host() -> None:
    """CVE-2022-23648: what an image has where a volume goes is copied into it; that is looked for in the image only,
    whatever `..` and links say."""
    done = teu("run", "--rm", HOSTILE, "/bin/busybox", "sh", "-c", f"busybox ls -A /data/ {SECRET}", check=False)
    assert "key" not in done.stdout
    name = out("teu", "create", HOSTILE)
    points = json.loads(out("teu", "inspect", name))[0]["Mounts"]
    assert {point["Destination"] for point in points} >= {SECRET, "/data"}
    for point in points:
        assert not os.listdir(point["Source"]), point
    untouched()


def test_layers_do_not_change_modes_through_links() -> None:
    """CVE-2021-32760: a hard link to a link, whose mode is that of the file the link leads to."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, f"{SECRET}/key"
        archive.addfile(link)
        for number, kind in enumerate((tarfile.LNKTYPE, tarfile.SYMTYPE)):
            entry = tarfile.TarInfo(f"hard{number}")
            entry.type, entry.linkname, entry.mode = kind, "link", 0o4777
            entry.pax_headers = {"SCHILY.xattr.user.test": "x"}
            archive.addfile(entry)
    Path(SECRET, "key").chmod(0o600)
    path = Path("/tmp/teu-links.tar")
    path.write_bytes(made.getvalue())
    try:
        teu("import", str(path), "links:1", check=False)
        assert Path(SECRET, "key").stat().st_mode & 0o7777 == 0o600
        assert not os.listxattr(Path(SECRET, "key"))
        untouched()
    finally:
        path.unlink()
        teu("rmi", "-f", "links:1", check=False)


# -- what a user of the host reaches ---------------------------------------------------------------------


def as_nobody(code: str) -> str:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_other_users_do_not_reach_into_containers() -> None:
    """CVE-2021-41091: set-user-id programs of a container's root are not for the users of the host."""
    container = whole.run_detached("box", "sleep", "600")
    pid = int(out("teu", "inspect", "-f", "{{.State.Pid}}", "box"))
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    options = next(line for line in mounts if line.split()[4] == "/")
    upper = re.search(r"upperdir=([^,]+)", options)
    places = [f"/var/lib/teu/engine/containers/{container}"]
    for database in ("/var/lib/teu/engine/engine.db", "/var/lib/teu/containerd/metadata.db"):
        places += [database, f"{database}-wal"]  # with the containers' environments
    if upper:
        places.append(upper[1])
    for kind in ("content/blobs/sha256", "snapshots/overlayfs"):
        places += map(str, Path("/var/lib/teu/containerd").glob(f"**/{kind}"))
    bundle = f"/run/teu/containerd/io.containerd.runtime.v2.task/teu/{container}"
    places += [f"{bundle}/config.json", f"{bundle}/rootfs/bin/busybox"]
    assert len(places) > 5
    for place in places:
        assert os.path.exists(place) or "rootfs" in place, place
        answer = as_nobody(f"import os; print(os.listdir({place!r}) if os.path.isdir({place!r}) else open({place!r}))")
        assert re.search(r"PermissionError|FileNotFoundError", answer), (place, answer)


def test_no_abstract_sockets() -> None:
    """CVE-2020-15257: a container with the host's network would reach them."""
    whole.run_detached("box", "sleep", "600", flags=("--network", "host"))
    own = {str(pid) for name in ("teud", "teu-containerd", whole.SHIM) for pid in whole.processes(name)}
    inodes = set()
    for pid in own:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if found := re.match(r"socket:\[(\d+)\]", os.readlink(entry)):
                    inodes.add(found[1])
    assert inodes
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in inodes and len(fields) > 7:
            assert not fields[7].startswith("@"), line


# -- what a container's process is allowed -----------------------------------------------------------------


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_capabilities_and_groups(user: str) -> None:
    """CVE-2022-24769: nothing is inheritable. CVE-2022-36109: the group is among the supplementary ones."""
    whole.run_detached("box", "sleep", "600", flags=("-u", "0"))
    for argv in (("run", "--rm", "-u", user, "busybox"), ("exec", "-u", user, "box")):
        status = dict(
            line.split(":\t", 1) for line in out("teu", *argv, "cat", "/proc/self/status").splitlines() if ":\t" in line
        )
        assert int(status["CapInh"], 16) == 0
        assert int(status["CapAmb"], 16) == 0
        assert (int(status["CapEff"], 16) != 0) == (user == "root")
        assert status["Gid"].split()[0] in status["Groups"].split()


# -- networks ------------------------------------------------------------------------------------------


ADVERTISE = """
import socket, struct, time
index = socket.if_nametoindex("eth0")
sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
for _ in range(100):
    try:
        sock.sendto(message, ("ff02::1", 0, 0, index))
        break
    except OSError:  # the address is still looked at for duplicates
        time.sleep(0.1)
print(open("/proc/net/if_inet6").read())
"""


@pytest.mark.parametrize("network", ["bridge", "front"])
def test_router_advertisements_of_containers_are_not_believed(network: str) -> None:
    """CVE-2020-13401: a container with raw sockets may not become the host's router."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    teu("network", "create", "front")
    try:
        whole.run_detached("box", "sleep", "600", flags=("--network", network))
        pid = out("teu", "inspect", "-f", "{{.State.Pid}}", "box")
        identity = out("teu", "network", "inspect", "-f", "{{.Id}}", network)
        bridge = "teu0" if network == "bridge" else f"teu-{identity[:11]}"
        settings = Path(f"/proc/sys/net/ipv6/conf/{bridge}")
        assert (settings / "accept_ra").read_text().strip() == "0"
        # The kernel itself says so, too: with or without forwarding.
        (settings / "forwarding").write_text("0")
        # Without an address of IPv6 its interface has none of it, until who may says otherwise.
        enable = "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6"
        whole.call("nsenter", "-t", pid, "-n", "sh", "-c", enable)
        argv = ["nsenter", "-t", pid, "-n", "/usr/bin/python3", "-c", ADVERTISE]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert "fe80" in done.stdout, done.stderr
        assert "default" not in out("ip", "-6", "route", "show", "dev", bridge)
    finally:
        whole.remove_everything()
        teu("network", "rm", "front")


class Names:
    """A name server of the host that writes down what it is asked."""

    def __init__(self, address: str) -> None:
        self.asked: list[bytes] = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = self.socket.recvfrom(512)
                self.asked.append(data)
                self.socket.sendto(data[:2] + b"\x81\x83" + data[4:], peer)


def test_internal_networks_ask_no_name_server() -> None:
    """CVE-2024-29018: names carry data out of a network that has no way out."""
    before = Path("/etc/resolv.conf").read_text()
    server = Names("127.0.0.77")
    teu("network", "create", "open")
    teu("network", "create", "--internal", "shut")
    try:
        Path("/etc/resolv.conf").write_text("nameserver 127.0.0.77\n")
        teu("run", "--rm", "--network", "open", "busybox", "nslookup", "told.example.org", check=False)
        assert any(b"told" in question for question in server.asked)
        done = teu("run", "--rm", "--network", "shut", "busybox", "nslookup", "secret.example.org", check=False)
        assert done.returncode != 0
        assert not any(b"secret" in question for question in server.asked)
    finally:
        Path("/etc/resolv.conf").write_text(before)
        server.socket.close()
        teu("network", "rm", "open", "shut", check=False)


@contextlib.contextmanager
def far() -> Iterator[tuple[str, ...]]:
    """Another machine, by a network namespace: 203.0.113.2 behind near0. Gives what runs a command there."""
    try:
        for line in (
            "netns add far",
            "link add near0 type veth peer name far0 netns far",
            "addr add 203.0.113.1/24 dev near0",
            "link set near0 up",
            "-n far addr add 203.0.113.2/24 dev far0",
            "-n far link set far0 up",
            "-n far route add default via 203.0.113.1",
        ):
            whole.call("ip", *line.split())
        yield ("ip", "netns", "exec", "far")
    finally:
        whole.call("ip", "netns", "del", "far", check=False)


SERVE = ("sh", "-c", "mkdir -p /www; echo served > /www/index.html; exec httpd -f -h /www")


def test_the_hosts_firewall_has_the_last_word() -> None:
    """moby#22054: what the host's own rules drop stays dropped, published or not; and a packet from outside for an
    address of a container, or for the host's loopback (CVE-2020-8558), does not come in at all."""
    whole.run_detached("web", *SERVE, flags=("-p", "8088:80"))
    address = out("teu", "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")
    with far() as there:
        get = (*there, "busybox", "timeout", "2", "wget", "-qO-")
        url = "http://203.0.113.1:8088/"
        whole.eventually("the far machine is served", lambda: whole.call(*get, url, check=False).stdout)
        whole.call("ip", "-n", "far", "route", "add", "127.0.0.99/32", "via", "203.0.113.1", "dev", "far0", check=False)
        assert not whole.call(*get, f"http://{address}/", check=False).stdout
        rules = "add table inet host; add chain inet host f { type filter hook forward priority 10; }"
        try:
            whole.call("nft", f"{rules}; add rule inet host f iifname near0 ct original proto-dst 8088 drop")
            assert not whole.call(*get, url, check=False).stdout
        finally:
            whole.call("nft", "delete table inet host")
        assert whole.call(*get, url, check=False).stdout == "served\n"


@contextlib.contextmanager
def swapped(folder: Path, target: Path) -> Iterator[None]:
    """A folder that is now itself and now a link to the target, long enough for one look at it but not for two."""
    aside, done = folder.with_name("aside"), threading.Event()

    def swap() -> None:
        while not done.is_set():
            folder.rename(aside)
            folder.symlink_to(target)
            time.sleep(0.003)
            folder.unlink()
            aside.rename(folder)
            time.sleep(0.003)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        yield
    finally:
        done.set()
        swapping.join()


@pytest.mark.parametrize("copied", [False, True])
def test_a_volumes_part_that_becomes_a_link(rounds: Callable[[int], int], copied: bool, tmp_path: Path) -> None:
    """CVE-2017-1002101 of kubelet: who shares a volume turns a folder in it into a link to the host's while another
    container is started with that folder, or while what the image has at its place is copied into it."""
    host = tmp_path / "host"
    host.mkdir()
    if not copied:
        (host / "secret").touch()
    before = os.listdir(host)
    seen: list[str] = []
    for number in range(rounds(10), -1, -1):
        teu("volume", "create", "shared-e")
        part = Path(out("teu", "volume", "inspect", "-f", "{{.Mountpoint}}", "shared-e").strip(), "part")
        part.mkdir()
        if not copied:
            (part / "own").touch()
        mount = f"type=volume,src=shared-e,dst=/home,volume-subpath=part{'' if copied else ',volume-nocopy'}"
        with swapped(part, host) if number else contextlib.nullcontext():
            started = teu(
                "run",
                "--name",
                "box",
                "--network",
                "none",
                "--mount",
                mount,
                HOSTILE,
                "busybox",
                "ls",
                "/home",
                check=False,
            )
        seen += started.stdout.split()
        teu("rm", "-f", "-v", "box", check=False)
        teu("volume", "rm", "shared-e")
        assert os.listdir(host) == before
        assert ".parts" not in Path("/proc/self/mounts").read_text()
    assert "secret" not in seen
    assert ("file" if copied else "own") in started.stdout
    print(f"{len(seen)} of {rounds(10) + 1} starts found the folder itself")


MANY = "many-files"


@pytest.fixture(scope="module")
def many() -> Iterator[str]:
    """An image with so many files in /data/sub that a copy of it takes a while."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for number in range(4000):
            entry = tarfile.TarInfo(f"data/sub/f{number}")
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"own"))
    path = Path("/tmp/teu-many.tar")
    path.write_bytes(made.getvalue())
    teu("import", "-c", 'CMD ["/none"]', str(path), MANY)
    path.unlink()
    yield MANY
    whole.remove_everything()
    teu("rmi", "-f", MANY)


@pytest.fixture
def raced() -> Iterator[str]:
    yield "raced"
    whole.remove_everything()
    teu("volume", "rm", "-f", "raced")


def test_a_folder_that_becomes_a_link_while_a_volume_is_filled(many: str, raced: str, tmp_path: Path) -> None:
    """Who has the volume already moves the new folder away and puts a link to the host there."""
    host = tmp_path / "host"
    host.mkdir()
    teu("volume", "create", raced)
    data = Path(out("teu", "volume", "inspect", "-f", "{{.Mountpoint}}", raced).strip())
    done = threading.Event()

    def swap() -> None:
        while not done.is_set() and not (data / "sub").is_dir():
            pass
        with contextlib.suppress(FileNotFoundError):
            (data / "sub").rename(data / "aside")
            (data / "sub").symlink_to(host)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        created = teu("create", "--name", "box", "-v", f"{raced}:/data", many, check=False)
    finally:
        done.set()
        swapping.join()
    assert (data / "sub").is_symlink(), "the folder was not swapped: nothing is tested"
    assert os.listdir(host) == []
    assert created.returncode == 0 or "failed to populate volume" in created.stderr, created.stderr
    assert "internal error" not in created.stderr


def test_a_volume_is_in_use_before_its_container_is(many: str, raced: str) -> None:
    """Neither rm nor prune takes a volume from a create that is under way."""
    removals: list[subprocess.CompletedProcess[str]] = []
    done = threading.Event()

    def remove() -> None:
        data = Path("/var/lib/teu/engine/volumes", raced, "_data/sub")
        while not done.is_set() and not data.is_dir():
            time.sleep(0.001)
        removals.append(teu("volume", "rm", raced, check=False))
        removals.append(teu("volume", "prune", "-af", check=False))

    removing = threading.Thread(target=remove)
    removing.start()
    try:
        teu("create", "--name", "box", "-v", f"{raced}:/data", many)
    finally:
        done.set()
        removing.join()
    assert "volume is in use" in removals[0].stderr
    assert raced not in removals[1].stdout
    data = Path(out("teu", "volume", "inspect", "-f", "{{.Mountpoint}}", raced).strip())
    assert len(os.listdir(data / "sub")) == 4000


# clone3 with set_tid: the program's own child gets the number, and sleeps; the program says when it is there.
WITH_PID = """
import ctypes, os, signal, struct, sys
wanted = ctypes.c_int(int(sys.argv[1]))
arguments = struct.pack("=4Q", 0, 0, 0, 0) + struct.pack("=6Q", signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1)
child = ctypes.CDLL(None, use_errno=True).syscall(435, arguments, ctypes.c_size_t(len(arguments)))
if child == 0:
    os.execv("/bin/sleep", ["sleep", "600"])
assert child == wanted.value, ctypes.get_errno()
print("there", flush=True)
sys.stdin.read()
os.kill(child, 9)
os.waitpid(child, 0)
"""


@contextlib.contextmanager
def another_process(pid: int) -> Iterator[None]:
    """One of the host that has this number."""
    parent = subprocess.Popen(["python3", "-c", WITH_PID, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"there\n"
        yield
    finally:
        parent.communicate()


def test_a_number_that_is_another_processs_by_now(tmp_path: Path) -> None:
    """The container's first process has ended, containerd is too busy to say so, and a process of the host has its
    number: that one's root, namespaces and cgroup are not the container's."""
    planted = Path("/planted-by-number")
    (tmp_path / "file").write_text("x")
    whole.run_detached("box", "sleep", "600", flags=("--ipc", "shareable"))
    teu("create", "--name", "pid", "--pid", "container:box", whole.IMAGE, "true")
    teu("create", "--name", "ipc", "--ipc", "container:box", whole.IMAGE, "true")
    pid = json.loads(out("teu", "inspect", "box"))[0]["State"]["Pid"]
    busy = whole.main_pid("teu-containerd.service")
    os.kill(busy, 19)
    try:
        os.kill(pid, 9)
        whole.eventually("it is reaped", lambda: not os.path.exists(f"/proc/{pid}"))
        with another_process(pid):
            teu("cp", str(tmp_path / "file"), f"box:{planted}")
            assert not planted.exists()
            assert "root" not in teu("cp", "box:/etc/machine-id", "-", check=False).stdout
            shown = out(
                "curl", "-s", "--unix-socket", "/run/teu/teud.sock", "http://x/containers/box/stats?stream=0&one-shot=1"
            )
            assert "networks" not in json.loads(shown)
            for name in ("pid", "ipc"):
                assert "is not running" in teu("start", name, check=False, timeout=20).stderr
    finally:
        os.kill(busy, 18)
        planted.unlink(missing_ok=True)
    whole.eventually("the end is known", lambda: not json.loads(out("teu", "inspect", "box"))[0]["State"]["Running"])
    assert "planted" in teu("cp", f"box:{planted}", "-").stdout
