# SPDX-License-Identifier: Apache-2.0
"""What clients may say: every field of the bodies, and every parameter of the addresses, of Docker's API for
containers, exec, networks, volumes, images and the system, with its type and what becomes of it.

    used         it does what the API says
    refused      it cannot be had here: whoever asks for it is told so, with a status and what to do instead
    meaningless  the real daemon does nothing with it on Linux either (a client's own affair, or Windows')

This is the one table of them: routes read bodies with it (`Request.decode`), the server checks parameters with it, and
tests/system/test_engine_fields.py sends each of them and sees that it is so. A field that is not here is dropped, as
Go's decoder drops what it does not know; so one that Docker has belongs here, whatever becomes of it.

Bodies are read as Go reads them: keys without regard to case, null as good as absent, numbers only where they are
written as whole ones, halves of surrogates replaced. What does not fit is refused by the path of the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from teu.engine.core.errors import BadRequest, EngineError, Unavailable, Unsupported

USED, REFUSED, MEANINGLESS = "used", "refused", "meaningless"

_ERRORS: dict[int, type[EngineError]] = {
    400: BadRequest,
    500: EngineError,
    501: Unsupported,
    503: Unavailable,
}


# ---- JSON --------------------------------------------------------------------------------------------------

DIGITS = 1000  # of a whole number; longer ones fit no field, and Python refuses them altogether


def _whole(text: str) -> int | float:
    return int(text) if len(text) <= DIGITS else float(text)


def natural(text: str, most: int = 9) -> int | None:
    """A number in decimal digits, no more of them than that; None for anything else, which int() may yet take."""
    return int(text) if 0 < len(text) <= most and text.isascii() and text.isdigit() else None


def _constant(text: str) -> Any:
    raise ValueError(f"invalid character {text.lstrip('-')[0]!r} looking for beginning of value")


def loads(text: bytes) -> Any:
    """A JSON text as Go reads it: bytes that are no UTF-8 are replaced, NaN is no number. Raises ValueError."""
    try:
        return json.loads(text.decode("utf-8", "replace"), parse_int=_whole, parse_constant=_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


# ---- types -------------------------------------------------------------------------------------------------


class Kind(Protocol):
    """A type: what it is called, and how a value of it is read. `read` raises BadRequest with the value's path."""

    name: str

    def read(self, value: Any, path: str) -> Any: ...


def _wrong(path: str, wanted: str, value: Any) -> BadRequest:
    return BadRequest(f"{path or 'the request body'} must be {wanted}, not {_shown(value)}")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "a number out of range" if value in (float("inf"), float("-inf")) else f"the number {value!r}"
    names: dict[type, str] = {str: "a string", int: "a number", list: "a list", dict: "an object"}
    return names[type(value)]


def whole_characters(text: str) -> str:
    """Without the halves of surrogate pairs that a JSON text may name: no file, process or database takes those."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Text:
    name = "a string"

    def __init__(self, nul: bool = True) -> None:
        self.nul = nul

    def read(self, value: Any, path: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise _wrong(path, self.name, value)
        if not self.nul and "\0" in value:
            raise BadRequest(f"{path} must not contain a NUL character: {value!r}")
        return whole_characters(value)


class _Flag:
    name = "true or false"

    def read(self, value: Any, path: str) -> bool:
        if not isinstance(value, bool):
            if value is None:
                return False
            raise _wrong(path, self.name, value)
        return value


class _Whole:
    name = "a whole number"

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def read(self, value: Any, path: str) -> int:
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(path, self.name, value)
        if not self.low <= value <= self.high:
            raise BadRequest(f"{path} must be between {self.low} and {self.high}, not {value}")
        return value


class _Nothing:
    """Go's struct{}: the keys are what counts."""

    name = "an object"

    def read(self, value: Any, path: str) -> dict[str, Any]:
        if value is not None and not isinstance(value, dict):
            raise _wrong(path, self.name, value)
        return {}


