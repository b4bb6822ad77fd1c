# SPDX-License-Identifier: Apache-2.0
"""The log drivers by name, and the checks of what is asked of them. A new driver is one line here.

Called by containers (create, the hub), by the configuration and by info.
"""

from __future__ import annotations

from teu.engine.core.errors import BadRequest
from teu.engine.logs.driver import Driver, LogSource, Registration
from teu.engine.logs.journald import JOURNALD
from teu.engine.logs.jsonfile import JSON_FILE, LOCAL
from teu.engine.logs.none import NONE
from teu.engine.logs.options import COMMON, check_common

DRIVERS: dict[str, Registration] = {
    "journald": JOURNALD,
    "json-file": JSON_FILE,
    "local": LOCAL,
    "none": NONE,
}


def create(source: LogSource) -> Driver | None:
    """The driver of a container's LogConfig, which was checked when it was made. None: nothing is kept."""
    # A record may come from a teud that had more drivers.
    return DRIVERS.get(source.type, JSON_FILE).create(source)


def check(kind: str, options: dict[str, str]) -> None:
    """A LogConfig. Raises BadRequest."""
    if kind not in DRIVERS:
        raise BadRequest(f"logger: no log driver named '{kind}' is registered")
    for key in options:
        if key not in DRIVERS[kind].options | COMMON:
            raise BadRequest(f"unknown log opt '{key}' for {kind} log driver")
    check_common(options)
    DRIVERS[kind].check(options)


def for_the_default(kind: str, options: dict[str, str], warnings: list[str]) -> dict[str, str]:
    """Options without a driver were often written for another daemon's default one. What another driver of ours would
    take is left out, and said."""
    others: set[str] = set().union(*(driver.options for driver in DRIVERS.values()))
    kept = {}
    for key, value in options.items():
        if key in DRIVERS[kind].options | COMMON or key not in others:
            kept[key] = value
        else:
            drivers = " or ".join(name for name, driver in DRIVERS.items() if key in driver.options)
            warnings.append(f"log opt '{key}' is discarded: the log driver is {kind}, and only {drivers} has it")
    return kept
