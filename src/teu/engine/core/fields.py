# SPDX-License-Identifier: Apache-2.0
"""What clients may say: every field of the bodies, and every parameter of the addresses, of Docker's API for
containers, exec, networks, volumes, images and the system, with its type and what becomes of it.

    used         it does what the API says
    refused      it cannot be had here: whoever asks for it is told so, with a status and what to do instead
    meaningless  the real daemon does nothing with it on Linux either (a client's own affair, or Windows')

This is the one table of them: routes read bodies with it (`Request.decode`), the server checks parameters with it, and
tests/system/test_engine_fields.py sends each of them and sees that it is so. A field that is not here is dropped, as
Go's decoder drops what it does not know; so one that Docker has belongs here, whatever becomes of it.

Most of the table are records (kinds.py, which says how they are read): a field is a member of one, by the API's name,
and an attribute by ours. What is None was not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from teu.engine.core.kinds import (
    ERRORS,
    FLAG,
    INT64,
    LABELS,
    MAYBE_FLAG,
    MEANINGLESS,
    NOTHING,
    OPTIONS,
    PRESENCE,
    REFUSED,
    SET,
    SIZE,
    TEXT,
    UINT16,
    UINT32,
    UINT64,
    USED,
    WORD,
    WORD_LIST,
    WORD_MAP,
    WORDS,
    ListOf,
    MapOf,
    Object,
    PointerTo,
    Record,
    RecordOf,
    meaningless,
    member,
    refused,
)

# ---- containers --------------------------------------------------------------------------------------------


class HealthCheck(Record):
    """Config.Healthcheck. Lengths of time in nanoseconds; 0 and None are the default (lifecycle/health.py)."""

    test: list[str] | None = member("Test", WORD_LIST)
    interval: int | None = member("Interval", INT64)
    timeout: int | None = member("Timeout", INT64)
    start_period: int | None = member("StartPeriod", INT64)
    start_interval: int | None = member("StartInterval", INT64)
    retries: int | None = member("Retries", INT64)


HEALTH = RecordOf(HealthCheck, empty=False)


class Config(Record):
    """What a container has of its image, as far as the client says nothing else."""

    hostname: str = member("Hostname", WORD, "")
    domainname: str = member("Domainname", WORD, "")
    user: str = member("User", WORD, "")
    attach_stdin: bool = member("AttachStdin", FLAG, False)
    attach_stdout: bool = member("AttachStdout", FLAG, False)
    attach_stderr: bool = member("AttachStderr", FLAG, False)
    exposed_ports: dict[str, object] | None = member("ExposedPorts", SET)
    tty: bool = member("Tty", FLAG, False)
    open_stdin: bool = member("OpenStdin", FLAG, False)
    stdin_once: bool = member("StdinOnce", FLAG, False)
    env: list[str] | None = member("Env", WORD_LIST)
    cmd: list[str] | None = member("Cmd", WORDS)
    healthcheck: HealthCheck | None = member("Healthcheck", HEALTH)
    args_escaped: bool | None = member("ArgsEscaped", meaningless(FLAG))  # Windows
    image: str = member("Image", WORD, "")
    volumes: dict[str, object] | None = member("Volumes", SET)
    working_dir: str = member("WorkingDir", WORD, "")
    entrypoint: list[str] | None = member("Entrypoint", WORDS)
    network_disabled: bool | None = member("NetworkDisabled", FLAG)
    mac_address: str | None = member("MacAddress", WORD)
    on_build: list[str] | None = member("OnBuild", ListOf(TEXT))  # for the image that a commit makes
    labels: dict[str, str] = member("Labels", LABELS, {})
    stop_signal: str | None = member("StopSignal", WORD)
    stop_timeout: int | None = member("StopTimeout", INT64)
    shell: list[str] | None = member("Shell", WORDS)

    @property
    def exposed(self) -> dict[str, object]:
        """ExposedPorts for who reads them: a client that gives none is told of none, and exposes an empty set."""
        return self.exposed_ports or {}


# Docker shows some members as null where they are not given, and others not at all: views/containers.py says which.
CONFIG = RecordOf(Config, nulls=True)


class Device(Record):
    path_on_host: str | None = member("PathOnHost", WORD)
    path_in_container: str | None = member("PathInContainer", WORD)
    cgroup_permissions: str | None = member("CgroupPermissions", WORD)


class DeviceRequest(Record):
    driver: str | None = member("Driver", TEXT)
    count: int | None = member("Count", INT64)
    device_ids: list[str] | None = member("DeviceIDs", ListOf(TEXT))
    capabilities: list[list[str] | None] | None = member("Capabilities", ListOf(ListOf(TEXT)))
    options: dict[str, str] | None = member("Options", MapOf(TEXT))


class Ulimit(Record):
    name: str | None = member("Name", WORD)
    soft: int | None = member("Soft", INT64)
    hard: int | None = member("Hard", INT64)


class WeightDevice(Record):
    path: str | None = member("Path", WORD)
    weight: int | None = member("Weight", UINT16)


class ThrottleDevice(Record):
    path: str | None = member("Path", WORD)
    rate: int | None = member("Rate", UINT64)  # bytes, or operations, in a second


DEVICE_REQUEST = RecordOf(DeviceRequest)
WEIGHT = ListOf(RecordOf(WeightDevice))
RATE = ListOf(RecordOf(ThrottleDevice))
_NO_REALTIME = "there is no real-time scheduling of cgroups with cgroup v2; use CpuShares or CpuQuota"


class Resources(Record):
    """What `update` can change of a HostConfig. Sizes in bytes."""

    cpu_shares: int = member("CpuShares", INT64, 0)
    memory: int = member("Memory", INT64, 0)
    nano_cpus: int = member("NanoCpus", INT64, 0)  # billionths of a CPU
    cgroup_parent: str = member("CgroupParent", WORD, "")
    blkio_weight: int = member("BlkioWeight", UINT16, 0)
    blkio_weight_device: list[WeightDevice] | None = member("BlkioWeightDevice", WEIGHT)
    blkio_device_read_bps: list[ThrottleDevice] | None = member("BlkioDeviceReadBps", RATE)
    blkio_device_write_bps: list[ThrottleDevice] | None = member("BlkioDeviceWriteBps", RATE)
    blkio_device_read_iops: list[ThrottleDevice] | None = member("BlkioDeviceReadIOps", RATE)
    blkio_device_write_iops: list[ThrottleDevice] | None = member("BlkioDeviceWriteIOps", RATE)
    cpu_period: int = member("CpuPeriod", INT64, 0)  # microseconds, as is the quota
    cpu_quota: int = member("CpuQuota", INT64, 0)
    cpu_realtime_period: int = member("CpuRealtimePeriod", refused(INT64, _NO_REALTIME), 0)
    cpu_realtime_runtime: int = member("CpuRealtimeRuntime", refused(INT64, _NO_REALTIME), 0)
    cpuset_cpus: str = member("CpusetCpus", WORD, "")
    cpuset_mems: str = member("CpusetMems", WORD, "")
    devices: list[Device] | None = member("Devices", ListOf(RecordOf(Device)))
    device_cgroup_rules: list[str] | None = member("DeviceCgroupRules", WORD_LIST)
    # Refused in hostconfig, in the words that say which device.
    device_requests: list[DeviceRequest] | None = member("DeviceRequests", ListOf(DEVICE_REQUEST))
    kernel_memory: int | None = member("KernelMemory", meaningless(INT64))  # not since API 1.42
    kernel_memory_tcp: int | None = member("KernelMemoryTCP", meaningless(INT64))  # cgroup v1
    memory_reservation: int = member("MemoryReservation", INT64, 0)
    memory_swap: int = member("MemorySwap", INT64, 0)
    # cgroup v1: discarded with a warning, as is OomKillDisable
    memory_swappiness: int | None = member("MemorySwappiness", INT64)
    oom_kill_disable: bool | None = member("OomKillDisable", FLAG)
    pids_limit: int | None = member("PidsLimit", INT64)
    ulimits: list[Ulimit] | None = member("Ulimits", ListOf(RecordOf(Ulimit)))
    cpu_count: int = member("CpuCount", meaningless(INT64), 0)  # these four are Windows'
    cpu_percent: int = member("CpuPercent", meaningless(INT64), 0)
    io_maximum_iops: int = member(
        "IOMaximumIOps",
        refused(UINT64, "this is a limit of Windows; use BlkioDeviceReadIOps and BlkioDeviceWriteIOps"),
        0,
    )
    io_maximum_bandwidth: int = member(
        "IOMaximumBandwidth",
        refused(UINT64, "this is a limit of Windows; use BlkioDeviceReadBps and BlkioDeviceWriteBps"),
        0,
    )


RESOURCES = RecordOf(Resources)


class BindOptions(Record):
    propagation: str | None = member("Propagation", WORD)
    non_recursive: bool | None = member("NonRecursive", FLAG)
    create_mountpoint: bool | None = member("CreateMountpoint", FLAG)
    read_only_non_recursive: bool | None = member("ReadOnlyNonRecursive", FLAG)
    read_only_force_recursive: bool | None = member("ReadOnlyForceRecursive", FLAG)


class DriverConfig(Record):
    name: str | None = member("Name", WORD)
    options: dict[str, str] | None = member("Options", OPTIONS)


class VolumeOptions(Record):
    no_copy: bool | None = member("NoCopy", FLAG)
    labels: dict[str, str] | None = member("Labels", LABELS)
    driver_config: DriverConfig | None = member("DriverConfig", RecordOf(DriverConfig, empty=False))
    subpath: str | None = member("Subpath", WORD)


class TmpfsOptions(Record):
    size_bytes: int | None = member("SizeBytes", INT64)
    mode: int | None = member("Mode", UINT32)
    options: list[list[str] | None] | None = member("Options", ListOf(WORD_LIST))


class ImageOptions(Record):
    subpath: str | None = member("Subpath", WORD)


class Mount(Record):
    """One of HostConfig.Mounts: what is asked for. What becomes of it is a MountPoint (containers/state.py)."""

    type: str | None = member("Type", WORD)
    source: str | None = member("Source", WORD)
    target: str | None = member("Target", WORD)
    read_only: bool | None = member("ReadOnly", FLAG)
    consistency: str | None = member("Consistency", meaningless(TEXT))  # macOS
    bind_options: BindOptions | None = member("BindOptions", RecordOf(BindOptions, empty=False))
    volume_options: VolumeOptions | None = member("VolumeOptions", RecordOf(VolumeOptions, empty=False))
    tmpfs_options: TmpfsOptions | None = member("TmpfsOptions", RecordOf(TmpfsOptions, empty=False))
    image_options: ImageOptions | None = member("ImageOptions", RecordOf(ImageOptions, empty=False))
    # Of a type of mount that is refused, swarm's.
    cluster_options: dict[str, object] | None = member("ClusterOptions", NOTHING)


MOUNT = RecordOf(Mount, empty=False)


class LogConfig(Record):
    type: str = member("Type", TEXT, "")
    config: dict[str, str] = member("Config", LABELS, {})


class RestartPolicy(Record):
    name: str = member("Name", TEXT, "")
    maximum_retry_count: int = member("MaximumRetryCount", INT64, 0)


class PortBinding(Record):
    host_ip: str | None = member("HostIp", WORD)
    host_port: str | None = member("HostPort", WORD)


RESTART_POLICY = RecordOf(RestartPolicy)


class HostConfig(Resources):
    """What a container has of this machine."""

    binds: list[str] | None = member("Binds", WORD_LIST)
    container_id_file: str = member("ContainerIDFile", meaningless(TEXT), "")  # the client writes it
    log_config: LogConfig = member("LogConfig", RecordOf(LogConfig), LogConfig())
    network_mode: str = member("NetworkMode", WORD, "default")
    port_bindings: dict[str, list[PortBinding] | None] | None = member(
        "PortBindings", MapOf(ListOf(RecordOf(PortBinding)), in_order=True)
    )
    restart_policy: RestartPolicy = member("RestartPolicy", RESTART_POLICY, RestartPolicy())
    auto_remove: bool = member("AutoRemove", FLAG, False)
    volume_driver: str = member("VolumeDriver", WORD, "")
    volumes_from: list[str] | None = member("VolumesFrom", WORD_LIST)
    console_size: list[int] = member("ConsoleSize", SIZE, [0, 0])  # height and width
    annotations: dict[str, str] | None = member("Annotations", WORD_MAP)
    cap_add: list[str] | None = member("CapAdd", WORDS)
    cap_drop: list[str] | None = member("CapDrop", WORDS)
    cgroupns_mode: str = member("CgroupnsMode", WORD, "")
    dns: list[str] | None = member("Dns", WORD_LIST)
    dns_options: list[str] | None = member("DnsOptions", WORD_LIST)
    dns_search: list[str] | None = member("DnsSearch", WORD_LIST)
    extra_hosts: list[str] | None = member("ExtraHosts", WORD_LIST)
    group_add: list[str] | None = member("GroupAdd", WORD_LIST)
    ipc_mode: str = member("IpcMode", WORD, "")
    cgroup: str = member(
        "Cgroup", refused(TEXT, "a container cannot use another's cgroup; put both below one CgroupParent"), ""
    )
    links: list[str] | None = member("Links", WORD_LIST)
    oom_score_adj: int = member("OomScoreAdj", INT64, 0)
    pid_mode: str = member("PidMode", WORD, "")
    privileged: bool = member("Privileged", FLAG, False)
    publish_all_ports: bool = member("PublishAllPorts", FLAG, False)
    readonly_rootfs: bool = member("ReadonlyRootfs", FLAG, False)
    security_opt: list[str] | None = member("SecurityOpt", WORD_LIST)
    storage_opt: dict[str, str] | None = member("StorageOpt", WORD_MAP)
    tmpfs: dict[str, str] | None = member("Tmpfs", WORD_MAP)
    uts_mode: str = member("UTSMode", WORD, "")
    userns_mode: str = member(
        "UsernsMode",
        refused(WORD, "containers have no user namespace of their own; use host, or leave it out", 400, ("host",)),
        "",
    )
    shm_size: int = member("ShmSize", INT64, 0)
    sysctls: dict[str, str] | None = member("Sysctls", WORD_MAP)
    runtime: str = member("Runtime", WORD, "")
    isolation: str = member(
        "Isolation",
        refused(
            TEXT, "Linux has one technology to isolate containers; use default, or leave it out", 400, ("default",)
        ),
        "",
    )
    mounts: list[Mount] | None = member("Mounts", ListOf(MOUNT))
    masked_paths: list[str] | None = member("MaskedPaths", WORD_LIST)
    readonly_paths: list[str] | None = member("ReadonlyPaths", WORD_LIST)
    init: bool | None = member("Init", FLAG)

    @property
    def published(self) -> dict[str, list[PortBinding] | None]:
        """PortBindings for who reads them: null, as inspect tells it where a client has given none, publishes none."""
        return self.port_bindings or {}


HOST_CONFIG = RecordOf(HostConfig, nulls=True)


class EndpointAddresses(Record):
    """EndpointSettings.IPAMConfig."""

    ipv4: str = member("IPv4Address", WORD, "")
    ipv6: str = member("IPv6Address", WORD, "")
    link_local: list[str] = member("LinkLocalIPs", WORD_LIST, [])


class EndpointAsked(Record):
    """EndpointSettings: what is wanted of a network for a container."""

    addresses: EndpointAddresses | None = member("IPAMConfig", RecordOf(EndpointAddresses, empty=False))
    links: list[str] = member("Links", WORD_LIST, [])
    aliases: list[str] = member("Aliases", WORD_LIST, [])
    mac: str = member("MacAddress", WORD, "")
    driver_opts: dict[str, str] = member("DriverOpts", MapOf(WORD), {})
    gateway_priority: int = member("GwPriority", INT64, 0)
    # What the engine says of an endpoint, and clients send back as they have read it.
    network_id: str | None = member("NetworkID", meaningless(TEXT))
    endpoint_id: str | None = member("EndpointID", meaningless(TEXT))
    gateway: str | None = member("Gateway", meaningless(TEXT))
    address: str | None = member("IPAddress", meaningless(TEXT))
    prefix: int | None = member("IPPrefixLen", meaningless(INT64))
    ipv6_gateway: str | None = member("IPv6Gateway", meaningless(TEXT))
    ipv6_address: str | None = member("GlobalIPv6Address", meaningless(TEXT))
    ipv6_prefix: int | None = member("GlobalIPv6PrefixLen", meaningless(INT64))
    dns_names: list[str] | None = member("DNSNames", meaningless(ListOf(TEXT)))


ENDPOINT = RecordOf(EndpointAsked)


class Networking(Record):
    """NetworkingConfig. `endpoints` by the networks' names or ids."""

    endpoints: dict[str, EndpointAsked | None] = member("EndpointsConfig", MapOf(PointerTo(ENDPOINT)), {})


