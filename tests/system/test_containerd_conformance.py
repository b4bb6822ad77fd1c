# SPDX-License-Identifier: Apache-2.0
"""The same requests to Debian's containerd and to teu-containerd: the same codes and the same fields.

A case is a list of calls, made one after another on both daemons in a namespace of its own. What may differ
between two right daemons is made equal first: times (only whether there is one is compared), random names, and the
texts of errors, of which the class at the end is part of the wire and is compared.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import peers
import pytest
from conformance import (
    CALL_LIMIT,
    SERVICES,
    Answer,
    Both,
    Client,
    Rows,
    both_daemons,
    class_of,
    decoded,
    fields_of,
    metrics_of,
)
from google.protobuf import descriptor_pb2, descriptor_pool, json_format

from teu.api.grpc.health.v1 import health_pb2
from teu.api.grpc.reflection.v1 import reflection_pb2

# Debian 12 has containerd 1.6, before sandboxes and transfer.
pytestmark = [pytest.mark.needs("containerd", "trixie", "fast")]

REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNIMPLEMENTED"}


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with both_daemons() as made:
        yield made


# ---- the table ---------------------------------------------------------------------------------


def text(value: str) -> dict[str, str]:
    """An Any that both JSON codecs know: the daemons pass it on unread."""
    return {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": value}


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def mask(*paths: str) -> str:
    """A field mask in JSON. Paths with dots in a label's name cannot be said in it: see `masked`."""
    return ",".join(paths)


HELLO, WORLD, NONE = b"hello, ", b"world\n", sha(b"nothing has this digest")
RUNC = {"name": "io.containerd.runc.v2"}
OCI = "application/vnd.oci.image.manifest.v1+json"
LONG = "a" * 77
BIG = "x" * 4100


def container(id: str, **more: Any) -> dict[str, Any]:
    return {"container": {"id": id, "image": "img", "runtime": RUNC, "spec": text("spec"), **more}}


def image(name: str, **more: Any) -> dict[str, Any]:
    target = {"mediaType": OCI, "digest": NONE, "size": "7"}
    return {"image": {"name": name, "target": target, **more}}


Call = tuple[Any, ...]  # (method, request) or (method, request, options of the client)

FILTERS = [
    "",
    "id==one",
    "id!=one",
    "id~=^o",
    "id~=/^t.o$/",
    "id~=|^t.o$|",
    'id=="one"',
    "labels.a==b",
    "labels.a",
    "labels.a!=b",
    'labels."dotted.name/x"==1',
    "labels.dotted.name/x==1",
    'labels."dotted.name/x"',
    "image==img",
    "runtime.name==io.containerd.runc.v2",
    "runtime.name~=runc",
    "id==one,labels.a==b",
    "id==one,labels.a==x",
    "nosuchfield==x",
    "nosuchfield",
    "id=one",
    "id==",
    "==x",
    "id==one,",
    ",id==one",
    "id===one",
    "id~=(",
    "id==one two",
    'id=="unterminated',
    "id  ==  one",
    " id==one ",
    "id.x==one",
    "labels",
    "labels==x",
    'id=="o\\x6ee"',
    'id=="\\q"',
    "snapshotkey==k",
    "snapshotter==overlayfs",
    'id~="o.e"',
    "id==tw*",
    "id!~one",
    "ID==one",
    "id==Ωmega",
    'id==""',
    'labels.empty==""',
    "labels.empty",
    "id~=one|two",
    "id==/one/",
    "é==x",
    'id==one"',
    "id!=x,id!=y",
    "id,labels.a",
    "id==one ,labels.a==b",
    "id==one, labels.a==b",
    "labels.a ,id==one",
    "labels.a ",
    "id .x==one",
    " id==one",
    "id==one\t",
    "id ==one",
    "id. x==one",
    "id==|one|",
]

