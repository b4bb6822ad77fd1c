# SPDX-License-Identifier: Apache-2.0
"""The record of a container as engine.db has it: its shape, which is what Container.record writes."""

from __future__ import annotations

import re
from hashlib import sha256

from teu.engine.containers.defaults import SHM_SIZE
from teu.engine.containers.network_settings import network_settings
from teu.engine.containers.state import SAVED, Saved
from teu.engine.core import fields, kinds
from teu.engine.core.records import (
    IDENTITY,
    TEXT_MAP,
    TEXTS,
    Faults,
    Kind,
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


def _like(kind: object) -> Kind:
    """What the API's table of fields says of a field, for what was read by it. Null is "not given" there, too."""
    if isinstance(kind, kinds.Shape):
        return members({name: maybe(_like(field.kind)) for name, field in kind.fields.items()})
    if isinstance(kind, kinds.ListOf):
        return items(_like(kind.kind))
    if isinstance(kind, kinds.MapOf):
        inner = _like(kind.kind)
        return mapping(maybe(inner) if isinstance(kind.kind, kinds.ListOf) else inner)
    if isinstance(kind, kinds.Whole):
        return number(least=kind.low, most=kind.high)
    simple: dict[object, Kind] = {
        kinds.TEXT: text(),
        kinds.WORD: text(),
        kinds.WORDS: TEXTS,
        kinds.FLAG: flag,
        kinds.SIZE: items(number(least=0, most=65535), 2),
    }
    return simple.get(kind, mapping(anything))


def _plain(kind: object) -> type | None:
    """The type of which values need no closer look."""
    return bool if kind is kinds.FLAG else str if kind in (kinds.TEXT, kinds.WORD) else None


def _table(table: dict[str, kinds.Field]) -> Kind:
    """All members that the API documents: those that are missing, or null, are left out, and have their defaults."""
    known = {name: (_like(field.kind), _plain(field.kind)) for name, field in table.items()}

    def kind(value: object, where: str, faults: Faults) -> object:
        if not isinstance(value, dict):
            faults.append(f"{where} is {said(value)}, not an object")
            value = {}
        result = {}
        if not value.keys() <= known.keys():
            result = anything({key: inner for key, inner in value.items() if key not in known}, where, faults)
        for key, (reader, plain) in known.items():
            given = value.get(key)
            if given is None:
                continue
            # Most members are like that; without this, reading a record takes 20 µs more.
            if type(given) is plain and (plain is bool or str(given).isascii()):
                result[key] = given
                continue
            before = len(faults)
            found = reader(given, f"{where}.{key}", faults)
            # What is left of a list or an object is shown; what is no more than a stand-in is not.
            if found or len(faults) == before:
                result[key] = found
        return result

    return kind


_config = _table(fields.CONFIG.fields)
_LOGS = members({"Type": text("none", re.compile(r".")), "Config": maybe(TEXT_MAP)}, ("Type",))
_POLICY = members({"Name": text("no"), "MaximumRetryCount": number(least=0)}, ("Name", "MaximumRetryCount"))


_IN_FULL = {"LogConfig": _LOGS, "RestartPolicy": _POLICY}  # these are always written, and so
_others = _table({name: field for name, field in fields.HOST_CONFIG.fields.items() if name not in _IN_FULL})


def _host_config(value: object, where: str, faults: Faults) -> dict[str, object]:
    given = value if isinstance(value, dict) else {}
    others = {key: inner for key, inner in given.items() if key not in _IN_FULL}
    result: dict[str, object] = _others(others if isinstance(value, dict) else value, where, faults)
    for key, kind in _IN_FULL.items():
        result[key] = kind(given.get(key), f"{where}.{key}", faults if given else [])
    for key, instead in (("NetworkMode", "default"), ("IpcMode", "private")):
        result[key] = result.get(key) or instead
    return result


_PROBE = members({"Start": text(), "End": text(), "ExitCode": number(), "Output": text()})
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
                {"Status": text("none"), "FailingStreak": number(), "Log": items(_PROBE)},
                ("Status", "FailingStreak", "Log"),
            )
        ),
    },
    ("Running", "Pid"),
)

_MOUNT_OPTIONS = members(
    {
        **dict.fromkeys(("copy", "anonymous", "create", "nonrecursive", "deep", "where-possible"), flag),
        "shallow": maybe(flag),
        "subpath": text(),
        "chain": text(),
        "tmpfs": maybe(TEXTS),
    }
)
_MOUNTS = items(
    members(
        {
            **{key: text() for key in ("Type", "Source", "Destination", "Name", "Driver", "Mode", "Propagation")},
            "RW": flag,
            "Options": maybe(_MOUNT_OPTIONS),
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
        "image_manifest": maybe(
            members({"mediaType": text(), "digest": text(), "size": number(least=0), "platform": maybe(TEXT_MAP)})
        ),
        "config": _config,
        "host_config": _host_config,
        "state": _STATE,
        "network_settings": maybe(network_settings),
        "mounts": maybe(_MOUNTS, []),
        "restart_count": number(least=0),
        "manually_stopped": flag,
        "started_once": flag,
        "apparmor_profile": text(),
        "ended": maybe(items(number(), 2)),
        "pid_started": number(least=0),
    },
    ("id", "name", "created", "config", "host_config", "state"),
)


def faults_of(data: str) -> Faults:
    """What would be wrong with a record if it was written like that."""
    return read(_CONTAINER, data)[1]


def container(id: object, name: object, data: str | bytes | None) -> tuple[Saved, Faults, bool]:
    """The record of a row of `containers`, its faults, and whether its own id is known. It has an id and a name in any
    case, and the same ones each time."""
    found, faults = read(_CONTAINER, data)
    record = SAVED.build(found)
    row_id, row_name = column(id), column(name)
    known = bool(IDENTITY.match(row_id))
    if not known:
        faults.append("its row has no id")
    elif record.id not in ("", row_id):
        faults.append(f"its row is that of {row_id[:12]}")
    identity = row_id if known else record.id
    if not identity:
        identity = sha256(b"%r %r" % (data, id)).hexdigest()
    if not CONTAINER_NAME.match(row_name):
        faults.append("its row has no name")
        row_name = ""
    elif record.name not in ("", row_name):
        faults.append(f"its row has the name {row_name}")
    record.id = identity
    record.name = row_name or record.name or f"damaged_{identity[:12]}"
    record.host_config.shm_size = record.host_config.shm_size or SHM_SIZE
    return record, faults, known
