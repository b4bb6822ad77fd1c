# SPDX-License-Identifier: Apache-2.0
"""Records as they are read from engine.db, where anything may have happened to them: how they are read, for the rooms
that say what they are (containers/records.py, containers/network_settings.py, networks/records.py, volumes/records.py).

A record is read member by member against its shape, which is what our own writers write. A member that has another
shape is replaced by an empty one and told of, so that whoever gets the record need not ask: what is left of it can be
listed, inspected and removed, and a reader never fails. A member that is missing is one that an older teud did not
write, and gets its default without a word, unless nothing can be without it.

    record, faults = read(SHAPE, data)      faults: "state.Pid is a string, not a whole number", ...

A reader of a whole record takes its members one by one, and so every member has its type:

    def thing(value: object, where: str, faults: Faults) -> Thing:
        given = Members(value, where, faults)
        return Thing(given.needed("Created", moment), given.take("Labels", TEXT_MAP, {}), given.rest())
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeVar, overload

from teu.engine.core.times import NEVER, nanoseconds

if TYPE_CHECKING:
    from teu.oci.jsontext import Json

T = TypeVar("T")
Faults = list[str]
Reader = Callable[[object, str, Faults], T]
"""Takes a value, where it stands, and the list of faults; gives the value, or what stands in for it."""
Kind = Callable[[object, str, Faults], Any]
"""A reader of whatever type."""

IDENTITY = re.compile(r"[0-9a-f]{64}\Z")
_ENDS = 1 << 63


def said(value: object) -> str:
    """What kind of value it is, in words."""
    if value is None:
        return "null"
    if isinstance(value, str) and not whole(value):
        return "a string with half of a character (a lone surrogate)"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def whole(value: str) -> bool:
    """Whether it can be written anywhere: JSON's escapes can say halves of characters, UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# -- kinds -----------------------------------------------------------------------------------------------


def text(default: str = "", pattern: re.Pattern[str] | None = None) -> Reader[str]:
    def kind(value: object, where: str, faults: Faults) -> str:
        if isinstance(value, str) and whole(value) and (pattern is None or pattern.match(value)):
            return value
        faults.append(
            f"{where} is {said(value)}, not a text"
            if pattern is None or not isinstance(value, str)
            else f"{where} is not of the form that is written there"
        )
        return default

    return kind


def number(default: int = 0, least: int = -_ENDS, most: int = _ENDS - 1) -> Reader[int]:
    def kind(value: object, where: str, faults: Faults) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        faults.append(
            f"{where} is {said(value)}, not a whole number from {least} to {most}"
            if least != -_ENDS
            else f"{where} is {said(value)}, not a whole number"
        )
        return default

    return kind


def flag(value: object, where: str, faults: Faults) -> bool:
    if isinstance(value, bool):
        return value
    faults.append(f"{where} is {said(value)}, not true or false")
    return False


def moment(value: object, where: str, faults: Faults) -> str:
    try:
        if isinstance(value, str):
            nanoseconds(value)
            return value or NEVER
    except (ValueError, OverflowError):
        pass
    faults.append(f"{where} is {said(value)}, not a moment")
    return NEVER


def address(value: object, where: str, faults: Faults) -> str:
    """An IPv4 address, or an empty text."""
    try:
        return str(IPv4Address(value)) if isinstance(value, str) and value else text()(value, where, faults)
    except ValueError:
        faults.append(f"{where} is no IPv4 address")
        return ""


def address6(value: object, where: str, faults: Faults) -> str:
    """An IPv6 address, or an empty text."""
    try:
        return str(IPv6Address(value)) if isinstance(value, str) and value else text()(value, where, faults)
    except ValueError:
        faults.append(f"{where} is no IPv6 address")
        return ""


def anything(value: object, where: str, faults: Faults) -> Any:
    """Any JSON that can be written again: what it means is looked at by who uses it."""
    if isinstance(value, dict):
        good = {key: inner for key, inner in value.items() if _key(key, where, faults)}
        return {key: anything(inner, f"{where}.{key}", faults) for key, inner in good.items()}
    if isinstance(value, list):
        return [anything(inner, where, faults) for inner in value]
    if isinstance(value, float) and isfinite(value) or isinstance(value, str) and whole(value):
        return value
    if value is None or isinstance(value, int):
        return value
    faults.append(f"{where} is {said(value)}, which cannot be written")
    return None


def _key(key: str, where: str, faults: Faults) -> bool:
    if not whole(key):
        faults.append(f"{where} has a name with half of a character (a lone surrogate)")
        return False
    return True


@overload
def maybe(inner: Reader[T]) -> Reader[T | None]: ...
@overload
def maybe(inner: Reader[T], default: T) -> Reader[T]: ...
def maybe(inner: Reader[T], default: T | None = None) -> Reader[T | None]:
    """Null is good, too."""

    def kind(value: object, where: str, faults: Faults) -> T | None:
        return default if value is None else inner(value, where, faults)

    return kind


