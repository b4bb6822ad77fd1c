# SPDX-License-Identifier: Apache-2.0
"""From Config and HostConfig to the OCI runtime specification that containerd gets. Called by start.

The defaults (capabilities, masked paths, mounts, devices) are docker's, because images rely on them.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teu.engine.containers import defaults as container_defaults
from teu.engine.containers import hostconfig, proc, runtimes
from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.spec import device_requests, devices, mounts
from teu.engine.spec.process import Command, Security, capabilities, process, security_options
from teu.engine.spec.resources import resources
from teu.linux import apparmor
from teu.linux.mounts import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount
from teu.linux.trees import is_mount_root
from teu.oci import cdi, defaults
from teu.oci.seccomp import default_profile

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping, Sequence

    from teu.engine.containers.model import Container
    from teu.engine.core.fields import HostConfig
    from teu.engine.engine import Engine
    from teu.engine.networks.model import Attachment
    from teu.oci.runtime_spec import Object

OCI_VERSION = "1.1.0"
MASKED_PATHS = list(defaults.DOCKER_MASKED_PATHS)
READONLY_PATHS = list(defaults.READONLY_PATHS)

INIT_PATHS = ("/usr/libexec/docker/docker-init", "/usr/bin/docker-init", "/usr/bin/tini-static")
NAME_ANNOTATION = "io.teu.name"
STRICT = ("nosuid", "noexec", "nodev")
# How whoever stops the container's unit, the host's shutdown above all, is to stop the container.
STOP_SIGNAL_ANNOTATION = "org.opencontainers.image.stopSignal"
STOP_TIMEOUT_ANNOTATION = "io.teu.stop-timeout"


def check(engine: Engine, container: Container) -> None:
    """All that can be refused at create already."""
    host = container.host_config
    capabilities(host)
    security_options(host, engine.config)
    devices.check(host)
    device_requests.check(host.device_requests or ())
    for mode in (host.pid_mode, host.ipc_mode):
        if mode.startswith("container:"):
            engine.containers.get(mode.partition(":")[2])
    for name in host.sysctls or {}:
        if name.startswith("net.") and host.network_mode == "host":
            raise BadRequest(f"sysctl '{name}' not allowed in host network namespace")
        if not name.startswith(("net.", "kernel.", "fs.mqueue.")):
            raise BadRequest(f"sysctl '{name}' is not in a namespace of its own; it cannot be set per container")
    if host.init and not init_path(engine):
        raise BadRequest("--init needs an init program: install tini, or set init-path in teud.yaml")


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


def build(engine: Engine, container: Container, attachment: Attachment, sources: contextlib.ExitStack) -> Object:
    """The runtime specification of a container that is about to start. What its mounts are taken from is good until
    `sources` is closed. Sets the container's AppArmor profile."""
    config, host = container.config, container.host_config
    security = security_options(host, engine.config)
    container.apparmor_profile = _apparmor(engine, security, host.privileged)
    arguments = [container.path, *container.args]
    program = _init(engine, host)
    if program:
        arguments = ["/sbin/docker-init", "--", *arguments]
    wanted = Command(arguments, config.user, posixpath.normpath(config.working_dir or "/"), config.tty)
    own_process = process(engine, container, wanted, security, host.console_size)
    given = device_requests.edits(engine.config.get("cdi-spec-dirs", cdi.FOLDERS), host.device_requests or ())
    mount_list = _mounts(engine, container, attachment, security, sources, given.mounts)
    if program:
        mount_list.append(_mount("/sbin/docker-init", "bind", program, "bind", "ro"))
    result: Object = {
        "ociVersion": OCI_VERSION,
        "process": own_process,
        "root": {"path": "rootfs", "readonly": host.readonly_rootfs},
        "mounts": mount_list,
        "linux": _linux(engine, container, attachment, security, mount_list, sources),
        "annotations": {**(host.annotations or {}), **_annotations(engine, container)},
    }
    if host.uts_mode != "host":
        result["hostname"] = container.hostname
        if config.domainname:
            result["domainname"] = config.domainname
    device_requests.edit(result, given)
    return result