CASES: dict[str, list[Call]] = {
    "headers": [
        ("containers.List", {}, {"namespace": ""}),
        ("containers.Get", {"id": "x"}, {"namespace": ""}),
        ("images.List", {}, {"namespace": "bad/name"}),
        ("images.List", {}, {"namespace": LONG}),
        ("images.List", {}, {"namespace": "-x"}),
        ("images.List", {}, {"namespace": "x-"}),
        ("images.List", {}, {"namespace": "x..y"}),
        ("images.List", {}, {"namespace": "never-made"}),
        ("content.List", {}, {"namespace": ""}),
        ("content.ListStatuses", {}, {"namespace": ""}),
        ("leases.List", {}, {"namespace": ""}),
        ("snapshots.List", {"snapshotter": "overlayfs"}, {"namespace": ""}),
        ("tasks.List", {}, {"namespace": ""}),
        ("sandboxes.List", {}, {"namespace": ""}),
        ("events.Publish", {"topic": "/x", "event": text("x")}, {"namespace": ""}),
        ("events.Forward", {"envelope": {"topic": "/x", "event": text("x")}}, {"namespace": ""}),
        ("namespaces.Get", {"name": "never-made"}, {"namespace": ""}),
        ("images.Create", image("leased"), {"lease": "no-such-lease"}),
        ("images.Get", {"name": "leased"}),
        ("snapshots.Prepare", {"snapshotter": "overlayfs", "key": "k"}, {"lease": "no-such-lease"}),
        ("snapshots.Stat", {"snapshotter": "overlayfs", "key": "k"}),
        ("content.Write", [{"action": "COMMIT", "ref": "r", "data": b64(HELLO)}], {"lease": "no-such-lease"}),
        ("content.Info", {"digest": sha(HELLO)}),
    ],
    "namespaces": [
        ("namespaces.Create", {"namespace": {"name": "other", "labels": {"a": "b"}}}),
        ("namespaces.Create", {"namespace": {"name": "other"}}),
        ("namespaces.Get", {"name": "other"}),
        ("namespaces.Get", {"name": "none"}),
        ("namespaces.Get", {"name": ""}),
        ("namespaces.Create", {"namespace": {"name": ""}}),
        ("namespaces.Create", {"namespace": {"name": "bad name"}}),
        ("namespaces.Create", {"namespace": {"name": LONG}}),
        ("namespaces.Create", {"namespace": {"name": "toobig", "labels": {"a": BIG}}}),
        ("namespaces.Update", {"namespace": {"name": "other", "labels": {"c": "d"}}, "updateMask": "labels.c"}),
        ("namespaces.Get", {"name": "other"}),
        ("namespaces.Update", {"namespace": {"name": "other", "labels": {"e": "f"}}, "updateMask": "labels"}),
        ("namespaces.Get", {"name": "other"}),
        ("namespaces.Update", {"namespace": {"name": "other", "labels": {"g": "h"}}}),
        ("namespaces.Get", {"name": "other"}),
        ("namespaces.Update", {"namespace": {"name": "other", "labels": {"g": ""}}, "updateMask": "labels.g"}),
        ("namespaces.Get", {"name": "other"}),
        ("namespaces.Update", {"namespace": {"name": "other"}, "updateMask": "name"}),
        ("namespaces.Update", {"namespace": {"name": "unmade", "labels": {"g": "h"}}}),
        ("namespaces.Get", {"name": "unmade"}),
        ("namespaces.Delete", {"name": "unmade"}),
        ("images.Create", image("held"), {"namespace": "other"}),
        ("namespaces.Delete", {"name": "other"}),
        ("images.Delete", {"name": "held", "sync": True}, {"namespace": "other"}),
        ("leases.Create", {"id": "l"}, {"namespace": "other"}),
        ("namespaces.Delete", {"name": "other"}),
        ("namespaces.Delete", {"name": "other"}),
        ("namespaces.Delete", {"name": ""}),
        ("leases.List", {}, {"namespace": "other"}),
        ("leases.Create", {"id": "l"}, {"namespace": "by-lease"}),
        ("namespaces.Get", {"name": "by-lease"}),
        ("namespaces.Delete", {"name": "by-lease"}),
    ],
    "containers": [
        ("containers.Create", container("one", labels={"a": "b"})),
        ("containers.Create", container("one")),
        (
            "containers.Create",
            container("two", labels={"dotted.name/x": "1", "empty": ""}, snapshotter="overlayfs", snapshotKey="k"),
        ),
        ("containers.Create", container("")),
        ("containers.Create", container("bad/id")),
        ("containers.Create", container(LONG)),
        ("containers.Create", {"container": {"id": "x", "spec": text("s")}}),
        ("containers.Create", {"container": {"id": "x", "runtime": RUNC}}),
        ("containers.Create", {"container": {"id": "x", "runtime": {"name": ""}, "spec": text("s")}}),
        ("containers.Create", container("x", snapshotKey="k")),
        ("containers.Create", container("x2", snapshotter="nosuch", snapshotKey="k")),
        ("containers.Create", container("x3", labels={"l": BIG})),
        ("containers.Create", container("x4", extensions={"": text("e")})),
        (
            "containers.Create",
            container(
                "x5", image="", runtime={**RUNC, "options": text("o")}, sandbox="box", extensions={"ext": text("e")}
            ),
        ),
        ("containers.Get", {"id": "one"}),
        ("containers.Get", {"id": "none"}),
        ("containers.Get", {"id": ""}),
        ("containers.Get", {"id": "one"}, {"namespace": "elsewhere"}),
        ("containers.List", {}),
        *[("containers.List", {"filters": [one]}) for one in FILTERS],
        ("containers.List", {"filters": ["id==one", "id==two"]}),
        ("containers.List", {"filters": ["id==one", "id=="]}),
        ("containers.ListStream", {}),
        ("containers.ListStream", {"filters": ["id==one", "labels.a==b"]}),
        ("containers.ListStream", {"filters": ["=="]}),
        ("containers.Update", {"container": {"id": "one", "labels": {"a": "c"}}, "updateMask": "labels.a"}),
        ("containers.Update", {"container": {"id": "one", "labels": {"a": "", "z": "y"}}, "updateMask": "labels.z"}),
        ("containers.Update", {"container": {"id": "one", "labels": {"a": ""}}, "updateMask": "labels.a"}),
        ("containers.Update", {"container": {"id": "one", "labels": {"n": "m"}}, "updateMask": "labels"}),
        ("containers.Update", {"container": {"id": "one", "spec": text("new")}, "updateMask": "spec"}),
        ("containers.Update", {"container": {"id": "one", "image": "new"}, "updateMask": "image"}),
        (
            "containers.Update",
            {"container": {"id": "one", "snapshotKey": "new", "snapshotter": "overlayfs"}, "updateMask": "snapshotKey"},
        ),
        ("containers.Update", {"container": {"id": "one", "snapshotter": "native"}, "updateMask": "snapshotter"}),
        (
            "containers.Update",
            {
                "container": {"id": "one", "snapshotKey": "new", "snapshotter": "overlayfs"},
                "updateMask": "snapshotter,snapshotKey",
            },
        ),
        ("containers.Update", {"container": {"id": "one", "runtime": {"name": "x"}}, "updateMask": "runtime"}),
        ("containers.Update", {"container": {"id": "one", "extensions": {"e": text("1")}}, "updateMask": "extensions"}),
        (
            "containers.Update",
            {"container": {"id": "one", "extensions": {"f": text("2")}}, "updateMask": "extensions.f"},
        ),
        ("containers.Update", {"container": {"id": "one", "extensions": {}}, "updateMask": "extensions.e"}),
        ("containers.Update", {"container": {"id": "one"}, "updateMask": "id"}),
        ("containers.Update", {"container": {"id": "one"}, "updateMask": "nosuch"}),
        ("containers.Update", {"container": {"id": "one"}, "updateMask": "createdAt"}),
        ("containers.Update", {"container": {"id": "one"}, "updateMask": "sandbox"}),
        ("containers.Get", {"id": "one"}),
        ("containers.Update", container("two", labels={"whole": "1"}, snapshotter="overlayfs", snapshotKey="n")),
        ("containers.Update", container("two", labels={"whole": "1"})),
        ("containers.Update", {"container": {"id": "two", "labels": {"whole": "1"}}}),
        ("containers.Update", container("two", runtime={"name": "other"}, snapshotter="overlayfs")),
        ("containers.Get", {"id": "two"}),
        ("containers.Update", {"container": {"id": "none"}}),
        ("containers.Update", {"container": {"id": ""}}),
        ("containers.Update", {"container": {"id": "none", "labels": {"a": "b"}}, "updateMask": "labels"}),
        ("containers.Update", {"container": {"id": "one", "labels": {"a": BIG}}, "updateMask": "labels"}),
        ("containers.Get", {"id": "one"}),
        ("containers.Delete", {"id": "one"}),
        ("containers.Delete", {"id": "one"}),
        ("containers.Delete", {"id": ""}),
        ("containers.List", {}),
    ],
    "images": [
        ("images.Create", image("one", labels={"a": "b"})),
        ("images.Create", image("one")),
        ("images.Create", image("two:latest", labels={"dotted.name/x": "1"})),
        ("images.Create", image("")),
        ("images.Create", {"image": {"name": "x"}}),
        ("images.Create", {"image": {"name": "x", "target": {"mediaType": OCI, "size": "1"}}}),
        ("images.Create", {"image": {"name": "x", "target": {"mediaType": OCI, "size": "1", "digest": "bad"}}}),
        ("images.Create", {"image": {"name": "x", "target": {"mediaType": OCI, "size": "1", "digest": "md5:00"}}}),
        ("images.Create", {"image": {"name": "x", "target": {"mediaType": OCI, "digest": NONE}}}),
        ("images.Create", {"image": {"name": "x", "target": {"mediaType": OCI, "digest": NONE, "size": "-1"}}}),
        ("images.Create", {"image": {"name": "x", "target": {"digest": NONE, "size": "1"}}}),
        ("images.Create", image("y", labels={"a": BIG})),
        ("images.Create", image("bad name with blanks/")),
        ("images.Create", {**image("dated"), "sourceDateEpoch": "1970-01-01T00:00:01Z"}),
        ("images.Get", {"name": "one"}),
        ("images.Get", {"name": "none"}),
        ("images.Get", {"name": ""}),
        ("images.Get", {"name": "one"}, {"namespace": "elsewhere"}),
        ("images.List", {}),
        ("images.List", {"filters": ["name==one"]}),
        ("images.List", {"filters": ["name~=two"]}),
        ("images.List", {"filters": [f"target.digest=={NONE}"]}),
        ("images.List", {"filters": [f"target.mediatype=={OCI}"]}),
        ("images.List", {"filters": [f'target.mediatype=="{OCI}"']}),
        ("images.List", {"filters": ["target.mediaType"]}),
        ("images.List", {"filters": ["target.digest~=sha256"]}),
        ("images.List", {"filters": ["target.size==7"]}),
        ("images.List", {"filters": ["target"]}),
        ("images.List", {"filters": ["labels.a"]}),
        ("images.List", {"filters": ["annotations.a"]}),
        ("images.List", {"filters": ["annotations.a", "name==one"]}),
        ("images.List", {"filters": ["name==one,"]}),
        ("images.Update", {**image("one", labels={"a": "c"}), "updateMask": "labels.a"}),
        ("images.Update", {**image("one", labels={"a": ""}), "updateMask": "labels.a"}),
        ("images.Update", {**image("one", labels={"n": "m"}), "updateMask": "labels"}),
        (
            "images.Update",
            {
                "image": {
                    "name": "one",
                    "target": {"mediaType": "x/y", "digest": NONE, "size": "9", "annotations": {"k": "v"}},
                },
                "updateMask": "target",
            },
        ),
        (
            "images.Update",
            {"image": {"name": "one", "target": {"annotations": {"k": "w"}}}, "updateMask": "annotations"},
        ),
        (
            "images.Update",
            {"image": {"name": "one", "target": {"annotations": {"l": "w"}}}, "updateMask": "annotations.l"},
        ),
        ("images.Update", {**image("one"), "updateMask": "name"}),
        ("images.Update", {**image("one"), "updateMask": "nosuch"}),
        ("images.Update", {**image("one"), "updateMask": "target.digest"}),
        ("images.Get", {"name": "one"}),
        ("images.Update", image("one", labels={"all": "new"})),
        ("images.Update", {"image": {"name": "one"}}),
        ("images.Update", {"image": {"name": "one"}, "updateMask": "target"}),
        ("images.Update", image("none")),
        ("images.Update", image("")),
        ("images.Update", {**image("one", labels={"a": BIG}), "updateMask": "labels"}),
        ("images.Update", {**image("one"), "sourceDateEpoch": "1970-01-01T00:00:01Z"}),
        ("images.Get", {"name": "one"}),
        ("images.Delete", {"name": "one", "target": {"digest": NONE}}),
        ("images.Delete", {"name": "one"}),
        ("images.Delete", {"name": ""}),
        ("images.Delete", {"name": "two:latest", "sync": True}),
        ("images.List", {}),
    ],
    "leases": [
        ("leases.Create", {"id": "one", "labels": {"a": "b"}}),
        ("leases.Create", {"id": "one"}),
        ("leases.Create", {"id": ""}),
        ("leases.Create", {"id": "odd id/with*signs"}),
        ("leases.Create", {"id": "big", "labels": {"a": BIG}}),
        ("leases.Create", {"id": "expires", "labels": {"containerd.io/gc.expire": "2200-01-01T00:00:00Z"}}),
        ("leases.Create", {"id": "never", "labels": {"containerd.io/gc.expire": "no time"}}),
        ("leases.List", {}),
        ("leases.List", {"filters": ["id==one"]}),
        ("leases.List", {"filters": ["labels.a==b"]}),
        ("leases.List", {"filters": ['labels."containerd.io/gc.expire"']}),
        ("leases.List", {"filters": ["id=="]}),
        ("leases.List", {"filters": ["createdat"]}),
        ("images.Create", image("held"), {"lease": "one"}),
        ("snapshots.Prepare", {"snapshotter": "overlayfs", "key": "held"}, {"lease": "one"}),
        ("content.Write", [{"action": "WRITE", "ref": "held", "data": b64(HELLO)}], {"lease": "one"}),
        ("content.Write", [{"action": "COMMIT", "ref": "done", "data": b64(WORLD)}], {"lease": "one"}),
        ("leases.ListResources", {"id": "one"}),
        ("leases.AddResource", {"id": "one", "resource": {"id": "held", "type": "snapshots/overlayfs"}}),
        ("leases.AddResource", {"id": "one", "resource": {"id": "absent", "type": "snapshots/native"}}),
        ("leases.AddResource", {"id": "one", "resource": {"id": "x", "type": "snapshots"}}),
        ("leases.AddResource", {"id": "one", "resource": {"id": "x", "type": "snapshots/a/b"}}),
        ("leases.AddResource", {"id": "one", "resource": {"id": "x", "type": "content"}}),
        ("leases.AddResource", {"id": "one", "resource": {"id": NONE, "type": "content"}}),
        ("leases.AddResource", {"id": "one", "resource": {"id": NONE, "type": "content/x"}}),
        ("leases.AddResource", {"id": "one", "resource": {"id": "r", "type": "ingests"}}),
        ("leases.AddResource", {"id": "one", "resource": {"id": "i", "type": "nosuch"}}),
        ("leases.AddResource", {"id": "one", "resource": {"id": "", "type": "content"}}),
        ("leases.AddResource", {"id": "one", "resource": {"id": "", "type": ""}}),
        ("leases.AddResource", {"id": "none", "resource": {"id": NONE, "type": "content"}}),
        ("leases.AddResource", {"id": "one"}),
        ("leases.ListResources", {"id": "one"}),
        ("leases.ListResources", {"id": "none"}),
        ("leases.ListResources", {"id": ""}),
        ("leases.DeleteResource", {"id": "one", "resource": {"id": "held", "type": "snapshots/overlayfs"}}),
        ("leases.DeleteResource", {"id": "one", "resource": {"id": "absent", "type": "content"}}),
        ("leases.DeleteResource", {"id": "one", "resource": {"id": NONE, "type": "content"}}),
        ("leases.DeleteResource", {"id": "one", "resource": {"id": "x", "type": "nosuch"}}),
        ("leases.DeleteResource", {"id": "none", "resource": {"id": NONE, "type": "content"}}),
        ("leases.ListResources", {"id": "one"}),
        ("leases.Delete", {"id": "one", "sync": True}),
        ("leases.Delete", {"id": "one"}),
        ("leases.Delete", {"id": ""}),
        ("content.Info", {"digest": sha(WORLD)}),
        ("content.Status", {"ref": "held"}),
        ("snapshots.Stat", {"snapshotter": "overlayfs", "key": "held"}),
        ("images.Get", {"name": "held"}),
        ("leases.List", {}),
    ],
    "content": [
        (
            "content.Write",
            [
                {"action": "WRITE", "ref": "a", "data": b64(HELLO)},
                {"action": "STAT", "ref": "a"},
                {"action": "WRITE", "ref": "a", "offset": str(len(HELLO)), "data": b64(WORLD)},
                {
                    "action": "COMMIT",
                    "ref": "a",
                    "total": str(len(HELLO + WORLD)),
                    "expected": sha(HELLO + WORLD),
                    "labels": {"k": "v"},
                },
            ],
        ),
        ("content.Info", {"digest": sha(HELLO + WORLD)}),
        ("content.Info", {"digest": NONE}),
        ("content.Info", {"digest": "bad"}),
        ("content.Info", {"digest": ""}),
        ("content.Info", {"digest": "sha256:00"}),
        ("content.Info", {"digest": sha(HELLO + WORLD)}, {"namespace": "elsewhere"}),
        ("content.Read", {"digest": sha(HELLO + WORLD)}),
        ("content.Read", {"digest": sha(HELLO + WORLD), "offset": "3"}),
        ("content.Read", {"digest": sha(HELLO + WORLD), "offset": "3", "size": "2"}),
        ("content.Read", {"digest": sha(HELLO + WORLD), "size": "2"}),
        ("content.Read", {"digest": sha(HELLO + WORLD), "offset": "3", "size": "2000"}),
        ("content.Read", {"digest": sha(HELLO + WORLD), "offset": str(len(HELLO + WORLD))}),
        ("content.Read", {"digest": sha(HELLO + WORLD), "offset": "1000"}),
        ("content.Read", {"digest": sha(HELLO + WORLD), "offset": "-1"}),
        ("content.Read", {"digest": sha(HELLO + WORLD), "size": "-1"}),
        ("content.Read", {"digest": NONE}),
        ("content.Read", {"digest": "bad"}),
        ("content.Read", {"digest": sha(HELLO + WORLD)}, {"namespace": "elsewhere"}),
        ("content.Write", [{"action": "STAT", "ref": "a2"}]),
        ("content.Status", {"ref": "a2"}),
        ("content.Status", {"ref": "none"}),
        ("content.Status", {"ref": ""}),
        ("content.Write", [{"action": "WRITE", "ref": "b", "total": "20", "data": b64(HELLO)}]),
        ("content.Status", {"ref": "b"}),
        ("content.Write", [{"action": "STAT", "ref": "b"}]),
        ("content.Write", [{"action": "WRITE", "ref": "b", "offset": "3", "data": b64(WORLD)}]),
        ("content.Write", [{"action": "WRITE", "ref": "b", "offset": "100", "data": b64(WORLD)}]),
        ("content.Write", [{"action": "COMMIT", "ref": "b", "offset": str(len(HELLO)), "data": b64(WORLD)}]),
        ("content.Status", {"ref": "b"}),
        (
            "content.Write",
            [{"action": "COMMIT", "ref": "b", "offset": str(len(HELLO + WORLD)), "total": "13", "expected": NONE}],
        ),
        ("content.Status", {"ref": "b"}),
        (
            "content.Write",
            [
                {
                    "action": "COMMIT",
                    "ref": "b",
                    "offset": str(len(HELLO + WORLD)),
                    "total": "13",
                    "expected": sha(HELLO + WORLD),
                }
            ],
        ),
        ("content.Status", {"ref": "b"}),
        ("content.Write", [{"action": "WRITE", "ref": "c", "expected": sha(HELLO + WORLD), "data": b64(HELLO)}]),
        ("content.Write", [{"action": "WRITE", "ref": "c", "data": b64(HELLO)}], {"namespace": "elsewhere"}),
        (
            "content.Write",
            [
                {"action": "WRITE", "ref": "d", "data": b64(HELLO)},
                {"action": "WRITE", "ref": "d", "data": b64(WORLD)},
                {"action": "COMMIT", "ref": "d", "offset": str(len(WORLD)), "total": "1"},
            ],
        ),
        ("content.Write", [{"action": "COMMIT", "ref": "d", "expected": "bad"}]),
        ("content.Write", [{"action": "WRITE"}]),
        ("content.Write", []),
        ("content.Write", [{"action": "WRITE", "ref": "e", "total": "-1", "data": b64(HELLO)}]),
        ("content.Write", [{"action": "WRITE", "ref": "e", "data": b64(HELLO)}, {"action": "STAT", "ref": "f"}]),
        ("content.Write", [{"action": 7, "ref": "e"}]),
        ("content.Write", [{"action": "COMMIT", "ref": "empty"}]),
        ("content.Write", [{"action": "COMMIT", "ref": "lab", "data": b64(b"lab"), "labels": {"x": BIG}}]),
        ("content.Status", {"ref": "lab"}),
        (
            "content.Write",
            [{"action": "COMMIT", "ref": "shared", "expected": sha(HELLO + WORLD), "total": "13"}],
            {"namespace": "elsewhere"},
        ),
        ("content.Write", [{"action": "COMMIT", "ref": "sh2", "data": b64(HELLO + WORLD)}]),
        ("content.ListStatuses", {}),
        ("content.ListStatuses", {"filters": ["ref==e"]}),
        ("content.ListStatuses", {"filters": ["ref~=^a"]}),
        ("content.ListStatuses", {"filters": ["ref=="]}),
        ("content.ListStatuses", {"filters": ["total==20"]}),
        ("content.Abort", {"ref": "e"}),
        ("content.Abort", {"ref": "e"}),
        ("content.Abort", {"ref": ""}),
        ("content.Update", {"info": {"digest": sha(HELLO + WORLD), "labels": {"n": "m"}}, "updateMask": "labels.n"}),
        ("content.Update", {"info": {"digest": sha(HELLO + WORLD), "labels": {"k": ""}}, "updateMask": "labels.k"}),
        ("content.Update", {"info": {"digest": sha(HELLO + WORLD), "labels": {"o": "p"}}, "updateMask": "labels"}),
        ("content.Update", {"info": {"digest": sha(HELLO + WORLD), "labels": {"q": "r"}}}),
        ("content.Update", {"info": {"digest": sha(HELLO + WORLD)}, "updateMask": "size"}),
        ("content.Update", {"info": {"digest": sha(HELLO + WORLD)}, "updateMask": "digest"}),
        ("content.Update", {"info": {"digest": sha(HELLO + WORLD), "labels": {"q": BIG}}}),
        ("content.Update", {"info": {"digest": NONE}}),
        ("content.Update", {"info": {"digest": "bad"}}),
        ("content.List", {}),
        ("content.List", {"filters": [f"digest=={sha(HELLO + WORLD)}"]}),
        ("content.List", {"filters": ["digest~=sha256"]}),
        ("content.List", {"filters": ["labels.q==r"]}),
        ("content.List", {"filters": ["labels.q"]}),
        ("content.List", {"filters": ["size==13"]}),
        ("content.List", {"filters": ["size=="]}),
        ("content.Delete", {"digest": sha(HELLO + WORLD)}),
        ("content.Delete", {"digest": sha(HELLO + WORLD)}),
        ("content.Delete", {"digest": "bad"}),
        ("content.Delete", {"digest": ""}),
        ("content.List", {"filters": ["labels.q"]}),
    ],
}

