# SPDX-License-Identifier: Apache-2.0
"""A reboot: what a restart policy has running runs again with nobody asking, and a shutdown ends it in order.

Runs on the host, as root; the packages must have been built (./dev deb). The namespace lab is shut down by its own
systemd, or has its power cut, and is started again with its disk, on Debian 13 and 12. What a container did is read
from files that it wrote on that disk: a client would wake the daemons.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import namespace

DIST = Path(__file__).resolve().parents[2] / "dist"
LIMIT = 60.0

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the labs need root"),
    pytest.mark.skipif(not list(DIST.glob("*.deb")), reason="no packages: ./dev deb"),
]

# A network that takes its time to come, and says when it was there and when it went; it is asked for by
# network-online.target alone. File systems that nothing mounts at boot. And mounts are seen in other namespaces, which
# systemd sees to where it takes itself to be on a machine.
PREPARE = r"""
set -e
mkdir -p /var/lib/seen /var/lib/disk/files /var/lib/late/files /srv/data /srv/late
cat >/etc/systemd/system/lab-network.service <<END
[Unit]
Wants=network.target
Before=network.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'sleep 2; cat /proc/uptime >/var/lib/seen/network-up'
ExecStop=sh -c 'cat /proc/uptime >/var/lib/seen/network-down'
[Install]
WantedBy=network-online.target
END
for mount in "disk data" "late late"; do
    set -- $mount
    cat >/etc/systemd/system/srv-$2.mount <<END
[Mount]
What=/var/lib/$1
Where=/srv/$2
Type=none
Options=bind
END
done
cat >/etc/systemd/system/lab-shared.service <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=mount --make-rshared /
[Install]
WantedBy=sysinit.target
END
systemctl daemon-reload
systemctl enable -q lab-network lab-shared
systemctl start lab-shared
teu load -q -i /usr/share/teu/images/busybox.oci.tar
"""

# Says in NAME.lives when each of its lives began, ends in its own time at the signal QUIT, and tells of any other.
LIFE = r"""
trap 'sleep 1.5; cat /proc/uptime >/seen/NAME.end; exit 7' QUIT
trap 'echo >/seen/NAME.term; exit 1' TERM
cat /proc/uptime >>/seen/NAME.lives
while :; do sleep 0.1; done
"""
SHUT = ("--stop-signal", "QUIT", "--stop-timeout", "40")

POLICIES = r"""
set -e
busy() { name=$1; shift; teu run -d --name $name -v /var/lib/seen:/seen "$@"; }
life() { echo "cat /proc/uptime >>/seen/$1.lives; trap 'exit $2' TERM; while :; do sleep 0.1; done"; }
busy always --restart always --stop-signal QUIT --stop-timeout 40 busybox sh -c "$LIFE"
busy unless --restart unless-stopped busybox sh -c "$(life unless 0)"
busy failing --restart on-failure:5 busybox sh -c "$(life failing 3)"
busy fine --restart on-failure busybox sh -c "$(life fine 0)"
busy stopped --restart unless-stopped busybox sh -c "$(life stopped 4)"
busy killed --restart unless-stopped busybox sh -c "$(life killed 4)"
busy stopped-always --restart always busybox sh -c "$(life stopped-always 0)"
busy removed --restart always busybox sh -c "$(life removed 0)"
busy plain busybox sh -c "$(life plain 5)"
teu create --name never --restart always busybox true
for mount in "mounted data" "late late"; do
    set -- $mount
    systemctl start srv-$2.mount
    teu run -d --name $1 --restart always -v /srv/$2/files:/files busybox \
        sh -c "trap 'exit 0' TERM; cat /proc/uptime >>/files/$1.lives; while :; do sleep 0.1; done"
