# SPDX-License-Identifier: Apache-2.0
"""teu-runc-init alone, as this machine's program and as that of arm64 under qemu's emulation of a process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from socket import AF_UNIX, SOCK_SEQPACKET, socketpair

import pytest

from teu.runc import process

SOURCE = Path(__file__).parents[3] / "src/c"
SCRIPT = 'echo "$0 $1 $X $(pwd) $(umask) $(id -u):$(id -g):$(id -G)"; grep -E "^(CapBnd|NoNewPrivs)" /proc/self/status'

# What runs the program, and what compiles it.
MACHINES = {"native": ([], "cc"), "arm64": (["qemu-aarch64"], "aarch64-linux-gnu-gcc")}


@pytest.fixture(scope="module", params=MACHINES)
def init(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    emulator, compiler = MACHINES[request.param]
    program = tmp_path_factory.mktemp("c") / "teu-runc-init"
    subprocess.run(["make", "-s", "-C", str(SOURCE), f"CC={compiler}", f"OUT={program}"], check=True)
    return [*emulator, str(program)]


def run(init: list[str], described: dict[str, object], answers: bytes = b"f") -> tuple[list[bytes], int, str]:
    """(what it told, its exit status, what its program printed)."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    procfs = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    env = ["X=y", "PATH=/bin:/usr/bin"]
    sets = [1 << 5 | 1 << 7, 1 << 5, 0, 1 << 5, 0]
    last = process.LastStep(described, sets)
    last.flags = process.FLAG_SETGROUPS
    data = last.records(env, (theirs.fileno(), -1, -1, procfs, -1))
    records = process.sealed(b"records", data)
    told: list[bytes] = []
    with ours:
        child = subprocess.Popen(
            [*init, str(records)],
            pass_fds=(theirs.fileno(), procfs, records),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        os.close(procfs)
        os.close(records)
        while message := ours.recv(4096):
            told.append(message)
            if message[:1] in (b"L", b"R"):
                ours.send(b"g" if message[:1] == b"L" else answers)
        said, _ = child.communicate(timeout=60)
    return told, child.returncode, said


def test_from_records_to_the_program(init: list[str], tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    described = {
        "args": ["sh", "-c", SCRIPT, "zero", "one"],
        "cwd": "/usr",
        "user": {"uid": 0, "gid": 12, "umask": 0o27, "additionalGids": [5, 6]},
        "noNewPrivileges": True,
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
    }
    told, status, said = run(init, described)
    assert [message[:1] for message in told] == [b"L", b"R"]
    assert status == 0
    first, *rest = said.splitlines()
    assert first == "zero one y /usr 0027 0:12:12 5 6"
    values = dict(line.split() for line in rest)
    assert int(values["CapBnd:"], 16) == 1 << 5 | 1 << 7 and values["NoNewPrivs:"] == "1"


def test_errors_are_told(init: list[str]) -> None:
    told, status, _ = run(init, {"args": ["true"], "cwd": "/no/such/place"})
    assert status != 0 and told[-1][:1] == b"E"
    assert "chdir to cwd" in process.failure_text(told[-1])
    told, status, _ = run(init, {"args": ["no-such-program"], "cwd": "/"})
    assert status != 0 and 'exec: "no-such-program"' in process.failure_text(told[-1])


def test_without_the_word_it_ends(init: list[str]) -> None:
    told, status, said = run(init, {"args": ["echo", "ran"], "cwd": "/"}, answers=b"x")
    assert told[-1][:1] == b"R" and status != 0 and said == ""
