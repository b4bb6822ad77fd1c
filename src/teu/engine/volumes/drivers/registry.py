# SPDX-License-Identifier: Apache-2.0
"""The volume drivers by name. A new driver is one line here; it is made of the folder that has all volumes."""

from __future__ import annotations

from collections.abc import Callable

from teu.engine.volumes.drivers.driver import Driver
from teu.engine.volumes.drivers.local import Local

DRIVERS: dict[str, Callable[[str], Driver]] = {"local": Local}
DEFAULT = "local"
