# SPDX-License-Identifier: Apache-2.0
"""What a log driver is: where a container's output is kept, and how it is read back.

A driver is one file, which ends with its Registration, and one line in the registry. It is made of a LogSource. `write`
is called by the container's hub in the pump's thread, one call at a time; `read` by the route of `logs`, in a thread of
its own, any number at a time. tests/unit/engine/test_log_drivers.py runs on every driver of the registry.
"""

from __future__ import annotations

import re
import socket
import string
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar
from urllib.parse import quote_plus

from teu.engine.core.errors import BadRequest
from teu.oci.template import Template, TemplateError, located

if TYPE_CHECKING:
    from teu.engine.logs.marker import Marker

T = TypeVar("T")
Follower = Callable[[int, bytes], bool]
"""Takes a stream and what was logged of it. False: it can take no more now, and `resume` is called when it can."""

# A longer line is logged in parts of this size, as docker does.
LINE_LIMIT = 16 << 10
# Of a name of a field in the journal.
FIELD_CHARACTERS = string.ascii_uppercase + string.digits + "_"


class Selection(NamedTuple):
    """What a reader wants: streams, a number of last lines (-1: all), moments in nanoseconds (0: open), and what
    `--details` puts in front of each line (after the time stamp)."""

    stdout: bool = True
    stderr: bool = True
    tail: int = -1
    since: int = 0
    until: int = 0
    timestamps: bool = False
    follow: bool = False
    details: bytes = b""


class Piece(NamedTuple):
    """Some whole lines (or parts of a long one) of one stream, with time stamps in the text if wanted."""

    kind: int
    data: bytes


class Output(Protocol):
    """Where a container's output passes while it runs (streams/hub.py)."""

    def follow(self, follower: Follower, begin: Callable[[], T]) -> T:
        """What is logged from now on goes to the follower as well; the result of `begin`, called at this moment."""

    def unfollow(self, follower: Follower) -> None:
        """The reverse."""

    def resume(self) -> None:
        """A follower can take more."""


class LogSource(NamedTuple):
    """What a driver has to know of a container, as it was when the driver was made."""

    id: str
    name: str
    image: str
    """The reference by which the user named it."""
    image_id: str
    labels: dict[str, str]
    env: list[str]
    """NAME=value."""
    command: list[str]
    """The program and its arguments."""
    created: str
    """RFC 3339."""
    type: str
    options: dict[str, str]
    """--log-opt, checked by the registry."""
    directory: str
    """The folder for the container's files."""
    going: Callable[[], bool]
    """Whether more output may come: it runs, or is about to run again."""
    output: Callable[[], Output]


class Driver(Protocol):
    """One container's log. Streams are 1 (stdout) and 2 (stderr).

    Whatever is not written because of the log (a full disk, a journal that is behind or away) stays in the container's
    FIFO: no method but `open` waits, and none raises for want of room.
    """

    stalled: bool
    """The last write ended where it did because the log accepts no more at the moment."""

    def open(self) -> None:
        """Before a run, in a thread that may wait: is there what the log is written to? Raises EngineError."""

    def write(self, kind: int, data: bytes, final: bool, marker: Marker) -> int:
        """Log the whole lines in data, and parts of LINE_LIMIT bytes of a longer line; with `final`, which is the
        output's end, all of it. Before a byte is logged, and after, the marker is set. The number of bytes that need
        not come again: 0 where there is no whole line, or where the log is stalled."""

    def rewind(self, position: int) -> None:
        """After a death of the engine: a write that began at this position, as its marker says, may be incomplete. Undo
        it."""

    def flush(self) -> None:
        """The run's output has ended: who follows is told."""

    def close(self) -> None:
        """Let go of files and sockets. A later write opens them again. Doing it twice is fine."""

    def read(self, selection: Selection) -> Iterator[Piece | None]:
        """What was logged, the oldest first, and the rest as it comes where `follow` is chosen, until the source is not
        going any more. None: nothing to say at the moment (only when following)."""

    def remove(self) -> None:
        """At the container's removal: nothing that only this log needs is left. The driver is not used any more."""


