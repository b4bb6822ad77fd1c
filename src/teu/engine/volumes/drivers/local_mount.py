# SPDX-License-Identifier: Apache-2.0
"""Mounts one volume with options; a program of its own, started by local.py, which kills it when it takes too long.

Its argument is {"path": where, "options": {"type", "device", "o"}}. Where something is mounted already, that is it: a
volume is never stacked. Failures are said on stderr.
"""

from __future__ import annotations

import json
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.abspath(__file__).removesuffix("/teu/engine/volumes/drivers/local_mount.py"))

from teu.linux import mountflags, trees
from teu.linux.mounts import MS_BIND, MS_RDONLY, MS_REMOUNT
from teu.linux.syscalls import NR_mount, syscall


def mount(path: str, options: dict[str, str]) -> None:
    """mount(2) with the options of a volume, as mount(8) understands them. Raises OSError with what was asked for."""
    flags, propagation, data = mountflags.parse(filter(None, (options.get("o") or "").split(",")))
    device, kind = options.get("device") or "", options.get("type") or ""
    if kind == "none":
        kind = ""
    text = ",".join(data)
    arguments = [os.fsencode(value) for value in (device, path, kind)]
    what = f"mount {device}:{path}, flags: {flags:#x}, data: {text}"
    syscall(what, NR_mount, *arguments, flags, os.fsencode(text) if text else None)
    if flags & MS_BIND and flags & MS_RDONLY:
        syscall(what, NR_mount, None, arguments[1], None, flags | MS_REMOUNT, None)
    if propagation:
        syscall(what, NR_mount, None, arguments[1], None, propagation, None)


def main() -> int:
    """The program: 0, or 1 with the reason on standard error."""
    asked = json.loads(sys.argv[1])
    try:
        if not trees.is_mount_root(asked["path"]):
            mount(asked["path"], asked["options"])
    except OSError as error:
        what, colon, reason = (error.strerror or str(error)).rpartition(": ")
        sys.stderr.write(what + colon + reason.lower())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
