# SPDX-License-Identifier: Apache-2.0
"""docker's CLI plugins, which are programs: `teu compose` is Debian's docker-compose, `teu buildx` its docker-buildx.

A plugin NAME is a program docker-NAME in one of `folders`. It gets our whole command line, tells of itself with the
argument docker-cli-plugin-metadata, and finds the daemon as docker would: so its environment says what teu knows
better, which is where teud listens. Loaded by `main` for a word that is no command of ours, by the help, by the
completion and by `info`: commands of ours pay nothing for it."""

from __future__ import annotations

import os
import select
import sys

from teu.cli import commands
from teu.cli.command import Cli
from teu.cli.errors import CommandError
from teu.cli.http import DEFAULT_HOST
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PREFIX = "docker-"
METADATA = "docker-cli-plugin-metadata"
SYSTEM = (
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)
LETTERS, DIGITS = frozenset("abcdefghijklmnopqrstuvwxyz"), frozenset("0123456789")
# How long one may take to tell of itself before the help goes on without it.
PATIENCE_MS = 5000


def folders(cli: Cli) -> list[str]:
    """Where plugins are, the first to win first."""
    extra = cli.config.values.get("cliPluginsExtraDirs") or []
    return [*extra, cli.folder + "/cli-plugins", *SYSTEM]


def is_name(word: str) -> bool:
    """Whether a plugin can be called so."""
    return bool(word) and word[0] in LETTERS and (LETTERS | DIGITS).issuperset(word)


def find(cli: Cli, name: str) -> str:
    """The path of a plugin; empty where there is none, and for what is no plugin's name."""
    if not is_name(name):
        return ""
    for folder in folders(cli):
        path = f"{folder}/{PREFIX}{name}"
        if os.path.exists(path):
            return path
    return ""


def environment(cli: Cli, argv: list[str]) -> dict[str, str]:
    """Ours, with what lets the plugin find what we would find."""
    result = dict(os.environ)
    result["DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND"] = argv[0]
    result.setdefault("DOCKER_CONFIG", cli.folder)
    if os.environ.get("TEU_CONFIG"):
        result["DOCKER_CONFIG"] = os.environ["TEU_CONFIG"]
    if cli.context == "default" and not cli.options["host"]:
        result["DOCKER_HOST"] = cli.default_endpoint()[0] or DEFAULT_HOST
    return result


def run(cli: Cli, path: str, argv: list[str]) -> int:
    """Become the plugin, with the words that teu got; or, where hooks are wanted, have it run and give its exit status.
    Raises CommandError where it cannot be started."""
    sys.stdout.flush()
    variables = environment(cli, argv)
    words = [path, *argv[1:]]
    try:
        if not (os.isatty(1) and cli.mentions("plugins")):
            os.execve(path, words, variables)
        child = os.posix_spawn(path, words, variables)
    except OSError as error:
        raise CommandError(f"cannot run the plugin {path}: {error.strerror}") from None
    while True:
        try:
            _, status = os.waitpid(child, 0)
        except KeyboardInterrupt:  # the terminal has told the plugin as well
            continue
        return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


class Plugin:
    """What is known of one: `wrong` says why it cannot be used, empty where it can."""

    def __init__(self, name: str, path: str, shadowed: list[str]) -> None:
        self.name = name
        self.path = path
        self.shadowed = shadowed
        self.metadata: dict[str, Any] = {}
        self.wrong = ""

    def text(self, key: str) -> str:
        return str(self.metadata.get(key) or "")

    def as_json(self) -> dict[str, Any]:
        """As docker's info has it."""
        keys = ("SchemaVersion", "Vendor", "Version", "ShortDescription", "URL")
        result: dict[str, Any] = {key: self.text(key) for key in keys if self.text(key)}
        if self.metadata.get("Hidden"):
            result["Hidden"] = True
        result |= {"Name": self.name, "Path": self.path}
        if self.wrong:
            result["Err"] = self.wrong
        if self.shadowed:
            result["ShadowedPaths"] = self.shadowed
        return result


