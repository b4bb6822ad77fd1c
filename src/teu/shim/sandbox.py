# SPDX-License-Identifier: Apache-2.0
"""containerd.runtime.sandbox.v1.Sandbox: a shim that is kept for a group of containers before there are any.

A sandbox here is the shim itself, and has no process of its own; its containers come by the task API.  It
lasts from CreateSandbox to StopSandbox, also while it is empty, in a scope of its own from the start.
"""

from __future__ import annotations

import os
import time

from teu.shim import placement
from teu.shim.loop import Future
from teu.ttrpc import messages as m
from teu.ttrpc.status import FAILED_PRECONDITION, NOT_FOUND, UNKNOWN, StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from teu.shim.loop import Coroutine, Loop

OPTIONS_TYPE = "containerd.runc.v1.Options"
READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"
# machine names of uname(2) as Go and so the OCI call them
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64"}


class Sandbox:
    """The sandbox of one shim, if it is asked to be one."""

    def __init__(self, loop: Loop, place: placement.Placement, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._placement = place
        self._log = log
        self.id = ""
        self._created_at = 0
        self._started = False
        self._stopped_at = 0
        self._waiters: dict[Future, None] = {}
        # called when the sandbox has been stopped
        self.on_stopped: Callable[[], None] = lambda: None

    @property
    def lives(self) -> bool:
        """Whether the shim is to stay without containers."""
        return bool(self.id) and not self._stopped_at

    def _check(self, request: dict[str, Any]) -> None:
        if not self.id or request["sandbox_id"] != self.id:
            raise StatusError(NOT_FOUND, f"sandbox {request['sandbox_id']} not found")

    def create_sandbox(self, request: dict[str, Any]) -> Coroutine:
        if self.id:
            raise StatusError(FAILED_PRECONDITION, f"this shim keeps the sandbox {self.id}")
        try:
            options = m.decode_options(OPTIONS_TYPE, request["options"])
        except ValueError:
            options = {}  # options of another kind, none of which is about the shim
        self.id = request["sandbox_id"]
        self._created_at = time.time_ns()
        shim, bundle, chosen = os.getpid(), request["bundle_path"], options.get("shim_cgroup", "")
        try:
            place = yield from self._loop.in_fork(lambda: self._place_in_fork(shim, bundle, chosen))
            self._placement.restore(place)
        except (OSError, RuntimeError) as error:
            if chosen:
                self.id = ""
                raise StatusError(UNKNOWN, f"the shim of sandbox {request['sandbox_id']}: {error}") from error
            self._log(f"no scope of its own for sandbox {self.id}: {error}")
        return {}

    def _place_in_fork(self, shim: int, bundle: str, chosen: str) -> tuple[Any, ...]:
        """The placement's state, when the shim is in its place."""
        if chosen:
            self._placement.join([shim], chosen)
        else:
            self._placement.place_sandbox(shim, placement.read_spec(bundle), self.id)
        return self._placement.state()

    def start_sandbox(self, request: dict[str, Any]) -> Coroutine:
        self._check(request)
        self._started = True
        yield from ()
        return {"pid": os.getpid(), "created_at": m.timestamp(self._created_at)}

    def platform(self, _request: dict[str, Any]) -> Coroutine:
        machine = os.uname().machine
        yield from ()
        return {"platform": {"os": "linux", "architecture": _ARCHITECTURES.get(machine, machine)}}

    def stop_sandbox(self, request: dict[str, Any]) -> Coroutine:
        self._check(request)
        if self.end():
            self.on_stopped()
        yield from ()
        return {}

    def end(self) -> bool:
        """Answer those who wait for its end; whether it had not ended before."""
        if not self.lives:
            return False
        self._stopped_at = time.time_ns()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            waiter.set()
        return True

    def wait_sandbox(self, request: dict[str, Any]) -> Coroutine:
        self._check(request)
        if self.lives:
            end = Future()
            self._waiters[end] = None
            try:
                yield end
            finally:
                self._waiters.pop(end, None)  # of a client that has left
        return {"exit_status": 0, "exited_at": m.timestamp(self._stopped_at)}

    def sandbox_status(self, request: dict[str, Any]) -> Coroutine:
        self._check(request)
        yield from ()
        return {
            "sandbox_id": self.id,
            "pid": os.getpid(),
            "state": READY if self._started and not self._stopped_at else NOT_READY,
            "created_at": m.timestamp(self._created_at),
            "exited_at": m.timestamp(self._stopped_at) if self._stopped_at else None,
        }

    def ping_sandbox(self, request: dict[str, Any]) -> Coroutine:
        self._check(request)
        yield from ()
        return {}

    def shutdown_sandbox(self, request: dict[str, Any]) -> Coroutine:
        if self.id:
            yield from self.stop_sandbox(request)
        return {}

    def sandbox_metrics(self, request: dict[str, Any]) -> Coroutine:
        self._check(request)
        yield from ()
        return {"metrics": {"timestamp": m.timestamp(time.time_ns()), "id": self.id}}

    def method(self, name: str) -> Callable[[dict[str, Any]], Coroutine]:
        return {
            "CreateSandbox": self.create_sandbox,
            "StartSandbox": self.start_sandbox,
            "Platform": self.platform,
            "StopSandbox": self.stop_sandbox,
            "WaitSandbox": self.wait_sandbox,
            "SandboxStatus": self.sandbox_status,
            "PingSandbox": self.ping_sandbox,
            "ShutdownSandbox": self.shutdown_sandbox,
            "SandboxMetrics": self.sandbox_metrics,
        }[name]
