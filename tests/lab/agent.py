# SPDX-License-Identifier: Apache-2.0
"""In the VM: runs commands for the host, one at a time on each virtio-serial port.

Started by teu-lab-agent.service, which vm.py puts into the disk image; vm.py is at the other end.

A frame is a letter, a length (32 bits, big endian) and that many bytes. From the host: R request (JSON:
id, argv, env, tty, rows, columns), I input (empty: end of it), W window size (JSON), K signal number.
From here: S the request's id (what comes before it is left over from somebody else), O output,
E standard error, X exit status.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

PORTS = [f"/dev/vport{device}p{number}" for device in range(8) for number in range(1, 9)]


class Gone(Exception):
    """The host closed the port."""


class Port:
    """Frames over one port."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.lock = threading.Lock()
        # A request that came before we saw that the one before had ended.
        self.pending: bytes | None = None

    def connected(self) -> bool:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return not any(events & select.POLLHUP for _, events in poll.poll(0))

    def read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = os.read(self.descriptor, count - len(data))
            if not part:
                raise Gone
            data += part
        return data

    def read_frame(self) -> tuple[str, bytes]:
        letter, length = struct.unpack(">cI", self.read_exactly(5))
        return letter.decode("latin-1"), self.read_exactly(length)

    def write_frame(self, letter: str, data: bytes) -> None:
        with self.lock:
            frame = struct.pack(">cI", letter.encode(), len(data)) + data
            while frame:
                frame = frame[os.write(self.descriptor, frame) :]


def serve(path: str) -> None:
    port = Port(path)
    while True:
        if port.pending is not None:
            data, port.pending = port.pending, None
            with contextlib.suppress(OSError, ValueError):
                run(port, json.loads(data))
            continue
        while not port.connected():
            time.sleep(0.2)  # in an emulated VM a sixth of a processor goes into looking at all ports every 20 ms
        with contextlib.suppress(Gone, OSError, ValueError, struct.error):
            letter, data = port.read_frame()
            if letter == "R":
                run(port, json.loads(data))


def run(port: Port, request: dict[str, Any]) -> None:
    port.write_frame("S", request["id"].encode())
    terminal = None
    if request.get("tty"):
        terminal, inner = pty.openpty()
        resize(terminal, request)
        streams = {"stdin": inner, "stdout": inner, "stderr": inner}
    else:
        inner = -1
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def prepare() -> None:
        os.setsid()
        if terminal is not None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    try:
        child: subprocess.Popen[bytes] = subprocess.Popen(
            request["argv"], env=request["env"], cwd="/", preexec_fn=prepare, **streams
        )
    except OSError as error:
        port.write_frame("E", f"{request['argv'][0]}: {error.strerror}\n".encode())
        port.write_frame("X", b"127")
        return
    if terminal is not None:
        os.close(inner)
        pumps = [pump(port, "O", lambda: os.read(terminal, 65536))]
    else:
        assert child.stdout and child.stderr
        out, err = child.stdout.fileno(), child.stderr.fileno()
        pumps = [pump(port, "O", lambda: os.read(out, 65536)), pump(port, "E", lambda: os.read(err, 65536))]
    listener = threading.Thread(target=listen, args=(port, child, terminal), daemon=True)
    listener.start()
    status = child.wait()
    for thread in pumps:
        thread.join(5)  # a grandchild may hold the pipe
    with contextlib.suppress(OSError):
        port.write_frame("X", str(status if status >= 0 else 128 - status).encode())
    listener.join()  # until the host has closed the port: so ends one request
    if terminal is not None:
        os.close(terminal)


def pump(port: Port, letter: str, read: Callable[[], bytes]) -> threading.Thread:
    def work() -> None:
        with contextlib.suppress(OSError):
            while data := read():
                port.write_frame(letter, data)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def listen(port: Port, child: subprocess.Popen[bytes], terminal: int | None) -> None:
    """Hand input and signals to the child, until the host hangs up; then the child has no reason to run."""
    try:
        while True:
            letter, data = port.read_frame()
            if letter == "R":
                port.pending = data
                raise Gone
            with contextlib.suppress(OSError, ProcessLookupError, ValueError):
                if letter == "I" and terminal is not None:
                    os.write(terminal, data or b"\4")
                elif letter == "I" and child.stdin:
                    if data:
                        child.stdin.write(data)
                        child.stdin.flush()
                    else:
                        child.stdin.close()
                elif letter == "W" and terminal is not None:
                    resize(terminal, json.loads(data))
                elif letter == "K":
                    os.killpg(child.pid, int(data))
    except (Gone, OSError):
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def resize(terminal: int, size: dict[str, Any]) -> None:
    window = struct.pack("HHHH", size.get("rows", 24), size.get("columns", 80), 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, window)


def main() -> None:
    os.makedirs("/run/host", exist_ok=True)
    with open("/proc/cmdline") as file:
        lab = next((word[8:] for word in file.read().split() if word.startswith("teu.lab=")), "vm")
    with open("/run/host/lab", "w") as file:
        file.write(lab + "\n")
    threads = [threading.Thread(target=serve, args=(path,)) for path in PORTS if os.path.exists(path)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
