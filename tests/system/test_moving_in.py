# SPDX-License-Identifier: Apache-2.0
"""`teu system check` on this lab, and `teu system import-docker` with what the real dockerd and podman made."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from whole import call, eventually, out, teu

pytestmark = pytest.mark.needs("systemd")

TARGET = Path("/etc/teu/teud.yaml.d/50-docker.yaml")


def findings(code: int) -> dict[str, dict[str, str]]:
    done = teu("system", "check", "--format", "json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(bool(each["Remedy"]) == (each["Level"] != "ok") for each in found)
    return {each["Subject"]: each for each in found}


def test_this_lab_can_run_containers() -> None:
    found = findings(0)
    controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    for name in ("cpu", "memory", "pids"):
        assert (f"cgroup {name}" in found) == (name not in controllers)
    for name in ("systemd", "kernel", "cgroup", "namespaces", "seccomp", "teud.socket", "/var/lib/teu"):
        assert found[name]["Level"] == "ok", found[name]
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    has = enabled.exists() and enabled.read_text() == "Y\n"
    assert (found["AppArmor"]["Level"] == "ok") == has
    if peers.run("dpkg", "-s", "teu-runc", code=None).returncode == 0:  # not the working tree in its place
        assert found["quick start"]["Level"] == "ok", found["quick start"]
    shown = teu("system", "check", "-q").stdout
    assert all(line.startswith(("warning", " ")) for line in shown.splitlines())


def test_what_stands_in_the_way_is_found() -> None:
    broken = Path("/etc/teu/teud.yaml.d/99-broken.yaml")
    broken.parent.mkdir(exist_ok=True)
    broken.write_text("log-drivr: journald\n")
    call(
        "nft", "add table inet hard; add chain inet hard forward { type filter hook forward priority 0; policy drop; }"
    )
    call("systemctl", "stop", "teud.socket", "teud.service")
    try:
        found = findings(1)
    finally:
        broken.unlink()
        call("nft", "delete table inet hard")
        call("systemctl", "start", "teud.socket")
    assert "log-drivr" in found["teud.yaml"]["Text"]
    assert found["teud.socket"]["Remedy"] == "systemctl enable --now teud.socket"
    assert found["firewall"]["Level"] == "warning"
    assert "inet hard forward" in found["firewall"]["Remedy"]
    findings(0)


def picture(folder: Path) -> dict[str, Any]:
    """All that is in a folder, and when it was changed."""
    found: dict[str, Any] = {}
    for top, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(top, name)
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
            found[str(path)] = (status.st_mode, status.st_uid, status.st_ino, status.st_ctime_ns, content)
    return found


def importing(*argv: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    command = ["teu", "system", "import-docker", *argv]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env={**os.environ, **(env or {})}
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def tidy() -> Iterator[None]:
    """What the tests take over goes again."""
    before = set(out("teu", "volume", "ls", "-q").split())
    yield
    for name in ("mi-web", "mi-byid", "mi-plain", "mi-beside", "mi-pod"):
        teu("rm", "-fv", name, check=False)
    teu("network", "rm", "mi-net", "mi-podnet", check=False)
    # Those without a name have become named ones, which `rm -v` leaves.
    for name in set(out("teu", "volume", "ls", "-q").split()) - before:
        teu("volume", "rm", name)
    for name in ("mi/web:1", "imported/mi-web", "mi/pod:1", "imported/mi-pod"):
        teu("rmi", "-f", name, check=False)
    TARGET.unlink(missing_ok=True)
    for link in ("docker0", "mi-bridge"):
        call("ip", "link", "delete", link, check=False)
    call("systemctl", "restart", "teud")


FILL = """
echo kept >/v/file; ln /v/file /v/twin; ln -s file /v/link; mkdir /v/deep; chown -R 1234:99 /v/deep; chmod 2750 /v/deep
echo x >/v/deep/'a b'; dd if=/dev/zero of=/v/holes bs=1 count=1 seek=9999999 2>/dev/null; mknod /v/null c 1 3
touch -d '2001-02-03 04:05:06' /v/file; chown 7:8 /v/file
"""


def make_in_docker(docker: peers.Dockerd, port: int) -> None:
    docker.load_busybox()
    docker(
        "run", "--name", "base", "busybox", "sh", "-c", "rm /bin/vi; rm -r /home; mkdir /home; echo layer >/home/file"
    )
    change = ('--change=CMD ["sleep","600"]', "--change=VOLUME /anon", "--change=ENV FROM=image")
    docker("commit", *change, "base", "mi/web:1")
    docker("rm", "base")
    docker("volume", "create", "--label", "who=me", "mi-keep")
    docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m", "mi-fast")
    docker("run", "--rm", "-v", "mi-keep:/v", "busybox", "sh", "-c", FILL)
    options = ("-o", "com.docker.network.bridge.name=mi-bridge", "--label", "net=work")
    docker("network", "create", "--subnet", "10.211.7.0/24", "--gateway", "10.211.7.77", *options, "mi-net")
    web = ["--network", "mi-net", "--ip", "10.211.7.9", "--network-alias", "www", "-v", "mi-keep:/data:ro"]
    web += ["-e", "A=one", "--restart", "unless-stopped", "-p", f"127.0.0.1:{port}:80", "-l", "x=y"]
    web += ["--cap-add", "NET_ADMIN", "--tmpfs", "/scratch:size=1m", "--mount", "type=volume,src=mi-fast,dst=/fast"]
    web += ["--add-host", "far:10.9.9.9", "--ulimit", "nofile=1000:2000", "--stop-signal", "QUIT", "-w", "/home"]
    docker(
        "run",
        "-d",
        "--name",
        "mi-web",
        *web,
        "mi/web:1",
        "sh",
        "-c",
        "echo served >/tmp/index.html; httpd -fp 80 -h /tmp",
    )
    docker("exec", "mi-web", "sh", "-c", "echo changed >/etc/changed; rm /bin/wget; rm -r /var; mkdir -m 700 /var")
    docker("exec", "mi-web", "sh", "-c", "echo anonymous >/anon/file")
    identity = docker("network", "inspect", "-f", "{{.Id}}", "mi-net").strip()
    docker(
        "create", "--name", "mi-byid", "--network", identity, "--mount", "type=volume,dst=/nameless", "busybox", "true"
    )
    docker("create", "--name", "mi-plain", "--entrypoint", "/bin/echo", "mi/web:1", "plain")
    docker("create", "--name", "mi-beside", "--network", "container:mi-web", "busybox", "wget", "-qO-", "127.0.0.1")


NAMES = ("mi-web", "mi-byid", "mi-plain", "mi-beside")
SAME = ("Cmd", "Entrypoint", "Env", "Labels", "WorkingDir", "StopSignal", "Tty", "User")
SAME_HOST = ("RestartPolicy", "PortBindings", "CapAdd", "ExtraHosts", "Ulimits", "Tmpfs", "Binds")


@pytest.mark.needs("docker")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("snapshotter", [False, True], ids=["overlay2", "containerd"])
def test_docker_moves_in(tidy: None, snapshotter: bool) -> None:
    """With docker's own store of images, and with that in containerd, which newer ones have."""
    port = peers.free_port()
    config: dict[str, Any] = {"log-opts": {"max-size": "10m", "max-file": "3"}, "max-concurrent-downloads": 2}
    config |= {"node-generic-resources": ["A=1"], "features": {"containerd-snapshotter": snapshotter}}
    with peers.dockerd(network=True, config=config) as docker:
        make_in_docker(docker, port)
        theirs = {name: json.loads(docker("inspect", name))[0] for name in (*NAMES, "mi/web:1")}
        where = ("--config-file", str(docker.run / "daemon.json"), "--data-root", str(docker.state), "--from", "docker")
        assert "dockerd runs" in importing(*where, code=1)
        peers.Daemon.stop(docker)
        before = picture(docker.state)

        shown = importing(*where)
        assert "Nothing was done" in shown
        assert re.search("^key +node-generic-resources +NOT UNDERSTOOD: ", shown, re.MULTILINE)
        assert "FAILED" not in shown
        assert "max-concurrent-downloads         used: max-concurrent-downloads: 2" in shown
        for name in ("mi-web", "mi-keep", "mi-net"):
            assert teu("inspect", name, check=False).returncode
        assert not TARGET.exists()

        done = importing(*where, "--apply")
        assert "teu start mi-web" in done, done
        assert "ip link delete mi-bridge" in done, done
        assert picture(docker.state) == before
        assert "max-concurrent-downloads: 2" in TARGET.read_text()
        call("systemctl", "restart", "teud")
        call("ip", "link", "delete", "mi-bridge")

        # The same ids, the same words.
        image = json.loads(out("teu", "image", "inspect", "mi/web:1"))[0]
        assert image["RootFS"] == theirs["mi/web:1"]["RootFS"]
        if not snapshotter:  # there it is the digest of a manifest
            assert image["Id"] == theirs["mi/web:1"]["Id"]
        for name in NAMES:
            ours = json.loads(out("teu", "inspect", name))[0]
            for key in SAME:
                assert (ours["Config"].get(key) or None) == (theirs[name]["Config"].get(key) or None), (name, key)
            for key in SAME_HOST:
                assert (ours["HostConfig"].get(key) or None) == (theirs[name]["HostConfig"].get(key) or None), key
        assert json.loads(out("teu", "inspect", "mi-plain"))[0]["Config"]["Image"] == "mi/web:1"
        assert json.loads(out("teu", "volume", "inspect", "mi-keep"))[0]["Labels"] == {"who": "me"}
        options = json.loads(out("teu", "volume", "inspect", "mi-fast"))[0]["Options"]
        assert options == {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
        network = json.loads(out("teu", "network", "inspect", "mi-net"))[0]
        assert network["IPAM"]["Config"] == [{"Subnet": "10.211.7.0/24", "Gateway": "10.211.7.77"}]
        assert network["Labels"] == {"net": "work"}

        # They live.
        teu("start", "mi-web")
        shell = lambda line: out("teu", "exec", "mi-web", "sh", "-c", line)  # noqa: E731
        assert shell("cat /etc/changed; cat /home/file; cat /anon/file") == "changed\nlayer\nanonymous"
        assert shell("ls /bin/vi /bin/wget /var 2>/dev/null; stat -c %a /var") == "/var:\n700"
        assert shell("ip -4 -o addr show eth0").split()[3] == "10.211.7.9/24"
        assert shell("stat -c %u:%g:%a:%h:%Y /data/file") == "7:8:644:2:981173106"
        assert (
            shell("stat -c %u:%g:%a /data/deep; cat '/data/deep/a b'; readlink /data/link") == "1234:99:2750\nx\nfile"
        )
        assert int(shell("stat -c %b /data/holes")) < 100
        assert shell("stat -c %t:%T /data/null; df -m /fast | tail -1").split()[0] == "1:3"
        eventually("the page", lambda: "served" in out("curl", "-s", f"http://127.0.0.1:{port}/"))
        assert teu("start", "-a", "mi-beside", check=False).stdout == "served\n"
        assert teu("start", "-a", "mi-plain").stdout == "plain\n"
        byid = json.loads(out("teu", "inspect", "mi-byid"))[0]
        assert byid["HostConfig"]["NetworkMode"] == "mi-net" and list(byid["NetworkSettings"]["Networks"]) == ["mi-net"]
        assert byid["Mounts"][0]["Name"] == theirs["mi-byid"]["Mounts"][0]["Name"]
        teu("start", "-a", "mi-byid")

        # Again: nothing is done twice.
        again = importing(*where, "--apply")
        assert "made" not in again.replace("is here already", ""), again
        assert picture(docker.state) == before


STORAGE = """[storage]
driver = "overlay"
graphroot = "{root}"
runroot = "{run}"
"""


@pytest.mark.needs("podman")
@pytest.mark.timeout(300)
def test_podman_moves_in(tidy: None, tmp_path: Path) -> None:
    with peers.podman("crun") as podman:
        settings = tmp_path / "storage.conf"
        settings.write_text(STORAGE.format(root=podman.state, run=podman.run))
        env = {"CONTAINERS_STORAGE_CONF": str(settings), **podman.env}
        podman.load_busybox()
        podman(
            "run", "--network", "none", "--name", "base", "busybox", "sh", "-c", "rm /bin/vi; echo layer >/home/file"
        )
        podman("commit", "-q", "--change", 'CMD ["sleep","600"]', "base", "docker.io/mi/pod:1")
        podman("rm", "base")
        podman("volume", "create", "--label", "who=me", "mi-podvol")
        podman("run", "--rm", "--network", "none", "-v", "mi-podvol:/v", "busybox", "sh", "-c", FILL)
        podman("network", "create", "--subnet", "10.211.8.0/24", "mi-podnet")
        try:
            flags = ["--network", "mi-podnet", "-v", "mi-podvol:/data", "-v", "/etc/os-release:/os:ro", "-e", "A=one"]
            flags += ["--cap-add", "NET_ADMIN", "-l", "x=y", "--tmpfs", "/scratch:size=1m", "--restart", "always"]
            flags += ["-w", "/home", "--stop-signal", "QUIT", "-p", "127.0.0.1:18087:80"]
            podman("create", "--name", "mi-pod", *flags, "mi/pod:1", "sh", "-c", "sleep 600")
            mounted = podman("mount", "mi-pod").strip()
            Path(mounted, "etc/changed").write_text("changed\n")
            Path(mounted, "bin/wget").unlink()
            podman("umount", "mi-pod")
            identity = podman("image", "inspect", "-f", "{{.Id}}", "mi/pod:1").strip()
            before = picture(podman.state / "overlay-images") | picture(podman.state / "overlay")
            assert "Nothing was done" in importing("--from", "podman", env=env)
            done = importing("--from", "podman", "--apply", env=env)
            assert "FAILED" not in done, done
            assert picture(podman.state / "overlay-images") | picture(podman.state / "overlay") == before
        finally:
            podman("rm", "-fa", code=None)
            podman("network", "rm", "-f", "mi-podnet", code=None)
    assert out("teu", "image", "inspect", "-f", "{{.Id}}", "mi/pod:1") == f"sha256:{identity}"
    ours = json.loads(out("teu", "inspect", "mi-pod"))[0]
    assert ours["Config"]["Cmd"] == ["sh", "-c", "sleep 600"]
    assert "A=one" in ours["Config"]["Env"] and ours["Config"]["Labels"]["x"] == "y"
    assert ours["HostConfig"]["RestartPolicy"]["Name"] == "always"
    assert ours["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18087"}]}
    assert list(ours["NetworkSettings"]["Networks"]) == ["mi-podnet"]
    teu("start", "mi-pod")
    shell = lambda line: out("teu", "exec", "mi-pod", "sh", "-c", line)  # noqa: E731
    assert shell("cat /etc/changed; cat /home/file; pwd") == "changed\nlayer\n/home"
    assert shell("ls /bin/vi /bin/wget 2>/dev/null; grep -c ID=debian /os") == "1"
    assert shell("stat -c %u:%g:%a:%h:%Y /data/file") == "7:8:644:2:981173106"
    assert shell("ip -4 -o addr show eth0").split()[3].startswith("10.211.8.")
