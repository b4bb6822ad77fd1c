# SPDX-License-Identifier: Apache-2.0
"""Records as they are read from engine.db, where anything may have happened to them. Called by the stores.

A record is read member by member against its shape, which is what our own writers write. A member that has another
shape is replaced by an empty one and told of, so that whoever gets the record need not ask: what is left of it can be
listed, inspected and removed, and a reader never fails. A member that is missing is one that an older teud did not
write, and gets its default without a word, unless nothing can be without it.

    record, faults = container(id, name, data)      faults: "state.Pid is a string, not a whole number", ...
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from teu.engine.containers.model import fresh_state
from teu.engine.core import fields
from teu.engine.core.times import NEVER, nanoseconds

Faults = list[str]
Kind = Callable[[Any, str, Faults], Any]
"""Takes a value, where it stands, and the list of faults; gives the value, or what stands in for it."""

IDENTITY = re.compile(r"[0-9a-f]{64}\Z")
CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_PORT = re.compile(r"[0-9]{1,5}/(?:tcp|udp|sctp)\Z")
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

_TEXTS = items(text())
_TEXT_MAP = mapping(text())


def _like(kind: Any) -> Kind:
    """What the API's table of fields says of a field, for what was read by it. Null is "not given" there, too."""
    if isinstance(kind, fields.Object):
        return members({name: maybe(_like(field.kind)) for name, field in kind.fields.items()})
    if isinstance(kind, fields.ListOf):
        return items(_like(kind.kind))
    if isinstance(kind, fields.MapOf):
        inner = _like(kind.kind)
        return mapping(maybe(inner) if isinstance(kind.kind, fields.ListOf) else inner)
    if kind is fields.SIZE:
        return items(number(least=0, most=65535), 2)
    if kind is fields.FLAG:
        return flag
    if kind in (fields.INT64, fields.UINT64, fields.UINT32, fields.UINT16):
        return number(least=kind.low, most=kind.high)
    simple: dict[Any, Kind] = {fields.TEXT: text(), fields.WORD: text(), fields.WORDS: _TEXTS}
    return simple.get(kind, mapping(anything))


def _table(table: fields.Object) -> Kind:
    """All members that the API documents: those that are missing, or null, have their defaults."""
    kinds = {name: _like(field.kind) for name, field in table.fields.items()}

    def kind(value: Any, where: str, faults: Faults) -> Any:
        if not isinstance(value, dict):
            faults.append(f"{where} is {said(value)}, not an object")
            value = {}
        result = anything({key: inner for key, inner in value.items() if key not in kinds}, where, faults)
        for key, field in table.fields.items():
            given = value.get(key)
            if given is None:
                result[key] = field.fresh()
                continue
            before = len(faults)
            read = kinds[key](given, f"{where}.{key}", faults)
            # What is left of a list or an object is shown; what is no more than a stand-in is not.
            result[key] = read if read or len(faults) == before else field.fresh()
        return result

    return kind


_config = _table(fields.CONFIG)
_host_members = _table(fields.HOST_CONFIG)
_LOGS = members({"Type": text("none", re.compile(r".")), "Config": maybe(_TEXT_MAP)}, ("Type",))
_POLICY = members({"Name": text("no"), "MaximumRetryCount": number(least=0)}, ("Name", "MaximumRetryCount"))


def _host_config(value: Any, where: str, faults: Faults) -> Any:
    result = _host_members(value, where, faults)
    # These are always written, and in full.
    given = value if isinstance(value, dict) else {}
    for key, kind in (("LogConfig", _LOGS), ("RestartPolicy", _POLICY)):
        result[key] = kind(given.get(key), f"{where}.{key}", faults if given else [])
    for key, instead in (("NetworkMode", "default"), ("Runtime", ""), ("IpcMode", "private"), ("PidMode", "")):
        result[key] = result[key] or instead
    return result


_ENDPOINT = members(
    {
        "IPAMConfig": maybe(members({"IPv4Address": maybe(text())})),
        "Links": maybe(_TEXTS),
        "Aliases": maybe(_TEXTS),
        "DriverOpts": maybe(mapping(anything)),
        "DNSNames": maybe(_TEXTS),
        **{
            key: text()
            for key in (
                "MacAddress",
                "NetworkID",
                "EndpointID",
                "Gateway",
                "WantedMac",
                "IPv6Gateway",
                "GlobalIPv6Address",
            )
        },
        "IPAddress": address,
        "IPPrefixLen": number(least=0, most=128),
        "GlobalIPv6PrefixLen": number(least=0, most=128),
    }
)

_NETWORK_SETTINGS = members(
    {
        "Networks": mapping(_ENDPOINT),
        "Ports": maybe(
            mapping(
                maybe(
                    items(
                        members(
                            {"HostIp": text(), "HostPort": text("0", re.compile(r"[0-9]{1,5}\Z"))},
                            ("HostIp", "HostPort"),
                        )
                    )
                ),
                _PORT,
            ),
            {},
        ),
        **{key: text() for key in ("SandboxKey", "SandboxID", "EndpointID", "Gateway", "IPAddress", "MacAddress")},
        "IPPrefixLen": number(least=0, most=128),
    }
)

_STATE = members(
    {
        **dict.fromkeys(("Running", "Paused", "Restarting", "OOMKilled", "Dead"), flag),
        "Status": text(),
        "Error": text(),
        "Pid": number(least=0, most=1 << 31),
        "ExitCode": number(),
        "StartedAt": moment,
        "FinishedAt": moment,
        "Health": maybe(
            members(
                {"Status": text("none"), "FailingStreak": number(), "Log": items(mapping(anything))},
                ("Status", "FailingStreak", "Log"),
            )
        ),
    },
    ("Running", "Pid"),
)

