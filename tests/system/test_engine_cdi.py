# SPDX-License-Identifier: Apache-2.0
"""Devices of the Container Device Interface: a file of made devices, and what containers of teud and of dockerd have of
them; `--gpus`, which are such devices; info."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import engine
import peers
import pytest

pytestmark = pytest.mark.needs("docker", "dockerd", "trixie", "fast")

FOLDER = Path("/etc/cdi")
HOOK = Path("/run/teu-engine-cdi-hook")
DEVICES = {
    "cdiVersion": "0.6.0",
    "kind": "house.test/device",
    "containerEdits": {"env": ["OF_THE_FILE=1"]},
    "devices": [
        {
            "name": "zero",
            "containerEdits": {
                "env": ["GIVEN=by the device"],
                "deviceNodes": [{"path": "/dev/house", "hostPath": "/dev/zero"}],
                "mounts": [
                    {"hostPath": "/etc/os-release", "containerPath": "/opt/deep/release", "options": ["ro", "bind"]},
                    {"hostPath": "/usr/lib/os-release", "containerPath": "/opt/release", "options": ["ro", "bind"]},
                ],
                "hooks": [{"hookName": "createRuntime", "path": "/usr/bin/touch", "args": ["touch", str(HOOK)]}],
            },
        },
        {"name": "absent", "containerEdits": {"deviceNodes": [{"path": "/dev/none-of-this"}]}},
    ],
}
GPUS = {
    "cdiVersion": "0.6.0",
    "kind": "nvidia.com/gpu",
    "devices": [{"name": name, "containerEdits": {"env": [f"GPU_{name.upper()}=1"]}} for name in ("0", "1", "all")],
}
TEUD = ["docker", "-H", f"unix://{engine.SOCKET}"]


@pytest.fixture(scope="module", autouse=True)
def devices() -> Iterator[None]:
    engine.need_busybox()
    FOLDER.mkdir(exist_ok=True)
    files = {FOLDER / "house.json": DEVICES, FOLDER / "gpus.json": GPUS}
    for path, document in files.items():
        path.write_text(json.dumps(document))
    yield
    for path in (*files, HOOK):
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def real() -> Iterator[list[str]]:
    config = {"experimental": True, "features": {"cdi": True}, "cdi-spec-dirs": [str(FOLDER)]}
    with peers.dockerd(config=config) as daemon:
        daemon.load_busybox()
        yield daemon.client


def ask(client: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*client, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_what_a_device_gives(real: list[str]) -> None:
    script = (
        "head -c 2 /dev/house | od -x; stat -c '%A %u %g %t %T' /dev/house; env | sort; "
        "find /opt -type f | xargs ls -l; cat /opt/release"
    )
    found = []
    for client in (real, TEUD):
        HOOK.unlink(missing_ok=True)
        flags = ("--rm", "--network", "none", "--hostname", "h", "--device", "house.test/device=zero")
        done = ask(client, "run", *flags, "busybox", "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        assert HOOK.exists()
        found.append(done.stdout)
    assert found[1] == found[0]
    assert "GIVEN=by the device" in found[1] and "OF_THE_FILE=1" in found[1] and "0000" in found[1]


@pytest.mark.parametrize("name", ["house.test/device=other", "house.test/device=absent"])
def test_a_device_that_is_not_there(name: str, real: list[str]) -> None:
    answers = [ask(client, "run", "--rm", "--network", "none", "--device", name, "busybox") for client in (real, TEUD)]
    for done in answers:
        assert done.returncode == answers[0].returncode != 0
        assert "CDI device injection failed" in done.stderr
    if name.endswith("other"):
        assert all(f"unresolvable CDI devices {name}" in done.stderr for done in answers)


@pytest.mark.parametrize(
    ("wanted", "there"), [("all", ["ALL"]), ("1", ["0"]), ("2", ["0", "1"]), ("device=1", ["1"]), ("0", [])]
)
def test_gpus(wanted: str, there: list[str]) -> None:
    done = ask(TEUD, "run", "--rm", "--network", "none", "--gpus", wanted, "busybox", "env")
    assert done.returncode == 0, done.stderr
    assert sorted(line[4:-2] for line in done.stdout.splitlines() if line.startswith("GPU_")) == there


def test_where_there_are_none() -> None:
    (FOLDER / "gpus.json").rename(FOLDER / "gpus.away")
    try:
        done = ask(TEUD, "run", "--rm", "--network", "none", "--gpus", "all", "busybox")
        assert 'could not select device driver "" with capabilities: [[gpu]]' in done.stderr
    finally:
        (FOLDER / "gpus.away").rename(FOLDER / "gpus.json")


def test_info(real: list[str]) -> None:
    found = json.loads(engine.out("info", "-f", "{{json .}}"))
    assert found["CDISpecDirs"] == ["/etc/cdi", "/var/run/cdi"]
    said = subprocess.run(
        ["teu", "info", "-f", "{{json .DiscoveredDevices}}"], capture_output=True, text=True, check=True
    )
    names = [one["ID"] for one in json.loads(said.stdout)]
    assert "house.test/device=zero" in names and "nvidia.com/gpu=all" in names


def test_an_init_is_always_there() -> None:
    done = ask(TEUD, "run", "--rm", "--init", "--network", "none", "busybox", "ps")
    assert done.returncode == 0 and "docker-init" in done.stdout, done.stderr
    assert subprocess.run(
        ["dpkg-query", "-W", "-f", "${Depends}", "teu"], capture_output=True, text=True, check=True
    ).stdout.count("tini")