for _kind in ("overlayfs", "native"):
    _s = {"snapshotter": _kind}
    CASES[f"snapshots-{_kind}"] = [
        ("snapshots.Prepare", {**_s, "key": "a", "labels": {"l": "m", "containerd.io/snapshot/x": "y"}}),
        ("snapshots.Prepare", {**_s, "key": "a"}),
        ("snapshots.Prepare", {**_s, "key": ""}),
        ("snapshots.Prepare", {**_s, "key": "b", "parent": "a"}),
        ("snapshots.Prepare", {**_s, "key": "b", "parent": "none"}),
        ("snapshots.Prepare", {**_s, "key": "b", "labels": {"l": BIG}}),
        ("snapshots.View", {**_s, "key": "v", "parent": "none"}),
        ("snapshots.View", {**_s, "key": "v", "parent": "a"}),
        ("snapshots.Mounts", {**_s, "key": "a"}),
        ("snapshots.Mounts", {**_s, "key": "none"}),
        ("snapshots.Mounts", {**_s, "key": ""}),
        ("snapshots.Stat", {**_s, "key": "a"}),
        ("snapshots.Stat", {**_s, "key": "none"}),
        ("snapshots.Stat", {**_s, "key": ""}),
        ("snapshots.Stat", {"snapshotter": "nosuch", "key": "a"}),
        ("snapshots.Stat", {"key": "a"}),
        ("snapshots.Stat", {**_s, "key": "a"}, {"namespace": "elsewhere"}),
        ("snapshots.Commit", {**_s, "key": "a", "name": ""}),
        ("snapshots.Commit", {**_s, "key": "none", "name": "base"}),
        ("snapshots.Commit", {**_s, "key": "a", "name": "base", "labels": {"c": "d"}}),
        ("snapshots.Stat", {**_s, "key": "a"}),
        ("snapshots.Stat", {**_s, "key": "base"}),
        ("snapshots.Mounts", {**_s, "key": "base"}),
        ("snapshots.Commit", {**_s, "key": "base", "name": "again"}),
        ("snapshots.Prepare", {**_s, "key": "b", "parent": "base"}),
        ("snapshots.Commit", {**_s, "key": "b", "name": "base"}),
        ("snapshots.Commit", {**_s, "key": "b", "name": "two"}),
        ("snapshots.View", {**_s, "key": "v", "parent": "two"}),
        ("snapshots.View", {**_s, "key": "v1", "parent": "base"}),
        ("snapshots.View", {**_s, "key": "ve"}),
        ("snapshots.Commit", {**_s, "key": "v", "name": "three"}),
        ("snapshots.Mounts", {**_s, "key": "v"}),
        ("snapshots.Prepare", {**_s, "key": "c", "parent": "two"}),
        ("snapshots.Prepare", {**_s, "key": "t", "parent": "two", "labels": {"containerd.io/snapshot.ref": "two"}}),
        ("snapshots.Prepare", {**_s, "key": "t", "parent": "two", "labels": {"containerd.io/snapshot.ref": "later"}}),
        ("snapshots.Update", {**_s, "info": {"name": "base", "labels": {"e": "f"}}, "updateMask": "labels.e"}),
        ("snapshots.Update", {**_s, "info": {"name": "base", "labels": {"e": ""}}, "updateMask": "labels.e"}),
        ("snapshots.Update", {**_s, "info": {"name": "base", "labels": {"g": "h"}}, "updateMask": "labels"}),
        ("snapshots.Update", {**_s, "info": {"name": "base", "labels": {"i": "j"}}}),
        ("snapshots.Update", {**_s, "info": {"name": "base"}, "updateMask": "parent"}),
        ("snapshots.Update", {**_s, "info": {"name": "none"}}),
        ("snapshots.Update", {**_s, "info": {"name": ""}}),
        ("snapshots.Update", {**_s, "info": {"name": "base", "labels": {"i": BIG}}}),
        ("snapshots.Update", {"info": {"name": "base"}}),
        ("snapshots.List", _s),
        ("snapshots.List", {**_s, "filters": ["name==base"]}),
        ("snapshots.List", {**_s, "filters": ["parent==base"]}),
        ("snapshots.List", {**_s, "filters": ["kind==committed"]}),
        ("snapshots.List", {**_s, "filters": ["kind==view"]}),
        ("snapshots.List", {**_s, "filters": ["kind==Active"]}),
        ("snapshots.List", {**_s, "filters": ["labels.i==j"]}),
        ("snapshots.List", {**_s, "filters": ["parent"]}),
        ("snapshots.List", {**_s, "filters": ["name=="]}),
        ("snapshots.List", {"snapshotter": "nosuch"}),
        ("snapshots.List", {}),
        ("snapshots.Usage", {**_s, "key": "none"}),
        ("snapshots.Usage", {**_s, "key": ""}),
        ("snapshots.Remove", {**_s, "key": "base"}),
        ("snapshots.Remove", {**_s, "key": "none"}),
        ("snapshots.Remove", {**_s, "key": ""}),
        ("snapshots.Remove", {"snapshotter": "nosuch", "key": "base"}),
        *[("snapshots.Remove", {**_s, "key": key}) for key in ("t", "c", "v", "ve", "v1", "two", "base", "base")],
        ("snapshots.List", _s),
        ("snapshots.Cleanup", {}),
        ("snapshots.Cleanup", {"snapshotter": "nosuch"}),
    ]

