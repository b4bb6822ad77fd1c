# SPDX-License-Identifier: Apache-2.0
"""What a command of `teu` is, how one is found by its words, and what it gets: options, the way to the daemon, the
user's file. Used by `main`, by the help and the completion, and by every module of commands."""

from __future__ import annotations

import os
import sys

from teu.cli import commands
from teu.cli.errors import APIError, CommandError
from teu.cli.http import DEFAULT_HOST, Client
from teu.cli.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from teu.cli.config import ConfigFile


PROGRAM = "teu"

GLOBAL_FLAGS = """
   --config      string  Folder of the client's config.json (default: $TEU_CONFIG, $DOCKER_CONFIG, ~/.docker)
-c --context     string  The context to use, see teu context (default: $DOCKER_CONTEXT, or what `teu context use` chose)
-D --debug       bool    Show the traceback of an unexpected error
-H --host        list    The daemon: unix://PATH, tcp://HOST:PORT, ssh://HOST (default: $TEU_HOST, $DOCKER_HOST, unix:///run/teu/teud.sock)
-l --log-level   string=info  Accepted for docker's sake: debug, info, warn, error or fatal
   --tls         bool    Speak TLS to a tcp:// address
   --tlscacert   string  Trust only this certificate authority
   --tlscert     string  The client's certificate
   --tlskey      string  The client's key
   --tlsverify   bool    Speak TLS and check the daemon's certificate
-v --version     bool    Print the version and exit
"""


# Keys of which every command has to know whether they are there.
EVERYONES = ("httpheaders", "currentcontext", "plugins", "aliases")


def folder(given: str) -> str:
    if given:
        return given
    found = os.environ.get("TEU_CONFIG") or os.environ.get("DOCKER_CONFIG")
    if found:
        return found
    home = os.environ.get("HOME")
    if not home:
        import pwd  # 0.02 ms, of those who have no home in their environment

        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = "/"
    return home + "/.docker"


def mentions(directory: str) -> frozenset[str]:
    """Which keys the file may have that are every command's business, of EVERYONES, in lower case; a few microseconds,
    as every command asks."""
    try:
        file = os.open(directory + "/config.json", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return frozenset()
    try:
        text = b""
        while part := os.read(file, 1 << 20):
            text += part
    except OSError:  # a folder
        return frozenset()
    finally:
        os.close(file)
    text = text.lower()
    return frozenset(key for key in EVERYONES if b'"%b"' % key.encode() in text)


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
        self._mentions: frozenset[str] | None = None

    @property
    def folder(self) -> str:
        """That of config.json and of the contexts."""
        return folder(self.options["config"])

    @property
    def config(self) -> ConfigFile:
        if self._config is None:
            from teu.cli.config import ConfigFile  # 0.2 ms of the 10 of a command that needs nothing of the file

            self._config = ConfigFile(self.folder)
        return self._config

    def setting(self, key: str) -> Any:
        """What the user's file has under a key, or None. Most have no such file, and need not load its reader."""
        if self._config is None and not os.path.exists(self.folder + "/config.json"):
            return None
        return self.config.values.get(key)

    def mentions(self, key: str) -> bool:
        """Whether config.json may have that key of EVERYONES. Only where a command needs something of the
        file it is read as a whole, and checked."""
        if self._mentions is None:
            self._mentions = mentions(self.folder)
        return key in self._mentions

    @property
    def context(self) -> str:
        """The name of the context in force; `default` is what -H and the environment say."""
        options, environment = self.options, os.environ
        if options["context"]:
            if options["host"]:
                raise CommandError("conflicting options: cannot specify both --host and --context")
            return str(options["context"])
        if options["host"] or environment.get("TEU_HOST") or environment.get("DOCKER_HOST"):
            return "default"
        if name := environment.get("DOCKER_CONTEXT"):
            return name
        return (self.config.get("currentContext") if self.mentions("currentcontext") else "") or "default"

    def default_endpoint(self) -> tuple[str, dict[str, str] | None]:
        """The daemon that -H and the environment say: its address, and the files of its TLS; None: none."""
        options, environment = self.options, os.environ
        hosts = options["host"]
        if len(hosts) > 1:
            raise CommandError("Specify only one -H", 1)
        host = hosts[0] if hosts else environment.get("TEU_HOST") or environment.get("DOCKER_HOST")
        tls = None
        # --tlsverify in any form asks for TLS; =false for one without a check of the daemon's certificate.
        given = "tlsverify" in options.changed
        verify = options["tlsverify"] if given else bool(environment.get("DOCKER_TLS_VERIFY"))
        if options["tls"] or given or verify or environment.get("DOCKER_TLS"):
            where = environment.get("DOCKER_CERT_PATH") or self.folder
            tls = {}
            for key, option in (("ca", "tlscacert"), ("cert", "tlscert"), ("key", "tlskey")):
                path = options[option] or f"{where}/{key}.pem"
                if options[option] or os.path.exists(path):
                    tls[key] = path
            if verify:
                tls["verify"] = "yes"
        return host or DEFAULT_HOST, tls

    @property
    def client(self) -> Client:
        if self._client is None:
            name = self.context
            if name == "default":
                host, tls = self.default_endpoint()
            else:
                from teu.cli.contextstore import Store  # 6 ms

                host, tls = Store(self.folder).endpoint(name)
            if text := os.environ.get("DOCKER_CUSTOM_HEADERS"):
                from teu.cli.config import headers_of_environment  # as above

                headers: dict[str, str] | None = headers_of_environment(text)
            else:
                headers = self.config.headers() if self.mentions("httpheaders") else None
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


def unknown(name: str, group: str) -> str:
    """That there is no such command, of the program (group: "") or of one of its groups."""
    group = f"{PROGRAM} {group}".rstrip()
    usage = f"Usage:  {group}\n\n" if " " in group else ""
    return f"{PROGRAM}: unknown command: {PROGRAM} {name}\n\n{usage}Run '{group} --help' for more information"


def find(words: list[str]) -> tuple[str, str, int]:
    """The command at the start of `words`: (full name, name as called, number of words). The full name is "" where
    only a group is named. Raises CommandError for a word that is no command."""
    if words[0] == "buildx":  # as docker's users have it
        words = ["builder", *words[1:]]
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
            if name in commands.GROUPS:
                return _find_inner(name, words)
            if not words[1].startswith("-"):
                raise CommandError(unknown(name, first), 1)
        return "", first, 1
    raise CommandError(unknown(first, ""), 1)


def _find_inner(group: str, words: list[str]) -> tuple[str, str, int]:
    """The command of a group inside a group, as `builder history ls`."""
    if len(words) > 2:
        name = f"{group} {words[2]}"
        full = commands.ALIASES.get(name, name)
        if full in commands.INDEX:
            return full, name, 3
        if not words[2].startswith("-"):
            raise CommandError(unknown(name, group), 1)
    return "", group, 2


def whole_python() -> None:
    """After a quick start (teu.coldstart), do what it has left out, 3 ms: for what forks, asks, or has something to
    undo when ^C comes, a KeyboardInterrupt from now on, and before the end. As a script: nothing."""
    # for which Python's start must be complete: coldstart/boot.py
    import _signal  # type: ignore[import-not-found]  # noqa: F401


def load(full: str) -> Command:
    """The command of that full name; its module is loaded."""
    name = commands.INDEX[full][0]
    if name not in commands.QUICK:
        whole_python()
    module = __import__("teu.cli." + name, None, None, ["COMMANDS"])
    command: Command = module.COMMANDS[full]
    return command
