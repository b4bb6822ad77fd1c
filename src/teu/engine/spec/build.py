# SPDX-License-Identifier: Apache-2.0
"""From Config and HostConfig to the OCI runtime specification that containerd gets. Called by start.

The defaults (capabilities, masked paths, mounts, devices) are docker's, because images rely on them.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teu.engine.containers import hostconfig, proc
from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.spec import apparmor, mounts, users
from teu.linux import selinux
from teu.linux.mounts import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount
from teu.linux.trees import is_mount_root, walk
from teu.oci import jsontext
from teu.oci.seccomp import ARCHITECTURES, default_profile

if TYPE_CHECKING:
    import contextlib

    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine
    from teu.engine.networks.model import Attachment

OCI_VERSION = "1.1.0"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
)
_DEFAULT_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
    "SYS_CHROOT KILL AUDIT_WRITE"
)
CAPABILITIES = _CAPABILITIES.split()  # in the order of their numbers
DEFAULT_CAPABILITIES = _DEFAULT_CAPABILITIES.split()

MASKED_PATHS = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

# type, major, minor of null, zero, full, random, urandom, tty, console
DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1))
INIT_PATHS = ("/usr/libexec/docker/docker-init", "/usr/bin/docker-init", "/usr/bin/tini-static")
NAME_ANNOTATION = "io.teu.name"
# How whoever stops the container's unit, the host's shutdown above all, is to stop the container.
STOP_SIGNAL_ANNOTATION = "org.opencontainers.image.stopSignal"
STOP_TIMEOUT_ANNOTATION = "io.teu.stop-timeout"


@functools.cache
def capability_limit() -> list[str]:
    """What the kernel knows and this machine allows: PID 1's bounding set, since ours may be sandboxed."""
    bounding = (1 << len(CAPABILITIES)) - 1
    try:
        match = re.search(r"^CapBnd:\s*([0-9a-f]+)", Path("/proc/1/status").read_text(), re.MULTILINE)
        if match:
            bounding = int(match[1], 16)
    except OSError:
        pass
    return [f"CAP_{name}" for number, name in enumerate(CAPABILITIES) if bounding >> number & 1]


def _default_names() -> list[str]:
    return [f"CAP_{name}" for name in DEFAULT_CAPABILITIES]


def capabilities(host: dict[str, Any]) -> list[str]:
    known = capability_limit()

    def names(key: str) -> list[str]:
        result = []
        for word in host[key] or ():
            name = word.upper()
            if name == "ALL":
                result.append(name)
                continue
            name = name if name.startswith("CAP_") else f"CAP_{name}"
            if name not in known:
                raise BadRequest(f'invalid {key}: unknown capability: "{name}"')
            result.append(name)
        return result

    add, drop = names("CapAdd"), names("CapDrop")
    if host["Privileged"]:
        return known
    if "ALL" in drop:
        return known if "ALL" in add else [name for name in known if name in add]
    base = known if "ALL" in add else [name for name in _default_names() if name in known]
    result = [name for name in base if name not in drop]
    return result + [name for name in known if name in add and name not in result and name not in drop]


def security_options(host: dict[str, Any]) -> dict[str, Any]:
    """--security-opt, parsed: no_new_privileges, seccomp ("" default, "unconfined", or a profile), apparmor,
    writable-cgroups."""
    result: dict[str, Any] = {"no_new_privileges": False, "seccomp": "", "apparmor": None, "writable-cgroups": False}
    for option in host["SecurityOpt"] or ():
        if option in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
            result["no_new_privileges"] = True
            continue
        key, equals, value = option.partition("=")
        if not equals:
            key, equals, value = option.partition(":")
        if key == "no-new-privileges" and value == "false":
            continue
        if not equals or key not in ("seccomp", "apparmor", "label", "writable-cgroups"):
            raise BadRequest(f'invalid --security-opt 2: "{option}"')
        if key == "label":
            # Without SELinux a label is nothing to anybody; with it, "disable" is what happens anyway.
            if value != "disable" and selinux.enabled():
                raise BadRequest(f'--security-opt "{option}": containers get no SELinux labels; use label=disable')
            continue
        if key == "writable-cgroups":
            if value not in ("true", "false"):
                raise BadRequest(f'--security-opt "{option}": true or false is expected')
            if value == "true" and host["CgroupnsMode"] == "host":
                raise BadRequest("writable-cgroups needs a cgroup namespace of the container's own: --cgroupns private")
            result[key] = value == "true"
            continue
        if key == "seccomp" and value not in ("unconfined", "builtin", ""):
            try:
                value = _own_profile(jsontext.loads(value), capabilities(host))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise BadRequest(f"decoding seccomp profile failed: {error}") from None
        result[key] = "" if value == "builtin" else value
    return result


