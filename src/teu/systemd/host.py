# SPDX-License-Identifier: Apache-2.0
"""What the daemons and shims ask of the host's systemd about its coming up and going down.

    STATE/starts-at-boot    there while the next boot is to start the daemon, which then starts containers: a unit of
                            that daemon has this file as its condition, so that other hosts start nothing
    teu-boot.target         what such a start waits for: the network, and whatever an administrator adds
    *.mount                 the mounts that a container uses; it starts after them and stops before them

Everything here is harmless where PID 1 is not systemd: nothing is waited for, and no host is going down.
"""

from __future__ import annotations

import os
from _thread import allocate_lock  # threading is 284 KiB more, of which each fork of the shims copies the tables

from teu.systemd.bus import Bus, BusError
from teu.systemd.scope import MANAGER, NO_SUCH_UNIT, patiently, start_unit, systemd_is_running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

BOOT_TARGET = "teu-boot.target"
MARKER = "starts-at-boot"

_UNIT = "org.freedesktop.systemd1.Unit"
_SERVICE = "org.freedesktop.systemd1.Service"
_SAID_SECONDS = 2.0
_SHUTDOWN = "/org/freedesktop/systemd1/unit/shutdown_2etarget"
_PLAIN = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:_.")
_UNIT_NAME_MAX = 255


class Marker:
    """The file that says whether a boot starts the daemon. Durable: it is there before put(True) returns."""

    def __init__(self, folder: str) -> None:
        # The unit's condition names the unit's own folder, wherever the daemon was told to have its data.
        self.path = os.path.join(os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or folder, MARKER)
        self._lock = allocate_lock()
        self._there = os.path.exists(self.path)

    @property
    def there(self) -> bool:
        """Whether the file is there, as this process has left it."""
        return self._there

    def put(self, wanted: bool) -> None:
        """Make the file or remove it; on the disk when this returns. Raises OSError."""
        with self._lock:
            if wanted == self._there:
                return
            if wanted:
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            else:
                try:
                    os.unlink(self.path)
                except FileNotFoundError:
                    pass
            folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._there = wanted


def _property(bus: Bus, path: str, name: str, kind: str = _UNIT) -> Any:
    return bus.call(MANAGER[0], path, "org.freedesktop.DBus.Properties", "Get", "ss", (kind, name))[0][1]


def is_going_down() -> bool:
    """Whether the host's shutdown (or reboot) has begun: what ends now does not end by a user's wish."""
    if not systemd_is_running():
        return False
    try:
        with Bus() as bus:
            return bool(_property(bus, _SHUTDOWN, "Job")[0]) or _property(bus, _SHUTDOWN, "ActiveState") == "active"
    except OSError:
        return False


def said(units: Iterable[str]) -> dict[str, str]:
    """What services say of themselves (STATUS= of sd_notify(3)), by unit; those that say nothing are left out. Never
    fails: who asks shows it beside something else, on a terminal: a container may have said it, so that what does not
    print is ?."""
    found: dict[str, str] = {}
    try:
        with Bus(timeout=_SAID_SECONDS) as bus:
            for unit in units:
                try:
                    path = bus.call(*MANAGER, "GetUnit", "s", (unit,))[0]
                    text = _property(bus, path, "StatusText", _SERVICE)
                except BusError:
                    continue  # it is not there, or none that can say something
                if text:
                    found[unit] = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    except OSError:
        pass
    return found


def reach(*units: str) -> None:
    """Have units started, and wait until they are, however long. Nothing happens where there is no such unit.

    OSError, with systemd's reason, if one cannot be."""
    for unit in units:
        _reach(unit)


def _reach(unit: str) -> None:
    def ask() -> None:
        with Bus(timeout=None) as bus:
            try:
                start_unit(bus, unit)
            except BusError as error:
                if error.name != NO_SUCH_UNIT:
                    raise

    if systemd_is_running():
        patiently(ask)  # one that executes itself anew has forgotten who waits


def bound(spec: dict[str, Any]) -> list[str]:
    """What of the host's files is bound into the container of a runtime specification."""
    mounts = spec.get("mounts")
    return [
        mount["source"]
        for mount in (mounts if isinstance(mounts, list) else [])
        if isinstance(mount, dict)
        and str(mount.get("source") or "").startswith("/")
        and (mount.get("type") == "bind" or {"bind", "rbind"} & {str(word) for word in mount.get("options") or []})
    ]


def mount_unit(place: str) -> str:
    """The name of the unit of a mount point: systemd-escape --path --suffix=mount."""
    name = "-".join(part for part in (_escape(part) for part in place.split("/")) if part) or "-"
    return ("\\x2e" + name[1:] if name[0] == "." else name) + ".mount"


def _escape(part: str) -> str:
    return "".join(
        character if character in _PLAIN else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
        for character in part
    )


def places_of(paths: Iterable[str]) -> list[str]:
    """Where something may be mounted that one of these paths needs: they and what they are in, but not the root."""
    found: set[str] = set()
    for path in paths:
        place = os.path.realpath(path)
        while place != "/" and place not in found:
            found.add(place)
            place = os.path.dirname(place)
    return sorted(found)


def mounted(paths: Iterable[str]) -> list[str]:
    """The units of the mounts that are there now and that these paths are on."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            table = file.read()
    except OSError:
        return []
    return [
        name
        for place in places_of(paths)
        if b" " + _in_table(place) + b" " in table and len(name := mount_unit(place)) <= _UNIT_NAME_MAX
    ]


def _in_table(place: str) -> bytes:
    """A path as mountinfo writes it."""
    written = os.fsencode(place).replace(b"\\", b"\\134")
    for character in b" \t\n":
        written = written.replace(bytes([character]), b"\\%03o" % character)
    return written


def unmounted(paths: Iterable[str]) -> list[str]:
    """The mount units that systemd has for these paths (from fstab, for instance) and that are not active."""
    if not systemd_is_running():
        return []
    places = places_of(paths)

    def ask() -> list[str]:
        found = []
        with Bus() as bus:
            for place in places:
                name = mount_unit(place)
                if len(name) > _UNIT_NAME_MAX:
                    continue
                unit = bus.call(*MANAGER, "LoadUnit", "s", (name,))[0]
                if _property(bus, unit, "LoadState") == "loaded" and _property(bus, unit, "ActiveState") != "active":
                    found.append(name)
        return found

    return patiently(ask)
