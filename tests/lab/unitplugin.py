# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest for the unit tests, loaded by quick.py: how pytest-xdist shares them out among processes, what
each process reads first, and that what they wrote in memory goes when all have passed.

A file's tests stay together, for many of them share a daemon; those of the laws do as well, for each of them reads the
whole source, which is parsed once in a process. The longest files begin first (seconds.py knows them), so that none of
them is left for the end, when it would run alone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
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


def share(paths: Sequence[Path], worker: str, workers: int) -> Sequence[Path]:
    """What a process of pytest-xdist, by its name there ("gw2"), reads before all others."""
    return paths[int(worker.removeprefix("gw")) :: workers]


@pytest.hookimpl(hookwrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Each process collects all tests, and what it makes meanwhile stays to the end. For the collector of garbage to
    look through it again and again was two fifths of that time; from here on it leaves it out."""
    gc.disable()
    _read_share(session.config)
    yield
    gc.collect()
    gc.freeze()
    gc.enable()


def _read_share(config: pytest.Config) -> None:
    """pytest compiles each file anew for its assertions, which is most of a first run's collection, and keeps the byte
    code. Were all processes to begin with the same file, each of them would compile all: so each begins with files of
    its own. pytest wants the names of test modules to be unique, and an import finds what it would."""
    told = getattr(config, "workerinput", None)
    if told is None:
        return
    named = [(seconds.SOURCE / each.partition("::")[0]).resolve() for each in config.args]
    wanted = sorted({path for each in named for path in (each.rglob("test_*.py") if each.is_dir() else [each])})
    for path in share(wanted, told["workerid"], told["workercount"]):
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        with contextlib.suppress(Exception, pytest.skip.Exception):  # the collection says what is wrong with it
            importlib.import_module(path.stem)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The folder of all temporary folders goes; of a run that has failed it stays to be looked at, until the next."""
    given = session.config.option.basetemp
    if given and exitstatus == pytest.ExitCode.OK and not hasattr(session.config, "workerinput"):
        shutil.rmtree(given, ignore_errors=True)
