# SPDX-License-Identifier: Apache-2.0
"""Runs sandboxes: each in a shim of its runtime, driven over the shim's sandbox service. Called by services.sandbox.

A runtime whose shim has no sandbox service answers UNIMPLEMENTED, and so does the controller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from teu.api.runtime.sandbox.v1 import sandbox_pb2 as shim_sandbox
from teu.api.types import sandbox_pb2
from teu.containerd.core.errors import AlreadyExists, Error, NotFound, Unavailable, from_code
from teu.containerd.core.identifiers import validate_identifier
from teu.containerd.core.messages import Mount, Packed
from teu.containerd.runtime.shim import Shim
from teu.containerd.runtime.shims import Shims
from teu.containerd.stores.sandboxes import Sandboxes
from teu.ttrpc.status import StatusError

log = logging.getLogger("teu.containerd.sandboxes")

STOP_TIMEOUT = 10.0  # seconds for a shim's answer to its end
_SERVICE = shim_sandbox.DESCRIPTOR.services_by_name["Sandbox"]


class Sandbox:
    """A running sandbox's shim, asked by the name of a method of its sandbox service."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        self.watched = False  # whether the manager waits for its exit, to publish it
        self._waiting: asyncio.Task[Any] | None = None

    @property
    def gone(self) -> bool:
        """Whether its shim has ended, and the sandbox with it."""
        return self.shim.leaving or self.shim.gone.done()

    @property
    def address(self) -> str:
        return self.shim.address

    @property
    def version(self) -> int:
        return self.shim.version

    async def call(self, method: str, **fields: Any) -> Any:
        """Unavailable when the shim has ended and what was left of it is removed."""
        answer = await self.shim.outlast(lambda: self._call(method, fields))
        if answer is None:
            raise Unavailable(f"the shim of sandbox {self.shim.id} is gone")
        return answer

    async def _call(self, method: str, fields: dict[str, Any]) -> Any:
        descriptor = _SERVICE.methods_by_name[method]
        request = descriptor.input_type._concrete_class(**fields)
        client = await self.shim.connection()
        try:
            payload = await client.call_raw(_SERVICE.full_name, method, request.SerializeToString())
        except StatusError as error:
            raise from_code(error.code, error.message) from None
        return descriptor.output_type._concrete_class.FromString(payload)

    async def wait(self) -> Any:
        """WaitSandboxResponse at its end. All who wait share one call, as with Shim.wait."""
        if self._waiting is None or self._waiting.done():
            self._waiting = asyncio.create_task(self.call("WaitSandbox", sandbox_id=self.shim.id))
            self._waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._waiting)


