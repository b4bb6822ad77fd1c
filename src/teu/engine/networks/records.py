# SPDX-License-Identifier: Apache-2.0
"""The record of a network: how it is read from engine.db, where it has the API's form without the containers, and
written there.

Four members are not the API's: AutomaticSubnet and AutomaticSubnet6 (nobody chose its subnet of that family),
OwnBridge (we made the bridge of that name, or the interface that a macvlan or ipvlan is on), and IPAM.Config.PoolID (by
which a plugin knows the subnet). Members that this teud does not know are kept for the one that wrote them.
IPAM.Config has the subnets of both families; those of one that is not enabled are kept, and not used.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from hashlib import sha256
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.core.records import (
    IDENTITY,
    TEXT_MAP,
    Faults,
    Members,
    column,
    flag,
    items,
    mapping,
    maybe,
    moment,
    read,
    text,
)
from teu.engine.core.times import timestamp
from teu.engine.networks.ipam import Pool

if TYPE_CHECKING:
    from teu.oci.jsontext import Json


class Subnet(NamedTuple):
    """One IPAM.Config. `range`: where addresses are taken from, "" for all of it; `others`: of somebody else, by
    names; `pool_id`: a plugin's name for it."""

    subnet: str
    gateway: str
    range: str = ""
    others: Mapping[str, str] = MappingProxyType({})
    pool_id: str = ""

    @property
    def version(self) -> int:
        """Its family, 4 or 6."""
        return 6 if ":" in self.subnet else 4

    def pool(self) -> Pool:
        """The addresses in it. Raises ValueError where one of the texts is none."""
        return Pool(
            ip_network(self.subnet),
            ip_address(self.gateway) if self.gateway else None,
            ip_network(self.range, strict=False) if self.range else None,
            [ip_address(address) for address in self.others.values()],
        )

    def encode(self) -> dict[str, Json]:
        """As the API has it."""
        result: dict[str, Json] = {"Subnet": self.subnet}
        if self.gateway:
            result["Gateway"] = self.gateway
        if self.range:
            result["IPRange"] = self.range
        if self.others:
            result["AuxiliaryAddresses"] = dict(self.others)
        return result

    def encode_whole(self) -> dict[str, Json]:
        """As it is saved."""
        return {**self.encode(), "PoolID": self.pool_id} if self.pool_id else self.encode()


class NetworkRecord:
    """A network as the API has it, but for those who are on it, with the two notes of ours."""

    def __init__(
        self,
        name: str,
        driver: str,
        subnets: list[Subnet],
        ipam_options: dict[str, str] | None = None,
        options: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        identity: str = "",
        created: str = "",
    ) -> None:
        """`subnets`: of both families; a bridge has no more than one of each. A new network gets an id, and this
        moment."""
        self.id = identity or uuid.uuid4().hex + uuid.uuid4().hex
        self.name = name
        self.driver = driver
        self.created = created or timestamp()
        self.subnets = subnets
        self.ipam_options = ipam_options
        self.options = options or {}
        self.labels = labels or {}
        self.ipv4 = True
        self.ipv6 = False
        self.ipam_driver = "default"
        self.address_space = "LocalDefault"  # as the driver of a new network is told it; not saved
        self.scope = "local"
        self.config_only = False
        self.config_from = ""
        self.internal = False
        self.attachable = False
        self.automatic_subnet = False
        self.automatic_subnet6 = False
        self.own_bridge = False
        self.other: dict[str, Json] = {}

    def encode(self) -> dict[str, Json]:
        """As it is saved."""
        result = self.shown(Subnet.encode_whole)
        if self.ipv4:  # as older ones know it
            del result["EnableIPv4"]
        if self.automatic_subnet:
            result["AutomaticSubnet"] = True
        if self.automatic_subnet6:
            result["AutomaticSubnet6"] = True
        if self.own_bridge:
            result["OwnBridge"] = True
        return result

    def shown(self, encode: Callable[[Subnet], dict[str, Json]] = Subnet.encode) -> dict[str, Json]:
        """The API's form, without the containers."""
        return {
            "Name": self.name,
            "Id": self.id,
            "Created": self.created,
            "Scope": self.scope,
            "Driver": self.driver,
            "EnableIPv4": self.ipv4,
            "EnableIPv6": self.ipv6,
            "IPAM": {
                "Driver": self.ipam_driver,
                "Options": self.ipam_options,
                "Config": [encode(subnet) for subnet in self.subnets],
            },
            "Internal": self.internal,
            "Attachable": self.attachable,
            "Ingress": False,
            "ConfigFrom": {"Network": self.config_from},
            "ConfigOnly": self.config_only,
            "Options": self.options,
            "Labels": self.labels,
            **self.other,
        }


