# SPDX-License-Identifier: Apache-2.0
"""A compose project becomes declared files: what projects.py writes, from what `compose config --format json` says.

    web            PROJECT-web.container      PROJECT-web.service, or one for each of several: PROJECT-web-1.service
    its build      PROJECT-web.build          PROJECT-web-build.service
    a network      PROJECT-front.network      PROJECT-front-network.service
    a volume       PROJECT-data.volume        PROJECT-data-volume.service
    its variables  PROJECT-web.env            for root alone, which units and command lines are not
    the project    PROJECT.target, a unit, which wants all services

Things keep the names that compose gives them. Each key of a service is in SERVICE below: it becomes a key of
teu.container(5), or is refused with the reason, or says nothing to a unit. A refusal names the file, the line where it
is found, and the place in the document.
"""

from __future__ import annotations

from teu.cli.declared.files import quoted
from teu.oci import jsontext
from teu.oci.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

WINDOWS = "no: of Windows alone"
SWARM = "no: of swarm alone"
RESOLVED = "none"  # by compose itself, or of no meaning to a unit

# option NAME: of `teu run`, the value or each of a list; key NAME: a key of the file, likewise; words KEY: a map, or a
# list of words; truth: a key or an option that is yes; own: a function below; no: the reason.
SERVICE = {
    "annotations": "words Annotation",
    "attach": RESOLVED,
    "blkio_config": "own",
    "build": "own",
    "cap_add": "words AddCapability",
    "cap_drop": "words DropCapability",
    "cgroup": "option cgroupns",
    "cgroup_parent": "own",
    "command": "own",
    "configs": "own",
    "container_name": RESOLVED,
    "cpu_count": WINDOWS,
    "cpu_percent": WINDOWS,
    "cpu_period": "option cpu-period",
    "cpu_quota": "option cpu-quota",
    "cpu_rt_period": "option cpu-rt-period",
    "cpu_rt_runtime": "option cpu-rt-runtime",
    "cpu_shares": "option cpu-shares",
    "cpus": "option cpus",
    "cpuset": "option cpuset-cpus",
    "credential_spec": WINDOWS,
    "depends_on": "own",
    "deploy": "own",
    "develop": RESOLVED,
    "device_cgroup_rules": "option device-cgroup-rule",
    "devices": "own",
    "dns": "key DNS",
    "dns_opt": "key DNSOption",
    "dns_search": "key DNSSearch",
    "domainname": "option domainname",
    "entrypoint": "own",
    "env_file": RESOLVED,
    "environment": "own",
    "expose": "key ExposeHostPort",
    "extends": RESOLVED,
    "external_links": "option link",
    "extra_hosts": "own",
    "gpus": "own",
    "group_add": "key GroupAdd",
    "healthcheck": "own",
    "hostname": "key HostName",
    "image": RESOLVED,
    "init": "truth RunInit",
    "ipc": "own",
    "isolation": WINDOWS,
    "label_file": RESOLVED,
    "labels": "words Label",
    "links": "own",
    "logging": "own",
    "mac_address": "option mac-address",
    "mem_limit": "key Memory",
    "mem_reservation": "option memory-reservation",
    "mem_swappiness": "option memory-swappiness",
    "memswap_limit": "option memory-swap",
    "models": "no: models are run by a plugin of docker's; declare the server as a service",
    "network_mode": "own",
    "networks": "own",
    "oom_kill_disable": "truth --oom-kill-disable",
    "oom_score_adj": "option oom-score-adj",
    "pid": "own",
    "pids_limit": "key PidsLimit",
    "platform": "option platform",
    "ports": "own",
    "post_start": "own",
    "pre_stop": "own",
    "privileged": "truth --privileged",
    "profiles": RESOLVED,
    "provider": "no: providers are programs that compose calls; write a unit that calls it",
    "pull_policy": "own",
    "read_only": "own",
    "restart": "own",
    "runtime": "option runtime",
    "scale": RESOLVED,
    "secrets": "own",
    "security_opt": "option security-opt",
    "shm_size": "key ShmSize",
    "stdin_open": "truth --interactive",
    "stop_grace_period": "own",
    "stop_signal": "key StopSignal",
    "storage_opt": "map storage-opt",
    "sysctls": "words Sysctl",
    "tmpfs": "key Tmpfs",
    "tty": "truth --tty",
    "ulimits": "own",
    "use_api_socket": "no: it would give the container the daemon; mount /run/teu/teud.sock where that is meant",
    "user": "own",
    "userns_mode": "key UserNS",
    "uts": "option uts",
    "volumes": "own",
    "volumes_from": "own",
    "working_dir": "key WorkingDir",
}
TOP = ("name", "services", "networks", "volumes", "secrets", "configs", "version", "include")
BUILD = {
    "additional_contexts": "map build-context",
    "args": "words BuildArg",
    "cache_from": "option cache-from",
    "cache_to": "option cache-to",
    "context": "key SetWorkingDirectory",
    "dockerfile": "own",
    "dockerfile_inline": "no: write it into a file, which dockerfile: names",
    "entitlements": "option allow",
    "extra_hosts": "own",
    "isolation": WINDOWS,
    "labels": "words Label",
    "network": "key Network",
    "no_cache": "truth --no-cache",
    "no_cache_filter": "option no-cache-filter",
    "platforms": "option platform",
    "privileged": "no: steps get what they need by entitlements:",
    "provenance": "option provenance",
    "pull": "own",
    "sbom": "option sbom",
    "secrets": "own",
    "shm_size": "option shm-size",
    "ssh": "own",
    "tags": "key ImageTag",
    "target": "key Target",
    "ulimits": "own",
}
DEPLOY = ("mode", "replicas", "resources", "restart_policy", "endpoint_mode")
HEALTH = ("test", "interval", "timeout", "retries", "start_period", "start_interval", "disable")
RESTARTS = {"": "", "no": "", "always": "always", "unless-stopped": "always", "on-failure": "on-failure"}
CONDITIONS = {"none": "", "any": "always", "on-failure": "on-failure"}
PULL = {"always": "always", "missing": "missing", "if_not_present": "missing", "never": "never", "build": ""}
VARIABLES = "env"  # the ending of a file of variables
NAMES = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Refused(Exception):
    """A value that no declared file can have; `path` is its place below the service, or the like."""

    def __init__(self, reason: str, *path: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path


def literal(value: Any) -> str:
    """A value as text in which systemd is to replace nothing."""
    text = "true" if value is True else "false" if value is False else str(value)
    return text.replace("%", "%%").replace("$", "$$")


def undoubled(value: Any) -> Any:
    """What compose has written, which doubles each dollar so that it can be read as a compose file again."""
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, list):
        return [undoubled(one) for one in value]
    if isinstance(value, dict):
        return {undoubled(key): undoubled(one) for key, one in value.items()}
    return value


