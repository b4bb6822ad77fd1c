# SPDX-License-Identifier: Apache-2.0
"""Command lines as targets run them: the program's own main() in a process forked from one that has it loaded, which
tries ten times as many as cold starts would; and what is wrong with how it ended."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BAD = re.compile(rb"Traceback \(most recent call last\)|unexpected error|internal error|Fatal Python|Exception ignored")
OUTPUT_MAX = 64 << 20
MEMORY_MAX = 2 << 30


@dataclass
class Ended:
    """How a program ended; status is negative for a signal, None where it had to be killed."""

    status: int | None
    out: bytes
    err: bytes


def run(
    main: Callable[[], object],
    argv: list[str],
    limit: float,
    environment: dict[str, str],
    stdin: bytes = b"",
    folder: str = "/",
) -> Ended:
    """main() with these arguments in a process of its own. After `limit` seconds it is killed, with its children."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(stdin)
        source.seek(0)
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                signal.alarm(0)
                for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for file, descriptor in ((source, 0), (out, 1), (err, 2)):
                    os.dup2(file.fileno(), descriptor)
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
                resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_MAX, OUTPUT_MAX))
                os.chdir(folder)
                os.environ.clear()
                os.environ.update(environment)
                sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
                sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
                sys.argv = argv
                main()
            except SystemExit as error:
                os._exit(error.code if isinstance(error.code, int) else 1)
            except BaseException:
                import traceback

                os.write(2, traceback.format_exc().encode("utf-8", "replace"))
                os._exit(99)
            os._exit(0)
        status = _wait(pid, limit)
        out.seek(0)
        err.seek(0)
        return Ended(status, out.read(OUTPUT_MAX), err.read(OUTPUT_MAX))


def _wait(pid: int, limit: float) -> int | None:
    descriptor = os.pidfd_open(pid)
    try:
        ended = bool(select.select([descriptor], [], [], limit)[0])
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        # What it has started and left, a helper or a command in a pipe, is not the next one's affair.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(status) if ended else None
    finally:
        os.close(descriptor)


def wrong(ended: Ended) -> str:
    """What is wrong with an end, whatever was asked; "" for nothing."""
    text = b"" if b"\0" in ended.out else ended.out  # an archive on standard output has what its programs say
    if found := BAD.search(ended.err) or BAD.search(text):
        lines = [line for line in ended.err.decode(errors="replace").splitlines() if line.strip()]
        where = re.findall(r'File "[^"]*/teu/([^"]+)", line (\d+), in (\w+)', ended.err.decode(errors="replace"))
        place = f" at {where[-1][0]}:{where[-1][1]} {where[-1][2]}" if where else ""
        told = next((line for line in lines if "unexpected error" in line), lines[-1] if lines else "")
        return f"{found[0].decode()}: {told[:200]}{place}"
    if ended.status is not None and (ended.status < 0 and ended.status != -signal.SIGPIPE):
        return f"ended by signal {-ended.status}"
    return ""


class Workplace:
    """A folder for what command lines read and write, made new for each of them that left something."""

    def __init__(self, name: str) -> None:
        self.path = Path(f"/tmp/fuzz-{name}")
        self.begun = time.monotonic()
        self.fresh()

    def fresh(self) -> None:
        import shutil

        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)

    def put(self, name: str, data: bytes) -> str:
        (self.path / name).write_bytes(data)
        return name

    def remove(self) -> None:
        import shutil

        shutil.rmtree(self.path, ignore_errors=True)
