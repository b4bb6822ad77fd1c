# SPDX-License-Identifier: Apache-2.0
"""How a build is shown: plain, as JSON, on a terminal; where it failed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from teu.cli.builds import failure, progress, screen
from teu.cli.builds.messages import CONTROL, decode, encode
from teu.cli.builds.progress import Plain, Trace, as_json, size_text
from teu.cli.builds.wire import BuildError, described

Message = dict[str, Any]


def stamp(seconds: float) -> Message:
    return {"seconds": 1_700_000_000 + int(seconds), "nanos": round(seconds % 1 * 1e9)}


def message(**fields: list[Message]) -> Message:
    """A Status message as it comes from the wire."""
    return decode(f"{CONTROL}StatusResponse", encode(f"{CONTROL}StatusResponse", **fields))


def vertex(
    digest: str, name: str, started: float | None = None, completed: float | None = None, **more: Any
) -> Message:
    times = {key: stamp(value) for key, value in (("started", started), ("completed", completed)) if value is not None}
    return {"digest": digest, "name": name, **times, **more}


def log(digest: str, text: bytes, when: float) -> Message:
    return {"vertex": digest, "msg": text, "stream": 1, "timestamp": stamp(when)}


def part(digest: str, name: str, current: int, total: int, started: float, completed: float | None = None) -> Message:
    more = {"completed": stamp(completed)} if completed is not None else {}
    now = stamp(completed if completed is not None else started + 0.1)
    whole = {"ID": name, "vertex": digest, "current": current, "total": total, "timestamp": now}
    return {**whole, "started": stamp(started), **more}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    out: list[str] = []
    monkeypatch.setattr(progress, "write", out.append)
    monkeypatch.setattr(screen, "write", out.append)
    return out


Shown = Callable[[progress.Display, list[Message]], None]


def show(display: progress.Display, messages: list[Message]) -> None:
    for each in messages:
        display.trace.update(each)
        display.update(each)
        display.tick()
    display.done()


def test_plain_lines(written: list[str]) -> None:
    show(
        Plain(Trace(), "building"),
        [
            message(vertexes=[vertex("a", "[1/3] FROM x"), vertex("b", "[2/3] RUN one"), vertex("c", "[3/3] RUN two")]),
            message(vertexes=[vertex("a", "[1/3] FROM x", 0, 0, cached=True)]),
            message(vertexes=[vertex("b", "[2/3] RUN one", 1)]),
            message(logs=[log("b", b"first\nsec", 1.25)]),
            message(logs=[log("b", b"ond\n", 12.5)], statuses=[part("b", "extracting", 5, 10, 1)]),
            message(statuses=[part("b", "extracting", 10, 10, 1, 3)]),
            message(vertexes=[vertex("b", "[2/3] RUN one", 1, 14.04)]),
            message(
                vertexes=[vertex("c", "[3/3] RUN two", 15, 16, error="exit code: 1")], logs=[log("c", b"boom\n", 15.5)]
            ),
        ],
    )
    assert "".join(written) == (
        "#0 building\n\n#1 [1/3] FROM x\n#1 CACHED\n\n#2 [2/3] RUN one\n#2 0.250 first\n#2 0.250 sec\n"
        "#2 extracting 5B / 10B 0.1s\n#2 ond\n#2 extracting 10B / 10B 2.0s done\n#2 DONE 13.0s\n\n"
        "#3 [3/3] RUN two\n#3 0.500 boom\n#3 ERROR: exit code: 1\n------\n > [3/3] RUN two:\n0.500 boom\n------\n"
    )


def test_steps_that_run_at_once(written: list[str]) -> None:
    show(
        Plain(Trace(), ""),
        [
            message(vertexes=[vertex("a", "one", 0), vertex("b", "two", 0)]),
            message(logs=[log("b", b"of two\n", 1), log("a", b"of one\n", 1)]),
            message(vertexes=[vertex("b", "two", 0, 2)]),
            message(vertexes=[vertex("a", "one", 0, 3, error="rpc: context canceled")]),
        ],
    )
    assert "".join(written) == (
        "#1 one\n#1 1.000 of one\n#1 ...\n\n#2 two\n#2 1.000 of two\n#2 DONE 2.0s\n\n#1 one\n#1 CANCELED\n"
    )


def test_groups_are_one_step(written: list[str]) -> None:
    group = {"id": "g", "name": "[internal] settings"}
    show(
        Plain(Trace(), ""),
        [
            message(vertexes=[vertex("a", "copy x", 0, progressGroup={**group, "weak": True})]),
            message(vertexes=[vertex("b", "copy y", 1, 2, progressGroup=group)]),
            message(vertexes=[vertex("a", "copy x", 0, 3, progressGroup={**group, "weak": True})]),
        ],
    )
    assert "".join(written) == "#1 [internal] settings\n#1 DONE 3.0s\n"


def test_json_has_go_names() -> None:
    value = as_json(
        message(
            vertexes=[vertex("a", "n", 0.5, 1, cached=True, inputs=["i"])],
            statuses=[part("a", "s", 0, 3, 0)],
            logs=[log("a", b"x\n", 0)],
            warnings=[
                {
                    "vertex": "a",
                    "level": 1,
                    "short": b"w",
                    "detail": [b"d"],
                    "info": {"filename": "D", "data": b"FROM"},
                    "ranges": [{"start": {"line": 1}, "end": {"line": 1}}],
                }
            ],
        )
    )
    assert value["vertexes"] == [
        {
            "digest": "a",
            "inputs": ["i"],
            "name": "n",
            "started": "2023-11-14T22:13:20.5Z",
            "completed": "2023-11-14T22:13:21Z",
            "cached": True,
        }
    ]
    assert value["statuses"][0]["current"] == 0 and value["statuses"][0]["id"] == "s"
    assert value["logs"] == [{"vertex": "a", "stream": 1, "data": "eAo=", "timestamp": "2023-11-14T22:13:20Z"}]
    assert value["warnings"][0]["range"] == [{"start": {"line": 1}, "end": {"line": 1}}]
    json.dumps(value)


def test_sizes() -> None:
    assert [size_text(size) for size in (0, 57, 999, 1000, 1520, 10_490_000, 3 * 10**9)] == [
        "0B",
        "57B",
        "999B",
        "1.00kB",
        "1.52kB",
        "10.49MB",
        "3.00GB",
    ]


# On a terminal.


def rendered(out: str, width: int) -> list[str]:
    """What a terminal shows that has got this: lines, cursor up, clear to the end of the line and below."""
    rows: list[list[str]] = [[]]
    row = column = at = 0
    while at < len(out):
        letter = out[at]
        at += 1
        if letter == "\x1b":
            assert out[at] == "["
            end = at + 1
            while not out[end].isalpha():
                end += 1
            number, kind = out[at + 1 : end], out[end]
            at = end + 1
            if kind == "A":
                row -= int(number)
                assert row >= 0
            elif kind == "K":
                del rows[row][column:]
            elif kind == "J":
                del rows[row][column:], rows[row + 1 :]
        elif letter == "\n":
            row, column = row + 1, 0
            if row == len(rows):
                rows.append([])
        elif letter == "\r":
            column = 0
        else:
            rows[row][column : column + 1] = letter
            column += 1
            assert column <= width
    return ["".join(line).rstrip() for line in rows]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, written: list[str]) -> list[str]:
    monkeypatch.setattr(screen, "INTERVAL", 0.0)
    monkeypatch.setattr(screen.Screen, "_size", lambda self: (60, 12))
    monkeypatch.setattr(progress.time, "time", lambda: 1_700_000_020.0)
    return written


def test_a_terminal_shows_steps_and_their_output(terminal: list[str]) -> None:
    display = screen.Screen(Trace(), "docker:default")
    display.trace.ahead = 0.0
    first = [
        message(vertexes=[vertex("a", "[1/2] FROM x", 0, 1, cached=True), vertex("b", "[2/2] RUN one\ttwo", 1)]),
        message(
            statuses=[part("b", "layer", 5, 10, 1, 2)], logs=[log("b", b"\x1b[31mred\x1b[0m\rlast\nx\x07y\n", 1.5)]
        ),
    ]
    for each in first:
        display.trace.update(each)
        display.trace.ahead = 10.0
        display.update(each)
    shown = rendered("".join(terminal), 60)
    assert shown[0].startswith("[+] Building 10.0s (1/2)") and shown[0].endswith("docker:default")
    assert shown[1].startswith(" => CACHED [1/2] FROM x") and shown[1].endswith(" 1.0s")
    assert shown[2].startswith(" => [2/2] RUN one two") and shown[2].endswith(" 9.0s")
    assert shown[3].startswith(" => => layer 5B / 10B") and shown[4:6] == [" => => # last", " => => # xy"]
    done = message(vertexes=[vertex("b", "[2/2] RUN one\ttwo", 1, 3)])
    display.trace.update(done)
    display.done()
    shown = rendered("".join(terminal), 60)
    assert "(2/2) FINISHED" in shown[0] and shown[2].endswith(" 2.0s") and not any("#" in line for line in shown)


def test_only_what_changed_is_drawn(terminal: list[str]) -> None:
    display = screen.Screen(Trace(), "")
    for each in [message(vertexes=[vertex(str(number), f"step {number}", 0, 1)]) for number in range(5)]:
        display.trace.update(each)
    display.trace.ahead = 0.0
    display.tick()
    terminal.clear()
    display.trace.update(message(vertexes=[vertex("9", "new", 5, 6)]))
    display.tick()
    assert "step" not in "".join(terminal) and "new" in "".join(terminal)


def test_a_low_terminal_keeps_what_runs(terminal: list[str]) -> None:
    display = screen.Screen(Trace(), "")
    display.trace.update(message(vertexes=[vertex("r", "long runner", 0)]))
    for number in range(40):
        display.trace.update(message(vertexes=[vertex(str(number), f"step {number}", 0, 1)]))
    display.tick()
    shown = rendered("".join(terminal), 60)
    assert len(shown) <= 12 and any("long runner" in line for line in shown) and "step 39" in shown[-2]
    display.done()
    assert sum("step" in line for line in rendered("".join(terminal), 60)) == 40


def test_output_cannot_paint() -> None:
    for data in (b"\x1b[2J\x1b]0;title\x07evil", b"a\rb", b"\x9b31m", b"tab\there", b"\xff"):
        text = screen.printable(data, 20)
        assert all(letter.isprintable() for letter in text) and len(text) <= 20
    assert screen.printable(b"50%\r100%\r", 20) == "100%"


# Failures.


def details(form: str) -> bytes:
    info = {"filename": "Dockerfile", "data": b"FROM a\nRUN b\nRUN c\nRUN d\nRUN e\nRUN f\nRUN g\n"}
    ranges = [{"start": {"line": 4}, "end": {"line": 4}}]
    if form == "json":
        data = base64.b64encode(info["data"]).decode()  # type: ignore[arg-type]
        value = json.dumps({"info": {"filename": "Dockerfile", "data": data}, "ranges": ranges}).encode()
        detail = {"type_url": "github.com/moby/buildkit/errdefs.Source+json", "value": value}
    else:
        value = encode("errdefs.Source", info=info, ranges=ranges)
        detail = {"type_url": "type.googleapis.com/errdefs.Source", "value": value}
    other = {"type_url": "github.com/moby/buildkit/stack.Stack+json", "value": b"{}"}
    broken = {"type_url": "github.com/moby/buildkit/errdefs.Source+json", "value": b'{"ranges": 5}'}
    return encode("google.rpc.Status", code=2, message="x", details=[other, broken, detail])


@pytest.mark.parametrize("form", ["json", "protobuf"])
def test_the_place_of_a_failure(form: str) -> None:
    text = failure.places(BuildError(2, "failed", details(form)))
    rule = "-" * 20
    assert text == (
        f"Dockerfile:4\n{rule}\n   2 |     RUN b\n   3 |     RUN c\n   4 | >>> RUN d\n   5 |     RUN e\n"
        f"   6 |     RUN f\n{rule}\n"
    )


def test_places_at_the_edges() -> None:
    info = {"filename": "D", "data": b"one\ntwo\nthree"}

    def lines(first: int, last: int) -> list[str]:
        ranges = [{"start": {"line": first, "character": 0}, "end": {"line": last, "character": 0}}]
        return failure.excerpt(info, ranges).split("\n")[2:-2]

    assert lines(1, 1) == ["   1 | >>> one", "   2 |     two", "   3 |     three"]
    assert lines(2, 3) == ["   1 |     one", "   2 | >>> two", "   3 | >>> three"]
    assert lines(3, 99) == ["   1 |     one", "   2 |     two", "   3 | >>> three"]
    assert failure.excerpt(info, [{"start": {"line": 9, "character": 0}, "end": None}]) == ""
    assert failure.excerpt(info, []) == ""
    assert lines(1, 1 << 31) == ["   1 | >>> one", "   2 | >>> two", "   3 | >>> three"]


def test_times_that_are_none() -> None:
    assert progress.moment({"seconds": 1 << 62, "nanos": 0}) == "0001-01-01T00:00:00Z"


def test_warnings_at_the_end() -> None:
    one = message(
        warnings=[
            {
                "short": b"JSONArgs: say it so",
                "detail": [b"because"],
                "url": "https://x",
                "info": {"filename": "D", "data": b"FROM x\nCMD y"},
                "ranges": [{"start": {"line": 2}, "end": {"line": 2}}],
            }
        ]
    )["warnings"]
    assert failure.warnings_text([], False) == ""
    assert failure.warnings_text(one, False) == (
        "\n 1 warning found (use --debug to expand):\n - JSONArgs: say it so (line 2)\n"
    )
    whole = failure.warnings_text(one * 2, True)
    assert "2 warnings found:" in whole and "because\nMore info: https://x\nD:2\n" in whole


def test_errors_as_go_prints_them() -> None:
    assert described(BuildError(2, "plain")) == "plain"
    assert described(BuildError(5, "no such stage")) == "NotFound: no such stage"
