# SPDX-License-Identifier: Apache-2.0
"""Whether there is a policy, for who pulls: so much, and no more, is looked at for each image on a host without one."""

from __future__ import annotations

import os

FILE = "/etc/teu/policy.yaml"
ENDINGS = (".yaml", ".yml")


def _all(file: str) -> list[str]:
    """The file, and what is in its folder of drop-ins."""
    try:
        names = sorted(os.listdir(file + ".d"))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    return [file, *(f"{file}.d/{name}" for name in names if name.endswith(ENDINGS))]


def configured(file: str) -> bool:
    """Whether there is a policy: the file, or one in its folder of drop-ins. An empty name is none."""
    return bool(file) and any(os.path.lexists(path) for path in _all(file))


def stamp(file: str) -> tuple[object, ...]:
    """What changes when the policy's files do; for who remembers a verdict for a while."""
    found: list[object] = []
    for path in _all(file):
        try:
            status = os.stat(path)
            found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((path, None))
    return tuple(found)
