# SPDX-License-Identifier: Apache-2.0
"""`builder du`, `prune`, `ls` and `inspect`: the cache and the workers of a builder.

An engine without BuildKit has its cache, too: `du` and `prune` ask it by the Engine API then, as `system df` does.
"""

from __future__ import annotations

import time

from teu.cli import prune as pruning
from teu.cli import table
from teu.cli.builds.messages import CONTROL, decode, seconds
from teu.cli.builds.progress import moment
from teu.cli.builds.wire import Builder, BuildError, NoBuilder, address_of, described
from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.options import Options
from teu.oci import jsontext, units
from teu.oci.units import binary_size, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SECOND = 1_000_000_000  # nanoseconds
ROW = "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED"
HEADINGS = {
    "ID": "ID",
    "Reclaimable": "RECLAIMABLE",
    "Size": "SIZE",
    "LastUsedAt": "LAST ACCESSED",
    "CreatedAt": "CREATED AT",
    "Description": "DESCRIPTION",
    "Mutable": "MUTABLE",
    "Parents": "PARENTS",
    "Shared": "SHARED",
    "Type": "TYPE",
    "UsageCount": "USAGE COUNT",
}


def opened(cli: Cli, options: Options) -> Builder:
    """The builder that a command is about. CommandError where the engine has none."""
    try:
        return Builder(cli, address_of(cli, options["builder"]))
    except NoBuilder:
        raise CommandError("this engine has no BuildKit: name the socket of one with --builder unix://PATH") from None
    except BuildError as error:
        raise CommandError(f"ERROR: {described(error)}") from None


def asking(function: Callable[[Cli, Options, list[str]], int]) -> Callable[[Cli, Options, list[str]], int]:
    """A command whose builder's errors are the user's."""

    def command(cli: Cli, options: Options, operands: list[str]) -> int:
        try:
            return function(cli, options, operands)
        except BuildError as error:
            raise CommandError(f"ERROR: {described(error)}") from None

    return command


def cache_filter(values: list[str]) -> tuple[str, int]:
    """--filter as the builder has it, and `until` of it in nanoseconds. Values of one key are alternatives."""
    keys: dict[str, list[str]] = {}
    for value in values:
        if "!=" in value.partition("=")[0] + "=":
            name, _, text = value.partition("!=")
            keys.setdefault(name.strip().lower() + "!", []).append(text)
            continue
        name, _, text = value.partition("=")
        keys.setdefault(name.strip().lower(), []).append(text.strip())
    age = 0
    for name in ("until", "unused-for"):
        for text in keys.pop(name, []):
            try:
                age = units.parse_duration(text)
            except ValueError:
                raise CommandError(f'failed to parse until duration: time: invalid duration "{text}"') from None
    terms = []
    for name, texts in keys.items():
        negated = name.endswith("!")
        for text in texts:
            if text.lower() in ("true", "1"):
                terms.append(name.rstrip("!") if not negated else f"{name}={text}")
            elif text.lower() in ("false", "0"):
                terms.append(f"{name.rstrip('!')}!=true")
            else:
                sign = "!=" if negated else "~=" if name in ("description", "parents") else "=="
                quoted = text.replace("\\", "\\\\").replace('"', '\\"')
                terms.append(f'{name.rstrip("!")}{sign}"{quoted}"')
    return ",".join(terms), age


def _size(record: Any) -> str:
    return human_size(record["Size"])


def _reclaimable(record: Any) -> bool:
    return not record["InUse"]


def as_value(record: Any) -> dict[str, Any]:
    """A record of the cache with the names that buildx's JSON has."""
    return {
        "ID": record["ID"],
        "Parents": record["Parents"],
        "CreatedAt": moment(record["CreatedAt"]),
        "Mutable": record["Mutable"],
        "Reclaimable": _reclaimable(record),
        "Shared": record["Shared"],
        "Size": human_size(record["Size"]),
        "Description": record["Description"],
        "UsageCount": record["UsageCount"],
        "LastUsedAt": moment(record["LastUsedAt"]),
        "Type": record["RecordType"],
    }


def _lines(record: Any) -> list[str]:
    """A record with all that is known of it, a line each."""
    parents = ",".join(record["Parents"]) or record["Parent"]
    created, used = seconds(record["CreatedAt"]), seconds(record["LastUsedAt"])
    pairs = [
        ("ID:", record["ID"]),
        ("Parents:", parents),
        ("Created at:", f"{_local(created)}" if created else ""),
        ("Mutable:", str(record["Mutable"]).lower()),
        ("Reclaimable:", str(_reclaimable(record)).lower()),
        ("Shared:", str(record["Shared"]).lower()),
        ("Size:", _size(record)),
        ("Description:", record["Description"]),
        ("Usage count:", str(record["UsageCount"])),
        ("Last used:", units.ago(used) if used else ""),
        ("Type:", record["RecordType"]),
    ]
    return [f"{name}\t{value}" for name, value in pairs if value or name == "ID:"]


