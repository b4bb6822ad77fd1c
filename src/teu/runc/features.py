# SPDX-License-Identifier: Apache-2.0
"""teu-runc features: what this runtime can, as JSON of the runtime-spec ("Features Structure")."""

from __future__ import annotations

import os

from teu.linux import seccomp
from teu.oci import jsontext, runtime_spec
from teu.runc.main import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "show the enabled features"
USAGE = ""
FLAGS: dict[str, tuple[str, str, object, str]] = {}
ARGUMENTS = (0, 0)

# In the kernel's numbering.
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
)
# Annotations by which the writer of config.json gets more than its fields give.
UNSAFE_ANNOTATIONS = ["bundle", "org.systemd.property.", "org.criu.config"]


def features() -> dict[str, Any]:
    annotations = {
        # Read by engines to learn that a checkpoint can be asked for.
        "org.opencontainers.runc.checkpoint.enabled": "true",
        "org.opencontainers.runc.version": "1.3.0",
        "io.github.teu.version": VERSION,
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
            "capabilities": ["CAP_" + name for name in CAPABILITIES.split()],
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
