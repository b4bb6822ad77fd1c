# SPDX-License-Identifier: Apache-2.0
"""Declared networks, volumes, images, builds and pods; files as podman's manual has them; files of containers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from declared import PLACE, Declared, becomes, declare, journal, start, state
from whole import call, eventually, out, show, teu

pytestmark = pytest.mark.needs("systemd", "teud")
__all__ = ["declare"]

# A first process hears of no signal that it has no handler for.
END = "StopSignal=SIGKILL\n"
QUADLET = "/usr/lib/systemd/system-generators/podman-system-generator"


@pytest.fixture(autouse=True)
def nothing_left() -> object:
    yield None
    for kind in ("network", "volume"):
        names = [
            name for name in out("teu", kind, "ls", "--format", "{{.Name}}").split() if name.startswith("systemd-")
        ]
        if names:
            teu(kind, "rm", *names)


def test_networks_and_volumes_are_made_first(declare: Declared) -> None:
    declare.write(
        web_container="[Container]\nImage=busybox\nNetwork=test.network:ip=10.213.9.5\nVolume=test.volume:/data\n"
        f"Exec=sh -c 'touch /data/here; exec sleep 1000'\n{END}",
        test_network="[Network]\nSubnet=10.213.9.0/24\nGateway=10.213.9.1\nIPRange=10.213.9.0/28\nLabel=org.test.Key=value\n"
        "NetworkDeleteOnStop=yes\n",
        test_volume="[Volume]\nUser=nobody\nGroup=nogroup\nLabel=org.test.Key=value\n",
    )
    start("web.service")
    assert (state("test-network.service"), state("test-volume.service")) == ("active", "active")
    network = json.loads(teu("network", "inspect", "systemd-test").stdout)[0]
    assert network["IPAM"]["Config"][0]["Subnet"] == "10.213.9.0/24" and network["Labels"]["org.test.Key"] == "value"
    assert "10.213.9.5" in teu("exec", "systemd-web", "ip", "addr").stdout
    volume = json.loads(teu("volume", "inspect", "systemd-test").stdout)[0]
    assert (Path(volume["Mountpoint"]) / "here").exists() and os.stat(volume["Mountpoint"]).st_uid == 65534
    call("systemctl", "restart", "test-volume.service")
    assert (Path(volume["Mountpoint"]) / "here").exists(), "a volume that is there stays as it is"
    call("systemctl", "stop", "test-network.service")
    assert state("web.service") == "inactive"
    assert teu("network", "inspect", "systemd-test", check=False).returncode


def test_a_network_of_another_container(declare: Declared) -> None:
    declare.write(
        web_container=f"[Container]\nImage=busybox\nContainerName=front\nExec=sleep 1000\n{END}",
        side_container=f"[Container]\nImage=busybox\nNetwork=web.container\nExec=sleep 1000\n{END}",
    )
    start("side.service")
    inside = [teu("exec", name, "readlink", "/proc/self/ns/net").stdout for name in ("front", "systemd-side")]
    assert inside[0] == inside[1]
    call("systemctl", "stop", "web.service")
    becomes("side.service", "inactive")


def test_a_build_and_its_container(declare: Declared) -> None:
    declare.file(PLACE / "Dockerfile", "FROM busybox\nRUN echo built > /made\n")
    declare.write(
        img_build="[Build]\nImageTag=localhost/teu-declared\nSetWorkingDirectory=unit\n",
        app_container=f"[Container]\nImage=img.build\nExec=sh -c 'cat /made; exec sleep 1000'\n{END}",
    )
    try:
        start("app.service")
        eventually("it was built", lambda: "built" in journal("app.service"))
        assert state("img-build.service") == "active"
    finally:
        call("systemctl", "stop", "app.service")
        teu("rmi", "-f", "localhost/teu-declared", check=False)


def test_an_image_that_cannot_be_had(declare: Declared) -> None:
    declare.write(
        far_image="[Image]\nImage=127.0.0.1:1/none:1\nRetry=1\nRetryDelay=100ms\n",
        web_container=f"[Container]\nImage=far.image\nExec=sleep 1000\n{END}",
        never_container="[Container]\nImage=localhost/none:1\nPull=never\n",
    )
    assert start("web.service", check=False)
    assert state("far-image.service") == "failed" and state("web.service") == "inactive"
    assert journal("far-image.service").count("trying again") == 1
    assert start("never.service", check=False)
    assert "No such image" in journal("never.service")


def test_a_pod(declare: Declared) -> None:
    member = f"[Container]\nImage=busybox\nPod=web.pod\nExec=sleep 1000\n{END}"
    declare.write(
        web_pod="[Pod]\nHostName=together\nVolume=/srv:/srv:ro\nPublishPort=127.0.0.1:8097:80\n",
        a_container=member,
        b_container=member.replace("sleep 1000", "sh -c 'mkdir /w; echo of b >/w/index.html; exec httpd -f -h /w'"),
        c_container=f"{member}StartWithPod=no\n",
    )
    start("web-pod.service")
    becomes("a.service", "active")
    becomes("b.service", "active")
    assert state("c.service") == "inactive"
    assert "of b" in eventually(  # type: ignore[operator]
        "b answers to a", lambda: teu("exec", "systemd-a", "wget", "-qO-", "http://127.0.0.1", check=False).stdout
    )
    assert out("busybox", "wget", "-qO-", "http://127.0.0.1:8097") == "of b"
    for kind in ("net", "ipc"):
        inside = {teu("exec", f"systemd-{name}", "readlink", f"/proc/self/ns/{kind}").stdout for name in "ab"}
        assert len(inside) == 1
    assert teu("exec", "systemd-a", "hostname").stdout == "together\n"
    assert teu("exec", "systemd-a", "ls", "-d", "/srv").stdout == "/srv\n"
    call("systemctl", "stop", "web-pod.service")
    assert [state(f"{name}.service") for name in "ab"] == ["inactive", "inactive"]
    start("a.service")
    assert state("web-pod.service") == "active"
    call("systemctl", "stop", "a.service", "b.service")
    becomes("web-pod.service", "inactive")


# After the examples of podman-systemd.unit(5), with an image that is here.
EXAMPLES = {
    "test_container": """[Unit]
