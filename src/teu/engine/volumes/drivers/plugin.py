# SPDX-License-Identifier: Apache-2.0
"""The driver of volumes whose driver is a plugin: docker's VolumeDriver protocol (version 1), in which a program of the
host makes volumes and says where the host sees their files (core/plugins.py finds it, and asks).

    Create, Remove        of a name; what is there of that name already is used
    Mount, Unmount        with an id, the same for both: a plugin counts them, so each Mount has its Unmount

    VOLUMES/.plugins/NAME     {"Mountpoint", "Scope", "ID", "Boot", "Doubt"} of a volume: where it is, or was last; ID
                              and Boot while it is mounted, since a reboot ends that without an Unmount; Doubt from
                              before the question of a Mount or Unmount until its answer

A mount that is in doubt, since the engine was killed, or the plugin went, is asked for again with the same id: at the
place of a volume that is not mounted would be a folder of the host's.

What a volume is called, and where it is, is told without asking the plugin, which may be away. Who looks for volumes
that plugins alone know of, or for what one says of a volume, waits for LOOK_SECONDS at most, and not again soon.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
import uuid
from typing import Any, NamedTuple

from teu.engine.core import plugins
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.managed import KNOWN
from teu.engine.core.plugins import VOLUMES, PluginError, member, section, words

FOLDER = ".plugins"
SCOPES = ("local", "global")
_of_the_folder = threading.Lock()  # of all plugins
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


LOOK_SECONDS = 5.0
SILENT_SECONDS = 60.0  # so long one that did not answer is left alone by those who only look


class Seen(NamedTuple):
    """What a plugin says of a volume. `status`: whatever it likes."""

    mountpoint: str
    status: dict[str, Any]


class Remote:
    """The driver of one plugin's volumes, whether there is such a plugin or not."""

    def __init__(self, root: str, name: str) -> None:
        self.name = name
        self._folder = f"{root}/{FOLDER}"
        self._silent_until = 0.0
        self._start = 0  # of a managed plugin, when it was asked last

    def _call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises NotFound where there is no such plugin, PluginError where it refuses."""
        answer = plugins.get(self.name, VOLUMES).call(f"{VOLUMES}.{method}", body)
        self._silent_until = 0.0
        return answer

    def _look(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask one that need not be there. Raises EngineError."""
        managed = KNOWN.find(self.name)
        if managed is not None and managed.start != self._start:
            self._start, self._silent_until = managed.start, 0.0  # it is another process
        if time.monotonic() < self._silent_until:
            raise PluginError(f"the plugin {self.name} has not answered before", silent=True)
        try:
            plugin = plugins.get(self.name, VOLUMES, patient=False, seconds=LOOK_SECONDS)
            return plugin.call(f"{VOLUMES}.{method}", body, patient=False, seconds=LOOK_SECONDS)
        except PluginError as error:
            if error.silent:
                self._silent_until = time.monotonic() + SILENT_SECONDS
            raise

    def _place(self, answer: dict[str, Any]) -> str:
        """Where the host sees a volume: a managed plugin tells where it sees it itself."""
        path, managed = words(answer, "Mountpoint"), KNOWN.find(self.name)
        return managed.on_host(path) if managed is not None else path

    def seen(self, name: str) -> Seen | None:
        """What the plugin says now of a volume; None where it has none, or says nothing."""
        try:
            found = section(self._look("Get", {"Name": name}), "Volume")
            return Seen(self._place(found), section(found, "Status"))
        except EngineError:
            return None

    def names(self) -> dict[str, str]:
        """The volumes that it has, with their places. Raises EngineError where it does not say; nothing where it is no
        plugin for volumes."""
        try:
            rows = member(self._look("List", {}), "Volumes")
        except PluginError:
            raise
        except EngineError:
            return {}
        found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        return {name: self._place(row) for row in found if (name := words(row, "Name"))}

    def check(self, options: dict[str, str]) -> dict[str, str]:
        plugins.get(self.name, VOLUMES)
        return {str(key): str(value) for key, value in options.items()}

    def create(self, name: str, options: dict[str, str]) -> bool:
        found = self._find(name)
        if found is None:
            self._call("Create", {"Name": name, "Opts": options})
        try:
            place = self._place(found if found is not None else self._find(name) or {})
            known = self._read(name)
            self._write(name, {**known, "Mountpoint": place or known.get("Mountpoint", ""), "Scope": self._scope()})
        except BaseException:
            if found is None:
                with contextlib.suppress(EngineError):
                    self._call("Remove", {"Name": name})
            raise
        return found is None

    def _find(self, name: str) -> dict[str, Any] | None:
        """What the plugin says of a volume; None where it has none of that name, or refuses to say. Raises PluginError
        where it does not answer."""
        try:
            return section(self._call("Get", {"Name": name}), "Volume")
        except PluginError as error:
            if error.silent:
                raise
            return None

    def _scope(self) -> str:
        try:
            found = words(section(self._call("Capabilities", {}), "Capabilities"), "Scope")
        except PluginError as error:
            if error.silent:
                raise
            found = ""  # the method is newer than the protocol
        return found if found in SCOPES else "local"

    def scope_of_all(self) -> str:
        """Of any volume of the plugin's; local where it does not say."""
        try:
            found = words(section(self._look("Capabilities", {}), "Capabilities"), "Scope")
        except EngineError:
            return "local"
        return found if found in SCOPES else "local"

    def scope(self, name: str) -> str:
        return str(self._read(name).get("Scope", "local"))

    def path(self, name: str) -> str:
        return str(self._read(name).get("Mountpoint", ""))

    def has_to_be_mounted(self, options: dict[str, str]) -> bool:
        return True

    def _is_mounted(self, known: dict[str, str]) -> bool:
        return bool(known.get("ID")) and known.get("Boot") == _boot()

    def mount(self, name: str, options: dict[str, str]) -> None:
        known = self._read(name)
        mounted = self._is_mounted(known)
        if mounted and "Doubt" not in known:
            return
        identity = known["ID"] if mounted else uuid.uuid4().hex
        before = _without(known, "ID", "Boot", "Doubt")
        held = {**before, "ID": identity, "Boot": _boot()}
        self._write(name, {**held, "Doubt": "Mount"})
        try:
            place = self._place(self._call("Mount", {"Name": name, "ID": identity}))
        except EngineError as error:
            if not (isinstance(error, PluginError) and error.silent):
                self._write(name, before)
            raise
        try:
            if not place.startswith("/"):
                raise PluginError(f"{VOLUMES}.Mount: the plugin {self.name} says no place of volume {name}: {place!r}")
            self._write(name, {**held, "Mountpoint": place})
        except BaseException:
            with contextlib.suppress(OSError):
                self.unmount(name)
            raise

    def unmount(self, name: str) -> None:
        known = self._read(name)
        if not self._is_mounted(known):
            return
        doubt = known.get("Doubt")
        self._write(name, {**known, "Doubt": doubt or "Unmount"})
        try:
            self._call("Unmount", {"Name": name, "ID": known["ID"]})
        except EngineError as error:
            # Where it never came to the mount, a plugin that was asked for one refuses to know it.
            if doubt != "Mount" or not isinstance(error, PluginError) or error.silent:
                raise OSError(errno.EIO, str(error), name) from error
        self._write(name, _without(known, "ID", "Boot", "Doubt"))

    def host_paths(self, name: str, options: dict[str, str]) -> list[str]:
        path = self.path(name)
        return [path] if path else []

    def release(self, name: str) -> None:
        self.unmount(name)

    def rename(self, name: str, new: str) -> None:
        raise BadRequest(f"rename {name}: the plugin {self.name} knows its volumes by their names")

    def remove(self, name: str) -> None:
        try:
            try:
                self._call("Remove", {"Name": name})
            except PluginError:
                if self._find(name) is not None:
                    raise
        except EngineError as error:
            raise OSError(errno.EIO, str(error), name) from error
        with _of_the_folder:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._folder}/{name}")
            with contextlib.suppress(OSError):
                os.rmdir(self._folder)  # with the last one

    def _read(self, name: str) -> dict[str, str]:
        """What is known of a volume; nothing where the file is none of ours."""
        try:
            with open(f"{self._folder}/{name}", encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return {}
        return {key: text for key, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}

    def _write(self, name: str, known: dict[str, str]) -> None:
        with _of_the_folder:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            self._replace(name, known)

    def _replace(self, name: str, known: dict[str, str]) -> None:
        temporary = f"{self._folder}/.{name}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(known, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, f"{self._folder}/{name}")
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _without(known: dict[str, str], *keys: str) -> dict[str, str]:
    return {key: text for key, text in known.items() if key not in keys}


def _boot() -> str:
    with open(_BOOT_ID) as file:
        return file.read().strip()
