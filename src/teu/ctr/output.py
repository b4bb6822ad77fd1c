# SPDX-License-Identifier: Apache-2.0
"""ctr's tables, sizes and JSON. Called by every command that shows something."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from teu.ctr.errors import CommandError
from teu.oci.humantime import human_duration

# A task's status as ctr calls it.
STATUS = {0: "UNKNOWN", 1: "CREATED", 2: "RUNNING", 3: "STOPPED", 4: "PAUSED", 5: "PAUSING"}


def table(rows: Iterable[Iterable[object]], least: int = 1, padding: int = 1, last: str = "padded") -> None:
    """Columns filled with spaces. The `last` one is padded like the others, or only in the headings ("headed"),
    or not at all ("bare"): ctr's tables differ in that."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [
        max(max(len(line[column]) for line in lines if column < len(line)) + padding, least)
        for column in range(max(map(len, lines), default=0))
    ]
    for number, line in enumerate(lines):
        cells = [cell.ljust(width) for cell, width in zip(line, widths)]
        if last != "padded":
            cells[-1] = line[-1] + (" " * padding if last == "headed" and number == 0 else "")
        sys.stdout.write("".join(cells) + "\n")


def aligned(rows: list[list[str]], padding: int = 1, ends: list[str] | None = None) -> str:
    """Lines of cells, and what follows the cells of each line; a column is as wide as its widest cell in an unbroken
    run of lines that have it."""
    widths = [[0] * len(row) for row in rows]
    for column in range(max(map(len, rows), default=0)):
        start = 0
        while start < len(rows):
            end = start
            while end < len(rows) and len(rows[end]) > column:
                end += 1
            widest = max((len(row[column]) for row in rows[start:end]), default=0)
            for number in range(start, end):
                widths[number][column] = widest + padding
            start = end + 1
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(row, row_widths)) + end + "\n"
        for row, row_widths, end in zip(rows, widths, ends or [""] * len(rows))
    )


def plain_field(text: str) -> str:
    """A value of a log line: in quotes where it needs them."""
    if text and all(character.isalnum() or character in "-._/@^+" for character in text):
        return text
    return json.dumps(text)


def tabbed(rows: Iterable[Iterable[object]]) -> None:
    """Columns filled with tabs; the last cell is not padded."""
    lines = [[str(cell) for cell in row] for row in rows]
    columns = max(map(len, lines), default=1) - 1
    widths = [-(-(max(len(line[n]) for line in lines if n < len(line)) + 1) // 8) * 8 for n in range(columns)]
    for line in lines:
        text = "".join(cell + "\t" * -(-(width - len(cell)) // 8) for cell, width in zip(line[:-1], widths))
        sys.stdout.write(text + line[-1] + "\n")


def binary(size: float) -> str:
    """`2.1 MiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    index = 0
    while size >= 1024 and index < len(units) - 1:
        size /= 1024
        index += 1
    return f"{size:.1f} {units[index]}" if index else f"{size:.1f} B" if size != int(size) else f"{int(size)}.0 B"


def age(seconds: float) -> str:
    """How long ago a moment was."""
    return human_duration(time.time() - seconds)


def label_text(labels: Any) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def show_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=4, ensure_ascii=False) + "\n")


def log(level: str, text: str, **fields: str) -> None:
    """A line on standard error in logrus's form, as ctr writes it."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    extra = "".join(f" {key}={plain_field(value)}" for key, value in fields.items())
    sys.stdout.flush()
    sys.stderr.write(f'time="{stamp}" level={level} msg={json.dumps(text)}{extra}\n')


class Failures:
    """Of a command that does the same with many: each failure is told at once and the others still have their turn; the
    first one ends the command."""

    def __init__(self) -> None:
        self._first = ""

    def add(self, error: CommandError, told: str, last_word: str = "") -> None:
        """`told` is for the log, with the error ("": nothing is told yet); `last_word` is what the command ends with,
        where that is not the error alone."""
        self._first = self._first or last_word or error.text
        if told:
            log("error", told, error=error.text)

    def end(self) -> None:
        """Raises CommandError if there was one."""
        if self._first:
            raise CommandError(self._first)
