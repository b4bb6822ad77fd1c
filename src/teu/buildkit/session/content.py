# SPDX-License-Identifier: Apache-2.0
"""Content stores of the client: folders with an OCI layout. Called by cache.remote (type local) and sources.ocilayout.

containerd's content service, served by the client for several stores; which one stands in the metadata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from google.protobuf.empty_pb2 import Empty

from teu.api.services.content.v1 import content_pb2
from teu.buildkit.core import errors
from teu.buildkit.session.manager import Session

PREFIX = "/containerd.services.content.v1.Content/"
STORE_KEY = "buildkit-attachable-store-id"
MESSAGE = 1 << 20  # bytes of a blob in one message
SECONDS = 60.0


class Info(NamedTuple):
    digest: str
    size: int
    labels: Mapping[str, str]


class Store:
    """One of the client's stores. NotFound where it has no such blob, or the client no such store."""

    def __init__(self, session: Session, identifier: str) -> None:
        session.require(f"{PREFIX}Info", "the client has no content stores")
        self._session = session
        self._metadata = [(STORE_KEY, identifier)]

    def info(self, digest: str) -> Info:
        request = content_pb2.InfoRequest(digest=digest)
        answer = self._session.call(f"{PREFIX}Info", request, content_pb2.InfoResponse, self._metadata, SECONDS)
        return Info(answer.info.digest, answer.info.size, dict(answer.info.labels))

    def read(self, digest: str, offset: int = 0, size: int = 0) -> Iterator[bytes]:
        """A blob's bytes from offset on, `size` of them or all; in order and without gaps. Nobody has checked them."""
        request = content_pb2.ReadContentRequest(digest=digest, offset=offset, size=size)
        at = offset
        with self._session.stream(f"{PREFIX}Read", content_pb2.ReadContentResponse, self._metadata) as call:
            call.send(request)
            call.end()
            for answer in call:
                if answer.offset != at:
                    raise errors.DataLoss(f"{digest}: the client sent byte {answer.offset} where {at} was to come")
                at += len(answer.data)
                if size and at > offset + size:
                    raise errors.DataLoss(f"{digest}: the client sent more than it was asked for")
                if answer.data:
                    yield answer.data

    def read_whole(self, digest: str, limit: int = 16 << 20) -> bytes:
        """A small blob, such as a manifest, whose bytes are what its digest says."""
        data = bytearray()
        for chunk in self.read(digest):
            data += chunk
            if len(data) > limit:
                raise errors.ResourceExhausted(f"{digest}: more than {limit} bytes")
        kind, _, expected = digest.partition(":")
        if kind not in ("sha256", "sha384", "sha512") or hashlib.new(kind, data).hexdigest() != expected:
            raise errors.DataLoss(f"{digest}: the client's blob is another one")
        return bytes(data)

    def write(
        self, ref: str, chunks: Iterable[bytes], size: int, digest: str, labels: Mapping[str, str] | None = None
    ) -> bool:
        """Store a blob of this size and digest; ref names the attempt, which goes on where an earlier one of this name
        broke off. False: the client has the blob already, and no chunk was taken."""
        action = content_pb2.WriteAction
        request = content_pb2.WriteContentRequest
        with self._session.stream(f"{PREFIX}Write", content_pb2.WriteContentResponse, self._metadata) as call:
            call.send(request(action=action.STAT, ref=ref, total=size, expected=digest))
            try:
                begun = call.receive()
            except errors.AlreadyExists:
                return False
            at = there = begun.offset if begun is not None else 0
            for chunk in chunks:
                skipped = min(there, len(chunk))
                there -= skipped
                for begin in range(skipped, len(chunk), MESSAGE):
                    part = chunk[begin : begin + MESSAGE]
                    call.send(request(action=action.WRITE, ref=ref, offset=at, data=part))
                    at += len(part)
                    if call.receive() is None:
                        raise errors.DataLoss(f"{digest}: the client ended the transfer before it was whole")
            commit = request(action=action.COMMIT, ref=ref, offset=at, total=size, expected=digest, labels=labels or {})
            call.send(commit)
            call.end()
            try:
                for _ in call:
                    pass
            except errors.AlreadyExists:
                pass  # somebody else was faster
        return True

    def delete(self, digest: str) -> None:
        request = content_pb2.DeleteContentRequest(digest=digest)
        self._session.call(f"{PREFIX}Delete", request, Empty, self._metadata, SECONDS)