_BOX = {"runtime": RUNC, "labels": {"a": "b"}}
_CONTROLLER = {"sandboxer": "shim"}  # which containerd 2 wants to be named; 1.7 has that one alone
CASES["sandboxes"] = [
    ("sandboxes.Create", {"sandbox": {"sandboxId": "one", **_BOX}}),
    ("sandboxes.Create", {"sandbox": {"sandboxId": "one", **_BOX}}),
    ("sandboxes.Create", {"sandbox": {"sandboxId": "two", **_BOX, "spec": text("s"), "extensions": {"e": text("x")}}}),
    ("sandboxes.Create", {"sandbox": {"sandboxId": "", **_BOX}}),
    ("sandboxes.Create", {"sandbox": {"sandboxId": "bad/id", **_BOX}}),
    ("sandboxes.Create", {"sandbox": {"sandboxId": "noruntime"}}),
    ("sandboxes.Create", {"sandbox": {"sandboxId": "big", "runtime": RUNC, "labels": {"a": BIG}}}),
    ("sandboxes.Create", {}),
    ("sandboxes.Get", {"sandboxId": "one"}),
    ("sandboxes.Get", {"sandboxId": "two"}),
    ("sandboxes.Get", {"sandboxId": "none"}),
    ("sandboxes.Get", {"sandboxId": ""}),
    ("sandboxes.Get", {"sandboxId": "one"}, {"namespace": "elsewhere"}),
    ("sandboxes.List", {}),
    ("sandboxes.List", {"filters": ["id==one"]}),
    ("sandboxes.List", {"filters": ["labels.a==b"]}),
    ("sandboxes.List", {"filters": ["id=="]}),
    ("sandboxes.Update", {"sandbox": {"sandboxId": "one", "runtime": {"name": "x"}}, "fields": ["runtime"]}),
    ("sandboxes.Update", {"sandbox": {"sandboxId": "one"}, "fields": ["nosuch"]}),
    ("sandboxes.Update", {"sandbox": {"sandboxId": "none"}, "fields": ["labels"]}),
    ("sandboxes.Update", {"sandbox": {"sandboxId": "one", **_BOX}}),
    ("sandboxes.Get", {"sandboxId": "one"}),
    ("sandboxes.Delete", {"sandboxId": "one"}),
    ("sandboxes.Delete", {"sandboxId": "one"}),
    ("sandboxes.Delete", {"sandboxId": ""}),
    # containerd 1.7 does not survive these.
    ("sandboxes.Update", {"sandbox": {"sandboxId": "two", "labels": {"c": "d"}}, "fields": ["labels.c"]}),
    ("sandboxes.Update", {"sandbox": {"sandboxId": "two", "labels": {"e": "f"}}, "fields": ["labels"]}),
    ("sandboxes.Update", {"sandbox": {"sandboxId": "two", "extensions": {"g": text("h")}}, "fields": ["extensions"]}),
    ("sandboxes.Update", {"sandbox": {"sandboxId": "two", "extensions": {"i": text("j")}}, "fields": ["extensions.i"]}),
    ("sandboxes.Update", {"sandbox": {"sandboxId": "two", "spec": text("n")}, "fields": ["spec"]}),
    ("controller.Create", {**_CONTROLLER, "sandboxId": "none"}),
    ("controller.Start", {**_CONTROLLER, "sandboxId": "none"}),
    ("controller.Stop", {**_CONTROLLER, "sandboxId": "none"}),
    ("controller.Wait", {**_CONTROLLER, "sandboxId": "none"}),
    ("controller.Shutdown", {**_CONTROLLER, "sandboxId": "none"}),
    ("controller.Status", {**_CONTROLLER, "sandboxId": "none"}),
    ("controller.Status", {**_CONTROLLER, "sandboxId": "two", "verbose": True}),
]