def seconds(text: str, *path: str) -> float:
    try:
        return parse_duration(text) / 1e9
    except ValueError as error:
        raise Refused(str(error), *path) from None


def pairs(value: Any) -> list[str]:
    """NAME=VALUE of a map, or of a list of such words."""
    if isinstance(value, dict):
        return [key if text is None else f"{key}={shown(text)}" for key, text in sorted(value.items())]
    return [str(word) for word in value]


def shown(value: Any) -> str:
    return "true" if value is True else "false" if value is False else str(value)


class File:
    """A declared file that grows, section by section."""

    def __init__(self, section: str) -> None:
        self.section = section
        self.sections: dict[str, list[str]] = {"Unit": [], section: [], "Service": [], "Install": []}

    def add(self, key: str, value: Any) -> None:
        """A line with a value that stands as it is."""
        self._line(self.section, key, literal(value))

    def _line(self, section: str, key: str, text: str) -> None:
        if "\n" in text or text.endswith("\\") or text != text.strip():
            raise Refused(f"{text!r} has an end or a break of line that a line of a file cannot have")
        self.sections[section].append(f"{key}={text}")

    def words(self, key: str, *values: Any) -> None:
        self.sections[self.section].append(f"{key}=" + " ".join(quoted(literal(value)) for value in values))

    def option(self, name: str, value: Any = None) -> None:
        self.words("PodmanArgs", f"--{name}" if value is None else f"--{name}={shown(value)}")

    def unit(self, key: str, value: str) -> None:
        self._line("Unit", key, value)

    def service(self, key: str, value: str) -> None:
        self._line("Service", key, value)

    def text(self, head: str) -> str:
        parts = ["\n".join([f"[{name}]", *lines]) for name, lines in self.sections.items() if lines]
        return head + "\n" + "\n\n".join(parts) + "\n"


def fits_a_file(pair: str) -> bool:
    """Whether a file of variables (--env-file) can have this NAME=VALUE."""
    name, equals, _ = pair.partition("=")
    return bool(equals) and not any(letter in pair for letter in "\n\r") and not name.startswith("#")