def _own_profile(profile: dict[str, Any], caps: list[str]) -> dict[str, Any]:
    """A profile in docker's format (archMap, includes, excludes) as the specification wants it."""
    machine = os.uname().machine
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    result: dict[str, Any] = {"defaultAction": profile["defaultAction"]}
    if profile.get("defaultErrnoRet") is not None:
        result["defaultErrnoRet"] = profile["defaultErrnoRet"]
    result["architectures"] = profile.get("architectures") or ARCHITECTURES.get(machine, [])
    rules = []
    for rule in profile.get("syscalls") or ():
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if includes.get("arches") and arch not in includes["arches"] or arch in (excludes.get("arches") or ()):
            continue
        if any(name not in caps for name in includes.get("caps") or ()):
            continue
        if any(name in caps for name in excludes.get("caps") or ()):
            continue
        names = rule.get("names") or [rule["name"]]
        kept = {"names": names, "action": rule["action"]}
        for key in ("args", "errnoRet"):
            if rule.get(key) is not None:
                kept[key] = rule[key]
        rules.append(kept)
    result["syscalls"] = rules
    return result


def check(engine: Engine, container: Container) -> None:
    """All that can be refused at create already."""
    host = container.host_config
    capabilities(host)
    security_options(host)
    for number, entry in enumerate(host["Devices"]):
        if not entry.get("PathOnHost"):
            raise BadRequest(f"HostConfig.Devices[{number}].PathOnHost must name a device of this machine")
        for key in ("PathOnHost", "PathInContainer"):
            if not entry.get(key, "/").startswith("/") and entry[key]:
                raise BadRequest(f"HostConfig.Devices[{number}].{key} must be an absolute path, not {entry[key]!r}")
        if entry.get("CgroupPermissions", "").strip("rwm"):
            raise BadRequest(
                f"HostConfig.Devices[{number}].CgroupPermissions must be of r, w and m,"
                f" not {entry['CgroupPermissions']!r}"
            )
    for rule in host["DeviceCgroupRules"] or ():
        _device_rule(rule)
    for key in ("PidMode", "IpcMode"):
        if host[key].startswith("container:"):
            engine.containers.get(host[key].partition(":")[2])
    for name in host["Sysctls"] or {}:
        if name.startswith("net.") and host["NetworkMode"] == "host":
            raise BadRequest(f"sysctl '{name}' not allowed in host network namespace")
        if not name.startswith(("net.", "kernel.", "fs.mqueue.")):
            raise BadRequest(f"sysctl '{name}' is not in a namespace of its own; it cannot be set per container")
    if host["Init"] and not init_path(engine):
        raise BadRequest("--init needs an init program: install tini-static, or set init-path in teud.yaml")


def init_path(engine: Engine) -> str:
    chosen = engine.config.get("init-path")
    if chosen:
        return str(chosen)
    return next((path for path in INIT_PATHS if os.access(path, os.X_OK)), "")


def _joined(engine: Engine, mode: str, what: str) -> Container:
    reference = mode.partition(":")[2]
    other = engine.containers.find(reference)
    if other is None:
        raise NotFound(f"No such container: {reference}")
    if not other.running:
        raise EngineError(f"failed to join {what} namespace: container {other.id} is not running")
    return other