NETWORKING = RecordOf(Networking)


class Creation(Config):
    """The body of `create`."""

    host_config: HostConfig | None = member("HostConfig", HOST_CONFIG)
    networking_config: Networking | None = member("NetworkingConfig", NETWORKING)
    runtime: str | None = member("Runtime", WORD)  # where docker-py's low-level client puts it


CONTAINER = RecordOf(Creation)

_FOR_GOOD = "it is settled when a container is created and cannot be updated; create it anew"
# Read as what is given, and no more: that alone is changed.
UPDATE = Object(
    {
        **RESOURCES.fields,
        **{
            name: refused(RESOURCES.fields[name].kind, _FOR_GOOD)
            for name in ("CgroupParent", "Devices", "DeviceCgroupRules", "DeviceRequests", "Ulimits")
        },
        "RestartPolicy": RESTART_POLICY,
    }
)

# Docker has no such request (lifecycle/change.py). Read as what is given, which replaces what was.
CHANGE = Object(
    {
        "Binds": WORD_LIST,
        "Env": WORD_LIST,
        "Healthcheck": HEALTH,
        "Mounts": ListOf(MOUNT),
        "PortBindings": MapOf(ListOf(RecordOf(PortBinding)), in_order=True),
    }
)


class ExecConfig(Record):
    user: str | None = member("User", WORD)
    privileged: bool | None = member("Privileged", FLAG)
    tty: bool | None = member("Tty", FLAG)
    console_size: list[int] | None = member("ConsoleSize", SIZE)  # height and width
    attach_stdin: bool | None = member("AttachStdin", FLAG)
    attach_stdout: bool | None = member("AttachStdout", FLAG)
    attach_stderr: bool | None = member("AttachStderr", FLAG)
    detach: bool | None = member("Detach", meaningless(FLAG))  # it is the start that may be detached
    detach_keys: str | None = member("DetachKeys", WORD)
    env: list[str] | None = member("Env", WORD_LIST)
    working_dir: str | None = member("WorkingDir", WORD)
    cmd: list[str] | None = member("Cmd", WORD_LIST)


