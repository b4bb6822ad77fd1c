# SPDX-License-Identifier: Apache-2.0
"""teu-runc: namespaces, mounts, devices and the root, by what the container reports."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runc_bundle import Bundle, exec_in, full_proc, new_bundle

NAMES = {"pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts", "mount": "mnt", "cgroup": "cgroup", "time": "time"}


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        yield made


def mounts_of(said: str) -> dict[str, list[str]]:
    """Place -> the fields of /proc/self/mountinfo, the last one at a place."""
    return {line.split()[4]: line.split() for line in said.splitlines()}


# -- namespaces -----------------------------------------------------------------------------------------


def test_every_namespace_is_new_or_the_hosts(bundle: Bundle) -> None:
    bundle.namespace("time")
    script = f"for n in {' '.join(NAMES.values())}; do readlink /proc/self/ns/$n; done"
    ours = [os.readlink(f"/proc/self/ns/{name}") for name in NAMES.values()]
    assert not set(bundle.says(script).split("\n")) & set(ours)
    for kind, name in NAMES.items():
        if kind == "mount":
            continue
        bundle.without_namespace(kind)
        if kind in ("network", "uts"):
            bundle.config.pop("hostname", None)
        assert os.readlink(f"/proc/self/ns/{name}") in bundle.says(script).split("\n"), kind


def test_namespaces_by_path(bundle: Bundle) -> None:
    other = bundle.detached()
    pid = bundle.pid(other)
    for kind in ("network", "ipc", "uts", "pid", "cgroup"):
        bundle.namespace(kind, f"/proc/{pid}/ns/{NAMES[kind]}")
    del bundle.config["hostname"]
    script = "for n in net ipc uts pid cgroup; do readlink /proc/self/ns/$n; done; ps | grep -c 'sleep 1000'"
    said = bundle.says(script).split("\n")
    assert said[:5] == [os.readlink(f"/proc/{pid}/ns/{name}") for name in ("net", "ipc", "uts", "pid", "cgroup")]
    assert int(said[5]) >= 1, "its processes can be seen"


def test_a_namespace_path_of_another_kind_is_refused(bundle: Bundle) -> None:
    bundle.namespace("network", "/proc/self/ns/uts")
    assert "another kind" in bundle.refuses()
    bundle.namespace("network", "/etc/hostname")
    assert "not a namespace" in bundle.refuses()
    bundle.namespace("network", "/nosuch")
    assert "no such file" in bundle.refuses().lower()


def test_time_offsets(bundle: Bundle) -> None:
    bundle.namespace("time")
    bundle.linux["timeOffsets"] = {"monotonic": {"secs": 7881, "nanosecs": 2718281}, "boottime": {"secs": 1337}}
    said = bundle.says("cat /proc/self/timens_offsets").split()
    assert said == ["monotonic", "7881", "2718281", "boottime", "1337", "0"]
    id = bundle.detached()
    assert exec_in(bundle, id, "cat /proc/self/timens_offsets").split()[1] == "7881"


def test_loopback_is_up(bundle: Bundle) -> None:
    assert "127.0.0.1" in bundle.says("ip addr show lo")


def test_user_namespace(bundle: Bundle) -> None:
    bundle.map_ids(200000, 65536)
    said = bundle.says("id -u; cat /proc/self/uid_map /proc/self/gid_map; touch /file; stat -c %u:%g /file /dev/pts")
    assert said.split("\n")[0] == "0"
    assert said.split("\n")[1].split() == ["0", "200000", "65536"]
    assert said.split("\n")[3:] == ["0:0", "0:5"] or said.split("\n")[3:] == ["0:0", "0:0"]
    assert (bundle.rootfs / "file").stat().st_uid == 200000
    id = bundle.detached()
    assert exec_in(bundle, id, "id -u; cat /proc/self/uid_map").split() == ["0", "0", "200000", "65536"]
    assert Path(f"/proc/{bundle.pid(id)}/uid_map").read_text().split() == ["0", "200000", "65536"]


def test_user_namespace_by_path(bundle: Bundle) -> None:
    bundle.map_ids()
    other = bundle.detached()
    pid = bundle.pid(other)
    bundle.namespace("user", f"/proc/{pid}/ns/user")
    del bundle.linux["uidMappings"], bundle.linux["gidMappings"]
    said = bundle.says("readlink /proc/self/ns/user; id -u")
    assert said.split() == [os.readlink(f"/proc/{pid}/ns/user"), "0"]


@pytest.mark.parametrize("joined", [True, False])
def test_a_network_that_another_user_namespace_owns(bundle: Bundle, joined: bool) -> None:
    """A pod: the network is the sandbox's, the user namespace another one."""
    sandbox = bundle.detached()
    network = f"/proc/{bundle.pid(sandbox)}/ns/net"
    bundle.map_ids()
    if joined:
        other = bundle.detached()
        bundle.namespace("user", f"/proc/{bundle.pid(other)}/ns/user")
        del bundle.linux["uidMappings"], bundle.linux["gidMappings"]
    bundle.namespace("network", network)
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if m["destination"] != "/sys"]
    assert bundle.says("id -u; readlink /proc/self/ns/net").split() == ["0", os.readlink(network)]


