# SPDX-License-Identifier: Apache-2.0
"""mode=non-blocking: what has no room is dropped and counted, and nothing waits. Templates of a log's tag."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers import logs

from teu.engine.core.errors import BadRequest
from teu.engine.logs import registry
from teu.engine.logs.buffered import NonBlocking
from teu.engine.logs.driver import LogSource, Piece, Selection, details, tag
from teu.engine.logs.marker import Marker

NO_MARKER = Marker(None)


class Slow:
    """A log that takes nothing until it is told to."""

    def __init__(self, source: LogSource) -> None:
        self.source = source
        self.stalled = True
        self.logged: list[tuple[int, bytes]] = []
        self.calls: list[str] = []

    def open(self) -> None:
        self.calls.append("open")

    def write(self, kind: int, data: bytes, final: bool, marker: Marker) -> int:
        if self.stalled:
            return 0
        self.logged.append((kind, data))
        return len(data)

    def rewind(self, position: int) -> None: ...

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")

    def read(self, selection: Selection) -> Iterator[Piece | None]:
        return iter(())

    def remove(self) -> None:
        self.calls.append("remove")


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + logs.SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def made(folder: Path, limit: int = 100, in_lines: bool = False) -> tuple[NonBlocking, Slow]:
    found: list[Slow] = []

    def make(source: LogSource) -> Slow:
        found.append(Slow(source))
        return found[0]

    return NonBlocking(logs.source(folder, "local", {}), make, limit, in_lines), found[0]


def test_what_has_no_room_is_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver, slow = made(tmp_path)
    with caplog.at_level(logging.WARNING, "teu.engine"):
        for number in range(30):
            line = b"line %04d\n" % number  # of 10 bytes
            assert driver.write(1, line, False, NO_MARKER) == len(line) and not driver.stalled
        assert driver.dropped.lines == 20
        slow.stalled = False
        until(lambda: len(slow.logged) == 10)
        assert slow.logged == [(1, b"line %04d\n" % number) for number in range(10)]
        assert driver.write(2, b"later\n", False, NO_MARKER) == 6
        until(lambda: slow.logged[-1] == (2, b"later\n"))
        driver.flush()
    until(lambda: "flush" in slow.calls)
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith("container web: 1 lines of its output were dropped (1 in all): its log is behind")
    assert told[1].startswith("container web: 19 lines of its output were dropped (20 in all)")
    assert all(getattr(record, "TEU_CONTAINER", "") == driver._driver.source.id for record in caplog.records)  # type: ignore[attr-defined]


def test_a_chunk_goes_in_as_far_as_there_is_room(tmp_path: Path) -> None:
    driver, slow = made(tmp_path)
    data = b"".join(b"%08d\n" % number for number in range(20))  # 180 bytes
    assert driver.write(1, data, False, NO_MARKER) == len(data)
    assert driver.dropped.lines == 9
    slow.stalled = False
    until(lambda: slow.logged)
    assert slow.logged == [(1, data[:99])]


def test_one_line_always_has_room_in_an_empty_buffer(tmp_path: Path) -> None:
    driver, slow = made(tmp_path, limit=0)
    assert driver.write(1, 50 * b"x" + b"\n", False, NO_MARKER) == 51
    assert driver.write(1, b"y\n", False, NO_MARKER) == 2
    assert driver.dropped.lines == 1
    slow.stalled = False
    until(lambda: slow.logged == [(1, 50 * b"x" + b"\n")])


def test_a_buffer_may_be_counted_in_lines(tmp_path: Path) -> None:
    driver, slow = made(tmp_path, limit=3, in_lines=True)
    driver.write(1, b"a\nb\nc\nd\n", False, NO_MARKER)
    driver.write(1, b"e\n", False, NO_MARKER)
    assert driver.dropped.lines == 2
    slow.stalled = False
    until(lambda: slow.logged == [(1, b"a\nb\nc\n")])
    until(lambda: not driver._waiting)
    driver.write(1, b"f\ng\nh\n", False, NO_MARKER)
    assert driver.dropped.lines == 2


def test_an_unfinished_line_is_not_taken(tmp_path: Path) -> None:
    driver, slow = made(tmp_path)
    assert driver.write(1, b"half", False, NO_MARKER) == 0 and not driver.stalled
    assert driver.write(1, b"half", True, NO_MARKER) == 4
    slow.stalled = False
    until(lambda: slow.logged == [(1, b"half")])


def test_what_waits_goes_before_the_log_is_closed(tmp_path: Path) -> None:
    driver, slow = made(tmp_path)
    driver.open()
    driver.write(1, b"last words\n", False, NO_MARKER)
    slow.stalled = False
    driver.close()
    assert slow.logged == [(1, b"last words\n")] and slow.calls == ["open", "close"]
    driver.write(1, b"again\n", False, NO_MARKER)
    until(lambda: slow.logged[-1] == (1, b"again\n"))


def test_a_removed_one_does_not_wait(tmp_path: Path) -> None:
    driver, slow = made(tmp_path)
    driver.write(1, b"text\n", False, NO_MARKER)
    began = time.monotonic()
    driver.remove()
    assert time.monotonic() - began < 3 and slow.calls == ["remove"] and not slow.logged


@pytest.mark.parametrize("kind", ["json-file", "local", "syslog"])
def test_all_that_was_buffered_can_be_read(kind: str, tmp_path: Path) -> None:
    run = logs.Run(tmp_path, kind, {"mode": "non-blocking", "max-buffer-size": "1m"})
    run.running = True
    data = b"".join(b"line %d\n" % number for number in range(1000))
    assert run.log(1, data) == len(data)
    run.driver.flush()
    run.running = False
    assert run.text(follow=True) == data  # it may still come
    assert run.text() == data


def test_who_follows_a_buffered_log_gets_each_line_once(tmp_path: Path) -> None:
    driver, slow = made(tmp_path)
    got: list[bytes] = []
    driver.write(1, b"before\n", False, NO_MARKER)
    slow.stalled = False
    until(lambda: slow.logged)

    def follower(_kind: int, data: bytes) -> bool:
        got.append(data)
        return True

    assert slow.source.output().follow(follower, lambda: len(slow.logged)) == 1
    driver.write(1, b"after\n", False, NO_MARKER)
    until(lambda: got == [b"after\n"])
    slow.source.output().unfollow(follower)
    driver.write(1, b"more\n", False, NO_MARKER)
    until(lambda: len(slow.logged) == 3)
    assert got == [b"after\n"]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Name}}/{{.ID}}", "web/{id}"),
        ("{{.ImageName}}-{{upper .Name}}", "busybox-WEB"),
        ("{{slice .FullID 0 4}}", "{id4}"),
        ("{{(.ExtraAttributes nil).l}}", 'v"'),
        ("{{with .ExtraAttributes nil}}{{.A}}{{end}}", "1"),
        ("{{if .ContainerLabels}}labelled{{else}}bare{{end}}", "labelled"),
        ("{{.ContainerName}} {{.Command}}", "/web sh -c true"),
        ('{{index .Config "labels"}}', "l"),
        ("{{json .ContainerArgs}}", '["-c","true"]'),
        ("plain", "plain"),
        ("", "{id}"),
    ],
)
def test_tags_are_templates(template: str, text: str, tmp_path: Path) -> None:
    source = logs.source(tmp_path, "json-file", {"tag": template, "labels": "l", "env": "A"})
    assert tag(source) == text.replace("{id4}", source.id[:4]).replace("{id}", source.id[:12])


def test_a_tag_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="log opt tag: .*Nothing"):
        tag(logs.source(tmp_path, "json-file", {})._replace(options={"tag": "{{.Nothing}}"}))


def test_files_have_the_tag_where_one_was_asked_for(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"tag": "t-{{.Name}}", "labels": "l"}
    run = logs.Run(tmp_path, "json-file", wanted)
    run.log(1, b"text\n")
    assert b'"attrs":{"l": "v\\"", "tag": "t-web"}' in next(tmp_path.iterdir()).read_bytes()
    assert details(run.source) == b"l=v%22,tag=t-web "
    assert details(run.source._replace(type="journald")) == b"l=v%22 "
    assert registry.readable(run.source)
