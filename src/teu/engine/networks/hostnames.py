# SPDX-License-Identifier: Apache-2.0
"""The host's resolv.conf, watched: running containers have copies of it, which follow. Called by endpoints.

A thread of its own waits for changes, from the first container on."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from teu.linux import resolver
from teu.linux.filewatch import FileWatch

log = logging.getLogger("teu.engine")

SETTLE_SECONDS = 0.1  # in which a file that is written anew becomes whole

END_SECONDS = 2.0


def files() -> list[str]:
    """Those that are followed, and what they lead to."""
    followed = (resolver.RESOLV_CONF, resolver.RESOLVED_UPSTREAM)
    return list(dict.fromkeys(path for file in followed for path in (file, os.path.realpath(file))))


class HostNames:
    """`changed` is called in the thread, where what a container would get is something else."""

    def __init__(self, changed: Callable[[], None], stopping: threading.Event) -> None:
        self._changed = changed
        self._stopping = stopping
        self._thread: threading.Thread | None = None
        self._watch: FileWatch | None = None

    def watch(self) -> None:
        """From now on; twice is fine. Never fails."""
        if self._thread is not None:
            return
        try:
            watch = FileWatch([resolver.RESOLV_CONF, resolver.RESOLVED_UPSTREAM])
        except OSError as error:
            log.warning("changes of the host's resolv.conf are not followed: %s", error)
            watch = None
        self._thread = threading.Thread(target=self._follow, args=(watch,), name="resolv.conf", daemon=True)
        self._watch = watch
        if watch is not None:
            self._thread.start()

    def end(self) -> None:
        """`stopping` is set: wait until the thread has ended, but not long where it waits for a container."""
        if self._thread is not None and self._watch is not None:
            self._watch.rouse()
            self._thread.join(END_SECONDS)
            self._watch = None

    def _follow(self, watch: FileWatch) -> None:
        before = _said()
        while not self._stopping.is_set():
            watch.wait()
            self._stopping.wait(SETTLE_SECONDS)
            now = _said()
            if now != before and not self._stopping.is_set():
                before = now
                try:
                    self._changed()
                except Exception as error:
                    log.error("a change of the host's resolv.conf cannot be followed: %s", error)
        watch.close()


def _said() -> tuple[str, str]:
    return resolver.host_resolver(True).text(), resolver.host_resolver(False).text()
