# SPDX-License-Identifier: Apache-2.0
"""The hand-written field tables against the descriptors compiled from protos/, and bytes both ways."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest

from teu.ttrpc import messages as m
from teu.ttrpc.codec import get_varint, put_varint

pool = pytest.importorskip("google.protobuf.descriptor_pool")

MODULES = [
    "google.protobuf.any_pb2",
    "google.protobuf.empty_pb2",
    "google.protobuf.timestamp_pb2",
    "teu.api.rpc.status_pb2",
    "teu.api.types.mount_pb2",
    "teu.api.types.event_pb2",
    "teu.api.types.introspection_pb2",
    "teu.api.types.runc.options.oci_pb2",
    "teu.api.types.runctypes.runc_pb2",
    "teu.api.types.runtimeoptions.v1.api_pb2",
    "teu.api.types.task.task_pb2",
    "teu.api.events.task_pb2",
    "teu.api.runtime.task.v2.shim_pb2",
    "teu.api.runtime.task.v3.shim_pb2",
    "teu.api.types.platform_pb2",
    "teu.api.types.metrics_pb2",
    "teu.api.runtime.sandbox.v1.sandbox_pb2",
    "teu.api.runtime.bootstrap.v1.bootstrap_pb2",
    "teu.api.services.ttrpc.events.v1.events_pb2",
    "teu.api.cgroups.v2.metrics_pb2",
]
# ttrpc's own envelope is no part of containerd's API
ENVELOPE = {"ttrpc.Request", "ttrpc.Response", "ttrpc.KeyValue"}


@pytest.fixture(scope="module", autouse=True)
def _stubs() -> None:
    try:
        for name in MODULES:
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"stubs are not generated (./dev protos): {error}")


def _names(table: str) -> list[str]:
    if table.startswith("task."):
        return [f"containerd.task.{version}.{table[5:]}" for version in ("v2", "v3")]
    return [table]


def _descriptor(name: str) -> Any:
    return pool.Default().FindMessageTypeByName(name)


def _kind(field: Any) -> str:
    kinds = {
        field.TYPE_STRING: "string",
        field.TYPE_BYTES: "bytes",
        field.TYPE_BOOL: "bool",
        field.TYPE_UINT32: "uint32",
        field.TYPE_UINT64: "uint64",
        field.TYPE_INT32: "int32",
        field.TYPE_INT64: "int64",
        field.TYPE_DOUBLE: "double",
        field.TYPE_ENUM: "enum",
    }
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            return "map"
        kind = field.message_type.full_name
    else:
        kind = kinds[field.type]
    return ("*" if field.label == field.LABEL_REPEATED else "") + str(kind)


CASES = [(table, name) for table in sorted(set(m.TABLES) - ENVELOPE) for name in _names(table)]


@pytest.mark.parametrize(("table", "name"), CASES)
def test_table_is_the_proto(table: str, name: str) -> None:
    fields = {field.number: (field.name, _kind(field)) for field in _descriptor(name).fields}
    for number, (field_name, kind) in m.TABLES[table].items():
        if name == "containerd.runc.v1.Options" and number not in fields:
            continue  # criu_path: given up by containerd 2, still sent by 1.7
        found = fields.pop(number)
        assert (field_name, kind.replace("task.", "containerd.task.")) == found
    # what a table leaves out must be known to be of no use here
    assert {(name, field_name) for field_name, _ in fields.values()} <= {
        ("io.containerd.cgroups.v2.Metrics", "network"),
        ("containerd.runc.v1.Options", "task_api_address"),
        ("containerd.runc.v1.Options", "task_api_version"),
        ("containerd.runtime.bootstrap.v1.BootstrapResult", "capabilities"),
        ("containerd.runtime.bootstrap.v1.BootstrapResult", "metadata"),
    }


def test_every_method_of_the_task_service() -> None:
    for version in ("v2", "v3"):
        service = pool.Default().FindServiceByName(f"containerd.task.{version}.Task")
        methods = {
            method.name: (
                method.input_type.full_name.replace(f"containerd.task.{version}.", "task."),
                method.output_type.full_name.replace(f"containerd.task.{version}.", "task."),
            )
            for method in service.methods
        }
        assert methods == m.TASK_METHODS


def test_every_method_of_the_sandbox_service() -> None:
    service = pool.Default().FindServiceByName(m.SANDBOX_SERVICE)
    assert {
        method.name: (method.input_type.full_name, method.output_type.full_name) for method in service.methods
    } == m.SANDBOX_METHODS


def _sample(kind: str, seed: random.Random) -> Any:
    if kind == "map":
        return {"a": "1", "ü": ""}
    if kind[0] == "*":
        return [_sample(kind[1:], seed) for _ in range(2)]
    if "." in kind:
        return {name: _sample(inner, seed) for name, inner in m.TABLES[kind].values()}
    return {
        "string": "wört",
        "bytes": b"\0\xff",
        "bool": True,
        "uint32": seed.randrange(1, 1 << 32),
        "uint64": seed.randrange(1, 1 << 64),
        "int32": -seed.randrange(1, 1 << 31),
        "int64": -seed.randrange(1, 1 << 63),
        "double": 1.25,
        "enum": 2,
    }[kind]


def _plain(message: Any, table: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, kind in m.TABLES[table].values():
        value: Any = getattr(message, name, None)
        if kind == "map":
            out[name] = dict(value)
        elif kind[0] == "*":
            out[name] = [_plain(item, kind[1:]) if "." in kind else item for item in value]
        elif "." in kind:
            out[name] = _plain(value, kind)
        else:
            out[name] = value
    return out


@pytest.mark.parametrize(("table", "name"), [case for case in CASES if case[1] != "containerd.runc.v1.Options"])
def test_bytes_both_ways(table: str, name: str) -> None:
    kind = _descriptor(name)._concrete_class
    sample = {field: _sample(inner, random.Random(field)) for field, inner in m.TABLES[table].values()}
    parsed = kind.FromString(m.encode(table, sample))
    assert _plain(parsed, table) == sample
    assert m.decode(table, parsed.SerializeToString()) == sample
    assert m.encode(table, m.decode(table, b"")) == b""


def test_unknown_fields_are_skipped_and_malformed_bytes_refused() -> None:
    from teu.api.runtime.task.v3 import shim_pb2

    data = shim_pb2.CreateTaskRequest(id="x", bundle="/b").SerializeToString()
    assert m.decode("task.StateRequest", data) == {"id": "x", "exec_id": "/b"}  # same numbers, same types
    assert m.decode("task.PidsRequest", data)["id"] == "x"
    for bad in (b"\x0a", b"\x0a\x05ab", b"\xff" * 11, b"\x0b", b"\x08\x01", b"\x0f\x01"):
        with pytest.raises(ValueError):
            m.decode("task.StateRequest", bad)
    with pytest.raises(KeyError):
        m.encode("task.StateRequest", {"nonsense": 1})


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, (1 << 32) - 1, (1 << 64) - 1])
def test_varint(value: int) -> None:
    out = bytearray()
    put_varint(out, value)
    assert get_varint(bytes(out), 0) == (value, len(out))


def test_any() -> None:
    packed = m.encode_any("containerd.runc.v1.Options", {"binary_name": "crun", "io_uid": 7})
    assert m.decode_any("containerd.runc.v1.Options", packed)["binary_name"] == "crun"
    packed["type_url"] = "types.containerd.io/containerd.runc.v1.Options"
    assert m.decode_any("containerd.runc.v1.Options", packed)["io_uid"] == 7
    assert m.decode_any("containerd.runc.v1.Options", None)["root"] == ""
    with pytest.raises(ValueError, match="expected"):
        m.decode_any("containerd.runc.v1.Options", {"type_url": "other", "value": b"x"})
