# SPDX-License-Identifier: Apache-2.0
"""The AppArmor profile of containers: loaded when it is needed, and what it lets through."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from whole import call, out, teu

pytestmark = pytest.mark.needs("packages", "systemd")

PROFILES = Path("/sys/kernel/security/apparmor/profiles")
CONFINED = "teu-default (enforce)"


@pytest.fixture(scope="module", autouse=True)
def busybox() -> None:
    teu("load", "-q", "-i", "/usr/share/teu/images/busybox.oci.tar")


def security_options() -> list[str]:
    return [
        option["Name"] if isinstance(option, dict) else option
        for option in json.loads(out("teu", "info", "--format", "{{json .SecurityOptions}}"))
    ]


@pytest.mark.needs("namespace")
def test_without_apparmor_nothing_is_confined_and_nothing_fails() -> None:
    if Path("/sys/module/apparmor/parameters/enabled").exists():
        pytest.skip("this host's kernel has AppArmor")
    assert "name=apparmor" not in security_options()
    assert out("teu", "run", "--rm", "--security-opt", "apparmor=teu-default", "busybox", "echo", "ran") == "ran"


@pytest.mark.needs("apparmor")
def test_it_is_loaded_with_the_first_container_and_kept() -> None:
    """As after a boot of a host whose apparmor.service does not run."""
    if "teu-default (" in PROFILES.read_text():
        Path("/sys/kernel/security/apparmor/.remove").write_text("teu-default")
    assert "teu-default (" not in PROFILES.read_text()
    assert "name=apparmor" in security_options()
    assert out("teu", "run", "--rm", "busybox", "cat", "/proc/self/attr/current") == CONFINED
    assert CONFINED in PROFILES.read_text().splitlines()


@pytest.fixture(scope="module")
def confined() -> Iterator[str]:
    """A container with every capability, and without other hindrances: what fails fails by the profile."""
    name = "confined"
    teu(
        "run",
        "-d",
        "--name",
        name,
        "--cap-add",
        "ALL",
        "--security-opt",
        "seccomp=unconfined",
        "--security-opt",
        "systempaths=unconfined",
        "busybox",
        "sleep",
        "1000",
    )
    yield name
    teu("rm", "-f", name)


@pytest.mark.needs("apparmor")
def test_what_it_forbids(confined: str) -> None:
    assert out("teu", "inspect", "-f", "{{.AppArmorProfile}}", confined) == "teu-default"
    script = """
    cat /proc/1/attr/current /proc/self/attr/current
    try() { "$@" 2>/dev/null && echo "allowed: $*" || echo "denied: $*"; }
    put() { cat "$1" >"$1"; }
    try put /proc/sys/kernel/domainname
    try put /proc/sys/vm/swappiness
    try put /proc/sys/kernel/shmmni
    try sh -c 'echo h >/proc/sysrq-trigger'
    try sh -c 'echo 0 >/proc/self/oom_score_adj'
    try mount -t tmpfs none /mnt
    try head -c 1 /proc/kcore
    try sh -c 'echo >/sys/kernel/mm/transparent_hugepage/defrag'
    try touch /etc/written
    try kill -0 1
    """
    said = out("teu", "exec", confined, "sh", "-c", "mkdir -p /mnt;" + script).splitlines()
    assert said[:2] == [CONFINED, CONFINED], "the first process, and one that exec brought"
    verdicts = dict(reversed(line.split(": ", 1)) for line in said[2:])  # type: ignore[misc]
    assert verdicts == {
        "put /proc/sys/kernel/domainname": "denied",
        "put /proc/sys/vm/swappiness": "denied",
        "put /proc/sys/kernel/shmmni": "allowed",
        "sh -c echo h >/proc/sysrq-trigger": "denied",
        "sh -c echo 0 >/proc/self/oom_score_adj": "allowed",
        "mount -t tmpfs none /mnt": "denied",
        "head -c 1 /proc/kcore": "denied",
        "sh -c echo >/sys/kernel/mm/transparent_hugepage/defrag": "denied",
        "touch /etc/written": "allowed",
        "kill -0 1": "allowed",
    }


@pytest.mark.needs("apparmor")
def test_the_choice_of_another() -> None:
    unconfined = ("--security-opt", "apparmor=unconfined")
    show = ("busybox", "sh", "-c", "cat /proc/self/attr/current; cat /proc/sys/kernel/shmmni >/proc/sys/kernel/shmmni")
    assert out("teu", "run", "--rm", *unconfined, "--security-opt", "systempaths=unconfined", *show) == "unconfined"
    assert out("teu", "run", "--rm", "--privileged", *show) == "unconfined"
    text = "profile teu-other flags=(attach_disconnected) { file, capability, network, signal, deny /etc/passwd r, }"
    subprocess.run(["apparmor_parser", "--replace", "--skip-cache"], input=text, text=True, check=True)
    try:
        other = ("--security-opt", "apparmor=teu-other", "busybox", "sh", "-c")
        script = "cat /proc/self/attr/current; cat /etc/passwd 2>/dev/null || echo denied"
        assert out("teu", "run", "--rm", *other, script).splitlines() == ["teu-other (enforce)", "denied"]
    finally:
        Path("/sys/kernel/security/apparmor/.remove").write_text("teu-other")
    done = call("teu", "run", "--rm", "--security-opt", "apparmor=no-such", "busybox", "true", check=False)
    assert done.returncode in (125, 126, 127) and "no-such" in done.stderr


@pytest.mark.needs("apparmor")
def test_a_profile_that_is_disabled_is_not_loaded() -> None:
    switch = Path("/etc/apparmor.d/disable/teu-default")
    switch.parent.mkdir(exist_ok=True)
    switch.symlink_to("/etc/apparmor.d/teu-default")
    try:
        if "teu-default (" in PROFILES.read_text():
            Path("/sys/kernel/security/apparmor/.remove").write_text("teu-default")
        assert out("teu", "run", "--rm", "busybox", "cat", "/proc/self/attr/current") == "unconfined"
    finally:
        switch.unlink()
    assert out("teu", "run", "--rm", "busybox", "cat", "/proc/self/attr/current") == CONFINED
