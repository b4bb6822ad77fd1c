# SPDX-License-Identifier: Apache-2.0
"""moby.buildkit.v1.Control, and what stands beside it on the socket: the blobs of the history, health. Called by the
daemon, which registers them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import grpc

from teu.api.buildkit import control_pb2
from teu.api.grpc.health.v1 import health_pb2
from teu.api.services.content.v1 import content_pb2
from teu.buildkit.control import workers
from teu.buildkit.control.builds import Builds
from teu.buildkit.control.cleaning import Cleaning
from teu.buildkit.control.history import History
from teu.buildkit.control.rpc import Call
from teu.buildkit.core import errors
from teu.buildkit.session.manager import Manager

READ_SIZE = 1 << 20
TIMESTAMP_HEADER = "buildkit-current-timestamp"  # by which clients know how far their clock is off


class Control:
    def __init__(
        self, builds: Builds, sessions: Manager, history: History, cleaning: Cleaning, worker: Callable[[], Any]
    ) -> None:
        self._builds = builds
        self._sessions = sessions
        self._history = history
        self._cleaning = cleaning
        self._worker = worker

    # Builds

    def Solve(self, request: Any, call: Call) -> Any:
        try:
            return control_pb2.SolveResponse(ExporterResponse=self._builds.solve(request, call.on_gone))
        finally:
            self._cleaning.build_ended()

    def Status(self, request: Any, call: Call) -> Iterator[Any]:
        _send_time(call)
        yield from self._builds.status(request.Ref, lambda: call.gone)

    def Session(self, requests: Iterator[Any], call: Call) -> Iterator[Any]:
        yield from self._sessions.serve_stream(call.metadata, requests)

    # The cache

    def DiskUsage(self, request: Any, call: Call) -> Any:
        return self._cleaning.usage(request)

    def Prune(self, request: Any, call: Call) -> Iterator[Any]:
        yield from self._cleaning.prune(request, lambda: call.gone)

    # The builder

    def ListWorkers(self, request: Any, call: Call) -> Any:
        worker = self._worker()
        wanted = workers.chosen(worker, request.filter)
        return control_pb2.ListWorkersResponse(record=[worker] if wanted else [])

    def Info(self, request: Any, call: Call) -> Any:
        return control_pb2.InfoResponse(buildkitVersion=workers.version())

    # Builds that were

    def ListenBuildHistory(self, request: Any, call: Call) -> Iterator[Any]:
        _send_time(call)
        yield from self._history.listen(request, lambda: call.gone)

    def UpdateBuildHistory(self, request: Any, call: Call) -> Any:
        if request.Delete:
            self._history.delete(request.Ref)
        elif request.Finalize:
            self._history.record(request.Ref)  # what is in the history is whole
        else:
            self._history.pin(request.Ref, request.Pinned)
        return control_pb2.UpdateBuildHistoryResponse()


def _send_time(call: Call) -> None:
    now = datetime.fromtimestamp(time.time(), UTC)
    call.send_header(TIMESTAMP_HEADER, now.isoformat(timespec="microseconds").replace("+00:00", "Z"))


class Content:
    """containerd.services.content.v1.Content, to read the blobs of the history by."""

    def __init__(self, history: History) -> None:
        self._history = history

    def Info(self, request: Any, call: Call) -> Any:
        blob = self._history.blob(request.digest)
        return content_pb2.InfoResponse(info=content_pb2.Info(digest=request.digest, size=len(blob.data)))

    def Read(self, request: Any, call: Call) -> Iterator[Any]:
        data = self._history.blob(request.digest).data
        offset = max(request.offset, 0)
        if offset > len(data):
            raise errors.OutOfRange(f"read past object length {len(data)} bytes")
        end = offset + request.size if request.size > 0 else len(data)
        for at in range(offset, min(end, len(data)), READ_SIZE):
            yield content_pb2.ReadContentResponse(offset=at, data=data[at : min(at + READ_SIZE, end)])


class Health:
    """grpc.health.v1.Health."""

    def Check(self, request: Any, call: Call) -> Any:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def List(self, request: Any, call: Call) -> Any:
        return health_pb2.HealthListResponse(statuses={"": self.Check(request, call)})


class Traces:
    """Where clients send their traces: they are taken, and nobody keeps them."""

    METHOD = "opentelemetry.proto.collector.trace.v1.TraceService"

    @classmethod
    def register(cls, server: Any) -> None:
        export = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")  # bytes as they come
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(cls.METHOD, {"Export": export}),))