def environment(container: Container, tty: bool, extra: list[str] | None = None) -> list[str]:
    """PATH, HOSTNAME and TERM, under what the configuration says; later entries win."""
    values = {"PATH": PATH, "HOSTNAME": container.hostname}
    if tty:
        values["TERM"] = "xterm"
    for entry in (container.config["Env"] or []) + (extra or []):
        name, equals, value = entry.partition("=")
        if equals:
            values[name] = value
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def build(
    engine: Engine, container: Container, attachment: Attachment, sources: contextlib.ExitStack
) -> dict[str, Any]:
    """The runtime specification of a container that is about to start. What its mounts are taken from is good until
    `sources` is closed."""
    config, host = container.config, container.host_config
    privileged = host["Privileged"]
    security = security_options(host)
    caps = capabilities(host)
    user = users.find(engine, container, config["User"], host["GroupAdd"])
    arguments = [container.path, *container.args]
    mount_list = _mounts(engine, container, attachment, privileged, sources)
    # An init has only a PID namespace of its own to look after.
    alone = host["PidMode"] != "host" and not host["PidMode"].startswith("container:")
    if alone and (host["Init"] or host["Init"] is None and engine.config.get("init")):
        program = init_path(engine)
        if program:
            arguments = ["/sbin/docker-init", "--", *arguments]
            mount_list.append(
                {
                    "destination": "/sbin/docker-init",
                    "type": "bind",
                    "source": program,
                    "options": ["bind", "ro"],
                }
            )
    environ = environment(container, config["Tty"])
    if user.home and not any(entry.startswith("HOME=") for entry in environ):
        environ.append(f"HOME={user.home}")
    process: dict[str, Any] = {
        "terminal": config["Tty"],
        "user": {"uid": user.uid, "gid": user.gid, "umask": 0o22},
        "args": arguments,
        "env": environ,
        "cwd": posixpath.normpath(config["WorkingDir"] or "/"),
        "capabilities": {
            "bounding": caps,
            "effective": caps if user.uid == 0 else [],
            "permitted": caps if user.uid == 0 else [],
        },
        "oomScoreAdj": host["OomScoreAdj"],
    }
    if user.groups:
        process["user"]["additionalGids"] = user.groups
    if config["Tty"] and any(host["ConsoleSize"]):
        height, width = host["ConsoleSize"]
        process["consoleSize"] = {"height": height, "width": width}
    if security["no_new_privileges"]:
        process["noNewPrivileges"] = True
    if host["Ulimits"]:
        process["rlimits"] = rlimits(host)
    container.apparmor_profile = _apparmor(engine, security, privileged)
    if container.apparmor_profile not in ("", "unconfined"):
        process["apparmorProfile"] = container.apparmor_profile
    linux: dict[str, Any] = {
        "namespaces": _namespaces(engine, container, attachment, sources),
        "resources": resources(host),
        "cgroupsPath": cgroups_path(engine, container),
        "maskedPaths": [],
        "readonlyPaths": [],
    }
    devices, allowed = _devices(host, privileged)
    if devices:
        linux["devices"] = devices
    linux["resources"]["devices"] = allowed
    if not privileged:
        linux["maskedPaths"] = MASKED_PATHS if host["MaskedPaths"] is None else host["MaskedPaths"]
        linux["readonlyPaths"] = READONLY_PATHS if host["ReadonlyPaths"] is None else host["ReadonlyPaths"]
        if security["seccomp"] != "unconfined":
            linux["seccomp"] = security["seccomp"] or default_profile(caps)
    elif isinstance(security["seccomp"], dict):
        linux["seccomp"] = security["seccomp"]
    propagation = mounts.root_propagation(mount_list)
    if propagation:
        linux["rootfsPropagation"] = propagation
    sysctls = dict(host["Sysctls"] or {})
    if attachment.namespace is not None and not host["NetworkMode"].startswith("container:"):
        sysctls.setdefault("net.ipv4.ip_unprivileged_port_start", "0")
        sysctls.setdefault("net.ipv4.ping_group_range", "0 2147483647")
    if sysctls:
        linux["sysctl"] = sysctls
    result: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": {"path": "rootfs", "readonly": host["ReadonlyRootfs"]},
        "mounts": mount_list,
        "linux": linux,
        "annotations": {**(host["Annotations"] or {}), **_annotations(container)},
    }
    if host["UTSMode"] != "host":
        result["hostname"] = container.hostname
        if config["Domainname"]:
            result["domainname"] = config["Domainname"]
    return result


