# SPDX-License-Identifier: Apache-2.0
"""Images as the engine sees them: references, configurations, snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from teu.engine.errors import NotFound

if TYPE_CHECKING:
    from teu.engine.container import Container
    from teu.engine.engine import Engine


class Image(NamedTuple):
    id: str
    config: dict[str, Any]
    chain_id: str
    name: str
    size: int


class Images:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def resolve(self, reference: str, platform: str | None = None) -> Image:
        raise NotFound(f"No such image: {reference}")

    def prepare_parent(self, image: Image) -> None: ...

    def commit(self, container: Container, config: dict[str, Any], snapshot_key: str, tag: str | None) -> str:
        raise NotImplementedError

    def count(self) -> int:
        return 0

    def usage(self) -> list[dict[str, Any]]:
        return []
