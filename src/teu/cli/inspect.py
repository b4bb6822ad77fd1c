# SPDX-License-Identifier: Apache-2.0
"""`inspect` and its kin: what the daemon says of an object, as JSON or through a template."""

from __future__ import annotations

from teu.cli.command import Cli, Command
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PATHS = {
    "container": "/containers/{}/json",
    "image": "/images/{}/json",
    "network": "/networks/{}",
    "volume": "/volumes/{}",
}
KINDS = ", ".join(f'"{kind}"' for kind in PATHS)
UNKNOWN = {
    "container": "No such container",
    "image": "No such image",
    "network": "No such network",
    "volume": "No such volume",
}


def rendered(form: str, value: Any, kind: str) -> str:
    """A template on an object: on Go's types for it first, on the JSON as it is where that fails."""
    from teu.cli.shapes import dressed  # 8 ms with the templates
    from teu.oci.template import Template, TemplateError

    try:
        return Template(form).render(dressed(value, kind))
    except TemplateError:
        return Template(form, missing_error=True).render(value)


def show(cli: Cli, names: list[str], form: str, get: Callable[[str], tuple[str, Any]]) -> int:
    """Print what `get` finds of each name, (kind, value); what is not found is told at the end, with exit code 1."""
    template = ""
    if form and form != "json":
        from teu.oci.template import Template, TemplateError, located  # 8 ms

        try:
            template = form.replace("\\t", "\t").replace("\\n", "\n")
            Template(template)
        except TemplateError as error:
            raise CommandError(f"template parsing error: {located(error)}", 64) from None
    found, errors = [], []
    for name in names:
        try:
            kind, value = get(name)
        except (APIError, CommandError) as error:
            errors.append(str(error))
            continue
        if template:
            try:
                cli.print(rendered(template, value, kind))
            except TemplateError as error:
                errors.append(f"template parsing error: {located(error)}")
        elif form == "json":
            cli.print(jsontext.dumps(value))
        else:
            found.append(value)
    if not form:
        cli.print(jsontext.dumps(found, "    "))
    elif len(errors) == len(names):
        cli.print("")
    if errors:
        cli.warn("\n".join(errors))
        return 1
    return 0


def get_one(cli: Cli, kind: str, name: str, options: Options) -> Any:
    if not name:
        raise CommandError(f"Error: No such {kind}: ")
    query = {}
    if kind == "container":
        query = {"size": options.get("size")}
    elif kind == "network":
        query = {"verbose": options.get("verbose")}
    elif kind == "image" and options.get("platform"):
        from teu.cli import platforms  # 0.5 ms

        query = platforms.one(cli, options["platform"], "1.49")
    return cli.client.get(PATHS[kind].format(name), query)


def of_kind(kind: str) -> Callable[[Cli, Options, list[str]], int]:
    def inspect(cli: Cli, options: Options, operands: list[str]) -> int:
        return show(cli, operands, options["format"], lambda name: (kind, get_one(cli, kind, name, options)))

    return inspect


def inspect_any(cli: Cli, options: Options, operands: list[str]) -> int:
    kind = options["type"]
    if kind and kind not in PATHS:
        raise CommandError(f'unknown type: "{kind}": must be one of {KINDS}')
    if "type" in options.changed and not kind:
        raise CommandError(f"type is empty: must be one of {KINDS}")

    def find(name: str) -> tuple[str, Any]:
        if kind:
            return kind, get_one(cli, kind, name, options)
        for candidate in PATHS:
            try:
                return candidate, get_one(cli, candidate, name, options)
            except APIError as error:
                if error.status not in (404, 400):
                    raise
        raise CommandError(f"Error: No such object: {name}")

    return show(cli, operands, options["format"], find)


FORMAT = "-f --format  string  `json` or a Go template\n"
COMMANDS = {
    "inspect": Command(
        inspect_any,
        "[OPTIONS] NAME|ID [NAME|ID...]",
        1,
        None,
        FORMAT
        + """
-s --size  bool    Show the sizes of containers
   --type  string  Look only for container, image, network or volume
""",
    ),
    "container inspect": Command(
        of_kind("container"),
        "[OPTIONS] CONTAINER [CONTAINER...]",
        1,
        None,
        FORMAT + "-s --size  bool  Show the sizes",
    ),
    "image inspect": Command(
        of_kind("image"),
        "[OPTIONS] IMAGE [IMAGE...]",
        1,
        None,
        FORMAT + "   --platform  string  Of this platform, OS[/ARCH[/VARIANT]]",
    ),
    "network inspect": Command(
        of_kind("network"),
        "[OPTIONS] NETWORK [NETWORK...]",
        1,
        None,
        FORMAT + "-v --verbose  bool  Show more, for finding faults",
    ),
    "volume inspect": Command(of_kind("volume"), "[OPTIONS] VOLUME [VOLUME...]", 1, None, FORMAT),
}
