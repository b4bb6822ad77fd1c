# SPDX-License-Identifier: Apache-2.0
"""The store of containers: by id, by name, by the beginning of an id. Names are unique and reserved.

Routes look containers up here; create, remove and rename change it. What is here is in engine.db. A record that
cannot be trusted is here, too, as a dead container, so that it can be removed.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Set

from teu.engine.containers import names, records
from teu.engine.containers.boot import Boot
from teu.engine.containers.model import Container, Surroundings
from teu.engine.containers.state import Saved
from teu.engine.core.errors import BadRequest, Conflict, NotFound

log = logging.getLogger("teu.engine")

NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")


class Containers:
    """All containers of the engine: their records in the database, and what runs of them in memory."""

    def __init__(self, around: Surroundings, boot: Boot, untidy: threading.Event) -> None:
        """`untidy`: wakes the sweep, which spares what may be a damaged container's own while that is there."""
        self._around = around
        self._database = around.database
        self._boot = boot
        self._untidy = untidy
        self._lock = threading.RLock()
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, str] = {}
        self._lost: set[str] = set()

    def load(self) -> None:
        """Read all records. One that is damaged is a dead container; it stops nothing."""
        rows = self._database.query(
            "SELECT rowid, CAST(id AS BLOB) AS id, CAST(name AS BLOB) AS name, CAST(data AS BLOB) AS data"
            " FROM containers"
        )
        read = [(row, *records.container(row["id"], row["name"], row["data"])) for row in rows]
        # Those first whose ids are known for certain: nobody else gets them, nor their names.
        for row, record, faults, known in sorted(read, key=lambda one: (not one[3], bool(one[2]))):
            if record.id in self._by_id:
                record.id = f"{row['rowid']:064x}"
            if record.name in self._by_name:
                record.name = f"damaged_{record.id[:12]}"
            damage = ""
            if faults:
                shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
                damage = f"its record in {self._database.path} is damaged: {shown}"
                record.state.pid = 0  # until recovery knows better
            elif record.state.dead:
                record.state.dead, record.state.status = False, "exited"  # recovery tries it again
            container = Container(self._around, record, damage, row["rowid"] if faults else 0)
            if damage:
                log.error(
                    "container %s (%s) is dead: %s", container.id[:12], container.name, damage, extra=container.fields
                )
            if not known:
                self._lost.add(container.id)
            self._by_id[container.id] = container
            self._by_name[container.name] = container.id
        self._boot.load(self.all())

    def make(self, record: Saved) -> Container:
        """A container of this record, which is not here before `add`."""
        return Container(self._around, record)

    @property
    def lost(self) -> bool:
        """Whether there is a record that has lost its id: what nobody's id stands for may be its own."""
        return bool(self._lost)

    def all(self) -> list[Container]:
        """All of them as they are now, in no order."""
        with self._lock:
            return list(self._by_id.values())

    def find(self, reference: str) -> Container | None:
        """By full id, name, or a unique beginning of an id (in this order); None when there is none."""
        with self._lock:
            container = self._by_id.get(reference)
            if container is None:
                identity = self._by_name.get(reference.removeprefix("/"))
                container = self._by_id.get(identity) if identity else None
            if container is not None or not reference:
                return container
            found = [key for key in self._by_id if key.startswith(reference)]
            if len(found) > 1:
                raise BadRequest(f"Multiple IDs found with provided prefix: {reference}")
            return self._by_id[found[0]] if found else None

    def get(self, reference: str) -> Container:
        """The container of that name, id, or beginning of an id. Raises NotFound, and BadRequest where more than one
        begins so."""
        container = self.find(reference)
        if container is None:
            raise NotFound(f"No such container: {reference}")
        return container

    def add(self, container: Container, named: bool = True) -> None:
        """Durable when it returns. Raises Conflict when the name is taken; one that is not `named`, but has a name of
        our choice, gets another one then."""
        with self._lock:
            if not named and container.name in self._by_name:
                container.name = self.random_name()
            self._check_name(container.name)
            self._by_name[container.name] = container.id  # reserved before the slow write
        try:
            data = container.record()
            with self._database.transaction() as cursor:
                cursor.execute("INSERT INTO containers VALUES (?, ?, ?)", (container.id, container.name, data))
        except BaseException:
            with self._lock:
                self._by_name.pop(container.name, None)
            raise
        with self._lock:
            self._by_id[container.id] = container

    def remove(self, container: Container, durable: bool = True) -> None:
        """Forget a container and its name; on the disk when this returns, if it is to be durable. Twice is fine."""
        with self._database.transaction(durable) as cursor:
            if container.damage:
                cursor.execute("DELETE FROM containers WHERE rowid=?", (container.row,))
            else:
                cursor.execute("DELETE FROM containers WHERE id=?", (container.id,))
        with self._lock:
            self._by_id.pop(container.id, None)
            if container.id in self._lost:
                self._lost.discard(container.id)
                self._untidy.set()  # what was kept because it might be its own is looked at again
            if self._by_name.get(container.name) == container.id:
                del self._by_name[container.name]
        self._boot.forget(container)

    def rename(self, container: Container, name: str) -> None:
        """Under the container's lock."""
        name = self.clean_name(name)
        container.must_be_alive()
        with self._lock:
            if container.removed:
                raise NotFound(f"No such container: {container.id}")
            old = container.name
            if name == old:
                raise BadRequest("Renaming a container with the same name as its current name")
            self._check_name(name)
            self._by_name[name] = container.id
            container.name = name
            try:
                container.save()
            except BaseException:
                container.name = old
                del self._by_name[name]
                raise
            self._by_name.pop(old, None)

    def clean_name(self, name: str) -> str:
        """A name that a client gives, without a slash before it. Raises BadRequest for one that no container may
        have."""
        if not NAME.fullmatch(name):
            raise BadRequest(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
        return name.removeprefix("/")

    def check_name(self, name: str) -> None:
        """An early answer for create; add() is what decides."""
        with self._lock:
            self._check_name(name)

    def _check_name(self, name: str) -> None:
        holder = self._by_name.get(name)
        if holder is not None:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{holder}".'
                " You have to remove (or rename) that container to be able to reuse that name."
            )

    def random_name(self) -> str:
        """A name that no container has. It is not reserved."""
        with self._lock:
            name = names.pick()
            while name in self._by_name:
                name = f"{names.pick()}{secrets.randbelow(1000)}"
            return name

    def using_image(self, ids: Set[str]) -> list[Container]:
        """The containers that were made of the image that has these ids."""
        return [container for container in self.all() if container.image_id in ids]

    def using_network(self, name_or_id: str) -> list[Container]:
        """The containers that are on this network, or will be when they start."""
        return [
            container
            for container in self.all()
            if any(
                name_or_id in (name, endpoint.network_id)
                for name, endpoint in container.network_settings.networks.items()
            )
        ]

    def using_volume(self, name: str) -> list[Container]:
        """The containers that have this volume among their mounts."""
        return [
            container
            for container in self.all()
            if any(mount.type == "volume" and mount.name == name for mount in container.mounts)
        ]
