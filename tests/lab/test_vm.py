# SPDX-License-Identifier: Apache-2.0
"""The VM lab: all controllers and AppArmor; and a power cut, a real boot, and a reboot, after which what was answered
is there, and what is to run does without anybody's asking.

Runs on the host, as root. The packages must have been built (./dev deb). The many power cuts, in the middle of pulls
and commits, are in test_power_cuts.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
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


PATCHING = r"""
( while :; do ping -q -c 200 -i 0 127.0.0.1 >/dev/null; done ) & first=$!
( while :; do cat /proc/self/stat >/dev/null; done ) & second=$!
for round in $(seq 100); do
    nft -f - <<END
add table inet patch
add chain inet patch in { type filter hook input priority 0; }
add chain inet patch out { type filter hook output priority 0; }
add chain inet patch pre { type nat hook prerouting priority 0; }
delete table inet patch
END
done
kill $first $second
echo alive
"""


def test_a_kernel_that_patches_its_code(machine: str) -> None:
    """The first chain of a hook turns a switch in the kernel's code, the last one's removal turns it back."""
    vm.start(machine, "trixie", SOURCE, durable=False, processors=2)
    assert inside(machine, PATCHING, check=False) == "alive", vm.last_words(machine)


KEEPER = r"""
teu run -d --name keeper --restart unless-stopped --memory 64m -v boots:/boots busybox \
    sh -c 'cat /proc/sys/kernel/random/boot_id >>/boots/f; while :; do sleep 1; done'
teu run -d --name closing --stop-signal QUIT --stop-timeout 120 busybox \
    sh -c "trap 'sleep 3; exit 9' QUIT; trap 'exit 1' TERM; while :; do sleep 1; done"
"""
BOOTS = "/var/lib/teu/engine/volumes/boots/_data/f"


def keeper_began(machine: str, times: int) -> None:
    """No client of the engine: the boot itself has started it."""
    inside(machine, f"for i in $(seq 600); do [ $(wc -l <{BOOTS}) -ge {times} ] && break; sleep 0.5; done")
    boots = inside(machine, f"cat {BOOTS}").splitlines()
    assert len(boots) == len(set(boots)) == times, (boots, vm.last_words(machine))


def test_power_cut_and_reboot(machine: str) -> None:
    vm.start(machine, "trixie", SOURCE)
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
    inside(machine, KEEPER)
    keeper_began(machine, 1)
    inside(machine, f"sync {BOOTS}")  # it is the container's own, which nobody has promised
    # No sync, no warning: what has been answered must be on the disk.
    created = inside(machine, "teu create --name second busybox true")
    vm.power_cut(machine)
    with pytest.raises(namespace.LabError, match="is off"):
        vm.run(machine, ["true"])

    vm.start(machine, "trixie", SOURCE)
    keeper_began(machine, 2)
    listed = inside(machine, "teu ps -a --no-trunc --format '{{.ID}} {{.Names}} {{.State}}'").splitlines()
    states = {line.split()[1]: line.split() for line in listed}
    assert states["first"][0] == first and states["first"][2] == "exited"
    assert states["second"][0] == created and states["second"][2] == "created"
    assert inside(machine, "teu inspect -f '{{.State.ExitCode}}' ended") == "3"
    assert inside(machine, "teu run --rm -v data:/data busybox cat /data/f") == "kept"
    assert inside(machine, "teu start -a second; echo $?") == "0"
    # Nothing half-made is left: no scope, no mount, no address of a container that does not run.
    assert inside(machine, "teu inspect -f '{{.State.ExitCode}}' closing") == "255"
    inside(machine, "teu rm first second ended; teu start closing")
    assert inside(machine, "ls -d /sys/fs/cgroup/teu.slice/*.scope | wc -l") == "2"
    assert inside(machine, "grep -c /run/teu/containerd /proc/self/mounts") == "2"

    inside(machine, "systemctl reboot", check=False)
    deadline = time.monotonic() + 200
    while vm.pid_of(machine):  # QEMU ends where a machine would begin anew
        assert time.monotonic() < deadline, vm.last_words(machine)
        time.sleep(0.1)
    vm.start(machine, "trixie", SOURCE)
    keeper_began(machine, 3)
    assert inside(machine, "teu inspect -f '{{.State.Status}} {{.State.ExitCode}}' closing") == "exited 9"
