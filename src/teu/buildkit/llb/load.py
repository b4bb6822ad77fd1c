# SPDX-License-Identifier: Apache-2.0
"""Reading a `pb.Definition`: from a client's bytes to a graph of vertexes that the solver may trust.

A definition is a list of serialised operations; each is known by the sha256 of its bytes, and names its inputs by
theirs. The last one has no operation: its first input is the result that is wanted. Whatever is wrong with it is an
Invalid, in BuildKit's words, before anything runs. Nothing here recurses, so a deep graph costs no stack.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from teu.api.buildkit import ops_pb2
from teu.buildkit.core.identifiers import without_credentials
from teu.buildkit.llb import caps
from teu.buildkit.llb.devices import Devices, Missing, Refused, grant
from teu.oci import digest as digests

# More than any build has, less than what hurts: a definition comes from whoever may speak to the socket.
VERTEXES_MAX = 50_000
INPUTS_MAX = 10_000  # of one vertex
DEPTH_MAX = 10_000  # vertexes one upon the other
SIZE_MAX = 64 << 20  # bytes of all operations
NAME_MAX = 4096  # characters of a name that is made of other vertexes' names, each of which may be made so

ROOT_MOUNT = "/"
MOUNT_TYPES = (ops_pb2.BIND, ops_pb2.SECRET, ops_pb2.SSH, ops_pb2.CACHE, ops_pb2.TMPFS)
EMPTY = -1  # an input that is an empty tree

CUSTOM_NAME = "llb.customname"


class Invalid(ValueError):
    """The definition is not one that can be built; the text is for the client."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One output of a vertex: the vertex's digest and the output's number."""

    vertex: str
    index: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is said of a vertex beside its definition: it changes no digest and no cache key.

    `export_cache` is None where nobody said. `progress_group` and `linux_resources` are the messages, or None."""

    ignore_cache: bool = False
    description: Mapping[str, str] | None = None
    export_cache: bool | None = None
    caps: tuple[str, ...] = ()
    progress_group: Any = None
    linux_resources: Any = None


@dataclass(frozen=True, slots=True)
class Vertex:
    """An operation of the graph. `digest` is of what will run; `origin` is the digest that the client knows it by,
    another one where a source policy changed something below. `op` is the pb.Op, not to be changed."""

    digest: str
    op: Any
    inputs: tuple[Edge, ...]
    name: str
    metadata: Metadata
    origin: str

    @property
    def kind(self) -> str:
        """exec, source, file, build, merge, diff or passthrough."""
        return str(self.op.WhichOneof("op") or "")


@dataclass(frozen=True, slots=True)
class Graph:
    """What `root` needs, inputs before those that use them."""

    vertexes: dict[str, Vertex]
    root: Edge
    source: Any = None  # pb.Source: where in whose file the vertexes come from, by their `origin`


Policy = Callable[[Any], bool]  # is asked of each source operation, may change it: True then; raises where denied


NETWORK_HOST = "network.host"
SECURITY_INSECURE = "security.insecure"


class NotAllowed(Invalid):
    """A step needs an entitlement that the build was not given."""


def load(
    definition: Any,
    *,
    policy: Policy | None = None,
    platform: Any = None,
    entitlements: Collection[str] | None = None,
    devices: Devices | None = None,
) -> Graph:
    """The graph of a pb.Definition. Raises Invalid, caps.CapError, or what `policy` raises.

    `policy` is asked of every source, in the order of the definition; `platform` (pb.Platform) is given to operations
    that name none; `entitlements` are those that the build has, None for a definition that nothing will run of;
    `devices` are those of this machine. The definition itself is not changed."""
    ops, last = _parse(definition)
    changed = set()
    if policy is not None:
        changed = {digest for digest, op in ops.items() if op.WhichOneof("op") == "source" and policy(op)}
    if len(ops) < 2:
        raise Invalid(f"invalid LLB with {len(ops)} vertexes")
    if not ops[last].inputs:
        raise Invalid("invalid LLB with no inputs on last vertex")
    wanted = ops[last].inputs[0]
    order = _order(ops, wanted.digest)
    if entitlements is not None:
        # One device may have the name of another in another build: then it is another step.
        changed |= {
            digest
            for digest in order
            if ops[digest].exec.cdiDevices and _devices(ops[digest].exec, entitlements, devices)
        }
    renamed = _rename(ops, order, changed)
    root = Edge(renamed.get(wanted.digest, wanted.digest), wanted.index)
    vertexes: dict[str, Vertex] = {}
    for digest in order:
        op = ops[digest]
        metadata = _metadata(definition.metadata.get(digest) if digest in definition.metadata else None)
        _validate(op)
        caps.check(metadata.caps)
        if entitlements is not None and op.WhichOneof("op") == "exec":
            _entitled(op.exec, entitlements)
        name = (metadata.description or {}).get(CUSTOM_NAME) or _name(op, vertexes)
        key = renamed.get(digest, digest)
        inputs = tuple(Edge(one.digest, one.index) for one in op.inputs)
        if platform is not None and not op.HasField("platform"):
            op.platform.CopyFrom(platform)
        vertexes[key] = Vertex(key, op, inputs, name, metadata, digest)
    return Graph(vertexes, root, definition.Source if definition.HasField("Source") else None)


def _parse(definition: Any) -> tuple[dict[str, Any], str]:
    blobs: Sequence[bytes] = getattr(definition, "def")  # a word of Python's own
    if not blobs:
        raise Invalid("invalid empty definition")
    if len(blobs) > VERTEXES_MAX:
        raise Invalid(f"invalid LLB with {len(blobs)} vertexes: more than {VERTEXES_MAX}")
    size = sum(len(blob) for blob in blobs)
    if size > SIZE_MAX:
        raise Invalid(f"invalid LLB of {size} bytes: more than {SIZE_MAX}")
    ops: dict[str, Any] = {}
    last = ""
    for blob in blobs:
        op = ops_pb2.Op()
        try:
            op.ParseFromString(blob)
        except DecodeError as error:
            raise Invalid(f"failed to parse llb proto op: {error}") from None
        if len(op.inputs) > INPUTS_MAX:
            raise Invalid(f"invalid vertex with {len(op.inputs)} inputs: more than {INPUTS_MAX}")
        for number, one in enumerate(op.inputs):
            if one.index < 0:
                raise Invalid(f"invalid input {number} output index {one.index}")
        last = digests.of(blob)
        ops[last] = op
    return ops, last


def _order(ops: Mapping[str, Any], top: str) -> list[str]:
    """What `top` needs, inputs first. Raises Invalid for what is missing, loops, or stands too high."""
    depth: dict[str, int] = {}
    open_: set[str] = set()
    order: list[str] = []
    todo: list[tuple[str, bool]] = [(top, False)]
    while todo:
        digest, left = todo.pop()
        if left:
            open_.discard(digest)
            depth[digest] = 1 + max((depth[one.digest] for one in ops[digest].inputs), default=0)
            if depth[digest] > DEPTH_MAX:
                raise Invalid(f"invalid LLB: more than {DEPTH_MAX} vertexes one upon the other")
            order.append(digest)
            continue
        if digest in depth:
            continue
        if digest in open_:
            raise Invalid(f"invalid looping input digest {digest}")
        if digest not in ops:
            raise Invalid(f"invalid missing input digest {digest}")
        open_.add(digest)
        todo.append((digest, True))
        todo.extend((one.digest, False) for one in reversed(ops[digest].inputs) if one.digest not in depth)
    return order


def _rename(ops: Mapping[str, Any], order: Sequence[str], changed: set[str]) -> dict[str, str]:
    """The digests of operations that a policy changed, and of what stands on them: old to new. Their inputs are renamed
    in them. What is not changed keeps its digest, however its client serialised it."""
    renamed: dict[str, str] = {}
    for digest in order:
        op = ops[digest]
        if digest in changed or any(one.digest in renamed for one in op.inputs):
            for one in op.inputs:
                one.digest = renamed.get(one.digest, one.digest)
            renamed[digest] = digests.of(op.SerializeToString(deterministic=True))
    return renamed


def _metadata(told: Any) -> Metadata:
    if told is None:
        return Metadata()
    return Metadata(
        told.ignore_cache,
        dict(told.description),
        told.export_cache.Value if told.HasField("export_cache") else None,
        tuple(sorted(told.caps)),
        told.progress_group if told.HasField("progress_group") else None,
        told.linux_resources if told.HasField("linux_resources") else None,
    )


def _validate(op: Any) -> None:
    kind = op.WhichOneof("op")
    if kind is None:
        raise Invalid("invalid nil op")
    _CHECKS.get(kind, _anything)(op)


def _devices(step: Any, entitlements: Collection[str], devices: Devices | None) -> bool:
    try:
        return grant(step, entitlements, devices)
    except Refused as error:
        raise NotAllowed(str(error)) from None
    except Missing as error:
        raise Invalid(str(error)) from None


def _entitled(step: Any, entitlements: Collection[str]) -> None:
    for needed, entitlement in (
        (step.network == ops_pb2.HOST, NETWORK_HOST),
        (step.security == ops_pb2.INSECURE, SECURITY_INSECURE),
    ):
        if needed and entitlement not in entitlements:
            raise NotAllowed(f"{entitlement} is not allowed")


def _anything(op: Any) -> None:
    pass


def _source(op: Any) -> None:
    if "://" not in op.source.identifier:
        raise Invalid(f"invalid source identifier {op.source.identifier!r}")


def _exec(op: Any) -> None:
    if not op.exec.HasField("meta"):
        raise Invalid("invalid exec op with no meta")
    if not op.exec.meta.args:
        raise Invalid("invalid exec op with no args")
    if not op.exec.mounts:
        raise Invalid("invalid exec op with no mounts")
    if not any(mount.dest == ROOT_MOUNT for mount in op.exec.mounts):
        raise Invalid("invalid exec op with no rootfs")
    for mount in op.exec.mounts:
        if mount.input != EMPTY and not 0 <= mount.input < len(op.inputs):
            raise Invalid(f"missing input {mount.input}")
        if mount.output > len(op.exec.mounts):
            raise Invalid(f"invalid mount output index {mount.output}")
        if mount.mountType not in MOUNT_TYPES:
            raise Invalid(f"mount type {mount.mountType} is not known")


def _file(op: Any) -> None:
    if not op.file.actions:
        raise Invalid("invalid file op with no actions")
    # An input counts the vertex's inputs, then the actions before this one.
    for number, action in enumerate(op.file.actions):
        if action.WhichOneof("action") is None:
            raise Invalid(f"invalid nil action {number} of file op")
        for given in (action.input, action.secondaryInput):
            if given < EMPTY or given >= len(op.inputs) + number:
                raise Invalid(f"invalid input index {given} of file action {number}")
        if action.output > len(op.file.actions):
            raise Invalid(f"invalid output index {action.output} of file action {number}")


def _build(op: Any) -> None:
    for name, one in op.build.inputs.items():
        if not EMPTY <= one.input < len(op.inputs):
            raise Invalid(f"invalid input {name!r} of build op: {one.input}")


def _merge(op: Any) -> None:
    for one in op.merge.inputs:
        if not EMPTY <= one.input < len(op.inputs):
            raise Invalid(f"invalid merge input index {one.input}")


def _diff(op: Any) -> None:
    if not op.diff.HasField("lower") or not op.diff.HasField("upper"):
        raise Invalid("invalid diff op with nil lower or upper input")
    for given in (op.diff.lower.input, op.diff.upper.input):
        if not EMPTY <= given < len(op.inputs):
            raise Invalid(f"invalid diff input index {given}")


def _passthrough(op: Any) -> None:
    if not op.passthrough.id:
        raise Invalid("invalid passthrough op with no id")
    if not op.passthrough.outputs:
        raise Invalid("invalid passthrough op with no outputs")
    for given in op.passthrough.outputs:
        if given < 0 or (op.inputs and given >= len(op.inputs)):
            raise Invalid(f"invalid passthrough output input index {given}")


_CHECKS: dict[str, Callable[[Any], None]] = {
    "source": _source,
    "exec": _exec,
    "file": _file,
    "build": _build,
    "merge": _merge,
    "diff": _diff,
    "passthrough": _passthrough,
}


def _name(op: Any, below: Mapping[str, Vertex]) -> str:
    """What a client shows of a vertex that was given no name."""
    kind = op.WhichOneof("op")
    if kind == "source":
        return without_credentials(op.source.identifier)
    if kind == "exec":
        return " ".join(op.exec.meta.args)
    if kind == "file":
        return ", ".join(_action_name(action) for action in op.file.actions)
    if kind == "build":
        return "build"
    if kind == "merge":
        return _cut(f"merge ({', '.join(_some(below[one.digest].name for one in op.inputs))})")
    if kind == "diff":
        sides = [
            "scratch" if given == EMPTY else f"({below[op.inputs[given].digest].name})"
            for given in (op.diff.lower.input, op.diff.upper.input)
        ]
        return _cut(f"diff {sides[0]} -> {sides[1]}")
    return f"passthrough {op.passthrough.id}"


def _cut(name: str) -> str:
    return name if len(name) <= NAME_MAX else f"{name[:NAME_MAX]}…"


def _some(names: Iterable[str]) -> Iterator[str]:
    """As many as a name has room for, and one more."""
    size = 0
    for name in names:
        yield name
        size += len(name)
        if size > NAME_MAX:
            return


def _action_name(action: Any) -> str:
    kind = action.WhichOneof("action")
    one = getattr(action, kind)
    if kind == "symlink":
        return f"symlink {one.newpath} -> {one.oldpath}"
    if kind == "copy":
        return f"copy {one.src} {one.dest}"
    return f"{kind} {one.path}"
