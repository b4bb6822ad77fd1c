# SPDX-License-Identifier: Apache-2.0
"""`plugin`: plugins of the engine that it manages itself (volume, network and log drivers, authorization). Those of the
command line are in `plugins`. An engine that has none says so."""

from __future__ import annotations

import os
import sys

from teu.cli import table
from teu.cli.command import Cli, Command
from teu.cli.config import auth_header, registry_of
from teu.cli.errors import APIError, CommandError
from teu.cli.inspect import show
from teu.cli.networks import natural_key
from teu.cli.options import Options, filters
from teu.cli.prune import confirm
from teu.cli.registry import canonical, check_reference, refuse_trust, show_progress, split_tag
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

HEADINGS = {
    "ID": "ID",
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "Enabled": "ENABLED",
    "PluginReference": "IMAGE",
}


def list_plugins(cli: Cli, options: Options, operands: list[str]) -> int:
    found = cli.client.get("/plugins", {"filters": filters(options["filter"]) or None}) or []
    whole = options["no-trunc"]

    def description(value: Any) -> str:
        text = (value["Config"].get("Description") or "").replace("\n", "").replace("\r", "")
        return text if whole else table.ellipsis(text, 45)

    columns: dict[str, Callable[[Any], Any]] = {
        "ID": lambda value: table.short_id(value.get("Id") or "", whole),
        "Name": lambda value: value["Name"],
        "Description": description,
        "Enabled": lambda value: "true" if value["Enabled"] else "false",
        "PluginReference": lambda value: value.get("PluginReference") or "",
    }
    quiet = "ID" if options["quiet"] else ""
    form = options["format"] or ("" if quiet else cli.config.get("pluginsFormat"))
    raw = ("plugin_id ID", "name Name", "description Description", "enabled Enabled")
    found.sort(key=lambda value: natural_key(value["Name"]))
    table.print_list(found, columns, HEADINGS, ["ID", "Name", "Description", "Enabled"], form, quiet=quiet, raw=raw)
    return 0


def inspect(cli: Cli, options: Options, operands: list[str]) -> int:
    return show(cli, operands, options["format"], lambda name: ("a", cli.client.get(f"/plugins/{name}/json")))


def enable(cli: Cli, options: Options, operands: list[str]) -> int:
    if options["timeout"] < 0:
        raise CommandError(f"negative timeout {options['timeout']} is invalid")
    cli.client.call("POST", f"/plugins/{operands[0]}/enable", {"timeout": str(options["timeout"])})
    cli.print(operands[0])
    return 0


def disable(cli: Cli, options: Options, operands: list[str]) -> int:
    cli.client.call("POST", f"/plugins/{operands[0]}/disable", {"force": options["force"]})
    cli.print(operands[0])
    return 0


def remove(cli: Cli, options: Options, operands: list[str]) -> int:
    def one(name: str) -> str:
        cli.client.call("DELETE", f"/plugins/{name}", {"force": options["force"]})
        return name

    return cli.each(operands, one)


def settings(cli: Cli, options: Options, operands: list[str]) -> int:
    cli.client.call("POST", f"/plugins/{operands[0]}/set", None, operands[1:])
    return 0


def fetch(cli: Cli, options: Options, remote: str, path: str, local: str) -> None:
    """Have the engine fetch a plugin, after the user has granted what it asks for."""
    header = auth_header(cli.config, registry_of(remote))
    reference = canonical(remote)
    wanted = cli.client.call("GET", "/plugins/privileges", {"remote": reference}, headers=header) or []
    if wanted and not options["grant-all-permissions"]:
        cli.print(f'Plugin "{remote}" is requesting the following privileges:')
        for privilege in wanted:
            values = " ".join(str(value) for value in privilege.get("Value") or ())
            cli.print(f" - {privilege['Name']}: [{values}]")
        if not confirm("Do you grant the above permissions?"):
            raise CommandError(f"permission denied while installing plugin {reference}")
    query = {"remote": reference, "name": local}
    response = cli.client.open("POST", path, query, wanted, headers=header)
    sys.stdout.flush()
    show_progress(response.messages(), 1, False)
    cli.client.done(response)


def install(cli: Cli, options: Options, operands: list[str]) -> int:
    remote, words = operands[0], operands[1:]
    refuse_trust(options)
    check_reference(remote)
    local = options["alias"]
    if local:
        check_reference(local)
        if "@" in local:
            raise CommandError(f"invalid name: {local}")
        local = local if split_tag(local)[1] else local + ":latest"
    fetch(cli, options, remote, "/plugins/pull", local)
    name = local or (remote if split_tag(remote)[1] or "@" in remote else remote + ":latest")
    try:
        if words:
            cli.client.call("POST", f"/plugins/{name}/set", None, words)
        if not options["disable"]:
            cli.client.call("POST", f"/plugins/{name}/enable", {"timeout": "0"})
    except APIError:
        cli.client.call("DELETE", f"/plugins/{name}", check=False)
        raise
    cli.print(f"Installed plugin {remote}")
    return 0


