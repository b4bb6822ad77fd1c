# SPDX-License-Identifier: Apache-2.0
"""Network configurations: files of one plugin (.conf, .json) or of a chain (.conflist), CNI section 1.

A configuration is a value that never changes; a file that changes makes another one. `Folder` notices that by the
folder's and the files' times, at the price of a few stat(2): an inotify watch would end with a folder that is removed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teu.cni.errors import CniError
from teu.oci import jsontext

Json = dict[str, Any]
CONFIGURATIONS = "/etc/cni/net.d"
SUFFIXES = (".conf", ".conflist", ".json")


@dataclass(frozen=True, slots=True)
class Configuration:
    """A network: its plugins in the order of ADD, and the `source` that is kept for DEL."""

    name: str
    version: str  # cniVersion, "" where the file has none
    plugins: tuple[Json, ...]
    source: bytes
    check: bool = True  # whether CHECK may be asked (disableCheck)
    collect: bool = True  # whether GC may be asked (disableGC)

    def speaks(self, *version: int) -> bool:
        """Whether its cniVersion is this one or later."""
        return version_of(self.version) >= version


def version_of(text: str) -> tuple[int, ...]:
    """The numbers of a cniVersion; 0.1.0 for none and for what is no version."""
    try:
        return tuple(int(part) for part in (text or "0.1.0").split("."))
    except ValueError:
        return (0, 1, 0)


def parse(source: bytes, *, whole: bool) -> Configuration:
    """A configuration list where it is `whole`, else that of one plugin, of which a list is made, as libcni does.
    Raises CniError."""

    def wrong(why: object) -> CniError:
        kind = "configuration list" if whole else "configuration"
        return CniError(f"error parsing {kind}: {why}: invalid cni config")

    try:
        found = jsontext.loads(source)
        plugins = found.get("plugins") if whole else [found]
    except (ValueError, AttributeError) as error:
        raise wrong(error) from None
    if whole and "name" not in found:
        raise wrong("no name")
    if whole and "plugins" not in found:
        raise wrong("no 'plugins' key")
    if not isinstance(plugins, list) or not plugins:
        raise wrong("no plugins in list")
    for number, plugin in enumerate(plugins):
        if not isinstance(plugin, dict) or not isinstance(plugin.get("type"), str) or not plugin["type"]:
            if not whole:
                raise wrong("missing 'type'")
            told = f"failed to parse plugin config {number}: error parsing configuration: missing 'type'"
            raise CniError(f"{told}: invalid cni config")
    for key in ("name", "cniVersion"):
        if not isinstance(found.get(key, ""), str):
            raise wrong(f"{key} is no text")
    if not whole:
        parts = {"name": found.get("name", ""), "cniVersion": found.get("cniVersion", ""), "plugins": [found]}
        source = json.dumps(parts, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    return Configuration(
        found.get("name") or "",
        found.get("cniVersion") or "",
        tuple(plugins),
        source,
        check=not found.get("disableCheck", False),
        collect=not found.get("disableGC", False),
    )


def read(path: str) -> Configuration:
    """The configuration of a file. Raises CniError, with the file's name."""
    whole = path.endswith(".conflist")
    try:
        return parse(Path(path).read_bytes(), whole=whole)
    except OSError as error:
        raise CniError(f"failed to load CNI config file {path}: {(error.strerror or '').lower()}") from None
    except CniError as error:
        kind = "config list" if whole else "config"
        raise CniError(f"failed to load CNI {kind} file {path}: {error.text}") from None


def files(folder: str) -> list[str]:
    """Paths of the configurations of a folder, in the order of their names; none without the folder."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    paths = (os.path.join(folder, name) for name in names if name.endswith(SUFFIXES))
    return [path for path in paths if os.path.isfile(path)]


def first(folder: str) -> Configuration:
    """The configuration that a host's containers get: the first by its file's name. Raises CniError where there is
    none, and where it is damaged."""
    for path in files(folder):
        return read(path)
    raise CniError(f"no network config found in {folder}: cni plugin not initialized")


class Folder:
    """The first configuration of a folder, read again when it has changed. May be asked from any thread."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._seen: tuple[Any, ...] | None = None
        self._found: Configuration | CniError = CniError("not read yet")

    def _stamp(self) -> tuple[Any, ...]:
        stamps = []
        for path in files(self._folder)[:1]:
            try:
                found = os.stat(path)
            except OSError:
                continue
            stamps.append((path, found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(stamps)

    def current(self) -> Configuration:
        """Raises CniError while there is none, and while it is damaged."""
        stamp = self._stamp()
        if stamp != self._seen:
            try:
                self._found = first(self._folder)
            except CniError as error:
                self._found = error
            self._seen = stamp
        if isinstance(self._found, CniError):
            raise CniError(self._found.text)
        return self._found
