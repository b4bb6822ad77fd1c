# SPDX-License-Identifier: Apache-2.0
"""What is known of a build's steps, from the builder's Status messages, and how it is shown where nothing can be
redrawn.

A step is BuildKit's vertex. `Trace.update` takes a message; a display looks at what changed. Called by solve; `screen`
shows the same on a terminal.
"""

from __future__ import annotations

import binascii
import sys
import time

from teu.cli.builds.messages import seconds
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.ttrpc.codec import Message

LOG_LINES = 100  # that are kept of each step, for the time when it fails
LINE_MAX = 64 << 10  # bytes of one line
CANCELLED = "context canceled"
# A part of a step's work is told again when it has come this much further, or after so many seconds.
PART_SHARE, PART_SECONDS = 0.05, 5.0
INTERVAL = 0.1  # seconds between two looks at what changed
WAITS = 10.0  # seconds after which a step that waits behind another one is shown


class Step:
    """One vertex."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.number = 0  # in the order of their begins, from 1
        self.name = ""
        self.inputs: list[str] = []
        self.cached = False
        self.error = ""
        self.started = self.completed = 0.0
        self.spans: dict[float, float] = {}  # begin: end, or 0; a step may run more than once
        self.parts: dict[str, Message] = {}
        self.changed_parts: set[str] = set()
        self.warnings: list[Message] = []
        self.lines: list[bytes] = []  # the last ones, each with the time before it
        self.fresh: list[bytes] = []  # not shown yet
        self.partial = False  # the last line has no end
        self.open_line = False  # nor has the last one that was shown
        self.events = False  # something of the step itself changed
        self.first = 0.0  # when it became interesting without being shown

    @property
    def failed(self) -> bool:
        return bool(self.error) and not self.error.endswith(CANCELLED)

    @property
    def running(self) -> bool:
        return bool(self.started) and not self.completed

    def duration(self, now: float) -> float:
        """Seconds of work; now: on the builder's clock."""
        total, reached = 0.0, 0.0
        for begin, end in sorted(self.spans.items()):
            stop = end or now
            if stop > reached:
                total += stop - max(begin, reached)
                reached = stop
        return max(0.0, total)


class Group:
    """Steps that are shown as one (a progress group); hidden while only weak members have begun."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.members: dict[str, Message] = {}
        self.hidden = True


class Trace:
    """All steps of a build."""

    def __init__(self) -> None:
        self.steps: list[Step] = []  # that have begun, in this order
        self.known: dict[str, Step] = {}  # by digest; a member of a group is the group's
        self.groups: dict[str, Group] = {}
        self.changed: dict[str, Step] = {}
        self.warnings: list[Message] = []
        self.ahead = 0.0  # of our clock before the builder's, seconds
        self.began = 0.0

    def now(self) -> float:
        """The builder's time."""
        return time.time() - self.ahead

    def update(self, message: Message) -> None:
        for vertex in message["vertexes"]:
            if vertex["progressGroup"]:
                self._member(vertex)
            else:
                self._vertex(self._step(vertex["digest"]), vertex)
        for part in message["statuses"]:
            step = self.known.get(part["vertex"])
            if step is not None:
                step.parts[part["ID"]] = part
                step.changed_parts.add(part["ID"])
                self._touch(step)
        for warning in message["warnings"]:
            self.warnings.append(warning)
            if step := self.known.get(warning["vertex"]):
                step.warnings.append(warning)
        for log in message["logs"]:
            if step := self.known.get(log["vertex"]):
                self._log(step, log)

    def _step(self, digest: str) -> Step:
        step = self.known.get(digest)
        if step is None:
            step = self.known[digest] = Step(digest)
        return step

    def _touch(self, step: Step) -> None:
        self.changed[step.digest] = step
        if not step.first:
            step.first = time.monotonic()

    def _vertex(self, step: Step, vertex: Message) -> None:
        started, completed = seconds(vertex["started"]), seconds(vertex["completed"])
        if started and not step.number:
            self._begin(step, started)
        if not step.started or started:
            # What the step was told before it began says nothing new afterwards.
            step.name, step.inputs = vertex["name"], vertex["inputs"]
            different = (started, completed, vertex["cached"], vertex["error"]) != (
                step.started,
                step.completed,
                step.cached,
                step.error,
            )
            step.started, step.completed = started, completed
            step.cached, step.error = vertex["cached"], vertex["error"]
            if started:
                step.spans[started] = completed
                if different:
                    step.events = True
                    self._touch(step)

    def _begin(self, step: Step, started: float) -> None:
        self.steps.append(step)
        step.number = len(self.steps)
        if not self.began:
            self.began = started
            self.ahead = time.time() - started

    def _member(self, vertex: Message) -> None:
        kind = vertex["progressGroup"]
        group = self.groups.get(kind["id"])
        if group is None:
            group = self.groups[kind["id"]] = Group(self._step(kind["id"]))
            group.step.name = kind["name"]
        group.members[vertex["digest"]] = vertex
        step = self.known[vertex["digest"]] = group.step
        members = group.members.values()
        for member in members:
            if begin := seconds(member["started"]):
                step.spans[begin] = seconds(member["completed"])
                if not member["progressGroup"]["weak"]:
                    group.hidden = False
        step.cached = all(member["cached"] for member in members)
        step.error = next((member["error"] for member in members if member["error"]), "")
        step.started = min(step.spans, default=0.0)
        step.completed = max(step.spans.values()) if step.spans and all(step.spans.values()) else 0.0
        if not group.hidden and step.started:
            if not step.number:
                self._begin(step, step.started)
            step.events = True
            self._touch(step)

    def _log(self, step: Step, log: Message) -> None:
        after = max(0.0, seconds(log["timestamp"]) - step.started) if step.started else 0.0
        digits = 3 if after < 10 else 2 if after < 100 else 1
        stamp = f"{after:.{digits}f} ".encode()
        *whole, rest = log["msg"].split(b"\n")
        for number, piece in enumerate([*whole, rest] if rest else whole):
            if number == 0 and step.partial and step.lines:
                step.lines[-1] = (step.lines[-1] + piece)[:LINE_MAX]
                step.fresh.append(piece)
            else:
                step.lines.append((stamp + piece)[:LINE_MAX])
                step.fresh.append(stamp + piece)
            if number < len(whole):
                step.fresh.append(b"\n")
        step.partial = bool(rest)
        del step.lines[:-LOG_LINES]
        self._touch(step)

    def counted(self) -> tuple[int, int]:
        """(steps that are complete, all that are known)."""
        hidden = {id(group.step) for group in self.groups.values() if group.hidden}
        every = {id(step): step for step in self.known.values() if id(step) not in hidden}
        return sum(bool(step.completed) for step in every.values()), len(every)


