# SPDX-License-Identifier: Apache-2.0
"""What an image has, looked at before there is a container of it: its users, and what its volumes begin with. Called by
`containers`, on threads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from teu.containerd.core.messages import Mount
from teu.containerd.cri import spec
from teu.containerd.layers.mounting import overlay_directories
from teu.linux import inside, mounts, netns
from teu.linux.copying import copy_tree
from teu.oci.users import User, lookup, memberships


@contextmanager
def opened(listed: Sequence[Mount]) -> Iterator[int]:
    """A descriptor of the tree below a snapshot's own layer, which is the image; -1 for an image without layers. In a
    thread of its own: a mount with long options is made in another mount namespace. Raises OSError."""
    plain: list[dict[str, object]] = [
        {"type": one.type, "source": one.source, "options": list(one.options)} for one in listed
    ]
    _, lowers = overlay_directories(plain)
    if not lowers:
        yield -1
        return
    if len(lowers) == 1:
        descriptor = os.open(lowers[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        option = f"lowerdir={':'.join(lowers)}"
        descriptor = netns.in_thread(lambda: mounts.new_filesystem("overlay", "overlay", [option]))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def user(root: int, specification: str, more: Sequence[int], *, merge: bool) -> User:
    """Who runs a process, and all the groups: by the image's files those of its user where they are to be merged, and
    `more`. Raises ValueError for a name that the image does not have."""
    files = (b"", b"")
    if root >= 0:
        with suppress(OSError):
            files = inside.read_file(root, "/etc/passwd"), inside.read_file(root, "/etc/group")
    found = lookup(files, specification)
    groups = [found.gid]
    if merge:
        # A group that is named in the specification does not take those of the user away.
        name = specification.partition(":")[0] or "0"
        groups += [one for one in memberships(files, name) if one not in groups]
    groups += [one for one in more if one not in groups]
    return found._replace(groups=groups)


def fill_volumes(root: int, folder: str, config: Mapping[str, Any], taken: set[str]) -> dict[str, str]:
    """Folders for the volumes that an image names, with what it has there, by their places; none for a place of
    `taken`. Raises OSError."""
    made: dict[str, str] = {}
    for number, place in enumerate(sorted(config.get("Volumes") or {})):
        clean = spec.place(place)
        if clean in taken:
            continue
        path = os.path.join(folder, "volumes", str(number))
        os.makedirs(path, 0o755)
        made[clean] = path
        if root < 0:
            continue
        try:
            source = inside.open_in_root(root, clean, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue
        target = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copy_tree(source, target)
        finally:
            os.close(source)
            os.close(target)
    return made
