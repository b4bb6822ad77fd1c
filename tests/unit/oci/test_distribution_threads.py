# SPDX-License-Identifier: Apache-2.0
"""Many threads that meet a registry without TLS at once: each of them goes on over HTTP."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from teu.oci import distribution

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "system"))

from scripted_registry import ScriptedRegistry


def test_all_fall_back_together(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4)
    tried = threading.local()
    original = distribution.Registry._authorized

    def authorized(self: distribution.Registry, *arguments: object) -> distribution.Answer:
        """The first request of each thread begins when all have chosen HTTPS."""
        try:
            return original(self, *arguments)  # type: ignore[arg-type]
        except OSError:
            if not getattr(tried, "once", False):
                tried.once = True
                together.wait(30)
            raise

    monkeypatch.setattr(distribution.Registry, "_authorized", authorized)
    with ScriptedRegistry() as house:
        house.image("there/image", "1")
        with distribution.Registry(house.address) as registry, ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: registry.resolve("there/image", "1"), range(4)))
    assert all(found)
