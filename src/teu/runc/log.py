# SPDX-License-Identifier: Apache-2.0
"""teu-runc's log: --log FILE, --log-format text|json, --debug.

containerd (go-runc) reads the last lines of the json log for `{"level":"error","msg":...}` when a
command fails, dockerd passes the msg on to the user, podman reads the text on stderr.
"""

from __future__ import annotations

import os
import time

from teu.oci import jsontext

_fd = 2
_json = False
_debug = False


def configure(path: str, form: str, debug: bool) -> None:
    """Open the log. Raises ValueError for an unknown format, OSError for a path that cannot be opened."""
    global _fd, _json, _debug
    if form not in ("", "text", "json"):
        raise ValueError(f"invalid log-format: {form}")
    _json = form == "json"
    _debug = debug
    if path:
        _fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def to_stderr() -> bool:
    return _fd == 2


def fd() -> int:
    """For the child, which logs through it until it leaves Python."""
    return _fd


def move(number: int) -> None:
    """Have the log's descriptor at `number`, which is free."""
    global _fd
    if _fd > 2:
        os.dup2(_fd, number, False)
        os.close(_fd)
        _fd = number


def write(level: str, message: str) -> None:
    if level == "debug" and not _debug:
        return
    now = time.time()
    utc = time.gmtime(now)
    stamp = f"{utc[0]:04}-{utc[1]:02}-{utc[2]:02}T{utc[3]:02}:{utc[4]:02}:{utc[5]:02}Z"
    if _json:
        line = jsontext.dumps({"level": level, "msg": message, "time": stamp})
    else:
        line = f'time="{stamp}" level={level} msg={jsontext.dumps(message)}'
    try:
        os.write(_fd, line.encode("utf-8", "replace") + b"\n")
    except OSError:
        pass


def debug(message: str) -> None:
    if _debug:
        write("debug", message)


def warning(message: str) -> None:
    write("warning", message)


def error(message: str) -> None:
    write("error", message)
