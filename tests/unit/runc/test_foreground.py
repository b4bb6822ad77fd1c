# SPDX-License-Identifier: Apache-2.0
"""The terminal that a foreground run carries, with a socket in the master's place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[3] / "src"
SCRIPT = """
import os, select, socket, sys
sys.path.insert(0, sys.argv[1])
from teu.runc.foreground import _Terminal
master, container = socket.socketpair()
master.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
poll = select.poll()
terminal = _Terminal(master.fileno(), poll)
filled = 0
try:
    while True:
        filled += master.send(b"x" * 100)
except BlockingIOError:
    pass
def registered(file):
    try:
        poll.unregister(file)
    except KeyError:
        return False
    poll.register(file, select.POLLIN)
    return True
terminal.on_input()
print(registered(0), terminal.pending)
while filled:
    filled -= len(container.recv(filled))
terminal.on_master(select.POLLOUT)
print(registered(0), terminal.pending, container.recv(100))
"""


def run(given: bytes) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(SRC)], input=given, capture_output=True, check=True)
    return done.stdout.decode().splitlines()


def test_input_waits_until_the_terminal_takes_it() -> None:
    assert run(b"typed") == ["False b'typed'", "True b'' b'typed'"]


def test_the_end_of_input_reaches_a_terminal_that_takes_nothing_for_a_while() -> None:
    """It is told once, and the input is not read again."""
    assert run(b"") == ["False b'\\x04'", "False b'' b'\\x04'"]
