# SPDX-License-Identifier: Apache-2.0
"""Debian's containerd and teu-containerd side by side, and any call to either by its name: for tests that compare.

    with both_daemons() as both:
        for client in both:
            client("images.Get", {"name": "x"}, namespace="default")     # an Answer: code, fields, text of the error

What may differ between two right daemons is made equal in an Answer's fields: times (only whether there is one is
told), random names, the daemons' own folders.
"""

from __future__ import annotations

import contextlib
import re
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import peers
from google.protobuf import json_format, message_factory, symbol_database, wrappers_pb2
from google.protobuf.message import Message
from taskhouse import TeuContainerd

from teu.api.events import container_pb2, image_pb2, snapshot_pb2
from teu.api.events import content_pb2 as content_events
from teu.api.events import namespace_pb2 as namespace_events
from teu.api.services.containers.v1 import containers_pb2
from teu.api.services.content.v1 import content_pb2
from teu.api.services.diff.v1 import diff_pb2
from teu.api.services.events.v1 import events_pb2
from teu.api.services.images.v1 import images_pb2
from teu.api.services.introspection.v1 import introspection_pb2
from teu.api.services.leases.v1 import leases_pb2
from teu.api.services.namespaces.v1 import namespace_pb2
from teu.api.services.sandbox.v1 import sandbox_pb2
from teu.api.services.snapshots.v1 import snapshots_pb2
from teu.api.services.tasks.v1 import tasks_pb2
from teu.api.services.transfer.v1 import transfer_pb2
from teu.api.services.version.v1 import version_pb2

SERVICES = {
    "containers": containers_pb2.DESCRIPTOR.services_by_name["Containers"],
    "content": content_pb2.DESCRIPTOR.services_by_name["Content"],
    "diff": diff_pb2.DESCRIPTOR.services_by_name["Diff"],
    "events": events_pb2.DESCRIPTOR.services_by_name["Events"],
    "images": images_pb2.DESCRIPTOR.services_by_name["Images"],
    "introspection": introspection_pb2.DESCRIPTOR.services_by_name["Introspection"],
    "leases": leases_pb2.DESCRIPTOR.services_by_name["Leases"],
    "namespaces": namespace_pb2.DESCRIPTOR.services_by_name["Namespaces"],
    "sandboxes": sandbox_pb2.DESCRIPTOR.services_by_name["Store"],
    "controller": sandbox_pb2.DESCRIPTOR.services_by_name["Controller"],
    "snapshots": snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"],
    "tasks": tasks_pb2.DESCRIPTOR.services_by_name["Tasks"],
    "transfer": transfer_pb2.DESCRIPTOR.services_by_name["Transfer"],
    "version": version_pb2.DESCRIPTOR.services_by_name["Version"],
}
STREAMED = {  # (requests are a stream, answers are a stream); a descriptor of protobuf 3.21 does not tell
    "containers.ListStream": (False, True),
    "content.List": (False, True),
    "content.Read": (False, True),
    "content.Write": (True, True),
    "events.Subscribe": (False, True),
    "snapshots.List": (False, True),
}
CALL_LIMIT = 60


# Their messages are known by having been imported: an Any is decoded by its name.
KNOWN = (container_pb2, image_pb2, snapshot_pb2, content_events, namespace_events, wrappers_pb2)


def decoded(any_message: Any) -> Any:
    kind = symbol_database.Default().GetSymbol(any_message.type_url.rpartition("/")[2])
    return kind.FromString(any_message.value)


def class_of(kind: Any) -> Any:
    made = getattr(kind, "_concrete_class", None)
    return made or message_factory.GetMessageClass(kind)


class Answer(NamedTuple):
    code: str
    fields: Any
    text: str
    raw: list[Any]


