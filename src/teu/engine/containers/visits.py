# SPDX-License-Identifier: Apache-2.0
"""Who is at work on a container's files: every cp and export, from its first to its last byte (`container.visits`).

A client takes as long as it likes for what it sends or reads, so the container's lock is not held meanwhile. A visit
that is in the way is ended instead, and its client is told so: by a start, where it keeps the writable layer mounted
(overlayfs does not define what two mounts of one do) and its client does not move; by the removal, at once.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from teu.engine.core.errors import Conflict

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

STALLED = 1.0  # seconds without a byte, after which a visit does not hold up a start any longer
LONGEST = 10.0  # seconds that a start waits for visits which do move


class Visit:
    """One visitor's process. holds: it keeps the writable layer mounted; shares: by the root that all writers share."""

    def __init__(self, process: subprocess.Popen[bytes], holds: bool, shares: bool) -> None:
        self.process = process
        self.holds = holds
        self.shares = shares
        self._ended = ""
        self._last = time.monotonic()

    def moved(self) -> None:
        """A chunk has come or gone."""
        self._last = time.monotonic()

    @property
    def still(self) -> float:
        return time.monotonic() - self._last

    def check(self) -> None:
        """Raise Conflict if the visit was ended by somebody else."""
        if self._ended:
            raise Conflict(self._ended)

    def end(self, reason: str = "") -> None:
        if self.process.poll() is None:
            self._ended = reason
            self.process.kill()
        self.process.wait()


class Visits:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._present: list[Visit] = []
        self._root = contextlib.ExitStack()
        self._root_descriptor = -1

    def writable_root(self, opened: Callable[[], AbstractContextManager[int]]) -> int:
        """The root of a container that does not run, mounted once for all who write to it, until the last has left.
        With the container's lock held, until the visit is entered."""
        with self._changed:
            if self._root_descriptor < 0:
                self._root_descriptor = self._root.enter_context(opened())
            return self._root_descriptor

    def enter(self, visit: Visit) -> None:
        """With the container's lock held, so that no start and no removal overlooks it."""
        with self._changed:
            self._present.append(visit)

    def leave(self, visit: Visit) -> None:
        """Its process is ended."""
        visit.end()
        with self._changed:
            if visit in self._present:
                self._present.remove(visit)
            self._release()

    def settle(self) -> None:
        """Unmount the writable root if nobody uses it."""
        with self._changed:
            self._release()

    def _release(self) -> None:
        if not any(visit.shares for visit in self._present) and self._root_descriptor >= 0:
            self._root_descriptor = -1
            self._root.close()
        self._changed.notify_all()

    def give_way(self, name: str) -> None:
        """Before a start of the container, with its lock held: nobody keeps its writable layer mounted any longer."""
        deadline = time.monotonic() + LONGEST
        with self._changed:
            while holding := [visit for visit in self._present if visit.holds and visit.process.poll() is None]:
                late = time.monotonic() > deadline
                for visit in holding:
                    if late or visit.still > STALLED:
                        visit.end(f"container {name} is being started: the copy was cut off")
                self._changed.wait(0.05)
            for visit in self._present:
                visit.shares = visit.holds = False  # their processes have gone
            self._release()

    def end(self, name: str) -> None:
        """The container was removed."""
        with self._changed:
            for visit in self._present:
                visit.end(f"container {name} was removed: the copy was cut off")
                visit.shares = visit.holds = False
            self._release()