# -- mounts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ("ro", "ro"),
        ("rw", "rw"),
        ("nosuid", "nosuid"),
        ("nodev", "nodev"),
        ("noexec", "noexec"),
        ("noatime", "noatime"),
        ("relatime", "relatime"),
        ("nodiratime", "nodiratime"),
        ("nosymfollow", "nosymfollow"),
    ],
)
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_options(bundle: Bundle, kind: str, option: str, shown: str) -> None:
    source = bundle.folder / "source"
    source.mkdir()
    options = [option, "bind"] if kind == "bind" else [option]
    bundle.mount("/m", kind, str(source) if kind == "bind" else "tmpfs", options)
    found = mounts_of(bundle.says("cat /proc/self/mountinfo"))["/m"]
    assert shown in found[5].split(","), found


@pytest.mark.parametrize(
    ("source", "options", "shown"),
    [
        ("noatime", [], "noatime"),
        ("noatime", ["atime"], "noatime"),
        ("noatime", ["norelatime"], "noatime"),
        ("noatime", ["relatime"], "relatime"),
        ("noatime", ["strictatime"], ""),
        ("noatime", ["nodiratime"], "nodiratime relatime"),
        ("noatime", ["nodiratime", "norelatime"], "nodiratime relatime"),
        ("noatime", ["strictatime", "nodiratime"], "nodiratime"),
        ("noatime", ["strictatime", "nostrictatime"], "noatime"),
        ("noatime,nodiratime", ["diratime"], "noatime nodiratime"),
        ("nodiratime", ["strictatime"], ""),
        ("relatime", ["strictatime", "noatime"], ""),
    ],
)
def test_access_times_of_a_bind_go_by_the_flags_of_mount(
    bundle: Bundle, source: str, options: list[str], shown: str
) -> None:
    """An option that only clears a flag leaves what the source has, with runc and mount(8) too."""
    place = bundle.folder / "source"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", source, "tmpfs", str(place)], check=True)
    try:
        bundle.mount("/m", "bind", str(place), ["bind", *options])
        found = mounts_of(bundle.says("cat /proc/self/mountinfo"))["/m"]
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert " ".join(sorted(word for word in found[5].split(",") if word.endswith("time"))) == shown


@pytest.mark.parametrize("option", ["atime", "norelatime", "nostrictatime", "diratime"])
def test_what_only_clears_leaves_a_new_file_system_relatime(bundle: Bundle, option: str) -> None:
    bundle.mount("/m", "tmpfs", "tmpfs", [option])
    assert "relatime" in mounts_of(bundle.says("cat /proc/self/mountinfo"))["/m"][5].split(",")


