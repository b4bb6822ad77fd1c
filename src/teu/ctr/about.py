# SPDX-License-Identifier: Apache-2.0
"""What the daemon is: version, info, plugins, deprecations; and the default specification."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

from google.protobuf.empty_pb2 import Empty

from teu import __version__
from teu.ctr import spec as specification
from teu.ctr.client import introspection_pb2 as pb
from teu.ctr.client import rfc3339
from teu.ctr.commands import Command, Ctr
from teu.ctr.errors import CommandError
from teu.ctr.flags import Options
from teu.ctr.output import aligned, show_json, table


def version(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if operands:
        raise CommandError(f"extra arguments: &[{' '.join(operands)}]")
    ctr.print(f"Client:\n  Version:  {__version__}\n  Revision: \n  Python version: {sys.version.split()[0]}\n")
    found = ctr.client.version.Version(Empty())
    ctr.print(f"Server:\n  Version:  {found.version}\n  Revision: {found.revision}")
    ctr.print(f"  UUID: {ctr.client.introspection.Server(Empty()).uuid}")


def info(ctr: Ctr, options: Options, operands: list[str]) -> None:
    found = ctr.client.introspection.Server(Empty())
    server = {"uuid": found.uuid, "pid": found.pid, "pidns": found.pidns}
    if found.deprecations:
        server["deprecations"] = [{"id": entry.id, "message": entry.message} for entry in found.deprecations]
    show_json({"server": server})


def platforms(plugin: pb.Plugin) -> str:
    names = {"/".join(filter(None, (p.os, p.architecture, p.variant))) for p in plugin.platforms}
    return ",".join(sorted(names))


def plugins(ctr: Ctr, options: Options, operands: list[str]) -> None:
    found = ctr.client.introspection.Plugins(pb.PluginsRequest(filters=operands)).plugins
    if options["quiet"]:
        for plugin in found:
            ctr.print(plugin.id)
        return
    if not options["detailed"]:
        rows = []
        for plugin in found:
            status = "ok"
            if plugin.HasField("init_err"):
                status = "skip" if "skip plugin" in plugin.init_err.message else "error"
            rows.append((plugin.type, plugin.id, platforms(plugin) or "-", status))
        table([("TYPE", "ID", "PLATFORMS", "STATUS"), *rows], 4, 4)
        return
    show_details(found)


def show_details(found: Iterable[pb.Plugin]) -> None:
    rows: list[list[str]] = []
    ends: list[str] = []

    def line(*cells: str) -> None:
        rows.append(list(cells[:-1]))
        ends.append(cells[-1])

    for plugin in found:
        if rows:
            line("", "", "", "")
        line("Type:", f" {plugin.type}")
        line("ID:", f" {plugin.id}")
        if plugin.requires:
            line("Requires:", "")
        for name in plugin.requires:
            line("", f" {name}")
        if plugin.platforms:
            line("Platforms:", f" {platforms(plugin)}")
        if plugin.exports:
            line("Exports:", "")
        for key, value in sorted(plugin.exports.items()):
            line("", f" {key} ", f" {value}")
        if plugin.capabilities:
            line("Capabilities:", f" {','.join(plugin.capabilities)}")
        if plugin.HasField("init_err"):
            line("Error:", "")
            line("", " Code:", f" {CODES.get(plugin.init_err.code, plugin.init_err.code)}")
            line("", " Message:", f" {plugin.init_err.message}")
    sys.stdout.write(aligned(rows, 4, ends))


# gRPC's codes as Go names them.
CODES = {
    1: "Canceled",
    2: "Unknown",
    3: "InvalidArgument",
    5: "NotFound",
    9: "FailedPrecondition",
    12: "Unimplemented",
    13: "Internal",
    14: "Unavailable",
}


def deprecations(ctr: Ctr, options: Options, operands: list[str]) -> None:
    found = ctr.client.introspection.Server(Empty()).deprecations
    if found and options["format"] == "json":
        ctr.print(json.dumps([{"id": e.id, "message": e.message} for e in found]))
    elif found:
        rows = [(entry.id, rfc3339(entry.last_occurrence), entry.message) for entry in found]
        table([("ID", "LAST OCCURRENCE", "MESSAGE"), *rows])


def spec(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if options["platform"] and not options["platform"].startswith("linux"):
        raise CommandError(f"no default specification for {options['platform']}: only linux is known")
    show_json(specification.default(ctr.namespace, ""))


COMMANDS = {
    "version": Command(version, ""),
    "info": Command(info, ""),
    "plugins list": Command(
        plugins,
        "[flags] [<filter>, ...]",
        """
quiet,q     bool  Print only the IDs
detailed,d  bool  Print all that is known of each
""",
    ),
    "deprecations list": Command(deprecations, "[flags]", "format string=default `default` or `json`"),
    "oci spec": Command(spec, "[flags]", "platform string Platform, OS/ARCH"),
}
