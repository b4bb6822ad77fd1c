# SPDX-License-Identifier: Apache-2.0
"""Input and output of a task through FIFOs, as containerd's clients do it: made by us, opened by the shim too.

`Conversation.run` copies between them and our own streams until the process has ended, passes signals on (with a
terminal: its sizes) and returns the exit status. Called by run, tasks start, tasks attach and tasks exec."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import tempfile
import termios
import tty as terminals
from collections.abc import Iterator
from typing import Any

from teu.ctr.client import Client, explained, tasks_pb2
from teu.ctr.errors import CommandError

FOLDER = "/run/teu/ctr-fifo"
# Seconds of silence, after the process's end, until an output that another process still holds open is given up.
PATIENCE = 2.0
FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)


class Fifos:
    """Three FIFOs in a folder of their own, or the paths that a task has already."""

    def __init__(self, stdin: str = "", stdout: str = "", stderr: str = "", folder: str = "") -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.folder = folder
        self.files: dict[str, int] = {}
        self.writers: list[int] = []

    @staticmethod
    def make(name: str, terminal: bool, base: str = "") -> Fifos:
        base = base or FOLDER
        os.makedirs(base, 0o700, exist_ok=True)
        folder = tempfile.mkdtemp(dir=base)
        paths = {part: f"{folder}/{name}-{part}" for part in ("stdin", "stdout", "stderr")}
        if terminal:
            paths["stderr"] = ""
        for path in paths.values():
            if path:
                os.mkfifo(path, 0o700)
        return Fifos(**paths, folder=folder)

    def open(self) -> None:
        """Open our sides. Done before the task is created, so that no output is lost and no open waits for the shim."""
        for name, path, mode in (
            ("stdin", self.stdin, os.O_RDWR),
            ("stdout", self.stdout, os.O_RDONLY),
            ("stderr", self.stderr, os.O_RDONLY),
        ):
            if path:
                self.files[name] = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
                if mode == os.O_RDONLY:
                    # A writer of our own: without one, an output that the shim has not opened yet would look ended.
                    self.writers.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    def hang_up(self) -> None:
        """The process has ended: what is read now ends when the shim closes its side."""
        for file in self.writers:
            os.close(file)
        self.writers.clear()

    def close(self, name: str) -> None:
        file = self.files.pop(name, None)
        if file is not None:
            os.close(file)

    def remove(self) -> None:
        self.hang_up()
        for name in list(self.files):
            self.close(name)
        if not self.folder:
            return
        for path in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)


@contextlib.contextmanager
def raw_terminal(wanted: bool) -> Iterator[None]:
    if not wanted or not os.isatty(0):
        yield
        return
    saved = termios.tcgetattr(0)
    terminals.setraw(0, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, saved)


def write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(file, view) :]
        except BlockingIOError:
            select.select([], [file], [])


class Conversation:
    def __init__(self, client: Client, container: str, exec_id: str, fifos: Fifos, terminal: bool) -> None:
        self.client = client
        self.container = container
        self.exec_id = exec_id
        self.fifos = fifos
        self.terminal = terminal
        self.wake, self.waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.future: Any = None
        self.poller = select.poll()
        self.outputs: dict[int, tuple[str, int]] = {}  # by file: its name, and where it goes
        self.target = -1  # the process's input, while it is open
        self.pending = b""  # read from our input, and not taken yet
        self.ended = False  # whether the process has ended

    def wait(self) -> None:
        """Ask for the exit status; to be called before the start, so that no end is missed."""
        request = tasks_pb2.WaitRequest(container_id=self.container, exec_id=self.exec_id)
        self.future = self.client.tasks.future("Wait", request)
        self.future.add_done_callback(lambda _: os.write(self.waker, b"\0"))

    def status(self) -> int:
        error = self.future.exception()
        if error is not None:
            raise explained(error)
        return int(self.future.result().exit_status)

    def resize(self) -> None:
        try:
            size = os.get_terminal_size(1)
        except OSError:
            return
        with contextlib.suppress(CommandError):
            self.client.tasks.ResizePty(
                tasks_pb2.ResizePtyRequest(
                    container_id=self.container, exec_id=self.exec_id, width=size.columns, height=size.lines
                )
            )

    def forward(self, number: int) -> None:
        with contextlib.suppress(CommandError):
            self.client.tasks.Kill(
                tasks_pb2.KillRequest(container_id=self.container, exec_id=self.exec_id, signal=number)
            )

    def run(self) -> int:
        """Until the process has ended and its output is read; returns its status."""
        caught = (signal.SIGWINCH,) if self.terminal else FORWARDED
        old_wake = signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        old = {number: signal.signal(number, lambda *_: None) for number in caught}
        try:
            with raw_terminal(self.terminal):
                if self.terminal:
                    self.resize()
                self._loop()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_wake)
        return self.status()

    def _close_input(self) -> None:
        self.fifos.close("stdin")
        request = tasks_pb2.CloseIORequest(container_id=self.container, exec_id=self.exec_id, stdin=True)
        with contextlib.suppress(CommandError):
            self.client.tasks.CloseIO(request)

    def _loop(self) -> None:
        self.poller.register(self.wake, select.POLLIN)
        for name, ours in (("stdout", 1), ("stderr", 2)):
            if name in self.fifos.files:
                file = self.fifos.files[name]
                self.outputs[file] = (name, ours)
                self.poller.register(file, select.POLLIN)
        self.target = self.fifos.files.get("stdin", -1)
        if self.target >= 0:
            self.poller.register(0, select.POLLIN)
        while self.outputs or not self.ended:
            ready = self.poller.poll(PATIENCE * 1000 if self.ended else None)
            if self.ended and not ready:
                return
            for file, _ in ready:
                if file == self.wake:
                    self._wake_up()
                elif file in self.outputs:
                    self._copy_output(file)
                elif file == 0:
                    self._read_input()
                elif file == self.target:
                    self._write_input()

    def _wake_up(self) -> None:
        """Pass signals on (or a new size), and note the process's end, for which the byte is 0."""
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self.wake, 512):
                if number == signal.SIGWINCH:
                    self.resize()
                elif number:
                    self.forward(number)
        if not self.ended and self.future.done():
            self.ended = True
            self.fifos.hang_up()

    def _copy_output(self, file: int) -> None:
        name, ours = self.outputs[file]
        try:
            data = os.read(file, 1 << 16)
        except BlockingIOError:
            return
        if data:
            write_all(ours, data)
        else:
            self.poller.unregister(file)
            del self.outputs[file]
            self.fifos.close(name)

    def _read_input(self) -> None:
        """Read some of our input. No more is read until the process's side has taken it."""
        try:
            data = os.read(0, 1 << 16)
        except OSError:
            data = b""
        self.poller.unregister(0)
        if data:
            self.pending += data
            self.poller.register(self.target, select.POLLOUT)
        else:
            self._close_input()
            self.target = -1

    def _write_input(self) -> None:
        try:
            self.pending = self.pending[os.write(self.target, self.pending) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.pending = b""
        if not self.pending:
            self.poller.unregister(self.target)
            self.poller.register(0, select.POLLIN)