def _init(engine: Engine, host: HostConfig) -> str:
    """The init program that is to be the container's first process; "" where its own is."""
    # An init has only a PID namespace of its own to look after.
    alone = host.pid_mode != "host" and not host.pid_mode.startswith("container:")
    wanted = engine.config.get("init") if host.init is None else host.init
    return init_path(engine) if alone and wanted else ""


def _linux(
    engine: Engine,
    container: Container,
    attachment: Attachment,
    security: Security,
    mount_list: list[Object],
    sources: contextlib.ExitStack,
) -> Object:
    host = container.host_config
    nodes, allowed = devices.devices(host)
    result: Object = {
        "namespaces": _namespaces(engine, container, attachment, sources),
        "resources": {**resources(host), "devices": allowed},
        "cgroupsPath": cgroups_path(engine, container),
        "maskedPaths": [],
        "readonlyPaths": [],
    }
    if nodes:
        result["devices"] = nodes
    if not host.privileged:
        result["maskedPaths"] = MASKED_PATHS if host.masked_paths is None else host.masked_paths
        result["readonlyPaths"] = READONLY_PATHS if host.readonly_paths is None else host.readonly_paths
        if security.seccomp != "unconfined":
            result["seccomp"] = security.seccomp or default_profile(capabilities(host))
    elif isinstance(security.seccomp, dict):
        result["seccomp"] = security.seccomp
    propagation = mounts.root_propagation(mount_list)
    if propagation:
        result["rootfsPropagation"] = propagation
    sysctls = dict(host.sysctls or {})
    if attachment.namespace is not None and not host.network_mode.startswith("container:"):
        sysctls.setdefault("net.ipv4.ip_unprivileged_port_start", "0")
        sysctls.setdefault("net.ipv4.ping_group_range", "0 2147483647")
    if sysctls:
        result["sysctl"] = sysctls
    return result


def _annotations(engine: Engine, container: Container) -> dict[str, str]:
    """For the shim."""
    result = {NAME_ANNOTATION: container.name}
    if container.config.stop_signal:
        result[STOP_SIGNAL_ANNOTATION] = str(hostconfig.signal_number(container.config.stop_signal))
    seconds = container_defaults.stop_seconds(container.config, engine.config)
    if container.config.stop_timeout is not None or seconds != container_defaults.STOP_SECONDS:
        result[STOP_TIMEOUT_ANNOTATION] = str(seconds)
    return result


def cgroups_path(engine: Engine, container: Container) -> str:
    """slice:prefix:name: the shim (or a runtime with systemd's driver) makes a scope of it."""
    parent = container.host_config.cgroup_parent or engine.config.get("cgroup-parent") or ""
    if systemd_cgroup(engine, container) or runtime(engine, container).shim == runtimes.OWN:
        return f"{parent or 'teu.slice'}:teu:{container.id}"
    return posixpath.join(parent or "/teu", container.id)


def runtime(engine: Engine, container: Container) -> runtimes.Runtime:
    """What runs it, by the configuration that is in force. Raises BadRequest where it has no such runtime any more."""
    return runtimes.find(container.host_config.runtime, engine.config)


def systemd_cgroup(engine: Engine, container: Container) -> bool:
    """Does a foreign shim's runtime have to ask systemd itself?"""
    return runtime(engine, container).shim != runtimes.OWN and os.path.isdir("/run/systemd/system")


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
    if host.uts_mode != "host":
        result.append({"type": "uts"})
    if host.pid_mode.startswith("container:"):
        other = _joined(engine, host.pid_mode, "PID")
        result.append({"type": "pid", "path": _namespace(other, "pid", sources)})
    elif host.pid_mode != "host":
        result.append({"type": "pid"})
    if host.ipc_mode.startswith("container:"):
        other = _joined(engine, host.ipc_mode, "IPC")
        if other.host_config.ipc_mode not in ("shareable", "host"):
            raise BadRequest(
                f"cannot join IPC of container {other.id}: non-shareable IPC (hint: use IpcMode:shareable)"
            )
        result.append({"type": "ipc", "path": _namespace(other, "ipc", sources)})
    elif host.ipc_mode != "host":
        result.append({"type": "ipc"})
    if host.cgroupns_mode != "host":
        result.append({"type": "cgroup"})
    return result


