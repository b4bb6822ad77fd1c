# SPDX-License-Identifier: Apache-2.0
"""What the engine does at its start: make engine.db and containerd's view agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teu.engine.engine import Engine


def run(engine: Engine) -> None: ...