def _annotations(container: Container) -> dict[str, str]:
    """For the shim."""
    result = {NAME_ANNOTATION: container.name}
    if container.config["StopSignal"]:
        result[STOP_SIGNAL_ANNOTATION] = str(hostconfig.signal_number(container.config["StopSignal"]))
    if container.config["StopTimeout"] is not None:
        result[STOP_TIMEOUT_ANNOTATION] = str(container.config["StopTimeout"])
    return result


def rlimits(host: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "type": f"RLIMIT_{limit['Name'].upper()}",
            "soft": _limit(limit.get("Soft", 0)),
            "hard": _limit(limit.get("Hard", 0)),
        }
        for limit in host["Ulimits"]
    ]


def _limit(value: int) -> int:
    return value if value >= 0 else (1 << 64) - 1


def cgroups_path(engine: Engine, container: Container) -> str:
    """slice:prefix:name: the shim (or a runtime with systemd's driver) makes a scope of it."""
    parent = container.host_config["CgroupParent"] or engine.config.get("cgroup-parent") or ""
    if systemd_cgroup(engine, container) or container.host_config["Runtime"] == "io.containerd.teu.v2":
        return f"{parent or 'teu.slice'}:teu:{container.id}"
    return posixpath.join(parent or "/teu", container.id)


def systemd_cgroup(engine: Engine, container: Container) -> bool:
    """Does a foreign shim's runtime have to ask systemd itself?"""
    return container.host_config["Runtime"] != "io.containerd.teu.v2" and os.path.isdir("/run/systemd/system")


def _namespace(other: Container, kind: str, sources: contextlib.ExitStack) -> str:
    """The path of another container's namespace, good until `sources` is closed."""
    try:
        descriptor = proc.namespace(other, kind)
    except ProcessLookupError:
        raise EngineError(f"failed to join {kind} namespace: container {other.id} is not running") from None
    sources.callback(os.close, descriptor)
    return proc.path_of(descriptor)


def _namespaces(
    engine: Engine, container: Container, attachment: Attachment, sources: contextlib.ExitStack
) -> list[dict[str, str]]:
    host = container.host_config
    result: list[dict[str, str]] = [{"type": "mount"}]
    if attachment.namespace is not None:
        network = {"type": "network"}
        if attachment.namespace:
            network["path"] = attachment.namespace
        result.append(network)
    if host["UTSMode"] != "host":
        result.append({"type": "uts"})
    if host["PidMode"].startswith("container:"):
        other = _joined(engine, host["PidMode"], "PID")
        result.append({"type": "pid", "path": _namespace(other, "pid", sources)})
    elif host["PidMode"] != "host":
        result.append({"type": "pid"})
    if host["IpcMode"].startswith("container:"):
        other = _joined(engine, host["IpcMode"], "IPC")
        if other.host_config["IpcMode"] not in ("shareable", "host"):
            raise BadRequest(
                f"cannot join IPC of container {other.id}: non-shareable IPC (hint: use IpcMode:shareable)"
            )
        result.append({"type": "ipc", "path": _namespace(other, "ipc", sources)})
    elif host["IpcMode"] != "host":
        result.append({"type": "ipc"})
    if host["CgroupnsMode"] != "host":
        result.append({"type": "cgroup"})
    return result


