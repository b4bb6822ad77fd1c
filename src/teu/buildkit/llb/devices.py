# SPDX-License-Identifier: Apache-2.0
"""Which devices a step gets, of those that it asks for and those that its build may have. Called by load."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from teu.buildkit.core import errors

ENTITLEMENT = "device"


class Devices(Protocol):
    """Those of this machine (oci.cdi)."""

    def find(self, name: str) -> list[str]:
        """The full names that are meant. Raises ValueError."""

    def may(self, name: str) -> bool:
        """Whether builds may have it without asking."""


class Missing(ValueError):
    """A device that a step needs is not there, or its name is none."""


class Refused(ValueError):
    """A step wants a device that its build was not given."""


def parse(entitlement: str) -> tuple[str, str]:
    """`device=NAME[,alias=OTHER]`: (the name that steps use, the device's own where that is another one). ("", "") for
    `device`, which is all of them. Raises InvalidArgument."""
    name, *fields = entitlement.removeprefix(ENTITLEMENT).removeprefix("=").split(",")
    alias = ""
    for one in fields:
        key, equals, value = one.partition("=")
        if not equals or key != "alias":
            what = f'unknown device config key "{key}"' if equals else f'invalid device config "{one}"'
            raise errors.InvalidArgument(errors.cut(what, 200))
        alias = value
    return (alias, name) if alias else (name, "")


def grant(step: Any, entitlements: Collection[str], devices: Devices | None) -> bool:
    """Put the full names into an ExecOp, of what is there and may be had; whether they are others than were asked for.
    Raises Missing, Refused."""
    given = dict(parse(one) for one in entitlements if re.match(r"device(=|\Z)", one))
    names: list[str] = []
    forbidden: list[str] = []
    mine = {name for one in given for name in _find(one, devices)} if given and "" not in given else set()
    for one in step.cdiDevices:
        aliased = given.get(one.name, "")
        found = _find(aliased or one.name, devices)
        if not found and not one.optional:
            raise Missing(f'required device "{errors.cut(one.name, 200)}" is not registered')
        for name in found:
            if aliased or "" in given or name in mine or (devices is not None and devices.may(name)):
                names.append(name)
            else:
                forbidden.append(name)
    if forbidden:
        what = ", ".join(dict.fromkeys(forbidden))
        are = f"devices {what} are" if "," in what else f"device {what} is"
        raise Refused(f"{are} requested by the build but not allowed")
    before = list(step.cdiDevices)
    del step.cdiDevices[:]
    for name in dict.fromkeys(names):
        step.cdiDevices.add(name=name)
    return before != list(step.cdiDevices)


def _find(name: str, devices: Devices | None) -> Sequence[str]:
    try:
        return devices.find(name) if devices is not None else []
    except ValueError as error:
        raise Missing(errors.cut(str(error), 200)) from None