class Manager:
    """The sandboxes that run, those of an earlier life of this daemon among them."""

    def __init__(self, store: Sandboxes, shims: Shims, default_runtime: str) -> None:
        """`default_runtime` is that of records that name none."""
        self._store = store
        self._shims = shims
        self._default_runtime = default_runtime
        self._sandboxes: dict[tuple[str, str], Sandbox] = {}
        self._removals: dict[tuple[str, str], asyncio.Task[None]] = {}  # under way
        self._watches: set[asyncio.Task[None]] = set()

    def take_over(self) -> None:
        """Take over the sandboxes of an earlier life, once `Shims.restore` has found them; on the event loop."""
        self._shims.on_sandbox = self._adopt
        for shim in self._shims.sandboxes():
            self._adopt(shim)

    def _adopt(self, shim: Shim) -> None:
        """Take over a sandbox that was found again."""
        self._sandboxes[shim.namespace, shim.id] = Sandbox(shim)
        if shim.sandbox_state is not None and shim.sandbox_state["started"]:
            self.watch(shim.namespace, shim.id)

    def get(self, namespace: str, id: str) -> Sandbox:
        """One that runs, else NotFound."""
        sandbox = self._sandboxes.get((namespace, id))
        if sandbox is None or sandbox.gone:
            raise NotFound(f'sandbox "{id}"')
        return sandbox

    async def create(
        self,
        namespace: str,
        id: str,
        *,
        record: sandbox_pb2.Sandbox,
        rootfs: Sequence[Mount],
        options: Packed,
        netns_path: str,
        annotations: Mapping[str, str],
    ) -> None:
        """Start a shim for a sandbox and have it create the sandbox, without starting it.

        `record` is containerd.types.Sandbox; where it is empty, the store's record of that id is taken. Raises
        AlreadyExists for one that runs, NotFound without a record, InvalidArgument for a bad id, and the shim's own
        errors, which leave nothing."""
        validate_identifier(id)  # it becomes a folder's name
        if (old := self._sandboxes.get((namespace, id))) is not None:
            if not old.gone:
                raise AlreadyExists(f'sandbox "{id}"')
            await self._remove(namespace, id, old)
        elif (namespace, id) in self._removals:
            await asyncio.shield(self._removals[namespace, id])
        if not record.sandbox_id:
            record = await asyncio.to_thread(self._store.get, namespace, id)
        shim = await self._shims.start_sandbox(
            namespace,
            id,
            runtime=record.runtime.name or self._default_runtime,
            spec=record.spec.value,
            options=record.runtime.options if record.runtime.HasField("options") else None,
        )
        sandbox = Sandbox(shim)
        try:
            await sandbox.call(
                "CreateSandbox",
                sandbox_id=id,
                bundle_path=shim.bundle,
                rootfs=rootfs,
                options=options,
                netns_path=netns_path,
                annotations=annotations,
            )
        except BaseException:
            await asyncio.shield(self._shims.stop_sandbox(shim))
            raise
        self._sandboxes[(namespace, id)] = sandbox
        self._shims.sandbox_created(shim)

    def watch(self, namespace: str, id: str) -> None:
        """Tell of its exit, once it comes; again does nothing."""
        sandbox = self._sandboxes[(namespace, id)]
        if sandbox.watched:
            return
        sandbox.watched = True
        shims = self._shims

        async def wait() -> None:
            try:
                answer = await sandbox.wait()
                shims.tell_sandbox_exit(sandbox.shim, answer.exit_status, answer.exited_at)
            except Error as error:
                if shims.closing:
                    return  # it goes on, and the next daemon finds it
                log.info("sandbox %s: %s", id, error.message)  # the shim is gone, and the sandbox with it
                shims.tell_sandbox_exit(sandbox.shim, 0, None)
            if sandbox.gone:
                await self._remove(namespace, id, sandbox)

        task = asyncio.create_task(wait())
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def shutdown(self, namespace: str, id: str) -> bool:
        """End a sandbox and remove what is left of it; whether its shim has answered, which else may still be there.
        NotFound where there is none."""
        sandbox = self._sandboxes.get((namespace, id))
        if sandbox is None:
            raise NotFound(f'sandbox "{id}"')
        answered = True
        try:
            await asyncio.wait_for(sandbox.call("ShutdownSandbox", sandbox_id=id), STOP_TIMEOUT)
            sandbox.shim.dismissed = True
        except (Unavailable, NotFound):
            pass  # it is gone, which is what was asked
        except TimeoutError:
            answered = False
            log.warning("the shim of sandbox %s/%s does not answer", namespace, id, extra=sandbox.shim.fields)
        await self._remove(namespace, id, sandbox)
        return answered

    async def _remove(self, namespace: str, id: str, sandbox: Sandbox) -> None:
        """Remove what is left of a sandbox; a removal that is under way already is waited for."""
        key = (namespace, id)
        if self._sandboxes.get(key) is sandbox:
            del self._sandboxes[key]
            removal = asyncio.create_task(self._shims.stop_sandbox(sandbox.shim))
            self._removals[key] = removal
            removal.add_done_callback(lambda _: self._removals.pop(key, None))
        if key in self._removals:
            await asyncio.shield(self._removals[key])
