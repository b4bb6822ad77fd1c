# SPDX-License-Identifier: Apache-2.0
"""teu-runc as an ordinary user: cgroups where systemd's user manager delegates them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_kind import PATIENCE
from runc_bundle import RUNC, Bundle, full_proc

USER, UID = "teucgroups", 4712
MANAGER = Path(f"/sys/fs/cgroup/user.slice/user-{UID}.slice/user@{UID}.service")
pytestmark = pytest.mark.needs("systemd", "teu-runc", "setpriv", "loginctl")


@pytest.fixture(scope="module")
def session() -> Iterator[Path]:
    """A user with a manager of its own; the cgroup of a login in it."""
    full_proc()
    subprocess.run(["useradd", "-u", str(UID), "-m", USER], check=False, capture_output=True)
    subprocess.run(["loginctl", "enable-linger", USER], check=True)
    deadline = time.monotonic() + 30 * PATIENCE
    while not Path(f"/run/user/{UID}/systemd/private").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    login = MANAGER / "app.slice" / "login"
    login.mkdir(parents=True, exist_ok=True)
    for folder in (login.parent, login):
        for place in (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control"):
            os.chown(place, UID, UID)
    yield login
    login.rmdir()
    subprocess.run(["loginctl", "disable-linger", USER], check=False)
    subprocess.run(["systemctl", "stop", f"user@{UID}"], check=False)
    subprocess.run(["userdel", "-r", USER], check=False, capture_output=True)


@pytest.fixture
def bundle(session: Path) -> Iterator[Bundle]:
    folder = Path(tempfile.mkdtemp(prefix="teu-rootless-", dir="/var/lib"))
    folder.chmod(0o755)
    made = Bundle(folder)
    made.config["mounts"] = [m for m in made.config["mounts"] if m["destination"] not in ("/sys", "/dev/mqueue")]
    for mount in made.config["mounts"]:
        mount["options"] = [o for o in mount.get("options") or [] if not o.startswith("gid=")]
    made.namespace("user")
    made.linux["uidMappings"] = made.linux["gidMappings"] = [{"containerID": 0, "hostID": UID, "size": 1}]
    made.process["args"] = ["sleep", "1000"]
    made.write()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)
    made.user = UID
    yield made
    made.clean()
    shutil.rmtree(folder, ignore_errors=True)


def as_user(bundle: Bundle, session: Path, *words: str) -> str:
    """Run teu-runc as the user, from within the user's login."""
    join = f'echo $$ > {session}/cgroup.procs && exec "$@"'
    command = [
        "sh",
        "-c",
        join,
        "sh",
        "setpriv",
        f"--reuid={UID}",
        f"--regid={UID}",
        "--clear-groups",
        "--inh-caps=-all",
        "env",
        f"XDG_RUNTIME_DIR=/run/user/{UID}",
        RUNC,
        "--root",
        str(bundle.root),
        *words,
    ]
    with bundle.output.open("w") as output:
        done = subprocess.run(
            command,
            cwd=bundle.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=60 * PATIENCE,
            check=False,
        )
    said = bundle.output.read_text()
    assert done.returncode == 0, f"{words}: {done.returncode}: {said}"
    return said


def cgroup_of(pid: int) -> Path:
    line = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    return Path("/sys/fs/cgroup") / line[4:]


def test_a_scope_of_the_users_manager(bundle: Bundle, session: Path) -> None:
    bundle.linux["cgroupsPath"] = f"app.slice:unit:{bundle.folder.name}"
    bundle.write()
    identifier = bundle.new_id()
    as_user(bundle, session, "--systemd-cgroup", "run", "-d", identifier)
    where = MANAGER / "app.slice" / f"unit-{bundle.folder.name}.scope"
    assert cgroup_of(bundle.pid(identifier)) == where
    assert "pids" in as_user(bundle, session, "events", "--stats", identifier)
    as_user(bundle, session, "pause", identifier)
    assert bundle.status(identifier) == "paused"
    as_user(bundle, session, "resume", identifier)
    as_user(bundle, session, "exec", identifier, "true")
    as_user(bundle, session, "delete", "-f", identifier)
    assert not where.exists()


def test_the_default_scope(bundle: Bundle, session: Path) -> None:
    identifier = bundle.new_id()
    as_user(bundle, session, "--systemd-cgroup", "run", "-d", identifier)
    assert cgroup_of(bundle.pid(identifier)) == MANAGER / "user.slice" / f"runc-{identifier}.scope"
    as_user(bundle, session, "delete", "-f", identifier)


def test_a_plain_path_beside_the_login(bundle: Bundle, session: Path) -> None:
    identifier = bundle.new_id()
    as_user(bundle, session, "run", "-d", identifier)
    assert cgroup_of(bundle.pid(identifier)) == session.parent / identifier
    as_user(bundle, session, "delete", "-f", identifier)
    assert not (session.parent / identifier).exists()


def test_without_a_place_there_is_no_cgroup(bundle: Bundle) -> None:
    """From a cgroup that is not the user's: it runs all the same, where no limit is asked for."""
    identifier = bundle.new_id()
    bundle.leaving("run", "-d", identifier)
    assert cgroup_of(bundle.pid(identifier)) == cgroup_of(os.getpid())
    done = bundle.runc("pause", identifier)
    assert done.returncode == 1 and "without a cgroup" in done.stderr


@pytest.mark.needs("memory")
def test_a_delegated_limit(bundle: Bundle, session: Path) -> None:
    bundle.linux["cgroupsPath"] = f"app.slice:unit:{bundle.folder.name}"
    bundle.linux["resources"] = {"memory": {"limit": 64 << 20}}
    bundle.write()
    identifier = bundle.new_id()
    as_user(bundle, session, "--systemd-cgroup", "run", "-d", identifier)
    where = MANAGER / "app.slice" / f"unit-{bundle.folder.name}.scope"
    assert (where / "memory.max").read_text().strip() == str(64 << 20)
    as_user(bundle, session, "delete", "-f", identifier)
