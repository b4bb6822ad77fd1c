# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest for the unit tests, loaded by quick.py: how pytest-xdist shares them out among processes, and that
what they wrote in memory goes when all have passed.

A file's tests stay together, for many of them share a daemon; those of the laws do as well, for each of them reads the
whole source, which is parsed once in a process. The longest files begin first (seconds.py knows them), so that none of
them is left for the end, when it would run alone.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from lab import seconds

LAWS = "tests/unit/law"


def scope_of(test: str) -> str:
    """What a test stays together with: its file, or the folder of the laws. `test`: pytest's name of it."""
    file = test.partition("::")[0]
    return LAWS if file.startswith(f"{LAWS}/") else file


def scopes(tests: list[str]) -> dict[str, float]:
    """The seconds of all scopes of those tests, as far as they are known."""
    found: dict[str, float] = {}
    files = sorted({test.partition("::")[0] for test in tests})
    for file, long in seconds.of_files(files, seconds.load()).items():
        found[scope_of(file)] = found.get(scope_of(file), 0) + long
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Called by pytest-xdist in the process that hands out the tests."""
    from xdist.scheduler import LoadFileScheduling

    class LongestFirst(LoadFileScheduling):  # type: ignore[misc]
        """Whole scopes, as with `--dist loadfile`, the longest first."""

        seconds: dict[str, float] = {}

        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            self.seconds = self.seconds or scopes(self.collection)
            longest = max(self.workqueue, key=lambda scope: self.seconds[scope])
            self.workqueue.move_to_end(longest, last=False)  # whose turn is next
            super()._assign_work_unit(node)

    return LongestFirst(config, log)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The folder of all temporary folders goes; of a run that has failed it stays to be looked at, until the next."""
    given = session.config.option.basetemp
    if given and exitstatus == pytest.ExitCode.OK and not hasattr(session.config, "workerinput"):
        shutil.rmtree(given, ignore_errors=True)
