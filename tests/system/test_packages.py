# SPDX-License-Identifier: Apache-2.0
"""The Debian packages: what they install, that they leave the peers alone, that an upgrade is not noticed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from whole import call, eventually, main_pid, out, parent_of, show, teu

pytestmark = pytest.mark.needs("packages", "systemd")

PACKAGES = ("teu-runc", "teu-containerd", "teu-buildkitd", "teu")
PROGRAMS = {
    "teu-runc": ("/usr/sbin/teu-runc",),
    "teu-containerd": ("/usr/sbin/teu-containerd", "/usr/bin/containerd-shim-teu-v2", "/usr/bin/teu-ctr"),
    "teu-buildkitd": ("/usr/sbin/teu-buildkitd",),
    "teu": ("/usr/sbin/teud", "/usr/bin/teu"),
}
UNITS = ("teud.socket", "teud.service", "teu-containerd.socket", "teu-containerd.service", "teu.slice")
UNITS += ("teu-buildkitd.socket", "teu-buildkitd.service", "teu-build.slice")
PEERS = ("docker.io", "containerd", "runc", "podman", "crun")


def files_of(package: str) -> list[str]:
    return [path for path in out("dpkg", "-L", package).splitlines() if not Path(path).is_dir()]


@pytest.mark.parametrize("package", PACKAGES)
def test_programs_are_where_the_issue_says(package: str) -> None:
    installed = files_of(package)
    for program in PROGRAMS[package]:
        assert program in installed
        assert os.access(program, os.X_OK)
        assert out("dpkg", "-S", program).split(":")[0] == package


def changed_files(package: str) -> list[str]:
    """What dpkg finds changed or missing; the labs leave changelogs and translations out."""
    found = call("dpkg", "-V", package, check=False).stdout.splitlines()
    return [line for line in found if "/changelog" not in line and "/locale/" not in line]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_changed_or_missing(package: str) -> None:
    assert not changed_files(package)


def test_configuration_files_are_conffiles() -> None:
    conffiles = out("dpkg-query", "-W", "-f=${Conffiles}", *PACKAGES)
    for file in ("/etc/teu/teud.yaml", "/etc/teu/containerd.yaml", "/etc/teu/buildkitd.yaml"):
        assert file in conffiles.split()
        assert Path(file).stat().st_mode & 0o777 == 0o644


def test_the_builder_has_what_sources_of_git_need() -> None:
    """git, over HTTPS and over ssh; not more than recommended, as a build without such sources needs neither."""
    recommended = out("dpkg-query", "-W", "-f=${Recommends}", "teu-buildkitd").replace(",", " ").split()
    assert {"ca-certificates", "git", "openssh-client"} <= set(recommended)


def test_only_the_distribution_is_needed() -> None:
    """Every import of third parties is a package's file, none is pip's."""
    script = "import sys; sys.path.append('/usr/lib/python3/dist-packages'); import grpc, google.protobuf, yaml, h11"
    script += "; print(*(m.__file__ for m in (grpc, yaml, h11)))"
    for path in out("/usr/bin/python3", "-IS", "-c", script).split():
        assert path.startswith("/usr/lib/python3/dist-packages/")


def test_every_program_starts_without_what_its_caller_has_for_python() -> None:
    """-I: neither PYTHONPATH nor the user's packages nor the program's folder; -S: no site. The packaging tools like to
    write these lines anew."""
    files = [Path(line) for line in out("dpkg-query", "-L", *PACKAGES).splitlines() if line.startswith("/usr/")]
    programs = [file for file in files if file.is_file() and file.stat().st_mode & 0o111]
    first = {file: file.read_bytes().partition(b"\n")[0] for file in programs}
    python = {str(file): line.decode() for file, line in first.items() if line.startswith(b"#!") and b"python" in line}
    assert {
        "/usr/lib/teu/teu",
        "/usr/lib/teu/teu-system-generator",
        "/usr/sbin/teud",
        "/usr/sbin/teu-containerd",
    } <= set(python)
    assert set(python.values()) == {"#!/usr/bin/python3 -IS"}, python


def test_the_peers_are_untouched() -> None:
    installed = out("dpkg-query", "-W", "-f=${Package} ", *PEERS).split()
    assert set(installed) == set(PEERS)
    changed = [line for peer in PEERS for line in changed_files(peer)]
    assert not changed


def test_sockets_are_enabled_with_their_owners() -> None:
    for unit in ("teud.socket", "teu-containerd.socket", "teu-buildkitd.socket"):
        assert out("systemctl", "is-enabled", unit) == "enabled"
        assert out("systemctl", "is-active", unit) == "active"
    for path, mode, group in (
        ("/run/teu/teud.sock", 0o660, "teu"),
        ("/run/teu/containerd.sock", 0o600, "root"),
        ("/run/teu/containerd.sock.ttrpc", 0o600, "root"),
        ("/run/teu/buildkitd.sock", 0o600, "root"),
        ("/run/teu/buildkitd-sessions.sock", 0o600, "root"),
    ):
        status = os.stat(path)
        assert stat.S_ISSOCK(status.st_mode)
        assert (oct(stat.S_IMODE(status.st_mode)), status.st_uid) == (oct(mode), 0)
        assert out("getent", "group", str(status.st_gid)).split(":")[0] == group


def test_a_connection_starts_stopped_services() -> None:
    call("systemctl", "stop", "teud.service", "teu-containerd.service")
    assert main_pid("teud.service") == main_pid("teu-containerd.service") == 0
    teu("images")
    assert main_pid("teud.service") > 0
    assert main_pid("teu-containerd.service") > 0


@pytest.mark.parametrize("unit", UNITS)
def test_units_are_valid_and_documented(unit: str) -> None:
    done = call("systemd-analyze", "verify", "--man=no", f"/usr/lib/systemd/system/{unit}", check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "teu" in line]
    assert not complaints
    assert "man:" in out("systemctl", "show", "-p", "Documentation", unit)


@pytest.mark.parametrize("service", ["teud.service", "teu-containerd.service"])
def test_services_are_watched_and_never_kill_containers(service: str) -> None:
    teu("ps")
    shown = dict(line.split("=", 1) for line in out("systemctl", "show", service).splitlines() if "=" in line)
    assert shown["Type"] == "notify"
    assert shown["KillMode"] == "process"
    assert shown["WatchdogUSec"] not in ("0", "infinity")
    assert shown["OOMPolicy"] == "continue"
    assert shown["StatusText"]


def test_the_engine_is_sandboxed() -> None:
    shown = out("systemctl", "show", "teud.service")
    for directive in ("NoNewPrivileges=yes", "LockPersonality=yes", "RestrictRealtime=yes"):
        assert directive in shown.splitlines()
    pid = main_pid("teud.service") or (teu("ps") and main_pid("teud.service"))
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status


def test_reload_is_told_to_systemd() -> None:
    teu("ps")
    for service in ("teud.service", "teu-containerd.service"):
        before = main_pid(service)
        call("systemctl", "reload", service)
        eventually("the reload is over", lambda service=service: show(service, "ActiveState") == "active")
        assert main_pid(service) == before


@pytest.mark.parametrize(
    ("daemon", "file"),
    [("teud", "/etc/teu/teud.yaml.d/50-test.yaml"), ("teu-containerd", "/etc/teu/containerd.yaml.d/50-test.yaml")],
)
def test_a_mistake_in_a_drop_in_stops_the_start(daemon: str, file: str) -> None:
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("# a comment\nlog-levle: debug\n")
    try:
        done = call(daemon, "--validate", check=False)
        assert done.returncode != 0
        assert f"{file}:2: log-levle: unknown key; did you mean log-level?" in done.stdout + done.stderr
    finally:
        Path(file).unlink()
    assert call(daemon, "--validate").returncode == 0


def test_manual_pages() -> None:
    for page in ("teu.1", "teu-ctr.1", "teud.8", "teu-containerd.8", "teu-runc.8", "containerd-shim-teu-v2.8"):
        name, section = page.rsplit(".", 1)
        path = Path(f"/usr/share/man/man{section}/{page}.gz")
        assert path.exists(), f"no manual page {name}({section})"
    for page in ("teud.yaml.5", "teu-containerd.yaml.5"):
        assert Path(f"/usr/share/man/man5/{page}.gz").exists()


def test_bash_completion() -> None:
    script = "source /usr/share/bash-completion/bash_completion; _completion_loader teu; complete -p teu"
    assert " teu" in out("bash", "-c", script)


@pytest.fixture
def busybox() -> Iterator[None]:
    teu("load", "-i", "/usr/share/teu/images/busybox.oci.tar")
    yield


def repacked(version: str, folder: Path) -> list[str]:
    """The packages of this tree as another version of Teu: in their metadata, and in what the programs say."""
    current = out("dpkg-query", "-W", "-f=${Version}", "teu")
    made = []
    for package in PACKAGES:
        archive = next(Path("/src/dist").glob(f"{package}_*.deb"))
        tree = folder / package
        call("dpkg-deb", "--raw-extract", str(archive), str(tree))
        control = tree / "DEBIAN/control"
        control.write_text(control.read_text().replace(current, version))
        for module in tree.rglob("dist-packages/teu/__init__.py"):
            module.write_text(module.read_text().replace(f'"{current}"', f'"{version}"'))
        sums = tree / "DEBIAN/md5sums"
        sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "teu/__init__.py" not in line))
        made.append(str(folder / f"{package}_{version}.deb"))
        call("dpkg-deb", "-Znone", "--root-owner-group", "--build", str(tree), made[-1])
    return made


def install(*archives: str) -> None:
    done = subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--allow-downgrades", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"]
        + [*archives],
        env={"PATH": os.environ["PATH"], "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("fast")
@pytest.mark.timeout(300)
def test_upgrade_and_downgrade_keep_containers_running(busybox: None, tmp_path: Path) -> None:
    """To a newer version and back again: nobody in a container notices, and what ends meanwhile is known."""
    script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"
    teu("run", "-d", "--name", "kept", "busybox", "sh", "-c", script)
    until = "while [ ! -e /go ]; do sleep 0.05; done; exit 7"
    for number in (1, 2):
        teu("run", "-d", "--name", f"ends-{number}", "busybox", "sh", "-c", until)
    old = out("dpkg-query", "-W", "-f=${Version}", "teu")
    new = f"{old}.9"
    try:
        pid = out("teu", "inspect", "-f", "{{.State.Pid}}", "kept")
        shim = parent_of(int(pid))
        for number, version, archives in (
            (1, new, repacked(new, tmp_path)),
            (2, old, [str(path) for path in Path("/src/dist").glob("*.deb")]),
        ):
            before = [main_pid(service) for service in ("teud.service", "teu-containerd.service")]
            sockets = [os.stat(path).st_ino for path in ("/run/teu/teud.sock", "/run/teu/containerd.sock")]
            install(*archives)
            assert out("dpkg-query", "-W", "-f=${Version} ", *PACKAGES).split() == [version] * len(PACKAGES)
            assert parent_of(int(pid)) == shim, "the same process, the same shim"
            assert out("teu", "inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "kept") == f"{pid} running"
            after = [main_pid(service) for service in ("teud.service", "teu-containerd.service")]
            assert 0 not in after and not set(after) & set(before), "the new code runs"
            assert out("teu", "version", "-f", "{{.Server.Version}}") == version
            assert sockets == [os.stat(path).st_ino for path in ("/run/teu/teud.sock", "/run/teu/containerd.sock")]
            seen = len(out("teu", "logs", "kept").splitlines())
            eventually("more output", lambda seen=seen: len(out("teu", "logs", "kept").splitlines()) > seen)
            lines = [int(line.split()[1]) for line in out("teu", "logs", "kept").splitlines()]
            assert lines == list(range(1, len(lines) + 1)), "no line is lost or doubled"
            teu("exec", f"ends-{number}", "touch", "/go")
            assert out("teu", "wait", f"ends-{number}") == "7"
            assert out("teu", "run", "--rm", "busybox", "echo", version) == version
        teu("stop", "-t", "1", "kept")
    finally:
        teu("rm", "-f", "kept", "ends-1", "ends-2", check=False)
        if out("dpkg-query", "-W", "-f=${Version}", "teu") != old:
            install(*[str(path) for path in Path("/src/dist").glob("*.deb")])


@pytest.mark.needs("fast")
@pytest.mark.parametrize(
    ("service", "database", "newer"),
    [
        ("teud", "/var/lib/teu/engine/engine.db", "PRAGMA user_version = 999"),
        ("teu-containerd", "/var/lib/teu/containerd/metadata.db", "UPDATE meta SET value=999 WHERE key='version'"),
    ],
)
def test_state_of_a_newer_version_is_refused_and_left_alone(service: str, database: str, newer: str) -> None:
    """A downgrade past a change of the schema: nothing is guessed, and the newer version finds all of it again."""
    teu("ps")
    call("systemctl", "stop", "teud.service", "teu-containerd.service")
    kept = {path: path.read_bytes() for path in map(Path, (database, f"{database}-wal")) if path.exists()}
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute(newer)
            connection.commit()
        call("systemctl", "start", f"{service}.service", check=False)
        eventually("it gives up", lambda: show(f"{service}.service", "ActiveState") == "failed")
        assert show(f"{service}.service", "ExecMainStatus") == "65"
        assert f"{database} was written by a newer {service} (" in out("journalctl", "-u", service, "-n", "40")
        call("systemctl", "stop", "teud.service", "teu-containerd.service", "teud.socket", "teu-containerd.socket")
        with contextlib.closing(sqlite3.connect(database)) as connection:
            query = "PRAGMA user_version" if service == "teud" else "SELECT value FROM meta WHERE key = 'version'"
            assert int(connection.execute(query).fetchone()[0]) == 999
    finally:
        call("systemctl", "stop", "teud.service", "teu-containerd.service", check=False)
        for path in map(Path, (database, f"{database}-wal", f"{database}-shm")):
            path.unlink(missing_ok=True)
        for path, data in kept.items():
            path.write_bytes(data)
        call("systemctl", "start", "teu-containerd.socket", "teud.socket")
    assert teu("ps").returncode == 0


@pytest.mark.needs("docker", "namespace")
@pytest.mark.timeout(200)
def test_docker_and_its_containers_do_not_notice_an_installation() -> None:
    """A container that Debian's own dockerd, containerd and runc run, while Teu is installed again beside them."""
    call("systemctl", "start", "docker.service")
    try:
        call("docker", "load", "-i", "/usr/share/teu/images/busybox.oci.tar")
        call("docker", "run", "-d", "--name", "theirs", "--network", "none", "busybox", "sleep", "600")
        pid = out("docker", "inspect", "-f", "{{.State.Pid}}", "theirs")
        daemons = [main_pid(service) for service in ("docker.service", "containerd.service")]
        call("dpkg", "-i", *[str(path) for path in Path("/src/dist").glob("*.deb")])
        assert out("docker", "inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "theirs") == f"{pid} running"
        assert daemons == [main_pid(service) for service in ("docker.service", "containerd.service")]
        assert not [line for peer in PEERS for line in changed_files(peer)]
        assert "theirs" not in out("teu", "ps", "-a", "--format", "{{.Names}}")
    finally:
        call("docker", "rm", "-f", "theirs", check=False)
        call("docker", "rmi", "busybox", check=False)
        call("systemctl", "stop", "docker.service", "docker.socket", "containerd.service", check=False)