class _Presence:
    """An object that nobody here looks into: it is asked for, though it may be empty."""

    name = "an object"

    def read(self, value: Any, path: str) -> bool:
        if not isinstance(value, dict):
            raise _wrong(path, self.name, value)
        return True


class ListOf:
    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.name = "a list"

    def read(self, value: Any, path: str) -> list[Any] | None:
        if value is None:
            return None
        if not isinstance(value, list):
            raise _wrong(path, self.name, value)
        return [self.kind.read(item, f"{path}[{number}]") for number, item in enumerate(value)]


class _Words:
    """A list of strings, or one string, which stands for a list of it."""

    name = "a list of strings"

    def read(self, value: Any, path: str) -> list[str]:
        if isinstance(value, str):
            return [WORD.read(value, path)]
        if not isinstance(value, list):
            raise _wrong(path, self.name, value)
        return [WORD.read(item, f"{path}[{number}]") for number, item in enumerate(value)]


class _Size:
    """Height and width: Go's array of two, in which what is missing is 0 and more is not looked at."""

    name = "a list of two numbers"

    def read(self, value: Any, path: str) -> list[int]:
        if not isinstance(value, list):
            raise _wrong(path, self.name, value)
        given = [UINT64.read(item, f"{path}[{number}]") for number, item in enumerate(value[:2])]
        for number, side in enumerate(given):
            if side > 65535:
                raise BadRequest(f"{path}[{number}] must be between 0 and 65535, not {side}")
        return [*given, 0, 0][:2]


