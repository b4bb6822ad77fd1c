# SPDX-License-Identifier: Apache-2.0
"""Limits of this process, and those of what it starts. Called by `main` and `bootstrap`."""

from __future__ import annotations

import resource

_given: tuple[int, int] | None = None  # what this process was started with, where it has changed it

# The words behind $0 are the program and its arguments.
_RESTORE = 'ulimit -S -n "$0" && exec "$@"'


def raise_descriptor_limit() -> None:
    """As many open files as this process may have: a container costs three, a client one.

    Hosts start everybody with a soft limit of 1024 because select(2) breaks above it; nothing here uses that."""
    global _given
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _given = soft, hard


def with_given_limits(command: list[str]) -> list[str]:
    """The command, to be run with the limits that this process was started with: a container inherits them."""
    if _given is None:
        return command
    return ["/bin/sh", "-c", _RESTORE, str(_given[0]), *command]
