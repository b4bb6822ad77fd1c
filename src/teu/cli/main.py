# SPDX-License-Identifier: Apache-2.0
"""`teu`: docker's command line for teud (or dockerd). bin/teu calls `main`.

This module finds the command, loads its module (and no other), parses its options and turns errors into
messages and exit codes: 125 for wrong usage and for a daemon that refuses `run`, 1 for other failures, else
what the command says. Everything imported here is on the way of every command, so it is little: the whole client
starts in 12 ms. So this package does without typing (8 ms), socket (5 ms: _socket), signal (4 ms: _signal) and
dataclasses (12 ms)."""

from __future__ import annotations

import codecs
import os
import sys

from teu import __version__
from teu.cli import commands
from teu.cli.config import ConfigFile, folder, mentions_headers
from teu.cli.errors import APIError, CommandError, ConnectError
from teu.cli.http import DEFAULT_HOST, Client
from teu.cli.options import Options, Usage, parse, parse_table
from teu.linux.standard import open_what_is_closed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn
else:
    import _signal

PROGRAM = "teu"

GLOBAL_FLAGS = """
   --config      string  Folder of the client's config.json (default: $TEU_CONFIG, $DOCKER_CONFIG, ~/.docker)
!-c --context    string  Accepted for docker's sake; contexts do not exist here
-D --debug       bool    Show the traceback of an unexpected error
-H --host        list    The daemon's address, unix://PATH or tcp://HOST:PORT (default: $TEU_HOST, $DOCKER_HOST, unix:///run/teu/teud.sock)
-l --log-level   string=info  Accepted for docker's sake: debug, info, warn, error or fatal
   --tls         bool    Speak TLS to a tcp:// address
   --tlscacert   string  Trust only this certificate authority
   --tlscert     string  The client's certificate
   --tlskey      string  The client's key
   --tlsverify   bool    Speak TLS and check the daemon's certificate
-v --version     bool    Print the version and exit
"""


class Command:
    """One command: its function, the form of its operands, how many there may be, and its option table."""

    __slots__ = ("function", "interspersed", "least", "most", "table", "usage")

    def __init__(
        self,
        function: Callable[[Cli, Options, list[str]], int | None],
        usage: str,
        least: int,
        most: int | None,
        table: str = "",
        interspersed: bool = True,
    ) -> None:
        self.function = function
        self.usage = usage
        self.least = least
        self.most = most
        self.table = table
        self.interspersed = interspersed


