# SPDX-License-Identifier: Apache-2.0
"""What is on its way between a registry and the content store, as ctr shows it: a table of all parts, drawn ten times
a second, and once more when all is done. On a terminal (standard input is asked, as ctr asks it) each drawing replaces
the one before; elsewhere they follow one another. Used by `transfer`."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator

from teu.ctr.output import aligned, binary

INTERVAL = 0.1
WIDTH = 38
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
LINE_AWAY = "\x1b[1A\x1b[2K\r"
DRAWN_EMPTY = ("resolving", "waiting")
DRAWN_PARTLY = ("downloading", "uploading")


def bar(share: float) -> str:
    full = int(WIDTH * min(max(share, 0.0), 1.0))
    return f"|{GREEN}{'+' * full}{PLAIN}{'-' * (WIDTH - full)}|"


def terminal_lines(text: str) -> int:
    """How many lines of the terminal a drawing takes; 0 where standard input is none."""
    try:
        columns = os.get_terminal_size(0).columns
    except OSError:
        return 0
    if columns <= 0:
        return 0
    bare = [re.sub(r"\x1b\[\d+m\x1b?", "", line) for line in text.split("\n")]
    return sum(max(len(line) - 1, 0) // columns + 1 for line in bare) - 1


class Progress:
    """The parts, in the order in which they were first told of. `set` may be called by any thread."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[str, int, int]] = {}
        self.lock = threading.Lock()
        self.started = time.monotonic()
        self.drawn = 0

    def set(self, name: str, state: str, offset: int = 0, total: int = 0) -> None:
        with self.lock:
            self.parts[name] = (state, offset, total)

    def text(self) -> str:
        rows, total = [], 0
        with self.lock:
            parts = list(self.parts.items())
        for name, (state, offset, size) in parts:
            total += offset
            row = [f"{name}:", state]
            if state in DRAWN_PARTLY:
                row += [bar(offset / size if size else 0.0), f"{binary(offset)[:8]:>8}/{binary(size)}"]
            else:
                row.append(bar(0.0 if state in DRAWN_EMPTY else 1.0))
            rows.append(row)
        seconds = max(time.monotonic() - self.started, 1e-6)
        rate = binary(int(total / seconds))
        rows.append([f"elapsed: {seconds:<4.1f}s", f"total: {binary(total)[:6]:>7}", f"({rate}/s)"])
        return aligned(rows)

    def draw(self) -> None:
        text = self.text()
        sys.stdout.write(LINE_AWAY * self.drawn + text)
        sys.stdout.flush()
        self.drawn = terminal_lines(text)

    @contextlib.contextmanager
    def shown(self, quiet: bool = False) -> Iterator[Progress]:
        """Draw while this context lasts, and its end if it ends well."""
        ended = threading.Event()

        def turn() -> None:
            while not ended.wait(INTERVAL):
                self.draw()

        drawer = threading.Thread(target=turn, daemon=True)
        if not quiet:
            drawer.start()
        try:
            yield self
        finally:
            ended.set()
            if not quiet:
                drawer.join()
        if not quiet:
            self.draw()
