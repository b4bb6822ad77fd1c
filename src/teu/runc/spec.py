# SPDX-License-Identifier: Apache-2.0
"""teu-runc spec: write a config.json to begin with."""

from __future__ import annotations

import os

from teu.oci import defaults, jsontext
from teu.oci.defaults import mount
from teu.oci.runtime_spec import VERSION
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "create a new specification file"
USAGE = ""
FLAGS: dict[str, tuple[str, str, object, str]] = {
    "bundle": ("b", "string", "", "path to the root of the bundle directory"),
    "rootless": ("", "bool", False, "generate a configuration for a rootless container"),
}
ARGUMENTS = (0, 0)

CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]


def default() -> dict[str, Any]:
    """The specification that runc writes too: `sh` on a terminal, in namespaces of its own, few rights."""
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [f"PATH={defaults.PATH}", "TERM=xterm"],
            "cwd": "/",
            **defaults.rights(CAPABILITIES),
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "runc",
        "mounts": [
            mount("/proc", "proc", "proc"),
            *defaults.mounts(),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": list(defaults.MASKED_PATHS),
            "readonlyPaths": list(defaults.READONLY_PATHS),
        },
    }


def to_rootless(spec: dict[str, Any]) -> None:
    """What an ordinary user cannot have gives way: the host's network, /sys bound, one id mapped."""
    linux = spec["linux"]
    kept = [namespace for namespace in linux["namespaces"] if namespace["type"] not in ("network", "user")]
    linux["namespaces"] = [*kept, {"type": "user"}]
    linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    del linux["resources"]
    mounts = []
    for entry in spec["mounts"]:
        if entry["destination"] == "/sys":
            # A new sysfs belongs to the network namespace, and that one is the host's.
            entry = mount("/sys", "none", "/sys", "rbind", "nosuid", "noexec", "nodev", "ro")
        elif "options" in entry:
            # Ids that are not mapped cannot own anything.
            entry["options"] = [word for word in entry["options"] if not word.startswith(("gid=", "uid="))]
        mounts.append(entry)
    spec["mounts"] = mounts


def main(arguments: Arguments, settings: Settings) -> int:
    spec = default()
    if arguments["rootless"]:
        to_rootless(spec)
    path = os.path.join(arguments["bundle"], "config.json")
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise RuncError(f"File {path} exists. Remove it first") from None
    with open(file, "w") as out:
        out.write(jsontext.dumps(spec, "\t"))
    return 0