def _mounts(
    engine: Engine,
    container: Container,
    attachment: Attachment,
    security: Security,
    sources: contextlib.ExitStack,
    given: Sequence[Mapping[str, Any]],
) -> list[Object]:
    """What every container has, under what was asked for, and what its devices have `given`."""
    host = container.host_config
    own = mounts.for_spec(engine, container, sources)
    asked = {entry["destination"] for entry in own}
    own += [dict(entry) for entry in given if entry["destination"] not in asked]
    taken = {entry["destination"] for entry in own}
    basic = _basic_mounts(host, security)
    if "/dev/shm" not in taken:
        memory = _shared_memory_mount(engine, container)
        # A folder of the host's is mounted with those that were asked for, a file system of its own with the others.
        (own if memory and memory["type"] == "bind" else basic).extend([memory] if memory else [])
    files = dict(attachment.files)
    path = f"{container.directory}/hostname"
    if not os.path.exists(path):
        Path(path).write_text(container.hostname + "\n")
    files.setdefault("/etc/hostname", path)
    for destination, source in files.items():
        if destination not in taken:
            access = ("ro",) if host.readonly_rootfs else ()
            own.append(_mount(destination, "bind", source, "rbind", "rprivate", *access))
    # What was asked for takes the place of what every container has; and a volume over a folder does not hide what
    # belongs into it: the deeper come later.
    basic = [
        entry
        for entry in basic
        if entry["destination"] not in taken and not ("/dev" in taken and entry["destination"].startswith("/dev/"))
    ]
    return basic + sorted(own, key=lambda entry: entry["destination"].count("/"))


def _basic_mounts(host: HostConfig, security: Security) -> list[Object]:
    access = "rw" if host.privileged else "ro"
    cgroups = "rw" if security.writable_cgroups else access
    pts = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    return [
        _mount("/proc", "proc", "proc", *STRICT),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", *pts),
        _mount("/sys", "sysfs", "sysfs", *STRICT, access),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", cgroups, "nosuid", "noexec", "nodev"),
        _mount("/dev/mqueue", "bind", "/dev/mqueue", "rbind", *STRICT)
        if host.ipc_mode == "host"
        else _mount("/dev/mqueue", "mqueue", "mqueue", *STRICT),
    ]


def _shared_memory_mount(engine: Engine, container: Container) -> Object | None:
    """/dev/shm by the IPC mode; None where there is none."""
    mode = container.host_config.ipc_mode
    if mode == "none":
        return None
    if mode == "host":
        return _mount("/dev/shm", "bind", "/dev/shm", "rbind", *STRICT)
    if mode.startswith("container:"):
        other = _joined(engine, mode, "IPC")
        source = "/dev/shm" if other.host_config.ipc_mode == "host" else f"{other.runtime_directory}/shm"
        return _mount("/dev/shm", "bind", source, "rbind", *STRICT)
    if mode == "shareable":
        return _mount("/dev/shm", "bind", shared_memory(container), "rbind", *STRICT)
    return _mount("/dev/shm", "tmpfs", "shm", *STRICT, "mode=1777", f"size={container.host_config.shm_size}")


def _mount(destination: str, kind: str, source: str, *options: str) -> Object:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def shared_memory(container: Container) -> str:
    """A tmpfs of the host for --ipc shareable, which others can bind."""
    path = f"{container.runtime_directory}/shm"
    Path(path).mkdir(parents=True, exist_ok=True)
    if not is_mount_root(path):
        data = f"mode=1777,size={container.host_config.shm_size}"
        mount("shm", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, data)
    return path


def _apparmor(engine: Engine, security: Security, privileged: bool) -> str:
    """The profile's name, unconfined, or "" where AppArmor is not."""
    if not apparmor.enabled():
        return ""
    if security.apparmor:
        return security.apparmor
    if privileged:
        return "unconfined"
    try:
        return apparmor.default_profile(str(engine.config.get("apparmor-profile", apparmor.DEFAULT))) or "unconfined"
    except apparmor.NotLoaded as error:
        remedy = "mend it, or run the container with --security-opt apparmor=unconfined"
        raise EngineError(f"{error}; {remedy}") from None
