# SPDX-License-Identifier: Apache-2.0
"""Debian root file systems for the labs, made once by mmdebstrap and kept in a cache.

Called by the namespace lab (`namespace.py`), the VM lab (`vm.py`) and the package build (`build.py`).

The cache (TEU_LAB_CACHE, default /var/cache/teu-lab):

    root-RELEASE-KIND-HASH/     a root file system; HASH covers the recipe below, so a changed recipe
                                makes a new one; the old one goes when no tree has used it for two days
    vm-RELEASE-HASH/            vmlinuz, the initramfs, and the disk image (vm.py); the same holds for it
    used-NAME                   touched at each use of NAME
    lock-*                      taken while something is made
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CACHE = Path(os.environ.get("TEU_LAB_CACHE", "/var/cache/teu-lab"))
RELEASES = ("trixie", "bookworm", "forky")
# In the making: what is there moves, and a mirror of it may be some weeks behind.
TESTING = "forky"
KEEP = 2 * 86400  # seconds: trees on one machine may have recipes of their own

# What Teu's packages depend on, so that --dev works without installing them.
TEU_DEPENDS = """
    python3 python3-grpcio python3-protobuf python3-yaml python3-h11
    python3-zstandard python3-nftables python3-cryptography nftables iproute2 dbus tini
"""

# What the tests and a person in the lab use.
TOOLS = """
    systemd systemd-sysv libpam-systemd libnss-myhostname ca-certificates procps psmisc util-linux strace
    iputils-ping python3-pytest python3-hpack python3-hyperframe
    openssh-client openssh-server
    busybox-static less curl bash-completion kmod openssl apparmor attr acl
    libcap2-bin e2fsprogs xfsprogs bubblewrap netcat-openbsd pigz xz-utils zstd file git
"""

# The real programs of the swap table.
PEERS = """
    docker.io containerd runc crun podman buildah skopeo docker-registry criu uidmap python3-docker
    netavark aardvark-dns firewalld ufw rsyslog rsyslog-gnutls containernetworking-plugins catatonit
"""

# Those that only one release has.
RELEASE_ONLY = {
    "trixie-lab": "docker-cli docker-compose docker-buildx cosign python3-isal libpython3.13",
    "trixie-host": "python3-isal libpython3.13",
    "bookworm-lab": "libpython3.11",
    # The last are in every other Debian without being asked for.
    "forky-lab": """docker-cli docker-compose docker-buildx cosign notation python3-isal libpython3.14
        adduser bsdutils mount passwd tini-static""",
}

BUILD_TOOLS = """
    build-essential debhelper dh-python pybuild-plugin-pyproject python3 python3-setuptools python3-yaml lintian
    fakeroot protobuf-compiler protobuf-compiler-grpc libprotobuf-dev busybox-static
"""

# A machine of somebody who has cloned this tree: under systemd, with what `./dev run` would install (so that it
# can be followed there without network)...
HOST = "systemd systemd-sysv libpam-systemd ca-certificates passwd git mmdebstrap debian-archive-keyring"

# ...and the least that is a Debian, where it has to install all of it.
FRESH = ""

# Not to boot: the VM lab's QEMU is taken out of it, on whatever Debian the host is (vm.py says why).
QEMU = "qemu-system-x86 qemu-utils"

KINDS = {
    "lab": TEU_DEPENDS + TOOLS + PEERS,
    "build": BUILD_TOOLS,
    "host": TEU_DEPENDS + HOST,
    "fresh": FRESH,
    "qemu": QEMU,
}
VARIANTS = {"fresh": "minbase", "qemu": "extract"}

# Daemons of the peers are there to be started by a test, never by themselves; the rest have no use or
# no place in a container.
DISABLED = """
    docker.service docker.socket containerd.service docker-registry.service podman.service podman.socket
    podman-auto-update.timer podman-auto-update.service podman-restart.service podman-clean-transient.service
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service
    fstrim.timer nftables.service man-db.timer getty@tty1.service remote-fs.target
    systemd-networkd.service systemd-timesyncd.service
"""

# Of one kind alone, so that the others need not be made anew.
DISABLED_ONLY = {"lab": "firewalld.service ufw.service ssh.service ssh.socket rsyslog.service syslog.socket"}
MASKED = """
    getty.target console-getty.service systemd-udevd.service systemd-udevd-control.socket
    systemd-udevd-kernel.socket systemd-udev-trigger.service systemd-udev-settle.service
    systemd-modules-load.service sys-kernel-debug.mount sys-kernel-tracing.mount
    dev-hugepages.mount systemd-firstboot.service
