# SPDX-License-Identifier: Apache-2.0
"""The record of a volume: how it is read from engine.db and written there.

    {"Created", "Driver", "Options", "Labels", "Container", "Blank", "Removing", "Renaming"}

Driver is left out where it is the default one, Container, Blank, Removing and Renaming where they say nothing. Members
that this teud does not know are kept for the one that wrote them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.engine.core.records import TEXT_MAP, TEXTS, Faults, Members, Reader, flag, maybe, moment, read, text

if TYPE_CHECKING:
    from teu.oci.jsontext import Json


class VolumeRecord:
    """`container`: the one that an anonymous volume belongs to. `blank`: which of Options and Labels were given, and
    had nothing in them. `removing`: its removal has begun, and is finished at
    the next start. `renaming`: so is the change of its name to this one.

    Not saved: `damage` says what is wrong with the record, and `opaque` whether its files cannot be got at."""

    def __init__(
        self, created: str, driver: str, options: dict[str, str], labels: dict[str, str], container: str = ""
    ) -> None:
        """`driver`: "" for the default one."""
        self.created = created
        self.driver = driver
        self.options = options
        self.labels = labels
        self.container = container
        self.blank: list[str] = []
        self.removing = False
        self.renaming = ""
        self.other: dict[str, Json] = {}
        self.damage = ""
        self.opaque = False

    def encode(self) -> dict[str, Json]:
        """As it is saved."""
        result: dict[str, Json] = {"Created": self.created, "Options": self.options, "Labels": self.labels}
        if self.driver:
            result["Driver"] = self.driver
        if self.container:
            result["Container"] = self.container
        if self.blank:
            result["Blank"] = self.blank
        if self.removing:
            result["Removing"] = True
        if self.renaming:
            result["Renaming"] = self.renaming
        return {**result, **self.other}


_TEXT = text()
_TEXT_MAP: Reader[dict[str, str]] = maybe(TEXT_MAP, {})


def volume(data: str | bytes | None) -> tuple[VolumeRecord, Faults]:
    """The record of a row of `volumes`, and its faults."""
    return read(_volume, data)


def _volume(value: object, where: str, faults: Faults) -> VolumeRecord:
    given = Members(value, where, faults)
    record = VolumeRecord(
        given.needed("Created", moment),
        given.take("Driver", _TEXT, ""),
        given.needed("Options", _TEXT_MAP),
        given.needed("Labels", _TEXT_MAP),
        given.take("Container", _TEXT, ""),
    )
    record.blank = given.take("Blank", TEXTS, [])
    record.removing = given.take("Removing", flag, False)
    record.renaming = given.take("Renaming", _TEXT, "")
    record.other = given.rest()
    for ours in ("Damage", "Opaque"):  # notes that were once kept beside the members
        record.other.pop(ours, None)
    return record