class Project:
    """One compose project. `files` are the declared files, and those of variables, by name, `target` is the text of its
    unit, `problems` what was refused: (place in the document, reason)."""

    def __init__(self, document: dict[str, Any], source: str) -> None:
        self.document = undoubled(document)
        self.name = str(self.document.get("name") or "")
        self.source = source
        self.files: dict[str, str] = {}
        self.problems: list[tuple[tuple[str, ...], str]] = []
        self._used: dict[str, set[str]] = {"networks": set(), "volumes": set()}
        self._head = f"# {mark(self.name)} from {source}\n# Changes belong there, or into drop-ins.\n"
        services = self.part("services")
        self.wanted_healthy, self.wanted_done = self._conditions(services)
        for key in self.document:
            if key not in TOP and not key.startswith("x-") and self.document[key]:
                self.problems.append(((key,), "this part of a compose file is not known here"))
        for name, service in services.items():
            self._guard(("services", name), self._service, name, service or {})
        for kind, make in (("networks", self._network), ("volumes", self._volume)):
            for name in sorted(self._used[kind]):
                found = self.part(kind).get(name) or {}
                if not found.get("external"):
                    self._guard((kind, name), make, name, found)
        self.target = self._target()

    def part(self, kind: str) -> dict[str, Any]:
        return self.document.get(kind) or {}

    def _guard(
        self,
        path: tuple[str, ...],
        make: Callable[[str, dict[str, Any]], None],
        name: str,
        given: dict[str, Any],
    ) -> None:
        """Make something of a part of the document; where it is refused, go on with the next part."""
        try:
            make(name, given)
        except Refused as error:
            self.problems.append(((*path, *error.path), error.reason))

    def _conditions(self, services: dict[str, Any]) -> tuple[set[str], set[str]]:
        """The services that somebody wants to be healthy, and those that somebody wants to have ended well."""
        wanted: dict[str, set[str]] = {}
        for service in services.values():
            for name, how in ((service or {}).get("depends_on") or {}).items():
                wanted.setdefault((how or {}).get("condition") or "service_started", set()).add(name)
        return wanted.get("service_healthy", set()), wanted.get("service_completed_successfully", set())

    def _target(self) -> str:
        text = self._head + f"\n[Unit]\nDescription=Compose project {self.name}\n"
        return text + "Documentation=man:teu-compose-units(1)\n\n[Install]\nWantedBy=multi-user.target\n"

    # -- names --

    def count(self, service: str) -> int:
        found = self.part("services").get(service) or {}
        number = found.get("scale")
        if number is None:
            number = (found.get("deploy") or {}).get("replicas")
        return 1 if number is None else int(number)

    def stems(self, service: str) -> list[str]:
        """Of a service's files: PROJECT-SERVICE, or with a number behind it where there are several."""
        base = f"{self.name}-{service}"
        number = self.count(service)
        return [base] if number == 1 else [f"{base}-{one}" for one in range(1, number + 1)]

    def containers(self, service: str) -> list[str]:
        given = (self.part("services").get(service) or {}).get("container_name")
        names = [f"{self.name}-{service}-{one}" for one in range(1, self.count(service) + 1)]
        return [str(given)] if given and len(names) == 1 else names

    def network(self, name: str) -> str:
        """What Network= says of one of the document's networks."""
        found = self.part("networks").get(name) or {}
        if found.get("external"):
            return str(found.get("name") or name)
        self._used["networks"].add(name)
        return f"{self.name}-{name}.network"

    def volume(self, name: str) -> str:
        found = self.part("volumes").get(name) or {}
        if found.get("external"):
            return str(found.get("name") or name)
        self._used["volumes"].add(name)
        return f"{self.name}-{name}.volume"

    def image(self, name: str, service: dict[str, Any]) -> str:
        return str(service.get("image") or f"{self.name}-{name}")

    # -- files --

    def _service(self, name: str, service: dict[str, Any]) -> None:
        if not NAMES.issuperset(name) or not NAMES.issuperset(self.name):
            raise Refused("a name of letters, digits, -, _ and . can be that of a unit")
        if service.get("container_name") and self.count(name) > 1:
            raise Refused("several containers cannot have one name", "container_name")
        if service.get("build"):
            self._guard(("services", name, "build"), self._build, name, service)
        elif not service.get("image"):
            self.problems.append((("services", name), "has no image and no build"))
        for stem, container in zip(self.stems(name), self.containers(name), strict=True):
            file = Member(self, name, service).made(container)
            self.files[f"{stem}.container"] = file.text(self._head)

    def _build(self, name: str, service: dict[str, Any]) -> None:
        file = File("Build")
        build = service["build"]
        file.add("ImageTag", self.image(name, service))
        check(build, BUILD)
        plain(file, build, BUILD)
        if build.get("dockerfile"):
            path = str(build["dockerfile"])
            file.add("File", path if path.startswith("/") else f"{build.get('context', '')}/{path}")
        if build.get("pull"):
            file.add("Pull", "always")
        for entry in hosts(build.get("extra_hosts")):
            file.option("add-host", entry)
        for text in limits(build.get("ulimits")):
            file.option("ulimit", text)
        for entry in pairs(build.get("ssh") or ()):
            file.option("ssh", entry)
        for secret in build.get("secrets") or ():
            source = str(secret.get("source"))
            file.add("Secret", f"id={secret.get('target') or source},src={self.file_of('secrets', source, 'secrets')}")
        file.unit("PartOf", f"{self.name}.target")
        self.files[f"{self.name}-{name}.build"] = file.text(self._head)

    def file_of(self, kind: str, name: str, *path: str) -> str:
        """The file of a secret or a config of the document."""
        found = self.part(kind).get(name) or {}
        if found.get("file"):
            return str(found["file"])
        how = next((key for key in ("environment", "content", "external") if found.get(key)), "")
        raise Refused(f"{name} is not in a file but in {how or 'no place'}: put it into one, which file: names", *path)

    def variables(self, name: str, given: list[str]) -> None:
        self.files[name] = self._head + "\n".join(given) + "\n"

    def _network(self, name: str, found: dict[str, Any]) -> None:
        known = ("name", "driver", "driver_opts", "ipam", "internal", "attachable", "labels", "external")
        refuse_others(found, (*known, "enable_ipv4", "enable_ipv6"))
        file = File("Network")
        file.add("NetworkName", found.get("name") or f"{self.name}_{name}")
        if found.get("driver") not in (None, "", "default"):
            file.add("Driver", found["driver"])
        for option in pairs(found.get("driver_opts") or {}):
            file.option("opt", option)
        ipam = found.get("ipam") or {}
        refuse_others(ipam, ("driver", "config", "options"), "ipam")
        if ipam.get("driver") not in (None, "", "default"):
            file.option("ipam-driver", ipam["driver"])
        for option in pairs(ipam.get("options") or {}):
            file.option("ipam-opt", option)
        for pool in ipam.get("config") or ():
            refuse_others(pool, ("subnet", "gateway", "ip_range", "aux_addresses"), "ipam", "config")
            for key, line in (("subnet", "Subnet"), ("gateway", "Gateway"), ("ip_range", "IPRange")):
                if pool.get(key):
                    file.add(line, pool[key])
            for address in pairs(pool.get("aux_addresses") or {}):
                file.option("aux-address", address)
        for key, line in (("internal", "Internal"), ("enable_ipv6", "IPv6")):
            if found.get(key):
                file.add(line, "yes")
        if found.get("attachable"):
            file.option("attachable")
        if found.get("enable_ipv4") is False:
            file.option("ipv4", False)
        for label in pairs(found.get("labels") or {}):
            file.words("Label", label)
        self.files[f"{self.name}-{name}.network"] = file.text(self._head)

    def _volume(self, name: str, found: dict[str, Any]) -> None:
        refuse_others(found, ("name", "driver", "driver_opts", "labels", "external"))
        file = File("Volume")
        file.add("VolumeName", found.get("name") or f"{self.name}_{name}")
        if found.get("driver") not in (None, "", "local"):
            file.add("Driver", found["driver"])
        for option in pairs(found.get("driver_opts") or {}):
            file.option("opt", option)
        for label in pairs(found.get("labels") or {}):
            file.words("Label", label)
        self.files[f"{self.name}-{name}.volume"] = file.text(self._head)