def upgrade(cli: Cli, options: Options, operands: list[str]) -> int:
    refuse_trust(options)
    try:
        found = cli.client.get(f"/plugins/{operands[0]}/json")
    except APIError as error:
        raise CommandError(f"error reading plugin data: {error}") from None
    if found["Enabled"]:
        raise CommandError("the plugin must be disabled before upgrading")
    old = found.get("PluginReference") or found["Name"]
    remote = operands[1] if len(operands) > 1 else old
    check_reference(remote)
    cli.print(f"Upgrading plugin {found['Name']} from {old} to {remote}")
    another = not options["skip-remote-check"] and canonical(remote) != canonical(old)
    if another and not confirm("Plugin images do not match, are you sure?"):
        raise CommandError("canceling upgrade request")
    fetch(cli, options, remote, f"/plugins/{found['Name']}/upgrade", "")
    cli.print(f"Upgraded plugin {found['Name']} to {remote}")
    return 0


def push(cli: Cli, options: Options, operands: list[str]) -> int:
    (name,) = operands
    refuse_trust(options)
    check_reference(name)
    if "@" in name:
        raise CommandError(f"invalid name: {name}")
    name = name if split_tag(name)[1] else name + ":latest"
    header = auth_header(cli.config, registry_of(name))
    response = cli.client.open("POST", f"/plugins/{name}/push", None, headers=header)
    sys.stdout.flush()
    show_progress(response.messages(), 1, False)
    cli.client.done(response)
    return 0


def archive(folder: str, compress: bool) -> Iterator[bytes]:
    """The tar archive of a plugin's folder."""
    import io  # loaded at Python's start
    import tarfile  # 15 ms

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compress else "w", format=tarfile.PAX_FORMAT) as tar:
        for entry in sorted(os.listdir(folder)):
            tar.add(os.path.join(folder, entry), entry)
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def create(cli: Cli, options: Options, operands: list[str]) -> int:
    name, folder = operands
    check_reference(name)
    try:
        if not os.path.isdir(folder) or os.path.islink(folder):
            os.stat(folder)
            raise CommandError("context must be a directory")
        with open(f"{folder}/config.json", "rb") as file:
            if not isinstance(jsontext.loads(file.read(), exact=True), dict):
                raise ValueError("it is no JSON object")
    except OSError as error:
        raise CommandError(f"{error.filename}: {(error.strerror or '').lower()}") from None
    except ValueError as error:
        raise CommandError(f"{folder}/config.json: {error}") from None
    headers = {"Content-Type": "application/x-tar"}
    body = archive(folder, options["compress"])
    cli.client.call("POST", "/plugins/create", {"name": name}, body, headers=headers)
    cli.print(name)
    return 0


TRUST = "   --disable-content-trust  bool=true  Must stay true: signatures are not checked\n"
GRANT = "   --grant-all-permissions  bool  Grant what the plugin asks for, without a question\n"
COMMANDS = {
    "plugin create": Command(
        create,
        "[OPTIONS] PLUGIN PLUGIN-DATA-DIR",
        2,
        2,
        "   --compress  bool  Send the folder compressed with gzip",
    ),
    "plugin disable": Command(disable, "[OPTIONS] PLUGIN", 1, 1, "-f --force  bool  Also one that is in use"),
    "plugin enable": Command(
        enable, "[OPTIONS] PLUGIN", 1, 1, "   --timeout  int=30  Seconds to wait for the plugin to answer"
    ),
    "plugin inspect": Command(
        inspect,
        "[OPTIONS] PLUGIN [PLUGIN...]",
        1,
        None,
        "-f --format  string  Print through a Go template, or as JSON with `json`",
    ),
    "plugin install": Command(
        install,
        "[OPTIONS] PLUGIN [KEY=VALUE...]",
        1,
        None,
        TRUST
        + GRANT
        + """
   --alias    string  Its name here
   --disable  bool    Do not enable it
""",
    ),
    "plugin ls": Command(
        list_plugins,
        "[OPTIONS]",
        0,
        0,
        """
-f --filter    filter  Show what fits, KEY=VALUE (capability, enabled)
   --format    string  `table`, `table TEMPLATE`, `json` or a Go template
   --no-trunc  bool    Do not shorten anything
-q --quiet     bool    Show only the IDs
""",
    ),
    "plugin push": Command(push, "[OPTIONS] PLUGIN[:TAG]", 1, 1, TRUST),
    "plugin rm": Command(remove, "[OPTIONS] PLUGIN [PLUGIN...]", 1, None, "-f --force  bool  Also one that is enabled"),
    "plugin set": Command(settings, "PLUGIN KEY=VALUE [KEY=VALUE...]", 2, None),
    "plugin upgrade": Command(
        upgrade,
        "[OPTIONS] PLUGIN [REMOTE]",
        1,
        2,
        TRUST
        + GRANT
        + """
   --skip-remote-check  bool  Do not ask where REMOTE is another image than the plugin's
""",
    ),
}
