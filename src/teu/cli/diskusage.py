# SPDX-License-Identifier: Apache-2.0
"""`system df`: how much disk space images, containers, volumes and the build cache take."""

from __future__ import annotations

import operator

from teu.cli import containers, images, table, volumes
from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.options import Options
from teu.oci import jsontext, units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADINGS = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}
CACHE_HEADINGS = {
    "ID": "CACHE ID",
    "CacheType": "CACHE TYPE",
    "Size": "SIZE",
    "CreatedSince": "CREATED",
    "LastUsedSince": "LAST USED",
    "UsageCount": "USAGE",
    "Shared": "SHARED",
}
CACHE_COLUMNS = {
    "ID": lambda item: item["ID"][:12],
    "CacheType": lambda item: item["Type"],
    "Size": lambda item: units.human_size(item["Size"], 3),
    "CreatedSince": lambda item: units.ago(units.seconds_of(item["CreatedAt"])),
    "LastUsedSince": lambda item: units.ago(units.seconds_of(item["LastUsedAt"])) if item.get("LastUsedAt") else "",
    "UsageCount": lambda item: str(item["UsageCount"]),
    "Shared": lambda item: "true" if item["Shared"] else "false",
}


def reclaimable(free: int, size: int) -> str:
    return f"{units.human_size(free)} ({free * 100 // size}%)" if size > 0 else units.human_size(free)


def summary(found: dict[str, Any]) -> list[dict[str, str]]:
    """The four lines of the table, as texts."""
    layers = found.get("LayersSize") or 0
    all_images = found.get("Images") or []
    used = sum(
        image["Size"] - image["SharedSize"]
        for image in all_images
        if image["Containers"] != 0 and image["Size"] != -1 and image["SharedSize"] != -1
    )
    all_containers = found.get("Containers") or []
    active = [c for c in all_containers if any(word in c["State"] for word in ("running", "paused", "restarting"))]
    container_size = sum(c.get("SizeRw") or 0 for c in all_containers)
    all_volumes = found.get("Volumes") or []
    sized = [v["UsageData"] for v in all_volumes if (v.get("UsageData") or {}).get("Size", -1) != -1]
    volume_size = sum(usage["Size"] for usage in sized)
    cache = found.get("BuildCache") or []
    cache_size = sum(item["Size"] for item in cache if not item["Shared"])
    rows = [
        (
            "Images",
            len(all_images),
            sum(image["Containers"] > 0 for image in all_images),
            layers,
            reclaimable(layers - used, layers),
        ),
        (
            "Containers",
            len(all_containers),
            len(active),
            container_size,
            reclaimable(container_size - sum(c.get("SizeRw") or 0 for c in active), container_size),
        ),
        (
            "Local Volumes",
            len(all_volumes),
            sum((v.get("UsageData") or {}).get("RefCount", 0) > 0 for v in all_volumes),
            volume_size,
            reclaimable(sum(usage["Size"] for usage in sized if usage["RefCount"] == 0), volume_size),
        ),
        (
            "Build Cache",
            len(cache),
            sum(bool(item["InUse"]) for item in cache),
            cache_size,
            units.human_size(sum(item["Size"] for item in cache if not item["Shared"] and not item["InUse"])),
        ),
    ]
    return [
        {
            "Type": kind,
            "TotalCount": str(total),
            "Active": str(count),
            "Size": units.human_size(size),
            "Reclaimable": free,
        }
        for kind, total, count, size, free in rows
    ]


def verbose(cli: Cli, found: dict[str, Any]) -> None:
    image_rows = []
    for image in found.get("Images") or ():
        names = [name for name in image.get("RepoTags") or () if name != "<none>:<none>"]
        repository, _, tag = names[0].rpartition(":") if names else (images.NONE, "", images.NONE)
        image_rows.append((repository, tag, "", image))
    cli.print("Images space usage:\n")
    default = [
        "Repository",
        "Tag",
        "ID",
        "CreatedSince",
        "VirtualSize",
        "SharedSize",
        "UniqueSize",
        "Containers",
    ]
    table.print_list(image_rows, images.columns(False), images.HEADINGS, default)
    cli.print("\nContainers space usage:\n")
    default = ["ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names"]
    # The size of the image is not the container's.
    rows = [{**container, "SizeRootFs": 0} for container in found.get("Containers") or ()]
    table.print_list(rows, containers.columns(False), containers.HEADINGS, default)
    cli.print("\nLocal Volumes space usage:\n")
    table.print_list(found.get("Volumes") or (), volumes.COLUMNS, volumes.HEADINGS, ["Name", "Links", "Size"])
    cache = found.get("BuildCache") or []
    total = sum(item["Size"] for item in cache if not item["Shared"])
    cli.print(f"\nBuild cache usage: {units.human_size(total)}\n")
    table.print_list(cache, CACHE_COLUMNS, CACHE_HEADINGS, list(CACHE_HEADINGS))


def disk_usage(cli: Cli, options: Options, operands: list[str]) -> int:
    form = options["format"]
    found = cli.client.get("/system/df")
    if options["verbose"]:
        if not form or form == "table":
            verbose(cli, found)
            return 0
        from teu.cli.template import compile_template  # 8 ms
        from teu.oci.template import TemplateError, located

        parts = {key: found.get(key) or [] for key in ("Images", "Containers", "Volumes", "BuildCache")}
        if form == "json":
            cli.print(jsontext.dumps(parts))
            return 0
        try:
            cli.print(compile_template(form).render(parts))
        except TemplateError as error:
            raise CommandError(located(error)) from None
        return 0
    view = {name: operator.itemgetter(name) for name in HEADINGS}
    table.print_list(summary(found), view, HEADINGS, list(HEADINGS), form)
    return 0


COMMANDS = {
    "system df": Command(
        disk_usage,
        "[OPTIONS]",
        0,
        0,
        """
   --format   string  `table`, `table TEMPLATE`, `json` or a Go template
-v --verbose  bool    Show every image, container and volume
""",
    ),
}
