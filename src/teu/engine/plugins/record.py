# SPDX-License-Identifier: Apache-2.0
"""A managed plugin as it is kept, each in a folder of its own, with a file that is replaced as a whole:

    DATA_ROOT/plugins/ID/plugin.json        the record
                         rootfs             where its root file system is mounted while it is enabled
                         propagated-mount   its PropagatedMount, as the host sees it
    EXEC_ROOT/plugins/ID/                   its /run/docker/plugins: SOCKET
    EXEC_ROOT/plugin-streams/ID/            stdout, stderr; logging: its /run/docker/logging; docker: its /run/docker

A folder without a record is one that was being removed.
"""

from __future__ import annotations

import json
import os
import re
import threading
from typing import Any

from teu.engine.core.errors import EngineError
from teu.engine.core.kinds import FLAG, INT64, TEXT, WORD, WORD_LIST, Record, RecordOf, loads, member
from teu.engine.core.managed import Managed
from teu.engine.plugins.config import CONFIG, SETTINGS, Config, Settings, encoded, types

ID = re.compile(r"[0-9a-f]{64}\Z")
RECORD_FILE = "plugin.json"


class PluginRecord(Record):
    """`base`: of the names of its snapshots. `seconds`: how long its answers may take, 0 as long as any plugin's."""

    id: str = member("Id", WORD, "")
    name: str = member("Name", WORD, "")
    reference: str = member("PluginReference", TEXT, "")
    enabled: bool = member("Enabled", FLAG, False)
    seconds: int = member("Timeout", INT64, 0)
    config: Config = member("Config", CONFIG, Config())
    settings: Settings = member("Settings", SETTINGS, Settings())
    manifest: str = member("Manifest", WORD, "")
    layers: list[str] = member("Layers", WORD_LIST, [])
    base: str = member("Snapshot", WORD, "")


RECORD = RecordOf(PluginRecord)


class Plugin:
    """One plugin. `lock` is held while it is changed, started or stopped; `pid` is 0 while it does not run."""

    def __init__(self, record: PluginRecord, data_root: str, exec_root: str) -> None:
        self.record = record
        self.folder = f"{data_root}/plugins/{record.id}"
        self.run_folder = f"{exec_root}/plugins/{record.id}"
        self.streams = f"{exec_root}/plugin-streams/{record.id}"
        self.lock = threading.RLock()
        self.pid = 0
        self.starts = 0
        self.removed = False
        self.pause = 0.0  # before it is started again, after it has ended
        self.began = 0.0  # when that was last, by the monotonic clock

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def enabled(self) -> bool:
        return self.record.enabled

    @property
    def rootfs(self) -> str:
        """Where the host has its files while it is enabled."""
        return f"{self.folder}/rootfs"

    @property
    def mounts(self) -> str:
        """What it has mounted in its PropagatedMount."""
        return f"{self.folder}/propagated-mount"

    @property
    def logging(self) -> str:
        """The FIFOs of containers whose log goes there."""
        return f"{self.streams}/logging"

    @property
    def docker(self) -> str:
        """Where a collector of metrics finds the socket of the engine's figures."""
        return f"{self.streams}/docker"

    @property
    def socket(self) -> str:
        """Where it listens, or is to."""
        return f"{self.run_folder}/{self.record.config.interface.socket}"

    def implements(self, capability: str) -> bool:
        """By its configuration."""
        return any(one.prefix == "docker" and one.capability == capability for one in types(self.record.config))

    def has_only(self, capabilities: list[str]) -> bool:
        """As docker filters: none of what it implements is missing there."""
        return all(one.capability in capabilities for one in types(self.record.config))

    def managed(self) -> Managed:
        """As its users see it."""
        record = self.record
        kinds = frozenset(one.capability for one in types(record.config) if one.prefix == "docker")
        return Managed(
            record.name,
            self.socket,
            kinds,
            record.enabled,
            self.starts,
            float(record.seconds),
            self.rootfs,
            record.config.propagated,
            self.mounts,
            self.logging,
        )

    def save(self) -> None:
        """Durably. Raises OSError."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        temporary = f"{self.folder}/.{RECORD_FILE}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(RECORD.write(self.record), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, f"{self.folder}/{RECORD_FILE}")
        for folder in (self.folder, os.path.dirname(self.folder)):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def shown(self) -> dict[str, Any]:
        """The API's Plugin."""
        record = self.record
        return {
            "Config": encoded(record.config),
            "Enabled": record.enabled,
            "Id": record.id,
            "Name": record.name,
            "PluginReference": record.reference,
            "Settings": SETTINGS.write(record.settings),
        }


def read(folder: str) -> PluginRecord:
    """The record in a plugin's folder. Raises FileNotFoundError, EngineError where it is damaged."""
    with open(f"{folder}/{RECORD_FILE}", "rb") as file:
        data = file.read()
    try:
        record = RECORD.read(loads(data))
    except (ValueError, EngineError) as error:
        raise EngineError(f"{folder}/{RECORD_FILE} is damaged: {error}") from None
    if record.id != os.path.basename(folder) or not record.name or not record.base:
        raise EngineError(f"{folder}/{RECORD_FILE} is damaged: it is of no plugin")
    return record
