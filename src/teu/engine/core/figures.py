# SPDX-License-Identifier: Apache-2.0
"""What the daemon counts of its own work since it started, for Prometheus. Added to by the API's server and by health
checks, told by api/metrics.py."""

from __future__ import annotations

import bisect
import threading
from typing import NamedTuple

# Upper limits of durations in seconds, as Prometheus' clients have them by default.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Durations(NamedTuple):
    """How many took at most as long as each of SECONDS (one more for the rest), and how long all of them together."""

    counts: tuple[int, ...]
    seconds: float


class Figures:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._starts = [0] * (len(SECONDS) + 1)
        self._starts_seconds = 0.0
        self.health_checks = 0
        self.health_failures = 0

    def took(self, action: str, seconds: float) -> None:
        """Something that was done for a client has ended well."""
        with self._lock:
            self._counts.setdefault(action, [0] * (len(SECONDS) + 1))[bisect.bisect_left(SECONDS, seconds)] += 1
            self._seconds[action] = self._seconds.get(action, 0.0) + seconds

    def check_started(self, seconds: float) -> None:
        """The program of a health check runs, so long after it was wanted."""
        with self._lock:
            self._starts[bisect.bisect_left(SECONDS, seconds)] += 1
            self._starts_seconds += seconds

    def check_starts(self) -> Durations:
        """Of all health checks."""
        with self._lock:
            return Durations(tuple(self._starts), self._starts_seconds)

    def checked(self, well: bool) -> None:
        """A container's health has been looked at."""
        with self._lock:
            self.health_checks += 1
            self.health_failures += not well

    def actions(self) -> dict[str, Durations]:
        """By action, those that have been done."""
        with self._lock:
            return {name: Durations(tuple(counts), self._seconds[name]) for name, counts in self._counts.items()}
