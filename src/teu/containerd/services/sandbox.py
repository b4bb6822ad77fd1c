# SPDX-License-Identifier: Apache-2.0
"""Sandboxes: the Store of their records, and the Controller that runs them in shims."""

from __future__ import annotations

from typing import Any

from teu.api.events import sandbox_pb2 as sandbox_events
from teu.api.services.sandbox.v1 import sandbox_pb2
from teu.containerd.core.errors import NotFound, Unavailable
from teu.containerd.server.rpc import Call, Server, held, quick
from teu.containerd.services.tasks import NEVER
from teu.containerd.state import Context

_SANDBOXERS = ("", "shim")  # containerd 2's names of controllers; "podsandbox" is the CRI's own
_SERVICES = sandbox_pb2.DESCRIPTOR.services_by_name


def _present(message: Any, *fields: str) -> dict[str, Any]:
    """Those of its messages that are there: an empty one would say something else than none."""
    return {field: getattr(message, field) for field in fields if message.HasField(field)}


class Store:
    """containerd.services.sandbox.v1.Store over `stores.sandboxes`, whose errors it answers."""

    def __init__(self, context: Context) -> None:
        self._store = context.sandboxes

    def Create(self, request: sandbox_pb2.StoreCreateRequest, call: Call) -> sandbox_pb2.StoreCreateResponse:
        """Keep a sandbox's record. ALREADY_EXISTS, INVALID_ARGUMENT."""
        return sandbox_pb2.StoreCreateResponse(sandbox=self._store.create(call.namespace, request.sandbox))

    def Update(self, request: sandbox_pb2.StoreUpdateRequest, call: Call) -> sandbox_pb2.StoreUpdateResponse:
        """Take over the fields that are named; the record then. NOT_FOUND, INVALID_ARGUMENT."""
        updated = self._store.update(call.namespace, request.sandbox, list(request.fields))
        return sandbox_pb2.StoreUpdateResponse(sandbox=updated)

    def Delete(self, request: sandbox_pb2.StoreDeleteRequest, call: Call) -> sandbox_pb2.StoreDeleteResponse:
        """Remove a record; a sandbox that runs is not touched. NOT_FOUND."""
        self._store.delete(call.namespace, request.sandbox_id)
        return sandbox_pb2.StoreDeleteResponse()

    @quick
    def List(self, request: sandbox_pb2.StoreListRequest, call: Call) -> sandbox_pb2.StoreListResponse:
        """The records that one of the filters fits."""
        return sandbox_pb2.StoreListResponse(list=self._store.find(call.namespace, request.filters))

    @quick
    def Get(self, request: sandbox_pb2.StoreGetRequest, call: Call) -> sandbox_pb2.StoreGetResponse:
        """A sandbox's record. NOT_FOUND."""
        return sandbox_pb2.StoreGetResponse(sandbox=self._store.get(call.namespace, request.sandbox_id))


