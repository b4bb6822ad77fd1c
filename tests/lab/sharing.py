# SPDX-License-Identifier: Apache-2.0
"""How the unit tests are shared out among processes: a plugin of pytest that quick.py loads beside pytest-xdist.

A file's tests stay together, for many of them share a daemon; those of the laws do as well, for each of them reads the
whole source, which is parsed once in a process. The longest files begin first (seconds.py knows them), so that none of
them is left for the end, when it would run alone.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from lab import seconds

LAWS = "tests/unit/law"


def scope_of(test: str) -> str:
    """What a test stays together with: its file, or the folder of the laws. `test`: pytest's name of it."""
    file = test.partition("::")[0]
    return LAWS if file.startswith(f"{LAWS}/") else file


class LongestFirst(LoadFileScheduling):  # type: ignore[misc]
    """Whole files, as with `--dist loadfile`, the longest first."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        self._seconds: dict[str, float] = {}

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        self._seconds = self._seconds or self._needed()
        longest = max(self.workqueue, key=lambda scope: self._seconds.get(scope, 0))
        self.workqueue.move_to_end(longest, last=False)  # whose turn is next
        super()._assign_work_unit(node)

    def _needed(self) -> dict[str, float]:
        """The seconds of all scopes."""
        files = {test.partition("::")[0] for test in self.collection}
        found: dict[str, float] = {}
        for file, long in seconds.of_files(sorted(files), seconds.load()).items():
            found[scope_of(file)] = found.get(scope_of(file), 0) + long
        return found


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LongestFirst:
    """Called by pytest-xdist in the process that hands out the tests."""
    return LongestFirst(config, log)
