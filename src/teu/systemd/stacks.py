# SPDX-License-Identifier: Apache-2.0
"""What a daemon is doing at this moment: the stacks of its threads and coroutines into its log. Both daemons do that at
SIGUSR1, as dockerd and containerd do."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from typing import Any


def show(log: logging.Logger, tasks: Iterable[Any] = ()) -> None:
    """`tasks`: those of asyncio."""
    for line in lines(tasks):
        log.info("%s", line)


def lines(tasks: Iterable[Any] = ()) -> Iterator[str]:
    """The stacks, of threads and of tasks of asyncio."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = ["=== BEGIN stack dump ==="]
    for ident, frame in sys._current_frames().items():
        found += [f"thread {names.get(ident, ident)}:", *traceback.format_stack(frame)]
    for task in tasks:
        found.append(f"task {task.get_name()} {getattr(task.get_coro(), '__qualname__', '')}:")
        for frame in task.get_stack():
            found += traceback.format_stack(frame, 1)
    found.append("=== END stack dump ===")
    for text in found:
        yield from text.rstrip("\n").split("\n")
