# SPDX-License-Identifier: Apache-2.0
"""What packing and unpacking know in common of a container's tree: errors, paths, mounts. For the visitor.

Paths are the container's, as text with surrogate escapes; every look-up is one of the kernel's, below the root's
descriptor.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat

from teu.linux import inside
from teu.linux.syscalls import fstatfs_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypedDict

    class Options(TypedDict, total=False):
        """What the visitor is asked for besides a path. Of tar: `whole`, one file system and without the root itself;
        `attributes`, all extended attributes that are users', not capabilities alone; of untar: `replace`, a folder by
        something else and the reverse; `owner`, (uid, gid) of all; `readonly`, the root is not to be written to, what
        is mounted in it may be; `top`, what the archive says of the folder itself is done."""

        whole: bool
        attributes: bool
        replace: bool
        top: bool
        owner: list[int] | None
        readonly: bool

    class Asked(Options):
        path: str

    class Description(TypedDict):
        """The API's ContainerPathStat. `mode` is Go's, `mtime` RFC 3339."""

        name: str
        size: int
        mode: int
        mtime: str
        linkTarget: str


CHUNK = 256 << 10

# File systems that show the kernel and not files. What is below their mounts is nobody's to copy, as for docker, which
# does not see them at all: proc, sysfs, cgroup, cgroup2, devpts, mqueue, nsfs, bpf, debugfs, tracefs, securityfs,
# configfs, selinuxfs, pstore, efivarfs, fusectl, binfmt_misc.
PSEUDO = {
    0x9FA0,
    0x62656572,
    0x27E0EB,
    0x63677270,
    0x1CD1,
    0x19800202,
    0x6E736673,
    0xCAFE4A11,
    0x64626720,
    0x74726163,
    0x73636673,
    0x62656570,
    0xF97CFF8C,
    0x6165676C,
    0xDE5E81E4,
    0x65735543,
    0x42494E4D,
}


class Missing(Exception):
    """There is no such file in the container."""


class Refused(Exception):
    """What is asked for is not to be done there; the text says why."""


class NoPlace(Refused):
    """Nothing may be written there, whatever it is."""


def is_pseudo(descriptor: int) -> bool:
    return fstatfs_type(descriptor) in PSEUDO


def look_up(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Missing where there is nothing, or only something of the kernel's."""
    if "\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    try:
        found = inside.open_in_root(root, path, flags)
    except FileNotFoundError:
        raise Missing(path) from None
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    return found


def located(root: int, path: str) -> tuple[int, str, str]:
    """What a path names (its last component not followed, unless it ends in / or /.): open (O_PATH), its own path
    without links, and its name."""
    absolute = posixpath.normpath("/" + path).replace("//", "/")
    trailing = path.endswith(("/", "/."))
    if trailing or absolute == "/":
        found = look_up(root, absolute)
        name = "." if path.endswith("/.") else posixpath.basename(absolute) or "/"
        place = inside.real_path(root, absolute)
    else:
        found = look_up(root, absolute, os.O_PATH | os.O_NOFOLLOW)
        parent, name = posixpath.split(absolute)
        place = posixpath.join(inside.real_path(root, parent), name)
    status = os.fstat(found)
    if trailing and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR).lower(), path)
    if is_pseudo(found):
        # The folder where it is mounted is there, empty.
        above = look_up(root, posixpath.dirname(place))
        below = is_pseudo(above)
        os.close(above)
        if below or not stat.S_ISDIR(status.st_mode):
            raise Missing(path)
    return found, place, name