def _local(when: float) -> str:
    return units.local_time(int(when), int(when % 1 * SECOND))


@asking
def du(cli: Cli, options: Options, operands: list[str]) -> int:
    builder = opened(cli, options)
    chosen, age = cache_filter(options["filter"])
    fields: dict[str, Any] = {"filter": [chosen] if chosen else []}
    records = builder.control("DiskUsage", **fields)["record"]
    if age:
        records = [one for one in records if seconds(one["LastUsedAt"]) < time.time() - age / SECOND]
    records.sort(key=lambda one: one["Size"], reverse=True)
    if options["format"]:
        columns = {name: _column(name) for name in HEADINGS}
        values = [as_value(record) for record in records]
        table.print_list(values, columns, HEADINGS, list(HEADINGS)[:4], options["format"])
        return 0
    if options["verbose"]:
        for record in records:
            cli.print(table.align(_lines(record), 8, 2) + "\n")
    else:
        cli.print(table.align([ROW, *(_row(record) for record in records)], 8, 2))
    if not chosen:
        _totals(cli, records)
    return 0


def _column(name: str) -> Callable[[Any], Any]:
    return lambda value: value[name]


def _row(record: Any) -> str:
    used = seconds(record["LastUsedAt"])
    shared = "*" if record["Shared"] else ""
    cells = [
        record["ID"] + ("*" if record["Mutable"] else ""),
        str(_reclaimable(record)).lower(),
        _size(record) + shared,
        units.ago(used) if used else "",
    ]
    return "\t".join(cells)


def _totals(cli: Cli, records: list[Any]) -> None:
    total = sum(one["Size"] for one in records)
    shared = sum(one["Size"] for one in records if one["Shared"])
    free = sum(one["Size"] for one in records if _reclaimable(one))
    rows = []
    if shared:
        rows += [f"Shared:\t{human_size(shared)}", f"Private:\t{human_size(total - shared)}"]
    rows += [f"Reclaimable:\t{human_size(free)}", f"Total:\t{human_size(total)}"]
    cli.print(table.align(rows, 8, 2))


def prune(cli: Cli, options: Options, operands: list[str]) -> int:
    warning = "This will remove all build cache." if options["all"] else "This will remove all dangling build cache."
    if not pruning.ask(options, warning):
        raise pruning.Cancelled
    try:
        builder = Builder(cli, address_of(cli, options["builder"]))
    except NoBuilder:
        return _prune_by_engine(cli, options)
    except BuildError as error:
        raise CommandError(f"ERROR: {described(error)}") from None
    try:
        return _prune_by_builder(cli, options, builder)
    except BuildError as error:
        raise CommandError(f"ERROR: {described(error)}") from None


def _prune_by_engine(cli: Cli, options: Options) -> int:
    space, text = pruning.prune_build_cache(cli, pruning.wanted(cli, options), options["all"])
    if text:
        cli.print(text)
    cli.print("Total:\t" + human_size(space))
    return 0


def _prune_by_builder(cli: Cli, options: Options, builder: Builder) -> int:
    chosen, age = cache_filter(options["filter"])
    call = builder.stream(
        "Prune",
        "PruneRequest",
        filter=[chosen] if chosen else [],
        all=options["all"],
        keepDuration=age,
        reservedSpace=options["reserved-space"] or options["keep-storage"],
        maxUsedSpace=options["max-used-space"],
        minFreeSpace=options["min-free-space"],
    )
    total = 0
    rows = []
    for data in call:
        record = decode(f"{CONTROL}UsageRecord", data)
        total += record["Size"]
        if options["verbose"]:
            cli.print(table.align(_lines(record), 8, 2) + "\n")
        else:
            rows.append(_row(record))
    if rows:
        cli.print(table.align([ROW, *rows], 8, 2))
    cli.print("Total:\t" + human_size(total))
    return 0


def platform_text(platform: Any) -> str:
    variant = f"/{platform['Variant']}" if platform["Variant"] else ""
    return f"{platform['OS']}/{platform['Architecture']}{variant}"


def _version(builder: Builder, workers: list[Any]) -> str:
    for worker in workers:
        if worker["BuildkitVersion"]:
            return str(worker["BuildkitVersion"]["version"])
    try:
        answer = builder.control("Info")["buildkitVersion"]
    except BuildError:
        return ""
    return str(answer["version"]) if answer else ""


