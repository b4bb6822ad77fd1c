# SPDX-License-Identifier: Apache-2.0
"""Errors of the builder on the wire: codes, words, and details in the form that BuildKit's clients read."""

from __future__ import annotations

import json

import grpc

from teu.api.buildkit import errdefs_pb2, gateway_pb2, ops_pb2, stack_pb2
from teu.api.rpc import status_pb2
from teu.buildkit.core import errors, identifiers


def example() -> errors.Error:
    info = ops_pb2.SourceInfo(filename="Dockerfile", data=b"FROM x\nRUN y\n", language="Dockerfile")
    ranges = [ops_pb2.Range(start=ops_pb2.Position(line=2), end=ops_pb2.Position(line=2, character=3))]
    error = errors.Error('process "/bin/sh -c y" did not complete successfully: exit code: 1')
    op = ops_pb2.Op(exec=ops_pb2.ExecOp(meta=ops_pb2.Meta(args=["y"])))
    error.at_solve(op, ["in"], ["mount"], file_action=3, description={"a": "b"})
    return error.at_vertex("sha256:1").at_vertex("sha256:outer").at_source(info, ranges).at_frontend("dockerfile.v0")


def test_details_are_json_under_the_names_of_typeurl() -> None:
    status = errors.to_status(example())
    assert status.code == 2 and status.message.endswith("exit code: 1")
    found = {detail.type_url: json.loads(detail.value) for detail in status.details}
    prefix = "github.com/moby/buildkit/errdefs."
    assert list(found) == [f"{prefix}{name}+json" for name in ("Frontend", "Source", "Vertex", "Solve")]
    assert found[f"{prefix}Vertex+json"] == {"digest": "sha256:1"}
    source = found[f"{prefix}Source+json"]
    assert source["info"] == {"filename": "Dockerfile", "data": "RlJPTSB4ClJVTiB5Cg==", "language": "Dockerfile"}
    assert source["ranges"] == [{"start": {"line": 2}, "end": {"line": 2, "character": 3}}]
    assert found[f"{prefix}Solve+json"]["inputIDs"] == ["in"]


def test_there_and_back() -> None:
    error = example()
    back = errors.from_status(errors.to_status(error))
    assert type(back) is errors.Error and back.message == error.message
    assert back.details == error.details


def test_every_code_has_its_class() -> None:
    for code in grpc.StatusCode:
        if code is grpc.StatusCode.OK:
            continue
        back = errors.from_status(status_pb2.Status(code=code.value[0], message="x"))
        assert back.code == code.value[0]
        assert errors.rpc_status(back)[:2] == (code, "x")
    assert errors.from_status(status_pb2.Status(code=77)).code == 2


def test_what_others_wrote() -> None:
    status = status_pb2.Status(code=5, message="no such job x")
    status.details.add(type_url="github.com/moby/buildkit/stack.Stack+json", value=b'{"pid":3,"frames":[{"Line":4}]}')
    status.details.add(type_url="github.com/moby/buildkit/errdefs.Source+json", value=b'{"info":null,"ranges":null}')
    status.details.add(type_url="github.com/moby/buildkit/errdefs.Vertex+json", value=b"{broken")
    status.details.add(type_url="github.com/moby/buildkit/errdefs.Vertex+json", value=b"[" * 100_000)
    status.details.add(type_url="type.googleapis.com/errdefs.Vertex", value=b"\n\x01x")
    status.details.add(type_url="example.org/other", value=b"x")
    back = errors.from_status(status)
    assert isinstance(back, errors.NotFound)
    assert back.details == [
        errdefs_pb2.Vertex(digest="x"),
        errdefs_pb2.Source(),
        stack_pb2.Stack(pid=3, frames=[stack_pb2.Frame(Line=4)]),
    ]


def test_numbers_are_numbers() -> None:
    error = errors.Error("x").with_detail(errdefs_pb2.CompatibilityFeature(version=20, feature="f"))
    assert json.loads(errors.to_status(error).details[0].value) == {"version": 20, "feature": "f"}


def test_errors_are_limited() -> None:
    big = errors.Error("x" * 1_000_000 + "end").at_source(ops_pb2.SourceInfo(data=bytes(2 << 20)), ())
    status = errors.to_status(big.at_frontend("f"))
    assert len(status.message) <= errors.MESSAGE_LIMIT + 3 and status.message.endswith("end")
    assert [detail.type_url.rpartition(".")[2] for detail in status.details] == ["Frontend+json"]
    assert errors.to_status(ValueError("no \udcff text")).message == "no \\udcff text"
    assert errors.to_status(ValueError()).message == "ValueError"


def test_identifiers() -> None:
    names = {identifiers.new_id() for _ in range(100)}
    assert len(names) == 100 and all(len(name) == 25 and name.isalnum() for name in names)
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert identifiers.digest_of(b"") == empty and identifiers.is_digest(empty)
    assert not identifiers.is_digest(empty + "\n") and not identifiers.is_digest("sha256:zz")


def test_an_exit_status_has_a_name_of_its_own() -> None:
    """Go's type is registered as gatewayapi.ExitMessage, whatever its package is."""
    status = errors.to_status(errors.Error("exit code: 3", [gateway_pb2.ExitMessage(Code=3)]))
    assert status.details[0].type_url == "github.com/moby/buildkit/gatewayapi.ExitMessage+json"
    assert json.loads(status.details[0].value) == {"Code": 3}
    assert errors.from_status(status).details == [gateway_pb2.ExitMessage(Code=3)]
