# SPDX-License-Identifier: Apache-2.0
"""Network namespaces without a process: made by a short-lived thread, held by a descriptor.

Called by teud's networks. A namespace that only descriptors hold vanishes with the process that holds them, with
all its interfaces: nothing of it is left when the daemon is killed, and no mount is ever made for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from teu.linux.namespaces import CLONE_NEWNET, setns, unshare

T = TypeVar("T")


def in_thread(function: Callable[[], T]) -> T:
    """Run in a thread of its own, which may change its namespaces and is gone afterwards."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def create(inside: Callable[[], T]) -> tuple[int, T]:
    """A new network namespace: its descriptor, and what `inside` returned when it was called there."""

    def body() -> tuple[int, T]:
        unshare(CLONE_NEWNET)
        descriptor = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return descriptor, inside()
        except BaseException:
            os.close(descriptor)
            raise

    return in_thread(body)


def run_in(descriptor: int, function: Callable[[], T]) -> T:
    """Call `function` in the namespace that the descriptor is of."""

    def body() -> T:
        setns(descriptor, CLONE_NEWNET)
        return function()

    return in_thread(body)
