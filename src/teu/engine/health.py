# SPDX-License-Identifier: Apache-2.0
"""Health checks: run the test in the container every so often and keep what it said."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teu.engine.container import Container
    from teu.engine.engine import Engine


def start(engine: Engine, container: Container) -> None: ...


def stop(container: Container) -> None: ...