_TASK = {"containerId": "none"}
CASES["tasks"] = [
    ("tasks.List", {}),
    ("tasks.Create", _TASK),
    ("tasks.Create", {}),
    *[
        (f"tasks.{name}", _TASK)
        for name in (
            "Start",
            "Delete",
            "Get",
            "Kill",
            "Pause",
            "Resume",
            "ListPids",
            "Checkpoint",
            "Update",
            "Wait",
            "CloseIO",
            "ResizePty",
            "Exec",
            "DeleteProcess",
        )
    ],
    ("tasks.Metrics", {}),
    ("tasks.Metrics", {"filters": ["id==x"]}),
    ("tasks.Metrics", {"filters": ["id=="]}),
    ("containers.Create", container("still")),
    *[
        (f"tasks.{name}", {"containerId": "still"})
        for name in (
            "Start",
            "Delete",
            "Get",
            "Kill",
            "Pause",
            "Resume",
            "ListPids",
            "Checkpoint",
            "Update",
            "Wait",
            "CloseIO",
            "ResizePty",
            "Exec",
            "DeleteProcess",
        )
    ],
    ("tasks.Exec", {"containerId": "still", "execId": "bad/id"}),
    ("containers.Create", container("odd", runtime={"name": "io.containerd.nosuch.v2"})),
    ("tasks.Create", {"containerId": "odd"}),
    ("containers.Create", container("odder", runtime={"name": "nosuch"})),
    ("tasks.Create", {"containerId": "odder"}),
    (
        "tasks.Create",
        {
            "containerId": "still",
            "checkpoint": {
                "mediaType": "application/vnd.containerd.container.criu.checkpoint.criu.tar",
                "digest": NONE,
                "size": "3",
            },
        },
    ),
    ("tasks.Create", {"containerId": "still", "checkpoint": {"mediaType": OCI, "digest": NONE, "size": "3"}}),
    ("tasks.Get", {"containerId": "still"}),
]

