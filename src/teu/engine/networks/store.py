# SPDX-License-Identifier: Apache-2.0
"""The records of networks, in memory and in engine.db.

    engine.db  networks   id, name, data (records.py)

A record that is damaged is a network that can be listed, inspected and removed.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.networks import ipam, records
from teu.engine.networks.ipam import Range, Source
from teu.engine.networks.model import PREDEFINED, Network
from teu.engine.networks.options import Defaults
from teu.engine.networks.records import NetworkRecord, Subnet

if TYPE_CHECKING:
    from teu.engine.core.database import Database

log = logging.getLogger("teu.engine")


class Store:
    """`lock` is of all that networks are: records, addresses, attachments, rules. Who changes several holds it."""

    def __init__(self, database: Database, defaults: Defaults | None = None) -> None:
        """`defaults`: what teud.yaml says."""
        self.lock = threading.RLock()
        self._database = database
        self.defaults = defaults or Defaults()
        self.sources: list[Source] = []
        """Where subnets are taken from that nobody chose; known from the start on."""
        self._networks: dict[str, Network] = {}
        self._by_name: dict[str, Network] = {}  # of those of one name, which damage can make, the first

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While something is asked that may take long, or may ask us: this thread does not have the lock, however many
        times it has taken it. What it knows of others' networks and containers is old afterwards."""
        count = 0
        with suppress(RuntimeError):
            while True:
                self.lock.release()
                count += 1
        try:
            yield
        finally:
            for _ in range(count):
                self.lock.acquire()

    def start(self, held: Callable[[Network], bool] = lambda network: False) -> None:
        """Read all records, and make the networks that are always there. `held`: whether containers may be on one
        still, for which the default bridge stays what it is until they have gone."""
        self.sources = self.defaults.sources(self._database.identity("engine-id"))
        for network in self._read():
            if network.id in self._networks:
                network.record.id = f"{network.row:064x}"
            self._keep(network)
        for name, driver in PREDEFINED.items():
            known = self.named(name)
            record = known.record if known else NetworkRecord(name, driver, [])
            before = record.encode()
            if known is not None and known.damage:
                # Nobody can remove it and make it anew. It is what it always is, with the addresses it had.
                self.forget(known)
                record = NetworkRecord(name, driver, record.subnets, record.ipam_options, identity=record.id)
            own = self.defaults.bridge_options if name == "bridge" else None
            network = Network(record, defaults=own, aside=self.aside)
            if known is None or known.damage or record.encode() != before:
                self.save(network)
            self._keep(network)
            if name == "bridge" and not self._settled(network):
                if held(network):
                    log.warning("network bridge will be what teud.yaml says once the containers on it have ended")
                else:
                    self.settle(network)

    def _settled(self, network: Network) -> bool:
        """Whether the default bridge is what teud.yaml says."""
        wanted, _ = records.network(network.id, network.name, json.dumps(network.record.encode()))
        self.defaults.settle(wanted)
        return wanted.encode() == network.record.encode()

    def settle(self, network: Network) -> None:
        """Make the default bridge what teud.yaml says. Nobody is on it."""
        if not self._settled(network):
            self.defaults.settle(network.record)
            network.addressed()
            self.save(network)

    def address(self, network: Network, routes: Callable[[int], Iterable[Range]]) -> None:
        """Choose the subnets that the default bridge is to have and has not; nobody is on it. `routes`: the host's, of
        a family. Raises EngineError where all are taken."""
        if not (missing := network.missing()):
            return
        for version in missing:
            subnet = ipam.choose_subnet([*self.subnets(), *routes(version)], version, self.sources)
            network.record.subnets.append(Subnet(str(subnet), str(ipam.first_host(subnet))))
        network.addressed()
        self.save(network)

    def _read(self) -> list[Network]:
        """All records, the good ones first: nobody else gets their ids."""
        found = []
        for row in self._database.query(
            "SELECT rowid, CAST(id AS BLOB) AS id, CAST(name AS BLOB) AS name, CAST(data AS BLOB) AS data FROM networks"
        ):
            record, faults = records.network(row["id"], row["name"], row["data"])
            damage = ""
            if not faults:
                try:
                    probe = Network(record, aside=self.aside)
                    ip_address(probe.binding or "0.0.0.0")
                    int(probe.mtu)
                except (EngineError, ValueError) as error:
                    faults = [str(error)]
            if faults:
                damage = f"its record in {self._database.path} is damaged: {'; '.join(faults[:5])}"
                log.error("network %s (%s): %s", record.id[:12], record.name, damage)
            try:
                network = Network(record, damage, row["rowid"], aside=self.aside)
            except ValueError:
                record.subnets = []
                network = Network(record, damage, row["rowid"], aside=self.aside)
            found.append(network)
        return sorted(found, key=lambda network: bool(network.damage))

    def forget(self, network: Network) -> None:
        """Remove a network's record, on the disk as well."""
        with self._database.transaction() as cursor:
            if network.damage:
                cursor.execute("DELETE FROM networks WHERE rowid=?", (network.row,))
            else:
                cursor.execute("DELETE FROM networks WHERE id=?", (network.id,))
        self._networks.pop(network.id, None)
        if self._by_name.get(network.name) is network:
            del self._by_name[network.name]
            other = next((one for one in self._networks.values() if one.name == network.name), None)
            if other is not None:
                self._by_name[network.name] = other

    def _keep(self, network: Network) -> None:
        self._networks[network.id] = network
        if self._by_name.setdefault(network.name, network).id == network.id:
            self._by_name[network.name] = network

    def save(self, network: Network) -> None:
        """Durable when it returns."""
        with self._database.transaction() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO networks VALUES (?, ?, ?)",
                (network.id, network.name, json.dumps(network.record.encode())),
            )
        self._keep(network)

    def all(self) -> list[Network]:
        """All networks by their names."""
        with self.lock:
            return sorted(self._networks.values(), key=lambda network: network.name)

    def find(self, text: str) -> Network | None:
        """The network of that id, name, or beginning of an id; None where there is none. Raises BadRequest where more
        than one begins so."""
        with self.lock:
            found = self._networks.get(text) or self.named(text)
            if found is not None:
                return found
            matches = [n for n in self._networks.values() if text and n.id.startswith(text)]
            if len(matches) > 1:
                raise BadRequest(f"network {text} is ambiguous: {len(matches)} network ids start with it")
            return matches[0] if matches else None

    def get(self, text: str) -> Network:
        """As `find`. Raises NotFound where there is none."""
        network = self.find(text)
        if network is None:
            raise NotFound(f"network {text} not found")
        return network

    def named(self, name: str) -> Network | None:
        """Of exactly this name."""
        return self._by_name.get(name)

    def by_id(self, identity: str) -> Network | None:
        """Of exactly this id."""
        return self._networks.get(identity)

    def subnets(self) -> list[Range]:
        """Those of all networks, of both families."""
        return [pool.subnet for network in self._networks.values() for pool in network.pools]
