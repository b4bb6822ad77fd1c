# SPDX-License-Identifier: Apache-2.0
"""From Config and HostConfig to the OCI runtime specification that containerd gets. Called by start.

The defaults (capabilities, masked paths, mounts, devices) are docker's, because images rely on them.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teu.engine.containers import hostconfig, proc
from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.spec import devices, mounts, users
from teu.engine.spec.process import capabilities, environment, rlimits, security_options
from teu.engine.spec.resources import resources
from teu.linux import apparmor
from teu.linux.mounts import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount
from teu.linux.trees import is_mount_root
from teu.oci import defaults
from teu.oci.seccomp import default_profile

if TYPE_CHECKING:
    import contextlib

    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine
    from teu.engine.networks.model import Attachment

OCI_VERSION = "1.1.0"
MASKED_PATHS = list(defaults.DOCKER_MASKED_PATHS)
READONLY_PATHS = list(defaults.READONLY_PATHS)

INIT_PATHS = ("/usr/libexec/docker/docker-init", "/usr/bin/docker-init", "/usr/bin/tini-static")
NAME_ANNOTATION = "io.teu.name"
# How whoever stops the container's unit, the host's shutdown above all, is to stop the container.
STOP_SIGNAL_ANNOTATION = "org.opencontainers.image.stopSignal"
STOP_TIMEOUT_ANNOTATION = "io.teu.stop-timeout"


def check(engine: Engine, container: Container) -> None:
    """All that can be refused at create already."""
    host = container.host_config
    capabilities(host)
    security_options(host)
    devices.check(host)
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
    nodes, allowed = devices.devices(host, privileged)
    if nodes:
        linux["devices"] = nodes
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


def _apparmor(engine: Engine, security: dict[str, Any], privileged: bool) -> str:
    """The profile's name, unconfined, or "" where AppArmor is not."""
    if not apparmor.enabled():
        return ""
    if security["apparmor"]:
        return str(security["apparmor"])
    if privileged:
        return "unconfined"
    try:
        return apparmor.default_profile(str(engine.config.get("apparmor-profile", apparmor.DEFAULT))) or "unconfined"
    except apparmor.NotLoaded as error:
        remedy = "mend it, or run the container with --security-opt apparmor=unconfined"
        raise EngineError(f"{error}; {remedy}") from None