def _mounts(
    engine: Engine, container: Container, attachment: Attachment, privileged: bool, sources: contextlib.ExitStack
) -> list[dict[str, Any]]:
    host = container.host_config

    def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
        return {"destination": destination, "type": kind, "source": source, "options": list(options)}

    access = "rw" if privileged else "ro"
    cgroups = "rw" if security_options(host)["writable-cgroups"] else access
    strict = ("nosuid", "noexec", "nodev")
    result = [
        mount("/proc", "proc", "proc", *strict),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        mount("/sys", "sysfs", "sysfs", *strict, access),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", cgroups, "nosuid", "noexec", "nodev"),
    ]
    own = mounts.for_spec(engine, container, sources)
    taken = {entry["destination"] for entry in own}
    if host["IpcMode"] == "host":
        result.append(mount("/dev/mqueue", "bind", "/dev/mqueue", "rbind", *strict))
    else:
        result.append(mount("/dev/mqueue", "mqueue", "mqueue", *strict))
    if "/dev/shm" in taken:
        pass
    elif host["IpcMode"] == "host":
        own.append(mount("/dev/shm", "bind", "/dev/shm", "rbind", *strict))
    elif host["IpcMode"].startswith("container:"):
        other = _joined(engine, host["IpcMode"], "IPC")
        source = "/dev/shm" if other.host_config["IpcMode"] == "host" else f"{other.runtime_directory}/shm"
        own.append(mount("/dev/shm", "bind", source, "rbind", *strict))
    elif host["IpcMode"] == "shareable":
        own.append(mount("/dev/shm", "bind", shared_memory(container), "rbind", *strict))
    elif host["IpcMode"] != "none":
        result.append(mount("/dev/shm", "tmpfs", "shm", *strict, "mode=1777", f"size={host['ShmSize']}"))
    files = dict(attachment.files)
    path = f"{container.directory}/hostname"
    if not os.path.exists(path):
        Path(path).write_text(container.hostname + "\n")
    files.setdefault("/etc/hostname", path)
    for destination, source in files.items():
        if destination not in taken:
            given = ("ro",) if host["ReadonlyRootfs"] else ()
            own.append(mount(destination, "bind", source, "rbind", "rprivate", *given))
    # What was asked for takes the place of what every container has; and a volume over a folder does not hide what
    # belongs into it: the deeper come later.
    result = [
        entry
        for entry in result
        if entry["destination"] not in taken and not ("/dev" in taken and entry["destination"].startswith("/dev/"))
    ]
    return result + sorted(own, key=lambda entry: entry["destination"].count("/"))


def shared_memory(container: Container) -> str:
    """A tmpfs of the host for --ipc shareable, which others can bind."""
    path = f"{container.runtime_directory}/shm"
    Path(path).mkdir(parents=True, exist_ok=True)
    if not is_mount_root(path):
        data = f"mode=1777,size={container.host_config['ShmSize']}"
        mount("shm", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, data)
    return path


def _device_rule(text: str) -> dict[str, Any]:
    match = re.fullmatch(r"([acb]) (\*|[0-9]{1,9}):(\*|[0-9]{1,9}) ([rwm]{1,3})", text)
    if not match:
        raise BadRequest(f"invalid device cgroup rule format: '{text}'")
    rule: dict[str, Any] = {"allow": True, "type": match[1], "access": match[4]}
    for key, value in (("major", match[2]), ("minor", match[3])):
        if value != "*":
            rule[key] = int(value)
    return rule


