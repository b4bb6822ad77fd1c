# SPDX-License-Identifier: Apache-2.0
"""`stats`: what the container's cgroup counts, in the API's form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teu.engine.container import Container
    from teu.engine.engine import Engine


def stream(engine: Engine, container: Container, follow: bool, once: bool) -> Iterator[bytes]:
    yield b""
