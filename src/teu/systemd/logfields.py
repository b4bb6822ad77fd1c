# SPDX-License-Identifier: Apache-2.0
"""Fields that journald adds to all that the processes of a unit log, whatever they log by.

systemd writes LogExtraFields= of a service (systemd.exec(5)) to a file that journald reads when it first sees one of
the unit's processes. Scopes have no such property; the file is read for them all the same:

    /run/systemd/units/log-extra-fields:UNIT    for each field its length, 8 bytes, little endian, and NAME=VALUE

Where journald knows no such file nothing is added. A scope that has gone leaves its file: `drop` removes it.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# Where journald listens for messages of programs.
SOCKETS = ("/run/systemd/journal/socket", "/run/systemd/journal/dev-log", "/dev/log")
PREFIX = "/run/systemd/units/log-extra-fields:"


def put(unit: str, fields: Mapping[str, str]) -> None:
    """Have journald add the fields to what is logged from now on in the unit. Raises OSError."""
    content = b""
    for name, value in fields.items():
        field = f"{name}={value}".encode("utf-8", "surrogateescape")
        content += len(field).to_bytes(8, "little") + field
    path = f"{PREFIX}{unit}"
    part = f"{path}.{os.getpid()}"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
    os.rename(part, path)


def drop(unit: str) -> None:
    """Forget the unit's fields. Never fails: the file is in memory, and goes with the boot."""
    try:
        os.unlink(f"{PREFIX}{unit}")
    except OSError:
        pass
