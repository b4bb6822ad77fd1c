# SPDX-License-Identifier: Apache-2.0
"""`update`: other limits and another restart policy for containers that exist; of a teud also other published ports,
other mounts, another health check, and another environment from the next start on."""

from __future__ import annotations

from teu.cli.command import Cli, Command
from teu.cli.createspec import environment, health, mount, publish, restart_policy
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FIELDS = {
    "blkio-weight": "BlkioWeight",
    "cpuset-cpus": "CpusetCpus",
    "cpuset-mems": "CpusetMems",
    "cpu-shares": "CpuShares",
    "memory": "Memory",
    "memory-reservation": "MemoryReservation",
    "memory-swap": "MemorySwap",
    "cpu-period": "CpuPeriod",
    "cpu-quota": "CpuQuota",
    "cpu-rt-period": "CpuRealtimePeriod",
    "cpu-rt-runtime": "CpuRealtimeRuntime",
    "cpus": "NanoCpus",
    "pids-limit": "PidsLimit",
}
HEALTH: tuple[str, ...] = (
    "health-cmd",
    "health-interval",
    "health-retries",
    "health-start-interval",
    "health-start-period",
)
HEALTH += ("health-timeout", "no-healthcheck")
PORTS = ("publish", "unpublish")
MOUNTS = ("mount", "unmount")
VARIABLES = ("env", "env-file", "unsetenv")
# What docker's API has no request for: the daemon has to be a teud.
BEYOND = frozenset((*HEALTH, *PORTS, *MOUNTS, *VARIABLES))


def change(cli: Cli, options: Options, name: str) -> list[str]:
    """Have what docker's own request does not know changed, beginning with what the container has. The warnings."""
    found = cli.client.get(f"/containers/{name}/json")
    body: dict[str, Any] = {}
    changed = options.changed
    if changed & {*VARIABLES}:
        body["Env"] = variables(found["Config"].get("Env") or [], options)
    if changed & {*HEALTH}:
        asked = health(options) or {}
        body["Healthcheck"] = (
            asked if "NONE" in asked.get("Test", ()) else {**(found["Config"].get("Healthcheck") or {}), **asked}
        )
    if changed & {*PORTS}:
        body["PortBindings"] = bindings(found["HostConfig"].get("PortBindings") or {}, options)
    if changed & {*MOUNTS}:
        body |= mounts(found["HostConfig"], options)
    try:
        answer = cli.client.call("POST", f"/containers/{name}/change", None, body)
    except APIError as error:
        if error.status == 404 and "page not found" in error.message:
            given = ", ".join(f"--{each}" for each in sorted(changed & BEYOND))
            raise CommandError(f"{given}: the daemon is not teud, which alone can change this") from None
        raise
    return answer.get("Warnings") or []


def variables(known: list[str], options: Options) -> list[str]:
    """The whole environment: a name alone is taken out."""
    after = {entry.partition("=")[0]: entry for entry in known}
    for entry in environment(options["env"], options["env-file"]):
        key, equals, _ = entry.partition("=")
        if equals:
            after[key] = entry
        else:
            after.pop(key, None)
    for key in options["unsetenv"]:
        after.pop(key, None)
    return list(after.values())


def bindings(known: dict[str, Any], options: Options) -> dict[str, Any]:
    """All published ports."""
    after = {port: list(entries or ()) for port, entries in known.items()}
    for text in options["unpublish"]:
        port = text if "/" in text else f"{text}/tcp"
        if after.pop(port, None) is None:
            raise CommandError(f"--unpublish {text}: the container's port {port} is not published")
    if any("source=" in text for text in options["publish"]):
        raise CommandError("--publish: who may use a port (source=) is settled when a container is created")
    for port, entries in publish(options["publish"])[1].items():
        after.setdefault(port, []).extend(entry for entry in entries if entry not in after.get(port, ()))
    return after


def mounts(known: dict[str, Any], options: Options) -> dict[str, Any]:
    """All mounts, and all binds where one of those is to go."""
    after, binds = list(known.get("Mounts") or ()), list(known.get("Binds") or ())
    for path in options["unmount"]:
        place = path.rstrip("/") or "/"
        kept = [one for one in after if str(one.get("Target")).rstrip("/") != place]
        kept_binds = [text for text in binds if (text.split(":") + [text])[1].rstrip("/") != place]
        if len(kept) + len(kept_binds) == len(after) + len(binds):
            raise CommandError(f"--unmount {path}: nothing that was asked for is mounted there")
        after, binds = kept, kept_binds
    body: dict[str, Any] = {"Mounts": after + [mount(text) for text in options["mount"]]}
    return body if binds == (known.get("Binds") or []) else {**body, "Binds": binds}


def update(cli: Cli, options: Options, operands: list[str]) -> int:
    if not options.changed:
        raise CommandError("you must provide one or more flags when using this command")
    body = {key: options[name] for name, key in FIELDS.items() if name in options.changed}
    if options["restart"]:
        try:
            body["RestartPolicy"] = restart_policy(options["restart"])
        except ValueError as error:
            raise CommandError(str(error)) from None
    warnings: list[str] = []
    failed = []
    for name in operands:
        try:
            if options.changed & BEYOND:
                warnings += change(cli, options, name)
            if body:
                answer = cli.client.call("POST", f"/containers/{name}/update", None, body)
                warnings += answer.get("Warnings") or []
        except (APIError, CommandError) as error:
            failed.append(error.text if isinstance(error, CommandError) else str(error))
        except ValueError as error:
            raise CommandError(str(error)) from None
        else:
            cli.print(name)
    if warnings:
        cli.print("\n".join(warnings))
    if failed:
        raise CommandError("\n".join(failed))
    return 0


COMMANDS = {
    "container update": Command(
        update,
        "[OPTIONS] CONTAINER [CONTAINER...]",
        1,
        None,
        """
   --blkio-weight        uint16   Relative weight of block I/O, 10 to 1000, 0 for none
   --cpu-period          int      Length of the CFS period in microseconds
   --cpu-quota           int      CPU time per period in microseconds
   --cpu-rt-period       int      Length of the real-time period in microseconds
   --cpu-rt-runtime      int      Real-time CPU time per period in microseconds
-c --cpu-shares          int      Relative weight of CPU time
   --cpus                decimal  How many CPUs' worth of time the container may use
   --cpuset-cpus         string   CPUs to run on, as 0-3,5
   --cpuset-mems         string   Memory nodes to use, as 0-1
-e --env                 list     Set an environment variable from the next start on
   --env-file            list     Read environment variables from a file
   --health-cmd          string   Command that tells whether the container is healthy
   --health-interval     duration Time between two checks
   --health-retries      int      So many failures in a row mean unhealthy
   --health-start-interval duration Time between two checks during the start period
   --health-start-period duration Time after the start in which failures do not count
   --health-timeout      duration Longest time for one check
-m --memory              bytes    Most memory the container may use
   --memory-reservation  bytes    Memory that is protected while the host is short of it
   --memory-swap         swap     Most memory and swap together, -1 for no limit on swap
   --mount               mount    Mount something in it as well, as with teu run; at once, if it runs
   --no-healthcheck      bool     Do not check its health any more
   --pids-limit          int      Most processes, -1 for no limit
-p --publish             list     Publish a further port to the host
   --restart             string   When to restart it: no, on-failure[:MOST], always or unless-stopped
   --unmount             list     Take away what is mounted at this path; at once, if it runs
   --unpublish           list     Publish a port of the container no more, as 80/tcp
   --unsetenv            list     Take an environment variable away from the next start on
""",
    ),
}
