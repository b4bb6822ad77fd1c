# SPDX-License-Identifier: Apache-2.0
"""What a scenario of a Python client reports: each step's value, or the class of its error and what of it is data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any


class Said(dict[str, Any]):
    """The report of a scenario, by the names of its steps."""

    def step(self, name: str, call: Callable[[], Any]) -> Any:
        """Do a step. Returns its value, or None where it failed."""
        try:
            self[name] = call()
        except Exception as error:
            response = getattr(error, "response", None)
            self[name] = {"error": type(error).__name__, "status": getattr(response, "status_code", None)}
            return None
        return self[name]

    def tell(self) -> None:
        """Print it, the last line of what the scenario prints."""
        print(
            json.dumps(
                self, sort_keys=True, default=lambda value: value.decode() if isinstance(value, bytes) else repr(value)
            )
        )


def until(probe: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true answer of `probe`; its last one when the time is over."""
    deadline = time.monotonic() + seconds
    while not (value := probe()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value
