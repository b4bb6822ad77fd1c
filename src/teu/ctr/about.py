# SPDX-License-Identifier: Apache-2.0
"""What the daemon is: version, info, plugins, deprecations; and the default specification."""

from __future__ import annotations

import json
import sys

from google.protobuf.empty_pb2 import Empty

from teu import __version__
from teu.ctr import spec as specification
from teu.ctr.client import introspection_pb2 as pb
from teu.ctr.client import rfc3339
from teu.ctr.errors import CommandError
from teu.ctr.flags import Options
from teu.ctr.main import Command, Ctr
from teu.ctr.output import show_json, table


def version(ctr: Ctr, options: Options, operands: list[str]) -> None:
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
    for number, plugin in enumerate(found):
        if number:
            ctr.print("")
        lines = [("Type:", plugin.type), ("ID:", plugin.id)]
        lines += [("Requires:" if not n else "", name) for n, name in enumerate(plugin.requires)]
        if plugin.platforms:
            lines.append(("Platforms:", platforms(plugin)))
        exports = sorted(plugin.exports.items())
        lines += [("Exports:" if not n else "", f"{key} {value}") for n, (key, value) in enumerate(exports)]
        if plugin.capabilities:
            lines.append(("Capabilities:", ",".join(plugin.capabilities)))
        if plugin.HasField("init_err"):
            lines += [("Error:", f"Code: {plugin.init_err.code}"), ("", f"Message: {plugin.init_err.message}")]
        table(lines, 4, 4)


def deprecations(ctr: Ctr, options: Options, operands: list[str]) -> None:
    found = ctr.client.introspection.Server(Empty()).deprecations
    if options["format"] == "json":
        ctr.print(json.dumps([{"id": e.id, "message": e.message} for e in found]))
        return
    if found:
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
