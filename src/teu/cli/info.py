# SPDX-License-Identifier: Apache-2.0
"""`info` and `version`."""

from __future__ import annotations

import os
import sys
import time

from teu import __version__
from teu.cli import plugins
from teu.cli.command import Cli, Command
from teu.cli.errors import APIError, CommandError, ConnectError
from teu.cli.http import API_VERSION
from teu.cli.options import Options
from teu.oci import jsontext, units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def formatted(cli: Cli, form: str, value: dict[str, Any]) -> None:
    if form == "json":
        cli.print(jsontext.dumps(value))
        return
    from teu.oci.template import Template, TemplateError, located  # 8 ms

    try:
        cli.print(Template(form.replace("\\t", "\t").replace("\\n", "\n"), missing_error=True).render(value))
    except TemplateError as error:
        raise CommandError(f"template parsing error: {located(error)}", 64) from None


def go_architecture(machine: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}.get(machine, machine)


def built(text: str) -> str:
    """A build's time as `date` would show it."""
    try:
        seconds, _ = units.parse_time(text)
    except ValueError:
        return text
    return time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(seconds))


def version(cli: Cli, options: Options, operands: list[str]) -> int:
    client: dict[str, Any] = {
        "Version": __version__,
        "ApiVersion": API_VERSION,
        "DefaultAPIVersion": API_VERSION,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": go_architecture(os.uname().machine),
        "BuildTime": "",
        "Context": cli.context,
    }
    server = None
    failure: Exception | None = None
    try:
        server = cli.client.get("/version")
    except (APIError, ConnectError) as error:
        failure = error
    if options["format"]:
        formatted(cli, options["format"], {"Client": client, "Server": server})
        if failure is not None:
            cli.warn(str(failure))
        return 1 if failure is not None else 0
    rows = [
        ("Version", client["Version"]),
        ("API version", client["ApiVersion"]),
        ("Python version", ".".join(map(str, sys.version_info[:3]))),
        ("OS/Arch", f"{client['Os']}/{client['Arch']}"),
        ("Context", cli.context),
    ]
    lines = ["Client:"] + [f" {name + ':':<18} {value}" for name, value in rows]
    cli.print("\n".join(lines))
    if failure is not None:
        cli.warn(str(failure))
        return 1
    assert server is not None
    name = (server.get("Platform") or {}).get("Name") or ""
    lines = ["", f"Server:{' ' + name if name else ''}"]
    for component in server.get("Components") or ():
        detail = component.get("Details") or {}
        lines.append(f" {component['Name']}:")
        if component["Name"] == "Engine":
            rows = [
                ("Version", component["Version"]),
                (
                    "API version",
                    f"{detail.get('ApiVersion')} (minimum version {detail.get('MinAPIVersion')})",
                ),
                ("Go version", detail.get("GoVersion")),
                ("Git commit", detail.get("GitCommit")),
                ("Built", built(detail.get("BuildTime") or "")),
                ("OS/Arch", f"{detail.get('Os')}/{detail.get('Arch')}"),
                ("Experimental", detail.get("Experimental")),
            ]
            rows = [row for row in rows if row[1] or row[0] != "Go version"]
        else:
            rows = [("Version", component["Version"]), *sorted(detail.items())]
        lines += [f"  {label + ':':<17} {value or ''}" for label, value in rows]
    cli.print("\n".join(lines))
    return 0


