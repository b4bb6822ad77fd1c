# SPDX-License-Identifier: Apache-2.0
"""Mount options of the runtime-spec ("Linux mount options") sorted into what the kernel takes.

Called by teu.runc.rootfs for every mount; teu.runc.features lists OPTIONS.
"""

from __future__ import annotations

from teu.linux.mounts import (
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME,
    MS_NOATIME,
    MS_NODIRATIME,
    MS_PRIVATE,
    MS_RELATIME,
    MS_SHARED,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_UNBINDABLE,
)

# name: (bits to set, bits to clear) of mount_setattr
ATTRIBUTES = {
    "ro": (MOUNT_ATTR_RDONLY, 0),
    "rw": (0, MOUNT_ATTR_RDONLY),
    "nosuid": (MOUNT_ATTR_NOSUID, 0),
    "suid": (0, MOUNT_ATTR_NOSUID),
    "nodev": (MOUNT_ATTR_NODEV, 0),
    "dev": (0, MOUNT_ATTR_NODEV),
    "noexec": (MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, MOUNT_ATTR_NOEXEC),
    "nodiratime": (MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, MOUNT_ATTR_NODIRATIME),
    "relatime": (MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME),
    "norelatime": (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME),
    "noatime": (MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME),
    "atime": (MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME),
    "strictatime": (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME),
    "nostrictatime": (MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME),
    "nosymfollow": (MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, MOUNT_ATTR_NOSYMFOLLOW),
    "defaults": (0, 0),
}

# Of the mount itself, access times go by mount(2)'s flags, as with runc and mount(8): what is only cleared leaves a
# bind mount its source's, nodiratime implies relatime, strictatime beats noatime. name: (flags to set, to clear)
_TIMES = {
    "nodiratime": (MS_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "relatime": (MS_RELATIME, 0),
    "norelatime": (0, MS_RELATIME),
    "noatime": (MS_NOATIME, 0),
    "atime": (0, MS_NOATIME),
    "strictatime": (MS_STRICTATIME, 0),
    "nostrictatime": (0, MS_STRICTATIME),
}

PROPAGATION = {
    "private": (MS_PRIVATE, False),
    "rprivate": (MS_PRIVATE, True),
    "slave": (MS_SLAVE, False),
    "rslave": (MS_SLAVE, True),
    "shared": (MS_SHARED, False),
    "rshared": (MS_SHARED, True),
    "unbindable": (MS_UNBINDABLE, False),
    "runbindable": (MS_UNBINDABLE, True),
}

# Of the whole file system, not of the mount: handed to the file system by this name, or (None) nothing to do.
FILESYSTEM = {
    "sync": "sync",
    "async": None,
    "dirsync": "dirsync",
    "mand": "mand",
    "nomand": None,
    "lazytime": "lazytime",
    "nolazytime": None,
    "silent": None,
    "loud": None,
    "iversion": None,
    "noiversion": None,
    "acl": None,
    "noacl": None,
}

_RECURSIVE_ATTRIBUTES = tuple(name for name in ATTRIBUTES if name != "defaults")

OPTIONS = sorted(
    {
        *ATTRIBUTES,
        *PROPAGATION,
        *FILESYSTEM,
        *("r" + name for name in _RECURSIVE_ATTRIBUTES),
        "bind",
        "rbind",
        "remount",
        "tmpcopyup",
        "idmap",
        "ridmap",
    }
)


class MountOptions:
    """The options of one mount."""

    __slots__ = (
        "attributes",
        "attr_set",
        "attr_clr",
        "recursive_set",
        "recursive_clr",
        "propagation",
        "bind",
        "recursive_bind",
        "remount",
        "tmpcopyup",
        "idmap",
        "data",
    )

    def __init__(self) -> None:
        self.attributes = False  # whether any was given
        self.attr_set = 0
        self.attr_clr = 0
        self.recursive_set = 0
        self.recursive_clr = 0
        self.propagation: list[tuple[int, bool]] = []
        self.bind = False
        self.recursive_bind = False
        self.remount = False
        self.tmpcopyup = False
        self.idmap = ""  # "", "idmap" or "ridmap"
        self.data: list[str] = []


def parse(options: list[str]) -> MountOptions:
    """Later options win over earlier ones of the same bits."""
    result = MountOptions()
    times = 0
    for option in options:
        if option in _TIMES:
            bits, cleared = _TIMES[option]
            times = times & ~cleared | bits
            result.attributes = True
        elif option in ATTRIBUTES:
            bits, cleared = ATTRIBUTES[option]
            result.attributes = result.attributes or bool(bits | cleared)
            result.attr_set = result.attr_set & ~cleared | bits
            result.attr_clr = result.attr_clr & ~bits | cleared
        elif option in ("bind", "rbind"):
            result.bind = True
            result.recursive_bind = result.recursive_bind or option == "rbind"
        elif option in PROPAGATION:
            result.propagation.append(PROPAGATION[option])
        elif option in FILESYSTEM:
            name = FILESYSTEM[option]
            if name:
                result.data.append(name)
        elif option[:1] == "r" and option[1:] in _RECURSIVE_ATTRIBUTES:
            bits, cleared = ATTRIBUTES[option[1:]]
            result.recursive_set = result.recursive_set & ~cleared | bits
            result.recursive_clr = result.recursive_clr & ~bits | cleared
        elif option == "remount":
            result.remount = True
        elif option == "tmpcopyup":
            result.tmpcopyup = True
        elif option in ("idmap", "ridmap"):
            result.idmap = option
        elif option:
            result.data.append(option)
    if times:
        _set_times(result, times)
    return result


def _set_times(result: MountOptions, times: int) -> None:
    """mount(2)'s flags of access times as mount_setattr(2) has them: one field, which is cleared before it is set."""
    result.attr_clr |= MOUNT_ATTR__ATIME
    if times & MS_STRICTATIME:
        result.attr_set |= MOUNT_ATTR_STRICTATIME
    elif times & MS_NOATIME:
        result.attr_set |= MOUNT_ATTR_NOATIME
    if times & MS_NODIRATIME:
        result.attr_set |= MOUNT_ATTR_NODIRATIME
    else:
        result.attr_clr |= MOUNT_ATTR_NODIRATIME
