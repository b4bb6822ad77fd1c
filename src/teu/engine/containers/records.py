# SPDX-License-Identifier: Apache-2.0
"""The record of a container as engine.db has it: its shape, which is what Container.record writes."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any

from teu.engine.containers.model import fresh_state
from teu.engine.core import fields
from teu.engine.core.records import (
    IDENTITY,
    TEXT_MAP,
    TEXTS,
    Faults,
    Kind,
    address,
    anything,
    column,
    flag,
    items,
    mapping,
    maybe,
    members,
    moment,
    number,
    read,
    said,
    text,
)

CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_PORT = re.compile(r"[0-9]{1,5}/(?:tcp|udp|sctp)\Z")


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
    simple: dict[Any, Kind] = {fields.TEXT: text(), fields.WORD: text(), fields.WORDS: TEXTS}
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
            found = kinds[key](given, f"{where}.{key}", faults)
            # What is left of a list or an object is shown; what is no more than a stand-in is not.
            result[key] = found if found or len(faults) == before else field.fresh()
        return result

    return kind


_config = _table(fields.CONFIG)
_host_members = _table(fields.HOST_CONFIG)
_LOGS = members({"Type": text("none", re.compile(r".")), "Config": maybe(TEXT_MAP)}, ("Type",))
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
        "Links": maybe(TEXTS),
        "Aliases": maybe(TEXTS),
        "DriverOpts": maybe(mapping(anything)),
        "DNSNames": maybe(TEXTS),
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
        "args": maybe(TEXTS, []),
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


def container(id: Any, name: Any, data: Any) -> tuple[dict[str, Any], Faults, bool]:
    """The record of a row of `containers`, its faults, and whether its own id is known. It has an id and a name in any
    case, and the same ones each time."""
    record, faults = read(_CONTAINER, data)
    row_id, row_name = column(id), column(name)
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
