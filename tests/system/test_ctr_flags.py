# SPDX-License-Identifier: Apache-2.0
"""Flags of `ctr` that reach into the host, in `teu-ctr` as in Debian's `ctr`, on teu-containerd: networks by CNI, GPUs,
classes of block I/O, other runtimes' configuration, forms of archives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from test_ctr import OURS, TEU_CTR, normal

# Debian 12 has ctr 1.6, whose words differ from those of 1.7.
pytestmark = pytest.mark.needs("ctr", "containerd", "trixie")

SPACES = {"ctr": "ctr-flags", TEU_CTR: "ctr-flags-ours"}
CONFIGURATION = Path("/etc/cni/net.d/00-teu-test.conflist")
PLUGINS = Path("/opt/cni/bin")
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"


def call(program: str, *words: str, code: int | None = 0, env: dict[str, str] | None = None) -> Any:
    if words[0] == "run" and program == "ctr":
        # Debian's ctr asks for CPU shares by default, which not every lab's cgroups can do
        words = ("run", "--cpu-shares", "0", *words[1:])
    if program == "ctr":
        words = tuple(peers.as_of_ours(words))
    return peers.run(program, "-a", OURS, "-n", SPACES[program], *words, code=code, env=env)


@pytest.fixture(scope="module", autouse=True)
def spaces() -> Iterator[None]:
    for program in SPACES:
        call(program, "images", "import", str(peers.archive()))
    yield
    for program in SPACES:
        for task in call(program, "tasks", "ls", "-q").stdout.split():
            call(TEU_CTR if program != "ctr" else "ctr", "tasks", "rm", "-f", task, code=None)
        for container in call(program, "containers", "ls", "-q").stdout.split():
            call(program, "containers", "rm", container, code=None)
        for image in call(program, "images", "ls", "-q").stdout.split():
            call(program, "images", "rm", "--sync", image)
        call(program, "namespaces", "rm", SPACES[program], code=None)


def both(*words: str, code: int | None = 1, env: dict[str, str] | None = None) -> str:
    """What both say on standard error, and what ctr does."""
    answers = []
    for program, space in SPACES.items():
        done = call(program, *words, code=code, env=env)
        answers.append(normal(done.stderr.replace(space + "-", "SPACE-")))
        call(program, "tasks", "rm", "-f", "c1", code=None)
        call(program, "containers", "rm", "c1", code=None)
        call(program, "snapshots", "rm", "c1", code=None)  # ctr leaves it where the container cannot be
    assert answers[1] == answers[0]
    return answers[0]


def spec_of(program: str, *flags: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    call(program, "containers", "create", *flags, peers.IMAGE, "c1", "true", env=env)
    spec: dict[str, Any] = json.loads(call(program, "containers", "info", "--spec", "c1").stdout)
    call(program, "containers", "rm", "c1")
    return spec


# ---- networks ---------------------------------------------------------------------------------------------

PLUGIN = """#!/bin/bash
input=$(cat)
echo "$(basename $0) $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_PATH [$CNI_ARGS] $input" >> FOLDER/calls
if [ -e FOLDER/fails-$CNI_COMMAND ] && [ $(basename $0) = teu-test-second ]; then
    cat FOLDER/fails-$CNI_COMMAND
    exit 1
fi
if [ $CNI_COMMAND = ADD ]; then
    if [ $(basename $0) = teu-test-first ]; then
        nsenter --net=$CNI_NETNS ip link add eth0 type veth peer name eth0p
    fi
    echo '{"cniVersion": "0.4.0", "interfaces": [{"name": "eth0"}], "dns": {}}'
