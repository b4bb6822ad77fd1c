# SPDX-License-Identifier: Apache-2.0
"""What the daemon's configuration says of containers that say nothing themselves, beside Debian's dockerd with the same
keys in its daemon.json."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import peers
import pytest
import whole
from whole import eventually

pytestmark = pytest.mark.needs("docker", "dockerd", "trixie", "fast")

DROP_IN = Path("/etc/teu/teud.yaml.d/engine-defaults.yaml")
PROFILE = Path("/run/teu-test-seccomp.json")
TEUD = ("docker", "--config", "/run/no-such-configuration", "-H", "unix:///run/teu/teud.sock")

KEYS: dict[str, Any] = {
    "default-shm-size": "96M",
    "default-ipc-mode": "shareable",
    "default-cgroupns-mode": "host",
    "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 200, "Hard": 300}},
    "no-new-privileges": True,
    "seccomp-profile": str(PROFILE),
    "dns": ["192.0.2.53"],
    "dns-search": ["corp.example"],
    "dns-opts": ["ndots:3"],
}
SHOW = (
    "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; ulimit -Sn; ulimit -Hn;"
    " grep -e NoNewPrivs -e ^Seccomp: /proc/self/status; grep '^[a-z]' /etc/resolv.conf | sort;"
    " mkdir /folder || echo refused; readlink /proc/self/ns/cgroup"
)


def call(*argv: str, check: bool = True) -> str:
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "DOCKER_CLI_HINTS": "false"},
    )
    assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
    return (done.stdout if check else done.stdout + done.stderr).strip()


def teud_pid() -> str:
    return call("systemctl", "show", "-P", "MainPID", "teud")


@contextlib.contextmanager
def configured(keys: dict[str, Any], reload: bool = False) -> Iterator[None]:
    """teud with these keys: by a restart, or by a reload of the one that runs."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    whole.remove_everything()
    before = teud_pid()
    DROP_IN.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
    try:
        call("systemctl", "reload" if reload else "restart", "teud")
        if reload:
            assert teud_pid() == before
        yield
    finally:
        whole.remove_everything()
        DROP_IN.unlink()
        call("systemctl", "restart", "teud")


@pytest.fixture(scope="module", autouse=True)
def profile() -> Iterator[None]:
    images.need_busybox()
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    PROFILE.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    yield
    PROFILE.unlink()


@pytest.fixture(scope="module")
def dockerd() -> Iterator[list[str]]:
    """A client of a dockerd with these keys."""
    with peers.dockerd(config=KEYS) as daemon:
        daemon.load_busybox()
        yield daemon.client


def shown(client: list[str], *flags: str) -> tuple[list[str], bool, dict[str, Any]]:
    """What such a container sees, whether its cgroup namespace is the host's, and what inspect says of it."""
    inside = ""
    for _ in range(1 if client == list(TEUD) else 3):  # dockerd loses all output of a short one now and then
        inside = inside or call(*client, "run", "--rm", "--network", "none", *flags, "busybox", "sh", "-c", SHOW)
    *lines, namespace = inside.splitlines()
    call(*client, "create", "--name", "shown", "--network", "none", *flags, "busybox", "true")
    host = json.loads(call(*client, "inspect", "-f", "{{json .HostConfig}}", "shown"))
    call(*client, "rm", "shown")
    keys = ("ShmSize", "IpcMode", "CgroupnsMode", "Ulimits", "SecurityOpt", "Dns")
    # Of dockerd's, also where there is no SELinux.
    host["SecurityOpt"] = [option for option in host["SecurityOpt"] or () if option != "label=disable"]
    return lines, namespace == os.readlink("/proc/1/ns/cgroup"), {key: host[key] for key in keys}


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--shm-size", "32m", "--ulimit", "nofile=50:60", "--ulimit", "core=0", "--ipc", "private"),
        ("--cgroupns", "private", "--dns", "192.0.2.9", "--security-opt", "no-new-privileges=false"),
        ("--security-opt", "seccomp=unconfined", "--dns-search", ".", "--dns-option", "debug"),
        ("--privileged",),
    ],
)
def test_the_same_keys_give_the_same_container(dockerd: list[str], flags: tuple[str, ...]) -> None:
    with configured(KEYS):
        assert shown(list(TEUD), *flags) == shown(dockerd, *flags)


