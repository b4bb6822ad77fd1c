# SPDX-License-Identifier: Apache-2.0
"""`system auto-update`: restarts units whose image is no longer that of their container, and takes a new image back
where the unit does not become ready with it. teu-auto-update.timer calls it, where that is enabled.

    AutoUpdate=registry   the image is pulled first
    AutoUpdate=local      what has the image's name here counts, for instance after a build
"""

from __future__ import annotations

import os

from teu.cli import readiness
from teu.cli.command import Cli, Command
from teu.cli.declared import unit
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options
from teu.cli.registry import split_tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LABEL = "io.containers.autoupdate"  # podman's own
SYSTEMCTL = "/usr/bin/systemctl"


class Candidate:
    """A running container that says how it is updated."""

    def __init__(self, record: dict[str, Any]) -> None:
        labels = record["Config"]["Labels"]
        self.unit = str(labels.get(readiness.LABEL, ""))
        self.policy = str(labels.get(LABEL, ""))
        self.name = str(record["Name"]).lstrip("/")
        self.image = str(record["Config"]["Image"])
        self.had = str(record["Image"])


def systemctl(*words: str) -> bool:
    """Whether systemctl has done what it was asked for; its own words are on our standard error."""
    pid = os.posix_spawn(SYSTEMCTL, [SYSTEMCTL, *words], os.environ)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def candidates(cli: Cli) -> list[Candidate]:
    found = []
    for listed in cli.client.get("/containers/json", {"filters": {"label": {LABEL: True}}}):
        try:
            found.append(Candidate(cli.client.get(f"/containers/{listed['Id']}/json")))
        except APIError as error:
            if error.status != 404:  # it has just ended
                raise
    return sorted(found, key=lambda one: (one.unit, one.name))


def image_id(cli: Cli, name: str) -> str:
    return str(cli.client.get(f"/images/{name}/json")["Id"])


def there_is_news(cli: Cli, one: Candidate) -> bool:
    """Whether the registry has another image of that name than is here; nothing is pulled."""
    digest = cli.client.get(f"/distribution/{one.image}/json")["Descriptor"]["digest"]
    known = cli.client.get(f"/images/{one.image}/json").get("RepoDigests") or []
    return not any(str(name).endswith("@" + digest) for name in known)


def refresh(cli: Cli, one: Candidate, dry: bool) -> str:
    """Update one; what has become of it: no, pending, yes, rolled back. CommandError where that fails."""
    if one.policy == "registry" and not dry:
        options = Options()
        options.update({"retry": 3, "retry-delay": 2_000_000_000, "platform": ""})
        unit.Puller(cli, options).pull(one.image)
    if dry and one.policy == "registry" and there_is_news(cli, one):
        return "pending"
    if image_id(cli, one.image) == one.had:
        return "no"
    if dry:
        return "pending"
    if restart(one):
        return "yes"
    repository, tag = split_tag(one.image)
    cli.client.call("POST", f"/images/{one.had}/tag", {"repo": repository, "tag": tag or "latest"})
    if not restart(one):
        raise CommandError(f"{one.unit} did not start with the new image of {one.image}, nor with the old one again")
    return "rolled back"


def restart(one: Candidate) -> bool:
    systemctl("reset-failed", "--quiet", one.unit)
    return systemctl("restart", one.unit)


def update(cli: Cli, options: Options, operands: list[str]) -> int:
    code = 0
    for one in candidates(cli):
        try:
            if not one.unit:
                raise CommandError(f"{one.name} is not of a declared unit: nobody could start it again")
            if one.policy not in ("registry", "local"):
                raise CommandError(f"{one.name}: {LABEL}={one.policy} is neither registry nor local")
            told = refresh(cli, one, options["dry-run"])
        except (APIError, CommandError) as error:
            cli.warn(str(error))
            told = "failed"
        cli.print(f"{one.unit or '-'} {one.name} {one.image} {told}")
        code = 1 if told in ("failed", "rolled back") else code
    return code


COMMANDS = {
    "system auto-update": Command(
        update, "[OPTIONS]", 0, 0, "\n   --dry-run  bool  Say what would be updated, and change nothing\n"
    )
}