_MOUNTS = items(
    members(
        {
            **{key: text() for key in ("Type", "Source", "Destination", "Name", "Driver", "Mode", "Propagation")},
            "RW": flag,
        },
        ("Type", "Source", "Destination", "RW"),
    )
)

_CONTAINER = members(
    {
        "id": text("", IDENTITY),
        "name": text("", CONTAINER_NAME),
        "created": moment,
        "path": text(),
        "args": maybe(_TEXTS, []),
        "image_id": text(),
        "chain_id": text(),
        "config": _config,
        "host_config": _host_config,
        "state": _STATE,
        "network_settings": maybe(_NETWORK_SETTINGS, {}),
        "mounts": maybe(_MOUNTS, []),
        "restart_count": number(least=0),
        "manually_stopped": flag,
        "started_once": flag,
        "ports_exposed": maybe(mapping(anything), {}),
        "apparmor_profile": text(),
        "ended": maybe(items(number(), 2)),
    },
    ("id", "name", "created", "config", "host_config", "state"),
)


def _closed(value: Any, where: str, faults: Faults) -> Any:
    """A flag that keeps something shut: what it said is not known, so it does."""
    return flag(value, where, faults) if isinstance(value, bool) else not flag(value, where, faults)


_SUBNET = members({"Subnet": text(), "Gateway": text(), "IPRange": text()})

_NETWORK = members(
    {
        "Id": text("", IDENTITY),
        "Name": text("", re.compile(r".")),
        "Created": moment,
        "Scope": text("local"),
        "Driver": text(),
        "EnableIPv6": flag,
        "IPAM": members({"Driver": text("default"), "Options": maybe(_TEXT_MAP), "Config": maybe(items(_SUBNET), [])}),
        "Internal": _closed,
        "Attachable": flag,
        "Ingress": flag,
        "ConfigFrom": mapping(anything),
        "ConfigOnly": flag,
        "Options": maybe(_TEXT_MAP, {}),
        "Labels": maybe(_TEXT_MAP, {}),
        "AutomaticSubnet": flag,
    },
    ("Id", "Name", "Created", "Driver", "IPAM"),
)

_VOLUME = members(
    {
        "Created": moment,
        "Driver": text(),
        "Options": maybe(_TEXT_MAP, {}),
        "Labels": maybe(_TEXT_MAP, {}),
        "Container": text(),
        "Removing": flag,
    },
    ("Created", "Options", "Labels"),
)


# -- whole records ---------------------------------------------------------------------------------------


def _decoded(data: Any, faults: Faults) -> Any:
    try:
        return json.loads(data)
    except (ValueError, TypeError, RecursionError) as error:
        faults.append(f"it is not JSON ({str(error)[:200]})")
        return {}


def _column(value: Any) -> str:
    """A key of a row as text; empty where it is none."""
    try:
        found = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return ""
    return found if isinstance(found, str) and whole(found) else ""


def _read(kind: Kind, data: Any) -> tuple[dict[str, Any], Faults]:
    faults: Faults = []
    value = _decoded(data, faults)
    broken = bool(faults)
    try:
        record: dict[str, Any] = kind(value, "" if isinstance(value, dict) else "the record", faults)
    except RecursionError:
        faults, broken = ["it is nested too deeply"], True
        record = kind({}, "", [])
    return record, faults[:1] if broken else faults


def container(id: Any, name: Any, data: Any) -> tuple[dict[str, Any], Faults, bool]:
    """The record of a row of `containers`, its faults, and whether its own id is known. It has an id and a name in any
    case, and the same ones each time."""
    record, faults = _read(_CONTAINER, data)
    row_id, row_name = _column(id), _column(name)
    known = bool(IDENTITY.match(row_id))
    if not known:
        faults.append("its row has no id")
    elif record["id"] not in ("", row_id):
        faults.append(f"its row is that of {row_id[:12]}")
    identity = row_id if known else record["id"]
    if not identity:
        identity = sha256(b"%r %r" % (data, id)).hexdigest()
    if not CONTAINER_NAME.match(row_name):
        faults.append("its row has no name")
        row_name = ""
    elif record["name"] not in ("", row_name):
        faults.append(f"its row has the name {row_name}")
    record["state"] = {**fresh_state(), **record["state"]}
    record.update(id=identity, name=row_name or record["name"] or f"damaged_{identity[:12]}")
    return record, faults, known


def network(id: Any, name: Any, data: Any) -> tuple[dict[str, Any], Faults]:
    record, faults = _read(_NETWORK, data)
    row_id, row_name = _column(id), _column(name)
    if record["Id"] != row_id or not row_id:
        faults.append("its row has another id")
    if record["Name"] != row_name or not row_name:
        faults.append("its row has another name")
    identity = row_id if IDENTITY.match(row_id) else record["Id"] or sha256(b"%r %r" % (data, id)).hexdigest()
    record.update(Id=identity, Name=row_name or record["Name"] or f"damaged_{identity[:12]}")
    config = (record["IPAM"].get("Config") or [{}])[0]
    try:
        if config.get("Subnet"):
            IPv4Network(config["Subnet"])
            IPv4Address(config.get("Gateway"))
            if config.get("IPRange"):
                IPv4Network(config["IPRange"])
    except ValueError as error:
        faults.append(f"IPAM.Config: {error}")
        record["IPAM"] = {**record["IPAM"], "Config": []}
    return record, faults


def volume(data: Any) -> tuple[dict[str, Any], Faults]:
    record, faults = _read(_VOLUME, data)
    for ours in ("Damage", "Opaque"):  # the store's own notes
        record.pop(ours, None)
    return record, faults
