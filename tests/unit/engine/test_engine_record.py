# SPDX-License-Identifier: Apache-2.0
"""The engine is a record: it is built from the ground up, starts nothing, and is the same one the next time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import engine_parts as parts
import pytest

from teu.engine.core.errors import Unreadable
from teu.engine.daemon import Daemon
from teu.engine.lifecycle import recovery

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_it_starts_nothing(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    engine = parts.engine(tmp_path)
    assert set(threading.enumerate()) <= before  # one of another test's may end meanwhile
    assert not engine.ready.is_set() and not engine.stopping.is_set()


def test_it_is_the_same_one_the_next_time(tmp_path: Path) -> None:
    first = parts.engine(tmp_path)
    identity, made = first.id, parts.container(first, "web")
    first.database.close()
    again = parts.engine(tmp_path)
    again.containers.load()
    assert again.id == identity
    assert again.containers.get("web").id == made.id


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/engine.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(Unreadable):
        Daemon(parts.settings(tmp_path))


def test_a_daemon_waits_for_containerd_and_can_be_stopped_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FIRST_SECONDS", 0.2)
    (tmp_path / "data/containers").mkdir(parents=True)  # not a first start
    daemon = Daemon(parts.settings(tmp_path))
    parts.container(daemon.engine, "web")
    starting = threading.Thread(target=daemon.start, daemon=True)
    starting.start()
    deadline = time.monotonic() + 60
    while daemon.engine.waiting is None:
        assert time.monotonic() < deadline, "it is not told that containerd is away"
        time.sleep(0.01)
    assert not daemon.idle(0)
    daemon.stop()
    starting.join(60)
    assert not starting.is_alive()


def test_a_start_loads_no_client_of_registries() -> None:
    """HTTP and TLS are 15 ms of CPU, and most starts pull nothing."""
    script = "import sys; import teu.engine.main, teu.engine.daemon; from teu.engine.api import router; router.load()"
    script += "; print(*(name for name in ('http.client', 'ssl', 'grpc') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout.split() == []