Description=A minimal container

[Container]
# Use the image
Image=docker.io/library/busybox:latest

# Use volume and network defined below
Volume=test.volume:/data
Network=test.network

# In the container we just run sleep
Exec=sleep 60

[Service]
# Restart service when sleep finishes
Restart=always
# Extend the time
TimeoutStartSec=900
ExecStartPre=/bin/true

[Install]
# Start by default on boot
WantedBy=multi-user.target default.target
""",
    "test_volume": "[Volume]\nUser=root\nGroup=root\nLabel=org.test.Key=value\n",
    "test_network": """[Network]
Subnet=10.213.8.0/24
Gateway=10.213.8.1
IPRange=10.213.8.0/28
Label=org.test.Key=value
""",
    "group_pod": "[Pod]\nPodName=test\nExitPolicy=continue\n",
    "startup-task_container": """[Service]
Type=oneshot
RemainAfterExit=yes

[Container]
Pod=group.pod
Image=docker.io/library/busybox:latest
Exec=sh -c "echo 'setup starting'; sleep 1; echo 'setup complete'"
""",
    "app_container": """[Unit]
Requires=startup-task.container
After=startup-task.container

[Container]
Pod=group.pod
Image=docker.io/library/busybox:latest
Exec=sh -c "echo 'app running.'; sleep 30"
""",
    "sleep___container": """[Unit]
Description=A templated sleepy container

[Container]
Image=docker.io/library/busybox:latest
Exec=sleep %i

[Service]
Restart=always

