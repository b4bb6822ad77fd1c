# SPDX-License-Identifier: Apache-2.0
"""The network drivers by name. A new driver is one line here."""

from __future__ import annotations

from teu.engine.networks.drivers.bridge import Bridge
from teu.engine.networks.drivers.driver import Driver
from teu.engine.networks.drivers.host import Host
from teu.engine.networks.drivers.null import Null

DRIVERS: dict[str, type[Driver]] = {"bridge": Bridge, "host": Host, "null": Null}