done
until [ -s /var/lib/seen/removed.lives ] && [ -s /var/lib/seen/plain.lives ]; do sleep 0.05; done
teu stop stopped stopped-always
teu kill killed
teu rm -f removed
teu-ctr images import /usr/share/teu/images/busybox.oci.tar
for policy in always on-failure unless-stopped; do
    teu-ctr run -d --label containerd.io/restart.policy=$policy --label containerd.io/restart.status=running \
        --mount type=bind,src=/var/lib/seen,dst=/seen,options=rbind:rw \
        docker.io/library/busybox:latest ctr-$policy sh -c "$(life ctr-$policy 0)"
done
teu-ctr run -d --label containerd.io/restart.policy=unless-stopped --label containerd.io/restart.status=running \
    --label containerd.io/restart.explicitly-stopped=true \
    --mount type=bind,src=/var/lib/seen,dst=/seen,options=rbind:rw \
    docker.io/library/busybox:latest ctr-stopped sh -c "$(life ctr-stopped 0)"
"""


# A service and what it needs, in files. The database takes a second to be healthy, and to stop.
DECLARED = r"""
set -e
mkdir -p /etc/teu/containers
cat >/var/lib/seen/life <<'END'
trap 'sleep 0.5; cat /proc/uptime >/seen/$1.end; exit 0' TERM
cat /proc/uptime >>/seen/$1.lives
sleep "$2"
cat /proc/uptime >>/seen/$1.ready
touch /tmp/ready
while :; do sleep 0.1; done
END
cat >/etc/teu/containers/web.container <<'END'
[Unit]
Requires=db.service
After=db.service
[Container]
Image=busybox
Network=shop.network
Volume=/var/lib/seen:/seen
Exec=sh /seen/life web 0
[Install]
WantedBy=multi-user.target
END
cat >/etc/teu/containers/db.container <<'END'
[Container]
Image=busybox
Network=shop.network
Volume=/var/lib/seen:/seen
Volume=data.volume:/data
Exec=sh -c 'echo one more >>/data/lives; exec sh /seen/life db 1'
HealthCmd=test -e /tmp/ready
HealthInterval=1s
HealthStartPeriod=60s
Notify=healthy
END
printf '[Network]\nSubnet=10.99.7.0/24\n' >/etc/teu/containers/shop.network
printf '[Volume]\n' >/etc/teu/containers/data.volume
systemctl daemon-reload
systemctl start web
"""

# Where they write, below /var/lib.
FOLDERS = ("seen", "disk/files", "late/files", "away/files")


class Host:
    """A namespace lab with a disk of its own, over its boots."""

    def __init__(self, release: str) -> None:
        self.name = f"reboot-{release}-{os.getpid()}"
        self.release = release
        self.home = namespace.INSTANCES / self.name

    def boot(self) -> None:
        namespace.start(self.name, self.release, keep_disk=True)

    def __call__(self, script: str, check: bool = True, **environment: str) -> str:
        command = namespace.enter_command(
            self.name, ["sh", "-c", script], [f"{key}={value}" for key, value in environment.items()]
        )
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=LIMIT * 2
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def shut_down(self) -> None:
        self("systemctl poweroff", check=False)
        self.wait(lambda: not (self.home / "state").exists(), "the shutdown")

    def cut(self) -> None:
        namespace.stop(self.name)

    def remove(self) -> None:
        namespace.stop(self.name)
        shutil.rmtree(self.home, ignore_errors=True)

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come: {self('journalctl -b -n 200', check=False)}"
            time.sleep(0.05)

    def seen(self, name: str, folder: str = "seen") -> list[float]:
        """The moments in a file there, on the clock of the machine that the lab is on."""
        try:
            lines = (self.home / "var-lib" / folder / name).read_text().splitlines()
            return [float(line.split()[0]) for line in lines]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def lives(self) -> dict[str, int]:
        """How often each container has begun."""
        return {
            path.name.removesuffix(".lives"): len(path.read_text().splitlines())
            for folder in FOLDERS
            for path in (self.home / "var-lib" / folder).glob("*.lives")
        }

    def began(self, expected: dict[str, int]) -> None:
        """Wait for so many lives of each; there must be no others, then or later."""
        self.wait(lambda: {name: self.lives().get(name) for name in expected} == expected, f"{expected}")
        assert self.lives() == expected

    def active(self) -> list[str]:
        units = "teud.service teu-containerd.service teu-boot.target network-online.target lab-network.service"
        return [unit for unit in units.split() if self(f"systemctl is-active {unit}", check=False) == "active"]

    def state(self, name: str) -> tuple[str, int]:
        state = json.loads(self(f"teu inspect -f '{{{{json .State}}}}' {name}"))
        return state["Status"], state["ExitCode"]


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    made = Host(request.param)
    try:
        made.boot()
        namespace.install_packages(made.name, [str(path) for path in DIST.glob("*.deb")])
        made(PREPARE)
        yield made
    finally:
        made.remove()


def test_without_a_policy_no_daemon_is_started(host: Host) -> None:
    """And the containers' own signal and time, and their exit codes, which are known afterwards."""
    host(
        f'teu run -d --name quiet -v /var/lib/seen:/seen {" ".join(SHUT)} busybox sh -c "$LIFE"',
        LIFE=LIFE.replace("NAME", "quiet"),
    )
    host.began({"quiet": 1})
    host.shut_down()
    assert host.seen("quiet.end") and not (host.home / "var-lib/seen/quiet.term").exists()

    host.boot()
    assert host("systemctl is-system-running --wait", check=False) == "running"
    assert host.active() == []
    assert host.state("quiet") == ("exited", 7)
    assert host.lives() == {"quiet": 1}
    host("teu rm quiet; rm /var/lib/seen/*")
    assert host.active() == ["teud.service", "teu-containerd.service"]