class Cli:
    """What a command gets: the way to the daemon, the user's file, the name it was called by."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.called = ""
        self._client: Client | None = None
        self._config: ConfigFile | None = None

    @property
    def config(self) -> ConfigFile:
        if self._config is None:
            self._config = ConfigFile(folder(self.options["config"]))
        return self._config

    @property
    def client(self) -> Client:
        if self._client is None:
            options = self.options
            hosts = options["host"]
            if len(hosts) > 1:
                raise CommandError("Specify only one -H", 1)
            environment = os.environ
            host = hosts[0] if hosts else environment.get("TEU_HOST") or environment.get("DOCKER_HOST")
            tls = None
            # --tlsverify in any form asks for TLS; =false for one without a check of the daemon's certificate.
            given = "tlsverify" in options.changed
            verify = options["tlsverify"] if given else bool(environment.get("DOCKER_TLS_VERIFY"))
            if options["tls"] or given or verify or environment.get("DOCKER_TLS"):
                where = environment.get("DOCKER_CERT_PATH") or folder(options["config"])
                tls = {}
                for key, option in (("ca", "tlscacert"), ("cert", "tlscert"), ("key", "tlskey")):
                    path = options[option] or f"{where}/{key}.pem"
                    if options[option] or os.path.exists(path):
                        tls[key] = path
                if verify:
                    tls["verify"] = "yes"
            # Only a file that has some is read as a whole, and checked, for a command that needs nothing else of it.
            headers = self.config.headers() if mentions_headers(folder(options["config"])) else None
            self._client = Client(host or DEFAULT_HOST, tls, headers)
        return self._client

    def print(self, text: str) -> None:
        sys.stdout.write(text + "\n")

    def warn(self, text: str) -> None:
        sys.stdout.flush()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def each(self, names: list[str], action: Callable[[str], str | None]) -> int:
        """Do something with every name; print what it returns; tell all failures at the end; exit code 1."""
        failed = []
        for name in names:
            try:
                text = action(name)
            except APIError as error:
                failed.append(str(error))
            else:
                if text is not None:
                    self.print(text)
        if failed:
            self.warn("\n".join(failed))
            return 1
        return 0


def find(words: list[str]) -> tuple[str, str, int]:
    """The command at the start of `words`: (full name, name as called, number of words); raises
    CommandError."""
    first = words[0]
    if first in commands.SHORT:
        return commands.SHORT[first], first, 1
    if first in commands.INDEX:
        return first, first, 1
    if first in commands.GROUPS:
        if len(words) > 1:
            name = f"{first} {words[1]}"
            full = commands.ALIASES.get(name, name)
            if full in commands.INDEX:
                return full, name, 2
            if not words[1].startswith("-"):
                raise CommandError(
                    f"{PROGRAM}: '{name}' is not a {PROGRAM} command.\nSee '{PROGRAM} {first} --help'", 1
                )
        return "", first, 1
    raise CommandError(f"{PROGRAM}: '{first}' is not a {PROGRAM} command.\nSee '{PROGRAM} --help'", 1)


def load(full: str) -> Command:
    module = __import__("teu.cli." + commands.INDEX[full][0], None, None, ["COMMANDS"])
    command: Command = module.COMMANDS[full]
    return command


def check_operands(command: Command, called: str, count: int) -> None:
    least, most = command.least, command.most
    if count >= least and (most is None or count <= most):
        return
    from teu.cli import helptext  # it imports this module

    if most == 0:
        need = "accepts no arguments"
    elif least == most:
        need = f"requires exactly {least} argument{'' if least == 1 else 's'}"
    elif count < least:
        need = f"requires at least {least} argument{'' if least == 1 else 's'}"
    elif least == 0:
        need = f"requires at most {most} argument{'' if most == 1 else 's'}"
    else:
        need = f"requires at least {least} and at most {most} arguments"
    raise CommandError(
        f"\"{PROGRAM} {called}\" {need}.\nSee '{PROGRAM} {called} --help'.\n\n"
        f"{helptext.usage_line(called, command)}\n\n{helptext.summary(called)}"
    )


def dispatch(argv: list[str]) -> int:
    try:
        options, words = parse(parse_table(GLOBAL_FLAGS), argv, interspersed=False)
    except Usage as error:
        raise CommandError(f"{error}\nSee '{PROGRAM} --help'.", 125) from None
    cli = Cli(options)
    if options["version"]:
        cli.print(f"Teu version {__version__}")
        return 0
    if words and words[0] == "help":
        words, options["help"] = words[1:], True
    if not words:
        from teu.cli import helptext  # it imports this module

        cli.print(helptext.top())
        return 0
    if words[0] == "__complete":
        from teu.cli import completion  # it imports this module

        return completion.complete(cli, words[1:])
    full, called, used = find(words)
    if not full:
        from teu.cli import helptext  # it imports this module

        cli.print(helptext.group(called))
        return 0
    command = load(full)
    cli.called = called
    # Options of the top level may follow the command's name too, as in `teu ps -H ...`: docker refuses
    # that, so do we.
    try:
        given, operands = parse(parse_table(command.table), words[used:], command.interspersed)
    except Usage as error:
        raise CommandError(f"{error}\nSee '{PROGRAM} {called} --help'.", 125) from None
    if given["help"] or options["help"]:
        from teu.cli import helptext  # it imports this module

        cli.print(helptext.command(called, command))
        return 0
    check_operands(command, called, len(operands))
    return command.function(cli, given, operands) or 0


def as_it_came(error: UnicodeError) -> tuple[bytes, int]:
    """What is printed for what is no text: the byte of the command line that it stands for, or the sign for what
    cannot be shown, where a JSON text has half a surrogate pair."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    out = [bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else "\ufffd".encode() for c in letters]
    return b"".join(out), error.end


def main() -> NoReturn:
    open_what_is_closed()
    # A reader that goes away ends us quietly, as it ends every filter; sockets are written with MSG_NOSIGNAL.
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    argv = sys.argv[1:]
    codecs.register_error("teu", as_it_came)
    other_locale = sys.stdout.encoding != "utf-8"
    # Whatever the locale says: the API, names and our own marks are UTF-8, as docker's are.
    sys.stdout.reconfigure(encoding="utf-8", errors="teu")  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding="utf-8", errors="teu")  # type: ignore[union-attr]
    if other_locale:
        argv = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in argv]
    # Output is gathered in blocks on pipes and files; the streams of containers bypass it (os.write).
    code = 1
    try:
        code = dispatch(argv)
    except CommandError as error:
        code = error.code
        report(error.text)
    except (APIError, ConnectError) as error:
        report(str(error))
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if "-D" in sys.argv or "--debug" in sys.argv:
            raise
        report(f"{PROGRAM}: unexpected error: {type(error).__name__}: {error}\nRun with -D for the traceback.")
    leave(code)


def report(text: str) -> None:
    if text:
        sys.stdout.flush()
        sys.stderr.write(text + "\n")


def leave(code: int) -> NoReturn:
    """Exit without the interpreter's tear-down: nothing is left to do but to flush."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1
    os._exit(code)