def mark(project: str) -> str:
    """What each written file begins with: it may be replaced, and removed, for this project."""
    return f"Made by teu compose-units of the project {project},"


def check(given: dict[str, Any], table: dict[str, str], *path: str) -> None:
    """Refuse what is not in a table, and what the table refuses, where it says anything."""
    for key, value in given.items():
        how = table.get(key)
        if key.startswith("x-") or value in (None, "", False, [], {}):
            continue
        if how is None:
            raise Refused("this key is not known here", *path, key)
        if how.startswith("no: "):
            raise Refused(f"is refused: {how[4:]}", *path, key)


def refuse_others(given: dict[str, Any], known: Iterable[str], *path: str) -> None:
    check(given, dict.fromkeys(known, "own"), *path)


def plain(file: File, given: dict[str, Any], table: dict[str, str]) -> None:
    """The lines of all keys that a table says all about."""
    for key, value in given.items():
        how, _, name = table.get(key, "own").partition(" ")
        if value in (None, "", [], {}) or key.startswith("x-"):
            continue
        try:
            if how == "truth" and value:
                file.option(name[2:]) if name.startswith("--") else file.add(name, "yes")
            elif how in ("key", "option"):
                for one in value if isinstance(value, list) else [value]:
                    file.add(name, one) if how == "key" else file.option(name, one)
            elif how == "map":
                for pair in pairs(value):
                    file.option(name, pair)
            elif how == "words":
                for pair in pairs(value):
                    file.words(name, pair)
        except Refused as error:
            raise Refused(error.reason, key) from None


