# SPDX-License-Identifier: Apache-2.0
"""Sockets that systemd passed to another process, by the annotation io.teu.listen-fds. In a process of its own each
time: it closes all other descriptors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[3] / "src"
TAKER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from teu.runc import log
from teu.runc.descriptors import passed_sockets
from teu.runc.errors import RuncError
log.configure(sys.argv[3], "text", False)
try:
    count = passed_sockets({"io.teu.listen-fds": sys.argv[2]})
except RuncError as error:
    print(error)
    sys.exit(1)
log.write("error", "told")
names = [os.readlink(f"/proc/self/fd/{n}") for n in range(3, 3 + count)]
print(count, *names, *(os.get_inheritable(n) for n in range(3, 3 + count)), log.fd())
"""
HOLDER = """
import os, sys
for n in range(3):
    os.dup2(os.open(f"{sys.argv[1]}/{n}", os.O_RDWR | os.O_CREAT), 3 + n)
print("ready", flush=True)
sys.stdin.read()
"""


def start_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@pytest.fixture
def holder(tmp_path: Path):  # type: ignore[no-untyped-def]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def take(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TAKER, SRC, text, tmp_path / "log"], capture_output=True, text=True, check=False
    )


def test_they_stand_where_systemd_puts_them(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    done = take(tmp_path, f"{holder.pid}:{start_of(holder.pid)}:3")
    assert done.returncode == 0, done.stderr + done.stdout
    words = done.stdout.split()
    assert words[:4] == ["3", *(str(tmp_path / str(n)) for n in range(3))]
    assert words[4:7] == ["True"] * 3 and int(words[7]) == 6
    assert "told" in (tmp_path / "log").read_text()


def test_another_process_than_was_meant(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    assert "another process" in take(tmp_path, f"{holder.pid}:1:3").stdout


def test_too_few_and_too_many_and_nonsense(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    assert "cannot take over" in take(tmp_path, f"{holder.pid}:{start_of(holder.pid)}:40").stdout
    assert "more than" in take(tmp_path, f"{os.getpid()}:1:4000").stdout
    assert "is not PID:START:COUNT" in take(tmp_path, "1:2").stdout
