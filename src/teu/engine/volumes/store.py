# SPDX-License-Identifier: Apache-2.0
"""Volumes as the engine sees them: their names, their records, and who uses them. Their files are the drivers' affair.

    engine.db  volumes   name, data (records.py)

A volume is anonymous when nobody named it: its name is 64 hexadecimal digits, and it carries docker's label.
It belongs to a container ("Container") until that is removed without its volumes; one whose container
never came to be is swept at the next start. A removal, or another name, is written down first, so that one which was
interrupted is finished then, too. Called by create, start, exit and removal of containers, and by routes/volumes.

A volume that has to be mounted is so while a container that has it runs. The daemon may die at any step: a mount that
is found there is taken as it is, and one that nobody uses goes (`settle`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
import threading
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.containers.state import MountPoint
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.core.managed import KNOWN
from teu.engine.core.times import timestamp
from teu.engine.volumes import records
from teu.engine.volumes.drivers import registry
from teu.engine.volumes.records import VolumeRecord
from teu.linux import trees

if TYPE_CHECKING:
    from teu.engine.containers.store import Containers
    from teu.engine.core.database import Database
    from teu.engine.core.events import Events
    from teu.engine.volumes.drivers.driver import Driver
    from teu.engine.volumes.drivers.plugin import Remote, Seen
    from teu.oci.jsontext import Json

log = logging.getLogger("teu.engine")

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_HARMLESS = ("Created", "Labels", "Container", "Removing", "Renaming")  # faults of these leave the files within reach


class Volume(NamedTuple):
    """A volume that a container has asked for; `created_now`: it was not there before."""

    name: str
    mountpoint: str
    driver: str
    anonymous: bool
    created_now: bool


class Volumes:
    """All volumes: their records, who uses them, and their files by their drivers."""

    def __init__(self, root: str, containers: Containers, database: Database, events: Events) -> None:
        """`root`: the folder for all volumes. `containers`: where their users are looked for."""
        self.root = root
        self._containers = containers
        self._database = database
        self._events = events
        self._drivers = registry.Drivers(root)
        self._lock = threading.Lock()  # of what follows; never held while anything is waited for
        self._changing: weakref.WeakValueDictionary[str, threading.RLock] = weakref.WeakValueDictionary()
        self._mounted: dict[str, set[str]] = {}
        self._promised: dict[str, set[str]] = {}

    def start(self) -> None:
        """At the start of the daemon, once the containers are known: what was interrupted is finished, what nobody has
        is let go of. Nobody waits for a plugin here: its volumes have their turn with `settle`."""
        Path(self.root).mkdir(parents=True, exist_ok=True, mode=0o701)
        self._mend_names()
        for name, record in self._records():
            if record.damage:
                log.error("volume %s: %s", name, record.damage)
            if _driver_name(record) in registry.DRIVERS:
                self._finish_what_was_begun(name, record)
        self._discard_what_never_was()

    def _discard_what_never_was(self) -> None:
        """The daemon may have died between the making of a folder and its record: then nothing is in there yet. A
        folder with files is left alone, whatever became of its record."""
        known = {each for name, record in self._records() for each in (name, record.renaming)}
        driver = self._drivers[registry.DEFAULT]
        for name in os.listdir(self.root):
            if name in known or not NAME.match(name):
                continue
            path = driver.path(name)
            try:
                if os.listdir(os.path.dirname(path)) == [os.path.basename(path)] and not os.listdir(path):
                    driver.remove(name)
            except OSError as error:
                log.warning("%s, which is no volume, cannot be removed: %s", path, error)

    def _finish_what_was_begun(self, name: str, record: VolumeRecord) -> None:
        with self._lock:
            promised = set(self._promised)
        known = {"", *promised, *(container.id for container in self._containers.all())}
        try:
            if record.renaming and not record.removing and self._row(record.renaming) is None:
                self._finish_renaming(name, record)
                return
            # Where the record of a container has lost its id, the volume may be that one's.
            if record.removing or not (record.damage or self._containers.lost or record.container in known):
                self._finish_removal(name, self._driver(record))
        except (OSError, EngineError) as error:
            log.error("volume %s cannot be removed: %s", name, error)

    def _mend_names(self) -> None:
        """A row whose name nobody can say gets one, to be inspected and removed by."""
        rows = self._database.query("SELECT rowid, CAST(name AS BLOB) AS name FROM volumes")
        for row in rows:
            try:
                whole = row["name"] is not None and NAME.match(row["name"].decode()) is not None
            except UnicodeDecodeError:
                whole = False
            if not whole:
                name = f"damaged-{row['rowid']}"
                log.error("a volume's record has lost its name; the record is shown as volume %s", name)
                with self._database.transaction() as cursor:
                    cursor.execute("UPDATE OR REPLACE volumes SET name=? WHERE rowid=?", (name, row["rowid"]))

    def _records(self) -> list[tuple[str, VolumeRecord]]:
        """All of them, those that are being removed as well."""
        rows = self._database.query("SELECT name, CAST(data AS BLOB) AS data FROM volumes ORDER BY name")
        return [(row["name"], self._read(row["data"])) for row in rows]

    def _read(self, data: bytes | None) -> VolumeRecord:
        record, faults = records.volume(data)
        if faults:
            record.damage = f"its record in {self._database.path} is damaged: {'; '.join(faults[:5])}"
            # How it is mounted is one of its options.
            record.opaque = not all(fault.startswith(_HARMLESS) for fault in faults)
        return record

    def settle(self) -> None:
        """Unmount what no running container uses: the last one may have ended while the engine was dead. Any time."""
        for name, record in self._records():
            if not (record.opaque or self._driver(record).has_to_be_mounted(record.options)):
                continue
            try:
                with self._alone(name):
                    self._unmount_unused(name, "")
                    if _driver_name(record) not in registry.DRIVERS and (now := self._row(name)) is not None:
                        self._finish_what_was_begun(name, now)
            except OSError as error:
                log.warning("volume %s cannot be unmounted: %s", name, error)

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Nobody else changes this volume meanwhile; one whose server hangs holds up nobody but its own users."""
        with self._lock:
            lock = self._changing.setdefault(name, threading.RLock())  # kept by those who have or want it
        with lock:
            yield

    def _row(self, name: str) -> VolumeRecord | None:
        rows = self._database.query("SELECT CAST(data AS BLOB) AS data FROM volumes WHERE name=?", (name,))
        return self._read(rows[0]["data"]) if rows else None

    def _record(self, name: str) -> VolumeRecord | None:
        record = self._row(name)
        return None if record is None or record.removing else record

    def _write(self, name: str, record: VolumeRecord) -> None:
        with self._database.transaction() as cursor:
            cursor.execute("INSERT OR REPLACE INTO volumes VALUES (?, ?)", (name, json.dumps(record.encode())))

    def _driver(self, record: VolumeRecord | None) -> Driver:
        return self._drivers[_driver_name(record)]

    def mountpoint(self, name: str) -> str:
        """Where the host sees the volume's files."""
        return self._driver(self._record(name)).path(name)

    def host_paths(self, name: str) -> list[str]:
        """What of the host's files the volume is."""
        record = self._record(name)
        return self._driver(record).host_paths(name, record.options if record else {})

    def _volume(self, name: str, record: VolumeRecord, created_now: bool = False) -> Volume:
        path = self._driver(record).path(name)
        return Volume(name, path, _driver_name(record), ANONYMOUS_LABEL in record.labels, created_now)

    # -- for containers ----------------------------------------------------------------------

    @contextlib.contextmanager
    def promised(self, container_id: str) -> Iterator[None]:
        """What `ensure` gives for this container meanwhile is not removed, though no record of a container has it."""
        with self._lock:
            self._promised[container_id] = set()
        try:
            yield
        finally:
            with self._lock:
                del self._promised[container_id]

    def users(self, name: str) -> list[str]:
        """The ids of the containers that have it, or are about to."""
        users = [container.id for container in self._containers.using_volume(name)]
        with self._lock:
            return users + [one for one, names in self._promised.items() if name in names and one not in users]

    def ensure(
        self,
        name: str | None,
        driver: str = "",
        options: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        container_id: str = "",
    ) -> Volume:
        """The volume of this name, made if it is not there; a new anonymous one for None. Who names no driver gets the
        one that has it, also where that is a plugin that nobody has told of it here."""
        blank = [key for key, given in (("Options", options), ("Labels", labels)) if given == {}]
        labels = dict(labels or {})
        if not name:
            name = uuid.uuid4().hex + uuid.uuid4().hex
            labels[ANONYMOUS_LABEL] = ""
            driver = driver or registry.DEFAULT
        said, named = driver, KNOWN.named(driver) if driver else ""
        driver = named
        if not driver:
            check_name(name)
            if self._row(name) is None and (found := self._elsewhere(name)) is not None:
                driver = found[0].name
        driver = driver or registry.DEFAULT
        try:
            options = self._drivers[driver].check(options or {})
        except (NotFound, Conflict) as error:
            raise type(error)(f"create {name}: error looking up volume plugin {said or driver}: {error}") from None
        check_name(name)  # behind the driver, as docker has it
        with self._alone(name):
            record = self._record(name)
            with self._lock:
                if container_id in self._promised:
                    self._promised[container_id].add(name)
            if record is not None:
                if named and named != _driver_name(record):
                    raise Conflict(f"create {name}: volume name must be unique: driver {_driver_name(record)} has it")
                if options and options != record.options:
                    raise Conflict(f"volume {name} already exists with other options")
                return self._volume(name, record)
            fresh = self._drivers[driver].create(name, options)
            try:
                owner = container_id if ANONYMOUS_LABEL in labels else ""
                other = driver if driver != registry.DEFAULT else ""
                record = VolumeRecord(timestamp(), other, options, labels, owner)
                record.blank = blank
                self._write(name, record)
            except BaseException:
                if fresh:
                    with contextlib.suppress(OSError):
                        self._drivers[driver].remove(name)
                raise
        self._event("create", name, driver)
        return self._volume(name, record, True)

    def mount(
        self, name: str, container_id: str, destination: str = "", writable: bool = True, propagation: str = ""
    ) -> str:
        """Make the volume usable for a container that starts; returns the path on the host. The rest is told in the
        event."""
        path = self.hold(name, container_id)
        how = {"destination": destination, "read/write": str(writable).lower(), "propagation": propagation}
        self._event("mount", name, self.driver(name), container=container_id, **how)
        return path

    def has_options(self, name: str) -> bool:
        """Whether it shows what something else has, while it is mounted."""
        record = self._record(name)
        return record is not None and self._driver(record).has_to_be_mounted(record.options)

    def hold(self, name: str, user: str) -> str:
        """Mount it for a user of any kind until `let_go`; returns the path on the host."""
        with self._alone(name):
            record = self._record(name)
            if record is None:
                raise NotFound(f"get {name}: no such volume")
            if record.opaque:
                raise Conflict(
                    f"volume {name} can only be inspected and removed, its files are at {self.mountpoint(name)}: "
                    f"{record.damage}"
                )
            self._driver(record).mount(name, record.options)
            self._mounted.setdefault(name, set()).add(user)
        return self._driver(record).path(name)

    @contextlib.contextmanager
    def visited(self, name: str, visitor: str) -> Iterator[None]:
        """Its files are there, and it stays, meanwhile. `visitor` is shown to who would remove it. Raises NotFound,
        Conflict, EngineError."""
        with self.promised(visitor):
            with self._lock:
                self._promised[visitor].add(name)
            self.hold(name, visitor)
            try:
                yield
            finally:
                self.let_go(name, visitor)

    def unmount(self, name: str, container_id: str) -> None:
        """A container has exited; doing it twice is fine."""
        if self.let_go(name, container_id):
            self._event("unmount", name, self.driver(name), container=container_id)

    def let_go(self, name: str, user: str) -> bool:
        """The reverse of `hold`. Whether it was held."""
        with self._alone(name):
            users = self._mounted.get(name, set())
            known = user in users
            users.discard(user)
            if not users:
                self._mounted.pop(name, None)
            record = self._record(name)
            if record is not None and self._driver(record).has_to_be_mounted(record.options):
                self._unmount_unused(name, user)
        return known

    def _unmount_unused(self, name: str, gone: str) -> None:
        users = self._containers.using_volume(name)
        if not self._mounted.get(name) and not any(user.running and user.id != gone for user in users):
            self._driver(self._record(name)).unmount(name)

    def release(self, container_id: str, remove_anonymous: bool) -> None:
        """A container is being removed; with `remove_anonymous` the anonymous volumes that it alone uses go too."""
        for container in self._containers.all():
            if container.id == container_id:
                mounts = container.mounts
                break
        else:
            # Its creation failed: only what was made for it is known.
            mounts = [
                MountPoint(type="volume", name=name)
                for name, record in self._records()
                if record.container == container_id
            ]
        self.release_mounts(container_id, mounts, remove_anonymous)

    def release_mounts(self, container_id: str, mounts: list[MountPoint], remove_anonymous: bool) -> None:
        """The container is no more: its volumes are no longer in use by it. Anonymous ones that nobody else has go,
        where that was asked for; what cannot be removed is logged."""
        for mount in mounts:
            name = mount.name
            if mount.type != "volume" or not name:
                continue
            self.unmount(name, container_id)
            record = self._record(name)
            if record is None or ANONYMOUS_LABEL not in record.labels:
                continue
            if not remove_anonymous:
                if not record.damage and record.container:
                    record.container = ""
                    self._write(name, record)
                continue
            try:
                with self._alone(name):
                    if not any(user != container_id for user in self.users(name)):
                        self._remove(name, record)
            except (OSError, EngineError) as error:
                log.warning("anonymous volume %s cannot be removed: %s", name, error)

    # -- for the API -------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The volumes that there are; those whose removal was begun are not."""
        return [name for name, record in self._records() if not record.removing]

    def _elsewhere(self, name: str) -> tuple[Remote, Seen] | None:
        """Which plugin has a volume of that name, which is none of ours, and what it says of it."""
        if not NAME.match(name):
            return None  # its file would be anywhere
        for plugin in self._drivers.plugins():
            if seen := plugin.seen(name):
                return plugin, seen
        return None

    def elsewhere(self) -> tuple[list[dict[str, Json]], list[str]]:
        """The volumes that plugins have and nobody has named here, in the API's form; and what went wrong."""
        rows, warnings = [], []
        ours = {name for name, _ in self._records()}
        for plugin in self._drivers.plugins():
            try:
                found = plugin.names()
            except EngineError as error:
                warnings.append(f"{plugin.name}: {error}")
                continue
            rows += [_foreign(plugin, name, path) for name, path in found.items() if name not in ours]
            ours.update(found)
        return rows, warnings

    def inspect(self, name: str) -> dict[str, Json]:
        """`describe`, with what a plugin says of a volume now; also of one that nobody has named here. Raises
        NotFound."""
        record = self._record(name)
        if record is None:
            if (other := self._elsewhere(name)) is None:
                raise NotFound(f"get {name}: no such volume")
            plugin, seen = other
            return {**_foreign(plugin, name, seen.mountpoint), **({"Status": seen.status} if seen.status else {})}
        result = self.describe(name)
        if "Status" not in result and _driver_name(record) not in registry.DRIVERS:
            told = self._drivers.plugin(_driver_name(record)).seen(name)
            if told and told.status:
                result["Status"] = told.status
        return result

    def describe(self, name: str) -> dict[str, Json]:
        """The API's form of a volume. Raises NotFound."""
        record = self._record(name)
        if record is None:
            raise NotFound(f"get {name}: no such volume")
        return {
            **({"Status": {"Error": record.damage}} if record.damage else {}),
            "CreatedAt": record.created[:19] + "Z",
            "Driver": _driver_name(record),
            "Labels": record.labels if record.labels or "Labels" in record.blank else None,
            "Mountpoint": self._driver(record).path(name),
            "Name": name,
            "Options": record.options if record.options or "Options" in record.blank else None,
            "Scope": self._driver(record).scope(name),
        }

    def rename(self, name: str, new: str) -> None:
        """Give a volume another name, which makes an anonymous one everybody's. Raises NotFound, BadRequest, Conflict
        (also while any container has it: that knows it by its name)."""
        check_name(new)
        if name == new:
            raise BadRequest(f"rename {name}: that is its name")
        first, second = sorted((name, new))
        with self._alone(first), self._alone(second):
            record = self._record(name)
            if record is None:
                raise NotFound(f"get {name}: no such volume")
            if record.damage:
                raise Conflict(f"rename {name}: {record.damage}")
            if self._row(new) is not None:
                raise Conflict(f"rename {name}: there is a volume {new} already")
            if users := self.users(name):
                raise Conflict(f"rename {name}: volume is in use - [{', '.join(users)}]")
            record.renaming = new
            self._write(name, record)
            try:
                self._finish_renaming(name, record)
            except (OSError, EngineError) as error:
                record.renaming = ""
                self._write(name, record)
                if isinstance(error, OSError):
                    raise Conflict(f"rename {name}: {error.strerror}: {error.filename or ''}") from error
                raise
        self._event("rename", new, _driver_name(record), oldName=name)

    def _finish_renaming(self, name: str, record: VolumeRecord) -> None:
        new = record.renaming
        self._driver(record).rename(name, new)
        labels = {key: text for key, text in record.labels.items() if key != ANONYMOUS_LABEL}
        fresh = VolumeRecord(record.created, record.driver, record.options, labels)
        fresh.blank = record.blank
        fresh.other = record.other
        with self._database.transaction() as cursor:
            cursor.execute("DELETE FROM volumes WHERE name=?", (name,))
            cursor.execute("INSERT INTO volumes VALUES (?, ?)", (new, json.dumps(fresh.encode())))

    def remove(self, name: str, force: bool = False) -> None:
        """DELETE /volumes/{name}. Raises NotFound (unless forced), Conflict. Forced, a volume of a plugin that is
        gone, or does not let go of it, is forgotten."""
        other = self._elsewhere(name) if self._row(name) is None else None
        with self._alone(name):
            # That was asked for seconds, maybe: a container may have it by now.
            if other is not None and self._row(name) is None:
                self._remove_foreign(name, other[0])
                return
            record = self._record(name)
            if record is None:
                if force:
                    return
                raise NotFound(f"get {name}: no such volume")
            users = self.users(name)
            if users:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
            try:
                self._remove(name, record)
            except Conflict as error:
                if not force or _driver_name(record) in registry.DRIVERS:
                    raise
                log.warning("volume %s is forgotten, and may be there still: %s", name, error)
                self._forget(name)
                self._event("destroy", name, _driver_name(record))

    def _remove_foreign(self, name: str, plugin: Remote) -> None:
        try:
            plugin.remove(name)
        except OSError as error:
            raise Conflict(f"remove {name}: {error.strerror}: {error.filename or ''}") from error
        self._event("destroy", name, plugin.name)

    def _remove(self, name: str, record: VolumeRecord) -> None:
        """Raises Conflict where something cannot be removed: then it is still a volume."""
        driver = self._driver(record)
        try:
            driver.release(name)
            record.removing = True
            self._write(name, record)
            self._finish_removal(name, driver)
        except OSError as error:
            record.removing = False
            self._write(name, record)
            raise Conflict(f"remove {name}: {error.strerror}: {error.filename or ''}") from error
        self._event("destroy", name, _driver_name(record))

    def _finish_removal(self, name: str, driver: Driver) -> None:
        driver.remove(name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        with self._database.transaction() as cursor:
            cursor.execute("DELETE FROM volumes WHERE name=?", (name,))

    def drivers(self) -> list[str]:
        """The names of ours, and of those that volumes have."""
        return sorted({*registry.DRIVERS, *(_driver_name(record) for _, record in self._records())})

    def driver(self, name: str) -> str:
        """The name of its driver."""
        return _driver_name(self._record(name))

    def labels(self, name: str) -> dict[str, str]:
        """A volume's labels; none for one that is not there."""
        record = self._record(name)
        return dict(record.labels) if record else {}

    def usage(self) -> list[dict[str, Json]]:
        """For /system/df: with sizes and reference counts. What others have, behind options or a plugin, takes no
        room here, and may not answer who counts: as with docker it is left out."""
        result = []
        for name in self.names():
            if self.has_options(name):
                continue
            with contextlib.suppress(NotFound):
                row = self.describe(name)
                row["UsageData"] = {"Size": size(self.mountpoint(name)), "RefCount": len(self.users(name))}
                result.append(row)
        return result

    def _event(self, action: str, name: str, driver: str, **more: str) -> None:
        self._events.publish("volume", action, name, {"driver": driver, **more})


def _foreign(plugin: Remote, name: str, path: str) -> dict[str, Json]:
    return {
        "CreatedAt": "",
        "Driver": plugin.name,
        "Labels": None,
        "Mountpoint": path,
        "Name": name,
        "Options": None,
        "Scope": plugin.scope_of_all(),
    }


def _driver_name(record: VolumeRecord | None) -> str:
    return record.driver if record is not None and record.driver else registry.DEFAULT


def check_name(name: str) -> None:
    """Raises BadRequest for a name that no volume may have."""
    if len(name) == 1:
        raise BadRequest("volume name is too short, names should be at least two alphanumeric characters")
    if not NAME.match(name) or len(name) > 255:
        raise BadRequest(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only'
            ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )


def size(path: str) -> int:
    """Bytes below a folder; hard links count once, and what is mounted below does not count. Containers may change it
    meanwhile: then it is about right."""
    total = 0
    seen: set[tuple[int, int]] = set()
    try:
        top = KNOWN.open_folder(path, os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        for _, _, _, status in trees.walk(top, mounts=False):
            if stat.S_ISREG(status.st_mode) and (status.st_nlink == 1 or (status.st_dev, status.st_ino) not in seen):
                seen.add((status.st_dev, status.st_ino))
                total += status.st_size
    except OSError as error:
        log.info("the size of %s is not all counted: %s", path, error)
    finally:
        os.close(top)
    return total