@pytest.mark.parametrize(
    ("source", "option"),
    [("nodiratime", "strictatime"), ("relatime", "noatime"), ("relatime", "nodiratime"), ("strictatime", "relatime")],
)
def test_access_times_are_locked_in_a_user_namespace(bundle: Bundle, source: str, option: str) -> None:
    place = bundle.folder / "source"
    place.mkdir()
    bundle.map_ids()
    subprocess.run(["mount", "-t", "tmpfs", "-o", source, "tmpfs", str(place)], check=True)
    try:
        bundle.mount("/m", "bind", str(place), ["bind", option])
        assert "operation not permitted" in bundle.refuses()
        for same in ("norelatime", "ro"):
            bundle.config["mounts"][-1]["options"] = ["bind", same]
            bundle.says("true")
        bundle.config["mounts"][-1]["options"] = ["bind", source]
        bundle.says("true")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_options_are_set_on_a_bind_and_not_its_source(bundle: Bundle) -> None:
    source = bundle.folder / "source"
    source.mkdir()
    bundle.mount("/m", "bind", str(source), ["bind", "ro"])
    assert bundle.says("touch /m/x 2>/dev/null || echo read-only") == "read-only"
    (source / "x").touch()


@pytest.mark.parametrize("recursive", [True, False])
def test_recursive_attributes(bundle: Bundle, recursive: bool) -> None:
    source = bundle.folder / "source"
    (source / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(source / "below")], check=True)
    try:
        bundle.mount("/m", "bind", str(source), ["rbind", "rro" if recursive else "ro"])
        found = mounts_of(bundle.says("cat /proc/self/mountinfo"))
        assert found["/m"][5].startswith("ro")
        assert found["/m/below"][5].startswith("ro" if recursive else "rw")
    finally:
        subprocess.run(["umount", str(source / "below")], check=True)


@pytest.mark.parametrize(
    ("option", "tag"), [("shared", "shared:"), ("rshared", "shared:"), ("private", ""), ("unbindable", "unbindable")]
)
def test_propagation(bundle: Bundle, option: str, tag: str) -> None:
    bundle.mount("/m", "tmpfs", "tmpfs", [option])
    found = mounts_of(bundle.says("cat /proc/self/mountinfo"))["/m"]
    optional = found[6 : found.index("-")]
    assert any(one.startswith(tag) for one in optional) if tag else not optional


@pytest.mark.parametrize("propagation", ["", "rslave", "rprivate", "rshared"])
def test_what_the_host_mounts_meanwhile(bundle: Bundle, propagation: str) -> None:
    """A shared volume: seen inside with rslave and rshared, and back outside with rshared alone."""
    volume = bundle.folder / "volume"
    volume.mkdir()
    for command in (["mount", "--bind", str(volume), str(volume)], ["mount", "--make-shared", str(volume)]):
        subprocess.run(command, check=True)
    try:
        (volume / "a").mkdir()
        (volume / "b").mkdir()
        if propagation:
            bundle.linux["rootfsPropagation"] = propagation
        bundle.mount("/vol", "bind", str(volume), ["rbind", *([propagation] if propagation else [])])
        for kind in ("bounding", "effective", "permitted"):
            bundle.process["capabilities"][kind] = [*bundle.process["capabilities"][kind], "CAP_SYS_ADMIN"]
        id = bundle.detached()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(volume / "a")], check=True)
        inside = "/vol/a " in exec_in(bundle, id, "cat /proc/self/mountinfo")
        assert inside == (propagation != "rprivate")
        exec_in(bundle, id, "mount -t tmpfs tmpfs /vol/b")
        outside = f"{volume}/b " in Path("/proc/self/mountinfo").read_text()
        assert outside == (propagation == "rshared")
    finally:
        bundle.clean()
        subprocess.run(["umount", "-R", str(volume)], check=True)


def test_tmpcopyup(bundle: Bundle) -> None:
    place = bundle.rootfs / "data"
    (place / "folder").mkdir(parents=True)
    (place / "file").write_text("words\n")
    (place / "file").chmod(0o640)
    os.chown(place / "file", 7, 8)
    (place / "folder/link").symlink_to("../file")
    (place / "escape").symlink_to("/etc/shadow")
    place.chmod(0o751)
    bundle.mount("/data", "tmpfs", "tmpfs", ["tmpcopyup", "size=1m"])
    said = bundle.says("cat /data/folder/link; stat -c '%a %u:%g' /data/file; stat -c %a /data; readlink /data/escape")
    assert said.split("\n") == ["words", "640 7:8", "751", "/etc/shadow"]
    assert bundle.says("grep ' /data ' /proc/mounts").startswith("tmpfs")


