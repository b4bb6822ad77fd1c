# SPDX-License-Identifier: Apache-2.0
"""LLB definitions: read, alone; and built by the builder, each in time, refused with words, with nothing left of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from fuzz import answers, definitions
from fuzz.frame import UNITS, Run, target

SLOW_SECONDS = 5
SOLVE_SECONDS = 60
SOCKET = "unix:/run/teu/buildkitd.sock"
NAME_MAX = 1 << 20
BUILDER = "teu-buildkitd.service"


@target("llb", "definitions of builds, changed in any field, through the builder's reader, alone")
def read(run: Run) -> None:
    from teu.buildkit.core.errors import Error
    from teu.buildkit.llb import caps, load

    while run.going():
        made = definitions.definition(run.random)
        begun = time.monotonic()
        run.tried()
        try:
            with _quiet():
                graph = load.load(made, entitlements=frozenset())
            if max(len(vertex.name) for vertex in graph.vertexes.values()) > NAME_MAX:
                run.finding("a name that is longer than what it is made of", str(made))
        except (Error, load.Invalid, caps.CapError):
            pass
        except Exception as error:
            run.finding(f"{type(error).__name__}: {error}"[:200], _shown(made))
        if time.monotonic() - begun > SLOW_SECONDS:
            run.finding("a definition took longer than it should", _shown(made))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """protobuf's C++ writes a line about each text that is none."""
    kept, nowhere = os.dup(2), os.open("/dev/null", os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _shown(made: Any) -> str:
    from teu.api.buildkit import ops_pb2 as pb

    lines = [str(made.metadata)]
    for data in getattr(made, "def"):
        try:
            lines.append(str(pb.Op.FromString(data)))
        except Exception:
            lines.append(repr(data))
    return f"{made.SerializeToString()!r}\n" + "\n".join(lines)


@target("llb-solve", "definitions of builds, changed in any field, to Control.Solve")
def solve(run: Run) -> None:
    import grpc
    import images

    from teu.api.buildkit import control_pb2, control_pb2_grpc

    images.need_busybox()
    channel = grpc.insecure_channel(SOCKET, options=[("grpc.enable_retries", 0)])
    control = control_pb2_grpc.ControlStub(channel)

    def clean() -> None:
        for _ in control.Prune(control_pb2.PruneRequest(all=True), timeout=300):
            pass

    def as_it_should_be(line: str) -> bool:
        # It leaves when idle.
        return f"{BUILDER} does not run" in line

    _warm(control)
    clean()
    with run.watched(clean=clean, units=(*UNITS, BUILDER), ignore=as_it_should_be):
        while run.going():
            made = definitions.definition(run.random)
            run.trying(_shown(made))
            begun = time.monotonic()
            try:
                request = control_pb2.SolveRequest(Ref=os.urandom(12).hex(), Definition=made, Internal=True)
                control.Solve(request, timeout=SOLVE_SECONDS)
            except grpc.RpcError as error:
                code, text = error.code(), error.details() or ""
                if code is grpc.StatusCode.UNAVAILABLE:
                    run.finding(f"the builder is gone: {text}"[:200], _shown(made))
                    time.sleep(1)
                elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    run.finding(f"no answer within {SOLVE_SECONDS} s", _shown(made))
                elif found := answers.PYTHON.search(text):
                    run.finding(
                        f"{code.name} in the words of the program itself ({found[0]}): {text}"[:300], _shown(made)
                    )
                elif len(text) > 64 << 10:
                    run.finding(f"an error of {len(text)} characters", _shown(made))
            if time.monotonic() - begun > SOLVE_SECONDS / 2:
                run.finding("a build took longer than it should", _shown(made))
    channel.close()


def _warm(control: Any) -> None:
    """What comes with the first step, and stays, is there: the bridge, its rules, the builder's slice."""
    import hashlib

    from teu.api.buildkit import control_pb2
    from teu.api.buildkit import ops_pb2 as pb

    made = pb.Definition()
    source = pb.Op(source=pb.SourceOp(identifier=definitions.IMAGE))
    step = pb.Op()
    step.exec.meta.args.append("true")
    step.exec.meta.cwd = "/"
    step.exec.mounts.add(input=0, dest="/", output=0)
    last = pb.Op()
    for op in (source, step, last):
        blobs = getattr(made, "def")
        if blobs:
            op.inputs.add(digest="sha256:" + hashlib.sha256(blobs[-1]).hexdigest())
        blobs.append(op.SerializeToString())
    control.Solve(control_pb2.SolveRequest(Ref=os.urandom(12).hex(), Definition=made), timeout=SOLVE_SECONDS)
