# SPDX-License-Identifier: Apache-2.0
"""What a builder sends to `teu build`, nearly right and far from it: results for a folder, progress, errors. Nothing is
written outside the folder, nothing that a step prints moves the terminal's cursor, and each ends with words."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz import mutate
from fuzz.frame import Run, target

SLOW_SECONDS = 5
NAMES = (b"a", b"b", b"a/b", b"a/b/c", b"..", b"../out", b"/etc/x", b"a//b", b".", b"", b"a/../../x", b"\xff", b"a\0b")
MODES = (
    0o644,
    0o4755,
    1 << 31 | 0o755,
    1 << 27 | 0o777,
    1 << 25,
    1 << 26,
    1 << 26 | 1 << 21,
    1 << 24,
    1 << 19,
    1 << 32 - 1,
)
LINKS = (b"", b"", b"a", b"a/b", b"../../outside", b"/", b"x" * 5000)


class _Asked:
    """A call of the builder's that is here already, and whose answers nobody reads."""

    def __init__(self, messages: list[bytes]) -> None:
        self._messages = messages

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._messages)

    def send(self, *messages: bytes) -> None:
        pass


def _packets(run: Run) -> list[bytes]:
    from teu.cli.builds.messages import encode

    dice = run.random
    packets = []
    for _ in range(dice.randrange(1, 30)):
        kind = dice.choice((0, 0, 0, 2, 2, 3, 4))
        fields: dict[str, Any] = {"type": kind, "ID": dice.randrange(8)}
        if kind == 0 and dice.random() < 0.9:
            fields["stat"] = {
                "path": dice.choice(NAMES)
                if dice.random() < 0.8
                else bytes(dice.choices(b"ab/.", k=dice.randrange(9))),
                "mode": dice.choice(MODES),
                "linkname": dice.choice(LINKS),
                "size": dice.choice((0, 5, 1 << 62)),
                "modTime": dice.choice((0, 1, -(1 << 63), 1 << 62)),
                "devmajor": dice.choice((0, 1, 1 << 40)),
                "xattrs": [{"key": dice.choice(("user.a", "security.capability", "trusted.x", "\0")), "value": b"v"}],
            }
        if kind == 2:
            fields["data"] = dice.choice((b"", b"data", b"x" * 1000))
        packet = encode("teu.fsutil.Packet", **fields)
        packets.append(mutate.data(dice, packet) if dice.random() < 0.1 else packet)
    return packets


def _result(run: Run, top: Path) -> None:
    from teu.cli.builds.receiving import Receiver
    from teu.cli.builds.wire import BuildError

    packets = _packets(run)
    out = top / "in/side/out"
    out.mkdir(parents=True)
    (top / "outside").write_text("untouched")
    (out / "link").symlink_to(top)
    folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        run.trying(packets)
        try:
            Receiver(_Asked(packets), folder).run()  # type: ignore[arg-type]
        except (BuildError, ValueError):
            pass
    finally:
        os.close(folder)
    left = {str(path.relative_to(top)) for path in top.rglob("*") if "in/side/out/" not in f"{path}/"}
    if left != {"in", "in/side", "outside"} or (top / "outside").read_text() != "untouched":
        run.finding("a result was written outside its folder", packets)


def _status(run: Run) -> bytes:
    from teu.cli.builds.messages import CONTROL, encode

    dice = run.random
    stamp = {"seconds": dice.choice((0, 1_700_000_000, -(1 << 62), 1 << 62)), "nanos": dice.choice((0, 5, -7))}
    digests = ("a", "b", "c", "")
    text = dice.choice((b"line\n", b"\x1b[2J\x1b]0;x\x07", b"part", b"\r\n\r", b"\xff\xfe\n", b"\x9b1A", b"\n" * 50))
    vertex: dict[str, Any] = {
        "digest": dice.choice(digests),
        "name": mutate.text(dice).encode(errors="replace").decode(),
    }
    if dice.random() < 0.8:
        vertex["started"] = stamp
    if dice.random() < 0.4:
        vertex["completed"] = stamp
    if dice.random() < 0.2:
        vertex["error"] = "\x1b[31mno: context canceled"
    if dice.random() < 0.3:
        vertex["progressGroup"] = {"id": dice.choice(digests), "name": "group", "weak": dice.random() < 0.5}
    part = {
        "ID": "p\x1b[1A",
        "vertex": dice.choice(digests),
        "current": dice.choice((0, -5, 1 << 62)),
        "started": stamp,
    }
    spans = [{"start": {"line": dice.choice((0, 1, -1, 1 << 30))}, "end": {"line": dice.choice((0, 9, 1 << 30))}}]
    warning = {"vertex": "a", "short": text, "info": {"filename": "D", "data": b"FROM x\n"}, "ranges": spans}
    message = encode(
        f"{CONTROL}StatusResponse",
        vertexes=[vertex],
        statuses=[part] if dice.random() < 0.3 else [],
        logs=[{"vertex": dice.choice(digests), "msg": text, "timestamp": stamp}] if dice.random() < 0.6 else [],
        warnings=[warning] if dice.random() < 0.1 else [],
    )
    return mutate.data(dice, message) if dice.random() < 0.1 else message


def _progress(run: Run) -> None:
    from teu.cli.builds import failure, progress, screen
    from teu.cli.builds.messages import CONTROL, decode

    out: list[str] = []
    progress.write = screen.write = out.append
    screen.INTERVAL = progress.INTERVAL = 0.0
    displays = [
        progress.Plain(progress.Trace(), "x"),
        screen.Screen(progress.Trace(), "x"),
        progress.RawJSON(progress.Trace()),
    ]
    display = run.random.choice(displays)
    messages = [_status(run) for _ in range(run.random.randrange(1, 12))]
    run.trying(messages)
    for data in messages:
        try:
            message = decode(f"{CONTROL}StatusResponse", data)
        except ValueError:
            continue
        display.trace.update(message)
        display.update(message)
        display.tick()
    display.done()
    failure.warnings_text(display.trace.warnings, True)
    if isinstance(display, screen.Screen):
        for sign in ("\x1b[2J", "\x1b]", "\x9b", "\x07", "\x1b[1A\x1b"):
            if any(sign in text.partition("------\n")[0] for text in out):
                run.finding(f"a step's text moved the terminal: {sign!r}", messages)


@target("builder-answers", "results, progress and errors of a hostile builder, to teu build, alone", alone=True)
def fuzz(run: Run) -> None:
    while run.going():
        begun = time.monotonic()
        top = Path(tempfile.mkdtemp(prefix="teu-fuzz-"))
        try:
            if run.random.random() < 0.5:
                _result(run, top)
            else:
                _progress(run)
        except Exception as error:
            run.finding(f"{type(error).__name__}: {error}"[:200], run.recent[-1])
        finally:
            shutil.rmtree(top, ignore_errors=True)
        if time.monotonic() - begun > SLOW_SECONDS:
            run.finding("a case took too long", None)
