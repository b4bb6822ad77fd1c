# SPDX-License-Identifier: Apache-2.0
"""`pull`: comes with the registry client."""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from teu.engine.errors import Unsupported

if TYPE_CHECKING:
    from teu.engine.engine import Engine
    from teu.oci.image_spec import Platform
    from teu.oci.reference import Reference


def pull(
    engine: Engine, wanted: Reference, platform: Platform | None, auth: str, every: bool
) -> Iterator[dict[str, Any]]:
    raise Unsupported("pull is not there yet")


def distribution(engine: Engine, wanted: Reference, auth: str) -> dict[str, Any]:
    raise Unsupported("pull is not there yet")
