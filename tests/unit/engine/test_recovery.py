# SPDX-License-Identifier: Apache-2.0
"""What a new engine does with containers in the background, while it serves requests."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from teu.engine.lifecycle import recovery


def idle(name: str) -> Any:
    """One that does not run, with --rm."""
    state = SimpleNamespace(dead=False)
    return SimpleNamespace(id=name, running=False, removed=False, state=state, auto_remove=True)


def test_what_a_client_has_just_made_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run --rm` makes its container, and starts it with the next request: it was taken for one that had ended."""
    left, fresh = idle("left by the engine before"), idle("just made")
    removed: list[str] = []
    monkeypatch.setattr(recovery, "_remove", lambda engine, container: removed.append(container.id))
    for name in ("sweep", "_remember_memory"):
        monkeypatch.setattr(recovery, name, lambda *arguments: None)
    engine: Any = SimpleNamespace(
        containers=SimpleNamespace(all=lambda: [left, fresh]),
        volumes=SimpleNamespace(settle=lambda: None),
        stopping=threading.Event(),
    )
    restore: Any = SimpleNamespace(start=lambda chosen, start: None)
    settled = threading.Event()
    recovery._rest(engine, restore, [left], [], [], [], set(), settled)
    assert settled.is_set() and removed == [left.id]
