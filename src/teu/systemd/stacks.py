# SPDX-License-Identifier: Apache-2.0
"""What a daemon is doing at this moment: the stacks of its threads and coroutines into its log. Both daemons do that at
SIGUSR1, as dockerd and containerd do."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Iterable
from typing import Any


def show(log: logging.Logger, tasks: Iterable[Any] = ()) -> None:
    """`tasks`: those of asyncio."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = ["=== BEGIN stack dump ==="]
    for ident, frame in sys._current_frames().items():
        lines += [f"thread {names.get(ident, ident)}:", *traceback.format_stack(frame)]
    for task in tasks:
        lines.append(f"task {task.get_name()} {getattr(task.get_coro(), '__qualname__', '')}:")
        for frame in task.get_stack():
            lines += traceback.format_stack(frame, 1)
    lines.append("=== END stack dump ===")
    for text in lines:
        for line in text.rstrip("\n").split("\n"):
            log.info("%s", line)
