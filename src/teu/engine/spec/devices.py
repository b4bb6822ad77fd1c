# SPDX-License-Identifier: Apache-2.0
"""The devices of a specification: nodes to make, and the rules of the cgroup's device program."""

from __future__ import annotations

import os
import re
import stat
from typing import Any

from teu.engine.core.errors import BadRequest
from teu.linux.trees import walk
from teu.oci import defaults


def _rule(text: str) -> dict[str, Any]:
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


def check(host: dict[str, Any]) -> None:
    """What can be refused at create already."""
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
        _rule(rule)


def devices(host: dict[str, Any], privileged: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Nodes to make, and the cgroup's rules."""
    if privileged:
        nodes = [_node(path, path) for path in _below("/dev") if path not in ("/dev/console", "/dev/ptmx", "/dev/tty")]
        return nodes, [{"allow": True, "access": "rwm"}]
    rules = defaults.device_rules()
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
    rules += [_rule(rule) for rule in host["DeviceCgroupRules"] or ()]
    return nodes, rules
