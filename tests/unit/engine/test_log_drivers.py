# SPDX-License-Identifier: Apache-2.0
"""The log drivers: the checks of all of them where there is no journal, and the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drivers import logs

from teu.engine.core.errors import BadRequest
from teu.engine.logs import registry

NEEDS_ITS_DAEMON = {"journald"}


@pytest.mark.parametrize("kind", [kind for kind in logs.kinds() if kind not in NEEDS_ITS_DAEMON])
@pytest.mark.parametrize("check", logs.CHECKS, ids=lambda check: check.__name__)
def test_what_every_driver_does(check: Any, kind: str, tmp_path: Path) -> None:
    def make(**options: str) -> logs.Run:
        return logs.Run(tmp_path, kind, {key.replace("_", "-"): value for key, value in options.items()})

    check(make)


def test_none_keeps_nothing(tmp_path: Path) -> None:
    source = logs.source(tmp_path, "local", {})
    assert registry.create(source._replace(type="none")) is None
    assert list(tmp_path.iterdir()) == []


def test_every_driver_refuses_what_it_does_not_know() -> None:
    for kind, driver in registry.DRIVERS.items():
        needed = {"gelf-address": "udp://127.0.0.1:12201"} if kind == "gelf" else {}
        for options in (
            {},
            {"mode": "blocking"},
            {"mode": "non-blocking"},
            {"mode": "non-blocking", "max-buffer-size": "1m"},
            {"cache-disabled": "true", "cache-max-size": "3m"},
        ):
            registry.check(kind, {**needed, **options})
        for options in ({"unheard-of": "1"}, {"mode": "slow"}, {"max-buffer-size": "1m"}):
            with pytest.raises(BadRequest):
                registry.check(kind, {**needed, **options})
        if "tag" in driver.options:
            for options in ({"tag": "{{.ID"}, {"tag": "{{nothing 1}}"}, {"labels-regex": "("}, {"env-regex": "*"}):
                with pytest.raises(BadRequest, match="log opt"):
                    registry.check(kind, {**needed, **options})
    with pytest.raises(BadRequest, match="no log driver named 'unheard-of' is registered"):
        registry.check("unheard-of", {})


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("splunk", "splunk/docker-logging-plugin"),
        ("awslogs", "aws-logs"),
        ("gcplogs", "gcp-logs"),
        ("etwlogs", "Windows"),
    ],
)
def test_drivers_of_one_vendor_say_what_to_use(kind: str, says: str) -> None:
    with pytest.raises(BadRequest, match=f"no log driver named '{kind}' is registered: .*{says}"):
        registry.check(kind, {})


def test_options_of_another_driver_than_the_default_are_said() -> None:
    warnings: list[str] = []
    kept = registry.for_the_default("journald", {"max-size": "1m", "tag": "t", "new": "x"}, warnings)
    assert kept == {"tag": "t", "new": "x"}
    assert warnings == [
        "log opt 'max-size' is discarded: the log driver is journald, and only json-file or local has it"
    ]
