# SPDX-License-Identifier: Apache-2.0
"""`exec`: a further process in a running container."""

from __future__ import annotations

import time

from teu.cli import streams
from teu.cli.command import Cli, Command
from teu.cli.createspec import environment
from teu.cli.errors import CommandError
from teu.cli.options import Options


def execute(cli: Cli, options: Options, operands: list[str]) -> int:
    client = cli.client
    tty, detach = options["tty"], options["detach"]
    stdin = options["interactive"] and not detach
    keys = options["detach-keys"] or cli.setting("detachKeys") or ""
    streams.detach_sequence(keys or streams.DEFAULT_DETACH_KEYS)
    if not detach:
        streams.check_terminal(stdin, tty)
    body = {
        "AttachStdin": stdin,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "Tty": tty,
        "Detach": detach,
        "DetachKeys": keys,
        "User": options["user"],
        "Privileged": options["privileged"],
        "WorkingDir": options["workdir"],
        "Cmd": operands[1:],
    }
    try:
        variables = environment(options["env"], options["env-file"])
    except ValueError as error:
        raise CommandError(str(error)) from None
    if variables:
        body["Env"] = variables
    size = streams.terminal_size() if tty else None
    if size is not None:
        body["ConsoleSize"] = list(size)
    process = client.call("POST", f"/containers/{operands[0]}/exec", None, body)["Id"]
    path = "/exec/" + process
    if detach:
        client.call("POST", path + "/start", None, {"Detach": True, "Tty": tty})
        return 0
    with streams.Signals(streams.caught(tty, False)) as signals:
        request = {"Detach": False, "Tty": tty}
        if size is not None:
            request["ConsoleSize"] = list(size)
        stream = client.hijack(path + "/start", None, request)
        session = streams.Session(
            client,
            stream,
            streams.Attachment(tty=tty, stdin=stdin, detach_keys=keys),
            resize=lambda rows, columns: client.call("POST", path + "/resize", {"h": str(rows), "w": str(columns)}),
        )
        if tty and size is None:
            session.fit()
        session.run(signals)
    if session.detached:
        raise CommandError("read escape sequence")
    for pause in (0, 0.05, 0.2, 0.75):  # the exit may be noted a moment after the end of the streams
        time.sleep(pause)
        state = client.get(path + "/json")
        if not state.get("Running"):
            return int(state.get("ExitCode") or 0)
    raise CommandError("the daemon ended the connection, and the process still runs: its exit code is not known", 125)


COMMANDS = {
    "container exec": Command(
        execute,
        "[OPTIONS] CONTAINER COMMAND [ARG...]",
        2,
        None,
        """
-d --detach       bool    Run the command in the background
   --detach-keys  string  Keys that detach from the process (default ctrl-p,ctrl-q)
-e --env          list    Set an environment variable, NAME=VALUE, or NAME to copy ours
   --env-file     list    Read environment variables from a file
-i --interactive  bool    Keep standard input open
   --privileged   bool    Give all capabilities to the command
-t --tty          bool    Give the command a terminal
-u --user         string  Run as this user, NAME|UID[:GROUP|GID]
-w --workdir      string  Working directory of the command
""",
        False,
    ),
}
