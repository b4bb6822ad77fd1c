# SPDX-License-Identifier: Apache-2.0
"""The same requests to the BuildKit of Debian's dockerd and to teu-buildkitd, over what `/grpc` of their engines gives.

A case is a list of calls, made one after another on both sides, those of LLBBridge within a build of their own. The
codes, fields, texts and typed details of their answers are compared; what may differ between two right builders is made
equal first: times, sizes, identifiers, digests of images.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import docker_words
import grpc
import pytest
from bothbuilders import Side, Tunnel, both_builders, marshalled
from conformance import class_of
from google.protobuf import json_format

from teu.api.buildkit import control_pb2, gateway_pb2
from teu.api.rpc import status_pb2

pytestmark = [pytest.mark.needs("docker", "dockerd", "systemd", "trixie", "fast"), pytest.mark.timeout(300)]

SERVICES = {
    "control": control_pb2.DESCRIPTOR.services_by_name["Control"],
    "bridge": gateway_pb2.DESCRIPTOR.services_by_name["LLBBridge"],
}
STREAMED = {"control.Prune", "control.Status", "control.ListenBuildHistory"}
OPAQUE = ("Definition", "FrontendInputs")
LIMIT = 60


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Reply(NamedTuple):
    code: str
    text: str
    fields: Any
    details: list[Any]


class Client:
    """Any method of one side's builder by its name."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.tunnel = Tunnel(side.socket, side.folder / "grpc.sock")
        self.channel = grpc.insecure_channel(self.tunnel.address, options=[("grpc.enable_retries", 0)])
        self.saved: dict[str, str] = {}
        self.build = ""

    def close(self) -> None:
        self.channel.close()
        self.tunnel.close()

    def _resolved(self, value: Any) -> Any:
        """With references to results that were kept."""
        if isinstance(value, dict):
            return {key: inner if key in OPAQUE else self._resolved(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._resolved(inner) for inner in value]
        if isinstance(value, str) and value.startswith("$"):
            return self.saved.get(value[1:], "was-not-made")
        return value

    def _message(self, kind: Any, given: dict[str, Any]) -> Any:
        fields = self._resolved(given)
        definition = fields.pop("Definition", None)
        inputs = fields.pop("FrontendInputs", None) or {}
        message = json_format.ParseDict(fields, kind())
        if definition is not None:
            message.Definition.CopyFrom(definition if not isinstance(definition, list) else marshalled(definition))
        for name, operations in inputs.items():
            message.FrontendInputs[name].CopyFrom(marshalled(operations))
        return message

    def __call__(
        self, what: str, given: dict[str, Any], save: str = "", build: str | None = None, limit: float = LIMIT
    ) -> Reply:
        service, _, name = what.partition(".")
        method = SERVICES[service].methods_by_name[name]
        kind = class_of(method.output_type)
        make = self.channel.unary_stream if what in STREAMED else self.channel.unary_unary
        call = make(
            f"/{SERVICES[service].full_name}/{name}",
            request_serializer=class_of(method.input_type).SerializeToString,
            response_deserializer=kind.FromString,
        )
        build = self.build if build is None else build
        metadata = [("buildkit-controlapi-buildid", build)] if build and service == "bridge" else []
        found: list[Any] = []
        try:
            result = call(self._message(class_of(method.input_type), given), metadata=metadata, timeout=limit)
            for one in result if what in STREAMED else [result]:
                found.append(one)
        except grpc.RpcError as error:
            return Reply(error.code().name, neutral(error.details() or ""), [], details_of(error))
        if save:
            self.saved[save] = found[0].result.ref.id or "no-reference"
        return Reply("OK", "", [fields_of(one) for one in found], [])


def neutral(text: str) -> str:
    # Where the peer has a tree meanwhile.
    text = re.sub(r"/var/lib/teu-peer-dockerd-\w+/(?:tmp/buildkit-mount\d+|overlay2/\w+/merged)", "", text)
    text = re.sub(r"\b(?:[0-9a-f-]{36}|[0-9a-z]{25})::[0-9a-z]{25}\b|\b[0-9a-z]{25}\b", "IDENT", text)
    text = re.sub(r"@sha256:[0-9a-f]{64}", "", text)
    return re.sub(r"\b\d+\.\d+ ?k?M?B\b", "SIZE", text)


def details_of(error: Any) -> list[Any]:
    """Typed details of an error, without the stacks of functions that a program in Go has."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            found = []
            for one in status_pb2.Status.FromString(value).details:
                name = one.type_url.rpartition("/")[2].removesuffix("+json")
                if name not in ("stack.Stack", "errdefs.Solve"):  # functions, and identifiers of what is kept
                    found.append(name)
            return sorted(found)
    return []


TIMES = {"createdAt", "lastUsedAt", "CreatedAt", "LastUsedAt", "modTime", "Size", "created", "UsageCount"}


def fields_of(message: Any) -> Any:
    if isinstance(message, gateway_pb2.PongResponse):
        return {}  # a test of its own
    if isinstance(message, control_pb2.ListWorkersResponse | control_pb2.InfoResponse):
        return {}
    fields = json_format.MessageToDict(message)
    for told in (fields, fields.get("Image", {})):
        told.pop("Digest", None)  # an image of docker's own store has none
    result = fields.get("result") or {}
    for key, value in (result.get("metadata") or {}).items():
        data = base64.b64decode(value)
        try:
            result["metadata"][key] = json.loads(data)
        except ValueError:
            result["metadata"][key] = data.decode(errors="replace")
    if "Config" in fields:
        fields["Config"] = json.loads(base64.b64decode(fields["Config"]))
    for ref in [result.get("ref"), *(result.get("refs") or {}).get("refs", {}).values()]:
        if ref:  # which graph a frontend makes is its own matter; what it gives is compared by reading it
            ref.clear()
    return _equal(fields)


def _equal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "ANY" if key in TIMES or key == "Digest" else _equal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_equal(inner) for inner in value]
    return neutral(value) if isinstance(value, str) else value


# ---- definitions -----------------------------------------------------------------------------------

Definition = list[dict[str, Any]]


def action(**given: Any) -> dict[str, Any]:
    return {"input": "-1", "secondaryInput": "-1", "output": "0", **given}


def mkfile(path: str, text: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "data": b64(text), "mode": 0o644, "timestamp": "1600000000000000000", **more}


def mkdir(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "mode": 0o755, "timestamp": "1600000000000000000", **more}


def files(*actions: dict[str, Any], inputs: list[Any] | None = None) -> dict[str, Any]:
    """An operation whose actions stand one on the other."""
    told, count = [], len(inputs or [])
    for number, one in enumerate(actions):
        before = {"input": str(count + number - 1)} if number else {"input": "0"} if count else {}
        last = number == len(actions) - 1
        told.append(action(**{**before, **one, "output": "0" if last else "-1"}))
    return {"file": {"actions": told}, **({"inputs": inputs} if inputs else {})}


def image(name: str = "docker.io/library/busybox:latest") -> dict[str, Any]:
    return {"source": {"identifier": f"docker-image://{name}"}, "platform": {"OS": "linux", "Architecture": "amd64"}}


def execute(*argv: str, mounts: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    root = {"input": "0", "dest": "/", "output": "0"}
    given = {"args": list(argv), "cwd": "/", "env": ["PATH=/bin"], **more.pop("meta", {})}
    return {"exec": {"meta": given, "mounts": mounts or [root], **more}, "inputs": [[0, 0]]}


TREE: Definition = [
    files(
        {"mkdir": mkdir("/tree")},
        {"mkfile": mkfile("/tree/file", "content of a file")},
        {"mkdir": mkdir("/tree/a/b", makeParents=True, mode=0o700)},
        {"mkfile": mkfile("/tree/a/owned", "x", mode=0o4750, owner={"user": {"byID": 7}, "group": {"byID": 8}})},
        {"mkfile": mkfile("/tree/with blank", "")},
        {"mkfile": mkfile("/other", "other")},
    )
]
RETURNED = {"allowResultReturn": True, "allowResultArrayRef": True}


def solve(definition: Any, **more: Any) -> dict[str, Any]:
    return {"Definition": definition, **RETURNED, **more}


def dockerfile(text: str, context: Definition | None = None, **options: str) -> dict[str, Any]:
    inputs = {"dockerfile": [files({"mkfile": mkfile("/Dockerfile", text)})], "context": context or TREE}
    return {"Frontend": "dockerfile.v0", "FrontendOpt": options, "FrontendInputs": inputs, **RETURNED}


def broken(*operations: dict[str, Any], end: bool = True, junk: bytes = b"") -> Any:
    made = marshalled(list(operations), end)
    if junk:
        getattr(made, "def").insert(0, junk)
    return made


def file_case(*actions: dict[str, Any]) -> tuple[Any, ...]:
    return ("bridge.Solve", solve([*TREE, files(*actions, inputs=[[0, 0]])], Evaluate=True), "made")


LISTED: list[tuple[Any, ...]] = [("bridge.ReadDir", {"Ref": "$made", "DirPath": "/"})]
DOCKERFILE = """# comment
ARG BASE=busybox
# about the first
FROM scratch AS first
ARG one=1
COPY tree/file /file
# about the second stage
FROM first AS second
# what two is
ARG two
ENV A=$two
LABEL l=${one}
RUN --mount=type=secret,id=s --mount=type=ssh --mount=type=cache,target=/c true
CMD ["x"]
"""
Call = tuple[Any, ...]  # (method, request) or (method, request, name that the result's reference is kept under)
CASES: dict[str, list[Call]] = {
    "reading": [
        ("bridge.Solve", solve(TREE), "tree"),
        ("bridge.Evaluate", {"Ref": "$tree"}),
        ("bridge.ReadFile", {"Ref": "$tree", "FilePath": "/tree/file"}),
        ("bridge.ReadFile", {"Ref": "$tree", "FilePath": "tree/file"}),
        ("bridge.ReadFile", {"Ref": "$tree", "FilePath": "tree/../tree/file"}),
        ("bridge.ReadFile", {"Ref": "$tree", "FilePath": "/tree/file", "Range": {"Offset": "3", "Length": "5"}}),
        ("bridge.ReadFile", {"Ref": "$tree", "FilePath": "/tree/file", "Range": {"Offset": "300", "Length": "5"}}),
        ("bridge.ReadFile", {"Ref": "$tree", "FilePath": "/tree/file", "Range": {"Length": "500"}}),
        ("bridge.ReadFile", {"Ref": "$tree", "FilePath": "/tree"}),
        ("bridge.ReadFile", {"Ref": "$tree", "FilePath": "/no/such"}),
        ("bridge.ReadFile", {"Ref": "$tree", "FilePath": ""}),
        ("bridge.ReadFile", {"Ref": "no-such-ref", "FilePath": "/x"}),
        ("bridge.ReadFile", {"Ref": "", "FilePath": "/x"}),
        ("bridge.ReadFile", {"Ref": "$tree", "FilePath": "/../../etc/shadow"}),
        ("bridge.ReadDir", {"Ref": "$tree", "DirPath": "/"}),
        ("bridge.ReadDir", {"Ref": "$tree", "DirPath": "/tree"}),
        ("bridge.ReadDir", {"Ref": "$tree", "DirPath": "/tree", "IncludePattern": "f*"}),
        ("bridge.ReadDir", {"Ref": "$tree", "DirPath": "/tree", "IncludePattern": "none"}),
        ("bridge.ReadDir", {"Ref": "$tree", "DirPath": "/tree", "IncludePattern": "["}),
        ("bridge.ReadDir", {"Ref": "$tree", "DirPath": "/tree/file"}),
        ("bridge.ReadDir", {"Ref": "$tree", "DirPath": "/none"}),
        ("bridge.ReadDir", {"Ref": "$tree", "DirPath": ""}),
        ("bridge.StatFile", {"Ref": "$tree", "Path": "/tree/a/owned"}),
        ("bridge.StatFile", {"Ref": "$tree", "Path": "/tree/a"}),
        ("bridge.StatFile", {"Ref": "$tree", "Path": "/none"}),
        ("bridge.StatFile", {"Ref": "no-such-ref", "Path": "/none"}),
        ("bridge.Evaluate", {"Ref": "no-such-ref"}),
        ("bridge.Evaluate", {"Ref": ""}),
    ],
    "wrong definitions": [
        ("bridge.Solve", solve(broken(*TREE, end=False))),
        ("bridge.Solve", solve(broken(*TREE, junk=b"\xff\xff"))),
        ("bridge.Solve", solve(broken({"inputs": [["sha256:" + "0" * 64, 0]]}, end=False))),
        ("bridge.Solve", solve([{"platform": {"OS": "linux"}}])),
        ("bridge.Solve", solve([{"source": {"identifier": "nonsense://x"}}], Evaluate=True)),
        ("bridge.Solve", solve([{"source": {"identifier": "no scheme"}}], Evaluate=True)),
        ("bridge.Solve", solve([{"source": {"identifier": "docker-image://UPPER"}}], Evaluate=True)),
        ("bridge.Solve", solve([{"source": {"identifier": "docker-image://"}}], Evaluate=True)),
        ("bridge.Solve", solve([{"file": {"actions": []}}], Evaluate=True)),
        ("bridge.Solve", solve([{"exec": {"mounts": [{"dest": "/", "input": "-1"}]}}], Evaluate=True)),
        ("bridge.Solve", solve([{"exec": {"meta": {"args": [], "cwd": "/"}}}], Evaluate=True)),
        ("bridge.Solve", solve([{"exec": {"meta": {"args": ["x"], "cwd": ""}}}], Evaluate=True)),
        ("bridge.Solve", solve([image(), execute("true", mounts=[{"input": "0", "dest": "/x"}])], Evaluate=True)),
        ("bridge.Solve", solve([image(), execute("true", mounts=[{"input": "5", "dest": "/"}])], Evaluate=True)),
        ("bridge.Solve", solve([files({"mkfile": mkfile("/x", "x"), "input": "7"})], Evaluate=True)),
        ("bridge.Solve", solve([{"merge": {"inputs": [{"input": "0"}]}, "inputs": []}], Evaluate=True)),
        ("bridge.Solve", {**RETURNED}),
        ("bridge.Solve", {"Frontend": "nonsense.v9", **RETURNED}),
        ("bridge.Solve", {"Frontend": "gateway.v0", **RETURNED}),
        ("bridge.Solve", {"Frontend": "dockerfile.v0", "Definition": TREE, **RETURNED}),
    ],
    "files": [
        file_case({"rm": {"path": "/other"}}),
        *LISTED,
        file_case({"rm": {"path": "/none"}}),
        file_case({"rm": {"path": "/none", "allowNotFound": True}}),
        *LISTED,
        file_case({"rm": {"path": "/tree/*", "allowWildcard": True}}),
        ("bridge.ReadDir", {"Ref": "$made", "DirPath": "/tree"}),
        file_case({"rm": {"path": "/"}}),
        file_case({"mkdir": mkdir("/none/below")}),
        file_case({"mkdir": mkdir("/tree")}),
        file_case({"mkdir": mkdir("/tree", makeParents=True)}),
        file_case({"mkdir": mkdir("/other")}),
        file_case({"mkfile": mkfile("/tree/file", "new")}),
        ("bridge.ReadFile", {"Ref": "$made", "FilePath": "/tree/file"}),
        file_case({"mkfile": mkfile("/tree", "over a folder")}),
        file_case({"mkfile": mkfile("/none/file", "x")}),
        file_case({"mkfile": mkfile("/../../up", "x")}),
        *LISTED,
        file_case({"mkfile": mkfile("/n", "x", owner={"user": {"byName": {"name": "x", "input": "0"}}})}),
        file_case({"copy": {"src": "/other", "dest": "/copied", "mode": -1}, "secondaryInput": "0"}),
        *LISTED,
        file_case({"copy": {"src": "/none", "dest": "/copied", "mode": -1}, "secondaryInput": "0"}),
        file_case(
            {"copy": {"src": "/tree", "dest": "/to/", "mode": -1, "createDestPath": True}, "secondaryInput": "0"}
        ),
        ("bridge.ReadDir", {"Ref": "$made", "DirPath": "/to"}),
        file_case({"copy": {"src": "/tree", "dest": "/none/to/", "mode": -1}, "secondaryInput": "0"}),
        file_case(
            {
                "copy": {"src": "/tree", "dest": "/flat", "mode": -1, "dirCopyContents": True, "createDestPath": True},
                "secondaryInput": "0",
            }
        ),
        ("bridge.ReadDir", {"Ref": "$made", "DirPath": "/flat"}),
        file_case({"copy": {"src": "/t*", "dest": "/w", "mode": -1, "allowWildcard": True}, "secondaryInput": "0"}),
        *LISTED,
        file_case({"copy": {"src": "/q*", "dest": "/w", "mode": -1, "allowWildcard": True}, "secondaryInput": "0"}),
        file_case(
            {
                "copy": {"src": "/q*", "dest": "/w", "mode": -1, "allowWildcard": True, "allowEmptyWildcard": True},
                "secondaryInput": "0",
            }
        ),
        file_case(
            {
                "copy": {
                    "src": "/tree",
                    "dest": "/some",
                    "mode": 0o600,
                    "createDestPath": True,
                    "include_patterns": ["**/owned"],
                    "exclude_patterns": ["with*"],
                    "owner": {"user": {"byID": 9}, "group": {"byID": 9}},
                },
                "secondaryInput": "0",
            }
        ),
        ("bridge.ReadDir", {"Ref": "$made", "DirPath": "/some"}),
        ("bridge.StatFile", {"Ref": "$made", "Path": "/some/a/owned"}),
    ],
    "steps": [
        ("bridge.Solve", solve([image(), execute("sh", "-c", "echo made >/made")], Evaluate=True), "made"),
        ("bridge.ReadFile", {"Ref": "$made", "FilePath": "/made"}),
        ("bridge.Solve", solve([image(), execute("sh", "-c", "exit 3")], Evaluate=True)),
        ("bridge.Solve", solve([image(), execute("sh", "-c", "exit 3")])),
        ("bridge.Solve", solve([image(), execute("nothing-of-this-name")], Evaluate=True)),
        ("bridge.Solve", solve([image(), execute("true", meta={"cwd": "/no/such"})], Evaluate=True)),
        ("bridge.Solve", solve([image(), execute("true", meta={"user": "nobody-knows"})], Evaluate=True)),
        ("bridge.Solve", solve([image(), execute("true", security="INSECURE")], Evaluate=True)),
        ("bridge.Solve", solve([image(), execute("true", network="HOST")], Evaluate=True)),
        (
            "bridge.Solve",
            solve(
                [
                    image(),
                    execute(
                        "cat",
                        "/run/s",
                        mounts=[
                            {"input": "0", "dest": "/", "output": "0"},
                            {
                                "input": "-1",
                                "dest": "/run/s",
                                "output": "-1",
                                "mountType": "SECRET",
                                "secretOpt": {"ID": "s"},
                            },
                        ],
                    ),
                ],
                Evaluate=True,
            ),
        ),
    ],
    "merge and diff": [
        (
            "bridge.Solve",
            solve(
                [
                    *TREE,
                    files({"mkfile": mkfile("/second", "2")}),
                    {"merge": {"inputs": [{"input": "0"}, {"input": "1"}]}, "inputs": [[0, 0], [1, 0]]},
                ],
                Evaluate=True,
            ),
            "made",
        ),
        *LISTED,
        (
            "bridge.Solve",
            solve(
                [
                    *TREE,
                    files({"mkfile": mkfile("/added", "2")}, {"rm": {"path": "/other"}}, inputs=[[0, 0]]),
                    {"diff": {"lower": {"input": "0"}, "upper": {"input": "1"}}, "inputs": [[0, 0], [1, 0]]},
                ],
                Evaluate=True,
            ),
            "made",
        ),
        *LISTED,
    ],
    "images": [
        ("bridge.ResolveImageConfig", {"Ref": "docker.io/library/busybox:latest", "ResolveMode": "local"}),
        ("bridge.ResolveImageConfig", {"Ref": "busybox", "ResolveMode": "default"}),
        ("bridge.ResolveImageConfig", {"Ref": "docker.io/library/configured:1", "ResolveMode": "local"}),
        ("bridge.ResolveImageConfig", {"Ref": "", "ResolveMode": "local"}),
        ("bridge.ResolveImageConfig", {"Ref": "UPPER/x", "ResolveMode": "local"}),
        ("bridge.ResolveImageConfig", {"Ref": "docker.io/library/busybox:latest", "ResolveMode": "nonsense"}),
        ("bridge.ResolveSourceMeta", {"Source": {"identifier": "docker-image://docker.io/library/busybox:latest"}}),
        ("bridge.ResolveSourceMeta", {"Source": {"identifier": "nonsense://x"}}),
        ("bridge.ResolveSourceMeta", {}),
    ],
    "dockerfiles": [
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY tree /t\nENV A=b\nCMD echo\n"), "made"),
        ("bridge.ReadDir", {"Ref": "$made", "DirPath": "/t"}),
        ("bridge.Solve", dockerfile(DOCKERFILE, requestid="frontend.outline")),
        ("bridge.Solve", dockerfile(DOCKERFILE, requestid="frontend.outline", target="first")),
        ("bridge.Solve", dockerfile(DOCKERFILE, requestid="frontend.targets")),
        ("bridge.Solve", dockerfile(DOCKERFILE, requestid="frontend.subrequests.describe")),
        ("bridge.Solve", dockerfile(DOCKERFILE, requestid="frontend.nonsense")),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY none /t\n")),
        ("bridge.Solve", {**dockerfile("FROM scratch\nCOPY none /t\n"), "Evaluate": True}),
        ("bridge.Solve", dockerfile("FRUM scratch\n")),
        ("bridge.Solve", dockerfile("FROM scratch\nENV A\n")),
        ("bridge.Solve", dockerfile("")),
        ("bridge.Solve", dockerfile("FROM scratch\nLABEL a=b\n", target="none")),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", platform="linux/amd64,linux/arm64")),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", platform="linux")),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", platform="nonsense/x/y/z")),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", filename="Other")),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", **{"shm-size": "x"})),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", **{"add-hosts": "x"})),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", ulimit="x")),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", **{"force-network-mode": "x"})),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", **{"image-resolve-mode": "x"})),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", **{"label:x": "y", "build-arg:A": "b"})),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", **{"build-arg:SOURCE_DATE_EPOCH": "x"})),
        ("bridge.Solve", dockerfile("FROM scratch\nCOPY other /\n", **{"no-cache": ""})),
    ],
    "containers": [
        ("bridge.Solve", solve([image()]), "image"),
        ("bridge.NewContainer", {"ContainerID": "c1", "Mounts": []}),
        ("bridge.NewContainer", {"ContainerID": "", "Mounts": [{"dest": "/", "resultID": "$image"}]}),
        ("bridge.NewContainer", {"ContainerID": "c2", "Mounts": [{"dest": "/", "resultID": "no-such-ref"}]}),
        ("bridge.ReleaseContainer", {"ContainerID": "never-made"}),
        ("bridge.ReadFileContainer", {"Ref": "never-made", "FilePath": "/x"}),
    ],
    "what else": [
        ("bridge.Inputs", {}),
        ("bridge.Ping", {}),
        ("bridge.Warn", {"digest": "sha256:" + "0" * 64, "level": "1", "short": b64("short"), "detail": [b64("d")]}),
        ("bridge.Warn", {"digest": "bad", "level": "1", "short": b64("short")}),
        ("control.Info", {}),
        ("control.ListWorkers", {}),
        ("control.ListWorkers", {"filter": ["id==none"]}),
        ("control.ListWorkers", {"filter": ["id=="]}),
        ("control.DiskUsage", {"filter": ["id==none"]}),
        ("control.DiskUsage", {"filter": ["==="]}),
        ("control.Prune", {"filter": ["id==none"]}),
        ("control.Prune", {"filter": ["==="]}),
        ("control.UpdateBuildHistory", {"Ref": "none", "Pinned": True}),
        ("control.UpdateBuildHistory", {"Ref": "none", "Delete": True}),
        ("control.ListenBuildHistory", {"Ref": "none", "EarlyExit": True}),
    ],
    "solving": [
        ("control.Solve", {"Ref": "r1", "Definition": TREE}),
        ("control.Solve", {"Ref": "r2", "Definition": [image(), execute("sh", "-c", "echo failing; exit 9")]}),
        ("control.Solve", {"Ref": "r3", "Frontend": "nonsense.v0"}),
        ("control.Solve", {"Ref": "r4", "Frontend": "dockerfile.v0", "Definition": TREE}),
        ("control.Solve", {"Ref": "r5", "Definition": TREE, "Exporters": [{"Type": "nonsense"}]}),
        ("control.Solve", {"Ref": "r6", "Definition": TREE, "Exporters": [{"Type": "local"}]}),
        ("control.Solve", {"Ref": "r7", "Definition": TREE, "Entitlements": ["nonsense"]}),
        ("control.Solve", {"Ref": "r8", "Definition": TREE, "Entitlements": ["security.insecure"]}),
        ("control.Solve", {"Ref": "r9", "Definition": TREE, "Cache": {"Exports": [{"Type": "nonsense"}]}}),
        ("control.Solve", {"Ref": "r10", "Definition": TREE, "Cache": {"Imports": [{"Type": "nonsense"}]}}),
        ("control.Solve", {"Ref": "r11", "Definition": [{"source": {"identifier": "local://x"}}]}),
        ("control.Solve", {"Ref": "r12", "Definition": broken(*TREE, junk=b"\xff\xff")}),
    ],
}

GIVEN = "ours reads a definition when it is given; the peer when somebody needs what it makes"
WORDS = "the same in other words"
# (case, number of the call) -> why the answers differ.
ON_PURPOSE: dict[tuple[str, int], str] = {
    **{("reading", number): WORDS for number in (18, 19, 20)},
    **{("wrong definitions", number): GIVEN for number in (0, 1, 2, 3, 5, 6, 7, 13, 14, 15)},
    ("wrong definitions", 4): "of which scheme a source is, is known before a step of it begins: no vertex has failed",
    ("files", 32): "0 is a time, which the peer's folders lose when files come into them",
    ("images", 1): "the peer takes no name without a tag",
    ("images", 3): WORDS,
    ("images", 4): "the peer fails before it asks a registry",
    ("images", 8): "the peer has its code in the text as well",
    ("dockerfiles", 23): "Go's words for what is no number",
    ("containers", 1): "a container without a root fails when it is made; the peer's when it runs",
    ("containers", 2): "a container has a name by which it can be released",
    ("containers", 5): "newer: files of containers",
    ("what else", 12): WORDS,
    ("what else", 13): "the peer tells of the lease that it has for a record",
    ("solving", 4): "ours tells which there are",
    ("solving", 5): "without a session there is nobody to wait for",
    ("solving", 11): WORDS,
}
# The same beside docker 28.
ON_PURPOSE_OF_28 = {
    ("reading", number): "the peer's words name all results that there are" for number in (11, 12, 25, 26, 27)
}
# What the BuildKit of docker 28 tells of an error, and that of 26 does not.
DETAILS_OF_28 = {"errdefs.Frontend"}
# Capabilities that ours does not have.
MISSING = {"cache.gha", "cache.s3", "cache.azblob"}  # stores of clouds


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Client]]:
    folder: Path = tmp_path_factory.mktemp("wire")
    with both_builders(folder / "clients") as both:
        made = [Client(side) for side in both]
        yield made
        for client in made:
            client.close()


OVER = {"error": {"code": 1, "message": "it is over"}}


class Build:
    """A build whose frontend is the test."""

    def __init__(self, client: Client, name: str) -> None:
        self.client, self.name = client, name
        self.reply: Reply | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.reply = self.client("control.Solve", {"Ref": self.name}, limit=200)

    def __enter__(self) -> None:
        self.client.build = self.name
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.client("bridge.Return", OVER)
        self.thread.join(LIMIT)
        self.client.build = ""


def play(client: Client, case: str) -> list[Reply]:
    client.saved.clear()
    with Build(client, f"build-of-{case.replace(' ', '-')}"):
        return [client(*call) for call in CASES[case]]


@pytest.mark.parametrize("case", CASES)
def test_the_same_answers(clients: list[Client], case: str) -> None:
    theirs, ours = (play(client, case) for client in clients)
    meant = ON_PURPOSE if docker_words.older() else {**ON_PURPOSE, **ON_PURPOSE_OF_28}
    found = []
    for number, (call, one, other) in enumerate(zip(CASES[case], theirs, ours)):
        if docker_words.older():
            other = other._replace(details=[detail for detail in other.details if detail not in DETAILS_OF_28])
        if (case, number) in meant:
            assert one != other, f"{case} {number} does not differ any more: strike it from the table"
            continue
        for member in Reply._fields:
            left, right = getattr(one, member), getattr(other, member)
            if member == "code" and left == "UNKNOWN" and right != "OK":
                continue  # newer versions of BuildKit, and ours, have a class for most of their errors
            if left != right:
                given = str({key: value for key, value in call[1].items() if key != "Definition"})
                found.append(f"{number} {call[0]} {given[:150]}\n  {member}\n    theirs: {left}\n    ours:   {right}")
    assert not found, "\n".join(found)


def test_a_build_ends_as_its_frontend_says(clients: list[Client]) -> None:
    """Return with an error, with a result, with a reference that there is none of; and calls outside of any build."""
    ends = []
    for client in clients:
        found: list[Any] = []
        for number, given in enumerate(
            (
                {"error": {"code": 3, "message": "as the frontend says"}},
                {"result": {"ref": {"id": "none"}}},
                {"result": {"metadata": {"a": b64("b")}}},
            )
        ):
            build = Build(client, f"end-{number}")
            client.build = build.name
            build.thread.start()
            found.append(client("bridge.Ping", {}).code)
            found.append(client("bridge.Return", given))
            if found[-1].code != "OK":
                client("bridge.Return", OVER)
            build.thread.join(LIMIT)
            assert build.reply is not None
            # The peer's has the code in its text as well.
            found.append(build.reply._replace(text=re.sub(r"^[A-Z][A-Za-z]+: ", "", build.reply.text)))
            client.build = ""
        found.append(client("bridge.Ping", {}))
        found.append(client("bridge.Ping", {}, build="no-such-build"))
        ends.append(found)
    for one, other in zip(*ends):
        if isinstance(one, Reply) and one.code == "UNKNOWN":
            other = other._replace(code="UNKNOWN" if other.code != "OK" else "OK")  # as above
        assert one == other


def test_workers_and_capabilities(clients: list[Client]) -> None:
    """Ours has what theirs has: labels that clients look at, platforms, capabilities."""
    told = []
    for client in clients:
        stub = client.channel.unary_unary(
            "/moby.buildkit.v1.Control/ListWorkers",
            request_serializer=control_pb2.ListWorkersRequest.SerializeToString,
            response_deserializer=control_pb2.ListWorkersResponse.FromString,
        )
        workers = stub(control_pb2.ListWorkersRequest(), timeout=LIMIT).record
        with Build(client, "capabilities"):
            ping = client.channel.unary_unary(
                "/moby.buildkit.v1.frontend.LLBBridge/Ping",
                request_serializer=gateway_pb2.PingRequest.SerializeToString,
                response_deserializer=gateway_pb2.PongResponse.FromString,
            )
            pong = ping(
                gateway_pb2.PingRequest(), metadata=[("buildkit-controlapi-buildid", "capabilities")], timeout=LIMIT
            )
        told.append((workers, pong))
    (theirs, their_pong), (ours, our_pong) = told
    assert len(ours) == len(theirs) == 1
    assert json_format.MessageToDict(ours[0].platforms[0]) == json_format.MessageToDict(theirs[0].platforms[0])
    for kind in ("FrontendAPICaps", "LLBCaps"):
        left = {cap.ID for cap in getattr(their_pong, kind) if cap.Enabled}
        right = {cap.ID for cap in getattr(our_pong, kind) if cap.Enabled}
        assert left - MISSING <= right, (kind, left - right)
