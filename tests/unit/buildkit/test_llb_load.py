# SPDX-License-Identifier: Apache-2.0
"""Reading definitions: what is right becomes a graph, what is wrong is said in BuildKit's words."""

from __future__ import annotations

from typing import Any

import pytest

from teu.api.buildkit import ops_pb2
from teu.buildkit.llb import caps, load
from teu.oci import digest as digests


class Made:
    """A definition in the making."""

    def __init__(self) -> None:
        self.definition = ops_pb2.Definition()
        self._blobs = getattr(self.definition, "def")

    def add(self, op: Any, *inputs: str) -> str:
        for one in inputs:
            digest, _, index = one.partition("#")
            op.inputs.add(digest=digest, index=int(index or 0))
        blob = op.SerializeToString(deterministic=True)
        self._blobs.append(blob)
        return digests.of(blob)

    def source(self, name: str = "docker-image://docker.io/library/busybox:latest") -> str:
        return self.add(ops_pb2.Op(source=ops_pb2.SourceOp(identifier=name)))

    def run(self, *args: str, root: str) -> str:
        op = ops_pb2.Op()
        op.exec.meta.args.extend(args)
        op.exec.mounts.add(input=0, dest="/", output=0)
        return self.add(op, root)

    def end(self, root: str) -> Any:
        self.add(ops_pb2.Op(), root)
        return self.definition


def test_a_chain_is_read() -> None:
    made = Made()
    image = made.source()
    step = made.run("sh", "-c", "true", root=image)
    graph = load.load(made.end(step))
    assert graph.root == load.Edge(step, 0)
    assert list(graph.vertexes) == [image, step]
    assert graph.vertexes[step].inputs == (load.Edge(image, 0),)
    assert graph.vertexes[step].name == "sh -c true"
    assert graph.vertexes[image].kind == "source"


def test_what_the_result_does_not_need_is_left_out() -> None:
    made = Made()
    image = made.source()
    made.source("local://other")
    assert list(load.load(made.end(image)).vertexes) == [image]


def test_metadata_is_beside_the_digest() -> None:
    made = Made()
    image = made.source()
    told = made.definition.metadata[image]
    told.ignore_cache = True
    told.description["llb.customname"] = "[1/1] FROM busybox"
    told.export_cache.Value = False
    told.caps["source.image"] = True
    vertex = load.load(made.end(image)).vertexes[image]
    assert vertex.name == "[1/1] FROM busybox"
    assert vertex.metadata.ignore_cache and vertex.metadata.export_cache is False


@pytest.mark.parametrize(
    ("cap", "words"),
    [
        ("no.such", "unknown API capability no.such"),
        ("cache.s3", "requested experimental feature cache.s3  has been disabled on the build server"),
    ],
)
def test_missing_capabilities_are_named(cap: str, words: str) -> None:
    made = Made()
    image = made.source()
    made.definition.metadata[image].caps[cap] = True
    with pytest.raises(caps.CapError, match=words):
        load.load(made.end(image))


def test_capabilities_are_listed_by_name() -> None:
    told = caps.listing()
    assert [cap.ID for cap in told] == sorted(cap.ID for cap in told)
    assert {cap.ID for cap in told if cap.Enabled} >= {"file.base", "mergeop", "exec.mount.cache"}


def test_names_of_merges_do_not_double_with_each() -> None:
    """A definition of a few kilobytes is none of gigabytes."""
    made = Made()
    root = made.source()
    for number in range(200):
        op = ops_pb2.Op()
        if number % 2:
            op.diff.lower.input, op.diff.upper.input = 0, 1
        else:
            op.merge.inputs.add(input=0)
            op.merge.inputs.add(input=1)
        root = made.add(op, root, root)
    graph = load.load(made.end(root))
    assert max(len(vertex.name) for vertex in graph.vertexes.values()) <= load.NAME_MAX + 1


def exec_without(what: str) -> Any:
    op = ops_pb2.Op()
    if what != "meta":
        op.exec.meta.cwd = "/"
    if what not in ("meta", "args"):
        op.exec.meta.args.append("x")
    if what == "rootfs":
        op.exec.mounts.add(input=-1, dest="/mnt", output=-1)
    if what == "kind":
        op.exec.mounts.add(input=-1, dest="/", output=0, mountType=77)
    if what == "input":
        op.exec.mounts.add(input=3, dest="/", output=0)
    if not what:
        op.exec.mounts.add(input=-1, dest="/", output=7)
    op.exec.SetInParent()
    return op