def test_missing_and_linked_destinations(bundle: Bundle) -> None:
    file = bundle.folder / "file"
    file.write_text("data\n")
    (bundle.rootfs / "link").symlink_to("/target/deep")
    (bundle.rootfs / "filelink").symlink_to("tmp/dangling")
    bundle.mount("/a/b/c", "tmpfs")
    bundle.mount("/link/more", "tmpfs")
    bundle.mount("/x/y/file", "bind", str(file), ["bind"])
    bundle.mount("/filelink", "bind", str(file), ["bind"])
    said = bundle.says("cat /proc/mounts; cat /x/y/file /tmp/dangling")
    for place in ("/a/b/c", "/target/deep/more", "/x/y/file", "/tmp/dangling"):
        assert f" {place} " in said
    assert said.endswith("data\ndata")


def test_relative_sources_are_of_the_bundle(bundle: Bundle) -> None:
    (bundle.folder / "here").write_text("near")
    bundle.mount("/f", "bind", "here", ["bind"])
    assert bundle.says("cat /f") == "near"


def test_a_folder_on_a_file_is_refused(bundle: Bundle) -> None:
    bundle.mount("/etc/passwd", "bind", str(bundle.folder), ["bind"])
    assert "not a directory" in bundle.refuses()
    bundle.config["mounts"].pop()
    bundle.mount("/etc", "bind", "/etc/hostname", ["bind"])
    assert "not a directory" in bundle.refuses()
    bundle.config["mounts"].pop()
    bundle.mount("/m", "bind", "/no/such/source", ["bind"])
    assert "no such file or directory" in bundle.refuses()


def test_an_unknown_file_system_or_option_is_refused(bundle: Bundle) -> None:
    bundle.mount("/m", "nosuchfs")
    assert "nosuchfs" in bundle.refuses()
    bundle.config["mounts"].pop()
    bundle.mount("/m", "tmpfs", "tmpfs", ["nosuchoption=1"])
    assert "nosuchoption" in bundle.refuses()


@pytest.mark.parametrize("namespaced", [True, False])
def test_cgroup_mount(bundle: Bundle, namespaced: bool) -> None:
    if not namespaced:
        bundle.without_namespace("cgroup")
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "noexec", "nodev", "relatime", "ro"])
    # what /proc/self/cgroup names is there: with the host's namespace all of the tree has to be
    own = "/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/cgroup.procs"
    said = bundle.says(f"cat {own} | wc -l; mkdir /sys/fs/cgroup/x 2>&1 | grep -o 'Read-only.*'")
    assert int(said.split()[0]) >= 1 and "Read-only" in said


def test_id_mapped_mount(bundle: Bundle) -> None:
    source = bundle.folder / "source"
    source.mkdir()
    (source / "file").touch()
    os.chown(source / "file", 1, 2)
    one = [{"containerID": 0, "hostID": 5000, "size": 100}]
    bundle.mount("/m", "bind", str(source), ["bind", "idmap"], uidMappings=one, gidMappings=one)
    done = bundle.run("stat", "-c", "%u:%g", "/m/file")
    if "id map (does its file system know them?)" in done.stderr:
        pytest.skip("no id-mapped mounts on this file system")
    assert done.stdout == "5001:5002\n"


def test_id_map_of_the_containers_own(bundle: Bundle) -> None:
    bundle.map_ids(300000)
    source = bundle.folder / "source"
    source.mkdir()
    (source / "file").touch()
    bundle.mount("/m", "bind", str(source), ["bind", "idmap"])
    done = bundle.run("stat", "-c", "%u:%g", "/m/file")
    if "id map (does its file system know them?)" in done.stderr:
        pytest.skip("no id-mapped mounts on this file system")
    assert done.stdout == "0:0\n", "the host's root is the container's"


