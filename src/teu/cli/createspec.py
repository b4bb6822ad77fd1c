# SPDX-License-Identifier: Apache-2.0
"""From the options of `run` and `create` to the body of `POST /containers/create`.

The options are in `runflags`; `build` makes the body. Wrong values raise ValueError with
docker's words."""

from __future__ import annotations

import _socket
import os

from teu.cli.options import FALSE, TRUE, Options, key_values, split_csv
from teu.oci import jsontext, units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SHORT = {"attach": "-a, ", "env": "-e, ", "label": "-l, "}


class FlagError(ValueError):
    """One value of one option is wrong."""


def each(options: Options, name: str, read: Callable[[str], Any]) -> list[Any]:
    """Every value of an option, read; what is wrong is told with the option's name and the value."""
    result = []
    for value in options[name]:
        try:
            result.append(read(value))
        except ValueError as error:
            label = f"{SHORT.get(name, '')}--{name}"
            raise FlagError(f'invalid argument "{value}" for "{label}" flag: {error}') from None
    return result


def read_lines(paths: list[str], environment: bool) -> list[str]:
    """The lines of --env-file and --label-file: KEY=VALUE, or KEY alone to copy from our environment."""
    lines = []
    for path in paths:
        try:
            with open(path, encoding="utf-8-sig") as file:
                text = file.read()
        except OSError as error:
            raise ValueError(f"open {path}: {(error.strerror or '').lower()}") from None
        except UnicodeDecodeError as error:
            line_number = error.object.count(b"\n", 0, error.start) + 1
            raise ValueError(f"invalid env file ({path}): invalid utf8 bytes at line {line_number}") from None
        for line in text.split("\n"):
            line = line.rstrip("\r").lstrip(" \t")
            if not line or line.startswith("#"):
                continue
            key, equals, _ = line.partition("=")
            if not key:
                raise ValueError(f"invalid env file ({path}): no variable name on line '{line}'")
            if any(letter.isspace() for letter in key):
                raise ValueError(f"invalid env file ({path}): variable '{key}' contains whitespaces")
            if equals or not environment:
                lines.append(line)
            elif key in os.environ:
                lines.append(f"{key}={os.environ[key]}")
    return lines


def valid_variable(value: str) -> str:
    if not value.partition("=")[0]:
        raise ValueError(f"invalid environment variable: {value}")
    return value


def valid_stream(value: str) -> str:
    if value.lower() not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return value.lower()


def valid_label(value: str) -> str:
    if not value.partition("=")[0]:
        raise ValueError(f"invalid label '{value}': empty name")
    return value


def valid_dns(value: str) -> str:
    if not is_address(value.strip()):
        raise ValueError(f"IP address is not correctly formatted: {value}")
    return value.strip()


def valid_sysctl(value: str) -> str:
    from teu.oci.runtime_spec import IPC_SYSCTLS  # 2 ms that only this option and --ulimit pay

    name = value.partition("=")[0]
    if "=" not in value or not (name in IPC_SYSCTLS or name.startswith(("net.", "fs.mqueue."))):
        raise ValueError(f"sysctl '{value}' is not allowed")
    return value


def extra_host(value: str) -> str:
    name, separator, address = value.partition(":") if "=" not in value else value.partition("=")
    if not separator or not name:
        raise ValueError(f'bad format for add-host: "{value}"')
    address = address.strip("[]")
    if address != "host-gateway" and not is_address(address):
        raise ValueError(f'invalid IP address in add-host: "{address}"')
    return f"{name}:{address}"


def environment(values: list[str], files: list[str]) -> list[str]:
    result = read_lines(files, True)
    for value in values:
        key, equals, _ = value.partition("=")
        if equals:
            result.append(value)
        elif key in os.environ:
            result.append(f"{key}={os.environ[key]}")
        else:
            result.append(key)  # asks the daemon to remove it
    return result


def port_range(text: str, what: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not text.isascii() or not first.isdigit() or dash and not last.isdigit():
        raise ValueError(f"Invalid {what}: {text}")
    start = int(first)
    end = int(last) if dash else start
    if not (0 <= start <= 65535 and 0 <= end <= 65535) or end < start:
        raise ValueError(f"Invalid {what}: {text}")
    return start, end


def is_address(text: str) -> bool:
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, text)
            return True
        except OSError:
            pass
    return False


