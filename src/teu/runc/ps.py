# SPDX-License-Identifier: Apache-2.0
"""teu-runc ps: the processes of a container, as ps(1) shows them or as a JSON list of pids."""

from __future__ import annotations

import os

from teu.oci import jsontext
from teu.runc import cgroups, state
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "ps displays the processes running inside a container"
USAGE = "<container-id> [ps options]"
FLAGS: dict[str, tuple[str, str, object, str]] = {
    "format": ("f", "string", "table", "select one of: table or json"),
}
ARGUMENTS = (1, None)
STOP_AT = 1


def run_ps(options: list[str]) -> str:
    """What ps(1) of the host prints with these options."""
    reader, writer = os.pipe()
    ps = next((path for path in ("/usr/bin/ps", "/bin/ps") if os.path.exists(path)), None)
    if ps is None:
        raise RuncError('exec: "ps": executable file not found in $PATH: install procps')
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)]
    pid = os.posix_spawn(ps, ["ps", *options], os.environ, file_actions=actions)
    os.close(writer)
    with open(reader, errors="replace") as out:
        text = out.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise RuncError(f"exit status {code}: {text.strip()}")
    return text


def main(arguments: Arguments, settings: Settings) -> int:
    container_id, *options = arguments.positional
    if arguments["format"] not in ("table", "json"):
        raise RuncError("invalid format option")
    container = state.load(settings.root, container_id)
    pids = cgroups.load(container.record["cgroup"]).pids()
    if arguments["format"] == "json":
        os.write(1, jsontext.to_bytes(pids or None) + b"\n")
        return 0
    title, _, body = run_ps(options or ["-ef"]).partition("\n")
    titles = title.split()
    if "PID" not in titles:
        raise RuncError("couldn't find PID field in ps output")
    column = titles.index("PID")
    lines = [title]
    wanted = {str(pid) for pid in pids}
    lines += [line for line in body.splitlines() if len(line.split()) > column and line.split()[column] in wanted]
    os.write(1, os.fsencode("\n".join(lines) + "\n"))
    return 0
