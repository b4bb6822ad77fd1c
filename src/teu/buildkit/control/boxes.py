# SPDX-License-Identifier: Apache-2.0
"""Frontends in containers on the worker's executor. Made by the daemon for programs."""

from __future__ import annotations

from contextlib import ExitStack

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.cache.store import INTERNAL
from teu.buildkit.control.containers import Output
from teu.buildkit.core.snapshots import Kind, Snapshot
from teu.buildkit.frontends.gateway import Program
from teu.buildkit.ops.exec import Steps
from teu.buildkit.worker.executor import Box, Running, Wish
from teu.buildkit.worker.mounts import Secret
from teu.buildkit.worker.spec import Process

DEFINITION = "/run/config/buildkit/metadata/frontend.bin"


class Boxes:
    """programs.Boxes."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def box(self, program: Program, root: Snapshot | None) -> FrontendBox:
        return FrontendBox(self._steps, program, root)


class FrontendBox:
    """The container of a frontend: the rights of a step, a root of its own upon the image."""

    def __init__(self, steps: Steps, program: Program, root: Snapshot | None) -> None:
        self._program = program
        self._undo = ExitStack()
        name = f"frontend {program.name}"
        try:
            active = steps.worker.active(root, Kind(INTERNAL, name))
            self._undo.callback(active.release)
            network = pb.UNSET if program.network else pb.NONE
            wish = Wish(root=active, mounts=[Secret(DEFINITION, program.definition)], network=network, name=name)
            self._box: Box = steps.executor.box(wish)
            self._undo.callback(self._box.release)
        except BaseException:
            self._undo.close()
            raise

    def run(self, out: Output, err: Output) -> Running:
        program = self._program
        return self._box.start(Process(program.args, program.env, program.directory), out, err, stdin=True)

    def kill(self) -> None:
        self._box.kill()

    def release(self) -> None:
        self._undo.close()
