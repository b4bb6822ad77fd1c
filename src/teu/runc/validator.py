# SPDX-License-Identifier: Apache-2.0
"""Refuse a bad config.json before anything is touched. Called by create, run and restore."""

from __future__ import annotations

from teu.oci import runtime_spec
from teu.runc.errors import InvalidSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def check(spec: Any, rootless: bool = False) -> None:
    """Check a whole specification. InvalidSpec names the field."""
    try:
        runtime_spec.check(spec, rootless)
    except runtime_spec.SpecError as error:
        raise InvalidSpec(f"config.json: {error}") from None


def check_process(process: Any) -> None:
    """Check the process of an exec. InvalidSpec names the field."""
    try:
        runtime_spec.check_process(process)
    except runtime_spec.SpecError as error:
        raise InvalidSpec(str(error)) from None
