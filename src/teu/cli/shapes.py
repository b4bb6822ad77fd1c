# SPDX-License-Identifier: Apache-2.0
"""The types that docker's templates of `inspect` see. Called by `inspect` when a template was given.

docker executes such a template on Go's structures first, where a field has a value whether or not the daemon's JSON
has it: no health check is a nil pointer, which is false and prints as <nil>, no binds are an empty slice. What fails
there is tried on the JSON as it is. So `dressed` gives JSON the types below; each dressed value keeps the JSON it came
from in `raw`, which is what the function `json` prints.

    KIND of a field     value where the JSON has null or nothing
    s b i               "", false, 0
    d t                 a duration (nanoseconds) that prints as Go's, a time that does
    a P                 whatever it is (P: in a map of ports)
    *KIND               Nil
    []KIND  {}KIND      an empty list, an empty map from text
    NAME                the structure of that name, with fields like these
"""

from __future__ import annotations

from teu.oci.template import Nil, TemplateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Fields in the order of Go's structures, which is that of printing one; spelt as in the JSON.
STRUCTURES = {
    "container": """Id s Created s Path s Args []s State *State Image s ResolvConfPath s HostnamePath s
        HostsPath s LogPath s Name s RestartCount i Driver s Platform s MountLabel s ProcessLabel s
        AppArmorProfile s ExecIDs []s HostConfig *HostConfig GraphDriver GraphDriver SizeRw *i SizeRootFs *i
        Mounts []MountPoint Config *Config NetworkSettings *NetworkSettings""",
    "State": """Status s Running b Paused b Restarting b OOMKilled b Dead b Pid i ExitCode i Error s StartedAt s
        FinishedAt s Health *Health""",
    "Health": "Status s FailingStreak i Log []*HealthcheckResult",
    "HealthcheckResult": "Start t End t ExitCode i Output s",
    "GraphDriver": "Data {}s Name s",
    "MountPoint": "Type s Name s Source s Destination s Driver s Mode s RW b Propagation s",
    "HostConfig": """Binds []s ContainerIDFile s LogConfig LogConfig NetworkMode s PortBindings {}[]PortBinding
        RestartPolicy RestartPolicy AutoRemove b VolumeDriver s VolumesFrom []s ConsoleSize []i Annotations {}s
        CapAdd []s CapDrop []s CgroupnsMode s Dns []s DnsOptions []s DnsSearch []s ExtraHosts []s GroupAdd []s
        IpcMode s Cgroup s Links []s OomScoreAdj i PidMode s Privileged b PublishAllPorts b ReadonlyRootfs b
        SecurityOpt []s StorageOpt {}s Tmpfs {}s UTSMode s UsernsMode s ShmSize i Sysctls {}s Runtime s
        Isolation s CpuShares i Memory i NanoCpus i CgroupParent s BlkioWeight i
        BlkioWeightDevice []*WeightDevice BlkioDeviceReadBps []*ThrottleDevice
        BlkioDeviceWriteBps []*ThrottleDevice BlkioDeviceReadIOps []*ThrottleDevice
        BlkioDeviceWriteIOps []*ThrottleDevice CpuPeriod i CpuQuota i CpuRealtimePeriod i CpuRealtimeRuntime i
        CpusetCpus s CpusetMems s Devices []DeviceMapping DeviceCgroupRules []s DeviceRequests []DeviceRequest
        KernelMemory i KernelMemoryTCP i MemoryReservation i MemorySwap i MemorySwappiness *i OomKillDisable *b
        PidsLimit *i Ulimits []*Ulimit CpuCount i CpuPercent i IOMaximumIOps i IOMaximumBandwidth i
        Mounts []Mount MaskedPaths []s ReadonlyPaths []s Init *b""",
    "LogConfig": "Type s Config {}s",
    "PortBinding": "HostIp s HostPort s",
    "RestartPolicy": "Name s MaximumRetryCount i",
    "WeightDevice": "Path s Weight i",
    "ThrottleDevice": "Path s Rate i",
    "DeviceMapping": "PathOnHost s PathInContainer s CgroupPermissions s",
    "DeviceRequest": "Driver s Count i DeviceIDs []s Capabilities [][]s Options {}s",
    "Ulimit": "Name s Hard i Soft i",
    "Mount": """Type s Source s Target s ReadOnly b Consistency s BindOptions *BindOptions
        VolumeOptions *VolumeOptions TmpfsOptions *TmpfsOptions""",
    "BindOptions": "Propagation s NonRecursive b CreateMountpoint b ReadOnlyNonRecursive b ReadOnlyForceRecursive b",
    "VolumeOptions": "NoCopy b Labels {}s Subpath s DriverConfig *DriverConfig",
    "DriverConfig": "Name s Options {}s",
    "TmpfsOptions": "SizeBytes i Mode i Options [][]s",
    "Config": """Hostname s Domainname s User s AttachStdin b AttachStdout b AttachStderr b ExposedPorts {}P
        Tty b OpenStdin b StdinOnce b Env []s Cmd []s Healthcheck *HealthConfig ArgsEscaped b Image s
        Volumes {}a WorkingDir s Entrypoint []s NetworkDisabled b MacAddress s OnBuild []s Labels {}s
        StopSignal s StopTimeout *i Shell []s""",
    # Without what is empty, also in JSON: see `dressed`.
    "ImageConfig": """User s ExposedPorts {}a Env []s Entrypoint []s Cmd []s Volumes {}a WorkingDir s Labels {}s
        StopSignal s ArgsEscaped b Healthcheck *HealthConfig OnBuild []s Shell []s""",
    "HealthConfig": "Test []s Interval d Timeout d StartPeriod d StartInterval d Retries i",
    "NetworkSettings": """Bridge s SandboxID s SandboxKey s Ports {}[]PortBinding HairpinMode b
        LinkLocalIPv6Address s LinkLocalIPv6PrefixLen i SecondaryIPAddresses []Address
        SecondaryIPv6Addresses []Address EndpointID s Gateway s GlobalIPv6Address s GlobalIPv6PrefixLen i
        IPAddress s IPPrefixLen i IPv6Gateway s MacAddress s Networks {}*Endpoint""",
    "Address": "Addr s PrefixLen i",
    "Endpoint": """IPAMConfig *EndpointIPAM Links []s Aliases []s MacAddress s DriverOpts {}s GwPriority i
        NetworkID s EndpointID s Gateway s IPAddress s IPPrefixLen i IPv6Gateway s GlobalIPv6Address s
        GlobalIPv6PrefixLen i DNSNames []s""",
    "EndpointIPAM": "IPv4Address s IPv6Address s LinkLocalIPs []s",
    "image": """Id s RepoTags []s RepoDigests []s Parent s Comment s Created s DockerVersion s Author s
        Config *ImageConfig Architecture s Variant s Os s OsVersion s Size i VirtualSize i GraphDriver GraphDriver
        RootFS RootFS Metadata Metadata""",
    "RootFS": "Type s Layers []s",
    "Metadata": "LastTagTime t",
    "network": """Name s Id s Created t Scope s Driver s EnableIPv4 b EnableIPv6 b IPAM IPAM Internal b
        Attachable b Ingress b ConfigFrom ConfigFrom ConfigOnly b Containers {}NetworkContainer Options {}s
        Labels {}s Peers []Peer Services {}a""",
    "IPAM": "Driver s Options {}s Config []IPAMConfig",
    "IPAMConfig": "Subnet s IPRange s Gateway s AuxiliaryAddresses {}s",
    "ConfigFrom": "Network s",
    "NetworkContainer": "Name s EndpointID s MacAddress s IPv4Address s IPv6Address s",
    "Peer": "Name s IP s",
    "volume": """ClusterVolume *ClusterVolume CreatedAt s Driver s Labels {}s Mountpoint s Name s Options {}s
        Scope s Status {}a UsageData *UsageData""",
    "ClusterVolume": "ID s",
    "UsageData": "RefCount i Size i",
    "context": "Name s Metadata {}a Endpoints {}{}a TLSMaterial {}[]s Storage ContextStorage",
    "ContextStorage": "MetadataPath s TLSPath s",
}

