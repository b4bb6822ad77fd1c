# SPDX-License-Identifier: Apache-2.0
"""teu-runc features: what this runtime can, as JSON of the runtime-spec ("Features Structure")."""

from __future__ import annotations

import os

from teu import __version__
from teu.linux import capabilities, seccomp
from teu.oci import jsontext, runtime_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "show the enabled features"
USAGE = ""
FLAGS: dict[str, tuple[str, str, object, str]] = {}
ARGUMENTS = (0, 0)

# Annotations by which the writer of config.json gets more than its fields give.
UNSAFE_ANNOTATIONS = ["bundle", "org.systemd.property.", "org.criu.config"]


def features() -> dict[str, Any]:
    annotations = {
        # Read by engines to learn that a checkpoint can be asked for.
        "org.opencontainers.runc.checkpoint.enabled": "true",
        "org.opencontainers.runc.version": "1.3.0",
        "io.github.teu.version": __version__,
    }
    library = seccomp.library_version()
    supported = {
        "enabled": library is not None,
        "actions": sorted(seccomp.ACTIONS),
        "operators": sorted(seccomp.OPERATORS),
        "archs": sorted(seccomp.ARCHITECTURES),
        "knownFlags": list(seccomp.FLAGS),
        "supportedFlags": [name for name in seccomp.FLAGS if seccomp.kernel_has_flag(name)],
    }
    if library is not None:
        annotations["io.github.seccomp.libseccomp.version"] = library
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": runtime_spec.VERSION,
        "hooks": list(runtime_spec.HOOKS),
        "mountOptions": sorted(option for option in runtime_spec.MOUNT_OPTIONS if option != "copy-symlink"),
        "linux": {
            "namespaces": sorted(runtime_spec.NAMESPACES),
            "capabilities": list(capabilities.NAMES),
            "cgroup": {"v1": False, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": supported,
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
            "memoryPolicy": {
                "modes": sorted(runtime_spec.MEMORY_POLICIES),
                "flags": sorted(runtime_spec.MEMORY_POLICY_FLAGS),
            },
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "annotations": annotations,
        "potentiallyUnsafeConfigAnnotations": UNSAFE_ANNOTATIONS,
    }


def main(arguments: Arguments, settings: Settings) -> int:
    os.write(1, jsontext.to_bytes(features(), "    ") + b"\n")
    return 0