def words(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def server_lines(found: dict[str, Any]) -> list[str]:
    """What `info` shows of the daemon."""
    return [
        *count_lines(found),
        *driver_lines(found),
        *runtime_lines(found),
        *machine_lines(found),
        *debug_lines(found),
        *proxy_and_label_lines(found),
        *registry_lines(found),
        *last_lines(found),
        "",
    ]


def shown(found: dict[str, Any], *fields: tuple[str, str]) -> list[str]:
    """A line for each (label, key) that has a value."""
    return [f" {label}: {words(found[key])}" for label, key in fields if found.get(key)]


def always(found: dict[str, Any], label: str, key: str) -> str:
    value = found.get(key)
    return f" {label}: {words(value if value is not None else '')}"


def listed(title: str, values: Iterable[str]) -> list[str]:
    """A title with values below it; nothing where there are none."""
    lines = ["  " + value for value in values]
    return [f" {title}:", *lines] if lines else []


def count_lines(found: dict[str, Any]) -> list[str]:
    return [
        f" Containers: {found.get('Containers', 0)}",
        f"  Running: {found.get('ContainersRunning', 0)}",
        f"  Paused: {found.get('ContainersPaused', 0)}",
        f"  Stopped: {found.get('ContainersStopped', 0)}",
        f" Images: {found.get('Images', 0)}",
    ]


def driver_lines(found: dict[str, Any]) -> list[str]:
    lines = shown(found, ("Server Version", "ServerVersion"), ("Storage Driver", "Driver"))
    lines += [f"  {name}: {value}" for name, value in found.get("DriverStatus") or ()]
    lines += shown(
        found,
        ("Logging Driver", "LoggingDriver"),
        ("Cgroup Driver", "CgroupDriver"),
        ("Cgroup Version", "CgroupVersion"),
    )
    plugins = found.get("Plugins") or {}
    lines.append(" Plugins:")
    for key in ("Volume", "Network", "Authorization", "Log"):
        if plugins.get(key) or key != "Authorization":
            lines.append(f"  {key}: {' '.join(plugins.get(key) or ())}")
    lines += listed("CDI spec directories", found.get("CDISpecDirs") or ())
    lines.append(f" Swarm: {(found.get('Swarm') or {}).get('LocalNodeState') or 'inactive'}")
    return lines


def runtime_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    if found.get("Runtimes"):
        lines.append(f" Runtimes: {' '.join(found['Runtimes'])}")
        lines.append(f" Default Runtime: {found.get('DefaultRuntime', '')}")
    lines.append(always(found, "Init Binary", "InitBinary"))
    for label, key in (("containerd", "ContainerdCommit"), ("runc", "RuncCommit"), ("init", "InitCommit")):
        lines.append(f" {label} version: {(found.get(key) or {}).get('ID', '')}")
    if found.get("SecurityOptions"):
        lines.append(" Security Options:")
        for text in found["SecurityOptions"]:
            pairs = [part.partition("=") for part in text.split(",")]
            lines.extend("  " + value for key, _, value in pairs if key == "name")
            lines.extend("   Profile: " + value for key, _, value in pairs if key == "profile")
    return lines


def machine_lines(found: dict[str, Any]) -> list[str]:
    return [
        *shown(
            found,
            ("Kernel Version", "KernelVersion"),
            ("Operating System", "OperatingSystem"),
            ("OSType", "OSType"),
            ("Architecture", "Architecture"),
        ),
        always(found, "CPUs", "NCPU"),
        f" Total Memory: {units.binary_size(found.get('MemTotal') or 0)}",
        *shown(found, ("Name", "Name"), ("ID", "ID")),
        always(found, "Docker Root Dir", "DockerRootDir"),
    ]


def debug_lines(found: dict[str, Any]) -> list[str]:
    lines = [f" Debug Mode: {words(bool(found.get('Debug')))}"]
    if found.get("Debug"):
        lines += [
            f"  File Descriptors: {found.get('NFd', 0)}",
            f"  Goroutines: {found.get('NGoroutines', 0)}",
            f"  System Time: {found.get('SystemTime', '')}",
            f"  EventsListeners: {found.get('NEventsListener', 0)}",
        ]
    return lines


def proxy_and_label_lines(found: dict[str, Any]) -> list[str]:
    return [
        *shown(found, ("HTTP Proxy", "HttpProxy"), ("HTTPS Proxy", "HttpsProxy"), ("No Proxy", "NoProxy")),
        *listed("Labels", found.get("Labels") or ()),
        f" Experimental: {words(bool(found.get('ExperimentalBuild')))}",
    ]


def registry_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    registries = found.get("RegistryConfig") or {}
    known, ranges = registries.get("IndexConfigs") or {}, registries.get("InsecureRegistryCIDRs") or []
    if known or ranges:
        # Shown with its title even where no registry is insecure, as docker does.
        insecure = [entry["Name"] for entry in known.values() if not entry["Secure"]]
        lines += [" Insecure Registries:", *("  " + name for name in insecure + ranges)]
    return lines + listed("Registry Mirrors", registries.get("Mirrors") or ())


def last_lines(found: dict[str, Any]) -> list[str]:
    lines = [f" Live Restore Enabled: {words(bool(found.get('LiveRestoreEnabled')))}"]
    lines += shown(found, ("Product License", "ProductLicense"))
    backend = found.get("FirewallBackend") or {}
    if backend.get("Driver"):
        lines.append(f" Firewall Backend: {backend['Driver']}")
        lines += [f"  {name}: {value}" for name, value in backend.get("Info") or ()]
    pools = [f" Base: {pool['Base']}, Size: {pool['Size']}" for pool in found.get("DefaultAddressPools") or ()]
    return lines + listed("Default Address Pools", pools)


def plugin_lines(found: list[plugins.Plugin]) -> list[str]:
    lines = [" Plugins:"] if found else []
    for plugin in found:
        if plugin.wrong:
            continue
        lines.append(f"  {plugin.name}: {plugin.text('ShortDescription')} ({plugin.text('Vendor')})")
        if plugin.text("Version"):
            lines.append(f"    Version:  {plugin.text('Version')}")
        lines.append(f"    Path:     {plugin.path}")
    return lines


def info(cli: Cli, options: Options, operands: list[str]) -> int:
    found_plugins = plugins.everything(cli)
    client = {
        "Debug": bool(cli.options["debug"]),
        "Version": __version__,
        "Context": cli.context,
        "Plugins": [plugin.as_json() for plugin in found_plugins],
        "Warnings": None,
    }
    found: dict[str, Any] = {}
    failure: Exception | None = None
    try:
        found = cli.client.get("/info")
    except (APIError, ConnectError) as error:
        failure = error
    if options["format"]:
        formatted(cli, options["format"], {**found, "ClientInfo": client})
        if failure is not None:
            cli.warn(str(failure))
        return 1 if failure is not None else 0
    lines = [
        "Client:",
        f" Version:    {__version__}",
        f" Context:    {cli.context}",
        f" Debug Mode: {words(bool(client['Debug']))}",
        *plugin_lines(found_plugins),
        "",
        "Server:",
    ]
    cli.print("\n".join(lines + ([] if failure is not None else server_lines(found))))
    if failure is not None:
        cli.warn(f"ERROR: {failure}\nerrors pretty printing info")
        return 1
    for warning in found.get("Warnings") or ():
        cli.warn(warning)
    for plugin in found_plugins:
        if plugin.wrong:
            cli.warn(f'WARNING: Plugin "{plugin.path}" is not valid: {plugin.wrong}')
    return 0


FORMAT = "-f --format  string  `json` or a Go template\n"
COMMANDS = {
    "version": Command(version, "[OPTIONS]", 0, 0, FORMAT),
    "system info": Command(info, "[OPTIONS]", 0, 0, FORMAT),
}
