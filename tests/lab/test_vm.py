# SPDX-License-Identifier: Apache-2.0
"""The VM lab: all controllers and AppArmor; and power cuts, after which all that was acknowledged is there.

Runs on the host, as root. The packages must have been built (./dev deb). TEU_POWER_CUTS=50 makes as many cuts while
images are pulled and committed (5 where KVM works, else none: each takes minutes in an emulated machine; the 50 of
every run are ext4's own, in tests/system/test_containerd_faults.py).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import namespace, vm

SOURCE = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the labs need root"),
    pytest.mark.skipif(not list((SOURCE / "dist").glob("*.deb")), reason="no packages: ./dev deb"),
]


@pytest.fixture
def machine() -> Iterator[str]:
    name = f"self-{os.getpid()}"
    yield name
    vm.stop(name)


def inside(name: str, script: str, check: bool = True) -> str:
    """Run a shell script in the machine; what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "lab", "--vm", "exec", "--name", name, "--", "sh", "-c", script],
        env=dict(os.environ, PYTHONPATH=str(SOURCE / "tests")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


REGISTRY = "127.0.0.1:5000"
BLOBS = "/var/lib/teu/containerd/content/blobs/sha256"
BUSY = f"""
n=$(date +%s)
while :; do
    n=$((n + 1))
    teu rmi -f {REGISTRY}/pulled:1 >/dev/null
    teu pull -q {REGISTRY}/pulled:1 >/dev/null && echo pulled
    teu commit big made:$n >/dev/null && echo made:$n
done
"""


def start_registry(machine: str) -> None:
    config = {"version": "0.1", "http": {"addr": REGISTRY}, "storage": {"filesystem": {"rootdirectory": "/var/lib/r"}}}
    inside(machine, f"echo '{json.dumps(config)}' >/run/registry.yml")
    inside(machine, "systemd-run -q --unit=registry docker-registry serve /run/registry.yml")
    inside(machine, f"for i in $(seq 60); do curl -s http://{REGISTRY}/v2/ && exit; sleep 1; done; exit 1")


def fill_registry(machine: str) -> None:
    """With an image of one layer that no other image has."""
    inside(machine, "teu run --name big busybox dd if=/dev/urandom of=/random bs=1M count=6")
    inside(machine, f"teu commit big {REGISTRY}/pulled:1 && teu push -q {REGISTRY}/pulled:1")
    inside(machine, f"teu rmi {REGISTRY}/pulled:1; sync")  # the registry promises nothing


def cut_while_busy(machine: str) -> list[str]:
    """Cut the power in the middle of pulls and commits; the acknowledgements that were seen."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "lab", "--vm", "exec", "--name", machine, "--", "sh", "-c", BUSY],
        env=dict(os.environ, PYTHONPATH=str(SOURCE / "tests")),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert worker.stdout
    seen = [worker.stdout.readline().strip()]
    cut = threading.Timer(random.uniform(0, 6), vm.power_cut, (machine,))
    cut.start()
    seen += [line.strip() for line in worker.stdout]
    cut.join()
    worker.wait()
    return [line for line in seen if line]


def cut_again_and_again(machine: str, cuts: int) -> None:
    """Whatever was acknowledged is there after each cut, and every blob is what its name says."""
    acknowledged = 0
    for number in range(cuts):
        start_registry(machine)
        if not number:
            fill_registry(machine)
        seen = cut_while_busy(machine)
        vm.start(machine, "trixie", SOURCE)
        acknowledged += len(seen)
        images = inside(machine, "teu images --format '{{.Repository}}:{{.Tag}}'").split()
        assert {one for one in seen if one.startswith("made:")} <= set(images), (seen, images)
        if seen[-1] == "pulled":
            assert f"{REGISTRY}/pulled:1" in images, (seen, images)
        for name in [one for one in images if one.startswith("made:")][:2]:
            assert inside(machine, f"teu run --rm {name} sh -c 'wc -c </random'") == str(6 << 20)
        bad = inside(machine, f"cd {BLOBS}; for f in *; do [ $(sha256sum <$f | cut -c1-64) = $f ] || echo $f; done")
        assert bad == "", "blobs are damaged"
    if cuts:
        inside(machine, "teu rm big")
    print(f"{cuts} power cuts in the middle of pulls and commits: {acknowledged} acknowledged, none lost")


def test_power_cut(machine: str) -> None:
    way = vm.start(machine, "trixie", SOURCE)
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(
        inside(machine, "cat /sys/fs/cgroup/cgroup.controllers").split()
    )
    assert inside(machine, "cat /sys/module/apparmor/parameters/enabled") == "Y"
    assert inside(machine, "exit 7", check=False) == ""
    vm.install_packages(machine)
    inside(machine, "teu load -q -i /usr/share/teu/images/busybox.oci.tar")
    first = inside(machine, "teu run -d --name first -v data:/data busybox sh -c 'echo kept >/data/f; sync; sleep 600'")
    inside(machine, "until [ -s /var/lib/teu/engine/volumes/data/_data/f ]; do sleep 0.1; done")
    ended = inside(machine, "teu run --name ended busybox sh -c 'exit 3' >/dev/null; echo $?")
    assert ended == "3"
    # No sync, no warning: what has been answered must be on the disk.
    created = inside(machine, "teu create --name second busybox true")
    vm.power_cut(machine)
    with pytest.raises(namespace.LabError, match="is off"):
        vm.run(machine, ["true"])

    vm.start(machine, "trixie", SOURCE)
    listed = inside(machine, "teu ps -a --no-trunc --format '{{.ID}} {{.Names}} {{.State}}'").splitlines()
    states = {line.split()[1]: line.split() for line in listed}
    assert states["first"][0] == first and states["first"][2] == "exited"
    assert states["second"][0] == created and states["second"][2] == "created"
    assert inside(machine, "teu inspect -f '{{.State.ExitCode}}' ended") == "3"
    assert inside(machine, "teu run --rm -v data:/data busybox cat /data/f") == "kept"
    assert inside(machine, "teu start -a second; echo $?") == "0"
    cut_again_and_again(machine, int(os.environ.get("TEU_POWER_CUTS", "5" if way == "kvm" else "0")))
    # Nothing half-made is left: no scope, no mount, no address of a container that does not run.
    inside(machine, "teu rm first second ended")
    assert inside(machine, "ls /sys/fs/cgroup/teu.slice 2>/dev/null | grep scope || true") == ""
    assert inside(machine, "grep -c /run/teu/containerd /proc/self/mounts || true") == "0"
