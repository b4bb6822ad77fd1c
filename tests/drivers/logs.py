# SPDX-License-Identifier: Apache-2.0
"""What every log driver has to do (teu.engine.logs.driver). Each check takes a function that makes a
run with a source of its own."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drivers.receivers import Receiver
from teu.engine.logs import registry
from teu.engine.logs.driver import LINE_LIMIT, Driver, Follower, LogSource, Piece, Selection
from teu.engine.logs.marker import Marker

NO_MARKER = Marker(None)
SECONDS = 20.0


class Passing:
    """Stands for the hub."""

    def __init__(self) -> None:
        self.followers: list[Follower] = []

    def follow(self, follower: Follower, begin: Callable[[], Any]) -> Any:
        self.followers.append(follower)
        return begin()

    def unfollow(self, follower: Follower) -> None:
        self.followers.remove(follower)

    def resume(self) -> None: ...


class Run:
    """A container that runs until it is told to stop, with its log."""

    def __init__(self, folder: Path, kind: str, options: dict[str, str]) -> None:
        self.running = False
        self.passing = Passing()
        self.source = LogSource(
            secrets.token_hex(32),
            "web",
            "busybox",
            "sha256:" + 64 * "0",
            {"l": 'v"'},
            ["A=1"],
            ["sh", "-c", "true"],
            "2026-01-02T03:04:05.000000006Z",
            kind,
            options,
            str(folder),
            lambda: self.running,
            lambda: self.passing,
        )
        if (
            kind in registry.DRIVERS
            and registry.DRIVERS[kind].remote
            and not any(key.endswith("-address") for key in options)
        ):
            options = {**options, f"{kind}-address": f"tcp://127.0.0.1:{Receiver().port}"}
            self.source = self.source._replace(options=options)
        registry.check(kind, options)
        driver = registry.create(self.source)
        assert driver is not None
        self.driver: Driver = driver

    def log(self, kind: int, data: bytes, final: bool = False) -> int:
        """As the hub does: what was not taken comes again, and what was goes to those who follow."""
        deadline = time.monotonic() + SECONDS
        done = 0
        while done < len(data):
            taken = self.driver.write(kind, data[done:], final, NO_MARKER)
            if not taken and not self.driver.stalled:
                break
            for follower in tuple(self.passing.followers):
                follower(kind, data[done : done + taken])
            done += taken
            assert time.monotonic() < deadline, "the log stays stalled"
            if not taken:
                time.sleep(0.001)
        return done

    def read(self, **selection: Any) -> list[Piece]:
        return [piece for piece in self.driver.read(Selection(**selection)) if piece]

    def text(self, **selection: Any) -> bytes:
        return b"".join(piece.data for piece in self.read(**selection))


Make = Callable[..., Run]
"""Makes a Run; takes its --log-opt by name, with _ for -."""


def source(folder: Path, kind: str, options: dict[str, str]) -> LogSource:
    """One of a container that has ended, for a driver's own tests."""
    return Run(folder, kind, options).source


def whole_lines_come_back_in_order(make: Make) -> None:
    run = make()
    assert run.log(1, b"one\ntwo\nhalf") == len(b"one\ntwo\n")
    assert run.log(1, b"half a line\n") == len(b"half a line\n")
    assert run.text() == b"one\ntwo\nhalf a line\n"


def the_end_of_the_output_needs_no_newline(make: Make) -> None:
    run = make()
    assert run.log(1, b"no newline", final=True) == len(b"no newline")
    run.driver.flush()
    assert run.text() == b"no newline"


def streams_are_kept_apart(make: Make) -> None:
    run = make()
    run.log(1, b"out\n")
    run.log(2, b"err\n")
    assert [piece.kind for piece in run.read()] == [1, 2]
    assert run.text(stderr=False) == b"out\n"
    assert run.text(stdout=False) == b"err\n"