def part_size(part: Message) -> str:
    """How far a part of a step is, "" where it does not say."""
    if part["total"]:
        return f"{size_text(part['current'])} / {size_text(part['total'])}"
    return size_text(part["current"]) if part["current"] else ""


def size_text(size: int) -> str:
    """Bytes as BuildKit shows them: 57B, 1.52kB, 10.49MB."""
    if size < 1000:
        return f"{size}B"
    value, number = float(size), 0
    while value >= 1000 and number < 5:
        value /= 1000
        number += 1
    return f"{value:.2f}{'kMGTP'[number - 1]}B"


class Display:
    """How a build is shown. `update` after each message, `tick` now and then, `done` at the end; all by one thread at a
    time."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def update(self, message: Message) -> None:
        """A message has come, and is in the trace already."""

    def tick(self) -> None:
        """Some time has gone."""

    def done(self) -> None:
        """There will be no more messages."""


def write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class Plain(Display):
    """Lines, each with the number of its step; one step after the other as far as they let that be."""

    def __init__(self, trace: Trace, title: str) -> None:
        super().__init__(trace)
        self._current: Step | None = None
        self._last: dict[tuple[str, str], tuple[int, float]] = {}
        self._title = title
        self._any = False
        self._shown_at = 0.0

    def update(self, message: Message) -> None:
        # What changes a moment later, as parts that are done at once do, is shown as it is then.
        if time.monotonic() - self._shown_at >= INTERVAL:
            self._shown_at = time.monotonic()
            self._show()

    def tick(self) -> None:
        self._show()

    def done(self) -> None:
        self._show()
        for step in list(self.trace.changed.values()):
            self._step(step)
        write(failed_steps(self.trace))

    def _show(self) -> None:
        if self._title and self.trace.steps:
            write(f"#0 {self._title}\n")
            self._title, self._any = "", True
        changed = [step for step in self.trace.changed.values() if step.number]
        complete = sorted((step for step in changed if step.completed), key=lambda step: step.completed)
        if self._current in complete:
            self._step(self._current)
        for step in complete:
            if step.digest in self.trace.changed:
                self._step(step)
        rest = [step for step in changed if not step.completed]
        if self._current is not None:
            if self._current in rest:
                rest.remove(self._current)
                self._step(self._current)
            now = time.monotonic()
            late = [step for step in rest if now - step.first > WAITS]
            if late:
                self._step(late[0])
        elif rest:
            self._step(rest[0])
        elif complete:
            waiting = next((step for step in self.trace.steps if step.running), None)
            if waiting is not None:
                self._step(waiting)

    def _step(self, step: Step) -> None:
        """Show what is new of a step."""
        out: list[str] = []
        if step is not self._current:
            if self._current is not None:
                if self._current.open_line:
                    out.append("\n")
                    self._current.open_line = False
                out.append(f"#{self._current.number} ...\n")
            out.append("\n" if self._any else "")
            self._any = True
            out.append(f"#{step.number} {step.name}\n")
        step.events = False
        self._parts(step, out)
        if step.fresh:
            out.append(self._logs(step))
        self._current = step
        if step.completed:
            self._current = None
            out.append(self._end(step))
        self.trace.changed.pop(step.digest, None)
        step.first = 0.0
        write("".join(out))

    def _logs(self, step: Step) -> str:
        text = b"".join(step.fresh).decode("utf-8", "replace")
        step.fresh.clear()
        began = step.open_line
        lines = text.split("\n")
        shown = "\n".join(
            f"#{step.number} {line}" if (number or not began) and (line or number < len(lines) - 1) else line
            for number, line in enumerate(lines)
        )
        step.open_line = not text.endswith("\n")
        return shown

    def _parts(self, step: Step, out: list[str]) -> None:
        for name in [name for name in step.parts if name in step.changed_parts]:
            part = step.parts[name]
            now, last = seconds(part["timestamp"]), self._last.get((step.digest, name))
            if last is not None and not part["completed"]:
                share = (part["current"] - last[0]) / part["total"] if part["total"] else 0.0
                if share < PART_SHARE and now - last[1] < PART_SECONDS:
                    continue
            self._last[step.digest, name] = (part["current"], now)
            if step.open_line:
                out.append("\n")
                step.open_line = False
            size = part_size(part)
            text = f"#{step.number} {name}{' ' + size if size else ''}"
            took = (seconds(part["completed"]) or now) - seconds(part["started"]) if part["started"] else 0.0
            if took > 0.01:
                text += f" {took:.1f}s"
            out.append(text + (" done\n" if part["completed"] else "\n"))
        step.changed_parts.clear()

    @staticmethod
    def _end(step: Step) -> str:
        text = "\n" if step.open_line else ""
        if step.error:
            end = "CANCELED" if not step.failed else f"ERROR: {step.error}"
        elif step.cached:
            end = "CACHED"
        else:
            end = f"DONE {step.completed - step.started:.1f}s"
        step.open_line = False
        return f"{text}#{step.number} {end}\n"


def failed_steps(trace: Trace) -> str:
    """The last lines of each step that failed, as they stand after the progress."""
    out = []
    for step in trace.steps:
        if step.failed:
            lines = "".join(line.decode("utf-8", "replace") + "\n" for line in step.lines)
            out.append(f"------\n > {step.name}:\n{lines}------\n")
    return "".join(out)


class RawJSON(Display):
    """Each message as a line of JSON, with the names that Go's client of BuildKit has."""

    def update(self, message: Message) -> None:
        write(jsontext.dumps(as_json(message)) + "\n")