class Controller:
    """Each call is the shim's own, after the sandbox's name has found the shim."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._manager = context.sandbox_manager

    async def Create(
        self, request: sandbox_pb2.ControllerCreateRequest, call: Call
    ) -> sandbox_pb2.ControllerCreateResponse:
        """Start the shim of a sandbox and let it prepare the sandbox. NOT_FOUND for another controller than the shim's,
        ALREADY_EXISTS for one that is there."""
        namespace = call.namespace
        if request.sandboxer not in _SANDBOXERS:
            raise NotFound(f"failed to get sandbox controller by {request.sandboxer}")
        await self._manager.create(
            namespace,
            request.sandbox_id,
            record=request.sandbox,
            rootfs=request.rootfs,
            options=request.options,
            netns_path=request.netns_path,
            annotations=request.annotations,
        )
        event = sandbox_events.SandboxCreate(sandbox_id=request.sandbox_id)
        self._context.events.publish(namespace, "/sandboxes/create", event)
        return sandbox_pb2.ControllerCreateResponse(sandbox_id=request.sandbox_id)

    async def Start(
        self, request: sandbox_pb2.ControllerStartRequest, call: Call
    ) -> sandbox_pb2.ControllerStartResponse:
        """Start the sandbox; the process id, and where its shim listens. NOT_FOUND."""
        namespace = call.namespace
        sandbox = self._manager.get(namespace, request.sandbox_id)
        started = await sandbox.call("StartSandbox", sandbox_id=request.sandbox_id)
        if not sandbox.watched:
            sandbox.shim.note(started=True)
            event = sandbox_events.SandboxStart(sandbox_id=request.sandbox_id)
            self._context.events.publish(namespace, "/sandboxes/start", event)
            self._manager.watch(namespace, request.sandbox_id)
        return sandbox_pb2.ControllerStartResponse(
            sandbox_id=request.sandbox_id,
            pid=started.pid,
            address=sandbox.address,
            version=sandbox.version,
            **_present(started, "created_at", "spec"),
        )

    async def Platform(
        self, request: sandbox_pb2.ControllerPlatformRequest, call: Call
    ) -> sandbox_pb2.ControllerPlatformResponse:
        """Which platform the sandbox's containers are for. NOT_FOUND."""
        sandbox = self._manager.get(call.namespace, request.sandbox_id)
        answer = await sandbox.call("Platform", sandbox_id=request.sandbox_id)
        return sandbox_pb2.ControllerPlatformResponse(platform=answer.platform)

    async def Stop(self, request: sandbox_pb2.ControllerStopRequest, call: Call) -> sandbox_pb2.ControllerStopResponse:
        """Stop the sandbox, within `timeout_secs`; its shim stays. One that is not there has stopped, as for containerd
        since 2.0."""
        try:
            sandbox = self._manager.get(call.namespace, request.sandbox_id)
        except NotFound:
            return sandbox_pb2.ControllerStopResponse()
        await sandbox.call("StopSandbox", sandbox_id=request.sandbox_id, timeout_secs=request.timeout_secs)
        return sandbox_pb2.ControllerStopResponse()

    @held
    async def Wait(self, request: sandbox_pb2.ControllerWaitRequest, call: Call) -> sandbox_pb2.ControllerWaitResponse:
        """The sandbox's end, when it comes. NOT_FOUND; a stop of the daemon ends the call."""
        sandbox = self._manager.get(call.namespace, request.sandbox_id)
        answer = await sandbox.wait()
        return sandbox_pb2.ControllerWaitResponse(exit_status=answer.exit_status, exited_at=answer.exited_at)

    async def Status(
        self, request: sandbox_pb2.ControllerStatusRequest, call: Call
    ) -> sandbox_pb2.ControllerStatusResponse:
        """How the sandbox is; one that does not run has exited, whether there ever was one or not."""
        try:
            sandbox = self._manager.get(call.namespace, request.sandbox_id)
            answer = await sandbox.call("SandboxStatus", sandbox_id=request.sandbox_id, verbose=request.verbose)
        except (NotFound, Unavailable):
            # As containerd: one that does not run has exited, whether there ever was one or not.
            ended = sandbox_pb2.ControllerStatusResponse(sandbox_id=request.sandbox_id)
            ended.created_at.seconds = NEVER
            ended.exited_at.GetCurrentTime()
            ended.extra.SetInParent()
            return ended
        return sandbox_pb2.ControllerStatusResponse(
            sandbox_id=request.sandbox_id,
            pid=answer.pid,
            state=answer.state,
            info=answer.info,
            address=sandbox.address,
            version=sandbox.version,
            **_present(answer, "created_at", "exited_at", "extra"),
        )

    async def Shutdown(
        self, request: sandbox_pb2.ControllerShutdownRequest, call: Call
    ) -> sandbox_pb2.ControllerShutdownResponse:
        """End the sandbox's shim, and take away what is left of it. NOT_FOUND."""
        await self._manager.shutdown(call.namespace, request.sandbox_id)
        return sandbox_pb2.ControllerShutdownResponse()

    async def Metrics(
        self, request: sandbox_pb2.ControllerMetricsRequest, call: Call
    ) -> sandbox_pb2.ControllerMetricsResponse:
        """What the sandbox's cgroup counts, as its shim tells it. NOT_FOUND."""
        sandbox = self._manager.get(call.namespace, request.sandbox_id)
        answer = await sandbox.call("SandboxMetrics", sandbox_id=request.sandbox_id)
        return sandbox_pb2.ControllerMetricsResponse(metrics=answer.metrics)

    def Update(self, request: sandbox_pb2.ControllerUpdateRequest, call: Call) -> sandbox_pb2.ControllerUpdateResponse:
        """The record; shims of this API have no update of their own."""
        self._context.sandboxes.update(call.namespace, request.sandbox, list(request.fields))
        return sandbox_pb2.ControllerUpdateResponse()


def register(server: Server, context: Context) -> None:
    server.add(_SERVICES["Store"], Store(context))
    server.add(_SERVICES["Controller"], Controller(context))
