# SPDX-License-Identifier: Apache-2.0
"""What the engine's tests share: the real docker CLI on teud, a terminal for it, docker-py."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import images
import whole
from lab_kind import PATIENCE

SOCKET = "/run/teu/teud.sock"
ENVIRONMENT = {**os.environ, "DOCKER_HOST": f"unix://{SOCKET}", "DOCKER_CLI_HINTS": "false"}
IMAGE = "busybox"
HOST = ("--network", "host")

need_busybox = images.need_busybox


def docker(
    *argv: str, check: bool = True, stdin: bytes | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Debian's docker on teud's socket."""
    done = subprocess.run(
        ["docker", *argv],
        env=ENVIRONMENT,
        timeout=timeout * PATIENCE,
        check=False,
        capture_output=True,
        **({"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}),
    )
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(argv)}: exit {done.returncode}\n{out[-2000:]}\n{err[-2000:]}")
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def out(*argv: str, **options: Any) -> str:
    return docker(*argv, **options).stdout


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """docker run --rm, without a network of its own."""
    return docker("run", "--rm", *HOST, *argv, **options)


def detached(name: str, *command: str, flags: tuple[str, ...] = HOST) -> str:
    return out("run", "-d", "--name", name, *flags, IMAGE, *command).strip()


def inspect(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out("inspect", name))[0]
    return found


def state(name: str) -> dict[str, Any]:
    found: dict[str, Any] = inspect(name)["State"]
    return found


def remove(*names: str) -> None:
    docker("rm", "-f", "-v", *names, check=False)


eventually = whole.eventually


class Terminal:
    """docker on a terminal of its own."""

    def __init__(self, *argv: str, rows: int = 24, columns: int = 80) -> None:
        import fcntl
        import struct
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            ["docker", *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=ENVIRONMENT,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, wanted: str, timeout: float = 20) -> None:
        """Until this text has come; what came before is forgotten."""
        deadline = time.monotonic() + timeout * PATIENCE
        while wanted not in self.text:
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"{wanted!r} did not come; there is {self.text!r}")
            if select.select([self.master], [], [], left)[0]:
                try:
                    data = os.read(self.master, 4096)
                except OSError:
                    raise AssertionError(f"the terminal ended before {wanted!r}; there is {self.text!r}") from None
                self.text += data.decode(errors="replace")
        self.text = self.text.partition(wanted)[2]

    def wait(self, timeout: float = 20) -> int:
        deadline = time.monotonic() + timeout * PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    os.read(self.master, 4096)
                except OSError:
                    break
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


def process_of(name: str) -> int:
    return int(state(name)["Pid"])


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
