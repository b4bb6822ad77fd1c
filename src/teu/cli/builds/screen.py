# SPDX-License-Identifier: Apache-2.0
"""A build's progress on a terminal: a line for each step and each part of its work, the last lines of what runs.
Called by solve.

What is on the terminal already is known line by line; only lines that differ are written again.
"""

from __future__ import annotations

import os
import time

from teu.cli.builds.messages import seconds
from teu.cli.builds.progress import Display, failed_steps, part_size, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.cli.builds.progress import Step, Trace
    from teu.ttrpc.codec import Message

INTERVAL = 0.1  # seconds between two drawings
OUTPUT_LINES = 6  # of a step that runs
BLUE, RED, YELLOW, FAINT, PLAIN = "\x1b[34m", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
COLOURS = {"run": BLUE, "cancel": YELLOW, "error": RED, "warning": YELLOW}


def _colours() -> dict[str, str]:
    """The colours, as NO_COLOR and BUILDKIT_COLORS (run=green:error=1,2,3:…) change them."""
    if os.environ.get("NO_COLOR"):
        return dict.fromkeys(COLOURS, "")
    named = {"black": 30, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36, "white": 37}
    found = dict(COLOURS)
    for field in os.environ.get("BUILDKIT_COLORS", "").split(":"):
        name, _, value = field.partition("=")
        numbers = value.split(",")
        if name not in found:
            continue
        if value.lower() in named:
            found[name] = f"\x1b[{named[value.lower()]}m"
        elif len(numbers) == 3 and all(one.isdecimal() and int(one) < 256 for one in numbers):
            found[name] = f"\x1b[38;2;{';'.join(numbers)}m"
    return found


def printable(data: bytes, width: int) -> str:
    """A line of a step's output as the terminal may have it: nothing in it moves the cursor or paints."""
    text = data.decode("utf-8", "replace")
    out, skipping = [], False
    for letter in text.rpartition("\r")[2] or text.rstrip("\r").rpartition("\r")[2]:
        if skipping:
            skipping = not (letter.isalpha() or letter == "~")
        elif letter == "\x1b":
            skipping = True
        elif letter == "\t":
            out.append(" ")
        elif letter.isprintable():
            out.append(letter)
    return "".join(out)[: max(0, width)]


class Line:
    """One line: text, and the colour of all of it."""

    __slots__ = ("colour", "complete", "text")

    def __init__(self, text: str, colour: str = "", complete: bool = True) -> None:
        self.text = text
        self.colour = colour
        self.complete = complete

    def drawn(self) -> str:
        return f"{self.colour}{self.text}{PLAIN}" if self.colour else self.text


class Screen(Display):
    def __init__(self, trace: Trace, title: str = "", phase: str = "Building") -> None:
        super().__init__(trace)
        self._title = title
        self._phase = phase
        self._colours = _colours()
        self._shown: list[str] = []
        self._drawn_at = 0.0
        self._began = time.time()

    def update(self, message: Message) -> None:
        self.tick()

    def tick(self) -> None:
        if time.monotonic() - self._drawn_at >= INTERVAL:
            self._draw(False)

    def done(self) -> None:
        self._draw(True)
        write(failed_steps(self.trace))

    def _size(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(2)
        except OSError:
            return 80, 24
        return size.columns or 80, size.lines or 24

    def _draw(self, whole: bool) -> None:
        """Show how it stands; whole: every line, whether the terminal is high enough or not."""
        width, height = self._size()
        lines = self._lines(width, height)
        if not whole:
            lines = _fitting(lines, height - 2)
        new = [self._head(width, whole).drawn(), *(line.drawn() for line in lines)]
        out = []
        old = self._shown
        if old:
            out.append(f"\x1b[{len(old)}A\r" if len(old) else "\r")
        for number, line in enumerate(new):
            if number < len(old) and old[number] == line:
                out.append("\n")
            else:
                out.append(f"{line}\x1b[K\n")
        if len(new) < len(old):
            out.append("\x1b[J")
        self._shown = new
        self._drawn_at = time.monotonic()
        self.trace.changed.clear()
        write("\x1b[?25l" + "".join(out) + "\x1b[?25h")

    def _head(self, width: int, whole: bool) -> Line:
        complete, known = self.trace.counted()
        began = self.trace.began + self.trace.ahead if self.trace.began else self._began
        end = "FINISHED" if whole and complete and complete == known else ""
        text = f"[+] {self._phase} {max(0.0, time.time() - began):.1f}s ({complete}/{known}) {end}"
        return Line(f"{text:<{max(0, width - len(self._title) - 1)}}{self._title}"[: width - 1])

    def _lines(self, width: int, height: int) -> list[Line]:
        lines: list[Line] = []
        running = [step for step in self.trace.steps if step.running]
        loud = sorted((step for step in running if step.lines), key=lambda step: -len(step.lines))
        room = height - 2 - len(running)
        chosen = {step.digest for step in loud[: max(0, room // (OUTPUT_LINES + 3))]}
        now = self.trace.now()
        for step in self.trace.steps:
            lines += self._step(step, width, now)
            if step.digest in chosen:
                for line in step.lines[-OUTPUT_LINES:]:
                    text = f" => => # {printable(line.partition(b' ')[2], width - 10)}"
                    lines.append(Line(text, FAINT if self._colours["run"] else "", False))
        return lines

    def _step(self, step: Step, width: int, now: float) -> list[Line]:
        name, colour = step.name.replace("\t", " "), self._colours["run"]
        if step.cached:
            name = f"CACHED {name}"
        if step.failed:
            name, colour = f"ERROR {name}", self._colours["error"]
        elif step.error:
            name, colour = f"CANCELED {name}", self._colours["cancel"]
        done = bool(step.completed)
        lines = [_job(name, "", step.duration(now), width, colour if done else "", done)]
        for part in step.parts.values():
            if not part["started"]:
                continue
            begin, end = seconds(part["started"]), seconds(part["completed"])
            took = max(0.0, (end or now) - begin)
            colour = self._colours["run"] if end else ""
            lines.append(_job(f"=> {part['ID']}", part_size(part), took, width, colour, bool(end)))
        for warning in step.warnings:
            text = f"WARN: {warning['short'].decode('utf-8', 'replace')}"
            lines.append(_job(text, "", step.duration(now), width, self._colours["cancel"], True))
        return lines


def _job(name: str, status: str, took: float, width: int, colour: str, complete: bool) -> Line:
    timer = f"{took if took >= 0.05 else 0.0:.1f}s"
    timer = f" {timer:>4}"
    left = width - 4 - len(timer) - 1
    if status and left - len(status) > 20:
        left -= len(status) + 1
        text = f"{name[:left]} {status}"
    else:
        text = name[: max(0, left)]
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return Line(f" => {text:<{max(0, width - 5 - len(timer))}}{timer}", colour, complete)


def _fitting(lines: list[Line], limit: int) -> list[Line]:
    """The last lines that fit; what is not complete stays, in the place of lines that are."""
    if len(lines) <= limit or limit < 1:
        return lines[: max(0, limit)]
    kept = lines[-limit:]
    above = [line for line in lines[:-limit] if not line.complete]
    for number, line in enumerate(kept):
        if len(above) == 0:
            break
        if line.complete:
            kept[number] = above.pop()
    return kept