class ExecStart(Record):
    detach: bool | None = member("Detach", FLAG)
    tty: bool | None = member("Tty", FLAG)
    console_size: list[int] | None = member("ConsoleSize", SIZE)


EXEC, EXEC_START = RecordOf(ExecConfig), RecordOf(ExecStart)

# ---- networks, volumes, the system -------------------------------------------------------------------------


class SubnetAsked(Record):
    """One IPAM.Config."""

    subnet: str = member("Subnet", WORD, "")
    range: str = member("IPRange", WORD, "")
    gateway: str = member("Gateway", WORD, "")
    others: dict[str, str] = member("AuxiliaryAddresses", MapOf(WORD), {})


class IpamAsked(Record):
    driver: str = member("Driver", WORD, "")
    options: dict[str, str] | None = member("Options", OPTIONS)
    subnets: list[SubnetAsked] = member("Config", ListOf(RecordOf(SubnetAsked)), [])


class ConfigFrom(Record):
    network: str = member("Network", WORD, "")


class NetworkAsked(Record):
    """Which drivers, scopes and options there are is said where networks are made (networks/requests.py)."""

    name: str = member("Name", WORD, "")
    check_duplicate: bool | None = member("CheckDuplicate", meaningless(FLAG))  # names are unique, whoever asks
    driver: str = member("Driver", WORD, "")
    scope: str = member("Scope", WORD, "")
    ipv4: bool | None = member("EnableIPv4", MAYBE_FLAG)
    ipv6: bool | None = member("EnableIPv6", MAYBE_FLAG)
    ipam: IpamAsked = member("IPAM", RecordOf(IpamAsked), IpamAsked())
    internal: bool = member("Internal", FLAG, False)
    attachable: bool = member("Attachable", meaningless(FLAG), False)  # of swarm
    ingress: bool = member("Ingress", FLAG, False)
    config_only: bool = member("ConfigOnly", FLAG, False)
    config_from: ConfigFrom = member("ConfigFrom", RecordOf(ConfigFrom), ConfigFrom())
    options: dict[str, str] = member("Options", OPTIONS, {})
    labels: dict[str, str] = member("Labels", LABELS, {})