def test_a_shutdown_while_no_daemon_is_there(host: Host) -> None:
    """The daemons have left, as nothing needs them. They are there when the containers are stopped: what those write at
    the last is logged, and how they ended is known."""
    place = "/etc/teu/{teud,containerd}.yaml.d"
    host(f"bash -c 'mkdir -p {place}; for d in {place}; do echo \"idle-exit: 1s\" >$d/idle.yaml; done'")
    host("systemctl restart teud teu-containerd")
    try:
        last = LIFE.replace("NAME", "last").replace("exit 7", "seq 1 20000; echo the last; exit 7")
        flags = f"-d --name last --log-driver json-file --network host -v /var/lib/seen:/seen {' '.join(SHUT)}"
        host(f'teu run {flags} busybox sh -c "$LIFE"', LIFE=last)
        host("teu run -d --name again --network host --restart always busybox sleep 1000")
        host.began({"last": 1})
        host.wait(lambda: host.active() == [], "that both daemons leave")
        host.shut_down()
        assert host.seen("last.end") and not (host.home / "var-lib/seen/last.term").exists()

        host.boot()
        assert host.state("last") == ("exited", 7)
        assert host("teu logs last").split("\n") == [*map(str, range(1, 20001)), "the last"]
        host.wait(lambda: host.state("again")[0] == "running", "the start of what a policy has running")
        finished = host("teu inspect -f '{{.State.FinishedAt}}' last")
        assert float(host(f"date -d {finished} +%s")) < float(host("stat -c %Y /proc/1")), "when it was stopped"
    finally:  # the others count lives
        host("teu rm -f last again; rm /var/lib/seen/* /etc/teu/*.yaml.d/idle.yaml", check=False)
        host("systemctl restart teud teu-containerd", check=False)