"""

# Runs in the new root, at the end.
FINISH = r"""
set -e
systemctl disable --quiet $DISABLED 2>/dev/null || for unit in $DISABLED; do
    systemctl disable --quiet "$unit" 2>/dev/null || true
done
systemctl mask --quiet $MASKED
rm -f /etc/resolv.conf /etc/hostname /etc/machine-id
echo 'nameserver 127.0.0.1' >/etc/resolv.conf
echo teu-lab >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 teu-lab\n::1 localhost ip6-localhost\n' >/etc/hosts
: >/etc/machine-id
passwd -d root >/dev/null
mkdir -p /src /etc/systemd/journald.conf.d /etc/systemd/system.conf.d
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nRuntimeMaxUse=512M\nForwardToConsole=no\n' \
    >/etc/systemd/journald.conf.d/lab.conf
printf '[Manager]\nDefaultTimeoutStopSec=20s\nStatusUnitFormat=name\n' >/etc/systemd/system.conf.d/lab.conf
rm -rf /var/cache/apt/archives/*.deb /var/lib/docker /var/lib/containerd
"""


def packages(release: str, kind: str) -> list[str]:
    """The packages of a root file system."""
    return sorted(f"{KINDS[kind]} {RELEASE_ONLY.get(f'{release}-{kind}', '')}".split())


def disabled(kind: str) -> str:
    """The units of a root file system that do not start by themselves."""
    return DISABLED + DISABLED_ONLY.get(kind, "")


def recipe_hash(release: str, kind: str) -> str:
    """Changes whenever the finished root file system would."""
    recipe = "\n".join([release, *packages(release, kind), disabled(kind), MASKED, FINISH])
    return hashlib.sha256(recipe.encode()).hexdigest()[:10]


@contextlib.contextmanager
def cache_lock(name: str = "lock") -> Iterator[None]:
    """Hold the cache against others who would make the same thing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure(release: str = "trixie", kind: str = "lab") -> Path:
    """The root file system's folder, made now (about a minute, from the network) if it is not there."""
    if release not in RELEASES:
        sys.exit(f"lab: no release {release!r}: choose one of {', '.join(RELEASES)}")
    final = CACHE / f"root-{release}-{kind}-{recipe_hash(release, kind)}"
    if used(final):
        return final
    with cache_lock(f"lock-{release}-{kind}"):
        if used(final):
            return final
        print(f"lab: making the {release} {kind} root file system in {final} (once)", file=sys.stderr, flush=True)
        partial = CACHE / f"partial-{release}-{kind}"
        shutil.rmtree(partial, ignore_errors=True)
        environment = dict(os.environ, DISABLED=" ".join(disabled(kind).split()), MASKED=" ".join(MASKED.split()))
        command = [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            f"--variant={VARIANTS.get(kind, 'apt')}",
            '--aptopt=Apt::Install-Recommends "false"',
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*/*changelog*",
            "--dpkgopt=force-unsafe-io",
            "--skip=cleanup/apt/lists",
        ]
        if release == TESTING:
            command.append('--aptopt=Acquire::Check-Valid-Until "false"')
        if include := packages(release, kind):
            command.append("--include=" + ",".join(include))
        if kind in ("lab", "host"):
            command.append(f"--customize-hook=chroot \"$1\" sh -c '{_quote(FINISH)}'")
        command += [release, str(partial)]
        if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode:
            sys.exit(f"lab: mmdebstrap could not make the {release} {kind} root file system; what it said is above")
        forget(f"root-{release}-{kind}-*")
        partial.rename(final)
        used(final)
    return final


def used(image: Path) -> bool:
    """Whether it is there; if so, it is used now."""
    if image.is_dir():
        (CACHE / f"used-{image.name}").touch()
        return True
    return False


def forget(pattern: str) -> None:
    """Remove images that no tree has used for KEEP seconds and no instance stands on."""
    for old in CACHE.glob(pattern):
        stamp = CACHE / f"used-{old.name}"
        last = stamp.stat().st_mtime if stamp.exists() else 0.0
        if time.time() - last > KEEP and not _in_use(old):
            shutil.rmtree(old, ignore_errors=True)
            stamp.unlink(missing_ok=True)


def _quote(script: str) -> str:
    return script.replace("'", "'\"'\"'")


def _in_use(root: Path) -> bool:
    """Whether an instance stands on this root file system."""
    for mounts in Path("/proc").glob("[0-9]*/mounts"):
        with contextlib.suppress(OSError):
            if str(root) in mounts.read_text():
                return True
    return False
