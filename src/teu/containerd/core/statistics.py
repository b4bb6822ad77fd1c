# SPDX-License-Identifier: Apache-2.0
"""What is counted of the calls: `server.rpc` writes it, `server.metrics` tells it, the daemon's idle exit reads it."""

from __future__ import annotations

import bisect
import time

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # Prometheus' own limits of buckets


class Histogram:
    """How many took at most so long (one more for the rest), and how long all of them together."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one that took so many seconds."""
        self.counts[bisect.bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class Statistics:
    """Counts per method, (service, method), for the metrics page, and what idle exit needs to know."""

    def __init__(self) -> None:
        self.kinds: dict[tuple[str, str], str] = {}  # unary, server_stream, client_stream, bidi_stream
        self.started: dict[tuple[str, str], int] = {}
        self.handled: dict[tuple[str, str, str], int] = {}
        self.received: dict[tuple[str, str], int] = {}
        self.sent: dict[tuple[str, str], int] = {}
        self.seconds: dict[tuple[str, str], Histogram] = {}
        self.in_flight = 0
        self.last_activity = time.monotonic()

    def add(self, key: tuple[str, str], client_streams: bool, server_streams: bool) -> None:
        """A method, of which there are rows from the start."""
        kinds = {(False, False): "unary", (False, True): "server_stream", (True, False): "client_stream"}
        self.kinds[key] = kinds.get((client_streams, server_streams), "bidi_stream")
        self.started[key] = self.received[key] = self.sent[key] = 0
        self.seconds[key] = Histogram()

    def begin(self, key: tuple[str, str]) -> None:
        """A call has come."""
        self.started[key] += 1
        self.in_flight += 1

    def end(self, key: tuple[str, str], code: str, began: float) -> None:
        """A call was answered; `code` is the name of its status, `began` a moment of time.monotonic()."""
        now = time.monotonic()
        handled = (*key, code)
        self.handled[handled] = self.handled.get(handled, 0) + 1
        self.seconds[key].add(now - began)
        self.in_flight -= 1
        self.last_activity = now
