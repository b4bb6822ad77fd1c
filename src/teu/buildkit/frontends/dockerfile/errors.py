# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a Dockerfile, and where.

The words of the messages are BuildKit's, since clients and users look for them; the places are line numbers, counted
from 1, that a client shows with the lines themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from teu.api.buildkit import ops_pb2
from teu.buildkit.core.errors import Error


class Range(NamedTuple):
    """Lines of the Dockerfile, both ends included."""

    start: int
    end: int


Location = tuple[Range, ...]


def lines(start: int, end: int) -> Location:
    """One range per line, as BuildKit reports them."""
    return tuple(Range(line, line) for line in range(start, max(start, end) + 1))


class DockerfileError(Error):
    """The Dockerfile, or what was asked of it, cannot be built. `locations` says the places, innermost first."""

    def __init__(self, message: str, *locations: Location) -> None:
        super().__init__(message)
        self.locations = list(locations)

    def at(self, location: Location) -> DockerfileError:
        """The same error, with one more place."""
        if location:
            self.locations.append(location)
        return self

    def only_at(self, location: Location) -> DockerfileError:
        """The same error, with this place in the place of all others."""
        self.locations = [location]
        return self


def ranges(location: Location) -> list[ops_pb2.Range]:
    """A place as protobuf has it; columns are not known."""
    return [
        ops_pb2.Range(start=ops_pb2.Position(line=part.start), end=ops_pb2.Position(line=part.end)) for part in location
    ]


def merged(locations: Iterable[Location]) -> Location:
    """All ranges in order of their lines, overlapping ones joined."""
    result: list[Range] = []
    for part in sorted((part for location in locations for part in location), key=lambda part: part.start):
        if result and part.start <= result[-1].end:
            result[-1] = Range(result[-1].start, max(result[-1].end, part.end))
        else:
            result.append(part)
    return tuple(result)


def excerpt(filename: str, text: bytes, location: Location) -> str:
    """The lines of an error with a few around them, as BuildKit prints them below it; empty where there are none."""
    if not location:
        return ""
    source = text.decode("utf-8", "replace").split("\n")
    first = start = min(part.start for part in location)
    end = max(part.end for part in location)
    if not 1 <= start <= len(source):
        return ""
    end = min(end, len(source))
    room = 4 if end == start else 2
    while room > 0:
        if start > 1:
            start -= 1
            room -= 1
        if end != len(source):
            end += 1
            room -= 1
        room -= 1
    marked = {line for part in location for line in range(part.start, max(part.end, part.start) + 1)}
    rule = "-" * 20 + "\n"
    body = "".join(
        f" {line:3d} | {'>>>' if line in marked else '   '} {source[line - 1]}\n" for line in range(start, end + 1)
    )
    return f"{filename}:{first}\n{rule}{body}{rule}"


def suggestion(word: str, options: Iterable[str], case_sensitive: bool = True) -> str:
    """The option that `word` may have meant: at most two edits away, and not equal to it; empty where there is none."""
    wanted = word if case_sensitive else word.lower()
    best, nearest = "", 3
    for option in options:
        candidate = option if case_sensitive else option.lower()
        if candidate == wanted:
            return ""
        distance = _edits(wanted, candidate, nearest)
        if distance < nearest:
            best, nearest = candidate, distance
    if best and not case_sensitive and word == word.upper() != word.lower():
        return best.upper()
    return best


def did_you_mean(message: str, word: str, options: Iterable[str], case_sensitive: bool = True) -> str:
    meant = suggestion(word, options, case_sensitive)
    return f"{message} (did you mean {meant}?)" if meant else message


def _edits(one: str, other: str, limit: int) -> int:
    """Levenshtein's distance, or any number from `limit` on where it is not below that."""
    if abs(len(one) - len(other)) >= limit:
        return limit
    row = list(range(len(other) + 1))
    for index, mine in enumerate(one, 1):
        previous, row[0] = row[0], index
        for column, theirs in enumerate(other, 1):
            previous, row[column] = row[column], min(previous + (mine != theirs), row[column] + 1, row[column - 1] + 1)
    return row[-1]