def host_address(text: str) -> str:
    """Of --publish, "" for none; IPv6 ones may be in brackets."""
    address = text.strip("[]") if text.startswith("[") else text
    if not address or is_address(address):
        return address
    if ":" in address:
        raise ValueError(f"Invalid ip address {address}: address {address}:: too many colons in address")
    raise ValueError(f"Invalid ip address: {address}")


def publish(values: list[str]) -> tuple[dict[str, Any], dict[str, list[dict[str, str]]]]:
    """--publish: (ExposedPorts, PortBindings)."""
    exposed: dict[str, Any] = {}
    bindings: dict[str, list[dict[str, str]]] = {}
    for value in values:
        spec = value
        if "=" in spec:
            fields = {"protocol": "tcp"}
            for part in spec.split(","):
                key, equals, text = part.partition("=")
                if not equals or not key:
                    raise ValueError(f"invalid publish opts format (should be name=value but got '{part}')")
                fields[key] = text
            spec = f"{fields.get('published', '')}:{fields.get('target', '')}/{fields['protocol']}"
        rest, slash, protocol = spec.rpartition("/")
        if not slash:
            rest, protocol = spec, "tcp"
        protocol = protocol.lower() or "tcp"
        rest, _, inside = rest.rpartition(":")
        address, _, outside = rest.rpartition(":")
        address = host_address(address)
        if not inside:
            raise ValueError(f"No port specified: {value}<empty>")
        start, end = port_range(inside, "containerPort")
        host_start = host_end = 0
        if outside:
            host_start, host_end = port_range(outside, "hostPort")
            if end - start != host_end - host_start and end != start:
                raise ValueError(f"Invalid ranges specified for container and host Ports: {inside} and {outside}")
        if protocol not in ("tcp", "udp", "sctp"):
            raise ValueError(f"Invalid proto: {protocol}")
        for offset in range(end - start + 1):
            port = f"{start + offset}/{protocol}"
            host_port = ""
            if outside:
                host_port = str(host_start + offset)
                if end == start and host_end != host_start:
                    host_port = f"{host_start}-{host_end}"  # the daemon chooses one of them
            exposed[port] = {}
            bindings.setdefault(port, []).append({"HostIp": address, "HostPort": host_port})
    return exposed, bindings


def port_sources(values: list[str]) -> dict[str, str]:
    """--publish: the annotations that say who may use a port; of forms with `source=` alone."""
    found: dict[str, list[str]] = {}
    for value in values:
        parts = [part.partition("=") for part in value.split(",")]
        wanted = [text for key, _, text in parts if key == "source"]
        if wanted:
            fields = {key: text for key, _, text in parts}
            protocol = fields.get("protocol", "tcp").lower()
            start, end = port_range(fields.get("target", ""), "containerPort")
            for port in range(start, end + 1):
                found.setdefault(f"io.teu.port-sources/{port}/{protocol}", []).extend(wanted)
    return {key: ",".join(sources) for key, sources in found.items()}


def expose(values: list[str], exposed: dict[str, Any]) -> None:
    for value in values:
        if ":" in value:
            raise ValueError(f"invalid port format for --expose: {value}")
        ports, _, protocol = value.partition("/")
        try:
            start, end = port_range(ports, "port")
        except ValueError as error:
            reason = str(error).replace("Invalid port", "Invalid range specified for the Port")
            if ports and not ports.replace("-", "").isdigit():
                reason = f'strconv.ParseUint: parsing "{ports}": invalid syntax'
            raise ValueError(f"invalid range format for --expose: {value}, error: {reason}") from None
        for port in range(start, end + 1):
            exposed[f"{port}/{protocol or 'tcp'}"] = {}


def volumes(values: list[str]) -> tuple[list[str], dict[str, Any]]:
    """--volume: (Binds, Volumes). A relative host folder is made absolute."""
    binds: list[str] = []
    anonymous: dict[str, Any] = {}
    for value in values:
        if not value:
            raise ValueError("invalid empty volume spec")
        parts = value.split(":")
        if len(parts) == 1:
            anonymous[value] = {}
            continue
        if not all(parts):
            raise ValueError(f"invalid spec: {value}: empty section between colons")
        source = parts[0]
        if source in (".", "..") or source.startswith(("./", "../")):
            source = os.path.normpath(os.path.join(os.getcwd(), source))
        elif source.startswith("~"):
            source = os.path.expanduser(source)
        binds.append(":".join([source, *parts[1:]]))
    return binds, anonymous