def hosts(value: Any) -> list[str]:
    """extra_hosts, which is a list of NAME=ADDRESS, or a map."""
    found = []
    for entry in pairs(value or ()):
        name, separator, address = entry.partition("=")
        found.append(f"{name}:{address}" if separator else entry)
    return found


def limits(value: Any) -> list[str]:
    result = []
    for name, limit in sorted((value or {}).items()):
        result.append(f"{name}={limit['soft']}:{limit['hard']}" if isinstance(limit, dict) else f"{name}={limit}")
    return result


class Member:
    """One container of a service."""

    def __init__(self, project: Project, name: str, service: dict[str, Any]) -> None:
        self.project = project
        self.name = name
        self.given = service
        self.file = File("Container")
        self.container = ""

    def made(self, container: str) -> File:
        file, target = self.file, f"{self.project.name}.target"
        self.container = container
        file.unit("Description", f"{literal(container)} of the compose project {self.project.name}")
        file.unit("PartOf", target)
        file.add("ContainerName", container)
        if self.given.get("build"):
            file.add("Image", f"{self.project.name}-{self.name}.build")
        else:
            file.add("Image", self.given.get("image") or "")
        check(self.given, SERVICE)
        plain(file, self.given, SERVICE)
        for key, how in SERVICE.items():
            value = self.given.get(key)
            if how == "own" and value is not None and (key in ("command", "entrypoint") or value not in ("", [], {})):
                try:
                    getattr(self, "_" + key)(value)
                except Refused as error:
                    raise Refused(error.reason, key, *error.path) from None
        if not self.given.get("network_mode") and not self.given.get("networks"):
            self._networks({"default": None})
        if self.name in self.project.wanted_healthy:
            file.add("Notify", "healthy")
        if self.name in self.project.wanted_done:
            file.service("Type", "oneshot")
            file.service("RemainAfterExit", "yes")
        file.sections["Install"].append(f"WantedBy={target}")
        return file

    # Each of these is called by its name: the key, behind a dash.

    def _blkio_config(self, value: dict[str, Any]) -> None:
        rates = ("device_read_bps", "device_read_iops", "device_write_bps", "device_write_iops")
        refuse_others(value, ("weight", "weight_device", *rates))
        if value.get("weight"):
            self.file.option("blkio-weight", value["weight"])
        for key, field, option in [("weight_device", "weight", "blkio-weight-device")] + [
            (key, "rate", key.replace("_", "-")) for key in rates
        ]:
            for one in value.get(key) or ():
                low = {name.lower(): text for name, text in one.items()}  # compose writes these with capitals
                self.file.option(option, f"{low['path']}:{low[field]}")

    def _build(self, value: Any) -> None:
        """The project's own file says it."""

    def _cgroup_parent(self, value: str) -> None:
        if not value.endswith(".slice"):
            raise Refused("is refused: a declared container stands in its unit's cgroup, and that in a .slice")
        self.file.service("Slice", literal(value))

    def _command(self, value: list[str]) -> None:
        if value:
            self.file.words("Exec", *value)
        elif not self.given.get("entrypoint"):
            raise Refused("is refused: an empty command cannot be told from none; give entrypoint: the whole of it")

    def _entrypoint(self, value: list[str]) -> None:
        if not value:
            raise Refused("is refused: an empty entry point cannot be told from none; give the program")
        self.file.add("Entrypoint", value[0] if len(value) == 1 and value[0][:1] != "[" else jsontext.dumps(value))

    def _environment(self, value: Any) -> None:
        given = pairs(value)
        kept = [pair for pair in given if fits_a_file(pair)]
        for pair in given:
            if pair not in kept:
                self.file.words("Environment", pair)
        if kept:
            name = f"{self.project.name}-{self.name}.{VARIABLES}"
            self.file.add("EnvironmentFile", name)
            self.project.variables(name, kept)

    def _extra_hosts(self, value: Any) -> None:
        for entry in hosts(value):
            self.file.add("AddHost", entry)

    def _configs(self, value: list[dict[str, Any]]) -> None:
        for one in value:
            refuse_others(one, ("source", "target", "uid", "gid", "mode"))
            for key in ("uid", "gid", "mode"):
                if one.get(key):
                    raise Refused("is refused: the file has the owner and the mode that it has on the host", key)
            source = str(one.get("source"))
            self._bind(self.project.file_of("configs", source), str(one.get("target") or f"/{source}"), ["ro"])

    def _secrets(self, value: list[dict[str, Any]]) -> None:
        for one in value:
            refuse_others(one, ("source", "target", "uid", "gid", "mode"))
            source = str(one.get("source"))
            words = [source] + [f"{key}={one[key]}" for key in ("target", "uid", "gid", "mode") if one.get(key)]
            self.file.words("Secret", ",".join(words))
            found = self.project.part("secrets").get(source) or {}
            if not found.get("external"):
                path = literal(self.project.file_of("secrets", source))
                self.file.service("LoadCredential", f"{source}:{path}")

    def _depends_on(self, value: dict[str, Any]) -> None:
        for name, how in sorted(value.items()):
            how = how or {}
            refuse_others(how, ("condition", "restart", "required"), name)
            if name not in self.project.part("services"):
                if how.get("required", True):
                    raise Refused("there is no such service, or its profile is not chosen: --profile", name)
                continue
            kind = "Requires" if how.get("required", True) else "Wants"
            for stem in self.project.stems(name):
                self.file.unit(kind, f"{stem}.service")
                self.file.unit("After", f"{stem}.service")
                if how.get("restart"):
                    self.file.unit("PartOf", f"{stem}.service")

    def _needs(self, service: str, *, bound: bool) -> str:
        """The container of another service, of which this one's unit needs the unit."""
        stems = self.project.stems(service) if service in self.project.part("services") else []
        if len(stems) != 1:
            raise Refused(f"the service {service} is not one container")
        self.file.unit("BindsTo" if bound else "Requires", f"{stems[0]}.service")
        self.file.unit("After", f"{stems[0]}.service")
        return self.project.containers(service)[0]

    def _links(self, value: list[str]) -> None:
        for link in value:
            service, _, alias = link.partition(":")
            self.file.option("link", f"{self._needs(service, bound=False)}:{alias or service}")

    def _volumes_from(self, value: list[str]) -> None:
        for entry in value:
            if entry.startswith("container:"):
                self.file.option("volumes-from", entry.removeprefix("container:"))
                continue
            service, colon, mode = entry.partition(":")
            self.file.option("volumes-from", self._needs(service, bound=False) + colon + mode)

    def _namespace(self, option: str, value: str) -> None:
        if value.startswith("service:"):
            value = f"container:{self._needs(value.removeprefix('service:'), bound=True)}"
        self.file.option(option, value)

    def _ipc(self, value: str) -> None:
        self._namespace("ipc", value)

    def _pid(self, value: str) -> None:
        self._namespace("pid", value)

    def _network_mode(self, value: str) -> None:
        if value.startswith("service:"):
            value = f"container:{self._needs(value.removeprefix('service:'), bound=True)}"
        self.file.add("Network", value)

    def _networks(self, value: dict[str, Any]) -> None:
        order = sorted(value, key=lambda name: (-int((value[name] or {}).get("priority") or 0), name))
        for name in order:
            one = value[name] or {}
            fields = ("aliases", "ipv4_address", "ipv6_address", "mac_address", "priority")
            try:
                refuse_others(one, fields, name)
            except Refused as error:
                raise Refused(
                    "is refused: a declared container's network has addresses and aliases", *error.path
                ) from None
            texts = [f"alias={alias}" for alias in dict.fromkeys([self.name, *(one.get("aliases") or ())])]
            for key, field in (("ipv4_address", "ip"), ("ipv6_address", "ip6"), ("mac_address", "mac")):
                if one.get(key):
                    texts.append(f"{field}={one[key]}")
            self.file.add("Network", f"{self.project.network(name)}:{','.join(texts)}")

    def _deploy(self, value: dict[str, Any]) -> None:
        for key, one in value.items():
            if key not in DEPLOY and one and not key.startswith("x-"):
                raise Refused(f"is refused: {SWARM[4:]}", key)
        if value.get("mode") not in (None, "", "replicated"):
            raise Refused(f"is refused: {SWARM[4:]}", "mode")
        if value.get("endpoint_mode"):
            raise Refused(f"is refused: {SWARM[4:]}", "endpoint_mode")
        resources = value.get("resources") or {}
        bounds, reserved = resources.get("limits") or {}, resources.get("reservations") or {}
        refuse_others(bounds, ("cpus", "memory", "pids"), "resources", "limits")
        for key, option in (("cpus", "cpus"), ("memory", "memory"), ("pids", "pids-limit")):
            if bounds.get(key):
                self.file.option(option, bounds[key])
        refuse_others(reserved, ("memory", "devices"), "resources", "reservations")
        if reserved.get("memory"):
            self.file.option("memory-reservation", reserved["memory"])
        self._gpus(reserved.get("devices") or ())
        policy = value.get("restart_policy")
        if policy:
            refuse_others(policy, ("condition", "delay", "max_attempts", "window"), "restart_policy")
            kind = CONDITIONS.get(policy.get("condition") or "any")
            if kind is None:
                raise Refused(f"{policy['condition']} is no condition", "restart_policy", "condition")
            self._again(kind, str(policy.get("max_attempts") or ""), policy.get("delay", ""), policy.get("window", ""))

    def _gpus(self, value: Iterable[dict[str, Any]]) -> None:
        for one in value:
            refuse_others(one, ("capabilities", "driver", "count", "device_ids", "options"))
            fields = []
            if one.get("driver"):
                fields.append(f"driver={one['driver']}")
            if one.get("count"):
                fields.append("count=" + ("all" if one["count"] in (-1, "all") else str(one["count"])))
            for key, field in (("device_ids", "device"), ("capabilities", "capabilities")):
                if one.get(key):
                    fields.append(f'"{field}={",".join(one[key])}"')
            if one.get("options"):
                fields.append(f'"options={",".join(pairs(one["options"]))}"')
            self.file.option("gpus", ",".join(fields))

    def _devices(self, value: list[Any]) -> None:
        for one in value:
            if isinstance(one, dict):
                one = ":".join(str(one[key]) for key in ("source", "target", "permissions") if one.get(key))
            self.file.words("AddDevice", one)

    def _healthcheck(self, value: dict[str, Any]) -> None:
        refuse_others(value, HEALTH)
        test = value.get("test") or []
        if value.get("disable") or test[:1] == ["NONE"]:
            self.file.add("HealthCmd", "none")
            return
        if test:
            command = test[1] if test[0] == "CMD-SHELL" else jsontext.dumps(test[1:])
            # A file's line has no breaks, and a value that begins so would be a list.
            if "\n" in command or command.endswith("\\") or command != command.strip():
                self.file.option("health-cmd", command)
            else:
                self.file.add("HealthCmd", command)
        for key, line in (
            ("interval", "HealthInterval"),
            ("timeout", "HealthTimeout"),
            ("start_period", "HealthStartPeriod"),
            ("retries", "HealthRetries"),
        ):
            if value.get(key):
                self.file.add(line, value[key])
        if value.get("start_interval"):
            self.file.option("health-start-interval", value["start_interval"])

    def _logging(self, value: dict[str, Any]) -> None:
        if value.get("driver"):
            self.file.add("LogDriver", value["driver"])
        for option in pairs(value.get("options") or {}):
            self.file.add("LogOpt", option)

    def _ports(self, value: list[dict[str, Any]]) -> None:
        for one in value:
            refuse_others(one, ("mode", "host_ip", "target", "published", "protocol", "app_protocol", "name"))
            address = str(one.get("host_ip") or "")
            address = f"[{address}]:" if ":" in address else f"{address}:" if address else ""
            outside = str(one.get("published") or "")
            if outside and self.project.count(self.name) > 1 and "-" not in outside:
                raise Refused(
                    f"several containers cannot have the port {outside}; leave published: out, or give a range"
                )
            text = address + (f"{outside}:" if outside or address else "") + str(one["target"])
            self.file.add("PublishPort", f"{text}/{one.get('protocol') or 'tcp'}")

    def _hook(self, kind: str, value: list[dict[str, Any]]) -> None:
        for one in value:
            refuse_others(one, ("command", "user", "privileged", "working_dir", "environment"))
            words = ["/usr/bin/teu", "exec"]
            for key, option in (("user", "user"), ("working_dir", "workdir")):
                if one.get(key):
                    words.append(f"--{option}={one[key]}")
            if one.get("privileged"):
                words.append("--privileged")
            words += [f"--env={pair}" for pair in pairs(one.get("environment") or {})]
            words += [self.container, *(one.get("command") or ())]
            self.file.service(kind, " ".join(quoted(literal(word)) for word in words))

    def _post_start(self, value: list[dict[str, Any]]) -> None:
        self._hook("ExecStartPost", value)

    def _pre_stop(self, value: list[dict[str, Any]]) -> None:
        self._hook("ExecStop", value)

    def _pull_policy(self, value: str) -> None:
        if value not in PULL:
            raise Refused(f"{value} is refused: AutoUpdate= and teu-auto-update.timer look for newer images")
        if PULL[value] and not self.given.get("build"):
            self.file.add("Pull", PULL[value])

    def _read_only(self, value: bool) -> None:
        if value:
            self.file.add("ReadOnly", "yes")
            self.file.add("ReadOnlyTmpfs", "no")

    def _user(self, value: str) -> None:
        user, colon, group = value.partition(":")
        self.file.add("User", user)
        if colon:
            self.file.add("Group", group)

    def _restart(self, value: str) -> None:
        if (self.given.get("deploy") or {}).get("restart_policy"):
            return  # as compose has it, which takes that one then
        name, _, most = value.partition(":")
        if name not in RESTARTS:
            raise Refused(f"{value} is no restart policy")
        self._again(RESTARTS[name], most, "", "")

    def _again(self, kind: str, most: str, delay: str, window: str) -> None:
        if not kind:
            return
        if self.name in self.project.wanted_done and kind == "always":
            raise Refused("is refused: somebody waits for the end of this service")
        self.file.service("Restart", kind)
        self.file.service("RestartSec", f"{seconds(delay):g}" if delay else "1")
        self.file.unit("StartLimitIntervalSec", (f"{seconds(window):g}" if window else "infinity") if most else "0")
        if most:
            self.file.unit("StartLimitBurst", str(int(most) + 1))

    def _stop_grace_period(self, value: str) -> None:
        length = seconds(value)
        self.file.add("StopTimeout", int(length) + (length > int(length)))

    def _ulimits(self, value: dict[str, Any]) -> None:
        for text in limits(value):
            self.file.add("Ulimit", text)

    def _bind(self, source: str, target: str, options: list[str]) -> None:
        if ":" in source or ":" in target:
            fields = [f"type=bind,source={source},target={target}"] + ["readonly"] * ("ro" in options)
            self.file.words("Mount", ",".join(fields))
        else:
            self.file.add("Volume", f"{source}:{target}" + (f":{','.join(options)}" if options else ""))

    def _volumes(self, value: list[dict[str, Any]]) -> None:
        for one in value:
            kind = one.get("type")
            known = ("type", "source", "target", "read_only", "consistency")
            refuse_others(one, (*known, str(kind)))
            options = one.get(str(kind)) or {}
            mount = {"bind": self._of_bind, "volume": self._of_volume, "tmpfs": self._of_tmpfs, "image": self._of_image}
            if kind not in mount:
                raise Refused(f"mounts of the type {kind} are refused: give bind, volume, tmpfs or image")
            mount[str(kind)](one, options, ["ro"] if one.get("read_only") else [])

    def _of_bind(self, one: dict[str, Any], options: dict[str, Any], modes: list[str]) -> None:
        refuse_others(options, ("propagation", "selinux", "create_host_path", "recursive"), "bind")
        source, target = str(one["source"]), str(one["target"])
        if options.get("create_host_path", True) and not options.get("recursive"):
            more = [str(options[key]) for key in ("propagation", "selinux") if options.get(key)]
            self._bind(source, target, modes + more)
            return
        if options.get("selinux"):
            raise Refused("is refused where the path is not made, or with recursive", "bind", "selinux")
        fields = [f"type=bind,source={source},target={target}"] + ["readonly"] * bool(modes)
        for key in ("propagation", "recursive"):
            if options.get(key):
                fields.append(f"bind-{key}={options[key]}")
        self.file.words("Mount", ",".join(fields))

    def _of_volume(self, one: dict[str, Any], options: dict[str, Any], modes: list[str]) -> None:
        refuse_others(options, ("nocopy", "subpath", "labels"), "volume")
        target = str(one["target"])
        name = self.project.volume(str(one["source"])) if one.get("source") else ""
        if name and not options.get("subpath") and not options.get("labels"):
            words = modes + ["nocopy"] * bool(options.get("nocopy"))
            self.file.add("Volume", f"{name}:{target}" + (f":{','.join(words)}" if words else ""))
            return
        fields = ["type=volume"] + [f"source={name}"] * bool(name) + [f"target={target}"]
        fields += ["readonly"] * bool(modes) + ["volume-nocopy"] * bool(options.get("nocopy"))
        if options.get("subpath"):
            fields.append(f"volume-subpath={options['subpath']}")
        fields += [f"volume-label={pair}" for pair in pairs(options.get("labels") or {})]
        self.file.words("Mount", ",".join(fields))

    def _of_tmpfs(self, one: dict[str, Any], options: dict[str, Any], modes: list[str]) -> None:
        refuse_others(options, ("size", "mode"), "tmpfs")
        words = modes + ([f"size={options['size']}"] if options.get("size") else [])
        words += [f"mode={int(options['mode']):o}"] if options.get("mode") else []
        self.file.add("Tmpfs", str(one["target"]) + (f":{','.join(words)}" if words else ""))

    def _of_image(self, one: dict[str, Any], options: dict[str, Any], modes: list[str]) -> None:
        refuse_others(options, ("subpath",), "image")
        fields = [f"type=image,source={one['source']},target={one['target']}"] + ["readonly"] * bool(modes)
        if options.get("subpath"):
            fields.append(f"image-subpath={options['subpath']}")
        self.file.words("Mount", ",".join(fields))
