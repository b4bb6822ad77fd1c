# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of containers: create, ls, rm. Docker's engine has them where it is experimental; an engine that has none
says so."""

from __future__ import annotations

from teu.cli import table
from teu.cli.command import Cli, Command
from teu.cli.options import Options

FOLDER = "   --checkpoint-dir  string  Where checkpoints are kept\n"


def create(cli: Cli, options: Options, operands: list[str]) -> int:
    container, checkpoint = operands
    body = {
        "CheckpointID": checkpoint,
        "CheckpointDir": options["checkpoint-dir"],
        "Exit": not options["leave-running"],
    }
    cli.client.call("POST", f"/containers/{container}/checkpoints", None, body)
    cli.print(checkpoint)
    return 0


def list_checkpoints(cli: Cli, options: Options, operands: list[str]) -> int:
    found = cli.client.get(f"/containers/{operands[0]}/checkpoints", {"dir": options["checkpoint-dir"]})
    columns = {"Name": lambda value: value["Name"]}
    table.print_list(found or [], columns, {"Name": "CHECKPOINT NAME"}, ["Name"])
    return 0


def remove(cli: Cli, options: Options, operands: list[str]) -> int:
    container, checkpoint = operands
    query = {"dir": options["checkpoint-dir"]}
    cli.client.call("DELETE", f"/containers/{container}/checkpoints/{checkpoint}", query)
    return 0


COMMANDS = {
    "checkpoint create": Command(
        create,
        "[OPTIONS] CONTAINER CHECKPOINT",
        2,
        2,
        FOLDER + "   --leave-running   bool    Leave the container running",
    ),
    "checkpoint ls": Command(list_checkpoints, "[OPTIONS] CONTAINER", 1, 1, FOLDER),
    "checkpoint rm": Command(remove, "[OPTIONS] CONTAINER CHECKPOINT", 2, 2, FOLDER),
}
