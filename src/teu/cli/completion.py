# SPDX-License-Identifier: Apache-2.0
"""`teu __complete WORD…`: what the shell may offer for the last word. Called by completions/teu, so that
the shell's
part knows no command or option itself."""

from __future__ import annotations

from teu.cli import commands, plugins
from teu.cli.command import GLOBAL_FLAGS, Cli, find, load
from teu.cli.errors import APIError, CommandError, ConnectError
from teu.cli.options import Usage, parse, parse_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RUNNING = {"status": {"running": True}}
STOPPED = {"status": {"exited": True, "created": True}}
LOG_OPTIONS = """
    cache-compress cache-disabled cache-max-file cache-max-size compress env env-regex fluentd-address
    fluentd-async fluentd-async-reconnect-interval fluentd-buffer-limit fluentd-max-retries fluentd-read-timeout
    fluentd-request-ack fluentd-retry-wait fluentd-sub-second-precision fluentd-write-timeout gelf-address
    gelf-compression-level gelf-compression-type gelf-tcp-max-reconnect gelf-tcp-reconnect-delay labels
    labels-regex max-buffer-size max-file max-size mode syslog-address syslog-facility syslog-format
    syslog-tls-ca-cert syslog-tls-cert syslog-tls-key syslog-tls-skip-verify tag
"""


def container_names(cli: Cli, chosen: dict[str, dict[str, bool]] | None = None) -> list[str]:
    found = cli.client.get("/containers/json", {"all": True, "filters": chosen})
    return [name.lstrip("/") for container in found for name in container["Names"] if name.count("/") == 1]


def image_names(cli: Cli) -> list[str]:
    found = cli.client.get("/images/json")
    return [name.removesuffix(":latest") for image in found for name in image.get("RepoTags") or () if name[0] != "<"]


def network_names(cli: Cli) -> list[str]:
    return [network["Name"] for network in cli.client.get("/networks")]


def volume_names(cli: Cli) -> list[str]:
    return [volume["Name"] for volume in cli.client.get("/volumes").get("Volumes") or ()]


def context_names(cli: Cli) -> list[str]:
    from teu.cli.contextstore import Store  # 6 ms

    return ["default", *(found["Name"] for found in Store(cli.folder).all())]


def operands(cli: Cli, full: str, count: int) -> list[str]:
    """What the operand number `count` of a command may be."""
    verb = full.rpartition(" ")[2]
    if full in ("container run", "container create"):
        return image_names(cli) if count == 0 else []
    if full == "container start":
        return container_names(cli, STOPPED)
    if verb in ("attach", "exec", "kill", "pause", "stop", "top", "stats", "restart"):
        one = verb in ("attach", "exec", "top")
        return container_names(cli, RUNNING) if count == 0 or not one else []
    if full.startswith("container ") and verb not in ("ls", "prune"):
        one = verb in ("logs", "port", "rename", "commit", "diff", "export")
        return container_names(cli) if count == 0 or not one else []
    if full.startswith("image ") and verb in ("history", "inspect", "push", "rm", "save", "tag", "ls"):
        return image_names(cli) if count == 0 or verb not in ("history", "push", "tag", "ls") else []
    if full in ("network connect", "network disconnect"):
        return network_names(cli) if count == 0 else container_names(cli)
    if full in ("network inspect", "network rm"):
        return network_names(cli)
    if full in ("volume inspect", "volume rm"):
        return volume_names(cli)
    if full in ("volume export", "volume import", "volume rename"):
        return volume_names(cli) if count == 0 else []
    if full in ("context export", "context inspect", "context rm", "context update", "context use"):
        return context_names(cli) if count == 0 or full in ("context inspect", "context rm") else []
    if full == "inspect":
        return container_names(cli) + image_names(cli) + network_names(cli) + volume_names(cli)
    return []


def values(cli: Cli, full: str, name: str) -> list[str]:
    """What the value of an option may be."""
    known: dict[str, Callable[[], list[str]]] = {
        "network": lambda: network_names(cli),
        "volumes-from": lambda: container_names(cli),
        "link": lambda: container_names(cli),
        "restart": lambda: ["always", "no", "on-failure", "unless-stopped"],
        "pull": lambda: ["always", "missing", "never"],
        "log-driver": lambda: cli.client.get("/info")["Plugins"]["Log"],
        "log-opt": lambda: [f"{name}=" for name in LOG_OPTIONS.split()],
        "signal": lambda: ["HUP", "INT", "KILL", "QUIT", "TERM", "USR1", "USR2", "WINCH"],
        "type": lambda: ["container", "image", "network", "volume"],
        "format": lambda: ["json", "table"],
        "progress": lambda: ["auto", "plain", "quiet", "rawjson", "tty"],
        "call": lambda: ["build", "check", "outline", "targets"],
        "builder": lambda: ["default", "unix://"],
        "output": lambda: [
            f"type={kind}" for kind in ("cacheonly", "docker", "image", "local", "oci", "registry", "tar")
        ],
        "cache-to": lambda: [f"type={kind}" for kind in ("inline", "local", "registry")],
        "cache-from": lambda: [f"type={kind}" for kind in ("local", "registry")],
        "provenance": lambda: ["false", "mode=max", "mode=min", "true"],
        "sbom": lambda: ["false", "true"],
    }
    if name == "network" and full == "image build":
        return ["default", "host", "none"]
    if name == "pull" and full == "image build":
        return []
    return known[name]() if name in known else []


def offers(cli: Cli, words: list[str]) -> list[str]:
    *before, current = words or [""]
    groups = [name for name in commands.GROUPS if " " not in name]
    names = [*commands.SHORT, *groups, "inspect", "login", "logout", "search", "version", "help", *plugins.names(cli)]
    flags = parse_table(GLOBAL_FLAGS)
    try:
        options, rest = parse(flags, [*before, ""] if before[-1:] in (["-c"], ["--context"]) else before, False)
        cli.options = options
    except Usage:
        return []
    if not rest:
        if current.startswith("-"):
            return [f"--{flag.name}" for flag in flags if not flag.hidden]
        return context_names(cli) if before[-1:] in (["-c"], ["--context"]) else names
    if rest[0] not in commands.SHORT and rest[0] not in commands.GROUPS and rest[0] not in commands.INDEX:
        path = plugins.find(cli, rest[0])
        if path:
            return plugins.complete(cli, path, [*rest, current])
    full, _, used = find(rest)
    if not full:
        group = " ".join(rest[:used]).replace("buildx", "builder", 1) + " "
        return [name.removeprefix(group).split()[0] for name in commands.INDEX if name.startswith(group)]
    command = load(full)
    flags = parse_table(command.table)
    if rest[used:]:
        last = rest[-1]
        for flag in flags:
            if flag.kind != "bool" and last in (f"--{flag.name}", "-" + (flag.short or "\0")):
                return values(cli, full, flag.name)
    try:
        _, given = parse(flags, rest[used:], command.interspersed)
    except Usage:
        return []
    if current.startswith("-") and (command.interspersed or not given):
        name, equals, _ = current.partition("=")
        if equals:
            return [f"{name}={value}" for value in values(cli, full, name.lstrip("-"))]
        return ["--help", *(f"--{flag.name}" for flag in flags if not flag.hidden)]
    return operands(cli, full, len(given))


def complete(cli: Cli, words: list[str]) -> int:
    current = words[-1] if words else ""
    try:
        found = offers(cli, words)
    except (APIError, CommandError, ConnectError):
        return 0
    for word in sorted(set(found)):
        if word.startswith(current):
            cli.print(word)
    return 0
