# SPDX-License-Identifier: Apache-2.0
"""The builder that teud stands before: teu-buildkitd or BuildKit's own. Called by the routes of builds, df and prune.

It is another program and may not be installed: `present` says so, and everything else raises NoBuilder then. One that
leaves when idle is started by its socket."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.engine.core import errors

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

DEADLINE = 60.0
PRUNE_DEADLINE = 3600.0
MESSAGE_MAX = 16 << 20
DETAILS_MAX = 4 << 20  # bytes of an error's headers; the builder's details take 1 MiB before they are base64
DIAL_SECONDS = 10.0


class NoBuilder(errors.NotFound):
    def __init__(self, address: str) -> None:
        super().__init__(
            f"this engine has no builder: nothing listens at {address}; install the package teu-buildkitd, "
            "or name another builder in /etc/teu/teud.yaml (builder)"
        )


class CacheRecord(NamedTuple):
    """What a builder keeps, as GET /system/df shows it: bytes, seconds since 1970 (0: never)."""

    id: str
    parents: tuple[str, ...]
    kind: str
    description: str
    in_use: bool
    shared: bool
    size: int
    created: float
    used: float
    uses: int


class Limits(NamedTuple):
    """What POST /build/prune leaves: seconds since the last use, and bytes; 0 is no such limit."""

    keep_seconds: float = 0.0
    reserved: int = 0
    max_used: int = 0
    min_free: int = 0


class Builder:
    def __init__(self, address: str) -> None:
        """`address`: the socket of BuildKit's gRPC API."""
        self.address = address
        self._lock = threading.Lock()
        self._channel: Any = None

    @property
    def sessions_address(self) -> str:
        """Where a client's session is handed over as the connection that it is; only teu-buildkitd listens there."""
        return self.address.removesuffix(".sock") + "-sessions.sock"

    @property
    def present(self) -> bool:
        return os.path.exists(self.address)

    def dial(self) -> socket.socket:
        """A connection to it. Raises NoBuilder, Unavailable."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(DIAL_SECONDS)
            connection.connect(self.address)
            connection.settimeout(None)
        except OSError as error:
            connection.close()
            if isinstance(error, FileNotFoundError):
                raise NoBuilder(self.address) from None
            raise errors.Unavailable(
                f"the builder at {self.address} cannot be reached: {error.strerror or error}"
            ) from None
        return connection

    def channel(self) -> Any:
        """gRPC's channel to it, the one of this process. Raises NoBuilder."""
        if not self.present:
            raise NoBuilder(self.address)
        import grpc  # 60 ms of the daemon's start, for a call that most of its lives never make

        with self._lock:
            if self._channel is None:
                self._channel = grpc.insecure_channel(
                    f"unix:{self.address}",
                    options=(
                        ("grpc.max_receive_message_length", MESSAGE_MAX),
                        # An error's details, the Dockerfile among them, come as a header.
                        ("grpc.max_metadata_size", DETAILS_MAX),
                        ("grpc.absolute_max_metadata_size", DETAILS_MAX),
                        ("grpc.use_local_subchannel_pool", 1),
                        ("grpc.enable_http_proxy", 0),
                        ("grpc.default_authority", "localhost"),
                    ),
                )
            return self._channel

    def close(self) -> None:
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def usage(self) -> list[CacheRecord]:
        """All that it keeps; nothing where there is no builder."""
        if not self.present:
            return []
        from teu.api.buildkit import control_pb2, control_pb2_grpc  # 12 ms, as above

        with _told():
            answer = control_pb2_grpc.ControlStub(self.channel()).DiskUsage(
                control_pb2.DiskUsageRequest(), timeout=DEADLINE
            )
        return [_record(one) for one in answer.record]

    def prune(self, filters: Sequence[str], every: bool, limits: Limits) -> tuple[list[str], int]:
        """Remove what matches one of the filters (containerd's language) and is in nobody's use. `every`: what belongs
        to the builder itself and to images, too. The ids of what is gone, and the bytes that this freed."""
        channel = self.channel()
        from teu.api.buildkit import control_pb2, control_pb2_grpc  # 12 ms, as above

        wanted = control_pb2.PruneRequest(
            filter=filters,
            all=every,
            keepDuration=int(limits.keep_seconds * 1e9),
            reservedSpace=limits.reserved,
            maxUsedSpace=limits.max_used,
            minFreeSpace=limits.min_free,
        )
        removed: list[str] = []
        freed = 0
        with _told():
            for one in control_pb2_grpc.ControlStub(channel).Prune(wanted, timeout=PRUNE_DEADLINE):
                removed.append(one.ID)
                freed += one.Size
        return removed, freed


def _record(one: Any) -> CacheRecord:
    def seconds(of: Timestamp, given: bool) -> float:
        return of.ToNanoseconds() / 1e9 if given else 0.0

    return CacheRecord(
        one.ID,
        tuple(one.Parents) or ((one.Parent,) if one.Parent else ()),
        one.RecordType,
        one.Description,
        one.InUse,
        one.Shared,
        one.Size,
        seconds(one.CreatedAt, one.HasField("CreatedAt")),
        seconds(one.LastUsedAt, one.HasField("LastUsedAt")),
        one.UsageCount,
    )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """gRPC's errors as this daemon's."""
    import grpc  # as above

    try:
        yield
    except grpc.RpcError as error:
        code, text = error.code(), error.details() or "it gave no reason"
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            raise errors.BadRequest(text) from None
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise errors.Unavailable(f"the builder cannot be reached: {text}") from None
        raise errors.EngineError(f"the builder: {text}") from None
