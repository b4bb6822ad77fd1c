# SPDX-License-Identifier: Apache-2.0
"""The devices of a specification: nodes to make, and the rules of the cgroup's device program."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from teu.engine.core.errors import BadRequest
from teu.linux.trees import walk
from teu.oci import defaults

if TYPE_CHECKING:
    from teu.engine.core.fields import Device, HostConfig
    from teu.oci.runtime_spec import Object


def _rule(text: str) -> Object:
    match = re.fullmatch(r"([acb]) (\*|[0-9]{1,9}):(\*|[0-9]{1,9}) ([rwm]{1,3})", text)
    if not match:
        raise BadRequest(f"invalid device cgroup rule format: '{text}'")
    rule: Object = {"allow": True, "type": match[1], "access": match[4]}
    for key, value in (("major", match[2]), ("minor", match[3])):
        if value != "*":
            rule[key] = int(value)
    return rule


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


def check(host: HostConfig) -> None:
    """What can be refused at create already."""
    for number, entry in enumerate(host.devices or ()):
        where = f"HostConfig.Devices[{number}]"
        if not entry.path_on_host:
            raise BadRequest(f"{where}.PathOnHost must name a device of this machine")
        for key, path in (("PathOnHost", entry.path_on_host), ("PathInContainer", entry.path_in_container)):
            if path and not path.startswith("/"):
                raise BadRequest(f"{where}.{key} must be an absolute path, not {path!r}")
        if (entry.cgroup_permissions or "").strip("rwm"):
            raise BadRequest(f"{where}.CgroupPermissions must be of r, w and m, not {entry.cgroup_permissions!r}")
    for rule in host.device_cgroup_rules or ():
        _rule(rule)


def devices(host: HostConfig) -> tuple[list[Object], list[Object]]:
    """Nodes to make, and the cgroup's rules."""
    if host.privileged:
        nodes = [
            defaults.device_node(path, path)
            for path in _below("/dev")
            if path not in ("/dev/console", "/dev/ptmx", "/dev/tty")
        ]
        return nodes, [{"allow": True, "access": "rwm"}]
    rules: list[Object] = defaults.device_rules()
    nodes = []
    for entry in host.devices or ():
        access = entry.cgroup_permissions or "rwm"
        for node in _nodes(entry):
            nodes.append(node)
            rules.append({"allow": True, "access": access, **{key: node[key] for key in ("type", "major", "minor")}})
    rules += [_rule(rule) for rule in host.device_cgroup_rules or ()]
    return nodes, rules


def _nodes(entry: Device) -> list[Object]:
    """Of one device, or of all in a folder. Raises BadRequest where there is none."""
    source = entry.path_on_host or ""
    target = entry.path_in_container or source
    if os.path.isdir(source):
        pairs = [(path, target + path[len(source) :]) for path in _below(source)]
    else:
        pairs = [(source, target)]
    found = [defaults.device_node(path, inside) for path, inside in pairs if _is_device(path)]
    if not found:
        raise BadRequest(
            f'error gathering device information while adding custom device "{source}": '
            + ("not a device node" if os.path.exists(source) else "no such file or directory")
        )
    return found
