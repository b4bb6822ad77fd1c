# SPDX-License-Identifier: Apache-2.0
"""BuildOp: a definition that another operation wrote into a file, built as a part of this build."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from teu.api.buildkit import ops_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.op import CacheMap, Context, Dependency, Record, Ref
from teu.buildkit.core.snapshots import Worker, snapshot
from teu.buildkit.llb.caps import CapError
from teu.buildkit.llb.load import SIZE_MAX, Graph, Invalid, NotAllowed, Vertex, load
from teu.buildkit.ops import keys, results
from teu.buildkit.ops.roots import NODE, Root

CACHE_TYPE = "buildkit.build.v0"
LLB_BUILDER = -1
DEFINITION_INPUT = "buildkit.llb.definition"
FILENAME = "llbbuild.filename"
DEFAULT_FILENAME = "/buildkit.llb.definition"


Read = Callable[[Any, Context], Graph]


def harmless(definition: Any, context: Context) -> Graph:
    """A definition that asks for nothing beyond a step's usual rights. Raises Invalid."""
    return load(definition, entitlements=())


class BuildOp:
    """`read` makes a graph of the definition, as far as the builds that the operation is for may have it built."""

    def __init__(self, vertex: Vertex, worker: Worker, read: Read = harmless) -> None:
        self._vertex = vertex
        self._worker = worker
        self._read_definition = read

    def cache_key(self, context: Context) -> CacheMap:
        build = self._vertex.op.build
        return CacheMap(
            keys.of({"Type": CACHE_TYPE, "Exec": keys.plain(build)}), tuple(Dependency() for _ in self._vertex.inputs)
        )

    def load(self, context: Context, record: Record, output: int) -> Ref:
        return results.load(self._worker, record)

    def execute(self, context: Context, inputs: Sequence[Ref]) -> Sequence[Ref]:
        build = self._vertex.op.build
        if build.builder != LLB_BUILDER:
            raise errors.InvalidArgument("only LLB builder is currently allowed")
        if DEFINITION_INPUT not in build.inputs:
            raise errors.InvalidArgument(f"no llb definition input {DEFINITION_INPUT} found")
        number = build.inputs[DEFINITION_INPUT].input
        if not 0 <= number < len(inputs):
            raise errors.InvalidArgument(f"invalid index {number}")
        data = self._read(inputs[number], build.attrs.get(FILENAME) or DEFAULT_FILENAME)
        try:
            graph = self._read_definition(ops_pb2.Definition.FromString(data), context)
        except DecodeError:
            raise errors.InvalidArgument("failed to unmarshal the llb definition") from None
        except NotAllowed as error:
            raise errors.PermissionDenied(str(error)) from None
        except CapError as error:
            raise errors.Unimplemented(str(error)) from None
        except Invalid as error:
            raise errors.InvalidArgument(str(error)) from None
        return [context.solve(graph)]

    def _read(self, ref: Ref, name: str) -> bytes:
        """The file of a tree that nobody vouches for. Raises errors.Error."""
        tree = snapshot(ref)
        if tree is None:
            raise errors.NotFound(f"failed to open {name}: no such file or directory")
        with tree.mounted() as place, Root(place) as root:
            real = root.real(name)
            try:
                node = root.open(real, NODE)
            except OSError as error:
                words = os.strerror(error.errno or 0)
                raise errors.NotFound(f"failed to open {name}: {words[:1].lower()}{words[1:]}") from None
            try:
                if not stat.S_ISREG(os.fstat(node).st_mode):
                    raise errors.InvalidArgument(f"{name} is not a regular file")
                descriptor = os.open(f"/proc/self/fd/{node}", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(node)
            with open(descriptor, "rb") as file:
                data = file.read(SIZE_MAX + 1)
        if len(data) > SIZE_MAX:
            raise errors.ResourceExhausted(f"{name} is larger than {SIZE_MAX} bytes")
        return data
