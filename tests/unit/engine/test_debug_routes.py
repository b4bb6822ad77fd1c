# SPDX-License-Identifier: Apache-2.0
"""/debug, which is there while log-level is debug."""

from __future__ import annotations

import json
import types
from typing import Any

import pytest

from teu.engine.api import router
from teu.engine.api.messages import Request
from teu.engine.core.errors import NotFound


def asked(level: str, path: str) -> Any:
    router.load()
    handler, _, arguments = router.find("GET", path)
    return handler(types.SimpleNamespace(config={"log-level": level}), Request("GET", path), **arguments)


def test_debug_is_behind_the_level() -> None:
    for path in ("/debug/pprof/", "/debug/pprof/goroutine", "/debug/pprof/cmdline", "/debug/vars"):
        with pytest.raises(NotFound):
            asked("info", path)
    assert asked("debug", "/debug/pprof/").body == b"cmdline\ngoroutine\n"
    assert b"thread MainThread:" in asked("debug", "/debug/pprof/goroutine").body
    assert asked("debug", "/debug/pprof/cmdline").body
    told = json.loads(asked("debug", "/debug/vars").body)
    assert told["threads"] >= 1 and told["resident"] > 1 << 20
    with pytest.raises(NotFound):
        asked("debug", "/debug/pprof/profile")