CASES["rest"] = [
    ("introspection.Plugins", {"filters": ["type==io.containerd.nosuch.v1"]}),
    ("introspection.Plugins", {"filters": ["type=="]}),
    ("events.Publish", {"topic": "/own/topic", "event": text("x")}),
    ("events.Publish", {"topic": "", "event": text("x")}),
    ("events.Publish", {"topic": "no-slash", "event": text("x")}),
    ("events.Publish", {"topic": "/", "event": text("x")}),
    ("events.Publish", {"topic": "/bad//topic", "event": text("x")}),
    ("events.Publish", {"topic": "/bad topic", "event": text("x")}),
    ("events.Publish", {"topic": "/a/-b", "event": text("x")}),
    ("events.Publish", {"topic": "/no-event"}),
    (
        "events.Forward",
        {"envelope": {"topic": "/f", "namespace": "x", "timestamp": "2020-01-01T00:00:00Z", "event": text("x")}},
    ),
    ("events.Forward", {"envelope": {"topic": "/f", "namespace": "x", "event": text("x")}}),
    ("events.Forward", {"envelope": {"topic": "/f", "timestamp": "2020-01-01T00:00:00Z", "event": text("x")}}),
    ("events.Forward", {"envelope": {"topic": "f", "namespace": "x", "timestamp": "2020-01-01T00:00:00Z"}}),
    (
        "events.Forward",
        {"envelope": {"topic": "/f", "namespace": "bad/", "timestamp": "2020-01-01T00:00:00Z", "event": text("x")}},
    ),
    ("events.Forward", {}),
    ("events.Subscribe", {"filters": ["topic=="]}),
    ("events.Subscribe", {"filters": ["topic==/x", "x="]}),
    ("diff.Apply", {}),
    ("diff.Apply", {"diff": {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": NONE, "size": "1"}}),
    ("diff.Apply", {"diff": {"mediaType": "text/plain", "digest": NONE, "size": "1"}}),
    ("diff.Apply", {"diff": {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "bad", "size": "1"}}),
    ("diff.Diff", {"mediaType": "text/plain"}),
    ("diff.Diff", {"mediaType": "application/vnd.oci.image.layer.v1.tar+nosuch"}),
    ("transfer.Transfer", {}),
    ("transfer.Transfer", {"source": text("x"), "destination": text("y")}),
]


def play(client: Client, calls: list[Call], namespace: str) -> list[Answer]:
    answers = []
    # A collection, whoever asked for it, leaves alone what this case has made.
    client("leases.Create", {"id": "hold"}, namespace)
    held = "" if "leases" in namespace else "hold"
    for what, request, *options in calls:
        given = {"namespace": namespace, "lease": held, **(options[0] if options else {})}
        if given["namespace"] != namespace and "lease" not in (options[0] if options else {}):
            given["lease"] = ""
        if given["namespace"] == "elsewhere":
            given["namespace"] += namespace
        answer = client(what, request, **given)
        if answer.code == "UNAVAILABLE":
            client.restart()
        answers.append(answer)
    return answers


# (method, what containerd 1.7 answers): what 2 does, and ours.
BEFORE_2 = {("controller.Stop", "NOT_FOUND"): "OK"}  # one that is not there has stopped


def same(what: str, their: Answer, our: Answer) -> bool:
    if peers.ctr_version() < (2, 0) and (what, their.code) in BEFORE_2:
        return our.code == BEFORE_2[what, their.code]
    if their.code == "UNAVAILABLE":  # it crashed of the request: ours answers, and stays
        return our.code == "OK" or our.code in REFUSALS
    if their.code == "UNKNOWN":  # an error that containerd does not map: ours may say which
        return our.code in REFUSALS or our.code == "UNKNOWN"
    return (their.code, their.fields) == (our.code, our.fields)


def shown(answer: Answer, other: Answer) -> str:
    """An answer without what is the same in the other one."""
    fields = json.dumps(answer.fields) if answer.fields != other.fields else "(the same fields)"
    return f"{answer.code} {fields[:1500]} {answer.text[:200]}"


@pytest.mark.parametrize("case", CASES)
def test_the_same_answers(both: Both, case: str) -> None:
    calls = CASES[case]
    theirs, ours = (play(client, calls, f"c-{case}") for client in both)
    found = [
        f"{call[0]} {json.dumps(call[1])[:300]} {call[2:] or ''}\n    containerd: {shown(their, our)}\n"
        f"    ours:       {shown(our, their)}"
        for call, their, our in zip(calls, theirs, ours, strict=True)
        if not same(call[0], their, our)
    ]
    assert not found, f"{len(found)} of {len(calls)} calls differ\n" + "\n".join(found)


EVENTFUL: list[Call] = [
    ("namespaces.Create", {"namespace": {"name": "told", "labels": {"a": "b"}}}),
    ("namespaces.Update", {"namespace": {"name": "told", "labels": {"c": "d"}}, "updateMask": "labels.c"}),
    ("images.Create", image("one", labels={"a": "b"})),
    ("images.Update", image("one", labels={"c": "d"})),
    ("images.Delete", {"name": "one"}),
    ("containers.Create", container("one", runtime={**RUNC, "options": text("o")})),
    ("containers.Update", {"container": {"id": "one", "labels": {"e": "f"}}, "updateMask": "labels"}),
    ("containers.Delete", {"id": "one"}),
    ("snapshots.Prepare", {"snapshotter": "overlayfs", "key": "a"}),
    ("snapshots.Commit", {"snapshotter": "overlayfs", "key": "a", "name": "b"}),
    ("snapshots.View", {"snapshotter": "overlayfs", "key": "c", "parent": "b"}),
    ("snapshots.Remove", {"snapshotter": "overlayfs", "key": "c"}),
    ("snapshots.Remove", {"snapshotter": "overlayfs", "key": "b"}),
    ("content.Write", [{"action": "COMMIT", "ref": "r", "data": b64(HELLO)}]),
    ("content.Delete", {"digest": sha(HELLO)}),
    ("leases.Create", {"id": "silent"}),
    ("events.Publish", {"topic": "/own/topic", "event": text("x")}),
    ("events.Publish", {"topic": "/other", "event": text("x")}, {"namespace": "another"}),
    (
        "events.Forward",
        {
            "envelope": {
                "topic": "/forwarded",
                "namespace": "far",
                "timestamp": "2020-01-01T00:00:00Z",
                "event": text("y"),
            }
        },
    ),
    ("namespaces.Delete", {"name": "told"}),
    ("events.Publish", {"topic": "/end", "event": text("x")}),
]
SUBSCRIPTIONS = [
    [],
    ['topic=="/images/create"'],
    ["topic~=^/snapshot"],
    ["namespace==another"],
    ["event.name==one"],
    ["event.image==img"],
    ["event.runtime.name"],
    ['topic=="/own/topic",namespace==events', 'topic=="/forwarded"'],
    ["event.labels.a==b"],
    ["event.digest"],
    ["nosuch==x"],
    ["event.nosuch"],
    ["event"],
]


class Subscriber:
    """Reads Subscribe until the topic /end, which every subscription of this test lets through."""

    def __init__(self, client: Client, filters: list[str]) -> None:
        method = SERVICES["events"].methods_by_name["Subscribe"]
        wanted = [*filters, 'topic~="^/(mark|end)$"'] if filters else []
        self._stream = client.channel.unary_stream(
            f"/{SERVICES['events'].full_name}/Subscribe",
            request_serializer=class_of(method.input_type).SerializeToString,
            response_deserializer=class_of(method.output_type).FromString,
        )(class_of(method.input_type)(filters=wanted), timeout=CALL_LIMIT)
        self.envelopes: list[Any] = []
        self.marked = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        for envelope in self._stream:
            if envelope.topic == "/mark":
                self.marked.set()
                continue
            told = fields_of(decoded(envelope.event))
            self.envelopes.append((envelope.topic, envelope.namespace, envelope.event.type_url, told))
            if envelope.topic == "/end":
                self._stream.cancel()
                return

    def finish(self) -> list[Any]:
        self._thread.join(CALL_LIMIT)
        return self.envelopes


def test_the_same_events(both: Both) -> None:
    heard = []
    for client in both:
        subscribers = [Subscriber(client, filters) for filters in SUBSCRIPTIONS]

        def ready(client: Client = client, subscribers: list[Subscriber] = subscribers) -> bool:
            client("events.Publish", {"topic": "/mark", "event": text("x")}, namespace="events")
            return all(one.marked.wait(0.05) for one in subscribers)

        peers.wait_until(ready, "all are subscribed")
        play(client, EVENTFUL, "events")
        heard.append([one.finish() for one in subscribers])
    for filters, theirs, ours in zip(SUBSCRIPTIONS, *heard, strict=True):
        if peers.ctr_version() < (2, 0):  # it says nothing of new content
            ours = [one for one in ours if one[0] != "/content/create"]
        assert ours == theirs, filters
    assert len(heard[0][0]) > 15, "what the subscriber without filters heard"


def layer_of(entries: dict[str, bytes], compressed: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o640, 1_000_000
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0) if compressed else buffer.getvalue()


def test_layers_are_applied_and_compared_the_same(both: Both) -> None:
    """Apply tells the same diff id and size; what Diff makes has the same entries and labels."""
    answers = []
    for client in both:
        found: list[Any] = []
        parent = ""
        for number, (layer, kind) in enumerate(
            [
                (layer_of({"a/one": b"1" * 5000, "a/two": b"2", "gone": b"x"}, True), "+gzip"),
                (layer_of({"a/.wh.two": b"", ".wh.gone": b"", "b/.wh..wh..opq": b"", "b/c": b"3"}, False), ""),
            ]
        ):
            client("content.Write", [{"action": "COMMIT", "ref": f"l{number}", "data": b64(layer)}], "layers")
            key, name = f"active{number}", f"layer{number}"
            mounts = (
                client("snapshots.Prepare", {"snapshotter": "native", "key": key, "parent": parent}, "layers")
                .raw[0]
                .mounts
            )
            diff = {
                "mediaType": f"application/vnd.oci.image.layer.v1.tar{kind}",
                "digest": sha(layer),
                "size": str(len(layer)),
            }
            places = [json_format.MessageToDict(mount) for mount in mounts]
            found.append(client("diff.Apply", {"diff": diff, "mounts": places}, "layers")[:2])
            client("snapshots.Commit", {"snapshotter": "native", "key": key, "name": name}, "layers")
            parent = name
        below, above = (
            [
                json_format.MessageToDict(mount)
                for mount in client(
                    "snapshots.View", {"snapshotter": "native", "key": f"v{name}", "parent": name}, "layers"
                )
                .raw[0]
                .mounts
            ]
            for name in ("layer0", "layer1")
        )
        for kind in ("", "+gzip"):
            asked = {
                "left": below,
                "right": above,
                "mediaType": f"application/vnd.oci.image.layer.v1.tar{kind}",
                "labels": {"k": "v"},
                "ref": f"diff{kind}",
            }
            made = client("diff.Diff", asked, "layers")
            assert made.code == "OK", made
            digest = made.raw[0].diff.digest
            blob = b"".join(one.data for one in client("content.Read", {"digest": digest}, "layers").raw)
            plain = gzip.decompress(blob) if kind else blob
            with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
                found.append(
                    (
                        kind,
                        sorted(
                            (
                                one.name,
                                one.type,
                                one.mode,
                                one.size,
                                one.uid,
                                one.gid,
                                int(one.mtime) if one.size else 0,
                            )
                            for one in tar
                        ),
                    )
                )
            info = client("content.Info", {"digest": digest}, "layers").fields[0]["info"]
            assert info["labels"] == {"k": "v", **({"containerd.io/uncompressed": sha(plain)} if kind else {})}
            found.append(made.fields[0]["diff"]["mediaType"])
        answers.append(found)
    assert answers[1] == answers[0]


MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
NAME, REF = "io.containerd.image.name", "org.opencontainers.image.ref.name"


def image_files(seed: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A small image: the descriptor of its manifest, and its blobs by their names in a layout."""
    layer = layer_of({"seed": seed.encode()}, False)
    config = json.dumps(
        {
            "architecture": MACHINE,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [sha(layer)]},
        }
    ).encode()

    def described(kind: str, data: bytes) -> dict[str, Any]:
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": sha(data), "size": len(data)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": described("config.v1+json", config),
            "layers": [described("layer.v1.tar", layer)],
        }
    ).encode()
    blobs = {sha(data).replace("sha256:", "blobs/sha256/"): data for data in (layer, config, manifest)}
    return described("manifest.v1+json", manifest), blobs


def layout_archive(path: Path, *annotations: dict[str, str]) -> None:
    """An OCI layout of as many images, the first two of them the same one; its index is not as Go would write it."""
    files, manifests = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}, []
    for number, given in enumerate(annotations):
        descriptor, blobs = image_files(f"image {max(number, 1)}")
        files |= blobs
        manifests.append({**descriptor, **({"annotations": given} if given else {})})
    files["index.json"] = json.dumps({"manifests": manifests, "schemaVersion": 2}, indent=2).encode()
    path.write_bytes(layer_of(files, False))


def docker_archive(path: Path, *tags: list[str]) -> None:
    """What docker saved before it knew layouts."""
    files: dict[str, bytes] = {}
    table = []
    for number, given in enumerate(tags):
        _, blobs = image_files(f"docker {number}")
        layer, config, _ = blobs.values()
        files |= {f"{number}/layer.tar": layer, f"{number}.json": config}
        table.append({"Config": f"{number}.json", "RepoTags": given, "Layers": [f"{number}/layer.tar"]})
    files["manifest.json"] = json.dumps(table).encode()
    path.write_bytes(layer_of(files, False))


BASE = "registry.test/base"
IMPORTS: list[tuple[str, ...]] = [
    (),
    ("--index-name", "registry.test/index:1"),
    ("--index-name", "registry.test/index:1", "--digests"),
    ("--base-name", BASE),
    ("--base-name", BASE, "--digests"),
    ("--base-name", BASE, "--digests", "--skip-digest-for-named"),
    ("--base-name", BASE, "--index-name", "registry.test/index:1", "--all-platforms"),
    ("--base-name", "registry.test/ba"),
]


@pytest.mark.parametrize("options", IMPORTS, ids=lambda options: " ".join(options) or "plain")
def test_an_archive_has_the_same_images(both: Both, tmp_path: Path, options: tuple[str, ...]) -> None:
    """By the transfer service: names, targets with their annotations, and what keeps what."""
    layout_archive(tmp_path / "names.tar", {NAME: f"{BASE}:1"}, {NAME: f"{BASE}:2", REF: "2"}, {NAME: "other.test/x:1"})
    layout_archive(tmp_path / "tags.tar", {REF: "one"}, {REF: "two"}, {REF: f"{BASE}:three"}, {NAME: "bare"}, {})
    layout_archive(tmp_path / "bases.tar", {REF: f"{BASE}/below:1"}, {REF: "registry.test/basement:1"}, {REF: "o/x"})
    docker_archive(tmp_path / "docker.tar", [f"{BASE}:1", "short"], [])
    for name in ("names", "tags", "bases", "docker"):
        space = f"import-{name}-{IMPORTS.index(options)}"
        found = []
        for client in both:
            # (With --all-platforms containerd has no platform to unpack for, and refuses.)
            unpack = [] if name == "names" and "--all-platforms" not in options else ["--no-unpack"]
            file = str(tmp_path / f"{name}.tar")
            client.daemon("-n", space, "images", "import", "--local=false", *unpack, *options, file)
            images = client("images.List", {}, space).fields[0].get("images", [])
            kept = {}
            for digest in {one["target"]["digest"] for one in images}:
                kept[digest] = client("content.Info", {"digest": digest}, space).fields[0]["info"].get("labels")
            chains = client("snapshots.List", {"snapshotter": "overlayfs"}, space).fields
            found.append((sorted(images, key=lambda one: str(one["name"])), kept, chains))
            assert not client("leases.List", {}, space).fields[0]
        assert found[1] == found[0], (name, client.daemon("-n", space, "images", "ls"))


def test_health(both: Both) -> None:
    for service in ("", "containerd.services.images.v1.Images", "no.such.Service"):
        found = []
        for client in both:
            check = client.channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            try:
                found.append(check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_LIMIT).status)
            except grpc.RpcError as error:
                found.append(error.code())
        assert found[0] == found[1] or service.startswith("containerd.services"), service
    # containerd tells of itself as a whole only; ours of each service as well.
    assert found[1] == grpc.StatusCode.NOT_FOUND


COUNTED: list[Call] = [
    ("version.Version", {}),
    ("version.Version", {}),
    ("images.Get", {"name": "none"}),
    ("images.Create", image("one")),
    ("images.Create", image("one")),
    ("images.Create", image("")),
    ("namespaces.Delete", {"name": "counted"}),
    (
        "content.Write",
        [
            {"action": "WRITE", "ref": "a", "data": b64(HELLO)},
            {"action": "COMMIT", "ref": "a", "offset": str(len(HELLO))},
        ],
    ),
    ("content.Read", {"digest": sha(HELLO)}),
    ("content.List", {}),
    ("containers.ListStream", {}),
    ("tasks.Get", {"containerId": "none"}),
]


def test_the_same_metrics(both: Both) -> None:
    """Ours has every row about a method that both have, with the same labels; and the same calls count the same."""
    names = re.compile(r"grpc_server_\w+|containerd_gc_\w+")
    counts = re.compile(r"grpc_server_(started|handled|msg_received)_total")
    grown: list[dict[Any, float]] = []
    pages = []
    for client in both:
        client("leases.Create", {"id": "last"}, "counted")
        client("leases.Delete", {"id": "last", "sync": True}, "counted")
        before = metrics_of(client)
        play(client, COUNTED, "counted")

        def growth(client: Client = client, before: Rows = before) -> dict[Any, float]:
            """Once every call that has begun is counted as ended. Subscriptions of other tests may still be ending."""
            grown = {
                row: value - before.get(row, 0.0)
                for row, value in metrics_of(client).items()
                if counts.fullmatch(row[0])
                and ("grpc_method", "Subscribe") not in row[1]
                and value != before.get(row, 0.0)
            }
            started, handled = (
                sum(value for (name, _), value in grown.items() if name == f"grpc_server_{which}_total")
                for which in ("started", "handled")
            )
            return grown if started == handled else {}

        grown.append(peers.wait_until(growth, "the calls are counted"))
        pages.append({row for row in metrics_of(client) if names.fullmatch(row[0])})
    assert len(pages[0]) > 2500
    assert not pages[0] - pages[1]
    assert grown[1] == grown[0]
    assert any(("grpc_code", "AlreadyExists") in labels for _, labels in grown[0])
    builds = [labels for client in both for name, labels in metrics_of(client) if name == "containerd_build_info_total"]
    assert [{name for name, _ in labels} for labels in builds] == [{"revision", "version"}] * 2


def test_reflection(both: Both) -> None:
    """Every service that ours names can be read from it whole, by symbol and by file; Debian's has no reflection."""
    service = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

    def ask(client: Client, **request: str) -> Any:
        call = client.channel.stream_stream(
            f"/{service.full_name}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        (answer,) = call(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=CALL_LIMIT)
        return answer

    with pytest.raises(grpc.RpcError) as absent:
        ask(both.theirs, list_services="")
    assert absent.value.code() == grpc.StatusCode.UNIMPLEMENTED
    names = {one.name for one in ask(both.ours, list_services="").list_services_response.service}
    assert names >= {one.full_name for one in SERVICES.values()}
    for name in sorted(names):
        answer = ask(both.ours, file_containing_symbol=name).file_descriptor_response
        pool = descriptor_pool.DescriptorPool()
        files = {}
        for one in answer.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(one)
            files[file.name] = file

        def load(wanted: str, files: Any = files, pool: Any = pool, loaded: Any = None) -> None:
            for other in files[wanted].dependency:
                load(other)
            pool.Add(files[wanted])

        load(next(iter(files)))
        found = pool.FindServiceByName(name)
        for method in found.methods:
            assert method.input_type.full_name and method.output_type.full_name
            own = ask(both.ours, file_containing_symbol=method.input_type.full_name).file_descriptor_response
            assert own.file_descriptor_proto, method.full_name
        by_name = ask(both.ours, file_by_filename=next(iter(files))).file_descriptor_response
        assert list(by_name.file_descriptor_proto) == list(answer.file_descriptor_proto)
    assert ask(both.ours, file_containing_symbol="no.such").error_response.error_code == 5
