# SPDX-License-Identifier: Apache-2.0
"""Volumes: ls, create, rm, and what teud alone has: rename, export, import."""

from __future__ import annotations

import os

from teu.cli import archives, table
from teu.cli.command import Cli, Command
from teu.cli.errors import APIError, CommandError
from teu.cli.networks import natural_key
from teu.cli.options import Options, filters, key_values
from teu.oci import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

HEADINGS = {
    "Name": "VOLUME NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "Mountpoint": "MOUNTPOINT",
    "Labels": "LABELS",
    "Links": "LINKS",
    "Size": "SIZE",
    "Availability": "AVAILABILITY",
    "Group": "GROUP",
    "Status": "STATUS",
}
COLUMNS: dict[str, Callable[[Any], Any]] = {
    "Name": lambda volume: volume["Name"],
    "Driver": lambda volume: volume["Driver"],
    "Scope": lambda volume: volume["Scope"],
    "Mountpoint": lambda volume: volume["Mountpoint"],
    "Labels": lambda volume: table.labels_text(volume.get("Labels")),
    "LabelMap": lambda volume: volume.get("Labels") or {},
    "Links": lambda volume: str(volume["UsageData"]["RefCount"]) if volume.get("UsageData") else "N/A",
    "Size": lambda volume: units.human_size(volume["UsageData"]["Size"]) if volume.get("UsageData") else "N/A",
    "Availability": lambda volume: "N/A",
    "Group": lambda volume: "N/A",
    "Status": lambda volume: "N/A",
}


# Options of `volume create` that are a cluster volume's.
CLUSTER = (
    "availability",
    "group",
    "limit-bytes",
    "required-bytes",
    "scope",
    "secret",
    "sharing",
    "topology-preferred",
    "topology-required",
    "type",
)


def list_volumes(cli: Cli, options: Options, operands: list[str]) -> int:
    if options["cluster"]:
        raise CommandError(
            "--cluster shows volumes of swarm's clusters, which Teu does not have. Instead, leave it out"
        )
    answer = cli.client.get("/volumes", {"filters": filters(options["filter"]) or None})
    found = sorted(answer.get("Volumes") or (), key=lambda volume: natural_key(volume["Name"]))
    form = options["format"] or ("" if options["quiet"] else cli.setting("volumesFormat") or "")
    quiet = "Name" if options["quiet"] else ""
    raw = ("name Name", "driver Driver")
    table.print_list(found, COLUMNS, HEADINGS, ["Driver", "Name"], form, quiet=quiet, raw=raw)
    return 0


def create(cli: Cli, options: Options, operands: list[str]) -> int:
    cluster = [name for name in CLUSTER if name in options.changed]
    if cluster:
        raise CommandError(
            f"--{cluster[0]} is for volumes of swarm's clusters, which Teu does not have. "
            "Instead, make one of a driver with --driver and --opt"
        )
    name = options["name"]
    if operands:
        if name:
            raise CommandError(
                "conflicting options: cannot specify a volume-name through both --name and as a positional arg"
            )
        name = operands[0]
    body = {
        "Name": name,
        "Driver": options["driver"],
        "DriverOpts": key_values(options["opt"]) or None,  # null is told again by inspect, as after docker's
        "Labels": key_values(options["label"]) or None,
    }
    cli.print(cli.client.call("POST", "/volumes/create", None, body)["Name"])
    return 0


def remove(cli: Cli, options: Options, operands: list[str]) -> int:
    failed = []
    for name in operands:
        try:
            cli.client.call("DELETE", "/volumes/" + name, {"force": options["force"]})
        except APIError as error:
            failed.append(str(error))
        else:
            cli.print(name)
    if failed:
        raise CommandError("\n".join(failed))
    return 0


def rename(cli: Cli, options: Options, operands: list[str]) -> int:
    old, new = operands
    cli.client.call("POST", f"/volumes/{old}/rename", {"name": new})
    return 0


def export(cli: Cli, options: Options, operands: list[str]) -> int:
    archives.refuse_terminal(options["output"], "write the archive")
    archives.write_output(cli.client.open("GET", f"/volumes/{operands[0]}/archive"), options["output"])
    return 0


def import_volume(cli: Cli, options: Options, operands: list[str]) -> int:
    source = operands[1] if len(operands) > 1 else "-"
    if source == "-" and os.isatty(0):
        raise CommandError("an archive is read from standard input, which is a terminal: name a file, or redirect")
    file = 0 if source == "-" else archives.open_input(source)
    cli.client.open(
        "PUT", f"/volumes/{operands[0]}/archive", None, archives.read_file(file), headers=archives.TAR
    ).read()
    return 0


COMMANDS = {
    "volume ls": Command(
        list_volumes,
        "[OPTIONS]",
        0,
        0,
        """
!  --cluster bool    Only volumes of a cluster
-f --filter  filter  Show what fits, KEY=VALUE (dangling, driver, label, name)
   --format  string  `table`, `table TEMPLATE`, `json` or a Go template
-q --quiet   bool    Show only the names
""",
    ),
    "volume create": Command(
        create,
        "[OPTIONS] [VOLUME]",
        0,
        1,
        """
-d --driver  string=local  Driver of the volume
   --label   list    Attach a label, KEY=VALUE
!  --name    string  Name of the volume
!  --availability        string  Of a cluster's volume
!  --group               string  Of a cluster's volume
!  --limit-bytes         bytes   Of a cluster's volume
!  --required-bytes      bytes   Of a cluster's volume
!  --scope               string  Of a cluster's volume
!  --secret              map     Of a cluster's volume
!  --sharing             string  Of a cluster's volume
!  --topology-preferred  list    Of a cluster's volume
!  --topology-required   list    Of a cluster's volume
!  --type                string  Of a cluster's volume
-o --opt     map     Set an option of the driver, KEY=VALUE (local: size, type, device, o)
""",
    ),
    "volume rename": Command(rename, "VOLUME NEW_NAME", 2, 2),
    "volume export": Command(export, "[OPTIONS] VOLUME", 1, 1, "-o --output  string  Write to this file"),
    "volume import": Command(import_volume, "VOLUME [FILE|-]", 1, 2),
    "volume rm": Command(
        remove, "[OPTIONS] VOLUME [VOLUME...]", 1, None, "-f --force  bool  An unknown volume is no failure"
    ),
}
