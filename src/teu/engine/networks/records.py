# SPDX-License-Identifier: Apache-2.0
"""The record of a network as engine.db has it: its shape."""

from __future__ import annotations

import re
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from teu.engine.core.records import (
    IDENTITY,
    TEXT_MAP,
    Faults,
    anything,
    column,
    flag,
    items,
    mapping,
    maybe,
    members,
    moment,
    read,
    text,
)


def _closed(value: Any, where: str, faults: Faults) -> Any:
    """A flag that keeps something shut: what it said is not known, so it does."""
    return flag(value, where, faults) if isinstance(value, bool) else not flag(value, where, faults)


_SUBNET = members({"Subnet": text(), "Gateway": text(), "IPRange": text()})

_NETWORK = members(
    {
        "Id": text("", IDENTITY),
        "Name": text("", re.compile(r".")),
        "Created": moment,
        "Scope": text("local"),
        "Driver": text(),
        "EnableIPv6": flag,
        "IPAM": members({"Driver": text("default"), "Options": maybe(TEXT_MAP), "Config": maybe(items(_SUBNET), [])}),
        "Internal": _closed,
        "Attachable": flag,
        "Ingress": flag,
        "ConfigFrom": mapping(anything),
        "ConfigOnly": flag,
        "Options": maybe(TEXT_MAP, {}),
        "Labels": maybe(TEXT_MAP, {}),
        "AutomaticSubnet": flag,
    },
    ("Id", "Name", "Created", "Driver", "IPAM"),
)


def network(id: Any, name: Any, data: Any) -> tuple[dict[str, Any], Faults]:
    record, faults = read(_NETWORK, data)
    row_id, row_name = column(id), column(name)
    if record["Id"] != row_id or not row_id:
        faults.append("its row has another id")
    if record["Name"] != row_name or not row_name:
        faults.append("its row has another name")
    identity = row_id if IDENTITY.match(row_id) else record["Id"] or sha256(b"%r %r" % (data, id)).hexdigest()
    record.update(Id=identity, Name=row_name or record["Name"] or f"damaged_{identity[:12]}")
    config = (record["IPAM"].get("Config") or [{}])[0]
    try:
        if config.get("Subnet"):
            IPv4Network(config["Subnet"])
            IPv4Address(config.get("Gateway"))
            if config.get("IPRange"):
                IPv4Network(config["IPRange"])
    except ValueError as error:
        faults.append(f"IPAM.Config: {error}")
        record["IPAM"] = {**record["IPAM"], "Config": []}
    return record, faults
