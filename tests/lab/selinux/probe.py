# SPDX-License-Identifier: Apache-2.0
"""What a process in a container can see of its labels, as JSON. Runs in the containers of test_selinux.py."""

import ctypes
import json
import os
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
SESSION_KEYRING = -3
GET_ID, DESCRIBE, GET_SECURITY = 0, 6, 17
KEYCTL = 250  # of x86-64, which the VM lab is
FOLDERS = [
    "/dev",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/mnt",
    "/srv",
    "/proc",
    "/sys",
    "/opt",
    "/lab/copied",
    "/media",
]
PLACES = [*FOLDERS, "/dev/null", "/opt/file", "/lab/copied/file"]


def keyctl(operation: int) -> str:
    """What keyctl(2) tells of the session keyring."""
    buffer = ctypes.create_string_buffer(4096)
    if LIBC.syscall(KEYCTL, operation, SESSION_KEYRING, buffer, len(buffer), 0) < 0:
        return os.strerror(ctypes.get_errno())
    return buffer.value.decode()


def attribute(name: str) -> str:
    """A file of /proc/self/attr."""
    with open(f"/proc/self/attr/{name}") as file:
        return file.read().strip("\0\n")


def label(path: str) -> str:
    """The file's label, or why it has none."""
    try:
        return os.getxattr(path, "security.selinux").decode().strip("\0")
    except OSError as error:
        return str(error.strerror)


def mounts() -> dict[str, str]:
    """The label by which a whole file system was mounted, of the mounts that have one."""
    found = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            options = after.split(" ", 2)[2]
            if 'context="' in options:
                found[before.split(" ")[4]] = options.partition('context="')[2].partition('"')[0]
    return found


json.dump(
    {
        "process": {name: attribute(name) for name in ("current", "exec", "keycreate", "fscreate", "sockcreate")},
        "keyring": {"description": keyctl(DESCRIBE), "label": keyctl(GET_SECURITY)},
        "keyring id": LIBC.syscall(KEYCTL, GET_ID, SESSION_KEYRING, 0),
        "files": {path: label(path) for path in PLACES},
        "mounts": mounts(),
    },
    sys.stdout,
)
