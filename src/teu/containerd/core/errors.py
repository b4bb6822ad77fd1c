# SPDX-License-Identifier: Apache-2.0
"""Typed errors of teu-containerd. Stores raise them; `rpc` maps each to its gRPC status, once.

A class is a gRPC status code with containerd's words for it. Clients written in Go recognise the class by code and
strip these words from the end of the message, so `wire_message` appends them where they are missing.
"""

from __future__ import annotations

WIRE_LIMIT = 4096  # bytes; gRPC's ends take metadata of 8 KiB, and drop the whole answer where it is more


def cut(text: str) -> str:
    """A message that fits into the metadata of an answer, and is text: names in it were chosen by others. Its begin
    and its end stay."""
    text = text.encode("utf-8", "backslashreplace").decode()
    cost = [1 if " " <= sign <= "~" and sign != "%" else 3 * len(sign.encode()) for sign in text]  # percent-encoded
    if sum(cost) <= WIRE_LIMIT:
        return text
    ends = []
    for costs in (cost, cost[::-1]):
        left, count = WIRE_LIMIT // 2, 0
        for one in costs:
            left -= one
            if left < 0:
                break
            count += 1
        ends.append(count)
    return f"{text[: ends[0]]}…{text[len(text) - ends[1] :]}"


class Error(Exception):
    """An error with a gRPC status of its own: `code`, and containerd's `words` for it."""

    code = 2  # UNKNOWN
    words = ""

    @property
    def message(self) -> str:
        """What went wrong, without the words that stand for the code."""
        return str(self.args[0]) if self.args else self.words

    def wire_message(self) -> str:
        """The message as clients get it: cut to what gRPC carries, with the words that Go's clients look for."""
        text = cut(self.message)
        return text if not self.words or text.endswith(self.words) else f"{text}: {self.words}"


class Unknown(Error):
    pass


class Cancelled(Error):
    code, words = 1, "context canceled"


class InvalidArgument(Error):
    code, words = 3, "invalid argument"


class DeadlineExceeded(Error):
    code, words = 4, "context deadline exceeded"


class NotFound(Error):
    code, words = 5, "not found"


class AlreadyExists(Error):
    code, words = 6, "already exists"


class PermissionDenied(Error):
    code, words = 7, "permission denied"


class ResourceExhausted(Error):
    code, words = 8, "resource exhausted"


class FailedPrecondition(Error):
    code, words = 9, "failed precondition"


class Aborted(Error):
    code, words = 10, "aborted"


class OutOfRange(Error):
    code, words = 11, "out of range"


class Unimplemented(Error):
    code, words = 12, "not implemented"


class Internal(Error):
    code, words = 13, "internal"


class Unavailable(Error):
    code, words = 14, "unavailable"


class DataLoss(Error):
    code, words = 15, "data loss"


_BY_CODE: dict[int, type[Error]] = {
    kind.code: kind
    for kind in (
        Unknown,
        Cancelled,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
    )
}


def from_code(code: int, message: str) -> Error:
    """The error of a status received from a shim or a proxy plugin: ttrpc and gRPC number them alike."""
    return _BY_CODE.get(code, Unknown)(message)
