# SPDX-License-Identifier: Apache-2.0
"""What is told of a vertex while it is built: core.progress with what the solver knows beside it."""

from __future__ import annotations

from collections.abc import Hashable

from google.protobuf.message import Message

from teu.api.buildkit import control_pb2
from teu.buildkit.core.progress import Progress, Step

TAIL_SIZE = 16 << 10  # bytes of the end of a step's output, kept for its error


class Work(Step):
    """A node's step. Builds that need it attach it; the last lines of its output stay, however much it was."""

    _tail = b""

    @property
    def untouched(self) -> bool:
        """Nothing of it was ever begun."""
        return not self.vertex.HasField("started")

    def log(self, stream: int, data: bytes) -> None:
        with self._lock:
            self._tail = (self._tail + data)[-TAIL_SIZE:]
        super().log(stream, data)

    def tail(self, lines: int) -> bytes:
        """The last lines of the output."""
        return b"".join(self._tail.splitlines(keepends=True)[-lines:])

    def mirrored(self, key: Hashable, event: Message) -> None:
        """What another step that does this one's work tells, as this one's."""
        with self._lock:
            if isinstance(event, control_pb2.Vertex):
                if not event.HasField("started"):
                    return
                self.vertex.started.CopyFrom(event.started)
                self.vertex.ClearField("completed")
                if event.HasField("completed"):
                    self.vertex.completed.CopyFrom(event.completed)
                self.vertex.error, self.vertex.cached = event.error, event.cached
                self._emit(key, self._copy())
            elif isinstance(event, control_pb2.VertexStatus | control_pb2.VertexLog | control_pb2.VertexWarning):
                mine = type(event)()
                mine.CopyFrom(event)
                mine.vertex = self.vertex.digest
                if isinstance(mine, control_pb2.VertexLog):
                    self._tail = (self._tail + mine.msg)[-TAIL_SIZE:]
                self._emit(key, mine)


class Mirror(Progress):
    """Follows a leader's step, and tells all of it to that of a follower."""

    def __init__(self, follower: Work) -> None:
        super().__init__()
        self._follower = follower

    def event(self, key: Hashable, event: Message) -> None:
        self._follower.mirrored(key, event)
