# SPDX-License-Identifier: Apache-2.0
"""`pull`: comes with the registry client."""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from teu.engine.errors import Unsupported

if TYPE_CHECKING:
    from teu.engine.engine import Engine
    from teu.oci.reference import Reference


def push(engine: Engine, wanted: Reference, auth: str) -> Iterator[dict[str, Any]]:
    raise Unsupported("push is not there yet")


