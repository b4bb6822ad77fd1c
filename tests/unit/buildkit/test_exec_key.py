# SPDX-License-Identifier: Apache-2.0
"""What counts of a step, and what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.cache.contenthash import NotInTree
from teu.buildkit.core import errors
from teu.buildkit.core.op import CacheMap
from teu.buildkit.core.selection import Selection
from teu.buildkit.llb.load import Edge, Metadata, Vertex
from teu.buildkit.ops import exec as steps
from teu.buildkit.ops import keys
from teu.oci import digest as digests

NOBODY: Any = None


def step(**more: Any) -> pb.Op:
    op = pb.Op(platform=pb.Platform(OS="linux", Architecture="amd64"), inputs=[pb.Input(digest="a")])
    meta = {"args": ["/bin/sh", "-c", "echo <&> \u2028"], "cwd": "/", "env": ["A=b"], **more.pop("meta", {})}
    mounts = more.pop("mounts", [pb.Mount(dest="/", input=0, output=0)])
    op.exec.CopyFrom(pb.ExecOp(meta=pb.Meta(**meta), mounts=mounts, **more))
    return op


def operation(op: pb.Op, platforms: tuple[str, ...] = ("linux/amd64",)) -> steps.ExecOp:
    inputs = tuple(Edge(one.digest, one.index) for one in op.inputs)
    around: Any = SimpleNamespace(worker=SimpleNamespace(id="me", platforms=platforms))
    return steps.ExecOp(Vertex("sha256:x", op, inputs, "", Metadata(), "sha256:x"), around)


def key(op: pb.Op) -> CacheMap:
    return operation(op).cache_key(NOBODY)


def test_the_key_is_buildkits() -> None:
    """The JSON that its key is the digest of, as Go writes it."""
    text = (
        rb'{"Type":"buildkit.exec.v0","Exec":{"meta":{"args":["/bin/sh","-c","echo \u003c\u0026\u003e \u2028"],'
        rb'"env":["A=b"],"cwd":"/"}},"OS":"linux","Arch":"amd64"}'
    )
    assert key(step()).digest == digests.of(text)


def test_mounts_are_written_when_there_are_some() -> None:
    mounts = [
        pb.Mount(dest="/", input=0, output=0),
        pb.Mount(dest="/c", input=-1, output=-1, mountType=pb.CACHE, cacheOpt=pb.CacheOpt(ID="name", sharing=2)),
        pb.Mount(dest="/s", input=-1, output=-1, mountType=pb.SECRET, secretOpt=pb.SecretOpt(ID="x", mode=256)),
    ]
    op = step(mounts=mounts, network=pb.NONE)
    text = (
        rb'{"Type":"buildkit.exec.v0","Exec":{"meta":{"args":["/bin/sh","-c","echo \u003c\u0026\u003e \u2028"],'
        rb'"env":["A=b"],"cwd":"/"},"mounts":[{"dest":"/"},'
        rb'{"input":-1,"dest":"/c","output":-1,"mountType":3,"cacheOpt":{}},'
        rb'{"input":-1,"dest":"/s","output":-1,"mountType":1,"secretOpt":{"ID":"x","mode":256}}],"network":2},'
        rb'"OS":"linux","Arch":"amd64"}'
    )
    assert key(op).digest == digests.of(text)


CACHE = {"input": -1, "output": -1, "mountType": pb.CACHE}


def with_mount(**fields: Any) -> pb.Op:
    return step(mounts=[pb.Mount(dest="/", input=0, output=0), pb.Mount(**fields)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (step(), step(meta={"proxy_env": pb.ProxyEnv(http_proxy="http://user:word@proxy")})),
        (
            step(meta={"extraHosts": [pb.HostIP(Host="x", IP="10.0.0.1")]}),
            step(meta={"extraHosts": [pb.HostIP(Host="x", IP="10.0.0.2")]}),
        ),
        (with_mount(dest="/m", selector="/a", output=-1), with_mount(dest="/m", selector="/b", output=-1)),
        (
            with_mount(dest="/c", cacheOpt=pb.CacheOpt(ID="one"), **CACHE),
            with_mount(dest="/c", cacheOpt=pb.CacheOpt(ID="two", sharing=pb.LOCKED), **CACHE),
        ),
    ],
)
def test_what_does_not_count(one: pb.Op, other: pb.Op) -> None:
    assert key(one).digest == key(other).digest


@pytest.mark.parametrize(
    "change",
    [
        lambda op: op.exec.meta.env.append("C=d"),
        lambda op: setattr(op.exec, "security", pb.INSECURE),
        lambda op: setattr(op.exec, "network", pb.HOST),
        lambda op: setattr(op.exec.meta, "user", "www"),
        lambda op: setattr(op.platform, "Architecture", "arm64"),
        lambda op: op.exec.meta.validExitCodes.append(1),
        lambda op: op.exec.secretenv.add(ID="x", name="X"),
        lambda op: setattr(op.exec.mounts[0], "readonly", True),
        lambda op: op.exec.cdiDevices.add(name="vendor/x=y"),
    ],
)
def test_what_counts(change: Callable[[pb.Op], object]) -> None:
    op = step()
    change(op)
    assert key(op).digest != key(step()).digest


def test_the_mounts_that_count_by_content() -> None:
    op = pb.Op(inputs=[pb.Input(digest=letter) for letter in "abcdef"])
    op.exec.meta.args.append("x")
    for mount in (
        pb.Mount(dest="/", input=0, output=0),
        pb.Mount(dest="/read", input=1, output=1, readonly=True, selector="x/../y"),
        pb.Mount(dest="/lost", input=2, output=-1, selector="/one"),
        pb.Mount(dest="/lost2", input=2, output=-1, selector="/one/below"),
        pb.Mount(dest="/kept", input=3, output=2, selector="/part"),
        pb.Mount(dest="/whole", input=4, output=3),
        pb.Mount(dest="/off", input=5, output=-1, contentCache=pb.OFF),
    ):
        op.exec.mounts.append(mount)
    found = key(op).inputs
    assert [one.content is not None for one in found] == [False, True, True, False, True, False]
    assert found[0].selector == digests.of(b"/")
    assert found[1].selector == digests.of(b"/y")
    assert found[2].selector == digests.of(b"/one\0/one/below")
    asked: list[Selection] = []
    tree: Any = SimpleNamespace(id="t", checksum=lambda chosen: asked.extend(chosen) or "sha256:0")
    for one in found:
        if one.content is not None:
            assert one.content(NOBODY, tree) == "sha256:0"
    assert asked == [Selection("/y", follow=True), Selection("/one", follow=True), Selection()]


def test_content_that_there_is_not_is_named() -> None:
    def checksum(chosen: Any) -> str:
        raise NotInTree("/part")

    op = with_mount(dest="/m", input=0, output=-1, selector="/part", readonly=True)
    (content,) = [one.content for one in key(op).inputs if one.content is not None]
    tree: Any = SimpleNamespace(id="tree", checksum=checksum)
    with pytest.raises(errors.Error, match='^failed to calculate checksum of ref me::tree: "/part": not found$'):
        content(NOBODY, tree)


def test_content_that_could_hide_something_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument):
        key(with_mount(dest="/m", input=0, output=1, selector="/part", contentCache=pb.ON))
    with pytest.raises(errors.InvalidArgument):
        key(with_mount(dest="/m", input=7, output=1))


def test_json_leaves_out_what_is_empty() -> None:
    mount = pb.Mount(input=0, output=0, cacheOpt=pb.CacheOpt(), TmpfsOpt=pb.TmpfsOpt(size=5))
    assert json.loads(keys.text(keys.plain(mount))) == {"TmpfsOpt": {"size": 5}, "cacheOpt": {}}
    source = pb.SourceOp(identifier="x", attrs={"a": "b"})
    assert keys.plain(source) == {"identifier": "x", "attrs": {"a": "b"}}


def test_a_foreign_platform_is_said() -> None:
    op = step()
    op.platform.Architecture = "riscv64"
    with pytest.raises(errors.Error, match="no support for running processes with linux/riscv64 platform"):
        operation(op)._check_platform()
    operation(op, ("linux/amd64", "linux/riscv64"))._check_platform()
    op.platform.Architecture, op.platform.Variant = "arm", "v6"
    operation(op, ("linux/arm/v7",))._check_platform()
    op.platform.Architecture, op.platform.Variant = "amd64", "v3"
    with pytest.raises(errors.Error):
        operation(op)._check_platform()


def test_proxies_in_both_spellings() -> None:
    proxy = pb.ProxyEnv(http_proxy="h", no_proxy="n")
    assert steps.proxy_variables(proxy) == ["HTTP_PROXY=h", "http_proxy=h", "NO_PROXY=n", "no_proxy=n"]
