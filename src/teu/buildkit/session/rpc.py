# SPDX-License-Identifier: Apache-2.0
"""gRPC's calls over a session's HTTP/2 connection, with protobuf's messages. Called by manager.Session and its
services.

A status that is not OK is raised as core.errors has it, with the details that the client sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from teu.buildkit.core import errors
from teu.http2 import calls
from teu.http2 import connection as http2

MESSAGE_MAX = calls.MESSAGE_MAX
ANSWER = TypeVar("ANSWER", bound=Message)
Metadata = Sequence[tuple[str, str]]


class Call(Generic[ANSWER]):
    """A call under way: requests go out with `send`, answers are iterated. Leave it by `close` or as a context manager:
    what has not ended then is cancelled."""

    def __init__(
        self,
        connection: http2.Connection,
        method: str,
        answer: type[ANSWER],
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> None:
        self._answer = answer
        self._call = calls.Call(connection, method, metadata, timeout, "teu-buildkitd")

    def send(self, request: Message) -> None:
        """Send one message; waits where the client does not read. After the client's last word it does nothing: its
        status is what `receive` says."""
        self._call.send(request.SerializeToString())

    def send_many(self, requests: Iterable[Message]) -> None:
        """Small messages in one go."""
        messages = [request.SerializeToString() for request in requests]
        if messages:
            self._call.send(*messages)

    def end(self) -> None:
        """There will be no more requests."""
        self._call.end()

    def receive(self) -> ANSWER | None:
        """The next answer; None at the end of a call that went well, else its error."""
        data = self._call.receive()
        if data is None:
            return None
        try:
            answer: ANSWER = self._answer.FromString(data)
            return answer
        except DecodeError:
            self._call.close()
            raise errors.Internal(f"the client sent something that is no {self._answer.DESCRIPTOR.full_name}") from None

    def __iter__(self) -> Iterator[ANSWER]:
        while (answer := self.receive()) is not None:
            yield answer

    @property
    def answered(self) -> bool:
        """Has the client said its last word? What is sent from now on is for nobody."""
        return self._call.answered

    def waiting(self) -> bool:
        """Is there an answer that was read already?"""
        return self._call.waiting()

    def cancel(self) -> None:
        """End the call, from any thread."""
        self._call.close()

    def close(self) -> None:
        self._call.close()

    def __enter__(self) -> Call[ANSWER]:
        return self

    def __exit__(self, *problem: Any) -> None:
        self.close()


def unary(
    connection: http2.Connection,
    method: str,
    request: Message,
    answer: type[ANSWER],
    metadata: Metadata = (),
    timeout: float | None = None,
) -> ANSWER:
    """One question, one answer."""
    with Call(connection, method, answer, metadata, timeout) as call:
        call.send(request)
        call.end()
        first = call.receive()
        if first is None:
            raise errors.Internal("the client answered without an answer")
        if call.receive() is not None:
            raise errors.Internal("the client answered more than once")
        return first