def file_op(**given: int) -> Any:
    op = ops_pb2.Op()
    action = op.file.actions.add(input=given.get("input", -1), secondaryInput=given.get("second", -1), output=0)
    action.mkdir.path = "/x"
    return op


def diff_op(lower: int) -> Any:
    op = ops_pb2.Op()
    op.diff.lower.input = lower
    op.diff.upper.input = -1
    return op


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (ops_pb2.Op(), "invalid nil op"),
        (exec_without("meta"), "invalid exec op with no meta"),
        (exec_without("args"), "invalid exec op with no args"),
        (exec_without("mounts"), "invalid exec op with no mounts"),
        (exec_without("rootfs"), "invalid exec op with no rootfs"),
        (exec_without("input"), "missing input 3"),
        (exec_without(""), "invalid mount output index 7"),
        (exec_without("kind"), "mount type 77 is not known"),
        (ops_pb2.Op(file=ops_pb2.FileOp()), "invalid file op with no actions"),
        (file_op(input=1), "invalid input index 1 of file action 0"),
        (file_op(second=-2), "invalid input index -2 of file action 0"),
        (ops_pb2.Op(diff=ops_pb2.DiffOp()), "invalid diff op with nil lower or upper input"),
        (diff_op(4), "invalid diff input index 4"),
        (ops_pb2.Op(passthrough=ops_pb2.PassthroughOp()), "invalid passthrough op with no id"),
        (ops_pb2.Op(merge=ops_pb2.MergeOp(inputs=[ops_pb2.MergeInput(input=1)])), "invalid merge input index 1"),
        (ops_pb2.Op(source=ops_pb2.SourceOp(identifier="x")), "invalid source identifier 'x'"),
    ],
)
def test_wrong_operations_are_refused(op: Any, words: str) -> None:
    made = Made()
    with pytest.raises(load.Invalid, match=words):
        load.load(made.end(made.add(op)))


def test_wrong_graphs_are_refused() -> None:
    with pytest.raises(load.Invalid, match="invalid empty definition"):
        load.load(ops_pb2.Definition())
    made = Made()
    made.source()
    with pytest.raises(load.Invalid, match="invalid missing input digest sha256:0"):
        load.load(made.end("sha256:0"))
    made = Made()
    made.source()
    with pytest.raises(load.Invalid, match="invalid LLB with 1 vertexes"):
        load.load(made.definition)
    made = Made()
    made.source()
    made.source("local://x")
    with pytest.raises(load.Invalid, match="no inputs on last vertex"):
        load.load(made.definition)
    made = Made()
    getattr(made.definition, "def").append(b"\xff\xff")
    with pytest.raises(load.Invalid, match="failed to parse llb proto op"):
        load.load(made.definition)
    made = Made()
    with pytest.raises(load.Invalid, match="invalid input 0 output index -1"):
        load.load(made.end(made.source() + "#-1"))


def test_a_tower_of_vertexes_costs_no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made()
    top = made.source()
    for number in range(3000):
        top = made.run(str(number), root=top)
    assert len(load.load(made.end(top)).vertexes) == 3001
    monkeypatch.setattr(load, "DEPTH_MAX", 100)
    with pytest.raises(load.Invalid, match="more than 100 vertexes one upon the other"):
        load.load(made.definition)


def test_a_policy_renames_what_stands_on_the_changed_source() -> None:
    made = Made()
    image = made.source()
    step = made.run("true", root=image)
    definition = made.end(step)
    definition.metadata[step].description["llb.customname"] = "RUN true"

    def policy(op: Any) -> bool:
        op.source.identifier = "docker-image://docker.io/library/alpine:latest"
        return True

    graph = load.load(definition, policy=policy)
    again = Made()
    other = again.source("docker-image://docker.io/library/alpine:latest")
    expected = again.run("true", root=other)
    assert graph.root == load.Edge(expected, 0)
    vertex = graph.vertexes[expected]
    assert vertex.inputs == (load.Edge(other, 0),)
    assert vertex.origin == step and vertex.name == "RUN true"


@pytest.mark.parametrize("entitlement", [load.NETWORK_HOST, load.SECURITY_INSECURE])
def test_entitlements(entitlement: str) -> None:
    made = Made()
    image = made.source()
    op = ops_pb2.Op()
    op.exec.meta.args.append("true")
    op.exec.mounts.add(input=0, dest="/", output=0)
    if entitlement == load.NETWORK_HOST:
        op.exec.network = ops_pb2.HOST
    else:
        op.exec.security = ops_pb2.INSECURE
    definition = made.end(made.add(op, image))
    assert load.load(definition) and load.load(definition, entitlements=[entitlement])
    with pytest.raises(load.NotAllowed, match=f"{entitlement} is not allowed"):
        load.load(definition, entitlements=[])


