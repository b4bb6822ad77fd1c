# SPDX-License-Identifier: Apache-2.0
"""Every program's fast start is the one that is taken: what falls back to a slow one works, and nobody is told.

The kernel is asked (strace): which programs a run of a container executes, which files a start opens.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import images
import pytest
from lab_kind import PATIENCE
from whole import eventually, main_pid, out

pytestmark = pytest.mark.needs("packages", "fast")


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in descendants(int(child)))]


def untraced(pid: str) -> bool:
    return "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text()


def test_a_run_executes_the_containers_program_and_none_of_ours(tmp_path: Path) -> None:
    """The shim is a fork of the zygote, teu-runc's create, start and delete are forks of the shim; only the last
    step, which is no Python, is executed."""
    images.need_busybox()
    run = ["teu", "run", "--rm", "--network", "none", "busybox", "true"]
    subprocess.run(run, check=True, timeout=60 * PATIENCE)  # the daemons are there, and the image
    log = tmp_path / "trace"
    pids = [str(pid) for unit in ("teud", "teu-containerd") for pid in descendants(main_pid(unit))]
    traced = ["-etrace=execve,execveat", "-esignal=none", *(f"-p{pid}" for pid in pids)]
    tracer = subprocess.Popen(["strace", "-fqq", "-s200", "-o", log, *traced])
    try:
        eventually("strace holds them", lambda: not any(untraced(pid) for pid in pids))
        subprocess.run(run, check=True, timeout=60 * PATIENCE)
    finally:
        tracer.terminate()
        tracer.wait(30)
    executed = [line.partition("execve")[2] for line in log.read_text().splitlines() if line.endswith("= 0")]
    assert executed
    ours = [line for line in executed if re.search(r"/python3|containerd-shim-teu|/teu-runc\"", line)]
    assert not ours, executed


def test_the_library_of_the_hosts_python_is_a_dependency() -> None:
    """Recommended alone it was missing where nobody installs what is recommended, and everything was slow."""
    depends = out("dpkg-query", "-W", "-f=${Depends}", "teu-runc")
    python = Path("/usr/bin/python3").resolve().name
    assert f"lib{python}" in re.split(r"[ ,|]+", depends)
