# SPDX-License-Identifier: Apache-2.0
"""Volumes as the engine sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from teu.engine.engine import Engine


class Volume(NamedTuple):
    name: str
    mountpoint: str
    driver: str
    anonymous: bool
    created_now: bool


class Volumes:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def ensure(
        self,
        name: str | None,
        driver: str = "local",
        options: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        container_id: str = "",
    ) -> Volume:
        raise NotImplementedError

    def mount(self, name: str, container_id: str) -> str:
        raise NotImplementedError

    def unmount(self, name: str, container_id: str) -> None: ...

    def release(self, container_id: str, remove_anonymous: bool) -> None: ...

    def usage(self) -> list[dict[str, Any]]:
        return []
