# SPDX-License-Identifier: Apache-2.0
"""`events`: what happens in the daemon, live."""

from __future__ import annotations

import base64
import json
import sys
import time
from typing import Any

from google.protobuf import symbol_database

from teu.api.events import (  # noqa: F401 - registers the types of events
    container_pb2,
    content_pb2,
    image_pb2,
    namespace_pb2,
    sandbox_pb2,
    snapshot_pb2,
    task_pb2,
)
from teu.ctr.client import errors
from teu.ctr.client import events_pb2 as pb
from teu.ctr.commands import Command, Ctr
from teu.ctr.flags import Options


def plain(message: Any) -> Any:
    """A message as Go's encoding/json shows it: set fields in order, numbers as numbers."""
    result: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            result[field.name] = {key: value[key] for key in sorted(value)}
        elif field.label == field.LABEL_REPEATED:
            result[field.name] = [plain(item) if field.message_type is not None else item for item in value]
        elif field.message_type is not None:
            result[field.name] = plain(value)
        elif isinstance(value, bytes):
            result[field.name] = base64.b64encode(value).decode()
        else:
            result[field.name] = value
    return result


def decoded(event: Any) -> Any:
    name = event.type_url.rpartition("/")[2]
    try:
        message = symbol_database.Default().GetSymbol(name)()
    except KeyError:
        return {"type_url": event.type_url, "value": base64.b64encode(event.value).decode()}
    message.ParseFromString(event.value)
    return plain(message)


def events(ctr: Ctr, options: Options, operands: list[str]) -> None:
    with errors():
        for envelope in ctr.client.events.Subscribe(pb.SubscribeRequest(filters=operands)):
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(envelope.timestamp.seconds))
            fraction = f".{envelope.timestamp.nanos:09d}".rstrip("0").rstrip(".")
            text = json.dumps(decoded(envelope.event), separators=(",", ":"), ensure_ascii=False)
            sys.stdout.write(f"{stamp}{fraction} +0000 UTC {envelope.namespace} {envelope.topic} {text}\n")
            sys.stdout.flush()


COMMANDS = {"events": Command(events, "[<filter>, ...]")}