def moment(stamp: Message | None) -> str | None:
    """A Timestamp as RFC 3339 has it, in UTC, without zeros at its end."""
    if stamp is None:
        return None
    try:
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stamp["seconds"]))
    except (OverflowError, OSError, ValueError):
        return "0001-01-01T00:00:00Z"  # Go's zero time, for what is none
    rest = f".{stamp['nanos']:09d}".rstrip("0").rstrip(".")
    return f"{whole}{rest}Z"


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _some(pairs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pairs.items() if value or value == 0 and key == "current"}


def as_json(message: Message) -> dict[str, Any]:
    """A Status message as Go's client prints it."""
    vertexes = [
        _some(
            {
                "digest": vertex["digest"],
                "inputs": vertex["inputs"],
                "name": vertex["name"],
                "started": moment(vertex["started"]),
                "completed": moment(vertex["completed"]),
                "cached": vertex["cached"],
                "error": vertex["error"],
                "progressGroup": vertex["progressGroup"] and _some(vertex["progressGroup"]),
            }
        )
        for vertex in message["vertexes"]
    ]
    statuses = [
        {
            "id": part["ID"],
            **_some({"vertex": part["vertex"], "name": part["name"], "total": part["total"]}),
            "current": part["current"],
            "timestamp": moment(part["timestamp"]),
            **_some({"started": moment(part["started"]), "completed": moment(part["completed"])}),
        }
        for part in message["statuses"]
    ]
    logs = [
        {
            **_some({"vertex": log["vertex"], "stream": log["stream"]}),
            "data": _base64(log["msg"]),
            "timestamp": moment(log["timestamp"]),
        }
        for log in message["logs"]
    ]
    warnings = [
        _some(
            {
                "vertex": warning["vertex"],
                "level": warning["level"],
                "short": _base64(warning["short"]),
                "detail": [_base64(line) for line in warning["detail"]],
                "url": warning["url"],
                "sourceInfo": warning["info"]
                and _some({"filename": warning["info"]["filename"], "data": _base64(warning["info"]["data"])}),
                "range": [{key: _some(place) for key, place in span.items() if place} for span in warning["ranges"]],
            }
        )
        for warning in message["warnings"]
    ]
    return _some({"vertexes": vertexes, "statuses": statuses, "logs": logs, "warnings": warnings})
