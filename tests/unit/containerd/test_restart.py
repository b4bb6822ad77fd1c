# SPDX-License-Identifier: Apache-2.0
"""Policies of the restart monitor."""

from __future__ import annotations

import pytest

from teu.containerd.runtime.restart import PREFIX, wants_restart


def labels(**wanted: str) -> dict[str, str]:
    return {PREFIX + key.replace("_", "-"): value for key, value in wanted.items()}


@pytest.mark.parametrize(
    ("wanted", "exit_status", "restarted"),
    [
        ({}, 0, True),
        ({"policy": "always"}, 0, True),
        ({"policy": "always", "explicitly_stopped": "true"}, 0, True),
        ({"policy": "no"}, 1, False),
        ({"policy": "on-failure"}, 0, False),
        ({"policy": "on-failure"}, 137, True),
        ({"policy": "on-failure", "count": "1000"}, 1, True),
        ({"policy": "on-failure:3", "count": "2"}, 1, True),
        ({"policy": "on-failure:3", "count": "3"}, 1, False),
        ({"policy": "on-failure:0", "count": "3"}, 1, True),
        ({"policy": "unless-stopped"}, 0, True),
        ({"policy": "unless-stopped", "explicitly_stopped": "false"}, 0, True),
        ({"policy": "unless-stopped", "explicitly_stopped": "1"}, 0, False),
    ],
)
def test_policies(wanted: dict[str, str], exit_status: int, restarted: bool) -> None:
    assert wants_restart(labels(**wanted), exit_status) is restarted


@pytest.mark.parametrize(
    "wanted",
    [
        {"policy": "sometimes"},
        {"policy": "always:3"},
        {"policy": "no:"},
        {"policy": "on-failure:many"},
        {"policy": "on-failure:"},
        {"policy": "on-failure:3", "count": "few"},
    ],
)
def test_what_is_no_policy(wanted: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        wants_restart(labels(**wanted), 1)
