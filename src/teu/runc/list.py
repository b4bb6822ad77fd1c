# SPDX-License-Identifier: Apache-2.0
"""teu-runc list: the containers under --root, as a table, as JSON, or ids alone."""

from __future__ import annotations

import os
import pwd

from teu.oci import jsontext
from teu.runc import state
from teu.runc.errors import RuncError
from teu.runc.state_command import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "lists containers started by teu-runc with the given root"
USAGE = ""
FLAGS: dict[str, tuple[str, str, object, str]] = {
    "format": ("f", "string", "table", "select one of: table or json"),
    "quiet": ("q", "bool", False, "display only container IDs"),
}
ARGUMENTS = (0, 0)

COLUMNS = (
    ("ID", "id"),
    ("PID", "pid"),
    ("STATUS", "status"),
    ("BUNDLE", "bundle"),
    ("CREATED", "created"),
    ("OWNER", "owner"),
)
MINIMUM_WIDTH = 12
PADDING = 3


def owner(folder: str) -> str:
    """The name of the user who made the container; #UID where the id has no name."""
    uid = os.stat(folder).st_uid
    if uid == 0:
        return "root"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def table(rows: list[list[str]]) -> str:
    """Columns at least twelve wide, three apart, the last one ragged: Go's tabwriter as runc sets it."""
    widths = [max(MINIMUM_WIDTH, *(len(row[n]) + PADDING for row in rows)) for n in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        lines.append("".join(cell.ljust(width) for cell, width in zip(row, widths)) + row[-1])
    return "\n".join(lines) + "\n"


def main(arguments: Arguments, settings: Settings) -> int:
    if arguments["format"] not in ("table", "json"):
        raise RuncError("invalid format option")
    if settings.root_given and not os.path.isdir(settings.root):
        # as runc: a default root that is not there yet is an empty one, a named one a mistake
        raise RuncError(f"open {settings.root}: no such file or directory")
    containers = []
    for container in state.load_all(settings.root):
        try:
            described = describe(container)
            described["owner"] = owner(container.folder)
        except FileNotFoundError:
            # Deleted meanwhile.
            continue
        containers.append(described)
    if arguments["quiet"]:
        text = os.fsencode("".join(f"{described['id']}\n" for described in containers))
    elif arguments["format"] == "json":
        # Of no container, Go makes null.
        text = jsontext.to_bytes(containers or None) + b"\n"
    else:
        rows = [[title for title, _ in COLUMNS]]
        rows += [[str(described[key]) for _, key in COLUMNS] for described in containers]
        text = os.fsencode(table(rows))
    os.write(1, text)
    return 0
