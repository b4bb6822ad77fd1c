# SPDX-License-Identifier: Apache-2.0
"""Owners by name, from the /etc/passwd and /etc/group of a mounted root."""

from __future__ import annotations

import os
import stat

from teu.buildkit.core import errors
from teu.buildkit.ops.roots import NODE, Root

FILE_MAX = 10 << 20  # bytes of such a file


def _lines(root: Root, path: str) -> list[bytes]:
    """The lines of a file of the root; none where there is none. Raises errors.Error for what is no such file."""
    real = root.real(path)
    try:
        place = root.open(real, NODE)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise errors.Error(f"{path} is not a regular file")
        descriptor = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(place)
    with open(descriptor, "rb") as file:
        data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise errors.Error(f'"{path}" exceeds {FILE_MAX} bytes')
    return data.split(b"\n")


def _numbers(fields: list[bytes]) -> list[int] | None:
    try:
        found = [int(field) for field in fields]
    except ValueError:
        return None
    return found if all(0 <= number < 1 << 32 for number in found) else None


def user(root: Root, name: str) -> tuple[int, int] | None:
    """(user, its group); None where there is none of that name."""
    for line in _lines(root, "/etc/passwd"):
        fields = line.strip().split(b":")
        if len(fields) >= 4 and fields[0] == os.fsencode(name):
            numbers = _numbers(fields[2:4])
            if numbers is not None:
                return numbers[0], numbers[1]
    return None


def group(root: Root, name: str) -> int | None:
    for line in _lines(root, "/etc/group"):
        fields = line.strip().split(b":")
        if len(fields) >= 3 and fields[0] == os.fsencode(name):
            numbers = _numbers(fields[2:3])
            if numbers is not None:
                return numbers[0]
    return None
