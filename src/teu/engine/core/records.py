# SPDX-License-Identifier: Apache-2.0
"""Records as they are read from engine.db, where anything may have happened to them: how they are read, for the rooms
that say what they are (containers/records.py, networks/records.py, volumes/records.py).

A record is read member by member against its shape, which is what our own writers write. A member that has another
shape is replaced by an empty one and told of, so that whoever gets the record need not ask: what is left of it can be
listed, inspected and removed, and a reader never fails. A member that is missing is one that an older teud did not
write, and gets its default without a word, unless nothing can be without it.

    record, faults = read(SHAPE, data)      faults: "state.Pid is a string, not a whole number", ...
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from teu.engine.core.times import NEVER, nanoseconds

Faults = list[str]
Kind = Callable[[Any, str, Faults], Any]
"""Takes a value, where it stands, and the list of faults; gives the value, or what stands in for it."""

IDENTITY = re.compile(r"[0-9a-f]{64}\Z")
_ENDS = 1 << 63


def said(value: Any) -> str:
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


def text(default: str = "", pattern: re.Pattern[str] | None = None) -> Kind:
    def kind(value: Any, where: str, faults: Faults) -> Any:
        if isinstance(value, str) and whole(value) and (pattern is None or pattern.match(value)):
            return value
        faults.append(
            f"{where} is {said(value)}, not a text"
            if pattern is None or not isinstance(value, str)
            else f"{where} is not of the form that is written there"
        )
        return default

    return kind


def number(default: int = 0, least: int = -_ENDS, most: int = _ENDS - 1) -> Kind:
    def kind(value: Any, where: str, faults: Faults) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        faults.append(
            f"{where} is {said(value)}, not a whole number from {least} to {most}"
            if least != -_ENDS
            else f"{where} is {said(value)}, not a whole number"
        )
        return default

    return kind


def flag(value: Any, where: str, faults: Faults) -> Any:
    if isinstance(value, bool):
        return value
    faults.append(f"{where} is {said(value)}, not true or false")
    return False


def moment(value: Any, where: str, faults: Faults) -> Any:
    try:
        if isinstance(value, str):
            nanoseconds(value)
            return value or NEVER
    except (ValueError, OverflowError):
        pass
    faults.append(f"{where} is {said(value)}, not a moment")
    return NEVER


def address(value: Any, where: str, faults: Faults) -> Any:
    """An IPv4 address, or an empty text."""
    try:
        return str(IPv4Address(value)) if isinstance(value, str) and value else text()(value, where, faults)
    except ValueError:
        faults.append(f"{where} is no IPv4 address")
        return ""


def anything(value: Any, where: str, faults: Faults) -> Any:
    """Any JSON that can be written again: what it means is looked at by who uses it."""
    if isinstance(value, dict):
        good = {key: inner for key, inner in value.items() if _key(key, where, faults)}
        return {key: anything(inner, f"{where}.{key}", faults) for key, inner in good.items()}
    if isinstance(value, list):
        return [anything(inner, where, faults) for inner in value]
    if isinstance(value, str) and not whole(value) or value in (float("inf"), float("-inf")) or value != value:
        faults.append(f"{where} is {said(value)}, which cannot be written")
        return None
    return value


def _key(key: str, where: str, faults: Faults) -> bool:
    if not whole(key):
        faults.append(f"{where} has a name with half of a character (a lone surrogate)")
        return False
    return True


def maybe(inner: Kind, default: Any = None) -> Kind:
    """Null is good, too."""

    def kind(value: Any, where: str, faults: Faults) -> Any:
        return default if value is None else inner(value, where, faults)

    return kind


def items(inner: Kind, length: int | None = None) -> Kind:
    """A list. What is wrong in it is left out."""

    def kind(value: Any, where: str, faults: Faults) -> Any:
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


def mapping(inner: Kind, pattern: re.Pattern[str] | None = None) -> Kind:
    """An object whose names anybody may choose. What is wrong in it is left out."""

    def kind(value: Any, where: str, faults: Faults) -> Any:
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


def members(table: dict[str, Kind], needed: tuple[str, ...] = ()) -> Kind:
    """An object with these members; others are kept as they are. Missing ones are left missing, unless `needed`."""

    def kind(value: Any, where: str, faults: Faults) -> Any:
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


# -- the shapes ------------------------------------------------------------------------------------------

TEXTS = items(text())
TEXT_MAP = mapping(text())


# -- whole records ---------------------------------------------------------------------------------------


def _decoded(data: Any, faults: Faults) -> Any:
    try:
        return json.loads(data)
    except (ValueError, TypeError, RecursionError) as error:
        faults.append(f"it is not JSON ({str(error)[:200]})")
        return {}


def column(value: Any) -> str:
    """A key of a row as text; empty where it is none."""
    try:
        found = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return ""
    return found if isinstance(found, str) and whole(found) else ""


def read(kind: Kind, data: Any) -> tuple[dict[str, Any], Faults]:
    """What JSON says, in this shape, and all that is wrong with it."""
    faults: Faults = []
    value = _decoded(data, faults)
    broken = bool(faults)
    try:
        record: dict[str, Any] = kind(value, "" if isinstance(value, dict) else "the record", faults)
    except RecursionError:
        faults, broken = ["it is nested too deeply"], True
        record = kind({}, "", [])
    return record, faults[:1] if broken else faults
