# SPDX-License-Identifier: Apache-2.0
"""gRPC's status codes, as far as ttrpc carries them, and the error that stands for one."""

from __future__ import annotations

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS = range(7)
FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 9, 10, 11, 12, 13, 14


class StatusError(Exception):
    """A call that ends with a status other than OK: raised by a handler, or by a client's call."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