class Registration(NamedTuple):
    """What the registry knows of a driver."""

    options: frozenset[str]
    """The names of its --log-opt, besides those of all drivers."""
    check: Callable[[dict[str, str]], None]
    """Look at the values of its options; raises BadRequest with the option's name."""
    create: Callable[[LogSource], Driver | None]
    """None: nothing is kept, and `logs` is refused."""
    remote: bool = False
    """The log goes elsewhere; a copy that can be read is kept here (logs/remote.py)."""


def whole_lines(data: bytes, final: bool) -> int:
    """How much of data can be logged: up to the last newline, or full parts of a line without one."""
    if final:
        return len(data)
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) >= LINE_LIMIT:
        return len(data) - len(data) % LINE_LIMIT
    return end


def described(source: LogSource) -> dict[str, object]:
    """What docker tells of a container, by its names, to templates of tags and to plugins."""
    return {
        "Config": source.options,
        "ContainerID": source.id,
        "ContainerName": "/" + source.name,
        "ContainerEntrypoint": source.command[0] if source.command else "",
        "ContainerArgs": source.command[1:],
        "ContainerImageID": source.image_id,
        "ContainerImageName": source.image,
        "ContainerCreated": source.created,
        "ContainerEnv": source.env,
        "ContainerLabels": source.labels,
        "DaemonName": "teud",
    }


class _Described:
    """A container as a template of --log-opt tag sees it: docker's names of what it knows of one."""

    def __init__(self, source: LogSource) -> None:
        self._fields = {
            "ID": source.id[:12],
            "FullID": source.id,
            "Name": source.name,
            "ImageID": source.image_id.removeprefix("sha256:")[:12],
            "ImageFullID": source.image_id,
            "ImageName": source.image,
            "Command": command(source),
            "Hostname": socket.gethostname(),
            "ExtraAttributes": extra_attributes(source),
            **described(source),
        }

    def field(self, name: str) -> object:
        """Called by the template. Raises LookupError."""
        if name not in self._fields:
            raise LookupError(f"a container has no field {name} for the tag of its log")
        return self._fields[name]


def tag(source: LogSource, default: str = "{{.ID}}") -> str:
    """--log-opt tag, a template of Go's. Raises BadRequest, which can happen with the container's own data only."""
    template = source.options.get("tag") or default
    try:
        return _template(template).render(_Described(source))
    except TemplateError as error:
        raise BadRequest(f"log opt tag: {located(error)}") from None


def _template(text: str) -> Template:
    # ExtraAttributes takes an argument in docker, which is nil wherever it is used.
    return Template(re.sub(r"\.ExtraAttributes\s+nil\b", ".ExtraAttributes", text))


def check_attributes(options: dict[str, str]) -> None:
    """The tag's template and the regular expressions. Raises BadRequest."""
    try:
        _template(options.get("tag", ""))
    except TemplateError as error:
        raise BadRequest(f"log opt tag: {located(error)}") from None
    for name in ("labels-regex", "env-regex"):
        try:
            re.compile(options.get(name, ""))
        except re.error as error:
            raise BadRequest(f"log opt {name}: {error}") from None


def command(source: LogSource) -> str:
    """What the container runs, in a line."""
    return " ".join(source.command)


def extra_attributes(source: LogSource) -> dict[str, str]:
    """--log-opt labels, labels-regex, env and env-regex."""
    result: dict[str, str] = {}
    variables = dict(entry.split("=", 1) for entry in source.env if "=" in entry)
    for values, plain, pattern in (
        (source.labels, "labels", "labels-regex"),
        (variables, "env", "env-regex"),
    ):
        for name in filter(None, source.options.get(plain, "").split(",")):
            if name in values:
                result[name] = values[name]
        if source.options.get(pattern):
            expression = re.compile(source.options[pattern])
            result.update({name: value for name, value in values.items() if expression.search(name)})
    return result


def written_attributes(source: LogSource) -> dict[str, str]:
    """What a driver that writes files keeps with each line: those attributes, and a tag where one was asked for."""
    found = extra_attributes(source)
    if source.options.get("tag"):
        found["tag"] = tag(source)
    return found


def details(source: LogSource) -> bytes:
    """Those attributes as `logs --details` shows them."""
    found = extra_attributes(source) if source.type == "journald" else written_attributes(source)
    return ",".join(f"{quote_plus(key)}={quote_plus(found[key])}" for key in sorted(found)).encode() + b" "