fi
"""


@pytest.fixture
def cni(tmp_path: Path) -> Iterator[Path]:
    """Two plugins that tell in FOLDER/calls how they were called, and the configuration that names them."""
    made = []
    for folder in (PLUGINS, CONFIGURATION.parent):
        for each in reversed([folder, *folder.parents]):
            if not each.exists():
                each.mkdir()
                made.append(each)
    for name in ("teu-test-first", "teu-test-second"):
        (PLUGINS / name).write_text(PLUGIN.replace("FOLDER", str(tmp_path)))
        (PLUGINS / name).chmod(0o755)
    plugins = [{"type": "teu-test-first", "b": 1, "a": "ä<"}, {"type": "teu-test-second"}]
    CONFIGURATION.write_text(json.dumps({"cniVersion": "0.4.0", "name": "teu-test", "plugins": plugins}))
    yield tmp_path
    for left in Path("/var/lib/cni/results").glob("teu-test-*"):
        left.unlink()
    CONFIGURATION.unlink(missing_ok=True)
    for name in ("teu-test-first", "teu-test-second"):
        (PLUGINS / name).unlink()
    for each in reversed(made):
        each.rmdir()


def calls(folder: Path, space: str) -> list[Any]:
    """(what a plugin is called by and with, its input) of each call since the last time."""
    found = []
    for line in (folder / "calls").read_text().splitlines():
        line = line.replace(space + "-", "SPACE-").replace(":/usr/lib/cni ", " ")  # Debian's ctr has it in `run` alone
        how, _, given = re.sub(r"/proc/\d+/", "/proc/PID/", line).partition("] ")
        found.append((how, json.loads(given)))
    (folder / "calls").unlink()
    return found


@pytest.mark.timeout(300)
def test_networks_by_cni(cni: Path) -> None:
    told = []
    for program, space in SPACES.items():
        done = call(program, "run", "--rm", "--cni", peers.IMAGE, "c1", "ip", "-o", "link", "show", "eth0")
        assert "eth0" in done.stdout
        heard = [calls(cni, space)]
        call(program, "run", "-d", "--null-io", "--cni", peers.IMAGE, "c1", "sleep", "10000")
        heard.append(calls(cni, space))
        info = json.loads(call(program, "containers", "info", "c1").stdout)
        extensions = info["Extensions"]
        # each takes away what the other has made
        other = TEU_CTR if program == "ctr" else "ctr"
        peers.run(other, "-a", OURS, "-n", space, "tasks", "kill", "-s", "KILL", "c1")
        heard.append(calls(cni, space))
        call(program, "tasks", "rm", "-f", "c1", code=None)
        call(program, "containers", "rm", "c1")
        told.append((heard, list(extensions)))
        assert not list(Path("/var/lib/cni/results").glob(f"teu-test-{space}-c1*"))
    theirs, ours = told
    assert ours[1] == theirs[1]
    for mine, other in zip(sum(ours[0], []), sum(theirs[0], []), strict=True):
        assert mine == other
    first = theirs[0][0]
    assert [how.split()[:2] for how, _ in first] == [
        ["teu-test-first", "ADD"],
        ["teu-test-second", "ADD"],
        ["teu-test-second", "DEL"],
        ["teu-test-first", "DEL"],
    ]
    assert all("prevResult" in given for _, given in first[1:])


@pytest.mark.timeout(400)
def test_networks_that_cannot_be(cni: Path) -> None:
    run = ("run", "--null-io", "--rm", "--cni", peers.IMAGE, "c1", "true")
    (cni / "fails-ADD").write_text('{"cniVersion": "0.4.0", "code": 7, "msg": "no room", "details": "at all"}')
    assert 'plugin type="teu-test-second" failed (add): no room; at all' in both(*run)
    (cni / "fails-ADD").write_text("")
    assert "netplugin failed with no error message: exit status 1" in both(*run)
    (cni / "fails-ADD").unlink()
    (cni / "fails-DEL").write_text('{"msg": "stays"}')
    assert "network review" in both(*run, code=0)
    (cni / "fails-DEL").unlink()
    for content, wanted in (
        ('{"cniVersion": "0.4.0", "name": "x", "plugins": [{"type": "teu-test-none"}]}', "failed to find plugin"),
        ('{"cniVersion": "0.4.0", "name": "x", "plugins": []}', "no plugins in list"),
        ('{"cniVersion": "0.4.0", "plugins": []}', "no name"),
        ('{"cniVersion": "0.4.0", "name": "x"}', "no 'plugins' key"),
        ('{"cniVersion": "0.4.0", "name": "x", "plugins": [{}]}', "missing 'type'"),
    ):
        CONFIGURATION.write_text(content)
        assert wanted in both(*run)
    others = list(CONFIGURATION.parent.iterdir())
    CONFIGURATION.unlink()
    if others == [CONFIGURATION]:
        assert "no network config found in /etc/cni/net.d: cni plugin not initialized" in both(*run)


# ---- devices ----------------------------------------------------------------------------------------------


def test_gpus(tmp_path: Path) -> None:
    create = ("containers", "create", "--gpus", "0", peers.IMAGE, "c1", "true")
    assert 'exec: "nvidia-container-cli": executable file not found in $PATH' in both(*create)
    cli = tmp_path / "nvidia-container-cli"
    cli.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    cli.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    hooks = [spec_of(program, "--gpus", "0", "--gpus", "2", env=env)["hooks"]["prestart"] for program in SPACES]
    assert [hook["args"] for hook in hooks[1]] == [hook["args"] for hook in hooks[0]]
    for program in SPACES:
        call(program, "run", "--rm", "--null-io", "--gpus", "0", peers.IMAGE, "c1", "true", env=env)
    called = [re.sub(r"--pid=\d+", "--pid=N", line) for line in (tmp_path / "called").read_text().splitlines()]
    assert len(called) == 2
    assert called[0].startswith("--load-kmods configure --device=0 --compute ")
    for line, space in zip(called, SPACES.values(), strict=True):
        assert re.search(rf"--pid=N /\S+/{space}/c1/rootfs$", line)


CLASSES = """
Classes:
  light:
    - Weight: 50
  heavy:
    - Weight: 800
    - Devices: [DEVICE]
      Weight: 700
      ThrottleReadBps: 50M
      ThrottleWriteBps: 10Mi
      ThrottleReadIOPS: 10k
      ThrottleWriteIOPS: "1000"
