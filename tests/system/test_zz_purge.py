# SPDX-License-Identifier: Apache-2.0
"""apt purge: with containers running, networks and volumes in use, nothing stays but what is said to stay.

The last file of a run, as it takes everything away (and installs it again).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lab_kind import which_lab
from whole import call, out, teu

pytestmark = pytest.mark.needs("packages", "systemd")

PROGRAMS = (b"teud", b"teu-buildkitd", b"teu-containerd", b"containerd-shim-teu-v2")
PACKAGES = ("teu", "teu-buildkitd", "teu-containerd", "teu-runc")


# What they depend on is there, and an emulated machine needs a third of the time without a look at all that Debian has,
# and less where it need not compile (tests/lab/vm.py installs them so).
DPKG = which_lab() == "vm-emulated"
BYTECODE = Path("/src/dist/bytecode.tar")


def packages(verb: str, *what: str) -> str:
    """purge, remove or install packages, by apt, or in an emulated machine by dpkg; what was said."""
    tool = ["dpkg", f"--{verb}"] if DPKG else ["apt-get", "-y", "-qq", "-o", "Dpkg::Use-Pty=0", verb]
    if DPKG and verb == "install" and BYTECODE.exists():
        call("tar", "-C", "/", "-xf", str(BYTECODE))
    done = subprocess.run(
        [*tool, *what],
        env={"PATH": os.environ["PATH"], "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def leftovers() -> list[str]:
    """Everything in the system that has Teu's name on it, and should not when Teu is gone.

    What other tests and the lab made under names of their own is not Teu's."""
    found = [str(path) for place in ("/run", "/etc", "/var/lib", "/var/cache") for path in Path(place).glob("teu*")]
    places = ["/usr/bin", "/usr/sbin", "/usr/lib/python3/dist-packages", "/usr/share", "/usr/lib/systemd/system"]
    for place in [*places, "/usr/libexec", "/usr/lib/systemd/system-generators", "/run/systemd/generator"]:
        found += [str(path) for path in Path(place).glob("*teu*")]
    found += [str(path) for path in Path("/etc/systemd/system").rglob("*teu*") if "teu-lab" not in path.name]
    found += [str(path) for path in Path("/etc/firewalld").rglob("teu*")]
    found += [
        "unit " + line
        for line in out("systemctl", "list-units", "--all", "--plain", "--no-legend", "teu*").splitlines()
        if "teu-lab" not in line
    ]
    found += [
        "mount " + where
        for where in (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
        if "/teu" in where
    ]
    found += [
        str(path) for path in Path("/sys/fs/cgroup").rglob("teu*") if path.is_dir() and "teu-lab" not in path.name
    ]
    profiles = Path("/sys/kernel/security/apparmor/profiles")
    if profiles.exists():
        found += ["profile " + line for line in profiles.read_text().splitlines() if line.startswith("teu-default ")]
    found += [str(path) for place in ("/etc/apparmor.d", "/var/cache/apparmor") for path in Path(place).rglob("teu*")]
    found += ["link " + path.name for path in Path("/sys/class/net").glob("teu*")]
    found += ["nft " + line for line in out("nft", "list", "tables").splitlines() if "teu" in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(part.rpartition(b"/")[2] in PROGRAMS for part in command):
            found.append(f"process {process.name} {command}")
    return [each for each in found if not any(word in each for word in ("teu-peer", "teu-runc-", "teutest"))]


@pytest.mark.timeout(400)
def test_purge_leaves_nothing_but_what_it_says() -> None:
    debs = sorted(str(path) for path in Path("/src/dist").glob("*.deb"))
    assert debs
    teu("load", "-i", "/usr/share/teu/images/busybox.oci.tar")
    teu("network", "create", "purged", check=False)
    teu("run", "-d", "--name", "purge-none", "--network", "none", "busybox", "sleep", "600")
    teu(
        "run",
        "-d",
        "--name",
        "purge-bridge",
        "-p",
        "127.0.0.1:18080:80",
        "-v",
        "precious:/data",
        "busybox",
        "sh",
        "-c",
        "echo mine >/data/file; sleep 600",
    )
    teu("exec", "purge-bridge", "sh", "-c", "until [ -s /data/file ]; do sleep 0.1; done")
    Path("/etc/teu/teud.yaml.d").mkdir(exist_ok=True)
    Path("/etc/teu/teud.yaml.d/mine.yaml").write_text("log-level: info\n")
    Path("/etc/teu/containers/teu-gone@.container").write_text("[Container]\nImage=busybox\nExec=sleep 600\n")
    Path("/etc/teu/containers/teu-one.container").write_text("[Container]\nImage=busybox\nExec=sleep 600\n")
    call("systemctl", "daemon-reload")
    call("systemctl", "start", "teu-buildkitd", "teu-gone@x.service", "teu-one.service")
    # As a daemon makes them where firewalld runs; it does not now, which no program of the package minds.
    for place, name in (("zones", "teu.xml"), ("zones", "teu.xml.old"), ("policies", "teu-egress.xml")):
        Path("/etc/firewalld", place).mkdir(parents=True, exist_ok=True)
        Path("/etc/firewalld", place, name).write_text("<short>teu</short>\n")
    try:
        said = packages("purge", *PACKAGES)
        left = leftovers()
        assert left == ["/var/lib/teu"], "\n".join(left)
        assert "kept: the group teu, and the volumes in /var/lib/teu/engine/volumes" in said
        data = [path for path in Path("/var/lib/teu").rglob("*") if path.is_file()]
        assert [path.read_text() for path in data if path.name == "file"] == ["mine\n"]
        assert all(path.is_relative_to("/var/lib/teu/engine/volumes") for path in data)
    finally:
        call("rm", "-rf", "/var/lib/teu")
        packages("install", *debs)


@pytest.mark.needs("fast")
@pytest.mark.timeout(400)
def test_remove_keeps_images_and_configuration() -> None:
    debs = sorted(str(path) for path in Path("/src/dist").glob("*.deb"))
    teu("load", "-i", "/usr/share/teu/images/busybox.oci.tar")
    try:
        packages("remove", *PACKAGES)
        assert Path("/etc/teu/teud.yaml").exists()
    finally:
        packages("install", *debs)
    assert "busybox" in out("teu", "images")
    assert out("teu", "run", "--rm", "busybox", "echo", "back again") == "back again"
