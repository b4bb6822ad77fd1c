# SPDX-License-Identifier: Apache-2.0
"""Quadlet projects as people publish them, started as units; podman's generator takes the same files."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from declared import PLACE, UNITS, Declared, becomes, declare, journal, shared_run, start, state
from quadlets import PROJECTS, Project
from whole import call, eventually, show, teu

pytestmark = pytest.mark.needs("systemd", "teud")
__all__ = ["declare", "shared_run"]
# Keys that podman 5.4 does not have yet.
NEWER = re.compile(r"^(Memory|BuildArg|ReloadSignal)=.*\n", re.M)
TOOL = "localhost/teu-tool:latest"  # which a project builds
QUADLET = "/usr/lib/systemd/system-generators/podman-system-generator"


def place(project: Project, declare: Declared) -> None:
    for name, text in project.files.items():
        declare.file((UNITS if name.endswith((".socket", ".timer")) else PLACE) / name, text)
    declare.reload()


def test_there_are_twenty() -> None:
    assert len(PROJECTS) == 20


@pytest.mark.parametrize("name", PROJECTS)
def test_a_public_project(name: str, declare: Declared, shared_run: None) -> None:
    project = PROJECTS[name]
    before = set(teu("volume", "ls", "-q").stdout.split()), set(teu("network", "ls", "-q").stdout.split())
    place(project, declare)
    try:
        assert teu("system", "validate", "-q").stderr == ""
        for unit in project.start:
            start(unit)
            assert state(unit) == "active"
        for container, template, wanted in project.shows:
            assert teu("inspect", "-f", template, container).stdout.strip() == wanted, (container, template)
        also(name)
    finally:
        declare.end()
        for volume in set(teu("volume", "ls", "-q").stdout.split()) - before[0]:
            teu("volume", "rm", volume)
        for network in set(teu("network", "ls", "-q").stdout.split()) - before[1]:
            teu("network", "rm", network)
        teu("rmi", "-f", TOOL, check=False)


def also(name: str) -> None:
    """What `teu inspect` does not show."""
    if name == "nextcloud in a pod":
        page = ("busybox", "wget", "-qO-", "http://127.0.0.1:8302")
        eventually("the page is there", lambda: call(*page, check=False).stdout == "cloud\n")
    elif name == "caddy":
        call("systemctl", "reload", "caddy.service")
    elif name == "postgres with a password":
        assert teu("exec", "postgres", "cat", "/run/secrets/pg-password").stdout == "geheim"
        assert "POSTGRES_PASSWORD=geheim" in teu("exec", "postgres", "env").stdout
        assert teu("exec", "postgres", "stat", "-c", "%u", "/var/lib/postgresql/data").stdout == "70\n"
    elif name == "pi-hole":
        assert "192.0.2.1\trouter.lan" in teu("exec", "pihole", "cat", "/etc/hosts").stdout
        assert "nameserver" in teu("exec", "pihole", "cat", "/etc/resolv.conf").stdout
    elif name == "a cron job by a timer":
        eventually("the timer has run it", lambda: "saved" in journal("backup.service"))
        becomes("backup.service", "inactive")
        assert show("backup.service", "Result") == "success"
    elif name == "an image and a build":
        assert teu("exec", "tool", "cat", "/word").stdout == "built\n"
    elif name == "socket activation":
        assert teu("exec", "echo", "ls", "/proc/1/fd/3").returncode == 0
    elif name == "minio with reload and restart rules":
        call("systemctl", "reload", "minio.service")
        eventually("it has heard", lambda: teu("exec", "minio", "ls", "/tmp").stdout == "reloaded\n")
    elif name == "mailcow-like with env files and limits":
        assert show("dovecot.service", "ControlGroup") == "/mail.slice/dovecot.service"


@pytest.mark.parametrize("name", PROJECTS)
def test_podman_takes_the_same_files(name: str, tmp_path: Path) -> None:
    """The peer: its generator makes units of the same names of them."""
    if not os.path.exists(QUADLET):
        pytest.skip("podman has no generator here")
    wanted = set()
    for file, text in PROJECTS[name].files.items():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(NEWER.sub("", text))
        stem, _, kind = file.rpartition(".")
        suffix = {"container": "", "pod": "-pod", "network": "-network", "volume": "-volume", "image": "-image"}
        suffix["build"] = "-build"
        if kind in suffix and "/" not in file:
            wanted.add(f"{stem}{suffix[kind]}.service")
    done = subprocess.run(
        [QUADLET, "--dryrun"], env={"QUADLET_UNIT_DIRS": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    found = {line.strip("-") for line in done.stdout.splitlines() if line.startswith("---") and line.endswith("---")}
    assert not done.returncode and found == wanted, done.stderr


def test_podmans_own_folder_is_read_by_a_link(declare: Declared) -> None:
    theirs = Path("/etc/containers/systemd")
    theirs.mkdir(parents=True, exist_ok=True)
    (theirs / "syncthing.container").write_text(PROJECTS["syncthing"].files["syncthing.container"])
    PLACE.mkdir(parents=True, exist_ok=True)
    link = PLACE / "podman"
    link.symlink_to(theirs)
    try:
        declare.reload()
        start("syncthing.service")
        assert show("syncthing.service", "SourcePath") == str(link / "syncthing.container")
        assert teu("inspect", "-f", "{{.HostConfig.Init}}", "syncthing").stdout == "true\n"
    finally:
        call("systemctl", "stop", "syncthing.service", check=False)
        link.unlink()
        (theirs / "syncthing.container").unlink()
        declare.reload()