class Client:
    """Any method of one daemon by name, its requests and answers as JSON."""

    def __init__(self, daemon: peers.Containerd, config: str) -> None:
        self.daemon = daemon
        self.metrics = f"127.0.0.1:{peers.free_port()}"
        self.config = config.format(metrics=self.metrics)
        config = self.config
        daemon.launch(config)
        self.channel = grpc.insecure_channel(f"unix:{daemon.address}")

    def restart(self) -> None:
        """After a call that it did not survive."""
        assert self.daemon.process
        self.daemon.process.wait(30)
        self.channel.close()
        self.daemon.launch(self.config)
        self.channel = grpc.insecure_channel(f"unix:{self.daemon.address}")

    def __call__(self, what: str, request: Any = None, namespace: str = "", lease: str = "") -> Answer:
        service, _, name = what.partition(".")
        method = SERVICES[service].methods_by_name[name]
        into = class_of(method.output_type)
        requests, answers = STREAMED.get(what, (False, False))
        metadata = [("containerd-namespace", namespace)] if namespace else []
        metadata += [("containerd-lease", lease)] if lease else []

        def message(fields: Any) -> Any:
            if isinstance(fields, Message):
                return fields
            return json_format.ParseDict(fields or {}, class_of(method.input_type)())

        make = getattr(self.channel, f"{'stream' if requests else 'unary'}_{'stream' if answers else 'unary'}")
        call = make(
            f"/{SERVICES[service].full_name}/{name}",
            request_serializer=class_of(method.input_type).SerializeToString,
            response_deserializer=into.FromString,
        )
        found: list[Any] = []
        raw: list[Any] = []
        try:
            given = iter([message(one) for one in request]) if requests else message(request)
            result = call(given, metadata=metadata, timeout=CALL_LIMIT)
            for one in result if answers else [result]:
                raw.append(one)
                found.append(fields_of(one))
        except grpc.RpcError as error:
            found = _written(found) if what == "content.Write" else found
            return Answer(error.code().name, found, error.details() or "", raw)
        return Answer("OK", _written(found) if what == "content.Write" else found, "", raw)


Rows = dict[tuple[str, frozenset[tuple[str, str]]], float]


def metrics_of(client: Client) -> Rows:
    """The page for Prometheus: (name, labels) -> value."""
    with urllib.request.urlopen(f"http://{client.metrics}/v1/metrics", timeout=CALL_LIMIT) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line and not line.startswith("#")]
    rows: Rows = {}
    for line in lines:
        named, _, value = line.rpartition(" ")
        name, _, labels = named.partition("{")
        rows[name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels))] = float(value)
    return rows


PLACES = re.compile(r"/[^:=]*/(?:io\.containerd\.snapshotter\.v1\.\w+/snapshots|snapshots/\w+)/\d+(?:/fs)?")
RANDOM = re.compile(r"\d{6,}-\S+")  # a name that the daemon made
_TIMES = ("At", "timestamp", "lastChecked", "startedAt", "updatedAt", "createdAt")


def fields_of(message: Any) -> Any:
    if isinstance(message, content_pb2.ListContentResponse):
        for info in message.info:
            info.ClearField("updated_at")  # containerd forgets it here, and only here
    if isinstance(message, content_pb2.ListStatusesResponse):
        message.statuses.sort(key=lambda status: status.ref)  # containerd's are in the order of a folder
    return _normal(json_format.MessageToDict(message))


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("type") == "overlay":  # the kernel takes them in any order; containerd 2 has another than 1.7
            value = {**value, "options": sorted(value.get("options", ()))}
        return {
            key: "TIME" if key.endswith(_TIMES) and isinstance(inner, str) else _normal(inner)
            for key, inner in value.items()
        }
    if isinstance(value, str):
        return "RANDOM" if RANDOM.fullmatch(value) else PLACES.sub("", value)
    return [_normal(inner) for inner in value] if isinstance(value, list) else value


def _written(answers: list[Any]) -> list[Any]:
    """Answers of a Write without containerd's oddities: the last one twice, the times of an earlier STAT again."""
    if len(answers) > 1 and answers[-1] == answers[-2]:
        answers = answers[:-1]
    return [
        {key: value for key, value in one.items() if value != "TIME" or one.get("action", "STAT") == "STAT"}
        for one in answers
    ]


class Both(NamedTuple):
    theirs: Client
    ours: Client


# Nothing is collected but on demand: the tables leave much unreferenced.
THEIRS = """[metrics]
  address = "{metrics}"
  grpc_histogram = true
[plugins."io.containerd.gc.v1.scheduler"]
  mutation_threshold = 1000000
  startup_delay = "100h"
"""
OURS = 'gc: {{threshold: 1000000, interval: 100h}}\nmetrics: {{address: "{metrics}"}}\n'


@contextlib.contextmanager
def both_daemons() -> Iterator[Both]:
    """Both, started on folders of their own, and gone at the end."""
    debian, own = peers.Containerd(), TeuContainerd()
    try:
        yield Both(Client(debian, THEIRS), Client(own, OURS))
    finally:
        for daemon in (own, debian):
            daemon.stop()
            daemon.remove()