def what_looks_like_a_priority_comes_back(make: Make) -> None:
    """A log that takes <3> for a priority gives it back, in lines of any length, and keeps the stream."""
    run = make()
    long = b"<4>" + b"x" * LINE_LIMIT + b"<2>" + b"y" * LINE_LIMIT + b"\n"
    lines = [b"<3>bad\n", b"<9>none\n", b"<3\n", b"<6>\n", long, b"plain\n", b"<<1>\n"]
    for line in lines:
        assert run.log(1, line) == len(line)
    run.log(2, b"<6>calm\n")
    assert run.text(stderr=False) == b"".join(lines)
    assert run.text(stdout=False) == b"<6>calm\n"


def long_lines_come_back_whole(make: Make) -> None:
    run = make()
    line = b"x" * (2 * LINE_LIMIT + 100) + b"\n"
    assert run.log(1, line) == len(line)
    assert run.text() == line


def any_text_comes_back(make: Make) -> None:
    run = make()
    text = 'quotes " and \\ backslashes\n\n\ttabs\n{"log":"like json"}\nÜmläute ✓\n'.encode()
    run.log(1, text)
    assert run.text() == text


def the_last_lines_alone(make: Make) -> None:
    run = make()
    run.log(1, b"".join(b"%d\n" % number for number in range(20)))
    assert run.text(tail=3) == b"17\n18\n19\n"
    assert run.text(tail=0) == b""
    assert run.text(tail=100).startswith(b"0\n1\n")


def moments_choose_lines(make: Make) -> None:
    run = make()
    run.log(1, b"before\n")
    time.sleep(0.01)
    border = time.time_ns()
    time.sleep(0.01)
    run.log(1, b"after\n")
    assert run.text(since=border) == b"after\n"
    assert run.text(until=border) == b"before\n"
    stamped = run.text(timestamps=True).splitlines()
    assert [line.split(b" ", 1)[1] for line in stamped] == [b"before", b"after"]
    assert all(len(line.split(b" ")[0]) == 30 and line[29:30] == b"Z" for line in stamped)


def who_follows_gets_the_rest_until_the_end(make: Make) -> None:
    run = make()
    run.running = True
    run.log(1, b"first\n")
    found = bytearray()
    quiet = threading.Event()

    def follow() -> None:
        pieces: Iterator[Piece | None] = run.driver.read(Selection(follow=True))
        for piece in pieces:
            if piece is None:
                quiet.set()
            else:
                found.extend(piece.data)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    assert quiet.wait(SECONDS), "what was there is not told"
    run.log(1, b"second\n")
    run.log(2, b"third\n")
    run.running = False
    run.driver.flush()
    reader.join(SECONDS)
    assert not reader.is_alive(), "it goes on after the container's end"
    assert bytes(found) == b"first\nsecond\nthird\n"
    assert not run.passing.followers


def a_new_driver_goes_on_where_the_last_one_was(make: Make) -> None:
    run = make()
    run.log(1, b"before\n")
    run.driver.close()
    run.driver.close()
    again = registry.create(run.source)
    assert again is not None
    run.driver = again
    run.log(1, b"after\n")
    assert run.text() == b"before\nafter\n"


def what_it_was_removed_from_holds_nothing(make: Make) -> None:
    run = make()
    run.log(1, b"text\n")
    run.driver.remove()
    assert list(Path(run.source.directory).iterdir()) == []


CHECKS = (
    whole_lines_come_back_in_order,
    the_end_of_the_output_needs_no_newline,
    streams_are_kept_apart,
    what_looks_like_a_priority_comes_back,
    long_lines_come_back_whole,
    any_text_comes_back,
    the_last_lines_alone,
    moments_choose_lines,
    who_follows_gets_the_rest_until_the_end,
    a_new_driver_goes_on_where_the_last_one_was,
    what_it_was_removed_from_holds_nothing,
)
NOTHING_KEPT = {"none"}


def kinds() -> list[str]:
    """All drivers of the registry that keep something."""
    return [kind for kind in registry.DRIVERS if kind not in NOTHING_KEPT]
