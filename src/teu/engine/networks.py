# SPDX-License-Identifier: Apache-2.0
"""Networks as the engine sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from teu.engine.container import Container
    from teu.engine.engine import Engine


class Attachment(NamedTuple):
    namespace: str | None
    files: dict[str, str]


class Networks:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def check(self, container: Container, networking: dict[str, Any] | None) -> None: ...

    def attach(self, container: Container) -> Attachment:
        host = container.host_config.get("NetworkMode") == "host"
        return Attachment(None if host else "", {})

    def detach(self, container: Container) -> None: ...

    def forget(self, container: Container) -> None: ...

    def recover(self, running: list[Container]) -> None: ...