@pytest.mark.parametrize("userns", [False, True], ids=["plain", "userns"])
def test_options_longer_than_fsconfig_takes(bundle: Bundle, userns: bool) -> None:
    """fsconfig(2) refuses values of more than 255 bytes; an overlay's folders easily have such names."""
    lower = [bundle.folder / (name * 140) for name in "ab"]
    for place in lower:
        place.mkdir()
        (place / f"from-{place.name[0]}").touch()
    if userns:
        bundle.map_ids()
    option = f"lowerdir={lower[0]}:{lower[1]}"
    assert len(option) > 255
    bundle.mount("/both", "overlay", options=[option, "noexec"])
    said = bundle.says("ls /both; ls /proc/self/status; grep ' /both ' /proc/self/mountinfo; pwd")
    assert said.startswith("from-a\nfrom-b\n/proc/self/status\n")
    assert "noexec" in mounts_of(said.splitlines()[3])["/both"][5].split(",")
    assert said.endswith("\n/")
    assert "a" * 140 not in Path("/proc/self/mountinfo").read_text(), "nothing of it outside"
    bundle.config["mounts"][-1]["options"] = [f"lowerdir={lower[0]}:{lower[1]}-missing"]
    assert "mount overlay: no such file" in bundle.refuses().lower()
    bundle.config["mounts"][-1]["options"] = ["lowerdir=" + ":".join(map(str, lower * 20))]
    assert "longer than 4095 bytes" in bundle.refuses()


# -- the root ------------------------------------------------------------------------------------------------


def test_read_only_root_with_writable_mounts(bundle: Bundle) -> None:
    bundle.config["root"]["readonly"] = True
    bundle.mount("/tmp", "tmpfs")
    assert bundle.says("touch /x 2>/dev/null || echo no; touch /tmp/x && echo yes") == "no\nyes"


@pytest.mark.parametrize("propagation", ["private", "slave", "shared", "unbindable"])
def test_root_propagation(bundle: Bundle, propagation: str) -> None:
    bundle.linux["rootfsPropagation"] = propagation
    found = mounts_of(bundle.says("cat /proc/self/mountinfo"))["/"]
    optional = " ".join(found[6 : found.index("-")])
    assert ("shared:" in optional) == (propagation == "shared"), optional
    assert ("unbindable" in optional) == (propagation == "unbindable"), optional


def test_no_pivot(bundle: Bundle) -> None:
    said = bundle.says("ls /; cat /proc/self/mountinfo | wc -l", flags=("--no-pivot",))
    assert "bin" in said.split() and "usr" not in said.split()


def test_root_by_another_path(bundle: Bundle) -> None:
    bundle.config["root"]["path"] = str(bundle.rootfs)
    assert bundle.says("echo fine") == "fine"
    link = bundle.folder / "link"
    link.symlink_to("rootfs")
    bundle.config["root"]["path"] = "link"
    assert bundle.says("echo fine") == "fine"
    bundle.config["root"]["path"] = "nosuch"
    assert "root.path" in bundle.refuses()


def test_masked_and_read_only_paths(bundle: Bundle) -> None:
    (bundle.rootfs / "secret").write_text("x")
    (bundle.rootfs / "fixed").mkdir()
    bundle.linux["maskedPaths"] += ["/secret"]
    bundle.linux["readonlyPaths"] += ["/fixed", "/nosuch"]
    script = "cat /secret; touch /fixed/x 2>&1 | grep -o Read-only; echo 1 > /proc/sys/kernel/msgmax || echo no"
    said = bundle.says(script)
    assert said.split("\n")[0] == "Read-only" and said.endswith("no")


def test_sysctl(bundle: Bundle) -> None:
    bundle.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}
    assert bundle.says("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced") == "1\n1"
    bundle.linux["sysctl"] = {"net.ipv4.no_such_thing": "1"}
    assert "net.ipv4.no_such_thing" in bundle.refuses()


