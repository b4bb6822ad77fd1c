# SPDX-License-Identifier: Apache-2.0
"""Errors of the engine, each with the HTTP status that the Engine API gives it.

Stores and verbs raise these; the server turns them into `{"message": …}` in one place.
"""

from __future__ import annotations


class EngineError(Exception):
    """What was asked, what was in the way, what to do: one sentence for a person."""

    status = 500


class NotModified(EngineError):
    status = 304


class BadRequest(EngineError):
    status = 400


class Unauthorized(EngineError):
    status = 401


class Forbidden(EngineError):
    status = 403


class NotFound(EngineError):
    status = 404


class TimedOut(EngineError):
    status = 408


class Conflict(EngineError):
    status = 409


class TooLarge(EngineError):
    status = 413


class Unsupported(EngineError):
    status = 501


class Unavailable(EngineError):
    status = 503


class Unreadable(EngineError):
    """State on disk that cannot be read at all: nothing but a person mends that, so the daemon does not try again."""
