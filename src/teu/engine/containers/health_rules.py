# SPDX-License-Identifier: Apache-2.0
"""What a container says of its health beyond docker's API, in annotations: what is done when it is unhealthy, and a
check for its start, which comes before the regular one. Called by create, which refuses what is wrong, and by checks.

    io.teu.health-on-failure          none, kill, restart or stop
    io.teu.health-startup-cmd         a command for the container's shell
    io.teu.health-startup-interval    time between two of its runs, as 5s
    io.teu.health-startup-timeout     longest time of one
    io.teu.health-startup-success     so many in a row and the start is over (default: 1)
    io.teu.health-startup-retries     so many failures and the container is started anew (default: 0, never)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.core.errors import BadRequest
from teu.oci.units import parse_duration

if TYPE_CHECKING:
    from teu.engine.core.fields import HealthCheck

PREFIX = "io.teu.health-"
NONE, KILL, RESTART, STOP = ACTIONS = ("none", "kill", "restart", "stop")
_KEYS = ("on-failure", *(f"startup-{name}" for name in ("cmd", "interval", "timeout", "success", "retries")))
INTERVAL = TIMEOUT = 30_000_000_000
LEAST = 1_000_000


class Rules(NamedTuple):
    """Times are nanoseconds. `startup`: a line of shell; "" where there is no check for the start."""

    on_failure: str = NONE
    startup: str = ""
    interval: int = INTERVAL
    timeout: int = TIMEOUT
    success: int = 1
    retries: int = 0


def rules(annotations: Mapping[str, str] | None) -> Rules:
    """What the annotations say. Raises BadRequest, which names the annotation."""
    given = {key.removeprefix(PREFIX): text for key, text in (annotations or {}).items() if key.startswith(PREFIX)}
    for key in given:
        if key not in _KEYS:
            raise BadRequest(f"{PREFIX}{key}: there is no such annotation; there are {', '.join(_KEYS)}")
    action = given.get("on-failure", NONE)
    if action not in ACTIONS:
        raise BadRequest(f"{PREFIX}on-failure: {action!r} is none of {', '.join(ACTIONS)}")
    command = given.get("startup-cmd", "")
    lonely = [key for key in given if key.startswith("startup-")] if not command else []
    if lonely:
        raise BadRequest(f"{PREFIX}{lonely[0]}: there is no check for the start; {PREFIX}startup-cmd has its command")
    return Rules(
        action,
        command,
        _time(given, "startup-interval", INTERVAL),
        _time(given, "startup-timeout", TIMEOUT),
        _number(given, "startup-success", 1),
        _number(given, "startup-retries", 0),
    )


def check(annotations: Mapping[str, str] | None, health: HealthCheck | None) -> None:
    """Are the annotations right, and is there a health check that they are about? Raises BadRequest."""
    found = rules(annotations)
    has_check = health is not None and bool(health.test) and health.test not in (["NONE"], [""])
    if found != Rules() and not has_check:
        raise BadRequest(f"{PREFIX}*: the container has no health check that this is about; --health-cmd makes one")


def _time(given: Mapping[str, str], key: str, default: int) -> int:
    if key not in given:
        return default
    try:
        value = parse_duration(given[key])
    except ValueError:
        value = 0
    if value < LEAST:
        raise BadRequest(f"{PREFIX}{key}: {given[key]!r} is not a time of 1ms or more, such as 5s")
    return value


def _number(given: Mapping[str, str], key: str, default: int) -> int:
    text = given.get(key, str(default))
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise BadRequest(f"{PREFIX}{key}: {text!r} is not a whole number")
    return int(text)
