# SPDX-License-Identifier: Apache-2.0
"""teu-containerd by fork from a process that has loaded all of its modules: what a cold start takes is most of the time
of a test that starts it again and again. The cold start has tests of its own.

This file is the program of that process as well; each request is a JSON list of words with two descriptors, for
standard output and errors, and {"wait": PID} is asked when that process has ended.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, NoReturn

TREE = Path(__file__).resolve().parents[3]


class Process:
    """A daemon, as subprocess.Popen would have it."""

    def __init__(self, pid: int, template: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._template = template
        self._ended = os.pidfd_open(pid)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._ended, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("teu-containerd", timeout or 0)
            self._template.sendall(json.dumps({"wait": self.pid}).encode())
            self.returncode = int(self._template.recv(64))
            os.close(self._ended)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


@functools.cache
def _template() -> socket.socket:
    """The process that is forked: one for all tests of a process of pytest, and it ends with that."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(["/usr/bin/python3", "-IS", __file__], stdin=theirs.fileno())
    return ours


def start(words: list[str], log: IO[bytes]) -> Process:
    """Start the daemon with the words of a command line."""
    template = _template()
    socket.send_fds(template, [json.dumps(words).encode()], [log.fileno(), log.fileno()])
    return Process(int(template.recv(64)), template)


# -- the other end ---------------------------------------------------------------------------------------


def _become(words: list[str], descriptors: list[int]) -> NoReturn:
    from teu.containerd import main

    with open("/dev/null") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = [str(TREE / "bin/teu-containerd"), *words]
    sys.exit(main.main())


def serve() -> None:
    import gc

    from teu.containerd import daemon  # noqa: F401
    from teu.containerd.runtime import zygote  # noqa: F401

    gc.collect()
    gc.freeze()
    asked = socket.socket(fileno=os.dup(0))
    while True:
        data, descriptors, _, _ = socket.recv_fds(asked, 65536, 2)
        if not data:
            return
        request = json.loads(data)
        if isinstance(request, dict):
            _, status = os.waitpid(request["wait"], 0)
            asked.sendall(b"%d" % os.waitstatus_to_exitcode(status))
            continue
        child = os.fork()
        if not child:
            asked.close()
            _become(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        asked.sendall(b"%d" % child)


if __name__ == "__main__":
    sys.path.append("/usr/lib/python3/dist-packages")
    sys.path.insert(0, str(TREE / "src"))
    serve()