class Devices:
    """A machine with three devices, of which builds may have one without asking."""

    def find(self, name: str) -> list[str]:
        kind, _, rest = name.partition("=")
        if kind != "a.b/c":
            raise ValueError(f'invalid device "{name}"')
        return {"": ["a.b/c=x"], "*": ["a.b/c=x", "a.b/c=y", "a.b/c=free"]}.get(
            rest, [name] if rest in ("x", "y", "free") else []
        )

    def may(self, name: str) -> bool:
        return name == "a.b/c=free"


def with_devices(*names: str, optional: bool = False) -> Any:
    made = Made()
    image = made.source()
    op = ops_pb2.Op()
    op.exec.meta.args.append("true")
    op.exec.mounts.add(input=0, dest="/", output=0)
    for name in names:
        op.exec.cdiDevices.add(name=name, optional=optional)
    return made.end(made.add(op, image))


def devices_of(definition: Any, *entitlements: str) -> list[str]:
    graph = load.load(definition, entitlements=entitlements, devices=Devices())
    return [one.name for one in graph.vertexes[graph.root.vertex].op.exec.cdiDevices]


def test_devices_that_a_build_may_have() -> None:
    assert devices_of(with_devices("a.b/c"), "device") == ["a.b/c=x"]
    assert devices_of(with_devices("a.b/c=*", "a.b/c=y"), "device") == ["a.b/c=x", "a.b/c=y", "a.b/c=free"]
    assert devices_of(with_devices("a.b/c=y"), "device=a.b/c=y") == ["a.b/c=y"]
    assert devices_of(with_devices("a.b/c"), "device=a.b/c=x", "device=a.b/c=y") == ["a.b/c=x"]
    assert devices_of(with_devices("a.b/c=free")) == ["a.b/c=free"]
    assert devices_of(with_devices("a.b/c=none", optional=True)) == []
    # A name of the build's own for a device.
    aliased = "device=a.b/c=y,alias=a.b/c=x"
    assert devices_of(with_devices("a.b/c=x"), aliased) == ["a.b/c=y"]
    assert load.load(with_devices("a.b/c=x"), devices=Devices()), "nothing runs of it"


@pytest.mark.parametrize(
    ("names", "entitlements", "words"),
    [
        (("a.b/c=x",), (), "device a.b/c=x is requested by the build but not allowed"),
        (("a.b/c=*",), ("device=a.b/c=x",), "device a.b/c=y is requested"),
        (("a.b/c=*",), (), "devices a.b/c=x, a.b/c=y are requested by the build but not allowed"),
        (("a.b/c=x",), ("network.host", "devices", "device-x"), "not allowed"),
    ],
)
def test_devices_that_a_build_may_not_have(names: Any, entitlements: Any, words: str) -> None:
    for optional in (False, True):
        with pytest.raises(load.NotAllowed, match=words):
            devices_of(with_devices(*names, optional=optional), *entitlements)


@pytest.mark.parametrize("name", ["a.b/c=none", "x", ""])
def test_devices_that_there_are_not(name: str) -> None:
    with pytest.raises(load.Invalid, match="is not registered|invalid device"):
        devices_of(with_devices(name), "device")
    with pytest.raises(load.Invalid, match="is not registered"):
        load.load(with_devices(name), entitlements=["device"])


def test_a_step_with_another_device_is_another_step() -> None:
    """Two builds that mean other devices by one name do not share a step."""
    definition = with_devices("a.b/c=x")
    roots = {
        load.load(definition, entitlements=[one], devices=Devices()).root.vertex
        for one in ("device", "device=a.b/c=y,alias=a.b/c=x", "device=a.b/c=free,alias=a.b/c=x")
    }
    assert len(roots) == 3


def test_names_without_a_name() -> None:
    made = Made()
    one, two = made.source(), made.source("local://context")
    merge = ops_pb2.Op()
    merge.merge.inputs.add(input=0)
    merge.merge.inputs.add(input=1)
    top = made.add(merge, one, two)
    op = ops_pb2.Op()
    op.diff.lower.input = -1
    op.diff.upper.input = 0
    top = made.add(op, top)
    graph = load.load(made.end(top))
    assert graph.vertexes[top].name == (
        "diff scratch -> (merge (docker-image://docker.io/library/busybox:latest, local://context))"
    )
