# SPDX-License-Identifier: Apache-2.0
"""systemd watches for a daemon that is away, and starts it when there is something for it to do.

    /run/systemd/system/teud-output@RANDOM.socket     ListenFIFO= for each FIFO that the daemon has read until then
    /run/systemd/system/teud-output@RANDOM.path       PathChanged= for each file that it follows
    /run/systemd/system/teud-output@OTHER.socket      ListenNetlink= for changes of the host's ruleset
    teud-output@.service                              starts teud.service; shipped
    /run/systemd/system/teud-away@RANDOM.service      starts the daemons when the host goes down, before the containers
                                                      are stopped; and when a container's scope has ended, of which
                                                      nobody else tells where its shim was killed

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
DAEMON = "teud.service"
OUTPUT, AWAY = "teud-output@", "teud-away@"
START_TRIES = 40  # with half a second between: in all, less than the unit's time to stop
NFNLGRP_NFTABLES = 7  # systemd wants the bit of a group
# With its own dependencies a unit of these kinds is stopped with the host after all services. teud, which is started
# again before that, would wait for the stop, and the containers' for teud.
AT_ONCE = "DefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n"
MODE = 0o700  # of the FIFOs; systemd takes no other


def unit_text(paths: Iterable[str]) -> str:
    """The unit that watches these FIFOs. ValueError for a path that no line of a unit can have."""
    lines = []
    for path in paths:
        if "\n" in path or not path.startswith("/"):
            raise ValueError(f"{path!r} cannot be in a unit")
        lines.append(f"ListenFIFO={path.replace('%', '%%')}\n")
    return (
        f"{_header('Output of Containers while teud Is Away')}"
        # The slice of a template's units is stopped with the host, and all in it. Another target stops no container.
        "DefaultDependencies=no\n\n[Socket]\nSlice=system.slice\n"
        # However often it is woken, it is woken again.
        f"SocketMode=0{MODE:o}\nTriggerLimitIntervalSec=0\n{''.join(lines)}"
    )


def files_text(files: Iterable[str], service: str) -> str:
    """The unit that watches these files, whether they are there or not, and starts the service."""
    lines = "".join(f"PathChanged={path.replace('%', '%%')}\n" for path in files)
    return (
        f"{_header('Files that teud Follows while It Is Away')}"
        f"{AT_ONCE}\n[Path]\nTriggerLimitIntervalSec=0\nUnit={service}\n{lines}"
    )


def rules_text() -> str:
    """The unit that watches the host's ruleset. What is more than the kernel keeps for it starts teud, too."""
    return (
        f"{_header('Ruleset of the Host while teud Is Away')}{AT_ONCE}OnFailure={DAEMON}\n"
        "\n[Socket]\nSlice=system.slice\n"
        f"TriggerLimitIntervalSec=0\nReceiveBuffer=4M\nListenNetlink=netfilter {1 << NFNLGRP_NFTABLES - 1}\n"
    )


def away_text(name: str, units: Iterable[str], daemons: Iterable[str]) -> str:
    """The unit of that name, which is stopped before these at the host's shutdown, and after a scope of them that has
    ended; it starts the daemons then, one after another. At a stop by teud, which is there and has removed the unit's
    file, nothing is done.

    A shutdown takes no start of a unit that it stops, but for one without the unit's dependencies. One that is just
    leaving has a stop to come to its end, and is started after that."""
    units, daemons = [unit.replace("%", "%%") for unit in units], list(daemons)
    start = "systemctl start --job-mode=ignore-dependencies"
    starts = "; ".join(
        f"n=0; until {start} {daemon} || [ $$n = {START_TRIES} ]; do n=$$((n+1)); sleep 0.5; done" for daemon in daemons
    )
    before = " ".join(("teud.socket", "teu-containerd.socket", *units))
    # A service would be started by this, where it has just been stopped; a scope cannot be.
    scopes = " ".join(unit for unit in units if unit.endswith(".scope"))
    return (
        f"{_header('Start of teud before Containers Are Stopped with the Host')}After={before}\nBindsTo={scopes}\n\n"
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStopSec=60s\n"
        f"ExecStop=-/bin/sh -c '[ -e {FOLDER}/{name} ] || exit 0; case $$(systemctl is-system-running) in"
        f" stopping|starting) {starts};; *) systemctl start --no-block {' '.join(daemons)};; esac'\n"
    )


def _header(description: str) -> str:
    return (
        f"[Unit]\nDescription={description}\nDocumentation=man:teud(8)\n"
        "IgnoreOnIsolate=yes\nCollectMode=inactive-or-failed\n"
    )


def watch(
    paths: Iterable[str],
    units: Iterable[str],
    daemons: Iterable[str],
    files: Iterable[str] = (),
    *,
    rules: bool = False,
) -> None:
    """From now on teud is started when one of these FIFOs has something, when one of the files has changed, or, with
    `rules`, the host's ruleset; and the daemons when the host goes down, before these units are stopped, or when a
    scope of them has ended. Raises OSError and ValueError; nothing is watched then."""
    mark = secrets.token_hex(8)
    away = f"{AWAY}{mark}.service"
    texts = {away: away_text(away, units, daemons), f"{OUTPUT}{mark}.socket": unit_text(paths)}
    if followed := list(files):
        texts[f"{OUTPUT}{mark}.path"] = files_text(followed, f"{OUTPUT}{mark}.service")
    if rules:
        texts[f"{OUTPUT}{secrets.token_hex(8)}.socket"] = rules_text()
    os.makedirs(FOLDER, 0o755, exist_ok=True)
    try:
        for name, text in texts.items():
            with open(f"{FOLDER}/{name}", "w") as file:
                file.write(text)
        with Bus() as bus:
            started: list[str] = []
            try:
                for name in texts:
                    start_unit(bus, name)
                    started.append(name)
            except BaseException:
                _remove(texts)
                for name in reversed(started):
                    stop_unit(bus, name)
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
        if name.startswith(OUTPUT)
        and name.endswith((".socket", ".path"))
        or name.startswith(AWAY)
        and name.endswith(".service")
    ]


def unwatch(*, going_down: bool) -> None:
    """The FIFOs are read here again: systemd closes them. Raises OSError where systemd does not answer; nothing is done
    where nothing is watched. `going_down`: the host; what starts the daemons then is at work, and is left alone."""
    if names := _units():
        _end(names, going_down)


def _end(names: list[str], going_down: bool) -> None:
    aways = [name for name in names if name.startswith(AWAY)]
    _remove(aways)
    if systemd_is_running():
        with Bus() as bus:
            for name in sorted(names):  # a .path before the .socket that has the same service
                if name.startswith(OUTPUT) and name.endswith(".path"):
                    stop_unit(bus, name)
                elif name.startswith(OUTPUT):
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
