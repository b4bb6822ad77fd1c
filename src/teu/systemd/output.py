# SPDX-License-Identifier: Apache-2.0
"""systemd watches FIFOs while the daemon that reads them is away, and starts it when there is something to read.

    /run/systemd/system/teud-output@RANDOM.socket     ListenFIFO= for each
    teud-output@.service                              starts teud.service; shipped
    /run/systemd/system/teud-away@RANDOM.service      starts the daemons when the host goes down, before the containers
                                                      are stopped

Called by teud, which leaves when nothing is to do (lifecycle/idle.py), and takes the FIFOs back when it is there again.
Each unit has a name of its own, so that systemd never knows an older file of that name. systemd opens the FIFOs for
reading and writing and reads nothing, with one exception: a socket unit that is to be stopped, and is listening yet,
empties what is readable. So none is stopped before its service runs, for then it does not listen; and at shutdown,
which stops nearly all units, none is stopped at all.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from teu.systemd.bus import Bus
from teu.systemd.scope import restart_unit, start_unit, stop_unit, systemd_is_running

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = "/run/systemd/system"
OUTPUT, AWAY = "teud-output@", "teud-away@"
START_TRIES = 40  # with half a second between: in all, less than the unit's time to stop
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
        # The slice of a template's units is stopped with the host, and all in it. Another target stops no container.
        "DefaultDependencies=no\nIgnoreOnIsolate=yes\nCollectMode=inactive-or-failed\n\n[Socket]\nSlice=system.slice\n"
        # However often it is woken, it is woken again.
        f"SocketMode=0{MODE:o}\nTriggerLimitIntervalSec=0\n{''.join(lines)}"
    )


def away_text(units: Iterable[str], daemons: Iterable[str]) -> str:
    """The unit that is stopped before these, at the host's shutdown, and starts the daemons then, one after another.

    A shutdown takes no start of a unit that it stops, but for one without the unit's dependencies. One that is just
    leaving has a stop to come to its end, and is started after that. At a stop by teud, which is there, nothing is
    done."""
    start = "systemctl start --job-mode=ignore-dependencies"
    starts = "; ".join(
        f"n=0; until {start} {daemon} || [ $$n = {START_TRIES} ]; do n=$$((n+1)); sleep 0.5; done" for daemon in daemons
    )
    before = " ".join(unit.replace("%", "%%") for unit in ("teud.socket", "teu-containerd.socket", *units))
    return (
        "[Unit]\nDescription=Start of teud before Containers Are Stopped with the Host\nDocumentation=man:teud(8)\n"
        f"IgnoreOnIsolate=yes\nCollectMode=inactive-or-failed\nAfter={before}\n\n"
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStopSec=60s\n"
        f"ExecStop=-/bin/sh -c 'case $$(systemctl is-system-running) in stopping|starting) {starts};; esac'\n"
    )


def watch(paths: Iterable[str], units: Iterable[str], daemons: Iterable[str]) -> None:
    """From now on teud is started when one of these FIFOs has something, and the daemons when the host goes down,
    before these units are stopped. Raises OSError and ValueError; nothing is watched then."""
    mark = secrets.token_hex(8)
    away, fifos = f"{AWAY}{mark}.service", f"{OUTPUT}{mark}.socket"
    texts = {away: away_text(units, daemons), fifos: unit_text(paths)}
    os.makedirs(FOLDER, 0o755, exist_ok=True)
    try:
        for name, text in texts.items():
            with open(f"{FOLDER}/{name}", "w") as file:
                file.write(text)
        with Bus() as bus:
            start_unit(bus, away)
            try:
                start_unit(bus, fifos)
            except BaseException:
                stop_unit(bus, away)
                raise
    except BaseException:
        _remove(texts)
        raise


def is_watched() -> bool:
    """Whether an earlier teud has left, and systemd watches for it."""
    return bool(_units())


def _units() -> list[str]:
    try:
        found = os.listdir(FOLDER)
    except FileNotFoundError:
        return []
    return [
        name
        for name in found
        if name.startswith(OUTPUT) and name.endswith(".socket") or name.startswith(AWAY) and name.endswith(".service")
    ]


def unwatch(*, going_down: bool) -> None:
    """The FIFOs are read here again: systemd closes them. Raises OSError where systemd does not answer; nothing is done
    where nothing is watched. `going_down`: the host; what starts the daemons then is at work, and is left alone."""
    if names := _units():
        _end(names, going_down)


def _end(names: list[str], going_down: bool) -> None:
    if systemd_is_running():
        with Bus() as bus:
            for name in names:
                if name.startswith(OUTPUT):
                    service = name.removesuffix(".socket") + ".service"
                    restart_unit(bus, service)  # see above; it ends by itself where we do not come to its stop
                    stop_unit(bus, name)
                    stop_unit(bus, service)
                elif not going_down:
                    stop_unit(bus, name)
    _remove(names)


def _remove(names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{FOLDER}/{name}")