def everything(cli: Cli) -> list[Plugin]:
    """All plugins, also those that cannot be used, by name. All are asked at once what they are."""
    found: dict[str, list[str]] = {}
    for folder in folders(cli):
        try:
            entries = os.listdir(folder)
        except OSError:
            continue
        for entry in entries:
            path = f"{folder}/{entry}"
            if entry.startswith(PREFIX) and os.path.isfile(path):
                found.setdefault(entry.removeprefix(PREFIX), []).append(path)
    result = [Plugin(name, paths[0], paths[1:]) for name, paths in sorted(found.items())]
    asked = []
    for plugin in result:
        if not is_name(plugin.name):
            plugin.wrong = f'plugin candidate "{plugin.name}" did not match "^[a-z][a-z0-9]*$"'
        elif plugin.name in commands.GROUPS or plugin.name in commands.SHORT or plugin.name in commands.INDEX:
            plugin.wrong = f'plugin "{plugin.name}" duplicates builtin command'
        else:
            asked.append((plugin, *_ask(plugin.path)))
    for plugin, child, file in asked:
        plugin.wrong = _answer(plugin, child, file)
    return result


def _ask(path: str) -> tuple[int, int]:
    """(process, end of a pipe) of a plugin that is telling of itself; (0, -1) where it cannot be started."""
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
    try:
        return os.posix_spawn(path, [path, METADATA], os.environ, file_actions=actions), read
    except OSError:
        os.close(read)
        return 0, -1
    finally:
        os.close(write)
        os.close(null)


def _answer(plugin: Plugin, child: int, file: int) -> str:
    """Read what a plugin tells of itself into its metadata; why it cannot be used, or empty."""
    if not child:
        return "failed to fetch metadata: it cannot be started"
    data = b""
    poller = select.poll()
    poller.register(file, select.POLLIN)
    while poller.poll(PATIENCE_MS):
        piece = os.read(file, 1 << 16)
        if not piece:
            break
        data += piece
    else:
        os.kill(child, 9)
    os.close(file)
    _, status = os.waitpid(child, 0)
    if status:
        return f"failed to fetch metadata: exit status {os.waitstatus_to_exitcode(status)}"
    try:
        found = jsontext.loads(data, exact=True)
    except ValueError as error:
        return f"invalid metadata: {error}"
    if not isinstance(found, dict):
        return "invalid metadata: it is no JSON object"
    plugin.metadata = found
    return _schema(plugin.text("SchemaVersion")) or (
        "" if plugin.text("Vendor") else "plugin metadata does not define a vendor"
    )


def _schema(version: str) -> str:
    """Why a version of the metadata is not known here, or empty. All before 2 are."""
    if not version:
        return "plugin SchemaVersion version cannot be empty"
    major, dot, _ = version.partition(".")
    if not dot or not major.isascii() or not major.isdigit():
        return f'plugin SchemaVersion "{version}" has wrong format: must be <major>.<minor>.<patch>'
    return "" if int(major) < 2 else f'plugin SchemaVersion "{version}" is not supported: must be lower than 2.0.0'


def shown(cli: Cli) -> tuple[dict[str, str], dict[str, str]]:
    """For the help: (plugins with docker's star, and what they do; those that are broken, and why)."""
    good, bad = {}, {}
    for plugin in everything(cli):
        if plugin.wrong:
            bad[plugin.name] = plugin.wrong
        elif not plugin.metadata.get("Hidden"):
            good[plugin.name + "*"] = plugin.text("ShortDescription")
    return good, bad


def names(cli: Cli) -> list[str]:
    """Of all that could be run, without asking them."""
    found = []
    for folder in folders(cli):
        try:
            entries = os.listdir(folder)
        except OSError:
            continue
        words = [entry.removeprefix(PREFIX) for entry in entries if entry.startswith(PREFIX)]
        found += [word for word in words if is_name(word)]
    return found


def complete(cli: Cli, path: str, words: list[str]) -> list[str]:
    """What a plugin offers for the last of its words."""
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
    variables: Mapping[str, str] = environment(cli, ["teu"])
    child = os.posix_spawn(path, [path, "__complete", *words], variables, file_actions=actions)
    os.close(write)
    os.close(null)
    with open(read, "rb") as stream:
        lines = stream.read().decode("utf-8", "replace").splitlines()
    os.waitpid(child, 0)
    # Each line is a word and, after a tab, what it is; the last one is `:` and what the shell shall do.
    return [line.partition("\t")[0] for line in lines if line and not line.startswith((":", "_activeHelp_"))]
