# SPDX-License-Identifier: Apache-2.0
"""Where a container's output goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teu.engine.container import Container


class Hub:
    def __init__(self, container: Container) -> None:
        self.container = container