def _node(path: str, inside: str) -> dict[str, Any]:
    info = os.stat(path)
    kind = "c" if stat.S_ISCHR(info.st_mode) else "b"
    return {
        "path": inside,
        "type": kind,
        "major": os.major(info.st_rdev),
        "minor": os.minor(info.st_rdev),
        "fileMode": stat.S_IMODE(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
    }


def _is_device(path: str, follow: bool = True) -> bool:
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _below(top: str) -> list[str]:
    """The paths of all devices in a folder, and in those below it that are not there for something else."""
    others = {b"pts", b"shm", b"fd", b"mqueue", b".lxc", b".lxd-mounts"}
    folder = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        paths = [path for path, _, _, _ in walk(folder) if others.isdisjoint(path.split(b"/"))]
    finally:
        os.close(folder)
    # Links to devices are none: a masked unit's leads to /dev/null.
    return [path for path in (f"{top}/{os.fsdecode(below)}" for below in paths) if _is_device(path, follow=False)]


def _devices(host: dict[str, Any], privileged: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Nodes to make, and the cgroup's rules."""
    if privileged:
        nodes = [_node(path, path) for path in _below("/dev") if path not in ("/dev/console", "/dev/ptmx", "/dev/tty")]
        return nodes, [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    rules += [{"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"} for major, minor in DEVICES]
    nodes = []
    for entry in host["Devices"]:
        source = entry["PathOnHost"]
        target = entry.get("PathInContainer") or source
        access = entry.get("CgroupPermissions") or "rwm"
        if os.path.isdir(source):
            pairs = [(path, target + path[len(source) :]) for path in _below(source)]
        else:
            pairs = [(source, target)]
        found = [(path, inside) for path, inside in pairs if _is_device(path)]
        if not found:
            raise BadRequest(
                f'error gathering device information while adding custom device "{source}": '
                + ("not a device node" if os.path.exists(source) else "no such file or directory")
            )
        for path, inside in found:
            node = _node(path, inside)
            nodes.append(node)
            rules.append({"allow": True, "access": access, **{key: node[key] for key in ("type", "major", "minor")}})
    rules += [_device_rule(rule) for rule in host["DeviceCgroupRules"] or ()]
    return nodes, rules


def _apparmor(engine: Engine, security: dict[str, Any], privileged: bool) -> str:
    """The profile's name, unconfined, or "" where AppArmor is not."""
    if not apparmor.enabled():
        return ""
    if security["apparmor"]:
        return str(security["apparmor"])
    if privileged:
        return "unconfined"
    return apparmor.default_profile(str(engine.config.get("apparmor-profile", apparmor.DEFAULT))) or "unconfined"


def resources(host: dict[str, Any]) -> dict[str, Any]:
    """linux.resources of a specification, of create and of update. Only what was asked for."""
    result: dict[str, Any] = {}
    cpu: dict[str, Any] = {}
    if host["NanoCpus"]:
        cpu["period"] = 100_000
        cpu["quota"] = host["NanoCpus"] * 100_000 // 1_000_000_000
    for key, name in (
        ("CpuShares", "shares"),
        ("CpuPeriod", "period"),
        ("CpuQuota", "quota"),
        ("CpusetCpus", "cpus"),
        ("CpusetMems", "mems"),
        ("CpuRealtimePeriod", "realtimePeriod"),
        ("CpuRealtimeRuntime", "realtimeRuntime"),
    ):
        if host[key]:
            cpu[name] = host[key]
    if cpu:
        result["cpu"] = cpu
    memory: dict[str, Any] = {}
    for key, name in (("Memory", "limit"), ("MemoryReservation", "reservation"), ("MemorySwap", "swap")):
        if host[key] and (host["Memory"] or key != "MemorySwap"):  # swap without a limit of memory has none either
            memory[name] = host[key]
    if host["MemorySwappiness"] is not None and host["MemorySwappiness"] >= 0:
        memory["swappiness"] = host["MemorySwappiness"]
    if memory:
        result["memory"] = memory
    if host["PidsLimit"]:
        result["pids"] = {"limit": host["PidsLimit"] if host["PidsLimit"] > 0 else -1}
    block: dict[str, Any] = {}
    if host["BlkioWeight"]:
        block["weight"] = host["BlkioWeight"]
    for key, name, field in (
        ("BlkioWeightDevice", "weightDevice", "Weight"),
        ("BlkioDeviceReadBps", "throttleReadBpsDevice", "Rate"),
        ("BlkioDeviceWriteBps", "throttleWriteBpsDevice", "Rate"),
        ("BlkioDeviceReadIOps", "throttleReadIOPSDevice", "Rate"),
        ("BlkioDeviceWriteIOps", "throttleWriteIOPSDevice", "Rate"),
    ):
        if host[key]:
            block[name] = [_block_device(entry, field) for entry in host[key]]
    if block:
        result["blockIO"] = block
    return result


def _block_device(entry: dict[str, Any], field: str) -> dict[str, Any]:
    try:
        number = os.stat(entry["Path"]).st_rdev
    except (OSError, KeyError) as error:
        raise BadRequest(f"the device of a block I/O limit cannot be found: {error}") from None
    return {"major": os.major(number), "minor": os.minor(number), field.lower(): entry.get(field, 0)}
