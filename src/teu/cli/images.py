# SPDX-License-Identifier: Apache-2.0
"""Images at hand: ls, history, rm, tag."""

from __future__ import annotations

import time

from teu.cli import table
from teu.cli.command import Cli, Command
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options, filters
from teu.oci import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NONE = "<none>"
HEADINGS = {
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Containers": "CONTAINERS",
    "VirtualSize": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
}


def rows(images: list[dict[str, Any]], digests_too: bool) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(repository, tag, digest, image): an image has a line for each of its names."""
    result = []
    for image in images:
        tags = [name for name in image.get("RepoTags") or () if name != "<none>:<none>"]
        digests = [name for name in image.get("RepoDigests") or () if name != "<none>@<none>"]
        if not tags and not digests:
            result.append((NONE, NONE, NONE, image))
            continue
        by_repository: dict[str, tuple[list[str], list[str]]] = {}
        for name in tags:
            repository, _, tag = name.rpartition(":")
            by_repository.setdefault(repository, ([], []))[0].append(tag)
        for name in digests:
            repository, _, digest = name.partition("@")
            by_repository.setdefault(repository, ([], []))[1].append(digest)
        for repository, (own_tags, own_digests) in by_repository.items():
            if own_tags:
                shown = own_digests if digests_too and own_digests else [NONE]
                result += [(repository, tag, digest, image) for tag in own_tags for digest in shown]
            elif digests_too:
                result += [(repository, NONE, digest, image) for digest in own_digests]
            else:
                result.append((repository, NONE, "", image))
    return result


def optional_size(value: int | None) -> str:
    return "N/A" if value is None or value == -1 else units.human_size(value)


def columns(whole: bool) -> dict[str, Callable[[Any], Any]]:
    def unique(row: Any) -> str:
        image = row[3]
        if image.get("Size", -1) == -1 or image.get("SharedSize", -1) == -1:
            return "N/A"
        return units.human_size(image["Size"] - image["SharedSize"])

    def count(row: Any) -> str:
        number = row[3].get("Containers", -1)
        return "N/A" if number == -1 else str(number)

    return {
        "ID": lambda row: table.short_id(row[3]["Id"], whole),
        "Repository": lambda row: row[0],
        "Tag": lambda row: row[1],
        "Digest": lambda row: row[2],
        "CreatedSince": lambda row: units.ago(row[3]["Created"]),
        "CreatedAt": lambda row: units.local_time(row[3]["Created"]),
        "Size": lambda row: units.human_size(row[3]["Size"], 3),
        "Containers": count,
        "VirtualSize": lambda row: units.human_size(row[3]["Size"], 3),
        "SharedSize": lambda row: optional_size(row[3].get("SharedSize")),
        "UniqueSize": unique,
    }


def list_images(cli: Cli, options: Options, operands: list[str]) -> int:
    chosen = filters(options["filter"])
    if operands:
        chosen.setdefault("reference", {})[operands[0]] = True
    if options["tree"]:
        return _tree(cli, options, chosen)
    form = options["format"] or ("" if options["quiet"] else cli.setting("imagesFormat") or "")
    found = cli.client.get("/images/json", {"all": options["all"], "filters": chosen or None})
    digests = options["digests"] or ".Digest" in form
    default = ["Repository", "Tag", *(["Digest"] if options["digests"] else []), "ID", "CreatedSince", "Size"]
    digest = ("digest Digest",) if options["digests"] else ()
    raw = ("repository Repository", "tag Tag", *digest, "image_id ID", "created_at CreatedAt", "virtual_size Size")
    table.print_list(
        rows(found, digests),
        columns(options["no-trunc"]),
        HEADINGS,
        default,
        form,
        quiet="ID" if options["quiet"] else "",
        raw=raw,
    )
    return 0


def _tree(cli: Cli, options: Options, chosen: dict[str, Any]) -> int:
    from teu.cli import platforms  # 0.5 ms

    for other in ("digests", "format", "no-trunc", "quiet"):
        if options[other]:
            raise CommandError(f"--{other} is not supported with --tree")
    platforms.need(cli, "1.47", "--tree")
    query = {"all": options["all"], "filters": chosen or None, "manifests": "1"}
    platforms.tree(cli, cli.client.get("/images/json", query))
    return 0


def history(cli: Cli, options: Options, operands: list[str]) -> int:
    whole, human = options["no-trunc"], options["human"]

    def instant(layer: dict[str, Any]) -> str:
        zone = time.strftime("%z", time.localtime(layer["Created"]))
        zone = "Z" if zone == "+0000" else zone[:3] + ":" + zone[3:]
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(layer["Created"])) + zone

    def since(layer: dict[str, Any]) -> str:
        if not human:
            return instant(layer)
        return units.ago(layer["Created"]) if layer["Created"] > 0 else "N/A"

    def made_by(layer: dict[str, Any]) -> str:
        text = layer["CreatedBy"].replace("\t", " ")
        return text if whole else table.ellipsis(text, 45)

    view: dict[str, Callable[[Any], Any]] = {
        "ID": lambda layer: table.short_id(layer["Id"], whole),
        "CreatedSince": since,
        "CreatedAt": instant,
        "CreatedBy": made_by,
        "Size": lambda layer: units.human_size(layer["Size"], 3) if human else str(layer["Size"]),
        "Comment": lambda layer: layer["Comment"],
    }
    headings = {
        "ID": "IMAGE",
        "CreatedSince": "CREATED",
        "CreatedAt": "CREATED AT",
        "CreatedBy": "CREATED BY",
        "Size": "SIZE",
        "Comment": "COMMENT",
    }
    query = {}
    if options["platform"]:
        from teu.cli import platforms  # 0.5 ms

        query = platforms.one(cli, options["platform"], "1.48")
    found = cli.client.get(f"/images/{operands[0]}/history", query)
    default = ["ID", "CreatedSince", "CreatedBy", "Size", "Comment"]
    quiet = "ID" if options["quiet"] else ""
    table.print_list(found, view, headings, default, options["format"], quiet=quiet)
    return 0


def remove(cli: Cli, options: Options, operands: list[str]) -> int:
    errors, fatal = [], False
    query = {"force": options["force"], "noprune": options["no-prune"]}
    if options["platform"]:
        from teu.cli import platforms  # 0.5 ms

        query.update(platforms.several(cli, options["platform"], "1.50", "platforms"))
    for name in operands:
        try:
            for entry in cli.client.call("DELETE", f"/images/{name}", query) or ():
                cli.print("Deleted: " + entry["Deleted"] if entry.get("Deleted") else "Untagged: " + entry["Untagged"])
        except APIError as error:
            errors.append(str(error))
            fatal = fatal or error.status != 404
    if errors:
        if not options["force"] or fatal:
            raise CommandError("\n".join(errors))
        cli.warn("\n".join(errors))
    return 0


def tag(cli: Cli, options: Options, operands: list[str]) -> int:
    from teu.cli.registry import check_reference, split_tag  # 0.9 ms

    try:
        check_reference(operands[1])
    except CommandError as error:
        raise CommandError(
            f'Error parsing reference: "{operands[1]}" is not a valid repository/tag: {error.text}'
        ) from None
    repository, name = split_tag(operands[1])
    if "@" in operands[1]:
        raise CommandError("refusing to create a tag with a digest reference")
    cli.client.call("POST", f"/images/{operands[0]}/tag", {"repo": repository, "tag": name or "latest"})
    return 0


FORMAT = "   --format    string  `table`, `table TEMPLATE`, `json` or a Go template\n"
COMMANDS = {
    "image ls": Command(
        list_images,
        "[OPTIONS] [REPOSITORY[:TAG]]",
        0,
        1,
        FORMAT
        + """
-a --all       bool    Show intermediate images too
   --digests   bool    Show the digests
-f --filter    filter  Show what fits, KEY=VALUE (before, dangling, label, reference, since, until)
   --no-trunc  bool    Do not shorten anything
-q --quiet     bool    Show only the IDs
   --tree      bool    Show the platforms of each image
""",
    ),
    "image history": Command(
        history,
        "[OPTIONS] IMAGE",
        1,
        1,
        FORMAT
        + """
-H --human     bool=true  Sizes and times for humans
   --no-trunc  bool       Do not shorten anything
   --platform  string     Of this platform, OS[/ARCH[/VARIANT]]
-q --quiet     bool       Show only the IDs
""",
    ),
    "image rm": Command(
        remove,
        "[OPTIONS] IMAGE [IMAGE...]",
        1,
        None,
        """
-f --force     bool     Remove it though containers or other names use it
   --no-prune  bool     Keep untagged parents
   --platform  strings  Remove only these platforms, OS[/ARCH[/VARIANT]]
""",
    ),
    "image tag": Command(tag, "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", 2, 2),
}
