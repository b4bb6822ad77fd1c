# SPDX-License-Identifier: Apache-2.0
"""linux.intelRdt: cache and memory bandwidth classes by resctrl. Called by teu.runc.launch and delete."""

from __future__ import annotations

import os

from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ROOT = "/sys/fs/resctrl"


def apply(config: dict[str, Any], id: str, pid: int) -> dict[str, Any]:
    """Put pid into its class; what remove() needs, for the record."""
    if not os.path.exists(_ROOT + "/schemata"):
        raise RuncError("linux.intelRdt: resctrl is not mounted at /sys/fs/resctrl, or the processor lacks it")
    given = config.get("closID") or ""
    name = given or id
    if "/" in name or name in (".", ".."):
        raise RuncError(f"linux.intelRdt.closID: {name!r} is not a name")
    folder = f"{_ROOT}/{name}"
    lines = list(config.get("schemata") or [])
    lines += [config[key] for key in ("l3CacheSchema", "memBwSchema") if config.get(key)]
    made = not os.path.isdir(folder)
    if given and not made and not lines:
        pass  # an existing class, as it is
    os.makedirs(folder, 0o755, exist_ok=True)
    if lines:
        _write(folder + "/schemata", "\n".join(lines) + "\n")
    _write(folder + "/tasks", str(pid))
    record: dict[str, Any] = {"folder": folder if not given else ""}
    if config.get("enableMonitoring"):
        record["monitoring"] = f"{folder}/mon_groups/{id}"
        os.makedirs(record["monitoring"], 0o755, exist_ok=True)
        _write(record["monitoring"] + "/tasks", str(pid))
    return record


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
