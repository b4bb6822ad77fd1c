# SPDX-License-Identifier: Apache-2.0
"""Runs each case with each runtime, in the machine of test_selinux.py; started by init.

Writes to stdout what came of it: {case: {runtime: [{"status", "stdout", "stderr"} of each command]}}.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RUNTIMES = ("runc", "teu-runc")
SELINUX = Path("/sys/fs/selinux")
PROCESS = "system_u:system_r:container_t:s0:c1,c2"
OTHER = "system_u:system_r:container_t:s0:c3"
MOUNT = "system_u:object_r:container_file_t:s0:c1,c2"
FORBIDDEN = "system_u:system_r:forbidden_t:s0"
NONSENSE = "system_u:system_r:no_such_type_t:s0"
PROBE = ["/usr/bin/python3", "-I", "-S", "/lab/probe.py"]

TMPFS = ["nosuid", "noexec"]
BASE: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": PROBE,
        "env": ["PATH=/usr/bin:/bin"],
        "cwd": "/",
        "noNewPrivileges": True,
        "capabilities": {},
    },
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*TMPFS, "size=1m"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]},
        {"destination": "/lab/copied", "type": "tmpfs", "source": "tmpfs", "options": [*TMPFS, "tmpcopyup"]},
        {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
        {"destination": "/opt", "type": "bind", "source": "/lab/bound", "options": ["rbind", "ro"]},
    ],
    "linux": {
        "namespaces": [{"type": name} for name in ("pid", "mount", "ipc", "uts", "network", "cgroup")],
        "maskedPaths": ["/srv", "/proc/kcore"],
    },
}

ROOT = Path("/run/selinux")


def case(runtime: str, changes: dict[str, Any], flags: tuple[str, ...] = (), execs: tuple[list[str], ...] = ()) -> Any:
    """`run` with that configuration, or each `exec` in a container of it; what came of each command."""
    config = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[name] = value
    config["linux"]["cgroupsPath"] = "/tried"
    if execs:
        config["process"]["args"] = ["/usr/bin/sleep", "infinity"]
    bundle = Path("/lab/bundle")
    (bundle / "config.json").write_text(json.dumps(config))
    id = "tried"
    command = [runtime, "--root", f"/run/{runtime}"]
    try:
        if not execs:
            return [call([*command, "run", *flags, id], bundle)]
        started = call([*command, "run", "-d", *flags, id], bundle)
        return [started] + [call([*command, "exec", *words], bundle) for words in execs]
    finally:
        call([*command, "delete", "--force", id], bundle)


def call(command: list[str], folder: Path) -> dict[str, Any]:
    """Run a command; its status and what it wrote."""
    with (ROOT / "stdout").open("w+") as stdout, (ROOT / "stderr").open("w+") as stderr:
        # Files and no pipes: a detached container keeps them open.
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, timeout=200)
        return {
            "status": done.returncode,
            "stdout": (ROOT / "stdout").read_text(),
            "stderr": (ROOT / "stderr").read_text(),
        }


def bundle_folder() -> None:
    """The container's root is the machine's own."""
    bundle = Path("/lab/bundle")
    (bundle / "rootfs").mkdir(parents=True)
    for name in ("bound", "copied"):
        Path("/lab", name).mkdir()
        Path("/lab", name, "file").touch()
    subprocess.run(["mount", "--bind", "/", str(bundle / "rootfs")], check=True)
    process = {**BASE["process"], "selinuxLabel": OTHER}
    (bundle / "process.json").write_text(json.dumps(process))
    (bundle / "plain.json").write_text(json.dumps(BASE["process"]))


def main() -> None:
    ROOT.mkdir()
    bundle_folder()
    # before there is a policy, SELinux counts as disabled
    subprocess.run(["mount", "-t", "selinuxfs", "selinuxfs", str(SELINUX)], check=True)
    answer = {"no policy": {runtime: case(runtime, BOTH) for runtime in RUNTIMES}}
    with (SELINUX / "load").open("wb", buffering=0) as file:
        file.write(Path("/lab/policy").read_bytes())
    (SELINUX / "enforce").write_text("1")
    for name, arguments in CASES.items():
        answer[name] = {runtime: case(runtime, *arguments) for runtime in RUNTIMES}
    json.dump(answer, sys.stdout)


LABELLED = {
    "destination": "/media",
    "type": "tmpfs",
    "source": "tmpfs",
    "options": [f'context="{MOUNT}"'],
}
BOTH = {"process.selinuxLabel": PROCESS, "linux.mountLabel": MOUNT}
CASES: dict[str, tuple[Any, ...]] = {
    "no label": ({},),
    "process and mounts": (BOTH,),
    "mount with a label": ({"mounts": [*BASE["mounts"], LABELLED]},),
    "new privileges": ({**BOTH, "process.noNewPrivileges": False},),
    "no new keyring": (BOTH, ("--no-new-keyring",)),
    "unknown process label": ({"process.selinuxLabel": NONSENSE},),
    "unknown process label, no new keyring": ({"process.selinuxLabel": NONSENSE}, ("--no-new-keyring",)),
    "unknown mount label": ({"linux.mountLabel": NONSENSE},),
    "forbidden process label": ({"process.selinuxLabel": FORBIDDEN},),
    "apparmor profile": ({"process.apparmorProfile": "some"},),
    "exec": (
        BOTH,
        (),
        (
            ["tried", *PROBE],
            ["--process-label", OTHER, "tried", *PROBE],
            ["--process", "process.json", "tried"],
            ["--process", "plain.json", "tried"],
            ["--process-label", NONSENSE, "tried", *PROBE],
            ["--process-label", FORBIDDEN, "tried", *PROBE],
        ),
    ),
}

if __name__ == "__main__":
    main()
