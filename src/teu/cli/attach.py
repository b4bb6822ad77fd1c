# SPDX-License-Identifier: Apache-2.0
"""`attach` and `start`: join a container that exists already."""

from __future__ import annotations

from teu.cli import streams
from teu.cli.command import Cli, Command
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options


def attach(cli: Cli, options: Options, operands: list[str]) -> int:
    client = cli.client
    found = client.get(f"/containers/{operands[0]}/json")
    state, config, container = found["State"], found["Config"], found["Id"]
    if not state["Running"]:
        raise CommandError("You cannot attach to a stopped container, start it first")
    if state.get("Paused"):
        raise CommandError("You cannot attach to a paused container, unpause it first")
    if state.get("Restarting"):
        raise CommandError("You cannot attach to a restarting container, wait until it is running")
    tty = config["Tty"]
    stdin = not options["no-stdin"] and config["OpenStdin"]
    streams.check_terminal(stdin, tty)
    keys = options["detach-keys"] or cli.setting("detachKeys") or ""
    attached = streams.Attachment(tty=tty, stdin=stdin, detach_keys=keys)
    path = "/containers/" + container
    waiter = client.open("POST", path + "/wait", {"condition": ""}, own=True)
    forward = streams.container_forward(client, container) if options["sig-proxy"] and not tty else None
    with streams.Signals(streams.caught(tty, forward is not None)) as signals:
        stream = client.hijack(path + "/attach", attached.query())
        resize = streams.container_resize(client, container)
        session = streams.Session(
            client,
            stream,
            attached,
            waiter=waiter,
            resize=resize,
            forward=forward,
        )
        if tty and (size := streams.terminal_size()) is not None:
            # A changed size makes full-screen programs draw themselves again.
            try:
                resize(size[0] + 1, size[1] + 1)
            except APIError:
                pass
            session.fit()
        status = session.run(signals)
    if session.detached:
        raise CommandError("read escape sequence")
    return status or 0


def start(cli: Cli, options: Options, operands: list[str]) -> int:
    client = cli.client
    query = {"checkpoint": options["checkpoint"], "checkpoint-dir": options["checkpoint-dir"]}
    if options["checkpoint"] and len(operands) > 1:
        raise CommandError("you cannot restore multiple containers at once")
    if not (options["attach"] or options["interactive"]):
        failed = []
        for name in operands:
            try:
                client.call("POST", f"/containers/{name}/start", query)
                cli.print(name)
            except APIError as error:
                cli.warn(str(error))
                failed.append(name)
        if failed:
            raise CommandError("Error: failed to start containers: " + ", ".join(failed))
        return 0
    if len(operands) > 1:
        raise CommandError("you cannot start and attach multiple containers at once")
    found = client.get(f"/containers/{operands[0]}/json")
    container, config = found["Id"], found["Config"]
    tty = config["Tty"]
    stdin = options["interactive"] and config["OpenStdin"]
    keys = options["detach-keys"] or cli.setting("detachKeys") or ""
    attached = streams.Attachment(tty=tty, stdin=stdin, detach_keys=keys)
    path = "/containers/" + container
    forward = streams.container_forward(client, container) if not tty else None
    with streams.Signals(streams.caught(tty, forward is not None)) as signals:
        stream = client.hijack(path + "/attach", attached.query())
        condition = "removed" if found["HostConfig"].get("AutoRemove") else "next-exit"
        waiter = client.open("POST", path + "/wait", {"condition": condition}, own=True)
        client.call("POST", path + "/start", query)
        session = streams.Session(
            client,
            stream,
            attached,
            waiter=waiter,
            resize=streams.container_resize(client, container),
            forward=forward,
        )
        if tty:
            session.fit()
        status = session.run(signals)
    return status or 0


COMMANDS = {
    "container attach": Command(
        attach,
        "[OPTIONS] CONTAINER",
        1,
        1,
        """
   --detach-keys  string     Keys that detach from the container (default ctrl-p,ctrl-q)
   --no-stdin     bool       Do not attach standard input
   --sig-proxy    bool=true  Pass received signals on to the process
""",
    ),
    "container start": Command(
        start,
        "[OPTIONS] CONTAINER [CONTAINER...]",
        1,
        None,
        """
-a --attach          bool    Attach to the output and pass signals on
!  --checkpoint      string  Restore from this checkpoint
!  --checkpoint-dir  string  Where the checkpoint is
   --detach-keys     string  Keys that detach from the container (default ctrl-p,ctrl-q)
-i --interactive     bool    Attach to the container's input
""",
    ),
}
