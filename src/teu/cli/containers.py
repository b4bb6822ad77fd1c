# SPDX-License-Identifier: Apache-2.0
"""What is there to be seen of containers: ls (ps), port, top, diff."""

from __future__ import annotations

from teu.cli import table
from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.options import Options, filters
from teu.oci import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

RAW = (
    "container_id ID",
    "image Image",
    "command Command",
    "created_at CreatedAt",
    "state State",
    "status Status",
    "names Names",
    "labels Labels",
    "ports Ports",
)
HEADINGS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Ports": "PORTS",
    "Status": "STATUS",
    "State": "STATE",
    "Size": "SIZE",
    "Names": "NAMES",
    "Labels": "LABELS",
    "Mounts": "MOUNTS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Networks": "NETWORKS",
    "Platform": "PLATFORM",
}


def quoted(text: str) -> str:
    """In double quotes as Go's strconv.Quote writes it."""
    out = ['"']
    escapes = {
        '"': '\\"',
        "\\": "\\\\",
        "\n": "\\n",
        "\t": "\\t",
        "\r": "\\r",
        "\a": "\\a",
        "\b": "\\b",
        "\f": "\\f",
        "\v": "\\v",
    }
    for letter in text:
        if letter in escapes:
            out.append(escapes[letter])
        elif letter.isprintable():
            out.append(letter)
        else:
            code = ord(letter)
            out.append(f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return "".join(out) + '"'


def shown_names(container: dict[str, Any], whole: bool) -> str:
    names = [name.removeprefix("/") for name in container.get("Names") or ()]
    return ",".join(names if whole else [name for name in names if "/" not in name])


def shown_image(container: dict[str, Any], whole: bool) -> str:
    image: str = container.get("Image") or ""
    if not image:
        return "<no image>"
    if not whole:
        short = table.short_id(container.get("ImageID") or "")
        if short and short == table.short_id(image):
            return short
        image = image.partition("@")[0] if not image.startswith("sha256:") else image
    return image


def shown_ports(ports: list[dict[str, Any]] | None) -> str:
    """`0.0.0.0:8080->80/tcp, 443/tcp`; neighbouring ports make a range. What is open at the container's own address
    alone has 0 for the host's port, as with docker."""

    def group_text(key: tuple[str, str], first: int, last: int) -> str:
        text = str(first) if first == last else f"{first}-{last}"
        return f"{key[0]}:{text}->{text}/{key[1]}" if key[0] else f"{text}/{key[1]}"

    groups: dict[tuple[str, str], list[int]] = {}
    result: list[str] = []
    mapped: list[str] = []
    order = sorted(
        ports or (),
        key=lambda port: (
            port["PrivatePort"],
            port.get("IP") or "",
            port.get("PublicPort") or 0,
            port.get("Type", ""),
        ),
    )
    for port in order:
        address, inside = port.get("IP") or "", port["PrivatePort"]
        if ":" in address:
            address = f"[{address}]"
        key = ("", port["Type"])
        if address:
            if port.get("PublicPort") != inside:
                mapped.append(f"{address}:{port.get('PublicPort') or 0}->{inside}/{port['Type']}")
                continue
            key = (address, port["Type"])
        group = groups.get(key)
        if group is None:
            groups[key] = [inside, inside]
        elif inside == group[1] + 1:
            group[1] = inside
        else:
            result.append(group_text(key, *group))
            groups[key] = [inside, inside]
    result += [group_text(key, *group) for key, group in groups.items()]
    return ", ".join(result + mapped)


def shown_size(container: dict[str, Any]) -> str:
    text = units.human_size(container.get("SizeRw") or 0, 3)
    whole = container.get("SizeRootFs") or 0
    return f"{text} (virtual {units.human_size(whole, 3)})" if whole > 0 else text


def shown_mounts(container: dict[str, Any], whole: bool) -> str:
    names = [mount.get("Name") or mount.get("Source") or "" for mount in container.get("Mounts") or ()]
    return ",".join(name if whole else table.ellipsis(name, 15) for name in names)


def shown_status(container: dict[str, Any]) -> str:
    """With what a declared container says of itself (STATUS= of sd_notify(3))."""
    text, said = str(container.get("Status") or ""), container.get("StatusText")
    return f"{text}: {said}" if said else text


class Platform(dict[str, "Any"]):
    """Of a container's image: in JSON as the daemon tells it, in templates as os/architecture[/variant]."""

    def shown(self, show: Callable[[Any], str]) -> str:
        version = self.get("os.version")
        system = f"{self.get('os')}({version})" if version else self.get("os")
        return "/".join(filter(None, (system, self.get("architecture"), self.get("variant")))) or "unknown"


def shown_platform(container: dict[str, Any]) -> Any:
    known = (container.get("ImageManifestDescriptor") or {}).get("platform")
    if known:
        return Platform(known)
    from teu.oci.template import Nil  # 8 ms, where a daemon does not tell it and a format asks for it

    return Nil("*formatter.Platform")


def columns(whole: bool) -> dict[str, Callable[[Any], Any]]:
    def command(container: dict[str, Any]) -> str:
        text = container.get("Command") or ""
        return quoted(text if whole else table.ellipsis(text, 20))

    return {
        "ID": lambda c: table.short_id(c["Id"], whole),
        "Image": lambda c: shown_image(c, whole),
        "Command": command,
        "CreatedAt": lambda c: units.local_time(c["Created"]),
        "RunningFor": lambda c: units.ago(c["Created"]),
        "Ports": lambda c: shown_ports(c.get("Ports")),
        "Status": shown_status,
        "State": lambda c: c.get("State") or "",
        "Size": shown_size,
        "Names": lambda c: shown_names(c, whole),
        "Labels": lambda c: table.labels_text(c.get("Labels")),
        "LabelMap": lambda c: c.get("Labels") or {},
        "Mounts": lambda c: shown_mounts(c, whole),
        "LocalVolumes": lambda c: str(sum(m.get("Driver") == "local" for m in c.get("Mounts") or ())),
        "Networks": lambda c: ",".join(((c.get("NetworkSettings") or {}).get("Networks") or {}).keys()),
        "Platform": shown_platform,
    }


DEFAULT = ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"]


def list_containers(cli: Cli, options: Options, operands: list[str]) -> int:
    form = options["format"] or ("" if options["quiet"] else cli.setting("psFormat") or "")
    last = 1 if options["latest"] else options["last"]
    size = options["size"] or ".Size" in form or "{{json.}}" in form.replace(" ", "")
    query = {
        "all": options["all"],
        "limit": str(last) if last > 0 else None,
        "size": size,
        "filters": filters(options["filter"]) or None,
    }
    found = cli.client.get("/containers/json", query)
    default = [*DEFAULT, "Size"] if options["size"] else DEFAULT
    quiet = "ID" if options["quiet"] else ""
    raw = RAW if not options["size"] else (*RAW, "size Size")
    table.print_list(found, columns(options["no-trunc"]), HEADINGS, default, form, quiet=quiet, raw=raw)
    return 0


def natural(text: str) -> tuple[int, str]:
    port, _, protocol = text.partition("/")
    return int(port), protocol


def port(cli: Cli, options: Options, operands: list[str]) -> int:
    found = cli.client.get(f"/containers/{operands[0]}/json")
    ports: dict[str, Any] = found["NetworkSettings"].get("Ports") or {}

    def address(binding: dict[str, str]) -> str:
        ip = binding.get("HostIp") or ""
        return (f"[{ip}]" if ":" in ip else ip) + ":" + (binding.get("HostPort") or "")

    if len(operands) > 1:
        asked, slash, protocol = operands[1].partition("/")
        key = f"{asked}/{protocol if slash else 'tcp'}"
        bindings = ports.get(key)
        if not (asked.isascii() and asked.isdigit()):
            raise CommandError(f"Error: Invalid port: {operands[1]}")
        if not bindings:
            raise CommandError(f"Error: No public port '{operands[1]}' published for {operands[0]}")
        for binding in bindings:
            cli.print(address(binding))
        return 0
    for name in sorted(ports, key=natural):
        for binding in ports[name] or ():
            cli.print(f"{name} -> {address(binding)}")
    return 0


def top(cli: Cli, options: Options, operands: list[str]) -> int:
    found = cli.client.get(f"/containers/{operands[0]}/top", {"ps_args": " ".join(operands[1:])})
    lines = ["\t".join(row) for row in [found["Titles"], *(found["Processes"] or [])]]
    cli.print(table.align(lines, 20, 3))
    return 0


def diff(cli: Cli, options: Options, operands: list[str]) -> int:
    if not operands[0]:
        raise CommandError("invalid container name or ID: value is empty")
    for change in cli.client.get(f"/containers/{operands[0]}/changes") or ():
        cli.print(f"{'CAD'[change['Kind']]} {change['Path']}")
    return 0


COMMANDS = {
    "container ls": Command(
        list_containers,
        "[OPTIONS]",
        0,
        0,
        """
-a --all       bool    Show stopped containers too
-f --filter    filter  Show what fits, KEY=VALUE (ancestor, before, exited, expose, health, id, label, name, network, publish, since, status, volume)
   --format    string  `table`, `table TEMPLATE`, `json` or a Go template
-n --last      int=-1  Show the N newest containers, stopped ones too
-l --latest    bool    Show the newest container
   --no-trunc  bool    Do not shorten anything
-q --quiet     bool    Show only the IDs
-s --size      bool    Show the sizes
""",  # noqa: E501
    ),
    "container port": Command(port, "CONTAINER [PRIVATE_PORT[/PROTO]]", 1, 2),
    "container top": Command(top, "CONTAINER [ps OPTIONS]", 1, None, "", False),
    "container diff": Command(diff, "CONTAINER", 1, 1),
}
