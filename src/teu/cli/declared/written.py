# SPDX-License-Identifier: Apache-2.0
"""`generate unit`: the file that declares a container which is there. What is the image's own is left out of it.

The way back is translate.py's: each line is a key of its table, and what has none is an option in PodmanArgs=."""

from __future__ import annotations

from teu.cli.command import Cli, Command
from teu.cli.declared.files import quoted
from teu.cli.errors import APIError
from teu.cli.options import Options
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHM_SIZE = 64 << 20
RESTART = {"always": "always", "unless-stopped": "always", "on-failure": "on-failure"}

# HostConfig: fields whose value, or each of whose values, stands in a key as it is.
PLAIN = (
    ("CapAdd", "AddCapability"),
    ("CapDrop", "DropCapability"),
    ("Dns", "DNS"),
    ("DnsOptions", "DNSOption"),
    ("DnsSearch", "DNSSearch"),
    ("ExtraHosts", "AddHost"),
    ("GroupAdd", "GroupAdd"),
    ("Memory", "Memory"),
    ("PidsLimit", "PidsLimit"),
    ("Binds", "Volume"),
)
# HostConfig: fields that are options of `teu run`.
OPTIONS = (
    ("BlkioWeight", "blkio-weight"),
    ("CgroupnsMode", "cgroupns"),
    ("CpuPeriod", "cpu-period"),
    ("CpuQuota", "cpu-quota"),
    ("CpuRealtimePeriod", "cpu-rt-period"),
    ("CpuRealtimeRuntime", "cpu-rt-runtime"),
    ("CpuShares", "cpu-shares"),
    ("CpusetCpus", "cpuset-cpus"),
    ("CpusetMems", "cpuset-mems"),
    ("DeviceCgroupRules", "device-cgroup-rule"),
    ("IpcMode", "ipc"),
    ("Links", "link"),
    ("MemoryReservation", "memory-reservation"),
    ("MemorySwap", "memory-swap"),
    ("OomKillDisable", "oom-kill-disable"),
    ("OomScoreAdj", "oom-score-adj"),
    ("PidMode", "pid"),
    ("Privileged", "privileged"),
    ("PublishAllPorts", "publish-all"),
    ("SecurityOpt", "security-opt"),
    ("UTSMode", "uts"),
    ("VolumeDriver", "volume-driver"),
    ("VolumesFrom", "volumes-from"),
)
# Annotations: what a check beyond docker's says.
HEALTH = {"io.teu.health-on-failure": "HealthOnFailure"} | {
    f"io.teu.health-startup-{name}": f"HealthStartup{name.capitalize()}"
    for name in ("cmd", "interval", "retries", "success", "timeout")
}
# What the engine fills in, which is no choice of anybody's.
DEFAULTS = {"IpcMode": ("private", "shareable"), "CgroupnsMode": ("private",), "MemorySwap": (0,)}


