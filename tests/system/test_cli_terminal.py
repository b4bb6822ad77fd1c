# SPDX-License-Identifier: Apache-2.0
"""`teu` at a terminal, on Debian's dockerd: sizes, resizing, detaching, raw mode and its end, progress bars."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import peers
import pytest

TEU = "/usr/bin/teu"

pytestmark = pytest.mark.needs("docker", "dockerd")


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *argv: str, rows: int = 33, columns: int = 120) -> None:
        self.seen = b""
        self.file, inside = os.openpty()
        # The size must be there before the program looks.
        self.resize(rows, columns)
        # No fork of our own: beside the threads of grpc, which other tests have brought here, it may wait for ever.
        command = ["setsid", "--ctty", *argv]
        self._process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside)
        self.pid = self._process.pid  # setsid becomes the program
        os.close(inside)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def expect(self, pattern: str, limit: float = 30) -> str:
        """Read until `pattern` was seen; returns all that was read, and forgets it."""
        deadline = time.monotonic() + limit
        while not re.search(pattern.encode(), self.seen):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.file], [], [], left)[0]:
                raise AssertionError(f"{pattern!r} not seen in {self.seen!r}")
            try:
                data = os.read(self.file, 65536)
            except OSError:
                data = b""
            if not data:
                raise AssertionError(f"ended before {pattern!r}: {self.seen!r}")
            self.seen += data
        seen, self.seen = self.seen, b""
        return seen.decode(errors="replace")

    def code(self) -> int:
        """The exit code; what is still written goes to `seen`."""
        try:
            while data := os.read(self.file, 65536):
                self.seen += data
        except OSError:
            pass
        return self._process.wait()

    def mode(self) -> list[object]:
        return termios.tcgetattr(self.file)


@pytest.fixture(scope="module")
def docker() -> Iterator[peers.Dockerd]:
    with peers.dockerd() as daemon:
        daemon.load_busybox()
        yield daemon


def teu(docker: peers.Dockerd, *argv: str) -> Terminal:
    return Terminal(TEU, *docker.client[1:], *argv)


def say(terminal: Terminal, text: str, pattern: str) -> str:
    """Type a line to a shell and wait for its answer (not for the echo of the line)."""
    terminal.type(f"{text}\n")
    return terminal.expect(pattern)


def test_sizes_detach_attach_exec(docker: peers.Dockerd) -> None:
    terminal = teu(docker, "run", "-it", "--name", "term", "busybox", "sh")
    terminal.expect("# ")
    say(terminal, "stty size", r"\n33 120")
    terminal.resize(44, 122)

    def resized() -> bool:
        terminal.type("stty size\n")
        return "44 122" in terminal.expect(r"\n\d+ \d+")

    peers.wait_until(resized, "the new size arrives", 20)
    terminal.type("\x10")
    time.sleep(0.1)
    terminal.type("\x11")
    assert terminal.code() == 0
    assert docker("inspect", "-f", "{{.State.Running}}", "term") == "true\n"

    terminal = teu(docker, "attach", "term")
    say(terminal, "echo a$((1+1))b", "a2b")
    say(terminal, "stty size", r"\n33 120")
    terminal.type("\x10\x11")
    assert terminal.code() == 1
    assert b"read escape sequence" in terminal.seen

    terminal = teu(docker, "exec", "-it", "term", "sh")
    terminal.expect("# ")
    say(terminal, "stty size", r"\n33 120")
    say(terminal, "tty", "/dev/pts/")
    terminal.type("exit 9\n")
    assert terminal.code() == 9

    # Own keys, whose start alone is passed on to the process.
    terminal = teu(docker, "attach", "--detach-keys", "a,b", "term")
    say(terminal, "echo a$((2+1))c", "a3c")
    terminal.type("ab")
    assert terminal.code() == 1

    terminal = teu(docker, "attach", "term")
    terminal.type("exit 4\n")
    assert terminal.code() == 4
    docker("rm", "term")


def test_interrupt_goes_to_the_process(docker: peers.Dockerd) -> None:
    terminal = teu(docker, "run", "-it", "--rm", "busybox", "sh", "-c", "trap 'exit 21' INT; echo up; sleep 60")
    terminal.expect("up")
    terminal.type("\x03")
    assert terminal.code() == 21


def test_the_terminal_is_as_before(docker: peers.Dockerd) -> None:
    shell = Terminal("sh")
    shell.expect("[#$] ")
    before = shell.mode()
    command = " ".join([TEU, *docker.client[1:], "run", "-it", "--rm", "busybox", "true"])
    shell.type(f"{command}; echo code=$?\n")
    shell.expect("code=0")
    assert shell.mode() == before
    shell.type("exit\n")
    shell.code()


def test_no_terminal_no_tty(docker: peers.Dockerd) -> None:
    done = peers.run(TEU, *docker.client[1:], "run", "-it", "--rm", "busybox", "true", code=1)
    assert done.stderr == "the input device is not a TTY\n"


@pytest.mark.needs("docker-registry")
def test_progress_bars(docker: peers.Dockerd) -> None:
    with peers.registry() as registry:
        name = f"{registry.address}/image"
        docker("tag", "busybox", name)
        terminal = teu(docker, "push", name)
        shown = terminal.expect("latest: digest: sha256:")
        assert terminal.code() == 0
        assert "\x1b[1A" in shown  # a line is drawn again
        docker("rmi", name)
        # Without its layers at hand the daemon has to fetch: take the image itself away too.
        docker("rmi", "-f", "busybox")
        terminal = teu(docker, "pull", name)
        shown = terminal.expect("Status: Downloaded newer image")
        assert terminal.code() == 0
        assert re.search(r"\w{12}: Pull complete", shown)
        assert "\x1b[2K" in shown
        docker.load_busybox()


def test_save_and_export_refuse_a_terminal(docker: peers.Dockerd) -> None:
    terminal = teu(docker, "save", "busybox")
    terminal.expect("cowardly refusing to save to a terminal")
    assert terminal.code() == 1


def test_live_views_end_with_an_interrupt(docker: peers.Dockerd) -> None:
    script = "while :; do echo line; sleep 0.1; done"
    docker("run", "-d", "--name", "live", "busybox", "sh", "-c", script)
    for argv, pattern in (
        (["stats"], r"CPU %(.|\n)*live(.|\n)*CPU %(.|\n)*live"),
        (["logs", "-f", "--tail", "2", "live"], r"(line\r\n){4}"),
        (["attach", "--sig-proxy=false", "live"], r"(line\r\n){2}"),
    ):
        terminal = teu(docker, *argv)
        terminal.expect(pattern)
        terminal.type("\x03")
        assert terminal.code() == 130
    assert docker("inspect", "-f", "{{.State.Running}}", "live") == "true\n"
    docker("rm", "-f", "live")


def test_a_password_is_not_shown(docker: peers.Dockerd) -> None:
    terminal = teu(docker, "login", "-u", "me", "127.0.0.1:1")
    terminal.expect("Password: ")
    terminal.type("secret\n")
    assert terminal.code() == 1
    assert b"secret" not in terminal.seen
