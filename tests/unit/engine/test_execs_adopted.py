# SPDX-License-Identifier: Apache-2.0
"""Processes beside a container's first one: after a restart of the engine, and of a user that is not there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teu.engine.core.errors import BadRequest
from teu.engine.core.fields import ExecConfig
from teu.engine.lifecycle import execs


def test_what_a_client_has_just_made_is_not_taken_for_an_earlier_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are served before all is looked after: a process that is made but not started yet was removed."""
    earlier, own = "e" * 64, "0" * 64
    for name in (earlier, own, "no-exec"):
        (tmp_path / name).mkdir()
    adopted: list[str] = []
    monkeypatch.setattr(execs, "_adopt", lambda engine, container, entry: adopted.append(entry.name))
    container: Any = SimpleNamespace(runtime_directory=str(tmp_path), execs={own: object()}, id="c", fields={})
    execs.adopt(SimpleNamespace(), container)  # type: ignore[arg-type]
    assert adopted == [earlier]


def test_of_an_unknown_user_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(engine: Any, container: Any, user: str) -> None:
        raise BadRequest(f"unable to find user {user}: no matching entries in passwd file")

    monkeypatch.setattr(execs.users, "find", find)
    container: Any = SimpleNamespace(must_run=lambda: None, execs={}, id="c")
    with pytest.raises(BadRequest, match="unable to find user nobody-there"):
        execs.create(SimpleNamespace(), container, ExecConfig(cmd=["true"], user="nobody-there"))  # type: ignore[arg-type]
    assert not container.execs