class Connection(Record):
    container: str = member("Container", WORD, "")
    endpoint: EndpointAsked = member("EndpointConfig", ENDPOINT, EndpointAsked())


class Disconnection(Record):
    container: str = member("Container", WORD, "")
    force: bool = member("Force", FLAG, False)


class VolumeAsked(Record):
    name: str = member("Name", WORD, "")
    driver: str = member("Driver", WORD, "")
    options: dict[str, str] | None = member("DriverOpts", OPTIONS)
    labels: dict[str, str] | None = member("Labels", LABELS)
    cluster: bool | None = member(
        "ClusterVolumeSpec",
        refused(PRESENCE, "this machine is in no swarm; leave it out for a volume of the machine's own", 503),
    )


class Login(Record):
    """AuthConfig. `server`: a host, or a URL as docker.io's is (https://index.docker.io/v1/)."""

    user: str = member("username", TEXT, "")
    password: str = member("password", TEXT, "")
    auth: str | None = member("auth", meaningless(TEXT))
    email: str | None = member("email", meaningless(TEXT))
    server: str = member("serveraddress", TEXT, "")
    identity_token: str = member("identitytoken", TEXT, "")
    registry_token: str = member("registrytoken", TEXT, "")


NETWORK, CONNECT, DISCONNECT = RecordOf(NetworkAsked), RecordOf(Connection), RecordOf(Disconnection)
VOLUME, LOGIN = RecordOf(VolumeAsked), RecordOf(Login)


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
_ATTACH = {"detachKeys": _TEXT, **dict.fromkeys(("logs", "stream", "stdin", "stdout", "stderr"), _FLAG)}
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
    ("POST", "/containers/{name}/attach"): _ATTACH,
    ("GET", "/containers/{name}/attach/ws"): _ATTACH,
    ("POST", "/containers/{name}/wait"): {"condition": _TEXT},
    ("DELETE", "/containers/{name:path}"): {"v": _FLAG, "force": _FLAG, "link": _FLAG},
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
        "filter": _TEXT,
        "shared-size": _FLAG,
        "digests": Parameter("flag", MEANINGLESS),  # they are told in any case, as by the real daemon
        "manifests": _FLAG,
        "identity": _FLAG,
    },
    ("GET", "/images/search"): {"term": _TEXT, "limit": _NUMBER, "filters": _FILTERS},
    ("POST", "/images/create"): {
        "fromImage": _TEXT,
        "fromSrc": _TEXT,
        "repo": _TEXT,
        "tag": _TEXT,
        "message": _TEXT,
        "changes": _TEXT,
        "platform": _TEXT,
    },
    ("GET", "/images/{name:path}/json"): {"platform": _TEXT, "manifests": _FLAG},
    ("GET", "/images/{name:path}/attestations"): {"platform": _TEXT, "type": _TEXT, "statement": _FLAG},
    ("GET", "/images/{name:path}/history"): {"platform": _TEXT},
    ("GET", "/images/{name:path}/get"): {"platform": _TEXT},
    ("GET", "/images/get"): {"names": _TEXT, "platform": _TEXT},
    ("POST", "/images/load"): {"quiet": _FLAG, "platform": _TEXT},
    ("POST", "/images/prune"): {"filters": _FILTERS},
    ("POST", "/images/{name:path}/tag"): {"repo": _TEXT, "tag": _TEXT},
    ("POST", "/images/{name:path}/push"): {"tag": _TEXT, "platform": _TEXT},
    ("DELETE", "/images/{name:path}"): {"force": _FLAG, "noprune": _FLAG, "platforms": _TEXT},
    ("GET", "/networks"): {"filters": _FILTERS},
    ("GET", "/networks/{name}"): {"verbose": _IDLE, "scope": _TEXT},  # verbose: of swarm
    ("POST", "/networks/prune"): {"filters": _FILTERS},
    ("GET", "/volumes"): {"filters": _FILTERS},
    ("POST", "/volumes/prune"): {"filters": _FILTERS},
    ("DELETE", "/volumes/{name}"): {"force": _FLAG},
    ("POST", "/volumes/{name}/rename"): {"name": _TEXT},
    ("GET", "/plugins"): {"filters": _FILTERS},
    ("GET", "/plugins/privileges"): {"remote": _TEXT},
    ("POST", "/plugins/pull"): {"remote": _TEXT, "name": _TEXT},
    ("POST", "/plugins/create"): {"name": _TEXT},
    ("DELETE", "/plugins/{name:path}"): {"force": _FLAG},
    ("POST", "/plugins/{name:path}/enable"): {"timeout": _NUMBER},
    ("POST", "/plugins/{name:path}/disable"): {"force": _FLAG},
    ("POST", "/plugins/{name:path}/upgrade"): {"remote": _TEXT},
    ("GET", "/events"): {"since": _MOMENT, "until": _MOMENT, "filters": _FILTERS},
    ("GET", "/system/df"): {"type": _TEXT, "verbose": _FLAG},
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
            raise ERRORS[parameter.status](f"{name}: {parameter.says}")


FALSE = ("", "0", "no", "false", "none")
