# SPDX-License-Identifier: Apache-2.0
"""Log drivers: where a container's output is kept, and how it is read back.

`write` is called by the container's hub in the pump's thread; `read` by the route of `logs` in the
connection's thread. `open_driver` makes the one that a container's LogConfig names.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.streams.hub import Marker

# A longer line is logged in parts of this size, as docker does.
LINE_LIMIT = 16 << 10


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


class Driver(Protocol):
    stalled: bool  # the last write ended where it did because the log accepts no more at the moment

    def write(self, kind: int, data: bytes, final: bool, marker: Marker) -> int:
        """Log the whole lines in data (all of it if final). The number of bytes that need not come again."""

    def rewind(self, position: int) -> None:
        """A write that began at this position may be incomplete: undo it."""

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def read(self, selection: Selection) -> Iterator[Piece | None]:
        """None: nothing to say at the moment (only when following)."""

    def remove(self) -> None: ...


def open_driver(container: Container) -> Driver | None:
    kind = container.log_type
    if kind == "none":
        return None
    if kind == "journald":
        from teu.engine.logs.journald import Journald

        return Journald(container)
    from teu.engine.logs.jsonfile import JsonFile

    return JsonFile(container)


def whole_lines(data: bytes, final: bool) -> int:
    """How much of data can be logged: up to the last newline, or full parts of a line without one."""
    if final:
        return len(data)
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) >= LINE_LIMIT:
        return len(data) - len(data) % LINE_LIMIT
    return end


def tag(container: Container, template: str) -> str:
    """--log-opt tag: the fields that docker's templates have most use for."""
    values = {
        "{{.ID}}": container.id[:12],
        "{{.FullID}}": container.id,
        "{{.Name}}": container.name,
        "{{.ImageID}}": container.image_id.removeprefix("sha256:")[:12],
        "{{.ImageFullID}}": container.image_id,
        "{{.ImageName}}": str(container.config.get("Image") or ""),
        "{{.DaemonName}}": "teud",
    }
    for key, value in values.items():
        template = template.replace(key, value)
    return template


def extra_attributes(container: Container) -> dict[str, str]:
    """--log-opt labels, labels-regex, env and env-regex."""
    import re

    options = container.host_config["LogConfig"]["Config"] or {}
    result: dict[str, str] = {}
    variables = dict(entry.split("=", 1) for entry in container.config.get("Env") or () if "=" in entry)
    for source, plain, pattern in (
        (container.labels, "labels", "labels-regex"),
        (variables, "env", "env-regex"),
    ):
        for name in filter(None, options.get(plain, "").split(",")):
            if name in source:
                result[name] = source[name]
        if options.get(pattern):
            expression = re.compile(options[pattern])
            result.update({name: value for name, value in source.items() if expression.search(name)})
    return result


def details(container: Container) -> bytes:
    """Those attributes as `logs --details` shows them."""
    from urllib.parse import quote_plus

    found = extra_attributes(container)
    return ",".join(f"{quote_plus(key)}={quote_plus(found[key])}" for key in sorted(found)).encode() + b" "


FIELD_CHARACTERS = string.ascii_uppercase + string.digits + "_"