_ZERO: dict[str, Any] = {"s": "", "b": False, "i": 0, "a": None, "P": None}


class Struct(dict[str, "Any"]):
    """A structure: it is true, and has no other fields than these."""

    def __init__(self, name: str, raw: Any) -> None:
        super().__init__()
        self.name = name
        self.raw = raw

    def __bool__(self) -> bool:
        return True

    def shown(self, show: Any) -> str:
        return "{" + " ".join(show(value, True) for value in self.values()) + "}"

    def unknown(self, field: str) -> Any:
        raise TemplateError(f"can't evaluate field {field} in type {self.name}")


class Map(dict[str, "Any"]):
    """A map: what is not in it has no value, which is no error; the function `index` has the type's zero value then."""

    raw: Any = None
    zero: Any = None

    def shown(self, show: Any) -> str:
        return "map[" + " ".join(f"{key}:{show(value, True)}" for key, value in sorted(self.items())) + "]"


class PortMap(Map):
    """Its keys are of a type of their own, so that Go's `index` takes no text for one."""

    key = "nat.Port"


class Slice(list["Any"]):
    raw: Any = None


class Duration(int):
    """Nanoseconds; Go prints 1m30s."""

    def shown(self, show: Any) -> str:
        if not self:
            return "0s"
        number = abs(self)
        sign = "-" if self < 0 else ""
        if number < 1_000_000_000:
            for unit, size in (("ms", 1_000_000), ("µs", 1_000), ("ns", 1)):
                if number >= size:
                    return f"{sign}{_decimal(number, size)}{unit}"
        hours, rest = divmod(number, 3_600_000_000_000)
        minutes, rest = divmod(rest, 60_000_000_000)
        text = f"{hours}h" if hours else ""
        text += f"{minutes}m" if hours or minutes else ""
        return f"{sign}{text}{_decimal(rest, 1_000_000_000)}s"


