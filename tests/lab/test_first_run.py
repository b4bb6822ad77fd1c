# SPDX-License-Identifier: Apache-2.0
"""`./dev run` followed to its end, by somebody who has a fresh Debian, a clone of this tree, and nothing else.

Debian 13 and 12 without systemd are minbase root file systems, where `./dev` installs what it needs and boots the
namespace lab; the host whose PID 1 is systemd is a namespace lab itself, without network. They share the cache of root
file systems, which would take a minute each to make; all else is their own: instances, cgroups, processes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import build, namespace, rootfs

SOURCE = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the labs need root")

# In new mount, pid, cgroup, uts and ipc namespaces: a fresh machine's root file system, and a shell script there.
ENTER = r"""
set -e
cd "$1"
mount -t overlay fresh -o lowerdir="$2",upperdir="$1/upper",workdir="$1/work" root
mount -t proc proc root/proc
mount -t sysfs -o ro sysfs root/sys
mount -t cgroup2 cgroup2 root/sys/fs/cgroup
mount --rbind /dev root/dev
mkdir -p root/tree root/var/cache/teu-lab
mount --bind tree root/tree
mount --bind "$3" root/var/cache/teu-lab
mkdir -p root/var/cache/teu-lab/instances
mount --bind instances root/var/cache/teu-lab/instances
for file in resolv.conf hosts; do cp "/etc/$file" "root/etc/$file"; done
# How this machine's apt gets to the archive.
apt-config dump | grep -E '^Acquire::(http|https|Check-Date|Check-Valid-Until)\b' >root/etc/apt/apt.conf.d/99host ||
    true
exec chroot root /bin/bash -c "$4"
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder on the cache's file system (overlay does not stand on overlay), with a clone of this tree."""
    home = rootfs.CACHE / f"first-run-{os.getpid()}"
    for part in ("upper", "work", "root", "instances"):
        (home / part).mkdir(parents=True)
    clone = home / "tree"
    subprocess.run(
        ["git", "-c", "safe.directory=*", "clone", "--quiet", str(SOURCE), str(clone)], check=True, capture_output=True
    )
    for name in build.files_of(SOURCE):  # with what is not committed yet
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(SOURCE / name, clone / name, follow_symlinks=False)
    yield home
    shutil.rmtree(home)


def with_packages(place: Path) -> None:
    """Spare a machine the building: another one of these tests does it."""
    build.build(SOURCE, SOURCE / "dist", lintian=False)
    shutil.copytree(SOURCE / "dist", place / "tree/dist", dirs_exist_ok=True)


def followed_to_its_end(output: str, systemd: bool) -> None:
    """The container's line, the process picture, and what to try next, in this order."""
    assert re.search(r"^hello from a container$", output, re.MULTILINE), output
    picture = output[output.index("hello from a container\n") :]
    lines = picture.splitlines()
    first = next(line.split() for line in lines if "container's first process" in line)
    shim = next(line.split() for line in lines if "its parent, the shim" in line)
    assert first[4:] == ["sleep", "600"], picture
    assert shim[5].endswith("/containerd-shim-teu-v2"), picture
    assert re.search(r"the shim's parent +1$", picture, re.MULTILINE), picture
    assert "/usr/sbin/teud" in picture and "/usr/sbin/teu-containerd" in picture, picture
    tips = picture[picture.index("What to try next:") :].splitlines()
    assert any("teu run -it --rm busybox" in tip for tip in tips)
    # Where a lab is the host, how to get there, and how to be rid of it.
    assert any("./dev lab shell --name run" in tip for tip in tips) is not systemd


def fresh(place: Path, release: str, script: str) -> str:
    """Run a script on a fresh machine without systemd, in the tree; its output."""
    cgroup = namespace._cgroup2() / f"teu-lab-{place.name}"
    cgroup.mkdir()
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc"]
    command += ["sh", "-c", ENTER, "enter", str(place), str(rootfs.ensure(release, "fresh")), str(rootfs.CACHE), script]
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    try:
        done = subprocess.run(
            ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(cgroup), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **proxies},
            check=False,
        )
    finally:
        namespace._remove_cgroup(place.name)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("release", ["trixie", "bookworm"])
def test_on_a_fresh_debian_without_systemd(place: Path, release: str) -> None:
    if release == "trixie":
        with_packages(place)
    output = fresh(place, release, "cd /tree && ./dev run && ./dev lab list && ./dev lab stop --name run")
    assert "dev: installing python3 mmdebstrap" in output
    followed_to_its_end(output, systemd=False)
    assert output.splitlines()[-1] == "run", "the lab stays, for what to try next"
    assert [path.name for path in (place / "instances").iterdir()] == []


@pytest.mark.parametrize("release", ["trixie"])
def test_on_a_host_with_systemd(place: Path, release: str) -> None:
    with_packages(place)
    name = f"host-{os.getpid()}"
    namespace.start(name, release, binds=[f"{place}/tree:/tree", f"{rootfs.CACHE}:/var/cache/teu-lab"], kind="host")
    try:
        done = subprocess.run(
            namespace.enter_command(name, ["/tree/dev", "run"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert "* installing them on this host" in done.stdout
        followed_to_its_end(done.stdout, systemd=True)
    finally:
        namespace.stop(name)
