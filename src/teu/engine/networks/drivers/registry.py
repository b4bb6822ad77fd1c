# SPDX-License-Identifier: Apache-2.0
"""The network drivers by name. A new driver is a line here, or a few where few machines use it: such a one is imported
with its first network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from teu.engine.core.managed import KNOWN
from teu.engine.networks.drivers.bridge import Bridge
from teu.engine.networks.drivers.driver import Context, Driver
from teu.engine.networks.drivers.host import Host
from teu.engine.networks.drivers.null import Null

if TYPE_CHECKING:
    from teu.engine.networks.drivers.remote import Remote

EARLY: dict[str, type[Driver]] = {"bridge": Bridge, "host": Host, "null": Null}
NAMES = ("bridge", "host", "ipvlan", "macvlan", "null")


def load(name: str) -> type[Driver]:
    """The class of a driver. Raises KeyError where there is none of that name."""
    if name == "ipvlan":
        from teu.engine.networks.drivers.ipvlan import Ipvlan  # 6 ms of the daemon's start, with netlink

        return Ipvlan
    if name == "macvlan":
        from teu.engine.networks.drivers.macvlan import Macvlan  # so does this

        return Macvlan
    return EARLY[name]


class Drivers(Mapping[str, Driver]):
    """Each driver once, made when it is asked for first. As a mapping it has ours, and gives plugins' as well."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._made = {name: make(context) for name, make in EARLY.items()}
        self._plugins: dict[str, Remote] = {}

    def start(self) -> None:
        """At the start of the daemon."""
        for driver in self._made.values():
            driver.start()

    def close(self) -> None:
        """The daemon goes."""
        for driver in self.made():
            driver.close()

    def __getitem__(self, name: str) -> Driver:
        """The driver of any name: of one that is not of NAMES a plugin's, whether there is one or not."""
        if name not in NAMES:
            found = self.plugin(name)
            assert found is not None
            return found
        if name not in self._made:
            driver = self._made.setdefault(name, load(name)(self._context))
            driver.start()
        return self._made[name]

    def plugin(self, name: str) -> Remote | None:
        """The driver of that name where it is not one of ours."""
        if name in NAMES:
            return None
        name = KNOWN.named(name)
        if name not in self._plugins:
            from teu.engine.networks.drivers.remote import Remote  # 18 ms of the daemon's start

            return self._plugins.setdefault(name, Remote(self._context, name))  # others may have been as quick
        return self._plugins[name]

    def __contains__(self, name: object) -> bool:
        """Whether it is one of ours."""
        return name in NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)

    def made(self) -> list[Driver]:
        """Those that have been asked for."""
        return list(self._made.values())
