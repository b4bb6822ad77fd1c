# SPDX-License-Identifier: Apache-2.0
"""The annotations about a container's health; what they do is in tests/system/test_engine_containers.py."""

from __future__ import annotations

import pytest

from teu.engine.containers import health_rules
from teu.engine.containers.health_rules import Rules
from teu.engine.core.errors import BadRequest
from teu.engine.core.fields import HealthCheck


def annotations(**given: str) -> dict[str, str]:
    return {"io.teu.health-" + name.replace("_", "-"): text for name, text in given.items()}


def test_rules() -> None:
    assert health_rules.rules(None) == Rules()
    assert health_rules.rules({"other": "x"}) == Rules()
    given = annotations(on_failure="kill", startup_cmd="true", startup_interval="2s", startup_retries="3")
    assert health_rules.rules(given) == Rules("kill", "true", 2_000_000_000, 30_000_000_000, 1, 3)


@pytest.mark.parametrize(
    "given",
    [
        {"on_failure": "explode"},
        {"on_fail": "kill"},
        {"startup_interval": "1s"},
        {"startup_cmd": "true", "startup_interval": "1"},
        {"startup_cmd": "true", "startup_timeout": "1us"},
        {"startup_cmd": "true", "startup_retries": "-1"},
        {"startup_cmd": "true", "startup_success": "many"},
    ],
)
def test_what_is_wrong_is_named(given: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match="io.teu.health-"):
        health_rules.rules(annotations(**given))


def test_rules_want_a_check() -> None:
    health_rules.check(None, None)
    wanted = annotations(on_failure="stop")
    health_rules.check(wanted, HealthCheck(test=["CMD", "true"]))
    for health in (None, HealthCheck(test=["NONE"]), HealthCheck()):
        with pytest.raises(BadRequest, match="no health check"):
            health_rules.check(wanted, health)