def test_info_says_what_is_in_force(dockerd: list[str]) -> None:
    with configured(KEYS):
        ours, theirs = (
            json.loads(call(*client, "info", "-f", "{{json .SecurityOptions}}")) for client in (TEUD, dockerd)
        )
    assert {each for each in theirs if "apparmor" not in each} <= set(ours)


def test_a_reload_is_in_force_at_once() -> None:
    """No restart: the daemon is the same process."""
    with configured({"default-ulimits": {"nofile": "70:80"}, "dns": ["192.0.2.7"]}, reload=True):

        def inside() -> bool:
            said = call(
                *TEUD, "run", "--rm", "--network", "none", "busybox", "sh", "-c", "ulimit -Sn; cat /etc/resolv.conf"
            )
            return said.startswith("70\n") and "nameserver 192.0.2.7" in said

        eventually("the keys are in force", inside)


def test_the_time_to_stop() -> None:
    with configured({"default-stop-timeout": 1}):
        call(
            *TEUD, "run", "-d", "--name", "deaf", "--network", "none", "busybox", "sh", "-c", "trap '' TERM; sleep 600"
        )
        call("timeout", "8", *TEUD, "stop", "deaf")
        assert call(*TEUD, "inspect", "-f", "{{.State.ExitCode}}", "deaf") == "137"


def test_the_hosts_gateway() -> None:
    with configured({"host-gateway-ips": ["192.0.2.1", "2001:db8::1"]}):
        hosts = call(*TEUD, "run", "--rm", "--add-host", "up:host-gateway", "busybox", "cat", "/etc/hosts")
    assert [line.split()[0] for line in hosts.splitlines() if line.split()[-1:] == ["up"]] == [
        "192.0.2.1",
        "2001:db8::1",
    ]


def test_what_the_daemon_says_of_itself() -> None:
    keys = {
        "labels": ["zone=a"],
        "proxies": {"http-proxy": "http://u:p@proxy.example:3128", "no-proxy": "a.example"},
        "min-api-version": "1.30",
        "log-format": "json",
    }
    with configured(keys):
        found = json.loads(call(*TEUD, "info", "-f", "{{json .}}"))
        assert found["Labels"] == ["zone=a"]
        assert (found["HttpProxy"], found["NoProxy"]) == ("http://xxxxx:xxxxx@proxy.example:3128", "a.example")
        assert call(*TEUD, "version", "-f", "{{.Server.MinAPIVersion}}") == "1.30"
        refused = call("env", "DOCKER_API_VERSION=1.29", *TEUD, "ps", check=False)
        assert "client version 1.29 is too old. Minimum supported API version is 1.30" in refused
        said = call("journalctl", "-u", "teud", "-n", "5", "-o", "cat", f"_PID={teud_pid()}")
        assert {json.loads(line)["level"] for line in said.splitlines() if line.startswith("{")} >= {"info"}


def test_a_reload_tells_what_it_has_applied() -> None:
    with configured({"labels": ["zone=b"], "data-root": "/var/lib/teu/other"}, reload=True):
        status = call("systemctl", "show", "-P", "StatusText", "teud")
        assert "the reload: changed labels; a restart is needed for data-root" in status


def metrics(address: str) -> dict[str, float]:
    """Each sample, with its labels where it has some."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_metrics_have_dockerds_names() -> None:
    ours, theirs = (f"127.0.0.1:{peers.free_port()}" for _ in range(2))
    with configured({"metrics-addr": ours}), peers.dockerd(config={"metrics-addr": theirs}) as daemon:
        daemon.load_busybox()
        for client in (list(TEUD), daemon.client):
            call(*client, "run", "-d", "--name", "counted", "--network", "none", "busybox", "sleep", "600")
        mine, other = metrics(ours), metrics(theirs)
        names = {name.partition("{")[0] for name in other if name.startswith(("engine_daemon_", "process_"))}
        without = (
            "engine_daemon_network_",
            "engine_daemon_image_",
            "engine_daemon_host_info",
            "process_virtual_memory_max",
        )
        missing = names - {name.partition("{")[0] for name in mine}
        assert not {name for name in missing if not name.startswith(without)}
        running = 'engine_daemon_container_states_containers{state="running"}'
        assert mine[running] == other[running] == 1
        assert mine['engine_daemon_container_actions_seconds_count{action="start"}'] == 1
        call(*daemon.client, "rm", "-f", "counted")
