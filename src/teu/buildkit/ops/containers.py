# SPDX-License-Identifier: Apache-2.0
"""Containers that a frontend asks for: mounts as a step has them, in which any number of processes run.

Called by the control room, which carries the processes' streams and has looked at entitlements (CVE-2024-23653): what
comes here is allowed. The container is made with its first process, which says how it is confined; the others join it,
and end with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from teu.api.buildkit import gateway_pb2
from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Active, Mount, Snapshot
from teu.buildkit.ops.exec import Steps, limits
from teu.buildkit.ops.mounts import EMPTY, Preparing, Share, secret_variables
from teu.buildkit.worker import mounting, roots
from teu.buildkit.worker.executor import Box, Running, Wish
from teu.buildkit.worker.spec import Process
from teu.buildkit.worker.stdio import Output
from teu.oci import defaults


class _Waiting:
    """Until the container is given up."""

    def __init__(self, sessions: Sequence[str]) -> None:
        self.ended = threading.Event()
        self._sessions = list(sessions)

    def check(self) -> None:
        if self.ended.is_set():
            raise errors.Cancelled("context canceled")

    def wait(self, seconds: float) -> bool:
        return self.ended.wait(seconds)

    def waiting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sessions(self) -> list[str]:
        return self._sessions


class Containers:
    """Of all frontends."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def place(
        self,
        request: gateway_pb2.NewContainerRequest,
        snapshots: Sequence[Snapshot | None],
        sessions: Sequence[str],
    ) -> Place:
        """`snapshots`: what the request's mounts name, in their order; they are borrowed until this returns. Raises
        errors.Error."""
        return Place(self._steps, request, snapshots, sessions)


class Place:
    """One container. Methods may be called by any thread."""

    def __init__(
        self,
        steps: Steps,
        request: gateway_pb2.NewContainerRequest,
        snapshots: Sequence[Snapshot | None],
        sessions: Sequence[str],
    ) -> None:
        self._steps = steps
        self._request = request
        self._waiting = _Waiting(sessions)
        self._lock = threading.Lock()
        self._box: Box | None = None
        inputs: list[Snapshot | None] = []
        mounts: list[pb.Mount] = []
        for mount, snapshot in zip(request.Mounts, snapshots, strict=True):
            one = pb.Mount()
            one.CopyFrom(mount)
            one.input = EMPTY
            if snapshot is not None:
                one.input = len(inputs)
                inputs.append(snapshot)
            mounts.append(one)
        preparing = Preparing(
            steps.worker, steps.sessions, steps.caches, self._waiting, f"container {request.ContainerID}"
        )
        self._prepared = preparing.prepare(mounts, inputs)

    def start(self, init: gateway_pb2.InitMessage, out: Output, err: Output) -> Running:
        """Run what the message says. Raises errors.Error."""
        meta = init.Meta
        env = [*meta.env]
        if not any(entry.startswith("PATH=") for entry in env):
            env.append(f"PATH={defaults.PATH}")
        if init.Tty and not any(entry.startswith("TERM=") for entry in env):
            env.append("TERM=xterm")
        process = Process(
            args=tuple(meta.args),
            env=tuple(env),
            cwd=meta.cwd or "/",
            user=meta.user,
            terminal=init.Tty,
            secrets=tuple(secret_variables(self._steps.sessions, self._waiting.sessions(), init.secretenv)),
        )
        stdin = 0 in init.Fds
        with self._lock:
            self._waiting.check()
            if self._box is None:
                self._box = self._steps.executor.box(self._wish(init))
                return self._box.start(process, out, err, stdin=stdin)
            box = self._box
        return box.execute(process, out, err, stdin=stdin)

    def _wish(self, init: gateway_pb2.InitMessage) -> Wish:
        request, meta = self._request, init.Meta
        return Wish(
            root=self._prepared.root,
            mounts=self._prepared.mounts,
            readonly=self._prepared.readonly,
            network=request.Network,
            insecure=init.Security == pb.INSECURE,
            hostname=request.hostname,
            extra_hosts=[(host.Host, host.IP) for host in request.extraHosts],
            cgroup_parent=meta.cgroupParent,
            limits=limits(meta.ulimit),
            recursive=meta.removeMountStubsRecursive,
            name=f"frontend: {' '.join(meta.args)}",
        )

    @contextmanager
    def root(self, index: int) -> Iterator[int]:
        """One of the mounts as an open folder, to be read, as it is now. Raises NotFound."""
        trees = self._prepared.trees
        if not 0 <= index < len(trees):
            raise errors.NotFound(f"mount index {index} is out of bounds ({len(trees)} available)")
        if trees[index] is None:
            raise errors.NotFound(f"mountable {index} not found")
        with roots.opened(_seen(trees[index])) as root:
            yield root

    def release(self) -> None:
        """End what runs there, and give the mounts up. Twice is fine."""
        self._waiting.ended.set()
        box = self._box
        if box is not None:
            box.kill()  # also where its first process is just being started
        with self._lock:
            box = self._box
            if box is not None:
                box.release()
            self._prepared.release()


def _seen(tree: Active | Snapshot | Share) -> list[Mount]:
    """Mounts of a tree that somebody may be changing meanwhile."""
    return mounting.read_only((tree.active if isinstance(tree, Share) else tree).mounts())