[Install]
WantedBy=multi-user.target
DefaultInstance=100
""",
}


def test_podmans_examples_run_unchanged(declare: Declared) -> None:
    declare.write(**EXAMPLES)
    assert teu("system", "validate", "-q").stderr == ""
    start("test.service")
    assert teu("exec", "systemd-test", "ls", "-d", "/data").stdout == "/data\n"
    start("app.service")
    assert state("startup-task.service") == "active" and "setup complete" in journal("startup-task.service")
    eventually("the app runs", lambda: "app running." in journal("app.service"))
    assert "sleep@100.service" in out("systemctl", "list-dependencies", "--plain", "multi-user.target")
    start("sleep@50.service")
    assert "sleep 50" in out("systemctl", "status", "sleep@50.service")


def test_podman_gives_the_units_the_same_names(declare: Declared, tmp_path: Path) -> None:
    """The peer: its generator reads the same files, and its units need the same units."""
    if not os.path.exists(QUADLET):
        pytest.skip("podman has no generator here")
    declare.write(**EXAMPLES)
    folder = tmp_path / "files"
    folder.mkdir()
    for path in PLACE.iterdir():
        # A key that podman 5.4 does not have yet.
        (folder / path.name).write_text(path.read_text().replace("ExitPolicy=continue\n", ""))
    done = subprocess.run(
        [QUADLET, "--dryrun"], env={"QUADLET_UNIT_DIRS": str(folder)}, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    theirs: dict[str, set[str]] = {}
    current = ""
    for line in done.stdout.splitlines():
        if line.startswith("---"):
            current = line.strip("-")
            theirs[current] = set()
        elif line.partition("=")[0] in ("Requires", "BindsTo", "Wants"):
            words = line.replace(".container", ".service").partition("=")[2].split()
            theirs[current] |= {word for word in words if word.endswith(".service")}
    generated = [path for path in Path("/run/systemd/generator").glob("*.service") if "teu" in path.read_text()[:30]]
    assert {path.name for path in generated} == set(theirs), done.stderr
    for path in generated:
        needs = set()
        for line in path.read_text().splitlines():
            if line.partition("=")[0] in ("Requires", "BindsTo", "Wants"):
                needs |= {word for word in line.partition("=")[2].split() if word.endswith(".service")}
        assert needs == theirs[path.name], path.name


def test_the_file_of_a_running_container(declare: Declared) -> None:
    words = [
        "run",
        "-d",
        "--name",
        "handmade",
        "-e",
        "A=b c",
        "-p",
        "127.0.0.1:8096:80",
        "--memory",
        "64m",
        "--restart",
        "always",
    ]
    words += ["--tmpfs", "/scratch", "--cap-add", "NET_ADMIN", "--label", "l=1", "-w", "/tmp", "--stop-signal", "KILL"]
    teu(*words, "busybox", "sh", "-c", "echo $HOME 100%; exec sleep 1000")
    try:
        text = teu("generate", "unit", "handmade").stdout
        before = json.loads(teu("inspect", "handmade").stdout)[0]
    finally:
        teu("rm", "-f", "handmade")
    declare.write(handmade_container=text)
    start("handmade.service")
    after = json.loads(teu("inspect", "handmade").stdout)[0]
    for key in ("Cmd", "Entrypoint", "Env", "WorkingDir", "StopSignal", "ExposedPorts", "Image"):
        assert after["Config"][key] == before["Config"][key], key
    for key in ("PortBindings", "Memory", "Tmpfs", "CapAdd", "Binds", "NetworkMode"):
        assert after["HostConfig"][key] == before["HostConfig"][key], key
    eventually("what it says is the same", lambda: "/root 100%" in journal("handmade.service"))


def test_the_units_are_what_systemd_takes(declare: Declared) -> None:
    declare.write(**EXAMPLES)
    paths = [path for path in Path("/run/systemd/generator").glob("*.service") if "teu" in path.read_text()[:30]]
    names = [path.name.replace("@.", "@1.") for path in paths]
    done = call("systemd-analyze", "verify", "--generators=yes", "--man=no", *names, check=False)
    ours = [line for line in done.stderr.splitlines() if any(path.name in line for path in paths)]
    assert not ours, ours


def test_the_generator_keeps_up_with_fifty_files(declare: Declared) -> None:
    declare.write(**{f"many{number}_container": EXAMPLES["test_container"] for number in range(50)}, **EXAMPLES)
    assert all(show(f"many{number}.service", "LoadState") == "loaded" for number in (0, 49))
