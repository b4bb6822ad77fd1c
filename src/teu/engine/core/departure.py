# SPDX-License-Identifier: Apache-2.0
"""A client that leaves in the middle: what is done for it alone is given up, as dockerd does. Called by the server,
which knows the connection, and by all that takes long: load, import, pull, push."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

LOOK_SECONDS = 0.25


class Left(ConnectionError):
    """The client has left, and what was done for it was given up."""


class Departure:
    """Of one client, in one request. For any thread."""

    def __init__(self, gone: Callable[[], bool] | None = None) -> None:
        """`gone` tells whether it has left; without it there is nobody who could."""
        self._gone = gone
        self._left = False

    def left(self) -> bool:
        if not self._left and self._gone is not None:
            self._left = self._gone()
        return self._left

    def check(self) -> None:
        """Raises Left."""
        if self.left():
            raise Left("the client has left")

    @contextlib.contextmanager
    def during(self, cancel: Callable[[], object], limit: float | None = None) -> Iterator[None]:
        """Within the block `cancel` is called once, by another thread, when the client leaves; and after `limit`
        seconds, if given. What fails because the client has left is Left, whatever it was."""
        if self._gone is None and limit is None:
            yield
            return
        done = threading.Event()
        threading.Thread(target=self._watch, args=(done, cancel, limit), name="departure", daemon=True).start()
        try:
            yield
        except Exception as error:
            if self._left:
                raise Left("the client has left") from error
            raise
        finally:
            done.set()

    def _watch(self, done: threading.Event, cancel: Callable[[], object], limit: float | None) -> None:
        until = time.monotonic() + limit if limit is not None else None
        while not done.wait(LOOK_SECONDS):
            if self.left() or until is not None and time.monotonic() > until:
                cancel()
                return


NOBODY = Departure()
