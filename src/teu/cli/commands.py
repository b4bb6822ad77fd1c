# SPDX-License-Identifier: Apache-2.0
"""The commands: which there are, under which names and in which module each one lives; what a command is made of
(`Command`), and what it gets (`Cli`).

`main` finds a command here and loads its module, and no other; the help, the man pages and the completion read the
same tables. A module named here has a table COMMANDS of what `Command` holds. This module stands below all of them."""

from __future__ import annotations

import os
import sys

from teu.cli.errors import APIError, CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from teu.cli.config import ConfigFile
    from teu.cli.http import Client
    from teu.cli.options import Options

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


# Full name: (module in this package, one-line summary).
INDEX = {
    "builder prune": ("build", "Remove the build cache"),
    "container attach": ("attach", "Attach the terminal's input and output to a running container"),
    "container commit": ("lifecycle", "Make a new image from a container's changes"),
    "container cp": ("copy", "Copy files between a container and the local file system"),
    "container create": ("run", "Create a container without starting it"),
    "container diff": ("containers", "Show which files of a container have changed"),
    "container exec": ("execute", "Run a command in a running container"),
    "container export": ("copy", "Write a container's file system as a tar archive"),
    "container inspect": ("inspect", "Show all that is known of containers"),
    "container kill": ("lifecycle", "Send a signal to running containers"),
    "container logs": ("logs", "Show what a container has written"),
    "container ls": ("containers", "List containers"),
    "container pause": ("lifecycle", "Freeze all processes of containers"),
    "container port": ("containers", "Show the published ports of a container"),
    "container prune": ("prune", "Remove all stopped containers"),
    "container rename": ("lifecycle", "Give a container another name"),
    "container restart": ("lifecycle", "Stop and start containers"),
    "container rm": ("lifecycle", "Remove containers"),
    "container run": ("run", "Create a container from an image and start it"),
    "container start": ("attach", "Start stopped containers"),
    "container stats": ("stats", "Show what containers use, live"),
    "container stop": ("lifecycle", "Stop running containers"),
    "container top": ("containers", "Show the processes of a container"),
    "container unpause": ("lifecycle", "Thaw paused containers"),
    "container update": ("update", "Change the limits of containers"),
    "container wait": ("lifecycle", "Wait until containers stop, then print their exit codes"),
    "image build": ("build", "Build an image from a Dockerfile"),
    "image history": ("images", "Show how an image was made"),
    "image import": ("archives", "Make an image from a tar archive of a file system"),
    "image inspect": ("inspect", "Show all that is known of images"),
    "image load": ("archives", "Load images from a tar archive"),
    "image ls": ("images", "List images"),
    "image prune": ("prune", "Remove unused images"),
    "image pull": ("registry", "Download an image from a registry"),
    "image push": ("registry", "Upload an image to a registry"),
    "image rm": ("images", "Remove images"),
    "image save": ("archives", "Write images to a tar archive"),
    "image tag": ("images", "Give an image a further name"),
    "network connect": ("networks", "Connect a container to a network"),
    "network create": ("networks", "Create a network"),
    "network disconnect": ("networks", "Disconnect a container from a network"),
    "network inspect": ("inspect", "Show all that is known of networks"),
    "network ls": ("networks", "List networks"),
    "network prune": ("prune", "Remove unused networks"),
    "network rm": ("networks", "Remove networks"),
    "system df": ("diskusage", "Show how much disk space is used"),
    "system events": ("events", "Show what happens in the daemon, live"),
    "system info": ("info", "Show the state and the settings of the daemon"),
    "system prune": ("prune", "Remove all unused data"),
    "volume create": ("volumes", "Create a volume"),
    "volume inspect": ("inspect", "Show all that is known of volumes"),
    "volume ls": ("volumes", "List volumes"),
    "volume prune": ("prune", "Remove unused volumes"),
    "volume rm": ("volumes", "Remove volumes"),
    "inspect": ("inspect", "Show all that is known of containers, images, volumes and networks"),
    "login": ("registry", "Log in to a registry"),
    "logout": ("registry", "Log out of a registry"),
    "search": ("registry", "Search a registry for images"),
    "version": ("info", "Show the versions of client and daemon"),
}

GROUPS = {
    "builder": "Manage builds",
    "container": "Manage containers",
    "image": "Manage images",
    "network": "Manage networks",
    "system": "Manage the daemon",
    "volume": "Manage volumes",
}

# The short names of the top level.
CONTAINER_SHORT = """attach commit cp create diff exec export kill logs pause port rename restart rm run start
stats stop top unpause update wait"""
IMAGE_SHORT = "build history import load pull push save tag"
SHORT = {
    **{name: "container " + name for name in CONTAINER_SHORT.split()},
    "ps": "container ls",
    **{name: "image " + name for name in IMAGE_SHORT.split()},
    "images": "image ls",
    "rmi": "image rm",
    "events": "system events",
    "info": "system info",
}

# Further names inside a group.
ALIASES = {
    "container list": "container ls",
    "container ps": "container ls",
    "container remove": "container rm",
    "image list": "image ls",
    "image remove": "image rm",
    "builder build": "image build",
    "network list": "network ls",
    "network remove": "network rm",
    "volume list": "volume ls",
    "volume remove": "volume rm",
}

COMMON = "run exec ps build pull push images login logout search version info".split()  # noqa: SIM905


def names_of(full: str) -> list[str]:
    """All names of a command, as the help shows them."""
    group = [alias for alias, name in ALIASES.items() if name == full]
    short = [name for name, target in SHORT.items() if target == full]
    return [full, *group, *short]


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
            from teu.cli.config import ConfigFile, folder

            self._config = ConfigFile(folder(self.options["config"]))
        return self._config

    @property
    def client(self) -> Client:
        if self._client is None:
            from teu.cli.config import folder, mentions_headers
            from teu.cli.http import DEFAULT_HOST, Client

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
    """The command at the start of `words`: (full name, name as called, number of words). The full name is "" where
    only a group is named. Raises CommandError for a word that is no command."""
    first = words[0]
    if first in SHORT:
        return SHORT[first], first, 1
    if first in INDEX:
        return first, first, 1
    if first in GROUPS:
        if len(words) > 1:
            name = f"{first} {words[1]}"
            full = ALIASES.get(name, name)
            if full in INDEX:
                return full, name, 2
            if not words[1].startswith("-"):
                raise CommandError(
                    f"{PROGRAM}: '{name}' is not a {PROGRAM} command.\nSee '{PROGRAM} {first} --help'", 1
                )
        return "", first, 1
    raise CommandError(f"{PROGRAM}: '{first}' is not a {PROGRAM} command.\nSee '{PROGRAM} --help'", 1)


def load(full: str) -> Command:
    """The command of that full name; its module is loaded."""
    module = __import__("teu.cli." + INDEX[full][0], None, None, ["COMMANDS"])
    command: Command = module.COMMANDS[full]
    return command
