# SPDX-License-Identifier: Apache-2.0
"""The driver of volumes whose driver is a plugin: docker's VolumeDriver protocol (version 1), in which a program of the
host makes volumes and says where the host sees their files (core/plugins.py finds it, and asks).

    Create, Remove        of a name; what is there of that name already is used
    Mount, Unmount        with an id, the same for both: a plugin counts them, so each Mount has its Unmount

    VOLUMES/.plugins/NAME     {"Mountpoint", "Scope", "ID", "Boot"} of a volume: where it is, or was last; ID and Boot
                              while it is mounted, since a reboot ends that without an Unmount

What a volume is called, and where it is, is told without asking the plugin, which may be away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from typing import Any

from teu.engine.core import plugins
from teu.engine.core.errors import EngineError
from teu.engine.core.plugins import VOLUMES, PluginError, section, words

FOLDER = ".plugins"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Remote:
    """The driver of one plugin's volumes, whether there is such a plugin or not."""

    def __init__(self, root: str, name: str) -> None:
        self.name = name
        self._folder = f"{root}/{FOLDER}"

    def _call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises NotFound where there is no such plugin, PluginError where it refuses."""
        return plugins.get(self.name, VOLUMES).call(f"{VOLUMES}.{method}", body)

    def check(self, options: dict[str, str]) -> dict[str, str]:
        plugins.get(self.name, VOLUMES)
        return {str(key): str(value) for key, value in options.items()}

    def create(self, name: str, options: dict[str, str]) -> bool:
        found = self._find(name)
        if found is None:
            self._call("Create", {"Name": name, "Opts": options})
        try:
            place = words(found if found is not None else self._find(name) or {}, "Mountpoint")
            known = self._read(name)
            self._write(name, {**known, "Mountpoint": place or known.get("Mountpoint", ""), "Scope": self._scope()})
        except BaseException:
            if found is None:
                with contextlib.suppress(EngineError):
                    self._call("Remove", {"Name": name})
            raise
        return found is None

    def _find(self, name: str) -> dict[str, Any] | None:
        """What the plugin says of a volume; None where it has none of that name, or refuses to say."""
        try:
            return section(self._call("Get", {"Name": name}), "Volume")
        except PluginError:
            return None

    def _scope(self) -> str:
        try:
            found = words(section(self._call("Capabilities", {}), "Capabilities"), "Scope")
        except PluginError:  # the method is newer than the protocol
            found = ""
        return found if found in ("local", "global") else "local"

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
        if self._is_mounted(known):
            return
        identity = uuid.uuid4().hex
        place = words(self._call("Mount", {"Name": name, "ID": identity}), "Mountpoint")
        try:
            if not place.startswith("/"):
                raise PluginError(f"{VOLUMES}.Mount: the plugin {self.name} says no place of volume {name}: {place!r}")
            self._write(name, {**known, "Mountpoint": place, "ID": identity, "Boot": _boot()})
        except BaseException:
            with contextlib.suppress(EngineError):
                self._call("Unmount", {"Name": name, "ID": identity})
            raise

    def unmount(self, name: str) -> None:
        known = self._read(name)
        if not self._is_mounted(known):
            return
        try:
            self._call("Unmount", {"Name": name, "ID": known["ID"]})
        except EngineError as error:
            raise OSError(errno.EIO, str(error), name) from error
        self._write(name, {key: text for key, text in known.items() if key not in ("ID", "Boot")})

    def host_paths(self, name: str, options: dict[str, str]) -> list[str]:
        path = self.path(name)
        return [path] if path else []

    def release(self, name: str) -> None:
        self.unmount(name)

    def remove(self, name: str) -> None:
        try:
            try:
                self._call("Remove", {"Name": name})
            except PluginError:
                if self._find(name) is not None:
                    raise
        except EngineError as error:
            raise OSError(errno.EIO, str(error), name) from error
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._folder}/{name}")

    def _read(self, name: str) -> dict[str, str]:
        """What is known of a volume; nothing where the file is none of ours."""
        try:
            with open(f"{self._folder}/{name}", encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return {}
        return {key: text for key, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}

    def _write(self, name: str, known: dict[str, str]) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        temporary = f"{self._folder}/.{name}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(known, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, f"{self._folder}/{name}")


def _boot() -> str:
    with open(_BOOT_ID) as file:
        return file.read().strip()