# -- from engine.db --------------------------------------------------------------------------------------

_TEXT, _ID, _NAME = text(), text("", IDENTITY), text("", re.compile(r"."))
_OPTIONAL_TEXT_MAP = maybe(TEXT_MAP)
_NO_TEXTS: dict[str, str] = {}


def network(id: object, name: object, data: str | bytes | None) -> tuple[NetworkRecord, Faults]:
    """The record of a row of `networks`, and its faults. It has an id and a name in any case."""
    record, faults = read(_network, data)
    row_id, row_name = column(id), column(name)
    if record.id != row_id or not row_id:
        faults.append("its row has another id")
    if record.name != row_name or not row_name:
        faults.append("its row has another name")
    if IDENTITY.match(row_id):
        record.id = row_id
    elif not record.id:
        record.id = sha256(b"%r %r" % (data, id)).hexdigest()
    record.name = row_name or record.name or f"damaged_{record.id[:12]}"
    try:
        for subnet in record.subnets:
            if subnet.subnet:
                subnet.pool()
    except ValueError as error:
        faults.append(f"IPAM.Config: {error}")
        record.subnets = []
    return record, faults


def _network(value: object, where: str, faults: Faults) -> NetworkRecord:
    given = Members(value, where, faults)
    given.check(flag, "Ingress")  # of a kind of networks that is not made here
    ipam_driver, options, subnets = given.needed("IPAM", _ipam)
    record = NetworkRecord(
        given.needed("Name", _NAME),
        given.needed("Driver", _TEXT),
        subnets,
        options,
        given.take("Options", _OPTIONAL_TEXT_MAP, None),
        given.take("Labels", _OPTIONAL_TEXT_MAP, None),
        created=given.needed("Created", moment),
    )
    record.id = given.needed("Id", _ID)
    record.ipv4 = given.take("EnableIPv4", flag, True)
    record.ipv6 = given.take("EnableIPv6", flag, False)
    record.ipam_driver = ipam_driver or "default"
    record.scope = given.take("Scope", _TEXT, "local")
    record.config_only = given.take("ConfigOnly", flag, False)
    record.config_from = given.take("ConfigFrom", mapping(_TEXT), _NO_TEXTS).get("Network", "")
    record.internal = given.take("Internal", _closed, False)
    record.attachable = given.take("Attachable", flag, False)
    record.automatic_subnet = given.take("AutomaticSubnet", flag, False)
    record.automatic_subnet6 = given.take("AutomaticSubnet6", flag, False)
    record.own_bridge = given.take("OwnBridge", flag, False)
    record.other = given.rest()
    return record


def _closed(value: object, where: str, faults: Faults) -> bool:
    """A flag that keeps something shut: what it said is not known, so it does."""
    return flag(value, where, faults) if isinstance(value, bool) else not flag(value, where, faults)


def _ipam(value: object, where: str, faults: Faults) -> tuple[str, dict[str, str] | None, list[Subnet]]:
    given = Members(value, where, faults)
    return (
        given.take("Driver", _TEXT, ""),
        given.take("Options", _OPTIONAL_TEXT_MAP, None),
        given.take("Config", maybe(items(_subnet), []), []),
    )


def _subnet(value: object, where: str, faults: Faults) -> Subnet:
    given = Members(value, where, faults)
    return Subnet(
        given.take("Subnet", _TEXT, ""),
        given.take("Gateway", _TEXT, ""),
        given.take("IPRange", _TEXT, ""),
        given.take("AuxiliaryAddresses", maybe(TEXT_MAP, {}), {}),
        given.take("PoolID", _TEXT, ""),
    )
