# SPDX-License-Identifier: Apache-2.0
"""Runs sandboxes: each in a shim of its runtime, driven over the shim's sandbox service. Called by services.sandbox.

A runtime whose shim has no sandbox service answers UNIMPLEMENTED, and so does the controller.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from teu.api.events import sandbox_pb2 as sandbox_events
from teu.api.runtime.sandbox.v1 import sandbox_pb2 as shim_sandbox
from teu.containerd.errors import AlreadyExists, Error, NotFound, Unavailable, from_code

if TYPE_CHECKING:
    from teu.containerd.context import Context

log = logging.getLogger("teu.containerd.sandboxes")

_SERVICE = shim_sandbox.DESCRIPTOR.services_by_name["Sandbox"]


class Sandbox:
    """A running sandbox's shim, asked by the name of a method of its sandbox service."""

    def __init__(self, shim: Any, version: int) -> None:
        self.shim = shim
        self.version = version
        self.watched = False  # whether somebody waits for its exit, to tell it

    @property
    def gone(self) -> bool:
        """Whether its shim has ended, and the sandbox with it."""
        return self.shim.client is None or bool(self.shim.client.closed.is_set())

    @property
    def address(self) -> str:
        return str(self.shim.address)

    async def call(self, method: str, **fields: Any) -> Any:
        from teu.ttrpc.status import StatusError

        descriptor = _SERVICE.methods_by_name[method]
        request = descriptor.input_type._concrete_class(**fields)
        if self.shim.client is None:
            raise Unavailable(f"the shim of sandbox {self.shim.id} is gone")
        try:
            payload = await self.shim.client.call_raw(_SERVICE.full_name, method, request.SerializeToString())
        except StatusError as error:
            raise from_code(error.code, error.message) from None
        return descriptor.output_type._concrete_class.FromString(payload)


class Manager:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._sandboxes: dict[tuple[str, str], Sandbox] = {}
        self._removals: dict[tuple[str, str], asyncio.Task[None]] = {}  # under way
        self._watches: set[asyncio.Task[None]] = set()

    def get(self, namespace: str, id: str) -> Sandbox:
        """One that runs, else NotFound."""
        sandbox = self._sandboxes.get((namespace, id))
        if sandbox is None or sandbox.gone:
            raise NotFound(f'sandbox "{id}"')
        return sandbox

    async def create(self, namespace: str, request: Any) -> None:
        id = request.sandbox_id
        if (old := self._sandboxes.get((namespace, id))) is not None:
            if not old.gone:
                raise AlreadyExists(f'sandbox "{id}"')
            await self._remove(namespace, id, old)
        elif (namespace, id) in self._removals:
            await asyncio.shield(self._removals[namespace, id])
        record = request.sandbox
        if not record.sandbox_id:
            record = await asyncio.to_thread(self._context.sandboxes.get, namespace, id)
        shim, version = await self._context.shims.start_sandbox(
            namespace, id, runtime=record.runtime.name or self._context.config["default-runtime"],
            spec=record.spec.value, options=record.runtime.options if record.runtime.HasField("options") else None,
        )  # fmt: skip
        sandbox = Sandbox(shim, version)
        try:
            await sandbox.call(
                "CreateSandbox", sandbox_id=id, bundle_path=shim.bundle, rootfs=request.rootfs,
                options=request.options, netns_path=request.netns_path, annotations=request.annotations,
            )  # fmt: skip
        except BaseException:
            await asyncio.shield(self._context.shims.stop_sandbox(shim))
            raise
        self._sandboxes[(namespace, id)] = sandbox

    def watch(self, namespace: str, id: str) -> None:
        """Tell of its exit, once it comes; again does nothing."""
        sandbox = self._sandboxes[(namespace, id)]
        if sandbox.watched:
            return
        sandbox.watched = True

        async def wait() -> None:
            event = sandbox_events.SandboxExit(sandbox_id=id)
            try:
                answer = await sandbox.call("WaitSandbox", sandbox_id=id)
                event.exit_status = answer.exit_status
                event.exited_at.CopyFrom(answer.exited_at)
            except Error as error:
                log.info("sandbox %s: %s", id, error.message)  # the shim is gone, and the sandbox with it
                event.exited_at.GetCurrentTime()
            self._context.events.publish(namespace, "/sandboxes/exit", event)
            if sandbox.gone:
                await self._remove(namespace, id, sandbox)

        task = asyncio.create_task(wait())
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def shutdown(self, namespace: str, id: str) -> None:
        sandbox = self._sandboxes.get((namespace, id))
        if sandbox is None:
            raise NotFound(f'sandbox "{id}"')
        try:
            await sandbox.call("ShutdownSandbox", sandbox_id=id)
        except (Unavailable, NotFound):
            pass  # it is gone, which is what was asked
        await self._remove(namespace, id, sandbox)

    async def _remove(self, namespace: str, id: str, sandbox: Sandbox) -> None:
        """Remove what is left of it; also where somebody else is at that, it is gone afterwards."""
        key = (namespace, id)
        if self._sandboxes.get(key) is sandbox:
            del self._sandboxes[key]
            removal = asyncio.create_task(self._context.shims.stop_sandbox(sandbox.shim))
            self._removals[key] = removal
            removal.add_done_callback(lambda _: self._removals.pop(key, None))
        if key in self._removals:
            await asyncio.shield(self._removals[key])
