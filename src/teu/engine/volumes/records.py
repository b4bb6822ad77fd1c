# SPDX-License-Identifier: Apache-2.0
"""The record of a volume as engine.db has it: its shape."""

from __future__ import annotations

from typing import Any

from teu.engine.core.records import TEXT_MAP, Faults, flag, maybe, members, moment, read, text

_VOLUME = members(
    {
        "Created": moment,
        "Driver": text(),
        "Options": maybe(TEXT_MAP, {}),
        "Labels": maybe(TEXT_MAP, {}),
        "Container": text(),
        "Removing": flag,
    },
    ("Created", "Options", "Labels"),
)


def volume(data: Any) -> tuple[dict[str, Any], Faults]:
    record, faults = read(_VOLUME, data)
    for ours in ("Damage", "Opaque"):  # the store's own notes
        record.pop(ours, None)
    return record, faults
