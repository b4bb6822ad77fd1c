# SPDX-License-Identifier: Apache-2.0
"""Volumes as the engine sees them: docker's "local" driver.

    /var/lib/teu/engine/volumes/NAME/_data     what containers see
    engine.db  volumes   name, data            {"Created", "Options", "Labels", "Container", "Removing"}

A volume is anonymous when nobody named it: its name is 64 hexadecimal digits, and it carries docker's label.
It belongs to a container ("Container") until that is removed without its volumes; one whose container
never came to be is swept at the next start. A removal is written down first, so that one which was interrupted is
finished then, too. Called by create, start, exit and removal of containers, and by routes/volumes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import re
import shutil
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.engine.container import timestamp
from teu.engine.errors import BadRequest, Conflict, EngineError, NotFound

if TYPE_CHECKING:
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

DRIVER = "local"
ANONYMOUS_LABEL = "com.docker.volume.anonymous"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
OPTIONS = {"type", "o", "device", "size"}

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_RELATIME = 1, 2, 4, 8, 1024, 1 << 21
MS_BIND, MS_REC, MNT_DETACH = 4096, 16384, 2
_FLAGS = {
    "ro": MS_RDONLY, "rw": 0, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC,
    "noatime": MS_NOATIME, "relatime": MS_RELATIME, "bind": MS_BIND, "rbind": MS_BIND | MS_REC, "defaults": 0,
}  # fmt: skip


class Volume(NamedTuple):
    name: str
    mountpoint: str
    driver: str
    anonymous: bool
    created_now: bool


class Volumes:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.root = f"{engine.data_root}/volumes"
        self._lock = threading.RLock()
        self._mounted: dict[str, set[str]] = {}

    def start(self) -> None:
        Path(self.root).mkdir(parents=True, exist_ok=True, mode=0o701)
        known = {row["id"] for row in self.engine.database.query("SELECT id FROM containers")}
        for row in self.engine.database.query("SELECT name, data FROM volumes"):
            record = json.loads(row["data"])
            if record.get("Removing") or record.get("Container", "") not in {"", *known}:
                self._finish_removal(row["name"])

    def stop(self) -> None: ...

    def _record(self, name: str) -> dict[str, Any] | None:
        rows = self.engine.database.query("SELECT data FROM volumes WHERE name=?", (name,))
        if not rows:
            return None
        record: dict[str, Any] = json.loads(rows[0]["data"])
        return None if record.get("Removing") else record

    def _write(self, name: str, record: dict[str, Any]) -> None:
        with self.engine.database.transaction() as cursor:
            cursor.execute("INSERT OR REPLACE INTO volumes VALUES (?, ?)", (name, json.dumps(record)))

    def mountpoint(self, name: str) -> str:
        return f"{self.root}/{name}/_data"

    def _volume(self, name: str, record: dict[str, Any], created_now: bool = False) -> Volume:
        return Volume(name, self.mountpoint(name), DRIVER, ANONYMOUS_LABEL in record["Labels"], created_now)

    # -- for containers ----------------------------------------------------------------------

    def ensure(
        self,
        name: str | None,
        driver: str = DRIVER,
        options: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        container_id: str = "",
    ) -> Volume:
        """The volume of this name, made if it is not there; a new anonymous one for None."""
        labels = dict(labels or {})
        if not name:
            name = uuid.uuid4().hex + uuid.uuid4().hex
            labels[ANONYMOUS_LABEL] = ""
        if driver not in ("", DRIVER):
            raise NotFound(f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found')
        check_name(name)
        options = check_options(options or {})
        with self._lock:
            record = self._record(name)
            if record is not None:
                if options and options != record["Options"]:
                    raise Conflict(f"volume {name} already exists with other options")
                return self._volume(name, record)
            directory = f"{self.root}/{name}"
            fresh = not os.path.lexists(directory)
            try:
                os.makedirs(f"{directory}/_data", mode=0o755, exist_ok=True)
                os.chmod(directory, 0o701)
                _sync_directory(directory)
                _sync_directory(self.root)
                record = {"Created": timestamp(), "Options": options, "Labels": labels}
                if ANONYMOUS_LABEL in labels and container_id:
                    record["Container"] = container_id
                self._write(name, record)
            except BaseException:
                if fresh:
                    shutil.rmtree(directory, ignore_errors=True)
                raise
        self._event("create", name)
        return self._volume(name, record, True)

    def mount(self, name: str, container_id: str) -> str:
        """Make the volume usable for a container that starts; returns the path on the host."""
        with self._lock:
            record = self._record(name)
            if record is None:
                raise NotFound(f"get {name}: no such volume")
            path = self.mountpoint(name)
            users = self._mounted.setdefault(name, set())
            if record["Options"] and not users and not os.path.ismount(path):
                _mount(record["Options"], path, name)
            users.add(container_id)
        self._event("mount", name, container=container_id, destination="")
        return path

    def unmount(self, name: str, container_id: str) -> None:
        """A container has exited; doing it twice is fine."""
        with self._lock:
            users = self._mounted.get(name, set())
            known = container_id in users
            users.discard(container_id)
            record = self._record(name)
            path = self.mountpoint(name)
            if not users:
                self._mounted.pop(name, None)
                others = [
                    c for c in self.engine.containers.using_volume(name) if c.running and c.id != container_id
                ]
                if record and record["Options"] and not others and os.path.ismount(path):
                    _unmount(path)
        if known:
            self._event("unmount", name, container=container_id)

    def release(self, container_id: str, remove_anonymous: bool) -> None:
        """A container is being removed; with `remove_anonymous` the anonymous volumes that it alone uses go too."""
        for container in self.engine.containers.all():
            if container.id == container_id:
                mounts = container.mounts
                break
        else:
            # Its creation failed: only what was made for it is known.
            mounts = [
                {"Type": "volume", "Name": row["name"]}
                for row in self.engine.database.query("SELECT name, data FROM volumes")
                if json.loads(row["data"]).get("Container") == container_id
            ]
        self.release_mounts(container_id, mounts, remove_anonymous)

    def release_mounts(self, container_id: str, mounts: list[dict[str, Any]], remove_anonymous: bool) -> None:
        for mount in mounts:
            name = mount.get("Name")
            if mount.get("Type") != "volume" or not name:
                continue
            self.unmount(name, container_id)
            record = self._record(name)
            if record is None or ANONYMOUS_LABEL not in record["Labels"]:
                continue
            if not remove_anonymous:
                if record.pop("Container", ""):
                    self._write(name, record)
                continue
            if any(user.id != container_id for user in self.engine.containers.using_volume(name)):
                continue
            try:
                self._remove(name, record)
            except (OSError, EngineError) as error:
                log.warning("anonymous volume %s cannot be removed: %s", name, error)

    # -- for the API -------------------------------------------------------------------------

    def names(self) -> list[str]:
        rows = self.engine.database.query("SELECT name, data FROM volumes ORDER BY name")
        return [row["name"] for row in rows if not json.loads(row["data"]).get("Removing")]

    def describe(self, name: str) -> dict[str, Any]:
        record = self._record(name)
        if record is None:
            raise NotFound(f"get {name}: no such volume")
        return {
            "CreatedAt": record["Created"][:19] + "Z",
            "Driver": DRIVER,
            "Labels": record["Labels"] or None,
            "Mountpoint": self.mountpoint(name),
            "Name": name,
            "Options": record["Options"] or None,
            "Scope": "local",
        }

    def remove(self, name: str, force: bool = False) -> None:
        """DELETE /volumes/{name}. Raises NotFound (unless forced), Conflict."""
        with self._lock:
            record = self._record(name)
            if record is None:
                if force:
                    return
                raise NotFound(f"get {name}: no such volume")
            users = self.engine.containers.using_volume(name)
            if users:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(user.id for user in users)}]")
            self._remove(name, record)

    def _remove(self, name: str, record: dict[str, Any]) -> None:
        self._write(name, {**record, "Removing": True})
        self._finish_removal(name)
        self._event("destroy", name)

    def _finish_removal(self, name: str) -> None:
        path = self.mountpoint(name)
        if os.path.ismount(path):
            _unmount(path)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(f"{self.root}/{name}")
        with self.engine.database.transaction() as cursor:
            cursor.execute("DELETE FROM volumes WHERE name=?", (name,))

    def labels(self, name: str) -> dict[str, str]:
        record = self._record(name)
        return dict(record["Labels"]) if record else {}

    def usage(self) -> list[dict[str, Any]]:
        """For /system/df: with sizes and reference counts."""
        result = []
        for name in self.names():
            with contextlib.suppress(NotFound):
                row = self.describe(name)
                users = len(self.engine.containers.using_volume(name))
                row["UsageData"] = {"Size": size(row["Mountpoint"]), "RefCount": users}
                result.append(row)
        return result

    def _event(self, action: str, name: str, **more: str) -> None:
        self.engine.events.publish("volume", action, name, {"driver": DRIVER, **more})


def check_name(name: str) -> None:
    if len(name) == 1:
        raise BadRequest("volume name is too short, names should be at least two alphanumeric characters")
    if not NAME.match(name) or len(name) > 255:
        raise BadRequest(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only'
            ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )


def check_options(options: dict[str, str]) -> dict[str, str]:
    for key, value in options.items():
        if key not in OPTIONS:
            raise BadRequest(f"create: invalid option: {json.dumps(key)}")
        if not isinstance(value, str):
            raise BadRequest(f"create: option {key} is not a string")
    if options.get("size"):
        raise BadRequest("create: quota size requested but no quota support")
    if options and not options.get("device") and not options.get("type"):
        raise BadRequest("create: missing device in volume options")
    return {str(key): str(value) for key, value in options.items()}


def size(path: str) -> int:
    """Bytes below a folder; hard links count once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    stack = [path]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        if entry.is_dir(follow_symlinks=False):
                            stack.append(entry.path)
                        elif entry.is_file(follow_symlinks=False):
                            status = entry.stat(follow_symlinks=False)
                            if (status.st_dev, status.st_ino) not in seen:
                                seen.add((status.st_dev, status.st_ino))
                                total += status.st_size
        except OSError:
            continue
    return total


def _mount(options: dict[str, str], path: str, name: str) -> None:
    flags, data = 0, []
    for word in filter(None, (options.get("o") or "").split(",")):
        if word in _FLAGS:
            flags |= _FLAGS[word]
        else:
            data.append(word)
    device, kind = options.get("device") or "", options.get("type") or ""
    if kind == "none":
        kind = ""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (device.encode(), path.encode(), kind.encode())
    result = libc.mount(*arguments, ctypes.c_ulong(flags), ",".join(data).encode() or None)
    if result == 0 and flags & MS_BIND and flags & MS_RDONLY:
        result = libc.mount(None, path.encode(), None, ctypes.c_ulong(flags | 32), None)
    if result:
        reason = os.strerror(ctypes.get_errno())
        raise EngineError(
            f"error while mounting volume '{path}': failed to mount local volume: mount {device}:{path}, "
            f"flags: {flags:#x}, data: {','.join(data)}: {reason.lower()}"
        )


def _unmount(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(path.encode(), MNT_DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
