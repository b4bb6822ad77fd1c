# SPDX-License-Identifier: Apache-2.0
"""Transient units: what the shim and teu-runc ask of systemd.

All calls are to org.freedesktop.systemd1.Manager and wait until the job is done; they take the
connection to use: `with Bus() as bus: start_scope(bus, "teu-x.scope", pids=[os.getpid()])`.  Properties are
triples `(name, D-Bus signature, value)`, for instance `("TasksMax", "t", 100)`.
"""

from __future__ import annotations

import os
import time

from teu.systemd.bus import Bus, BusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Property = tuple[str, str, Any]
    T = TypeVar("T")

MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")

UNIT_EXISTS = "org.freedesktop.systemd1.UnitExists"
NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"

# Errors of a bus whose manager executes itself anew (systemctl daemon-reexec, an upgrade of systemd), or that does so.
AWAY = frozenset(
    f"org.freedesktop.DBus.Error.{name}" for name in ("NoReply", "Disconnected", "ServiceUnknown", "NameHasNoOwner")
)
RETURN_SECONDS, RETURN_POLL_SECONDS = 20.0, 0.05


def systemd_is_running() -> bool:
    """Whether PID 1 is systemd (the test of sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def is_away(error: OSError) -> bool:
    """Whether systemd did not answer because it, or the bus, was about to begin anew: it can be asked again."""
    if isinstance(error, BusError):
        return error.name in AWAY
    return isinstance(error, (ConnectionError, FileNotFoundError))


def patiently(ask: Callable[[], T]) -> T:
    """What `ask` returns, which is called again for as long as systemd is away, at most RETURN_SECONDS each time.

    It must make a connection of its own each time, and take what it asked for already as granted, for that answer
    may have been lost on its way.  OSError, that of the last attempt."""
    end = 0.0
    while True:
        began = time.monotonic()
        try:
            return ask()
        except OSError as error:
            if not is_away(error):
                raise
            now = time.monotonic()
            if not end or now - began > RETURN_SECONDS:  # it was there in between, and worked on what was asked
                end = now + RETURN_SECONDS
            if now > end:
                raise
        time.sleep(RETURN_POLL_SECONDS)


def _variants(properties: list[Property]) -> list[tuple[str, tuple[str, Any]]]:
    return [(name, (signature, value)) for name, signature, value in properties]


def _run_job(bus: Bus, method: str, signature: str, args: tuple[Any, ...], unit: str) -> None:
    """Call a method that returns a job and wait for its end; BusError unless it ended well."""
    if not bus.direct:
        bus.add_match("type='signal',sender='org.freedesktop.systemd1',member='JobRemoved'")
        bus.call(*MANAGER, "Subscribe")
    job = bus.call(*MANAGER, method, signature, args)[0]
    result = bus.wait_signal("JobRemoved", lambda body: body[1] == job)[3]
    if result not in ("done", "skipped"):
        raise BusError("org.freedesktop.systemd1.JobFailed", f"{method} {unit}: job ended as {result!r}")


def start_transient_unit(bus: Bus, name: str, properties: list[Property], *, mode: str = "fail") -> None:
    """Create and start a transient unit, and wait for its start job.

    BusError with .name UNIT_EXISTS if there is a unit of that name."""
    _run_job(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", (name, mode, _variants(properties), []), name)


def start_scope(
    bus: Bus,
    name: str,
    *,
    pids: list[int],
    slice_name: str = "",
    description: str = "",
    delegate: bool = True,
    properties: list[Property] | None = None,
) -> None:
    """Start a transient scope that holds `pids`; when this returns they are in its cgroup."""
    wanted: list[Property] = [
        ("PIDs", "au", pids),
        ("Delegate", "b", delegate),
        ("CollectMode", "s", "inactive-or-failed"),
    ]
    if slice_name:
        wanted.append(("Slice", "s", slice_name))
    if description:
        wanted.append(("Description", "s", description))
    start_transient_unit(bus, name, wanted + (properties or []))


def start_unit(bus: Bus, name: str, *, mode: str = "replace") -> None:
    """Start a unit and wait for its start job; BusError with .name NO_SUCH_UNIT if there is none."""
    _run_job(bus, "StartUnit", "ss", (name, mode), name)


def restart_unit(bus: Bus, name: str, *, mode: str = "replace") -> None:
    """Start a unit anew, or for the first time, and wait; BusError with .name NO_SUCH_UNIT if there is none."""
    _run_job(bus, "RestartUnit", "ss", (name, mode), name)


def stop_unit(bus: Bus, name: str, *, mode: str = "replace") -> None:
    """Stop a unit and wait; a unit that is not there is not an error."""
    try:
        _run_job(bus, "StopUnit", "ss", (name, mode), name)
    except BusError as error:
        if error.name != NO_SUCH_UNIT:
            raise


def reset_failed_unit(bus: Bus, name: str) -> None:
    """Forget a failed unit; one that is not there is not an error."""
    try:
        bus.call(*MANAGER, "ResetFailedUnit", "s", (name,))
    except BusError as error:
        if error.name != NO_SUCH_UNIT:
            raise


def set_unit_properties(bus: Bus, name: str, properties: list[Property], *, runtime: bool = True) -> None:
    """Change properties of a loaded unit (systemctl set-property --runtime)."""
    bus.call(*MANAGER, "SetUnitProperties", "sba(sv)", (name, runtime, _variants(properties)))


def unit_cgroup(bus: Bus, name: str, *, kind: str = "Scope") -> str:
    """The ControlGroup of a unit as systemd names it, for instance /teu.slice/teu-x.scope."""
    path = bus.call(*MANAGER, "GetUnit", "s", (name,))[0]
    answer = bus.call(
        MANAGER[0],
        path,
        "org.freedesktop.DBus.Properties",
        "Get",
        "ss",
        (f"org.freedesktop.systemd1.{kind}", "ControlGroup"),
    )
    return str(answer[0][1])