def items(inner: Reader[T], length: int | None = None) -> Reader[list[T]]:
    """A list. What is wrong in it is left out."""

    def kind(value: object, where: str, faults: Faults) -> list[T]:
        if not isinstance(value, list) or length is not None and len(value) != length:
            faults.append(f"{where} is {said(value)}, not a list{f' of {length}' if length else ''}")
            return []
        result = []
        for position, entry in enumerate(value):
            before = len(faults)
            read = inner(entry, f"{where}[{position}]", faults)
            if len(faults) == before:
                result.append(read)
        return result

    return kind


def mapping(inner: Reader[T], pattern: re.Pattern[str] | None = None) -> Reader[dict[str, T]]:
    """An object whose names anybody may choose. What is wrong in it is left out."""

    def kind(value: object, where: str, faults: Faults) -> dict[str, T]:
        if not isinstance(value, dict):
            faults.append(f"{where} is {said(value)}, not an object")
            return {}
        result = {}
        for key, entry in value.items():
            if not _key(key, where, faults):
                continue
            if pattern is not None and not pattern.match(key):
                faults.append(f"{where}: {key!r} is not of the form that is written there")
                continue
            before = len(faults)
            read = inner(entry, f"{where}.{key}", faults)
            if len(faults) == before:
                result[key] = read
        return result

    return kind


def members(table: Mapping[str, Kind], needed: tuple[str, ...] = ()) -> Reader[dict[str, Any]]:
    """An object with these members; others are kept as they are. Missing ones are left missing, unless `needed`. Each
    has the type that the table says."""

    def kind(value: object, where: str, faults: Faults) -> dict[str, object]:
        if not isinstance(value, dict):
            faults.append(f"{where} is {said(value)}, not an object")
            value = {}
        result = {}
        prefix = f"{where}." if where else ""
        for key, entry in value.items():
            if _key(key, where or "the record", faults):
                result[key] = table.get(key, anything)(entry, f"{prefix}{key}", faults)
        for key in needed:
            if key not in result:
                faults.append(f"{prefix}{key} is missing")
                result[key] = table[key](None, key, [])
        return result

    return kind


class Members:
    """An object whose members are taken one by one; `rest` are those that nobody took."""

    def __init__(self, value: object, where: str, faults: Faults) -> None:
        if not isinstance(value, dict):
            faults.append(f"{where} is {said(value)}, not an object")
            value = {}
        self._value: dict[str, object] = dict(value)
        self._where = where
        self._prefix = f"{where}." if where else ""
        self._faults = faults

    def take(self, key: str, reader: Reader[T], default: T) -> T:
        """The default for one that is missing."""
        if key not in self._value:
            return default
        return reader(self._value.pop(key), f"{self._prefix}{key}", self._faults)

    def needed(self, key: str, reader: Reader[T]) -> T:
        """One that nothing can be without: it is a fault if it is missing."""
        if key in self._value:
            return reader(self._value.pop(key), f"{self._prefix}{key}", self._faults)
        self._faults.append(f"{self._prefix}{key} is missing")
        return reader(None, key, [])

    def check(self, reader: Kind, *keys: str) -> None:
        """Members that say nothing that others do not say, too: looked at, and left out."""
        for key in keys:
            self.take(key, reader, None)

    def rest(self) -> dict[str, Json]:
        """What another teud has written, and this one keeps for it."""
        return {
            key: anything(value, f"{self._prefix}{key}", self._faults)
            for key, value in self._value.items()
            if _key(key, self._where or "the record", self._faults)
        }


# -- the shapes ------------------------------------------------------------------------------------------

TEXTS = items(text())
TEXT_MAP = mapping(text())


# -- whole records ---------------------------------------------------------------------------------------


def _decoded(data: str | bytes | None, faults: Faults) -> object:
    try:
        if data is None:
            raise TypeError("the JSON object must be str, bytes or bytearray, not NoneType")
        found: object = json.loads(data)
        return found
    except (ValueError, TypeError, RecursionError) as error:
        faults.append(f"it is not JSON ({str(error)[:200]})")
        return {}


def column(value: object) -> str:
    """A key of a row as text; empty where it is none."""
    try:
        found = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return ""
    return found if isinstance(found, str) and whole(found) else ""


def read(reader: Reader[T], data: str | bytes | None) -> tuple[T, Faults]:
    """What JSON says, in this shape, and all that is wrong with it. `data`: a column as SQLite gives it."""
    faults: Faults = []
    value = _decoded(data, faults)
    broken = bool(faults)
    try:
        record = reader(value, "" if isinstance(value, dict) else "the record", faults)
    except RecursionError:
        faults, broken = ["it is nested too deeply"], True
        record = reader({}, "", [])
    return record, faults[:1] if broken else faults
