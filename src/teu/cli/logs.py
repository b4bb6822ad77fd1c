# SPDX-License-Identifier: Apache-2.0
"""`logs`: what a container has written."""

from __future__ import annotations

from teu.cli import streams
from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.options import Options
from teu.oci import units


def logs(cli: Cli, options: Options, operands: list[str]) -> int:
    times = {}
    for name in ("since", "until"):
        if options[name]:
            try:
                times[name] = units.timestamp(options[name])
            except ValueError as error:
                raise CommandError(f'invalid value for "{name}": {error}') from None
    client = cli.client
    found = client.get(f"/containers/{operands[0]}/json")
    query = {
        "stdout": True,
        "stderr": True,
        "follow": options["follow"],
        "timestamps": options["timestamps"],
        "details": options["details"],
        "tail": options["tail"],
        **times,
    }
    response = client.open("GET", f"/containers/{found['Id']}/logs", query)
    if found["Config"]["Tty"]:
        for piece in response.chunks():
            streams.write_all(1, piece)
    else:
        output = streams.Demultiplexer({1: 1, 2: 2})
        for piece in response.chunks():
            output.feed(piece)
    return 0


COMMANDS = {
    "container logs": Command(
        logs,
        "[OPTIONS] CONTAINER",
        1,
        1,
        """
   --details     bool        Show the labels and variables that the log options name
-f --follow      bool        Go on showing what is written
   --since       string      Show what was written after this time, or in the last 42m
-n --tail        string=all  Show the last N lines
-t --timestamps  bool        Show when each line was written
   --until       string      Show what was written before this time, or more than 42m ago
""",
    ),
}
