# SPDX-License-Identifier: Apache-2.0
"""`update`: other limits and another restart policy for containers that exist."""

from __future__ import annotations

from teu.cli.command import Cli, Command
from teu.cli.createspec import restart_policy
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options

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
            answer = cli.client.call("POST", f"/containers/{name}/update", None, body)
        except APIError as error:
            failed.append(str(error))
        else:
            cli.print(name)
            warnings += answer.get("Warnings") or []
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
-m --memory              bytes    Most memory the container may use
   --memory-reservation  bytes    Memory that is protected while the host is short of it
   --memory-swap         swap     Most memory and swap together, -1 for no limit on swap
   --pids-limit          int      Most processes, -1 for no limit
   --restart             string   When to restart it: no, on-failure[:MOST], always or unless-stopped
""",
    ),
}
