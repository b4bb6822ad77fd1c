# SPDX-License-Identifier: Apache-2.0
"""The prune commands: remove what no container uses, after a question."""

from __future__ import annotations

import sys

from teu.cli.command import Cli, Command
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options, filters
from teu.oci import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def confirm(text: str) -> bool:
    sys.stdout.write(text + " [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() == "y"


def ask(options: Options, warning: str) -> bool:
    return options["force"] or confirm(f"WARNING! {warning}\nAre you sure you want to continue?")


def wanted(cli: Cli, options: Options) -> dict[str, dict[str, bool]]:
    """The filters that were given, and those of pruneFilters in the user's file that do not contradict them."""
    chosen = filters(options["filter"])
    given = {key: set(values) for key, values in chosen.items()}
    for entry in cli.config.values.get("pruneFilters") or ():
        key, equals, value = entry.partition("=")
        opposite = {"label": "label!", "label!": "label"}.get(key, "")
        if equals and value not in given.get(opposite, ()):
            chosen.setdefault(key, {})[value] = True
    return chosen


class Cancelled(CommandError):
    """The user did not say yes: nothing happens, which is no failure."""

    def __init__(self) -> None:
        super().__init__("", 0)


def prune_containers(cli: Cli, chosen: dict[str, Any]) -> tuple[int, str]:
    answer = cli.client.call("POST", "/containers/prune", {"filters": chosen or None})
    names = answer.get("ContainersDeleted") or []
    return answer.get("SpaceReclaimed") or 0, "".join(
        f"{n}\n" for n in ["Deleted Containers:", *names]
    ) if names else ""


def prune_networks(cli: Cli, chosen: dict[str, Any]) -> tuple[int, str]:
    answer = cli.client.call("POST", "/networks/prune", {"filters": chosen or None})
    names = answer.get("NetworksDeleted") or []
    return 0, "".join(f"{n}\n" for n in ["Deleted Networks:", *names]) if names else ""


def prune_volumes(cli: Cli, chosen: dict[str, Any], every: bool = False) -> tuple[int, str]:
    if every:
        chosen = {**chosen, "all": {"true": True}}
    answer = cli.client.call("POST", "/volumes/prune", {"filters": chosen or None})
    names = answer.get("VolumesDeleted") or []
    return answer.get("SpaceReclaimed") or 0, "".join(f"{n}\n" for n in ["Deleted Volumes:", *names]) if names else ""


def prune_images(cli: Cli, chosen: dict[str, Any], every: bool = False) -> tuple[int, str]:
    chosen = {**chosen, "dangling": {"false" if every else "true": True}}
    answer = cli.client.call("POST", "/images/prune", {"filters": chosen})
    lines = [
        "untagged: " + entry["Untagged"] if entry.get("Untagged") else "deleted: " + entry.get("Deleted", "")
        for entry in answer.get("ImagesDeleted") or ()
    ]
    return answer.get("SpaceReclaimed") or 0, "".join(f"{n}\n" for n in ["Deleted Images:", *lines]) if lines else ""


def prune_build_cache(cli: Cli, chosen: dict[str, Any], every: bool = False) -> tuple[int, str]:
    answer = cli.client.call("POST", "/build/prune", {"filters": chosen or None, "all": every}) or {}
    names = answer.get("CachesDeleted") or []
    text = "".join(f"{n}\n" for n in ["Deleted build cache objects:", *names]) if names else ""
    return answer.get("SpaceReclaimed") or 0, text


def show(cli: Cli, result: tuple[int, str], always: bool = True) -> None:
    space, text = result
    if text:
        cli.print(text)
    if always:
        cli.print("Total reclaimed space: " + units.human_size(space))


def containers(cli: Cli, options: Options, operands: list[str]) -> int:
    if not ask(options, "This will remove all stopped containers."):
        raise Cancelled
    show(cli, prune_containers(cli, wanted(cli, options)))
    return 0


def images(cli: Cli, options: Options, operands: list[str]) -> int:
    every = options["all"]
    warning = (
        "This will remove all images without at least one container associated to them."
        if every
        else "This will remove all dangling images."
    )
    if not ask(options, warning):
        raise Cancelled
    show(cli, prune_images(cli, wanted(cli, options), every))
    return 0


def networks(cli: Cli, options: Options, operands: list[str]) -> int:
    if not ask(options, "This will remove all custom networks not used by at least one container."):
        raise Cancelled
    _, text = prune_networks(cli, wanted(cli, options))
    if text:
        cli.print(text)
    return 0


def volumes(cli: Cli, options: Options, operands: list[str]) -> int:
    every = options["all"]
    warning = (
        "This will remove all local volumes not used by at least one container."
        if every
        else "This will remove anonymous local volumes not used by at least one container."
    )
    if not ask(options, warning):
        raise Cancelled
    show(cli, prune_volumes(cli, wanted(cli, options), every))
    return 0


def system(cli: Cli, options: Options, operands: list[str]) -> int:
    every = options["all"]
    chosen = wanted(cli, options)
    if options["volumes"] and "until" in chosen:
        raise CommandError('ERROR: The "until" filter is not supported with "--volumes"')
    items = ["all stopped containers", "all networks not used by at least one container"]
    if options["volumes"]:
        items.append("all anonymous volumes not used by at least one container")
    items.append("all images without at least one container associated to them" if every else "all dangling images")
    items.append("all build cache" if every else "unused build cache")
    warning = "This will remove:\n" + "\n".join("  - " + item for item in items) + "\n"
    if chosen:
        warning += "\n  Items to be pruned will be filtered with:\n"
        warning += "\n".join(sorted(f"  - {key}={value}" for key, values in chosen.items() for value in values)) + "\n"
    if not ask(options, warning):
        raise Cancelled
    total = 0
    results = [prune_containers(cli, chosen), prune_networks(cli, chosen)]
    if options["volumes"]:
        results.append(prune_volumes(cli, chosen))
    results.append(prune_images(cli, chosen, every))
    try:
        cache = {key: value for key, value in chosen.items() if key == "until"}
        results.append(prune_build_cache(cli, cache, every))
    except APIError as error:
        if error.status not in (404, 501):
            raise  # an engine without a builder has no cache
    for space, text in results:
        total += space
        if text:
            cli.print(text)
    cli.print("Total reclaimed space: " + units.human_size(total))
    return 0


FLAGS = """
   --filter  filter  Remove only what fits, KEY=VALUE (label, label!, until)
-f --force   bool    Do not ask
"""
COMMANDS = {
    "container prune": Command(containers, "[OPTIONS]", 0, 0, FLAGS),
    "image prune": Command(
        images, "[OPTIONS]", 0, 0, FLAGS + "-a --all  bool  Remove all images that no container uses"
    ),
    "network prune": Command(networks, "[OPTIONS]", 0, 0, FLAGS),
    "volume prune": Command(volumes, "[OPTIONS]", 0, 0, FLAGS + "-a --all  bool  Remove named volumes too"),
    "system prune": Command(
        system,
        "[OPTIONS]",
        0,
        0,
        FLAGS
        + """
-a --all      bool  Remove all images that no container uses
   --volumes  bool  Remove anonymous volumes too
""",
    ),
}
