# SPDX-License-Identifier: Apache-2.0
"""Content: blobs read and written in streams, paced by the receiver."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from google.protobuf import empty_pb2

from teu.api.services.content.v1 import content_pb2
from teu.containerd.core.database import set_timestamp
from teu.containerd.core.digests import parse_digest
from teu.containerd.core.errors import AlreadyExists, InvalidArgument, NotFound, OutOfRange, Unknown
from teu.containerd.server.rpc import Call, Server, quick
from teu.containerd.state import Context
from teu.containerd.stores.content import Writer

_BATCH = 100
_READ = 1 << 20
# Data up to this size is hashed and written faster than a thread could be woken for it.
_INLINE = 64 << 10


@contextmanager
def _a_digest(text: str) -> Iterator[None]:
    """What is not there may be no digest at all, which is another error. One that is there may have been damaged."""
    try:
        yield
    except NotFound:
        parse_digest(text)
        raise


class Content:
    """containerd.services.content.v1.Content over `stores.content`, whose errors it answers."""

    def __init__(self, context: Context) -> None:
        self._store = context.content
        self._pool = context.pool

    @quick
    def Info(self, request: content_pb2.InfoRequest, call: Call) -> content_pb2.InfoResponse:
        """Size, times and labels of a blob of this namespace. NOT_FOUND."""
        with _a_digest(request.digest):
            return content_pb2.InfoResponse(info=self._store.info(call.namespace, request.digest))

    def Update(self, request: content_pb2.UpdateRequest, call: Call) -> content_pb2.UpdateResponse:
        """Change labels, those that the mask names or all of them; the blob's information then. NOT_FOUND,
        INVALID_ARGUMENT."""
        parse_digest(request.info.digest)
        info = self._store.update(call.namespace, request.info, list(request.update_mask.paths))
        return content_pb2.UpdateResponse(info=info)

    def List(self, request: content_pb2.ListContentRequest, call: Call) -> Iterator[content_pb2.ListContentResponse]:
        """The blobs that one of the filters fits, some hundred in a message."""
        batch = []
        for info in self._store.find(call.namespace, request.filters):
            batch.append(info)
            if len(batch) == _BATCH:
                yield content_pb2.ListContentResponse(info=batch)
                batch = []
        if batch:
            yield content_pb2.ListContentResponse(info=batch)

    def Delete(self, request: content_pb2.DeleteContentRequest, call: Call) -> empty_pb2.Empty:
        """Remove a blob from this namespace; others may have it still. NOT_FOUND."""
        with _a_digest(request.digest):
            self._store.delete(call.namespace, request.digest)
        return empty_pb2.Empty()

    async def Read(
        self, request: content_pb2.ReadContentRequest, call: Call
    ) -> AsyncIterator[content_pb2.ReadContentResponse]:
        """The bytes from `offset` on, `size` of them or to the end (0). NOT_FOUND; OUT_OF_RANGE for an offset behind
        the end, and where the file is shorter than it was."""
        digest = parse_digest(request.digest)
        size = self._store.info(call.namespace, digest).size
        offset = max(request.offset, 0)
        if offset > size:
            raise OutOfRange(f"read past object length {size} bytes")
        end = offset + request.size if 0 < request.size <= size - offset else size
        loop = asyncio.get_running_loop()
        fd = await loop.run_in_executor(self._pool, self._store.open, call.namespace, digest)
        try:
            while offset < end:
                data = await loop.run_in_executor(self._pool, os.pread, fd, min(_READ, end - offset), offset)
                if not data:
                    raise OutOfRange(f"content {digest} is shorter than its {size} bytes: the blob is damaged")
                yield content_pb2.ReadContentResponse(offset=offset, data=data)
                offset += len(data)
        finally:
            os.close(fd)

    def Status(self, request: content_pb2.StatusRequest, call: Call) -> content_pb2.StatusResponse:
        """How far an ingest is. NOT_FOUND."""
        return content_pb2.StatusResponse(status=self._store.status(call.namespace, request.ref))

    def ListStatuses(self, request: content_pb2.ListStatusesRequest, call: Call) -> content_pb2.ListStatusesResponse:
        """The ingests that one of the filters fits."""
        return content_pb2.ListStatusesResponse(statuses=self._store.statuses(call.namespace, request.filters))

    def Abort(self, request: content_pb2.AbortRequest, call: Call) -> empty_pb2.Empty:
        """Forget an ingest and its bytes. NOT_FOUND."""
        self._store.abort(call.namespace, request.ref)
        return empty_pb2.Empty()

    async def Write(
        self, requests: AsyncIterator[content_pb2.WriteContentRequest], call: Call
    ) -> AsyncIterator[content_pb2.WriteContentResponse]:
        """Write an ingest and make a blob of it. The first message opens it by its ref, or goes on where it was left;
        each is answered with how far it is. COMMIT checks size and digest and ends it: the blob is on disk when that is
        answered. ALREADY_EXISTS for a blob that is there; FAILED_PRECONDITION for another size or digest; OUT_OF_RANGE
        for an offset that is not the next; UNAVAILABLE while another stream writes the same ref."""
        loop = asyncio.get_running_loop()
        session: _WriteSession | None = None
        try:
            async for request in requests:
                if session is None:
                    namespace, lease = call.namespace, call.lease
                    session = await loop.run_in_executor(
                        self._pool, _WriteSession, self._store, namespace, lease, request
                    )
                commit = request.action == content_pb2.COMMIT
                if commit or len(request.data) > _INLINE or not session.plain:
                    yield await loop.run_in_executor(self._pool, session.answer, request)
                else:
                    yield session.answer(request)
                if commit:
                    return
            if session is None:
                raise Unknown("EOF")
        finally:
            if session is not None:
                session.writer.close()


class _WriteSession:
    """One Write stream: it holds the ingest's lock from its first message to its end."""

    def __init__(self, store: Any, namespace: str, lease: str, first: content_pb2.WriteContentRequest) -> None:
        if not first.ref:
            raise InvalidArgument("first message must have a reference")
        self._store = store
        self._namespace = namespace
        self._ref = first.ref
        self._total = max(first.total, 0)
        self._expected = first.expected
        self.writer: Writer = store.writer(
            namespace, first.ref, total=self._total, expected=first.expected, lease=lease
        )

    @property
    def plain(self) -> bool:
        """No file is to be copied before data can be written."""
        return self.writer.fd >= 0

    def answer(self, request: content_pb2.WriteContentRequest) -> content_pb2.WriteContentResponse:
        writer = self.writer
        response = content_pb2.WriteContentResponse(action=request.action, offset=writer.offset)
        if request.expected:
            self._expected = request.expected
            self._refuse_existing(request.expected)
        if request.total > 0:
            self._total = request.total
        if request.action == content_pb2.STAT:
            response.total = self._total
            set_timestamp(response.started_at, writer.started)
            set_timestamp(response.updated_at, writer.updated)
            response.digest = writer.digest
            return response
        if request.action not in (content_pb2.WRITE, content_pb2.COMMIT):
            return response
        if request.offset > 0 and request.offset != writer.offset:
            raise OutOfRange(f"write @{request.offset} must occur at current offset {writer.offset}")
        if request.offset == 0 and writer.offset > 0:
            writer.truncate()
        if request.data:
            writer.write(request.data)
        response.offset = writer.offset
        response.digest = writer.digest  # a Go client knows its writer's digest from here
        if request.action == content_pb2.COMMIT:
            response.digest = writer.commit(self._total, self._expected, dict(request.labels))
            response.total = self._total
        return response

    def _refuse_existing(self, digest: str) -> None:
        try:
            self._store.info(self._namespace, digest)
        except NotFound:
            return
        self.writer.close()
        with suppress(NotFound):
            self._store.abort(self._namespace, self._ref)
        raise AlreadyExists(f"blob with expected digest {digest} exists")


def register(server: Server, context: Context) -> None:
    server.add(content_pb2.DESCRIPTOR.services_by_name["Content"], Content(context))
