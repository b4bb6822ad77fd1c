# SPDX-License-Identifier: Apache-2.0
"""Mounts whose ids are mapped by a user namespace, for containers that have one. Called by the shim's helper for a root
file system, and by teu-containerd for the images that pods mount.

What the layers hold is owned by 0 and up; the container's user namespace begins at another id. The lower folders of
the overlay are mounted with their ids mapped, so they show the container's own; the upper folder needs no map, for what
the container writes has its ids already.
"""

from __future__ import annotations

import os

from teu.linux import mounts


def bind(source: str, userns: int, target: str) -> None:
    """A bind mount with its ids mapped by the user namespace that the descriptor is of. Raises OSError."""
    tree = mounts.open_tree(mounts.AT_FDCWD, source)
    try:
        mounts.mount_setattr(tree, mounts.MOUNT_ATTR_IDMAP, userns=userns)
        place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounts.move_mount(tree, place, source)
        finally:
            os.close(place)
    finally:
        os.close(tree)


class Lowers:
    """The lower folders of an overlay, mapped, beside `target` while the overlay is being mounted.

    The overlay holds its own copies of these mounts: they go when the `with` ends."""

    def __init__(self, options: list[str], userns: int, target: str) -> None:
        """`options` are those of the overlay, of which `lowerdir=` is exchanged."""
        self._options = options
        self._userns = userns
        self._beside = f"{target}-lower"
        self._made: list[str] = []

    def __enter__(self) -> list[str]:
        """The options for mount(2). Raises OSError, and then nothing is left."""
        options = list(self._options)
        try:
            for at, option in enumerate(options):
                if option.startswith("lowerdir="):
                    folders = option[len("lowerdir=") :].split(":")
                    options[at] = "lowerdir=" + ":".join(map(self._map, folders))
        except BaseException:
            self.__exit__()
            raise
        return options

    def _map(self, folder: str) -> str:
        place = f"{self._beside}{len(self._made)}"
        os.mkdir(place, 0o700)
        self._made.append(place)
        bind(folder, self._userns, place)
        return place

    def __exit__(self, *_: object) -> None:
        for place in self._made:
            try:
                mounts.umount2(place, mounts.MNT_DETACH)
            except OSError:
                pass  # it was not mounted yet
            os.rmdir(place)