"""
WRONG = ("Weight: 5", "Weight: 2000", "Weight: x", "ThrottleReadBps: -1", "ThrottleReadBps: 10M")


def test_classes_of_block_io(tmp_path: Path) -> None:
    device = tmp_path / "disk"
    os.mknod(device, 0o600 | 0o060000, os.makedev(250, 32))
    file = tmp_path / "classes.yaml"
    file.write_text(CLASSES.replace("DEVICE", str(device)))
    for name in ("light", "heavy"):
        flags = ("--blockio-config-file", str(file), "--blockio-class", name)
        found = [spec_of(program, *flags)["linux"]["resources"]["blockIO"] for program in SPACES]
        assert found[1] == found[0], name
    assert found[0]["throttleWriteBpsDevice"] == [{"major": 250, "minor": 32, "rate": 10 << 20}]
    asked = ("containers", "create", "--blockio-config-file", str(file), "--blockio-class")
    assert "no OCI BlockIO parameters for class" in both(*asked, "nosuch", peers.IMAGE, "c1", "true")
    assert "no OCI BlockIO" in both("containers", "create", "--blockio-class", "light", peers.IMAGE, "c1", "true")
    assert "failed to read config file" in both(*asked[:-2], f"{file}-none", peers.IMAGE, "c1", "true")
    for line in WRONG:
        file.write_text(f"Classes:\n  light:\n    - {line}\n")
        assert "blockio-config-file error" in both(*asked, "light", peers.IMAGE, "c1", "true")
    file.write_text("Classes: [")
    for program in SPACES:
        done = call(program, *asked, "light", peers.IMAGE, "c1", "true", code=1)
        assert "blockio-config-file error: failed to set configuration from file" in done.stderr


def test_configuration_of_another_runtime() -> None:
    infos = []
    for program in SPACES:
        flags = ("--runtime", "org.example.v9", "--runtime-config-path", "/etc/example.toml")
        call(program, "containers", "create", *flags, peers.IMAGE, "c1", "true")
        infos.append(json.loads(call(program, "containers", "info", "c1").stdout)["Runtime"])
        call(program, "containers", "rm", "c1")
    assert infos[1] == infos[0]
    assert infos[0]["Options"]["type_url"] == "runtimeoptions.v1.Options"
    for program in SPACES:
        done = call(
            program, "run", "--runtime", "org.example.v9", "--runc-binary", "/x", peers.IMAGE, "c1", "true", code=1
        )
        assert "specifying runc-binary and runc-systemd-cgroup is only supported for" in done.stderr


# ---- archives ---------------------------------------------------------------------------------------------


def docker_archive(path: Path, name: str) -> None:
    """As `docker save` wrote them before they were OCI layouts too: a layer without compression, of its own."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("of-" + name.replace("/", "-")))
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()]},
    }
    table = [{"Config": "config.json", "RepoTags": [name], "Layers": ["one/layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for member, data in (
            ("one/layer.tar", layer.getvalue()),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(table).encode()),
        ):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_compressed_on_the_way_in(tmp_path: Path) -> None:
    found: dict[str, list[Any]] = {program: [] for program in SPACES}
    for number, flags in enumerate(((), ("--compress-blobs",))):
        name = f"example.org/packed:{number}"
        archive = tmp_path / "docker.tar"
        docker_archive(archive, name)
        for program in SPACES:
            call(program, "images", "import", *flags, str(archive))
            digest = re.search(r"sha256:[0-9a-f]+", call(program, "images", "ls", f"name=={name}").stdout)
            assert digest
            [layer] = json.loads(call(program, "content", "get", digest[0]).stdout)["layers"]
            known = call(program, "content", "ls", f"digest=={layer['digest']}").stdout
            found[program].append((layer["mediaType"], re.findall(r"containerd.io/uncompressed=[^,\s]+", known)))
            assert "complete" in call(program, "images", "check", f"name=={name}").stdout
            call(program, "images", "rm", "--sync", name)
    assert found[TEU_CTR] == found["ctr"]
    assert [kind for kind, _ in found["ctr"]] == [DOCKER_LAYER, DOCKER_LAYER + ".gzip"]


def test_what_an_archive_has(tmp_path: Path) -> None:
    names = {}
    for program in SPACES:
        for flags in ((), ("--skip-manifest-json",), ("--skip-non-distributable",)):
            out = tmp_path / "out.tar"
            call(program, "images", "export", *flags, str(out), peers.IMAGE)
            with tarfile.open(out) as archive:
                names[program, flags] = {name for name in archive.getnames() if name != "repositories"}
            out.unlink()
    for (program, flags), found in names.items():
        assert found == names["ctr", flags], program
        assert ("manifest.json" in found) == (flags != ("--skip-manifest-json",))


# ---- the daemons ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["teu-containerd", "teud"])
def test_a_daemon_shows_what_it_does(unit: str) -> None:
    """At SIGUSR1, as containerd and dockerd do; nothing ends of it."""
    peers.run("systemctl", "start", unit)
    pid = int(peers.run("systemctl", "show", "-P", "MainPID", unit).stdout)
    os.kill(pid, signal.SIGUSR1)

    def shown() -> bool:
        text = peers.run("journalctl", "-o", "cat", f"_PID={pid}").stdout
        return "=== BEGIN stack dump ===" in text and "=== END stack dump ===" in text

    peers.wait_until(shown, "the stacks are in the log")
    assert "MainThread" in peers.run("journalctl", "-o", "cat", f"_PID={pid}").stdout
    assert int(peers.run("systemctl", "show", "-P", "MainPID", unit).stdout) == pid


def test_a_shim_outlives_that_question() -> None:
    """containerd's shim and ours."""
    for runtime, name in (("io.containerd.runc.v2", "runc"), ("io.containerd.teu.v2", "teu")):
        call(TEU_CTR, "run", "-d", "--null-io", "--runtime", runtime, peers.IMAGE, f"usr-{name}", "sleep", "10000")
        found = peers.run("pgrep", "-f", f"containerd-shim-{name}-v2.* usr-{name}( |$)").stdout.split()
        assert len(found) == 1
        os.kill(int(found[0]), signal.SIGUSR1)
        assert "in" in call(TEU_CTR, "tasks", "exec", "--exec-id", "e1", f"usr-{name}", "echo", "in").stdout
        assert call(TEU_CTR, "tasks", "rm", "-f", f"usr-{name}").returncode == 0
        call(TEU_CTR, "containers", "rm", f"usr-{name}")