# -- devices --------------------------------------------------------------------------------------------------


def test_default_devices_and_links(bundle: Bundle) -> None:
    nodes = "null zero full random urandom tty"
    said = bundle.says(f"cd /dev; stat -c '%n %t:%T %a' {nodes}; for l in ptmx fd stdin; do readlink $l; done")
    assert said.split("\n") == [
        "null 1:3 666",
        "zero 1:5 666",
        "full 1:7 666",
        "random 1:8 666",
        "urandom 1:9 666",
        "tty 5:0 666",
        "pts/ptmx",
        "/proc/self/fd",
        "/proc/self/fd/0",
    ]


def test_given_devices(bundle: Bundle) -> None:
    bundle.linux["devices"] = [
        {"path": "/dev/own", "type": "c", "major": 1, "minor": 7, "fileMode": 0o640, "uid": 3, "gid": 4},
        {"path": "/deep/in/block", "type": "b", "major": 7, "minor": 200},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o622},
    ]
    said = bundle.says("stat -c '%F %t:%T %a %u:%g' /dev/own /deep/in/block /dev/pipe; stat -c %a /dev/null")
    assert said.split("\n") == [
        "character special file 1:7 640 3:4",
        "block special file 7:c8 666 0:0",
        "fifo 0:0 600 0:0",
        "622",
    ]


def test_given_devices_in_a_user_namespace(bundle: Bundle) -> None:
    """Nobody may mknod there: root makes them outside, with the modes and (mapped) owners that are asked for."""
    full_proc()
    bundle.map_ids()
    bundle.linux["devices"] = [
        {"path": "/dev/own", "type": "c", "major": 1, "minor": 7, "fileMode": 0o640, "uid": 3, "gid": 4},
        {"path": "/deep/in/pipe", "type": "p", "fileMode": 0o600},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o622},
    ]
    script = "stat -c '%F %t:%T %a %u:%g' /dev/own /deep/in/pipe /dev/null; head -c 1 /dev/own | wc -c"
    said = bundle.says(f"{script}; grep ' /dev/' /proc/mounts").split("\n")
    assert said[:4] == [
        "character special file 1:7 640 3:4",
        "fifo 0:0 600 0:0",
        "character special file 1:3 622 0:0",
        "1",
    ]
    for line in said[4:]:
        if line.split()[1] in ("/dev/own", "/dev/null", "/dev/zero"):
            assert {"nosuid", "noexec"} <= set(line.split()[3].split(",")), line
    id = bundle.created()
    assert not list((bundle.root / id).glob("device*"))
    bundle.linux["devices"][0]["uid"] = 70000
    assert "linux.devices: /dev/own: uid 70000" in bundle.refuses()


def test_a_dev_of_the_bundles_own_is_left_alone(bundle: Bundle) -> None:
    own = bundle.folder / "dev"
    (own / "pts").mkdir(parents=True)
    (own / "shm").mkdir()
    (own / "mqueue").mkdir()
    bundle.config["mounts"][1] = {"destination": "/dev", "type": "bind", "source": str(own), "options": ["bind"]}
    bundle.says("true")
    assert sorted(path.name for path in own.iterdir()) == ["mqueue", "pts", "shm"]


# -- network devices --------------------------------------------------------------------------------------------


def test_network_devices(bundle: Bundle) -> None:
    name = f"teud{os.getpid() % 10000}"
    for command in (
        ["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"],
        ["ip", "addr", "add", "10.99.8.7/24", "dev", name],
        ["ip", "addr", "add", "fd00:99::7/64", "dev", name, "nodad"],
    ):
        subprocess.run(command, check=True)
    try:
        bundle.linux["netDevices"] = {name: {"name": "inner0"}}
        said = bundle.says("ip addr show inner0")
        assert "10.99.8.7/24" in said and "fd00:99::7/64" in said and "UP" in said.split(">")[0]
        bundle.linux["netDevices"] = {"nosuch0": {}}
        assert "nosuch0" in bundle.refuses()
    finally:
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
