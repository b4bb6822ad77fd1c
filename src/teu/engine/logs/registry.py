# SPDX-License-Identifier: Apache-2.0
"""The log drivers by name, and the checks of what is asked of them. A new driver is one line here.

Called by containers (create, the hub), by the configuration and by info.
"""

from __future__ import annotations

from types import ModuleType

from teu.engine.core.errors import BadRequest
from teu.engine.logs.buffered import buffered
from teu.engine.logs.driver import Driver, LogSource, Registration
from teu.engine.logs.fluentd import FLUENTD
from teu.engine.logs.gelf import GELF
from teu.engine.logs.journald import JOURNALD
from teu.engine.logs.jsonfile import JSON_FILE
from teu.engine.logs.local import LOCAL
from teu.engine.logs.none import NONE
from teu.engine.logs.options import CACHE, COMMON, boolean, check_common
from teu.engine.logs.syslog import SYSLOG

DRIVERS: dict[str, Registration] = {
    "journald": JOURNALD,
    "json-file": JSON_FILE,
    "local": LOCAL,
    "none": NONE,
    "syslog": SYSLOG,
    "fluentd": FLUENTD,
    "gelf": GELF,
}

_CLOUDS = {
    "awslogs": "aws-logs, or journald and the CloudWatch agent",
    "gcplogs": "gcp-logs, or journald and the Ops Agent",
    "splunk": "splunk/docker-logging-plugin, or syslog or journald and a forwarder",
}
"""Those of docker that speak to one vendor's service: what to use instead."""


def create(source: LogSource) -> Driver | None:
    """The driver of a container's LogConfig, which was checked when it was made. None: nothing is kept."""
    make = DRIVERS[source.type].create if source.type in DRIVERS else _plugin().create
    if source.type == "none" or source.options.get("mode") != "non-blocking":
        return make(source)
    return buffered(source, make)


def check(kind: str, options: dict[str, str]) -> None:
    """A LogConfig. Raises BadRequest."""
    if kind not in DRIVERS and _plugin().there(kind):
        check_common(options)
        _plugin().check(kind, options)
        return
    if kind not in DRIVERS:
        raise BadRequest(f"logger: no log driver named '{kind}' is registered{_instead(kind)}")
    for key in options:
        if key not in known(kind):
            raise BadRequest(f"unknown log opt '{key}' for {kind} log driver")
    check_common(options)
    DRIVERS[kind].check(options)


def readable(source: LogSource) -> bool:
    """Whether `logs` can read what its driver has."""
    if source.type == "none":
        return False
    if source.type not in DRIVERS:
        return bool(_plugin().readable(source))
    return not DRIVERS[source.type].remote or not boolean(source.options, "cache-disabled")


def known(kind: str) -> frozenset[str]:
    """The names of the options that a driver may be given."""
    return DRIVERS[kind].options | COMMON | CACHE


def _plugin() -> ModuleType:
    from teu.engine.logs import plugin  # 13 ms: HTTP and TLS, and most hosts have no plugin

    return plugin


def _instead(kind: str) -> str:
    if kind == "etwlogs":
        return ": it is one of Windows"
    if kind in _CLOUDS:
        return f": Teu speaks to no vendor's service; use the log plugin {_CLOUDS[kind]}"
    return ""


def for_the_default(kind: str, options: dict[str, str], warnings: list[str]) -> dict[str, str]:
    """Options without a driver were often written for another daemon's default one. What another driver of ours would
    take is left out, and said."""
    if kind not in DRIVERS:
        return options  # a plugin may know all of them
    others: set[str] = set().union(*(driver.options for driver in DRIVERS.values()))
    kept = {}
    for key, value in options.items():
        if key in known(kind) or key not in others:
            kept[key] = value
        else:
            drivers = " or ".join(name for name, driver in DRIVERS.items() if key in driver.options)
            warnings.append(f"log opt '{key}' is discarded: the log driver is {kind}, and only {drivers} has it")
    return kept
