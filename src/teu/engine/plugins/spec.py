# SPDX-License-Identifier: Apache-2.0
"""The runtime specification of a managed plugin. It is docker's: what a container gets without a seccomp profile, and
what its configuration adds, in a scope in teu.slice.

    /run/docker             the socket of the engine's figures; for collectors of metrics
    /run/docker/plugins     where it makes its socket
    /run/docker/logging     the FIFOs of containers whose log it takes; for log drivers
    PropagatedMount         its mounts there are seen by the host

It runs as root, whatever User says, as with docker. A network of the type bridge is one of its own without interfaces.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.managed import LOGS, METRICS
from teu.oci import defaults
from teu.oci.defaults import mount

if TYPE_CHECKING:
    from teu.engine.plugins.config import Config
    from teu.engine.plugins.record import Plugin

OCI_VERSION = "1.1.0"
DOCKER, SOCKETS, LOGGING = "/run/docker", "/run/docker/plugins", "/run/docker/logging"
NAME_ANNOTATION = "io.teu.name"
_STRICT = ("nosuid", "noexec", "nodev")


def build(plugin: Plugin) -> dict[str, Any]:
    """Raises EngineError where what it is to be given is not there."""
    config, settings = plugin.record.config, plugin.record.settings
    caps = [
        *defaults.CAPABILITIES,
        *(cap for cap in config.linux.capabilities or () if cap not in defaults.CAPABILITIES),
    ]
    nodes, rules = _devices(plugin)
    mounts = [*_basic(plugin), *_own(plugin), *_asked(plugin)]
    shared = any(option in ("rshared", "shared") for entry in mounts for option in entry.get("options", ()))
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [*(config.entrypoint or ()), *settings.args],
            "env": [f"PATH={defaults.PATH}", *settings.env],
            "cwd": config.working_dir or "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted", "inheritable"), caps),
        },
        "root": {"path": "rootfs", "readonly": False},
        "mounts": mounts,
        "linux": {
            "namespaces": _namespaces(config),
            "resources": {"devices": rules},
            "cgroupsPath": f"teu.slice:teu-plugin:{plugin.id}",
            "maskedPaths": list(defaults.DOCKER_MASKED_PATHS),
            "readonlyPaths": list(defaults.READONLY_PATHS),
            **({"devices": nodes} if nodes else {}),
            **({"rootfsPropagation": "rshared"} if shared else {}),
        },
        "annotations": {NAME_ANNOTATION: plugin.name},
    }


def _namespaces(config: Config) -> list[dict[str, str]]:
    left_out = {
        "network": config.network.type == "host",
        "pid": config.pid_host,
        "ipc": config.ipc_host,
    }
    return [{"type": kind} for kind in ("mount", "uts", "ipc", "pid", "network") if not left_out.get(kind)]


def _basic(plugin: Plugin) -> list[dict[str, Any]]:
    """What every container has; what a user gives it in /dev takes the place of that."""
    taken = {one.destination for one in plugin.record.settings.mounts}
    found = [
        mount("/proc", "proc", "proc", *_STRICT),
        *(entry for entry in defaults.mounts() if entry["destination"] != "/sys"),
        mount("/sys", "sysfs", "sysfs", *_STRICT, "ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro", *_STRICT),
    ]
    return [
        entry for entry in found if not (entry["destination"] in taken and entry["destination"].startswith("/dev/"))
    ]


def _own(plugin: Plugin) -> list[dict[str, Any]]:
    config = plugin.record.config
    found = []
    if config.propagated:
        found.append(mount(config.propagated, "bind", plugin.mounts, "rbind", "rw", "rshared"))
    if plugin.implements(METRICS):
        found.append(mount(DOCKER, "bind", plugin.docker, "rbind", "ro"))
    found.append(mount(SOCKETS, "bind", plugin.run_folder, "rbind", "rshared"))
    if plugin.implements(LOGS):
        found.append(mount(LOGGING, "bind", plugin.logging, "rbind"))
    if config.network.type:
        for path in ("/etc/hosts", "/etc/resolv.conf"):
            found.append(mount(path, "bind", path, "rbind", "ro"))
    return found


def _asked(plugin: Plugin) -> list[dict[str, Any]]:
    found = []
    for one in plugin.record.config.mounts or ():
        if one.source is None:
            raise EngineError("mount source is not specified")
        found.append(mount(one.destination, one.type, one.source, *(one.options or ())))
    return found


def _devices(plugin: Plugin) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Nodes to make, and the cgroup's rules."""
    if plugin.record.config.linux.all_devices:
        rules: list[dict[str, Any]] = [{"allow": True, "access": "rwm"}]
    else:
        rules = defaults.device_rules()
    nodes = []
    for device in plugin.record.settings.devices:
        path = device.path or ""
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise _no_device(path, (error.strerror or "").lower()) from None
        if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            raise _no_device(path, "not a device node")
        node = defaults.device_node(path, path)
        nodes.append(node)
        rules.append({"allow": True, "access": "rwm", **{key: node[key] for key in ("type", "major", "minor")}})
    return nodes, rules


def _no_device(path: str, what: str) -> BadRequest:
    return BadRequest(f'error gathering device information while adding custom device "{path}": {what}')
