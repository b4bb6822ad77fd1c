# SPDX-License-Identifier: Apache-2.0
"""Options of mount(8), as snapshotters, volumes and fstab(5) write them, sorted into what mount(2) takes.

Called by the shim (the root file system), teu-containerd (layers) and teud (volumes, roots of stopped containers).
teu-runc sorts the options of the runtime-spec into what mount_setattr(2) takes (teu.runc.mount_options).
"""

from __future__ import annotations

from teu.linux.mounts import (
    MS_BIND,
    MS_DIRSYNC,
    MS_MANDLOCK,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SHARED,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    MS_UNBINDABLE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# name: (flags to set, flags to clear)
FLAGS = {
    "defaults": (0, 0),
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "mand": (MS_MANDLOCK, 0),
    "nomand": (0, MS_MANDLOCK),
    "remount": (MS_REMOUNT, 0),
    "noatime": (MS_NOATIME, 0),
    "atime": (0, MS_NOATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "relatime": (MS_RELATIME, 0),
    "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, 0),
    "nostrictatime": (0, MS_STRICTATIME),
    "bind": (MS_BIND, 0),
    "rbind": (MS_BIND | MS_REC, 0),
}
# Set by a call of their own, after the mount.
PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}


def parse(options: Iterable[str]) -> tuple[int, int, list[str]]:
    """(flags of mount(2), propagation flags, what is left for the file system); a later option beats an earlier one.

    X-… is a comment of user space, as mount(8) has it, and left out."""
    flags = propagation = 0
    data = []
    for option in options:
        if option in FLAGS:
            more, less = FLAGS[option]
            flags = flags & ~less | more
        elif option in PROPAGATION:
            propagation |= PROPAGATION[option]
        elif not option.startswith("X-"):
            data.append(option)
    return flags, propagation, data