def test_shutdown_and_power_cut(host: Host) -> None:
    host(POLICIES, LIFE=LIFE.replace("NAME", "always"))
    lives = dict.fromkeys(["always", "unless", "failing", "fine", "stopped", "killed", "stopped-always", "removed"], 1)
    lives |= dict.fromkeys(["plain", "mounted", "late"], 1)
    lives |= dict.fromkeys(["ctr-always", "ctr-on-failure", "ctr-unless-stopped", "ctr-stopped"], 1)
    host.began(lives)
    mounted = host("teu inspect -f '{{.Id}}' mounted")
    assert "srv-data.mount" in host(f"systemctl show -P After teu-{mounted}.scope").split()
    host("systemctl start lab-network; mv /var/lib/late /var/lib/away; touch /var/lib/late")
    host.shut_down()
    (end,), (down,) = host.seen("always.end"), host.seen("network-down")
    assert end < down, "the network went from under a container that was stopping"
    assert not (host.home / "var-lib/seen/always.term").exists()

    # Nobody connects: what runs was started by the boot. An exit code of 0 is no failure.
    again = ["always", "unless", "failing", "stopped-always", "mounted"]
    again += ["ctr-always", "ctr-on-failure", "ctr-unless-stopped"]
    host.boot()
    lives |= dict.fromkeys(again, 2)
    host.began(lives)
    after_the_network(host, again)
    assert host.state("plain") == ("exited", 5)
    assert host.state("fine") == ("exited", 0)
    assert host.state("stopped") == ("exited", 4)
    assert host.state("killed") == ("exited", 137)
    assert host.state("never") == ("created", 0)
    assert host.state("failing") == ("running", 0)
    # One whose file system is not to be had waits for it, and holds up none of the others.
    host.wait(lambda: "srv-late.mount" in host("journalctl -b -u teud"), "the word that it is missing")
    assert host.state("late")[0] == "exited"
    host("rm /var/lib/late; mv /var/lib/away /var/lib/late")
    again.append("late")
    lives["late"] = 2
    host.began(lives)
    host("teu start fine")
    lives["fine"] = 2
    host.began(lives)

    host.cut()
    host.boot()
    again.append("fine")
    lives |= dict.fromkeys(again, 3)
    host.began(lives)
    after_the_network(host, again)
    assert host.state("plain") == ("exited", 5)
    assert host.state("stopped") == ("exited", 4)
    assert host.state("killed") == ("exited", 137)
    assert host("ls /var/lib/teu/*/starts-at-boot").split() == [
        "/var/lib/teu/containerd/starts-at-boot",
        "/var/lib/teu/engine/starts-at-boot",
    ]
    host("teu rm -f $(teu ps -aq)")
    host("for id in $(teu-ctr c ls -q); do teu-ctr containers label $id containerd.io/restart.status=; done")
    assert host("ls /var/lib/teu/*/starts-at-boot", check=False) == ""


def test_declared_containers(host: Host) -> None:
    """They come with the boot and go with the shutdown as the services that they are, in the order of their files."""
    host(f"cd /var/lib; rm -rf {' '.join(f'{folder}/*' for folder in FOLDERS)}")  # what others have said of their lives
    host(DECLARED)
    host.began({"web": 1, "db": 1})
    host.shut_down()
    assert host.seen("web.end")[-1] < host.seen("db.end")[-1] < host.seen("network-down")[-1]

    for lives, away in ((2, host.shut_down), (3, host.cut)):
        host.boot()
        host.began({"web": lives, "db": lives})
        assert host("systemctl is-system-running --wait", check=False) == "running"
        assert host("systemctl is-active web db") == "active\nactive"
        assert host.seen("network-up")[-1] < host.seen("db.lives")[-1]
        assert host.seen("db.ready")[-1] < host.seen("web.lives")[-1]
        assert host("teu exec systemd-db cat /data/lives").splitlines() == ["one more"] * lives
        assert host("teu exec systemd-web wget -q -O - http://systemd-db 2>&1", check=False).endswith("refused")
        away()
    host.boot()
    host.began({"web": 4, "db": 4})
    host("systemctl stop web db; rm -r /etc/teu/containers; systemctl daemon-reload; teu volume rm systemd-data")


def after_the_network(host: Host, names: list[str]) -> None:
    (up,) = host.seen("network-up")
    for name in names:
        (*_, began) = [at for folder in FOLDERS for at in host.seen(f"{name}.lives", folder)]
        assert began > up, f"{name} was started before the network was there"
