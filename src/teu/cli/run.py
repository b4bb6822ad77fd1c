# SPDX-License-Identifier: Apache-2.0
"""`run` and `create`.

One kept connection serves create, start and the signals. The attached stream and the answer of `wait` have a connection
each, which are opened before the start so that nothing is missed."""

from __future__ import annotations

import os

from teu.cli import createspec, runflags, streams
from teu.cli.command import PROGRAM, Cli, Command, whole_python
from teu.cli.errors import APIError, CommandError, ConnectError
from teu.cli.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.cli import readiness


# An image name of these letters is left to the daemon to judge, which spares 7 ms: what checks it needs re.
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_./:@")


def is_image_id(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def with_tag(image: str) -> str:
    last = image.rpartition("/")[2]
    return image if ":" in last or "@" in image else image + ":latest"


def proxies(cli: Cli, given: list[str]) -> list[str]:
    """Proxy settings of the user's file, unless the command line sets the same variable."""
    table = cli.setting("proxies") or {}
    values = table.get(cli.client.host) or table.get("default") or {}
    names = {
        "httpProxy": "HTTP_PROXY",
        "httpsProxy": "HTTPS_PROXY",
        "ftpProxy": "FTP_PROXY",
        "noProxy": "NO_PROXY",
        "allProxy": "ALL_PROXY",
    }
    taken = {value.partition("=")[0] for value in given}
    result = []
    for key, name in names.items():
        for variable in (name, name.lower()):
            if values.get(key) and variable not in taken:
                result.append(f"{variable}={values[key]}")
    return result


class CidFile:
    """--cidfile: must not exist before; removed again when no container was made."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = -1
        if not path:
            return
        whole_python()  # when ^C comes the file goes
        try:
            self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            raise CommandError(
                f"container ID file found, make sure the other container isn't running or delete {path}", 125
            ) from None
        except OSError as error:
            raise CommandError(
                f"failed to create the container ID file: open {path}: {(error.strerror or '').lower()}", 125
            ) from None

    def write(self, container: str) -> None:
        if self.file >= 0:
            os.write(self.file, container.encode())
            os.close(self.file)
            self.file = -1

    def abandon(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            os.unlink(self.path)


def platform_query(text: str) -> dict[str, Any] | None:
    text = text or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")
    return {"platform": text} if text else None


def pull(cli: Cli, image: str, options: Options) -> None:
    from teu.cli import registry  # 0.9 ms

    registry.pull(cli, image, options["platform"], quiet=options["quiet"], output=2)


def make(cli: Cli, options: Options, image: str, body: dict[str, Any]) -> str:
    """Create the container, pulling the image where that is wanted. Returns its ID."""
    if not PLAIN.issuperset(image) or image.endswith(":"):
        from teu.cli.registry import check_reference  # 7 ms: it imports re for such a name

        check_reference(image)
    if "DOCKER_CONTENT_TRUST" in os.environ or "disable-content-trust" in options.changed:
        from teu.cli.registry import refuse_trust  # 0.9 ms

        refuse_trust(options, 125)
    logins: dict[str, dict[str, str]] = {}
    if options["use-api-socket"]:
        from teu.cli import apisocket  # 15 ms, most of it tarfile's

        logins = apisocket.prepare(cli, body)
    cid = CidFile(options["cidfile"])
    try:
        if options["pull"] == "always":
            pull(cli, image, options)
        if (size := streams.terminal_size()) is not None:
            body["HostConfig"]["ConsoleSize"] = list(size)
        query = {"name": options["name"], **(platform_query(options["platform"]) or {})}
        try:
            answer = cli.client.call("POST", "/containers/create", query, body)
        except APIError as error:
            missing = error.status == 404 and "image" in error.message.lower()
            if not missing or options["pull"] != "missing" or is_image_id(image):
                raise
            if not options["quiet"]:
                cli.warn(f"Unable to find image '{with_tag(image)}' locally")
            pull(cli, image, options)
            answer = cli.client.call("POST", "/containers/create", query, body)
        for warning in answer.get("Warnings") or ():
            cli.warn("WARNING: " + warning)
        cid.write(answer["Id"])
        if logins:
            apisocket.bring(cli, answer["Id"], logins)
        return str(answer["Id"])
    finally:
        cid.abandon()


def complaint(text: str, command: str) -> str:
    """The form of errors of `run`: what was in the way, and where the options are explained."""
    return f"{PROGRAM}: {text}\n\nRun '{PROGRAM} {command} --help' for more information"


def start_code(error: Exception) -> int:
    """127: no such program; 126: it cannot be run; 125: everything else."""
    text = str(error)
    if "executable file not found" in text or "no such file or directory" in text:
        return 127
    if "permission denied" in text or "is a directory" in text:
        return 126
    return 125


def prepare(cli: Cli, options: Options, operands: list[str], command: str) -> dict[str, Any]:
    try:
        if options["pull"] not in ("always", "missing", "never", ""):
            raise ValueError(
                f'invalid pull option: \'{options["pull"]}\': must be one of "always", "missing" or "never"'
            )
        options["env"] = proxies(cli, options["env"]) + options["env"]
        return createspec.build(options, operands[0], operands[1:])
    except createspec.FlagError as error:
        from teu.cli import helptext  # 6 ms, on the way to an error

        raise CommandError(helptext.mistake(cli.called, str(error)), 125) from None
    except ValueError as error:
        raise CommandError(complaint(str(error), command), 125) from None


def create(cli: Cli, options: Options, operands: list[str]) -> int:
    body = prepare(cli, options, operands, "create")
    cli.print(make(cli, options, operands[0], body))
    return 0


def run(cli: Cli, options: Options, operands: list[str]) -> int:
    body = prepare(cli, options, operands, "run")
    if options["detach"]:
        if options["attach"]:
            raise CommandError("conflicting options: cannot specify both --attach and --detach")
        body["AttachStdin"] = body["AttachStdout"] = body["AttachStderr"] = body["StdinOnce"] = False
    else:
        streams.check_terminal(body["AttachStdin"], body["Tty"])
    keys = options["detach-keys"] or cli.setting("detachKeys") or ""
    teller = None
    if options["sdnotify"] != "ignore":
        whole_python()
        from teu.cli import readiness  # 1 ms

        try:
            teller = readiness.teller(cli.client, options["sdnotify"], detached=options["detach"])
        except ValueError as error:
            raise CommandError(complaint(str(error), "run"), 125) from None
    if teller is None:
        return _run(cli, options, operands[0], body, keys, None)
    try:
        teller.prepare(body)
        return _run(cli, options, operands[0], body, keys, teller)
    finally:
        teller.close()


def _run(
    cli: Cli, options: Options, image: str, body: dict[str, Any], keys: str, teller: readiness.Teller | None
) -> int:
    try:
        streams.detach_sequence(keys or streams.DEFAULT_DETACH_KEYS)
        container = make(cli, options, image, body)
    except (APIError, ConnectError) as error:
        code = start_code(error) if isinstance(error, APIError) else 125
        raise CommandError(complaint(str(error), "run"), code) from None
    except CommandError as error:
        raise CommandError(complaint(error.text, "run"), error.code if error.code != 1 else 125) from None
    if body["AttachStdin"] or body["AttachStdout"] or body["AttachStderr"]:
        return attached(cli, options, container, body, keys, teller)
    cli.print(container)
    try:
        cli.client.call("POST", f"/containers/{container}/start")
    except (APIError, ConnectError) as error:
        raise CommandError(complaint(str(error), "run"), start_code(error)) from None
    return 0


def attached(
    cli: Cli, options: Options, container: str, body: dict[str, Any], keys: str, teller: readiness.Teller | None
) -> int:
    """Start the container with our streams attached, and stay until its process ends; a teller tells systemd of it
    meanwhile. Gives the exit status."""
    client = cli.client
    path = "/containers/" + container
    tty = body["Tty"]
    wanted = streams.Attachment(
        tty=tty,
        stdin=body["AttachStdin"],
        stdout=body["AttachStdout"],
        stderr=body["AttachStderr"],
        detach_keys=keys,
    )
    forward = streams.container_forward(client, container) if options["sig-proxy"] else None
    with streams.Signals(streams.caught(tty, forward is not None)) as signals:
        stream = client.hijack(path + "/attach", wanted.query())
        condition = "removed" if options["rm"] else "next-exit"
        waiter = client.open("POST", path + "/wait", {"condition": condition}, own=True)
        try:
            if teller is not None:
                teller.listen(container)
            client.call("POST", path + "/start")
        except (APIError, ConnectError) as error:
            stream.connection.close()
            if options["rm"] and isinstance(error, APIError):
                waiter.read()  # until it is removed
            raise CommandError(complaint(str(error), "run"), start_code(error)) from None
        session = streams.Session(
            client,
            stream,
            wanted,
            waiter=waiter,
            resize=streams.container_resize(client, container),
            forward=forward,
        )
        if tty:
            session.fit()
        if teller is not None:
            session.also = teller.files
            teller.started()
        return session.run(signals) or 0


# What is done of the client's, and cannot be declared.
FLAGS = (
    runflags.FLAGS
    + """
   --use-api-socket     bool        Give the container the daemon's socket, and your log-ins to registries
"""
)
RUN_ONLY = """
-d --detach             bool        Run in the background and print the container's ID
   --sdnotify           string=ignore  In a unit of Type=notify, tell systemd: container, healthy, conmon or ignore
   --sig-proxy          bool=true   Pass received signals on to the process
"""
CREATE_FLAGS = "\n".join(line for line in FLAGS.split("\n") if "--detach-keys" not in line)
COMMANDS = {
    "container run": Command(run, "[OPTIONS] IMAGE [COMMAND] [ARG...]", 1, None, FLAGS + RUN_ONLY, False),
    "container create": Command(create, "[OPTIONS] IMAGE [COMMAND] [ARG...]", 1, None, CREATE_FLAGS, False),
}
