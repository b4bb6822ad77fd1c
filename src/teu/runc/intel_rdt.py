# SPDX-License-Identifier: Apache-2.0
"""linux.intelRdt: cache and memory bandwidth classes by resctrl. Called by teu.runc.launch, update and delete."""

from __future__ import annotations

import os

from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ROOT = "/sys/fs/resctrl"


def apply(config: dict[str, Any], id: str, pid: int) -> dict[str, Any]:
    """Put pid into its class; what remove() needs, for the record. RuncError leaves nothing behind."""
    if not os.path.exists(_ROOT + "/schemata"):
        raise RuncError("linux.intelRdt: resctrl is not mounted at /sys/fs/resctrl, or the processor lacks it")
    given = config.get("closID") or ""
    folder = _ROOT if given == "/" else f"{_ROOT}/{given or id}"
    fixed = [config[key] for key in ("l3CacheSchema", "memBwSchema") if config.get(key)]
    lines = [*fixed, *(config.get("schemata") or ())]  # the order is the specification's
    record: dict[str, Any] = {"folder": "", "monitoring": ""}
    try:
        if os.path.isdir(folder):
            if given:
                _compare(folder, fixed)
        elif given and not lines:
            raise RuncError(f"linux.intelRdt.closID: there is no class {given!r}, and no schema to make it with")
        else:
            _make(folder)
            if not given:
                record["folder"] = folder
        if lines:
            _write(folder + "/schemata", "\n".join(lines) + "\n")
        _write(folder + "/tasks", str(pid))
        if config.get("enableMonitoring"):
            group = f"{folder}/mon_groups/{id}"
            _make(group)
            record["monitoring"] = group
            _write(group + "/tasks", str(pid))
    except RuncError:
        remove(record)
        raise
    return record


def require() -> None:
    """RuncError where this host has no resctrl."""
    if not os.path.exists(_ROOT + "/schemata"):
        raise RuncError("Intel RDT: resctrl is not mounted at /sys/fs/resctrl, or the processor lacks it")


def update(
    config: dict[str, Any], schemata: dict[str, str], id: str, pid: int, record: dict[str, Any]
) -> dict[str, Any]:
    """`update --l3-cache-schema, --mem-bw-schema`: new schemata for the container's class. One that has none gets a
    class of its own, as with runc. What remove() needs from now on."""
    given = config.get("closID") or ""
    folder = _ROOT if given == "/" else f"{_ROOT}/{given or id}"
    if not os.path.isdir(folder):
        return apply({**config, **{key: value for key, value in schemata.items() if value}}, id, pid)
    _write(folder + "/schemata", "\n".join(filter(None, schemata.values())) + "\n")
    return record


def _compare(folder: str, schemas: list[str]) -> None:
    """A class that is there already has to have these schemas: it is others' too."""
    with open(folder + "/schemata", encoding="ascii") as file:
        there = _parse(file.read())
    for place, value in _parse("\n".join(schemas)).items():
        if there.get(place) != value:
            raise RuncError(f"linux.intelRdt.closID: the class {folder} has another schema for {':'.join(place)}")


def _parse(text: str) -> dict[tuple[str, str], str]:
    """(resource, domain) -> value, of lines as `L3:0=7f0;1=01f`."""
    found = {}
    for line in text.split("\n"):
        resource, _, domains = line.strip().partition(":")
        for entry in domains.split(";"):
            domain, equals, value = entry.partition("=")
            if equals:
                found[resource, domain.strip()] = value.strip().lstrip("0") or "0"
    return found


def _make(folder: str) -> None:
    try:
        os.mkdir(folder, 0o755)
    except OSError as error:
        raise RuncError(f"linux.intelRdt: mkdir {folder}: {error.strerror}") from None


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise RuncError(f"linux.intelRdt: write {path}: {error.strerror}") from None


def remove(record: dict[str, Any]) -> None:
    """Remove what apply made: a class that the specification named stays, it is others' too."""
    for key in ("monitoring", "folder"):
        if record.get(key):
            try:
                os.rmdir(record[key])
            except OSError:
                pass
