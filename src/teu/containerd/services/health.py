# SPDX-License-Identifier: Apache-2.0
"""gRPC's health service: the whole server under the empty name, and each registered service under its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from teu.api.grpc.health.v1 import health_pb2
from teu.containerd.core.errors import NotFound
from teu.containerd.server.rpc import Call, Server, quick
from teu.containerd.state import Context

SERVING, SERVICE_UNKNOWN = 1, 3


class Health:
    """grpc.health.v1.Health: SERVING for each service that there is, and for all ("")."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def _status(self, service: str) -> int:
        return SERVING if not service or service in self._server.services else SERVICE_UNKNOWN

    @quick
    def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        """SERVING for a service that there is; NOT_FOUND for others."""
        if self._status(request.service) == SERVICE_UNKNOWN:
            raise NotFound("unknown service")
        return health_pb2.HealthCheckResponse(status=SERVING)

    @quick
    def List(self, request: health_pb2.HealthListRequest, call: Call) -> health_pb2.HealthListResponse:
        """What Check says of each service that there is, and of all."""
        serving = health_pb2.HealthCheckResponse(status=SERVING)
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(("", *self._server.services), serving))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """What Check would say, at once: SERVICE_UNKNOWN in place of an error. It does not change while the daemon
        serves."""
        yield health_pb2.HealthCheckResponse(status=self._status(request.service))
        await asyncio.Event().wait()  # it changes only by the stream's end


def register(server: Server, context: Context) -> None:
    server.add(health_pb2.DESCRIPTOR.services_by_name["Health"], Health(server))