class File:
    """The lines of [Container]."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, key: str, value: Any, *, word: bool = False) -> None:
        """A line. What systemd would replace in the value is doubled; a `word` is quoted where it has to be."""
        text = str(value).replace("%", "%%").replace("$", "$$")
        self.lines.append(f"{key}={quoted(text) if word else text}")

    def option(self, name: str, value: Any) -> None:
        self.add("PodmanArgs", f"--{name}" if value is True else f"--{name}={value}", word=True)


def of_image(cli: Cli, name: str) -> dict[str, Any]:
    try:
        return dict(cli.client.get(f"/images/{name}/json")["Config"] or {})
    except APIError:
        return {}  # it is gone: then everything is told


def process(file: File, config: dict[str, Any], image: dict[str, Any], short: str) -> None:
    entry, command = config.get("Entrypoint") or [], config.get("Cmd") or []
    if entry != (image.get("Entrypoint") or []):
        file.add("Entrypoint", entry[0] if len(entry) == 1 else jsontext.dumps(entry))
    if command and (command != (image.get("Cmd") or []) or entry != (image.get("Entrypoint") or [])):
        file.lines.append("Exec=" + " ".join(quoted(word.replace("%", "%%").replace("$", "$$")) for word in command))
    known = set(image.get("Env") or ())
    for variable in config.get("Env") or ():
        if variable not in known:
            file.add("Environment", variable, word=True)
    for key, value in sorted((config.get("Labels") or {}).items()):
        if (image.get("Labels") or {}).get(key) != value:
            file.add("Label", f"{key}={value}", word=True)
    for field, key in (("WorkingDir", "WorkingDir"), ("User", "User"), ("StopSignal", "StopSignal")):
        if config.get(field) and config[field] != image.get(field):
            file.add(key, config[field])
    if config.get("StopTimeout") is not None:
        file.add("StopTimeout", config["StopTimeout"])
    if config.get("Hostname") not in ("", None, short):
        file.add("HostName", config["Hostname"])
    for field, option in (("Domainname", "domainname"), ("Tty", "tty"), ("OpenStdin", "interactive")):
        if config.get(field):
            file.option(option, config[field])
    for port in sorted(set(config.get("ExposedPorts") or ()) - set(image.get("ExposedPorts") or ())):
        file.add("ExposeHostPort", port)


def health(file: File, config: dict[str, Any], image: dict[str, Any]) -> None:
    check = config.get("Healthcheck") or {}
    if not check or check == image.get("Healthcheck"):
        return
    test = check.get("Test") or []
    if test[:1] == ["NONE"]:
        file.add("HealthCmd", "none")
        return
    if test:
        file.add("HealthCmd", test[1] if test[0] == "CMD-SHELL" else jsontext.dumps(test[1:]))
    for field, key in (
        ("Interval", "HealthInterval"),
        ("Timeout", "HealthTimeout"),
        ("StartPeriod", "HealthStartPeriod"),
    ):
        if check.get(field):
            file.add(key, f"{check[field] / 1e9:g}s")
    if check.get("Retries"):
        file.add("HealthRetries", check["Retries"])


def ports(file: File, host: dict[str, Any]) -> None:
    for port, bindings in sorted((host.get("PortBindings") or {}).items()):
        for binding in bindings or ():
            address = binding.get("HostIp") or ""
            address = f"[{address}]" if ":" in address else address
            outside = binding.get("HostPort") or ""
            text = ":".join(part for part in (address, outside, port) if part or (part == outside and address))
            file.add("PublishPort", text)


def networks(file: File, host: dict[str, Any], found: dict[str, Any], name: str, identifier: str) -> None:
    mode = host.get("NetworkMode") or "default"
    if mode in ("host", "none") or mode.startswith("container:"):
        file.add("Network", mode)
        return
    for network, endpoint in (found or {}).items():
        fields = []
        chosen = endpoint.get("IPAMConfig") or {}
        for key, field in (("ip", "IPv4Address"), ("ip6", "IPv6Address")):
            if chosen.get(field):
                fields.append(f"{key}={chosen[field]}")
        for alias in endpoint.get("Aliases") or ():
            if alias not in (name, identifier[:12]):
                fields.append(f"alias={alias}")
        if network != "bridge" or fields:
            file.add("Network", network + (":" + ",".join(fields) if fields else ""))


def mounts(file: File, host: dict[str, Any]) -> None:
    for mount in host.get("Mounts") or ():
        fields = [f"type={mount['Type']}"]
        if mount.get("Source"):
            fields.append(f"source={mount['Source']}")
        fields.append(f"target={mount['Target']}")
        if mount.get("ReadOnly"):
            fields.append("readonly")
        propagation = (mount.get("BindOptions") or {}).get("Propagation")
        if propagation:
            fields.append(f"bind-propagation={propagation}")
        for kind, name in (("volume", "VolumeOptions"), ("image", "ImageOptions")):
            if subpath := (mount.get(name) or {}).get("Subpath"):
                fields.append(f"{kind}-subpath={subpath}")
        size = (mount.get("TmpfsOptions") or {}).get("SizeBytes")
        if size:
            fields.append(f"tmpfs-size={size}")
        if (mount.get("VolumeOptions") or {}).get("NoCopy"):
            fields.append("volume-nocopy")
        file.add("Mount", ",".join(fields), word=True)
    for path, options in (host.get("Tmpfs") or {}).items():
        file.add("Tmpfs", f"{path}:{options}" if options else path)


def limits(file: File, host: dict[str, Any]) -> None:
    for field, key in PLAIN:
        value = host.get(field)
        for one in value if isinstance(value, list) else [value] if value and value != -1 else ():
            file.add(key, one)
    for field, option in OPTIONS:
        value = host.get(field)
        for one in value if isinstance(value, list) else [value]:
            if one and one not in DEFAULTS.get(field, ()):
                file.option(option, one)
    if host.get("NanoCpus"):
        file.option("cpus", f"{host['NanoCpus'] / 1e9:g}")
    if host.get("ShmSize") not in (None, 0, SHM_SIZE):
        file.add("ShmSize", host["ShmSize"])
    if host.get("ReadonlyRootfs"):
        file.lines += ["ReadOnly=yes", "ReadOnlyTmpfs=no"]
    if host.get("Init"):
        file.add("RunInit", "yes")
    if host.get("UsernsMode"):
        file.add("UserNS", host["UsernsMode"])


def surroundings(file: File, host: dict[str, Any]) -> None:
    """What is a list of records, and the log."""
    for device in host.get("Devices") or ():
        file.add("AddDevice", f"{device['PathOnHost']}:{device['PathInContainer']}:{device['CgroupPermissions']}")
    for key, value in sorted((host.get("Sysctls") or {}).items()):
        file.add("Sysctl", f"{key}={value}", word=True)
    for limit in host.get("Ulimits") or ():
        file.add("Ulimit", f"{limit['Name']}={limit['Soft']}:{limit['Hard']}")
    for key, value in sorted((host.get("Annotations") or {}).items()):
        own = HEALTH.get(key)
        if own:
            file.add(own, value)
        else:
            file.add("Annotation", f"{key}={value}", word=True)
    log = host.get("LogConfig") or {}
    if log.get("Type") not in (None, "", "journald"):
        file.add("LogDriver", log["Type"])
    for key, value in sorted((log.get("Config") or {}).items()):
        file.add("LogOpt", f"{key}={value}")


def written(found: dict[str, Any], image: dict[str, Any]) -> str:
    """The file, from what /containers/ID/json says and from the configuration of the image."""
    config, host, name = found["Config"], found["HostConfig"], found["Name"].lstrip("/")
    file = File()
    file.add("ContainerName", name)
    file.add("Image", config["Image"])
    process(file, config, image, found["Id"][:12])
    health(file, config, image)
    ports(file, host)
    networks(file, host, (found.get("NetworkSettings") or {}).get("Networks") or {}, name, found["Id"])
    mounts(file, host)
    limits(file, host)
    surroundings(file, host)
    text = f"# /etc/teu/containers/{name}.container: see teu-containers(7)\n[Unit]\nDescription=Container {name}\n\n"
    text += "[Container]\n" + "\n".join(file.lines) + "\n"
    policy = host.get("RestartPolicy") or {}
    again = RESTART.get(policy.get("Name") or "")
    if again:
        text += f"\n[Service]\nRestart={again}\n"
    if again == "always":
        text += "\n[Install]\nWantedBy=multi-user.target\n"
    return text


def generate(cli: Cli, options: Options, operands: list[str]) -> int:
    found = cli.client.get(f"/containers/{operands[0]}/json")
    cli.print(written(found, of_image(cli, found["Image"])).rstrip("\n"))
    return 0


COMMANDS = {"generate unit": Command(generate, "CONTAINER", 1, 1)}
