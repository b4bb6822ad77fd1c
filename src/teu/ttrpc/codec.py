# SPDX-License-Identifier: Apache-2.0
"""Protobuf's wire format, driven by field tables.

A message is a dict from field name to value; a table says which number and type each name has:

    {1: ("id", "string"), 3: ("rootfs", "*containerd.types.Mount"), 7: ("annotations", "map")}

Types are protobuf's own names, `*` before one means repeated, `map` is map<string, string>, anything
with a dot is the name of another table.  Decoding fills in proto3's defaults (None for an absent
message), skips unknown fields, and raises ValueError for what is not a message.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]
    Table = dict[int, tuple[str, str]]
    Tables = dict[str, Table]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

_VARINTS = ("bool", "uint32", "uint64", "int32", "int64", "enum")
_DEFAULTS: dict[str, Any] = {"string": "", "bytes": b"", "bool": False, "double": 0.0}
_ENTRY: Table = {1: ("key", "string"), 2: ("value", "string")}
_MASK = (1 << 64) - 1


def put_varint(out: bytearray, value: int) -> None:
    """Append a varint; negative numbers take ten bytes, as protobuf's int32 and int64 do."""
    value &= _MASK
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def get_varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at that offset, and the offset behind it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("truncated or overlong varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7


def _put(out: bytearray, tables: Tables, number: int, kind: str, value: Any) -> None:
    if kind in _VARINTS:
        put_varint(out, number << 3 | VARINT)
        put_varint(out, int(value))
    elif kind == "double":
        put_varint(out, number << 3 | FIXED64)
        out += struct.pack("<d", value)
    else:
        if kind == "string":
            data = value.encode("utf-8", "surrogateescape")
        elif kind == "bytes":
            data = value
        else:
            data = encode_table(tables, tables[kind], value)
        put_varint(out, number << 3 | LENGTH)
        put_varint(out, len(data))
        out += data


def encode_table(tables: Tables, table: Table, message: Message) -> bytes:
    """`message` as bytes; KeyError for a name that the table does not have."""
    out = bytearray()
    known = 0
    for number, (name, kind) in table.items():
        if name not in message:
            continue
        known += 1
        value = message[name]
        if kind == "map":
            for key, item in value.items():
                data = encode_table(tables, _ENTRY, {"key": key, "value": item})
                put_varint(out, number << 3 | LENGTH)
                put_varint(out, len(data))
                out += data
        elif kind[0] == "*":
            for item in value:
                _put(out, tables, number, kind[1:], item)
        elif "." in kind:
            if value is not None:
                _put(out, tables, number, kind, value)
        elif value:
            _put(out, tables, number, kind, value)
    if known != len(message):
        names = {name for name, _ in table.values()}
        raise KeyError(f"no such field: {', '.join(set(message) - names)}")
    return bytes(out)


def _signed(kind: str, value: int) -> int:
    if kind in ("int64", "int32", "enum") and value >> 63:
        return value - (1 << 64)
    return value


def _default(kind: str) -> Any:
    if kind == "map":
        return {}
    if kind[0] == "*":
        return []
    if "." in kind:
        return None
    return _DEFAULTS.get(kind, 0)


def decode_table(tables: Tables, table: Table, data: bytes) -> Message:
    """The message in `data`, with every field of the table present."""
    message: Message = {name: _default(kind) for name, kind in table.values()}
    at = 0
    while at < len(data):
        key, at = get_varint(data, at)
        number, wire = key >> 3, key & 7
        raw, at = _raw_value(data, at, number, wire)
        if number not in table:
            continue
        name, kind = table[number]
        base = kind.lstrip("*")
        if (base in _VARINTS) != (wire == VARINT) and not (kind[0] == "*" and wire == LENGTH):
            raise ValueError(f"field {name} has wire type {wire}")
        if base == "map":
            entry = decode_table(tables, _ENTRY, raw)
            message[name][entry["key"]] = entry["value"]
        elif base in _VARINTS and wire == LENGTH:
            message[name] += _packed(base, raw)
        elif kind[0] == "*":
            message[name].append(_value(tables, base, raw))
        else:
            message[name] = _value(tables, base, raw)
    return message


def _raw_value(data: bytes, at: int, number: int, wire: int) -> tuple[Any, int]:
    """(a field's number or bytes as they are on the wire, where the next field begins)."""
    if wire == VARINT:
        return get_varint(data, at)
    if wire == LENGTH:
        size, at = get_varint(data, at)
    elif wire in (FIXED64, FIXED32):
        size = 8 if wire == FIXED64 else 4
    else:
        raise ValueError(f"field {number} has unknown wire type {wire}")
    value = data[at : at + size]
    if len(value) != size:
        raise ValueError(f"field {number} is truncated")
    return value, at + size


def _value(tables: Tables, base: str, raw: Any) -> Any:
    if base == "bool":
        return bool(raw)
    if base in _VARINTS:
        return _signed(base, raw)
    if base == "double":
        return struct.unpack("<d", raw)[0]
    if base == "string":
        return raw.decode("utf-8", "surrogateescape")
    return raw if base == "bytes" else decode_table(tables, tables[base], raw)


def _packed(base: str, data: bytes) -> list[Any]:
    """The numbers of a repeated field that come in one piece."""
    items = []
    at = 0
    while at < len(data):
        item, at = get_varint(data, at)
        items.append(_signed(base, item))
    return items