class MapOf:
    def __init__(self, kind: Kind, in_order: bool = False) -> None:
        """`in_order`: shown in the order of the keys, whatever the order they came in."""
        self.kind = kind
        self.name = "an object"
        self.in_order = in_order

    def read(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(path, self.name, value)
        items = [(whole_characters(key), self.kind.read(item, f"{path}.{key}")) for key, item in value.items()]
        return dict(sorted(items) if self.in_order else items)


class Field(NamedTuple):
    """`default`: for objects that are filled in. `says`: why it is refused, and what to do; a value in `allowed` is
    taken nevertheless."""

    kind: Kind
    default: Any = None
    standing: str = USED
    says: str = ""
    status: int = 400
    allowed: tuple[Any, ...] = ()

    def check(self, value: Any, path: str) -> None:
        """Raises the refusal. What a client leaves empty it does not ask for."""
        if self.standing == REFUSED and value and value not in self.allowed:
            raise _ERRORS[self.status](f"{path}: {self.says}")

    def fresh(self) -> Any:
        """The default, of which each object has its own."""
        return self.default.copy() if isinstance(self.default, (dict, list)) else self.default


class Object:
    name = "an object"

    def __init__(self, fields: Mapping[str, Field | Kind], pointer: bool = False) -> None:
        """`pointer`: null is not an empty one, but none."""
        self.pointer = pointer
        self.fields = {key: value if isinstance(value, Field) else Field(value) for key, value in fields.items()}
        self._folded = {key.casefold(): key for key in self.fields}

    def read(self, value: Any, path: str = "") -> Any:
        """The known fields that were given, a dict under the API's own names."""
        if value is None:
            return None if self.pointer else {}
        if not isinstance(value, dict):
            raise _wrong(path, self.name, value)
        result: dict[str, Any] = {}
        for key, given in value.items():
            name = key if key in self.fields else self._folded.get(key.casefold())
            if name is None or given is None:
                continue
            here = f"{path}.{name}" if path else name
            field = self.fields[name]
            item = field.kind.read(given, here)
            field.check(item, here)
            result[name] = item
        return result

    def filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All fields: those that were given, and the defaults of the others."""
        return {
            name: given[name] if given.get(name) is not None else field.fresh() for name, field in self.fields.items()
        }


def refused(kind: Kind, says: str, status: int = 400, allowed: tuple[Any, ...] = (), default: Any = None) -> Field:
    return Field(kind, default, REFUSED, says, status, allowed)


def meaningless(kind: Kind, default: Any = None) -> Field:
    return Field(kind, default, MEANINGLESS)


# TEXT may be anything, a WORD goes to the kernel and can have no NUL.
TEXT, WORD, FLAG, NOTHING, PRESENCE = _Text(), _Text(nul=False), _Flag(), _Nothing(), _Presence()
WORDS, SIZE = _Words(), _Size()
INT64, UINT64 = _Whole(-(1 << 63), (1 << 63) - 1), _Whole(0, (1 << 64) - 1)
UINT16, UINT32 = _Whole(0, (1 << 16) - 1), _Whole(0, (1 << 32) - 1)
WORD_LIST = ListOf(WORD)
LABELS, WORD_MAP = MapOf(TEXT, in_order=True), MapOf(WORD, in_order=True)
SET = MapOf(NOTHING, in_order=True)
OPTIONS = MapOf(WORD)


# ---- containers --------------------------------------------------------------------------------------------

HEALTH = Object(
    {
        "Test": WORD_LIST,
        "Interval": INT64,
        "Timeout": INT64,
        "StartPeriod": INT64,
        "StartInterval": INT64,
        "Retries": INT64,
    }
)

CONFIG = Object(
    {
        "Hostname": Field(WORD, ""),
        "Domainname": Field(WORD, ""),
        "User": Field(WORD, ""),
        "AttachStdin": Field(FLAG, False),
        "AttachStdout": Field(FLAG, False),
        "AttachStderr": Field(FLAG, False),
        "ExposedPorts": SET,
        "Tty": Field(FLAG, False),
        "OpenStdin": Field(FLAG, False),
        "StdinOnce": Field(FLAG, False),
        "Env": WORD_LIST,
        "Cmd": WORDS,
        "Healthcheck": HEALTH,
        "ArgsEscaped": meaningless(FLAG),  # Windows
        "Image": Field(WORD, ""),
        "Volumes": SET,
        "WorkingDir": Field(WORD, ""),
        "Entrypoint": WORDS,
        "NetworkDisabled": FLAG,
        "MacAddress": WORD,
        "OnBuild": ListOf(TEXT),  # for the image that a commit makes
        "Labels": Field(LABELS, {}),
        "StopSignal": WORD,
        "StopTimeout": INT64,
        "Shell": WORDS,
    }
)

DEVICE = Object({"PathOnHost": WORD, "PathInContainer": WORD, "CgroupPermissions": WORD})
DEVICE_REQUEST = Object(
    {
        "Driver": TEXT,
        "Count": INT64,
        "DeviceIDs": ListOf(TEXT),
        "Capabilities": ListOf(ListOf(TEXT)),
        "Options": MapOf(TEXT),
    }
)
LIMIT = Object({"Name": WORD, "Soft": INT64, "Hard": INT64})
WEIGHT = ListOf(Object({"Path": WORD, "Weight": UINT16}))
RATE = ListOf(Object({"Path": WORD, "Rate": UINT64}))

RESOURCES = Object(
    {
        "CpuShares": Field(INT64, 0),
        "Memory": Field(INT64, 0),
        "NanoCpus": Field(INT64, 0),
        "CgroupParent": Field(WORD, ""),
        "BlkioWeight": Field(UINT16, 0),
        "BlkioWeightDevice": Field(WEIGHT, []),
        "BlkioDeviceReadBps": Field(RATE, []),
        "BlkioDeviceWriteBps": Field(RATE, []),
        "BlkioDeviceReadIOps": Field(RATE, []),
        "BlkioDeviceWriteIOps": Field(RATE, []),
        "CpuPeriod": Field(INT64, 0),
        "CpuQuota": Field(INT64, 0),
        "CpuRealtimePeriod": refused(
            INT64, "there is no real-time scheduling of cgroups with cgroup v2; use CpuShares or CpuQuota", 500, (), 0
        ),
        "CpuRealtimeRuntime": refused(
            INT64, "there is no real-time scheduling of cgroups with cgroup v2; use CpuShares or CpuQuota", 500, (), 0
        ),
        "CpusetCpus": Field(WORD, ""),
        "CpusetMems": Field(WORD, ""),
        "Devices": Field(ListOf(DEVICE), []),
        "DeviceCgroupRules": WORD_LIST,
        "DeviceRequests": ListOf(DEVICE_REQUEST),  # refused in hostconfig, in the words that say which device
        "KernelMemory": meaningless(INT64),  # not since API 1.42
        "KernelMemoryTCP": meaningless(INT64),  # cgroup v1
        "MemoryReservation": Field(INT64, 0),
        "MemorySwap": Field(INT64, 0),
        "MemorySwappiness": INT64,  # cgroup v1: discarded with a warning, as is OomKillDisable
        "OomKillDisable": FLAG,
        "PidsLimit": INT64,
        "Ulimits": Field(ListOf(LIMIT), []),
        "CpuCount": meaningless(INT64, 0),  # these four are Windows'
        "CpuPercent": meaningless(INT64, 0),
        "IOMaximumIOps": refused(
            UINT64, "this is a limit of Windows; use BlkioDeviceReadIOps and BlkioDeviceWriteIOps", 500, (), 0
        ),
        "IOMaximumBandwidth": refused(
            UINT64, "this is a limit of Windows; use BlkioDeviceReadBps and BlkioDeviceWriteBps", 500, (), 0
        ),
    }
)

MOUNT = Object(
    {
        "Type": WORD,
        "Source": WORD,
        "Target": WORD,
        "ReadOnly": FLAG,
        "Consistency": meaningless(TEXT),  # macOS
        "BindOptions": Object(
            {
                "Propagation": WORD,
                "NonRecursive": FLAG,
                "CreateMountpoint": FLAG,
                "ReadOnlyNonRecursive": FLAG,
                "ReadOnlyForceRecursive": FLAG,
            }
        ),
        "VolumeOptions": Object(
            {
                "NoCopy": FLAG,
                "Labels": LABELS,
                "DriverConfig": Object({"Name": WORD, "Options": OPTIONS}),
                "Subpath": WORD,
            }
        ),
        "TmpfsOptions": Object({"SizeBytes": INT64, "Mode": UINT32, "Options": ListOf(WORD_LIST)}),
        "ImageOptions": Object({"Subpath": WORD}),  # of a type of mount that is refused
        "ClusterOptions": NOTHING,  # of swarm: so is that
    }
)

HOST_CONFIG = Object(
    {
        "Binds": WORD_LIST,
        "ContainerIDFile": meaningless(TEXT, ""),  # the client writes it
        "LogConfig": Field(Object({"Type": TEXT, "Config": LABELS}), {}),
        "NetworkMode": Field(WORD, "default"),
        "PortBindings": Field(MapOf(ListOf(Object({"HostIp": WORD, "HostPort": WORD})), in_order=True), {}),
        "RestartPolicy": Field(Object({"Name": TEXT, "MaximumRetryCount": INT64}), {}),
        "AutoRemove": Field(FLAG, False),
        "VolumeDriver": Field(WORD, ""),
        "VolumesFrom": WORD_LIST,
        "ConsoleSize": Field(SIZE, [0, 0]),
        "Annotations": WORD_MAP,
        "CapAdd": WORDS,
        "CapDrop": WORDS,
        "CgroupnsMode": Field(WORD, ""),
        "Dns": Field(WORD_LIST, []),
        "DnsOptions": Field(WORD_LIST, []),
        "DnsSearch": Field(WORD_LIST, []),
        "ExtraHosts": WORD_LIST,
        "GroupAdd": WORD_LIST,
        "IpcMode": Field(WORD, ""),
        "Cgroup": refused(TEXT, "a container cannot use another's cgroup; put both below one CgroupParent", default=""),
        "Links": WORD_LIST,
        "OomScoreAdj": Field(INT64, 0),
        "PidMode": Field(WORD, ""),
        "Privileged": Field(FLAG, False),
        "PublishAllPorts": Field(FLAG, False),
        "ReadonlyRootfs": Field(FLAG, False),
        "SecurityOpt": WORD_LIST,
        "StorageOpt": refused(
            WORD_MAP, "is not supported by the overlayfs snapshotter; put what may grow into a volume", 500
        ),
        "Tmpfs": WORD_MAP,
        "UTSMode": Field(WORD, ""),
        "UsernsMode": refused(
            WORD, "containers have no user namespace of their own; use host, or leave it out", 400, ("host",), ""
        ),
        "ShmSize": Field(INT64, 64 << 20),
        "Sysctls": WORD_MAP,
        "Runtime": Field(WORD, ""),
        "Isolation": refused(
            TEXT, "Linux has one technology to isolate containers; use default, or leave it out", 500, ("default",), ""
        ),
        "Mounts": ListOf(MOUNT),
        "MaskedPaths": WORD_LIST,
        "ReadonlyPaths": WORD_LIST,
        "Init": FLAG,
        **RESOURCES.fields,
    }
)

ENDPOINT = Object(
    {
        "IPAMConfig": Object({"IPv4Address": WORD, "IPv6Address": WORD, "LinkLocalIPs": WORD_LIST}),
        "Links": WORD_LIST,
        "Aliases": WORD_LIST,
        "MacAddress": WORD,
        "DriverOpts": MapOf(WORD),
        "GwPriority": INT64,
        # What the engine says of an endpoint, and clients send back as they have read it.
        "NetworkID": meaningless(TEXT),
        "EndpointID": meaningless(TEXT),
        "Gateway": meaningless(TEXT),
        "IPAddress": meaningless(TEXT),
        "IPPrefixLen": meaningless(INT64),
        "IPv6Gateway": meaningless(TEXT),
        "GlobalIPv6Address": meaningless(TEXT),
        "GlobalIPv6PrefixLen": meaningless(INT64),
        "DNSNames": meaningless(ListOf(TEXT)),
    }
)

NETWORKING = Object({"EndpointsConfig": MapOf(Object(ENDPOINT.fields, pointer=True))})

# Runtime: where docker-py's low-level client puts it.
CONTAINER = Object({**CONFIG.fields, "HostConfig": HOST_CONFIG, "NetworkingConfig": NETWORKING, "Runtime": WORD})

_FOR_GOOD = "it is settled when a container is created and cannot be updated; create it anew"
UPDATE = Object(
    {
        **RESOURCES.fields,
        **{
            name: refused(RESOURCES.fields[name].kind, _FOR_GOOD)
            for name in ("CgroupParent", "Devices", "DeviceCgroupRules", "DeviceRequests", "Ulimits")
        },
        # The real daemon tells these apart from those of a creation.
        **{name: RESOURCES.fields[name]._replace(status=400) for name in ("IOMaximumIOps", "IOMaximumBandwidth")},
        "RestartPolicy": HOST_CONFIG.fields["RestartPolicy"],
    }
)

EXEC = Object(
    {
        "User": WORD,
        "Privileged": FLAG,
        "Tty": FLAG,
        "ConsoleSize": SIZE,
        "AttachStdin": FLAG,
        "AttachStdout": FLAG,
        "AttachStderr": FLAG,
        "Detach": meaningless(FLAG),  # it is the start that may be detached
        "DetachKeys": WORD,
        "Env": WORD_LIST,
        "WorkingDir": WORD,
        "Cmd": WORD_LIST,
    }
)
EXEC_START = Object({"Detach": FLAG, "Tty": FLAG, "ConsoleSize": SIZE})

# ---- networks, volumes, the system -------------------------------------------------------------------------

# Which drivers, scopes and options there are is said where networks are made.
NETWORK = Object(
    {
        "Name": WORD,
        "CheckDuplicate": meaningless(FLAG),  # names are unique, whoever asks
        "Driver": WORD,
        "Scope": WORD,
        "EnableIPv4": FLAG,
        "EnableIPv6": FLAG,
        "IPAM": Object(
            {
                "Driver": WORD,
                "Options": OPTIONS,
                "Config": ListOf(
                    Object({"Subnet": WORD, "IPRange": WORD, "Gateway": WORD, "AuxiliaryAddresses": MapOf(WORD)})
                ),
            }
        ),
        "Internal": FLAG,
        "Attachable": meaningless(FLAG),  # of swarm
        "Ingress": FLAG,
        "ConfigOnly": FLAG,
        "ConfigFrom": Object({"Network": WORD}),
        "Options": OPTIONS,
        "Labels": LABELS,
    }
)
CONNECT = Object({"Container": WORD, "EndpointConfig": ENDPOINT})
DISCONNECT = Object({"Container": WORD, "Force": FLAG})

VOLUME = Object(
    {
        "Name": WORD,
        "Driver": WORD,
        "DriverOpts": OPTIONS,
        "Labels": LABELS,
        "ClusterVolumeSpec": refused(
            PRESENCE, "this machine is in no swarm; leave it out for a volume of the machine's own", 503
        ),
    }
)

LOGIN = Object(
    {
        "username": TEXT,
        "password": TEXT,
        "auth": meaningless(TEXT),
        "email": meaningless(TEXT),
        "serveraddress": TEXT,
        "identitytoken": TEXT,
        "registrytoken": TEXT,
    }
)


# ---- parameters of addresses -------------------------------------------------------------------------------


class Parameter(NamedTuple):
    """A parameter of a query. `kind`: flag, number, text, filters or moment; how it is read is `http.Query`'s."""

    kind: str
    standing: str = USED
    says: str = ""
    status: int = 400


_FLAG, _NUMBER, _TEXT = Parameter("flag"), Parameter("number"), Parameter("text")
_FILTERS, _MOMENT = Parameter("filters"), Parameter("moment")
_IDLE = Parameter("text", MEANINGLESS)

_CHECKPOINT = "checkpoints are not supported; start the container without one"
_STOP = {"t": _NUMBER, "signal": _TEXT}
_SIZES = {"h": _NUMBER, "w": _NUMBER}

PARAMETERS: dict[tuple[str, str], dict[str, Parameter]] = {
    ("POST", "/containers/create"): {"name": _TEXT, "platform": _TEXT},
    ("GET", "/containers/json"): {"all": _FLAG, "limit": _NUMBER, "size": _FLAG, "filters": _FILTERS},
    ("GET", "/containers/{name}/json"): {"size": _FLAG},
    ("GET", "/containers/{name}/top"): {"ps_args": _TEXT},
    ("GET", "/containers/{name}/logs"): {
        "follow": _FLAG,
        "stdout": _FLAG,
        "stderr": _FLAG,
        "since": _MOMENT,
        "until": _MOMENT,
        "timestamps": _FLAG,
        "tail": _TEXT,
        "details": _FLAG,
    },
    ("GET", "/containers/{name}/stats"): {"stream": _FLAG, "one-shot": _FLAG},
    ("POST", "/containers/{name}/start"): {
        "detachKeys": _IDLE,  # those of attach count
        "checkpoint": Parameter("text", REFUSED, _CHECKPOINT),
        "checkpoint-dir": Parameter("text", REFUSED, _CHECKPOINT),
    },
    ("POST", "/containers/{name}/stop"): _STOP,
    ("POST", "/containers/{name}/restart"): _STOP,
    ("POST", "/containers/{name}/kill"): {"signal": _TEXT},
    ("POST", "/containers/{name}/rename"): {"name": _TEXT},
    ("POST", "/containers/{name}/resize"): _SIZES,
    ("POST", "/containers/{name}/attach"): {
        "detachKeys": _TEXT,
        "logs": _FLAG,
        "stream": _FLAG,
        "stdin": _FLAG,
        "stdout": _FLAG,
        "stderr": _FLAG,
    },
    ("POST", "/containers/{name}/wait"): {"condition": _TEXT},
    ("DELETE", "/containers/{name}"): {
        "v": _FLAG,
        "force": _FLAG,
        "link": Parameter("flag", REFUSED, "links are not supported; there is none to remove"),
    },
    ("GET", "/containers/{name}/archive"): {"path": _TEXT},
    ("PUT", "/containers/{name}/archive"): {"path": _TEXT, "noOverwriteDirNonDir": _FLAG, "copyUIDGID": _FLAG},
    ("POST", "/containers/prune"): {"filters": _FILTERS},
    ("POST", "/exec/{identity}/resize"): _SIZES,
    ("POST", "/commit"): {
        "container": _TEXT,
        "repo": _TEXT,
        "tag": _TEXT,
        "comment": _TEXT,
        "author": _TEXT,
        "pause": _FLAG,
        "changes": _TEXT,
    },
    ("GET", "/images/json"): {
        "all": _FLAG,
        "filters": _FILTERS,
        "shared-size": _FLAG,
        "digests": Parameter("flag", MEANINGLESS),  # they are told in any case, as by the real daemon
    },
    ("POST", "/images/create"): {
        "fromImage": _TEXT,
        "fromSrc": _TEXT,
        "repo": _TEXT,
        "tag": _TEXT,
        "message": _TEXT,
        "changes": _TEXT,
        "platform": _TEXT,
    },
    ("GET", "/images/{name:path}/get"): {},
    ("GET", "/images/get"): {"names": _TEXT},
    ("POST", "/images/load"): {"quiet": _FLAG},
    ("POST", "/images/prune"): {"filters": _FILTERS},
    ("POST", "/images/{name:path}/tag"): {"repo": _TEXT, "tag": _TEXT},
    ("POST", "/images/{name:path}/push"): {"tag": _TEXT},
    ("DELETE", "/images/{name:path}"): {"force": _FLAG, "noprune": _FLAG},
    ("GET", "/networks"): {"filters": _FILTERS},
    ("GET", "/networks/{name}"): {"verbose": _IDLE, "scope": _TEXT},  # verbose: of swarm
    ("POST", "/networks/prune"): {"filters": _FILTERS},
    ("GET", "/volumes"): {"filters": _FILTERS},
    ("POST", "/volumes/prune"): {"filters": _FILTERS},
    ("DELETE", "/volumes/{name}"): {"force": _FLAG},
    ("GET", "/events"): {"since": _MOMENT, "until": _MOMENT, "filters": _FILTERS},
    ("GET", "/system/df"): {"type": _TEXT},
    ("POST", "/build"): {
        **dict.fromkeys(("q", "nocache", "pull"), _FLAG),
        **dict.fromkeys(("memory", "memswap", "cpushares", "cpuperiod", "cpuquota", "shmsize"), _NUMBER),
        **dict.fromkeys(
            ("dockerfile", "t", "extrahosts", "remote", "cachefrom", "cpusetcpus", "cpusetmems", "cgroupparent"), _TEXT
        ),
        **dict.fromkeys(("buildargs", "labels", "networkmode", "platform", "target", "outputs", "ulimits"), _TEXT),
        **dict.fromkeys(("session", "buildid", "version"), _TEXT),
        "rm": _IDLE,  # a step leaves no container
        "forcerm": _IDLE,
        **dict.fromkeys(("squash", "isolation", "securityopt"), _TEXT),  # refused, see builds.options
    },
    ("POST", "/build/cancel"): {"id": _TEXT},
    ("POST", "/build/prune"): {
        "all": _FLAG,
        "filters": _FILTERS,
        "keep-storage": _NUMBER,
        "reserved-space": _NUMBER,
        "max-used-space": _NUMBER,
        "min-free-space": _NUMBER,
    },
}


def check_parameters(method: str, pattern: str, values: Mapping[str, list[str]]) -> None:
    """Raises the refusal of a parameter that was given and cannot be had."""
    for name, parameter in PARAMETERS.get((method, pattern), {}).items():
        if parameter.standing != REFUSED:
            continue
        given = values.get(name, [""])[0]
        if given and not (parameter.kind == "flag" and given.strip().lower() in FALSE):
            raise _ERRORS[parameter.status](f"{name}: {parameter.says}")


FALSE = ("", "0", "no", "false", "none")
