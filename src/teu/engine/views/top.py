# SPDX-License-Identifier: Apache-2.0
"""`top`: the host's ps, limited to the container's processes."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from teu.engine.backend import tasks
from teu.engine.core.errors import BadRequest, EngineError

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine


def processes(engine: Engine, container: Container, arguments: str) -> dict[str, object]:
    pids = set(map(str, tasks.pids(engine.containerd, container.id)))
    for value in re.findall(r"\s+(\S*)=\s*(PID\S*)", arguments):
        if value[0] != "pid":  # another column of that name would be taken for the one of the processes
            raise EngineError(f'specifying "{value[0]}={value[1]}" is not allowed')
    if "\0" in arguments:  # no program can be told such a thing
        raise BadRequest(f"ps_args must not contain a NUL character: {arguments[:100]!r}")
    words = arguments.split()
    # The selection comes last and is added by us; options alone cannot name files or programs to ps.
    result = subprocess.run(
        ["ps", *words, "-q", ",".join(sorted(pids, key=int))],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if result.returncode != 0 or not result.stdout:
        result = subprocess.run(
            ["ps", *words],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
        )
    if result.returncode != 0:
        reason = result.stderr.strip().partition("\n")[0] or f"exit status {result.returncode}"
        raise EngineError(f"ps: {reason}")
    # Only what is in the container still: the number of one that has ended meanwhile may be another process's.
    pids &= set(map(str, tasks.pids(engine.containerd, container.id)))
    lines = result.stdout.splitlines()
    titles = lines[0].split()
    if "PID" not in titles:
        raise BadRequest("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column] in pids:
            rows.append(fields)
    return {"Titles": titles, "Processes": rows}
