# SPDX-License-Identifier: Apache-2.0
"""nftables by libnftables: commands in nft's language, applied as one transaction. Called by teud's networks.

The library waits with select(2), which knows no descriptor above 1023 and ends the whole process when it meets one.
So its socket gets a low descriptor, kept for it from the beginning (`reserve`); where there is none any more, the
commands are given to a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

_RESERVED = 8  # one is enough, if no other thread is quicker
_HIGHEST = 900  # descriptors below this are left in time for a socket to be one that select() knows

_ELSEWHERE = """
import sys, nftables
library = nftables.Nftables()
library.set_handle_output(sys.argv[1] == "1")
code, output, error = library.cmd(sys.stdin.read())
sys.stdout.write(output or "")
sys.stderr.write(error or "")
sys.exit(1 if code else 0)
"""

_lock = threading.Lock()
_library: Any = None
_kept: list[int] = []


class Error(Exception):
    """nft refused the commands; str() is its reason."""


def reserve() -> None:
    """At the start of a process that is going to have many descriptors."""
    with _lock:
        if _library is None and not _kept:
            _kept.extend(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(_RESERVED))


def _has_low_descriptors() -> bool:
    descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(descriptor)
    return descriptor < _HIGHEST


def run(commands: str, handles: bool = False) -> str:
    """Apply all commands, or none; returns their output, with the rules' handles if asked. The library is loaded
    at the first call (7 ms)."""
    global _library
    with _lock:
        if _library is None:
            while _kept:
                os.close(_kept.pop())
            if not _has_low_descriptors():
                return _run_elsewhere(commands, handles)
            import nftables

            _library = nftables.Nftables()
        _library.set_handle_output(handles)
        code, output, error = _library.cmd(commands)
    return _result(code, output, error)


def run_here(commands: str) -> str:
    """The same in the network namespace of the calling thread, which `run` does not see."""
    if not _has_low_descriptors():
        return _run_elsewhere(commands, False)
    import nftables

    library = nftables.Nftables()
    library.set_handle_output(False)
    return _result(*library.cmd(commands))


def _run_elsewhere(commands: str, handles: bool) -> str:
    """By a process of its own, in the calling thread's network namespace."""
    argv = [sys.executable, "-I", "-c", _ELSEWHERE, "1" if handles else "0"]
    done = subprocess.run(argv, input=commands, capture_output=True, text=True, check=False)
    return _result(done.returncode, done.stdout, done.stderr)


def _result(code: int, output: Any, error: Any) -> str:
    if code:
        reason = " ".join(str(error).split())
        raise Error(reason or f"nft failed with {code}")
    return str(output)
