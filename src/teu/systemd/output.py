# SPDX-License-Identifier: Apache-2.0
"""systemd watches FIFOs while the daemon that reads them is away, and starts it when there is something to read.

    /run/systemd/system/teud-output@RANDOM.socket   ListenFIFO= for each
    teud-output@.service                            starts teud.service; shipped

Called by teud, which leaves when nothing is to do (lifecycle/idle.py), and takes the FIFOs back when it is there again.
Each unit has a name of its own, so that systemd never knows an older file of that name. systemd opens the FIFOs for
reading and writing and reads nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from teu.systemd.bus import Bus
from teu.systemd.scope import start_unit, stop_unit, systemd_is_running

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = "/run/systemd/system"
PREFIX, SUFFIX = "teud-output@", ".socket"
MODE = 0o700  # of the FIFOs; systemd takes no other


def unit_text(paths: Iterable[str]) -> str:
    """The unit that watches these FIFOs. ValueError for a path that no line of a unit can have."""
    lines = []
    for path in paths:
        if "\n" in path or not path.startswith("/"):
            raise ValueError(f"{path!r} cannot be in a unit")
        lines.append(f"ListenFIFO={path.replace('%', '%%')}\n")
    return (
        "[Unit]\nDescription=Output of Containers while teud Is Away\nDocumentation=man:teud(8)\n"
        "DefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n\n"
        # However often it is woken, it is woken again.
        f"[Socket]\nSocketMode=0{MODE:o}\nTriggerLimitIntervalSec=0\n{''.join(lines)}"
    )


def watch(paths: Iterable[str]) -> None:
    """From now on teud is started when one of these FIFOs has something. Raises OSError and ValueError; nothing is
    watched then."""
    text = unit_text(paths)
    name = f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
    path = f"{FOLDER}/{name}"
    os.makedirs(FOLDER, 0o755, exist_ok=True)
    try:
        with open(path, "w") as file:
            file.write(text)
        with Bus() as bus:
            start_unit(bus, name)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise


def unwatch() -> None:
    """The FIFOs are read here again: systemd closes them. Raises OSError where systemd does not answer; nothing is done
    where nothing is watched."""
    try:
        names = [name for name in os.listdir(FOLDER) if name.startswith(PREFIX) and name.endswith(SUFFIX)]
    except FileNotFoundError:
        return
    if not names:
        return
    if systemd_is_running():
        with Bus() as bus:
            for name in names:
                stop_unit(bus, name)
    for name in names:
        os.unlink(f"{FOLDER}/{name}")
