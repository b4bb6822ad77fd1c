# SPDX-License-Identifier: Apache-2.0
"""`--platform` of commands on images that are here, and `images --tree`. Called by images, archives, inspect and
registry."""

from __future__ import annotations

from teu.cli import table
from teu.cli.errors import CommandError
from teu.oci import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.cli.command import Cli

ALL = "all"


def need(cli: Cli, version: str, option: str) -> None:
    """Refuse an option that the daemon would not heed: it is of this version of the API, or of none, and teud's of
    any."""
    response = cli.client.open("GET", "/_ping")
    response.read()
    cli.client.done(response)
    known = response.headers.get("api-version", "")
    if response.headers.get("server", "").startswith("Teu/"):
        return
    if not version:
        raise CommandError(f"{option} are for teud: another daemon would pull the first alone")
    if _numbers(known) < _numbers(version):
        raise CommandError(f'"{option}" requires API version {version}, but the daemon has {known or "an older one"}')


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def encoded(text: str) -> str:
    """A platform as these requests have it: JSON. Raises CommandError."""
    from teu.oci import image_spec, jsontext  # 7 ms, with this option alone

    try:
        wanted = image_spec.parse_platform(text)
    except image_spec.SpecError as error:
        raise CommandError(f"invalid platform: {error}") from None
    members = {"architecture": wanted.architecture, "os": wanted.os, "variant": wanted.variant}
    return jsontext.dumps({key: value for key, value in members.items() if value})


def one(cli: Cli, text: str, version: str) -> dict[str, Any]:
    """The query of a command that takes one platform at most."""
    if not text:
        return {}
    query = {"platform": encoded(text)}
    need(cli, version, "--platform")
    return query


def several(cli: Cli, texts: list[str], version: str, name: str = "platform") -> dict[str, Any]:
    """The same, of a command that takes more than one since `version`."""
    if not texts:
        return {}
    query = {name: [text if text == ALL else encoded(text) for text in texts]}
    need(cli, version if len(texts) == 1 and ALL not in texts else "1.52", "--platform")
    return query


def tree(cli: Cli, images: list[dict[str, Any]]) -> None:
    """Images by their names, each with its platforms below it."""
    lines = ["IMAGE\tID\tDISK USAGE\tCONTENT SIZE\tIN USE"]
    for image in images:
        manifests = [entry for entry in image.get("Manifests") or () if entry.get("Available")]
        pictures = [entry for entry in manifests if entry.get("Kind") == "image"]
        used = any(entry["ImageData"].get("Containers") for entry in pictures)
        names = [name for name in image.get("RepoTags") or () if name != "<none>:<none>"] or ["<untagged>"]
        content = sum(entry["Size"]["Content"] for entry in manifests)
        for name in names[:-1]:
            lines.append(f"{name}\t\t\t\t")
        total = sum(entry["Size"]["Total"] for entry in manifests)
        lines.append(_line(names[-1], image["Id"], total, content, used))
        for number, entry in enumerate(pictures):
            branch = "└─ " if number == len(pictures) - 1 else "├─ "
            size = entry["Size"]
            platform = entry["ImageData"].get("Platform") or {}
            shown = "/".join(filter(None, (platform.get(key, "") for key in ("os", "architecture", "variant"))))
            users = bool(entry["ImageData"].get("Containers"))
            lines.append(_line(branch + (shown or "unknown"), entry["ID"], size["Total"], size["Content"], users))
    cli.print(table.align(lines).rstrip("\n"))


def _line(name: str, identity: str, total: int, content: int, used: bool) -> str:
    sizes = f"{units.human_size(total, 3)}\t{units.human_size(content, 3)}"
    return f"{name}\t{table.short_id(identity)}\t{sizes}\t{'U' if used else ''}"