def _decimal(number: int, size: int) -> str:
    whole, rest = divmod(number, size)
    return f"{whole}.{rest * 1_000_000_000 // size:09}".rstrip("0").rstrip(".") if rest else str(whole)


class Time(str):
    """A moment as in JSON; Go prints 2024-05-01 12:00:00.5 +0000 UTC."""

    def shown(self, show: Any) -> str:
        text = str.__str__(self)
        date, mark, clock = text.partition("T")
        if not mark:
            return text
        if clock.endswith("Z"):
            return f"{date} {_short(clock[:-1])} +0000 UTC"
        zone = clock[-6:].replace(":", "")
        return f"{date} {_short(clock[:-6])} {zone} {zone}"


def _short(clock: str) -> str:
    return clock.rstrip("0").rstrip(".") if "." in clock else clock


def dressed(value: Any, kind: str) -> Any:
    """JSON with the type `kind`; what has another type is left as it is."""
    if kind in _ZERO:
        return _ZERO[kind] if value is None else value
    if kind == "d":
        return Duration(value or 0) if value is None or isinstance(value, int) else value
    if kind == "t":
        return Time(value or "0001-01-01T00:00:00Z") if value is None or isinstance(value, str) else value
    if kind.startswith("*"):
        return Nil(kind) if value is None else dressed(value, kind[1:])
    if kind.startswith("[]"):
        if value is not None and not isinstance(value, list):
            return value
        items = Slice(dressed(item, kind[2:]) for item in value or ())
        items.raw = value
        return items
    if kind.startswith("{}"):
        if value is not None and not isinstance(value, dict):
            return value
        form = PortMap if kind in ("{}[]PortBinding", "{}P") else Map
        entries = form((key, dressed(item, kind[2:])) for key, item in (value or {}).items())
        entries.raw = value
        entries.zero = dressed(None, kind[2:])
        return entries
    if value is not None and not isinstance(value, dict):
        return value
    structure = Struct(kind, value)
    words = STRUCTURES[kind].split()
    for name, field in zip(words[::2], words[1::2], strict=True):
        structure[name] = dressed((value or {}).get(name), field)
    if kind == "ImageConfig" and value:
        structure.raw = {name: value[name] for name in structure if value.get(name)}
    return structure
