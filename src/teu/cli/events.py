# SPDX-License-Identifier: Apache-2.0
"""`events`: what happens in the daemon, live."""

from __future__ import annotations

import sys
import time

from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.options import Options, filters
from teu.oci import jsontext, units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def instant(event: dict[str, Any]) -> str:
    """Local time in RFC 3339 with nine digits of a second."""
    nano = event.get("timeNano") or event.get("time", 0) * 1_000_000_000
    local = time.localtime(nano // 1_000_000_000)
    zone = time.strftime("%z", local)
    zone = "Z" if zone == "+0000" else zone[:3] + ":" + zone[3:]
    return time.strftime("%Y-%m-%dT%H:%M:%S.", local) + f"{nano % 1_000_000_000:09d}" + zone


def events(cli: Cli, options: Options, operands: list[str]) -> int:
    query: dict[str, Any] = {"filters": filters(options["filter"]) or None}
    for name in ("since", "until"):
        if options[name]:
            try:
                query[name] = units.timestamp(options[name])
            except ValueError as error:
                raise CommandError(str(error)) from None
    form = options["format"]
    template = None
    if form and form != "json":
        from teu.cli.template import compile_template  # 8 ms
        from teu.oci.template import TemplateError, located

        template = compile_template(form.replace("\\t", "\t").replace("\\n", "\n"))
    for event in cli.client.open("GET", "/events", query).messages():
        if template is not None:
            try:
                text = template.render(named(event))
            except TemplateError as error:
                raise CommandError(located(error)) from None
        elif form:
            text = jsontext.dumps(event)
        else:
            actor = event.get("Actor") or {}
            attributes = actor.get("Attributes") or {}
            detail = ", ".join(f"{key}={attributes[key]}" for key in sorted(attributes))
            text = f"{instant(event)} {event.get('Type', '')} {event.get('Action', '')} {actor.get('ID', '')}"
            text += f" ({detail})" if detail else ""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    return 0


def named(event: dict[str, Any]) -> dict[str, Any]:
    """An event under the names that templates use."""
    names = {
        "status": "Status",
        "id": "ID",
        "from": "From",
        "scope": "Scope",
        "time": "Time",
        "timeNano": "TimeNano",
    }
    base = {"Status": "", "ID": "", "From": ""}
    return {**base, **{names.get(key, key): value for key, value in event.items()}}


COMMANDS = {
    "system events": Command(
        events,
        "[OPTIONS]",
        0,
        0,
        """
-f --filter  filter  Show what fits, KEY=VALUE (container, event, image, label, network, type, volume, …)
   --format  string  `json` or a Go template
   --since   string  Begin with what happened after this time
   --until   string  End at this time
""",
    ),
}
