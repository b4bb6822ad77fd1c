# SPDX-License-Identifier: Apache-2.0
"""Cache keys of operations as BuildKit has them, byte for byte: what one of both exported is found by the other.

BuildKit's key of most operations is the digest of its message as Go's encoding/json writes it: fields in their order,
under the names of the .proto file, empty ones left out, numbers as numbers, and <, > and & escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from teu.oci import digest as digests

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def plain(message: Message) -> dict[str, Any]:
    """A message as Go's generated structure of it is written: without what is empty."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        nested = field.type == FieldDescriptor.TYPE_MESSAGE
        if _is_map(field):
            if value:
                found[field.name] = {key: plain(one) if isinstance(one, Message) else one for key, one in value.items()}
        elif field.label == FieldDescriptor.LABEL_REPEATED:
            if value:
                found[field.name] = [plain(one) for one in value] if nested else list(value)
        elif nested:
            if message.HasField(field.name):
                found[field.name] = plain(value)
        elif value:
            found[field.name] = value
    return found


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def text(value: Mapping[str, Any]) -> bytes:
    """JSON as Go writes it: the keys of the outermost in their order, those of maps sorted by whoever made them."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return written.translate(_ESCAPES).encode("utf-8", "surrogateescape")


def of(value: Mapping[str, Any]) -> str:
    """The digest of its JSON."""
    return digests.of(text(value))