def truth(text: str, key: str) -> bool:
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError(f"invalid value for {key}: {text}")


def as_it_stands(text: str, key: str) -> str:
    return text


def lower(text: str, key: str) -> str:
    return text.lower()


def size(text: str, key: str) -> int:
    return units.parse_bytes(text)


def file_mode(text: str, key: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise ValueError(f"invalid value for {key}: {text}") from None


def mount_source(text: str, key: str) -> str:
    """A volume's name, or a path; one relative to the working folder is made absolute."""
    if text in (".", "..") or text.startswith(("./", "../")):
        return os.path.normpath(os.path.join(os.getcwd(), text))
    return text


# The fields of --mount: the type of mount that they belong to ("" for all), where they go in the Mount or in its
# options for that type, and what reads their text.
MOUNT_FIELDS: dict[str, tuple[str, tuple[str, ...], Callable[[str, str], Any]]] = {
    "type": ("", ("Type",), lower),
    "source": ("", ("Source",), mount_source),
    "src": ("", ("Source",), mount_source),
    "target": ("", ("Target",), as_it_stands),
    "dst": ("", ("Target",), as_it_stands),
    "destination": ("", ("Target",), as_it_stands),
    "readonly": ("", ("ReadOnly",), truth),
    "ro": ("", ("ReadOnly",), truth),
    "consistency": ("", ("Consistency",), lower),
    "bind-propagation": ("bind", ("Propagation",), lower),
    "bind-nonrecursive": ("bind", ("NonRecursive",), truth),
    "bind-create-src": ("bind", ("CreateMountpoint",), truth),
    "volume-nocopy": ("volume", ("NoCopy",), truth),
    "volume-subpath": ("volume", ("Subpath",), as_it_stands),
    "volume-driver": ("volume", ("DriverConfig", "Name"), as_it_stands),
    "image-subpath": ("image", ("Subpath",), as_it_stands),
    "tmpfs-size": ("tmpfs", ("SizeBytes",), size),
    "tmpfs-mode": ("tmpfs", ("Mode",), file_mode),
}
# Fields that mean true where no value is given.
MOUNT_SWITCHES = frozenset(("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src"))
# Fields of a volume whose value is NAME=VALUE, and which may be given more than once.
VOLUME_PAIRS = {"volume-label": ("Labels",), "volume-opt": ("DriverConfig", "Options")}
# What bind-recursive sets in the options of a bind mount.
BIND_RECURSIVE = {
    "enabled": "",
    "disabled": "NonRecursive",
    "writable": "ReadOnlyNonRecursive",
    "readonly": "ReadOnlyForceRecursive",
}


def mount(value: str) -> dict[str, Any]:
    """One --mount as the API's Mount."""
    result: dict[str, Any] = {"Type": "volume"}
    options: dict[str, dict[str, Any]] = {"volume": {}, "bind": {}, "image": {}, "tmpfs": {}}
    for field in split_csv(value):
        key, equals, text = field.partition("=")
        key = key.lower().strip()
        if not equals:
            if key not in MOUNT_SWITCHES:
                raise ValueError(f"invalid field '{field}' must be a key=value pair")
            text = "true"
        if key in MOUNT_FIELDS:
            owner, place, read = MOUNT_FIELDS[key]
            put(options[owner] if owner else result, place, read(text, key))
        elif key in VOLUME_PAIRS:
            name, _, text = text.partition("=")
            put(options["volume"], (*VOLUME_PAIRS[key], name), text)
        elif key == "bind-recursive":
            if text not in BIND_RECURSIVE:
                allowed = ", ".join(f'"{name}"' for name in BIND_RECURSIVE)
                raise ValueError(f"invalid value for {key}: {text} (must be one of {allowed})")
            if BIND_RECURSIVE[text]:
                options["bind"][BIND_RECURSIVE[text]] = True
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if not result.get("Target"):
        raise ValueError("target is required")
    for owner, given in options.items():
        if given:
            if result["Type"] != owner:
                raise ValueError(f"cannot mix '{owner}-*' options with mount type '{result['Type']}'")
            result[f"{owner.capitalize()}Options"] = given
    return result


def put(record: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    """Set a value in nested records, which are made where they are missing."""
    for name in place[:-1]:
        record = record.setdefault(name, {})
    record[place[-1]] = value


def device(value: str) -> dict[str, str]:
    parts = value.split(":")
    if not parts[0] or len(parts) > 3:
        raise ValueError(f"bad format for path: {value}")
    source, target, mode = parts[0], parts[0], "rwm"
    if len(parts) == 2:
        if valid_mode(parts[1]):
            mode = parts[1]
        else:
            target = parts[1]
    elif len(parts) == 3:
        target, mode = parts[1], parts[2]
        if not valid_mode(mode):
            raise ValueError(f"bad mode specified: {mode}")
    if not target.startswith("/"):
        raise ValueError(f"{target} is not an absolute path")
    return {"PathOnHost": source, "PathInContainer": target, "CgroupPermissions": mode}


def valid_mode(mode: str) -> bool:
    return bool(mode) and len(set(mode)) == len(mode) and set(mode) <= set("rwm")


def is_cdi(value: str) -> bool:
    kind, equals, name = value.partition("=")
    vendor, slash, class_name = kind.partition("/")
    return bool(equals and slash and vendor and class_name and name) and not value.startswith("/")


def throttle(value: str, sized: bool) -> dict[str, Any]:
    path, colon, rate = value.partition(":")
    if not colon:
        raise ValueError(f"bad format: {value}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {value}")
    try:
        number = units.parse_bytes(rate) if sized else int(rate)
        if number < 0:
            raise ValueError
    except ValueError:
        unit, more = ("[<unit>]", ". Unit is optional and can be kb, mb, or gb") if sized else ("", "")
        raise ValueError(
            f"invalid rate for device: {value}. The correct format is <device-path>:<number>{unit}. "
            f"Number must be a positive integer{more}"
        ) from None
    return {"Path": path, "Rate": number}


def throttle_bytes(value: str) -> dict[str, Any]:
    return throttle(value, True)


def throttle_operations(value: str) -> dict[str, Any]:
    return throttle(value, False)


def weight(value: str) -> dict[str, Any]:
    path, colon, number = value.partition(":")
    if not colon:
        raise ValueError(f"bad format: {value}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {value}")
    if not number.isascii() or not number.isdigit() or (int(number) and not 10 <= int(number) <= 1000):
        raise ValueError(f"invalid weight for device: {value}")
    return {"Path": path, "Weight": int(number)}


def ulimit(value: str) -> dict[str, Any]:
    from teu.oci.runtime_spec import ULIMITS  # as above

    name, equals, limits = value.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {value}")
    if name not in ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    soft_text, colon, hard_text = limits.partition(":")
    if ":" in hard_text:
        raise ValueError(f"too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`")
    try:
        soft = int(soft_text)
        hard = int(hard_text) if colon else soft
    except ValueError as error:
        word = str(error).rpartition(": ")[2].strip("'")
        raise ValueError(f'strconv.ParseInt: parsing "{word}": invalid syntax') from None
    if hard != -1 and (soft == -1 or soft > hard):
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return {"Name": name, "Hard": hard, "Soft": soft}


def restart_policy(text: str) -> dict[str, Any]:
    if not text:
        return {"Name": "", "MaximumRetryCount": 0}
    name, colon, count = text.partition(":")
    if colon and not name:
        raise ValueError("invalid restart policy format: no policy provided before colon")
    if ":" in count:
        raise ValueError("invalid restart policy format: maximum retry count must be an integer")
    retries = 0
    if count:
        try:
            retries = int(count)
        except ValueError:
            raise ValueError("invalid restart policy format: maximum retry count must be an integer") from None
    return {"Name": name, "MaximumRetryCount": retries}


def security(values: list[str]) -> tuple[list[str], bool]:
    """--security-opt for the API, and whether systempaths=unconfined was among them."""
    result = []
    unconfined = False
    for value in values:
        if value == "systempaths=unconfined":
            unconfined = True
            continue
        separator = "=" if "=" in value or value == "no-new-privileges" else ":"
        key, _, text = value.partition(separator)
        if not text and key != "no-new-privileges":
            raise ValueError(f'Invalid --security-opt: "{value}"')
        if key == "seccomp" and text not in ("unconfined", "builtin"):
            try:
                with open(text, "rb") as file:
                    profile = jsontext.dumps(jsontext.loads(file.read(), exact=True))
            except OSError as error:
                raise ValueError(
                    f"opening seccomp profile ({text}) failed: open {text}: {(error.strerror or '').lower()}"
                ) from None
            except ValueError as error:
                raise ValueError(f"compacting json for seccomp profile ({text}) failed: {error}") from None
            value = "seccomp=" + profile
        result.append(value)
    return result, unconfined


def gpu(value: str) -> dict[str, Any]:
    request: dict[str, Any] = {
        "Driver": "",
        "Count": 0,
        "DeviceIDs": None,
        "Capabilities": [["gpu"]],
        "Options": {},
    }
    counted = False
    for field in split_csv(value):
        key, equals, text = field.partition("=")
        if not equals:
            key, text = "count", field
        if key == "driver":
            request["Driver"] = text
        elif key == "count":
            counted = True
            try:
                request["Count"] = -1 if text == "all" else int(text)
            except ValueError:
                raise ValueError(
                    f'invalid count ({text}): value must be either "all" or an integer: invalid syntax'
                ) from None
        elif key == "device":
            request["DeviceIDs"] = text.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [sorted({*text.split(","), "gpu"})]
        elif key == "options":
            request["Options"] = key_values(text.split(","))
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if not counted and request["DeviceIDs"] is None:
        request["Count"] = 1
    return request


BUILT_IN_NETWORKS = frozenset(("", "default", "bridge", "host", "none"))


def user_defined(network: str) -> bool:
    return network not in BUILT_IN_NETWORKS and not network.startswith("container:")


def attachment(value: str) -> dict[str, Any]:
    """One --network: its name and what is wanted there."""
    request: dict[str, Any] = {"aliases": [], "links": [], "local": [], "options": {}}
    first = value.partition(",")[0]
    if "=" in first:
        for field in split_csv(value):
            key, equals, text = field.partition("=")
            key = key.strip().lower()
            if not equals or not key:
                raise ValueError(f"invalid field {field}")
            if key == "name":
                request["name"] = text
            elif key == "alias":
                request["aliases"].append(text)
            elif key in ("ip", "ip6", "mac-address"):
                request[key] = text
            elif key == "link-local-ip":
                request["local"].append(text)
            elif key == "driver-opt":
                name, equals, option = text.partition("=")
                if not equals:
                    raise ValueError("invalid key value pair format in driver options")
                request["options"][name.strip().lower()] = option.strip()
            elif key == "gw-priority":
                if not text.isascii() or not (text[1:] if text[:1] in "+-" else text).isdigit():
                    raise ValueError(f"invalid gw-priority ({text}): invalid syntax")
                request[key] = int(text)
            else:
                raise ValueError(f"invalid field key {key}")
        if not request.get("name"):
            raise ValueError("network name/id is not specified")
    else:
        request["name"] = value
    return request


def endpoints(options: Options) -> tuple[str, dict[str, Any]]:
    """--network and what belongs to it: (NetworkMode, EndpointsConfig)."""
    requests = each(options, "network", attachment) + each(options, "net", attachment)
    given = requests or [attachment("default")]
    add_own_options(given[0], options)
    if len({user_defined(request["name"]) for request in given}) > 1:
        raise ValueError("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
    result: dict[str, Any] = {}
    for request in given:
        name = request["name"]
        found = endpoint(request)
        if name in result:
            raise ValueError(f'network "{name}" is specified multiple times')
        if found or len(requests) > 1:
            result[name] = found
    return given[0]["name"], result


def add_own_options(request: dict[str, Any], options: Options) -> None:
    """What --ip, --network-alias and the like say is about the first network."""
    for given, key, words in (
        (options["network-alias"] + options["net-alias"], "aliases", "--network-alias and per-network alias"),
        (options["ip"], "ip", "--ip and per-network IPv4 address"),
        (options["ip6"], "ip6", "--ip6 and per-network IPv6 address"),
        (options["mac-address"], "mac-address", "--mac-address and per-network MAC address"),
        (options["link-local-ip"], "local", "--link-local-ip and per-network link-local IP addresses"),
    ):
        if given:
            if request.get(key):
                raise ValueError(f"conflicting options: cannot specify both {words}")
            request[key] = given
    if user_defined(request["name"]) and options["link"]:
        request["links"] = options["link"]


def endpoint(request: dict[str, Any]) -> dict[str, Any]:
    """One `attachment` as the API's EndpointSettings, with only what is asked for."""
    name = request["name"]
    if not name.strip():
        raise ValueError("no name set for network")
    if not user_defined(name) and request["aliases"]:
        raise ValueError("network-scoped aliases are only supported for user-defined networks")
    mac = request.get("mac-address")
    addresses = {
        "IPv4Address": request.get("ip"),
        "IPv6Address": request.get("ip6"),
        "LinkLocalIPs": request["local"],
    }
    result = {
        "Aliases": request["aliases"],
        "Links": request["links"],
        "DriverOpts": request["options"],
        "GwPriority": request.get("gw-priority"),
        "IPAMConfig": {key: value for key, value in addresses.items() if value},
        "MacAddress": valid_mac(mac) if mac else "",
    }
    return {key: value for key, value in result.items() if value}


def valid_mac(text: str) -> str:
    parts = text.strip().replace("-", ":").split(":")
    if len(parts) not in (6, 8, 20) or any(
        len(part) != 2 or not set(part.lower()) <= set("0123456789abcdef") for part in parts
    ):
        raise ValueError(f"{text} is not a valid mac address")
    return text.strip()


HEALTH_RULES = ("on-failure", *("startup-" + name for name in ("cmd", "interval", "retries", "success", "timeout")))


def health(options: Options) -> dict[str, Any] | None:
    names = ("interval", "timeout", "start-period", "start-interval", "retries")
    if not (options["health-cmd"] or any(options["health-" + name] for name in names)):
        return {"Test": ["NONE"]} if options["no-healthcheck"] else None
    if options["no-healthcheck"]:
        raise ValueError("--no-healthcheck conflicts with --health-* options")
    for name in names:
        if options["health-" + name] < 0:
            raise ValueError(f"--health-{name} cannot be negative")
    result = {
        "Interval": options["health-interval"],
        "Timeout": options["health-timeout"],
        "StartPeriod": options["health-start-period"],
        "StartInterval": options["health-start-interval"],
        "Retries": options["health-retries"],
    }
    result = {key: value for key, value in result.items() if value}
    if options["health-cmd"]:
        result["Test"] = ["CMD-SHELL", options["health-cmd"]]
    return result


def health_rules(options: Options) -> dict[str, str]:
    """--health-on-failure and --health-startup-*: annotations, for docker's API has no fields for them."""
    found = {}
    for name in HEALTH_RULES:
        value = options["health-" + name]
        if "health-" + name in options.changed:
            found["io.teu.health-" + name] = value if isinstance(value, str) else str(value)
    return found


def check_mode(value: str, flag: str, word: str, allowed: tuple[str, ...]) -> str:
    name, colon, target = value.partition(":")
    if value in allowed or ("container:" in allowed and name == "container" and colon and target):
        return value
    raise ValueError(f"--{flag}: invalid {word} mode")


# Options whose value is the field's value as it stands.
CONFIG_FIELDS = (
    ("hostname", "Hostname"),
    ("domainname", "Domainname"),
    ("user", "User"),
    ("workdir", "WorkingDir"),
    ("stop-signal", "StopSignal"),
)
HOST_FIELDS = (
    ("cidfile", "ContainerIDFile"),
    ("oom-score-adj", "OomScoreAdj"),
    ("privileged", "Privileged"),
    ("publish-all", "PublishAllPorts"),
    ("link", "Links"),
    ("volumes-from", "VolumesFrom"),
    ("cap-add", "CapAdd"),
    ("cap-drop", "CapDrop"),
    ("group-add", "GroupAdd"),
    ("read-only", "ReadonlyRootfs"),
    ("volume-driver", "VolumeDriver"),
    ("isolation", "Isolation"),
    ("shm-size", "ShmSize"),
    ("runtime", "Runtime"),
    ("cgroup-parent", "CgroupParent"),
    ("memory", "Memory"),
    ("memory-reservation", "MemoryReservation"),
    ("memory-swap", "MemorySwap"),
    ("cpus", "NanoCpus"),
    ("cpu-shares", "CpuShares"),
    ("cpu-period", "CpuPeriod"),
    ("cpu-quota", "CpuQuota"),
    ("cpu-rt-period", "CpuRealtimePeriod"),
    ("cpu-rt-runtime", "CpuRealtimeRuntime"),
    ("cpuset-cpus", "CpusetCpus"),
    ("cpuset-mems", "CpusetMems"),
    ("blkio-weight", "BlkioWeight"),
    ("device-cgroup-rule", "DeviceCgroupRules"),
    ("pids-limit", "PidsLimit"),
)


# The steps of `build`: each reads some options and sets its fields of the container's Config and of its HostConfig.


def add_streams(options: Options, config: dict[str, Any]) -> None:
    attach = each(options, "attach", valid_stream)
    stdin = options["interactive"]
    config["AttachStdin"] = stdin or "stdin" in attach
    config["AttachStdout"] = not attach or "stdout" in attach
    config["AttachStderr"] = not attach or "stderr" in attach
    config["OpenStdin"] = stdin
    config["StdinOnce"] = stdin and config["AttachStdin"]
    config["Tty"] = options["tty"]


def add_mounts(options: Options, config: dict[str, Any], host: dict[str, Any]) -> None:
    binds, anonymous = volumes(options["volume"])
    if binds:
        host["Binds"] = binds
    if anonymous:
        config["Volumes"] = anonymous
    if options["tmpfs"]:
        host["Tmpfs"] = {path: extra for path, _, extra in (value.partition(":") for value in options["tmpfs"])}
    if options["mount"]:
        host["Mounts"] = each(options, "mount", mount)


def add_command(options: Options, config: dict[str, Any], command: list[str]) -> None:
    if command:
        config["Cmd"] = command
    if options["entrypoint"]:
        config["Entrypoint"] = [options["entrypoint"]]
    elif "entrypoint" in options.changed:
        config["Entrypoint"] = [""]


def add_ports(options: Options, config: dict[str, Any], host: dict[str, Any]) -> None:
    exposed: dict[str, Any] = {}
    host["PortBindings"] = {}  # told again by inspect, as docker's
    if options["publish"]:
        exposed, host["PortBindings"] = publish(options["publish"])
        if sources := port_sources(options["publish"]):
            host["Annotations"] = {**sources, **host.get("Annotations", {})}
    expose(options["expose"], exposed)
    if exposed:
        config["ExposedPorts"] = exposed


def add_devices(options: Options, host: dict[str, Any]) -> None:
    named_by_cdi = [value for value in options["device"] if is_cdi(value)]
    devices = [device(value) for value in options["device"] if not is_cdi(value)]
    if devices:
        host["Devices"] = devices
    requests = each(options, "gpus", gpu)
    if named_by_cdi:
        requests.append({"Driver": "cdi", "DeviceIDs": named_by_cdi})
    if requests:
        host["DeviceRequests"] = requests


def add_environment(options: Options, config: dict[str, Any]) -> None:
    if options["env"] or options["env-file"]:
        each(options, "env", valid_variable)
        config["Env"] = environment(options["env"], options["env-file"])
    if options["label"] or options["label-file"]:
        each(options, "label", valid_label)
        config["Labels"] = key_values(read_lines(options["label-file"], False) + options["label"])


def add_namespaces(options: Options, host: dict[str, Any]) -> None:
    host["PidMode"] = check_mode(options["pid"], "pid", "PID", ("", "host", "container:"))
    host["UTSMode"] = check_mode(options["uts"], "uts", "UTS", ("", "host"))
    host["UsernsMode"] = check_mode(options["userns"], "userns", "USER", ("", "host"))
    host["CgroupnsMode"] = check_mode(options["cgroupns"], "cgroupns", "CGROUP", ("", "host", "private"))
    host["IpcMode"] = options["ipc"]


def add_end_of_life(options: Options, host: dict[str, Any]) -> None:
    """What becomes of the container after its end, and of its output."""
    host["RestartPolicy"] = restart_policy(options["restart"])
    if options["rm"] and host["RestartPolicy"]["Name"] not in ("", "no"):
        raise ValueError("conflicting options: cannot specify both --restart and --rm")
    host["AutoRemove"] = options["rm"]
    if options["log-driver"] == "none" and options["log-opt"]:
        raise ValueError("invalid logging opts for driver none")
    host["LogConfig"] = {"Type": options["log-driver"], "Config": key_values(options["log-opt"])}


def add_security(options: Options, host: dict[str, Any]) -> None:
    if options["security-opt"]:
        host["SecurityOpt"], unconfined = security(options["security-opt"])
        if unconfined:
            host["MaskedPaths"], host["ReadonlyPaths"] = [], []
    if options["storage-opt"]:
        if not all("=" in value for value in options["storage-opt"]):
            raise ValueError("invalid storage option")
        host["StorageOpt"] = key_values(options["storage-opt"])


def add_changed(options: Options, config: dict[str, Any], host: dict[str, Any]) -> None:
    """Health, and what is left to the daemon unless it is on the command line."""
    if (check := health(options)) is not None:
        config["Healthcheck"] = check
    for name, record, key in (
        ("stop-timeout", config, "StopTimeout"),
        ("init", host, "Init"),
        ("oom-kill-disable", host, "OomKillDisable"),
    ):
        if name in options.changed:
            record[key] = options[name]


def add_names(options: Options, host: dict[str, Any]) -> None:
    if options["add-host"]:
        host["ExtraHosts"] = each(options, "add-host", extra_host)
    host["Dns"] = each(options, "dns", valid_dns)
    host["DnsOptions"] = options["dns-option"] + options["dns-opt"]
    host["DnsSearch"] = options["dns-search"]


def add_limits(options: Options, host: dict[str, Any]) -> None:
    if options["ulimit"]:
        found = {entry["Name"]: entry for entry in each(options, "ulimit", ulimit)}
        host["Ulimits"] = [found[name] for name in sorted(found)]
    for name, key, read in (
        ("blkio-weight-device", "BlkioWeightDevice", weight),
        ("device-read-bps", "BlkioDeviceReadBps", throttle_bytes),
        ("device-write-bps", "BlkioDeviceWriteBps", throttle_bytes),
        ("device-read-iops", "BlkioDeviceReadIOps", throttle_operations),
        ("device-write-iops", "BlkioDeviceWriteIOps", throttle_operations),
    ):
        if options[name]:
            host[key] = each(options, name, read)


def add_plain(options: Options, config: dict[str, Any], host: dict[str, Any]) -> None:
    """Options whose value is the field's value as it stands."""
    for record, fields in ((config, CONFIG_FIELDS), (host, HOST_FIELDS)):
        for name, key in fields:
            if options[name]:
                record[key] = options[name]


def add_settings(options: Options, host: dict[str, Any]) -> None:
    if options["sysctl"]:
        host["Sysctls"] = key_values(each(options, "sysctl", valid_sysctl))
    if options["annotation"]:
        host["Annotations"] = {**host.get("Annotations", {}), **key_values(options["annotation"])}
    if rules := health_rules(options):
        host["Annotations"] = {**host.get("Annotations", {}), **rules}


def valid_swappiness(number: int) -> int:
    if number != -1 and not 0 <= number <= 100:
        raise ValueError(f"invalid value: {number}. Valid memory swappiness range is 0-100")
    return number


def build(options: Options, image: str, command: list[str]) -> dict[str, Any]:
    """The body of POST /containers/create. Of several wrong values, the one that docker tells is told."""
    config: dict[str, Any] = {"Image": image}
    host: dict[str, Any] = {}
    add_streams(options, config)
    if options["mac-address"]:
        valid_mac(options["mac-address"])
    host["MemorySwappiness"] = valid_swappiness(options["memory-swappiness"])
    add_mounts(options, config, host)
    add_command(options, config, command)
    add_ports(options, config, host)
    add_devices(options, host)
    add_environment(options, config)
    add_namespaces(options, host)
    add_end_of_life(options, host)
    add_security(options, host)
    add_changed(options, config, host)
    add_names(options, host)
    add_limits(options, host)
    add_plain(options, config, host)
    add_settings(options, host)
    host["NetworkMode"], endpoint_config = endpoints(options)
    return {**config, "HostConfig": host, "NetworkingConfig": {"EndpointsConfig": endpoint_config}}