@asking
def ls(cli: Cli, options: Options, operands: list[str]) -> int:
    rows = ["NAME/NODE\tDRIVER/ENDPOINT\tSTATUS\tBUILDKIT\tPLATFORMS"]
    found = []
    address = address_of(cli, options["builder"])
    for name, driver, endpoint in (
        ("default*", "docker", cli.client.host),
        ("buildkitd", "remote", f"unix://{address}"),
    ):
        if driver == "remote" and not address:
            continue
        try:
            builder = Builder(cli, address if driver == "remote" else "")
            workers = builder.control("ListWorkers")["record"]
            status, version = "running", _version(builder, workers)
            builder.close()
        except (NoBuilder, BuildError):
            status, version, workers = "no builder", "", []
        platforms = ", ".join(platform_text(one) for worker in workers for one in worker["platforms"])
        found.append(
            {"Name": name.rstrip("*"), "Driver": driver, "Endpoint": endpoint, "Status": status, "Version": version}
        )
        rows.append(f"{name}\t{driver}\t\t\t")
        rows.append(f" \\_ {name.rstrip('*')}\t \\_ {endpoint}\t{status}\t{version}\t{platforms}")
    if options["format"] == "json":
        for one in found:
            cli.print(jsontext.dumps(one))
    else:
        cli.print(table.align(rows, 8, 2).replace(" \n", "\n"))
    return 0


@asking
def inspect(cli: Cli, options: Options, operands: list[str]) -> int:
    if operands and operands[0] not in ("default", ""):
        options["builder"] = operands[0]
    builder = opened(cli, options)
    workers = builder.control("ListWorkers")["record"]
    driver = "remote" if builder.address else "docker"
    name = "buildkitd" if builder.address else "default"
    rows = [f"Name:\t{name}", f"Driver:\t{driver}", "", "Nodes:", f"Name:\t{name}"]
    endpoint = f"unix://{builder.address}" if builder.address else cli.client.host
    rows += [f"Endpoint:\t{endpoint}", "Status:\trunning"]
    if version := _version(builder, workers):
        rows.append(f"BuildKit version:\t{version}")
    out = [table.align(rows, 8, 2)]
    for worker in workers:
        platforms = ", ".join(platform_text(one) for one in worker["platforms"])
        out.append(f"Platforms: {platforms}")
        if worker["Labels"]:
            out.append("Labels:")
            pairs = [f" {key}:\t{value}" for key, value in sorted(worker["Labels"].items())]
            out.append(table.align(pairs, 8, 2))
        if worker["CDIDevices"]:
            out.append("Devices:")
            out += [table.align(_device(device), 8, 2) for device in worker["CDIDevices"]]
        for number, policy in enumerate(worker["GCPolicy"]):
            out.append(f"GC Policy rule#{number}:")
            out.append(table.align(_policy(policy), 8, 2))
    cli.print("\n".join(out))
    return 0


def _device(device: Any) -> list[str]:
    rows = [f" Name:\t{device['Name']}"]
    if device["OnDemand"]:
        rows.append(f" On-Demand:\t{str(device['OnDemand']).lower()}")
    else:
        rows.append(f" Automatically allowed:\t{str(device['AutoAllow']).lower()}")
    rows += [f" {key}:\t{value}" for key, value in sorted(device["Annotations"].items())]
    return rows


def _policy(policy: Any) -> list[str]:
    rows = [f" All:\t{str(policy['all']).lower()}"]
    if policy["filters"]:
        rows.append(f" Filters:\t{','.join(policy['filters'])}")
    if policy["keepDuration"]:
        rows.append(f" Keep Duration:\t{units.duration_text(policy['keepDuration'])}")
    for key, name in (
        ("reservedSpace", "Reserved Space"),
        ("maxUsedSpace", "Max Used Space"),
        ("minFreeSpace", "Min Free Space"),
    ):
        if policy[key]:
            rows.append(f" {name}:\t{binary_size(policy[key])}")
    return rows


BUILDER = """
   --builder  string  The builder: default (the engine's), or unix://PATH of a buildkitd
"""
COMMANDS = {
    "builder du": Command(
        du,
        "[OPTIONS]",
        0,
        0,
        BUILDER
        + """
   --filter   filter  Show only what fits, KEY=VALUE (id, type, description, inuse, mutable, shared, private, until)
   --format   string  A template for each record, or json
   --verbose  bool    Show all that is known of each record
""",
    ),
    "builder prune": Command(
        prune,
        "[OPTIONS]",
        0,
        0,
        BUILDER
        + """
-a --all             bool    Remove the whole cache, also what images and the builder itself use
   --filter          filter  Remove only what fits, KEY=VALUE (as for du; until=DURATION)
-f --force           bool    Do not ask
!  --keep-storage    bytes   As --reserved-space
   --max-used-space  bytes   Most space that the cache may have afterwards
   --min-free-space  bytes   Space that is to be free on the disk afterwards
   --reserved-space  bytes   Space that the cache may keep in any case
   --verbose         bool    Show all that is known of each record
""",
    ),
    "builder ls": Command(
        ls,
        "[OPTIONS]",
        0,
        0,
        BUILDER
        + """
   --format  string  json for a line of JSON for each builder
""",
    ),
    "builder inspect": Command(
        inspect,
        "[OPTIONS] [BUILDER]",
        0,
        1,
        BUILDER
        + """
!  --bootstrap  bool  Accepted for docker's sake: the builder is started by its socket
""",
    ),
}
