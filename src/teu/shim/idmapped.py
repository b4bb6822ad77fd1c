# SPDX-License-Identifier: Apache-2.0
"""Mounts whose ids are mapped: the options uidmap= and gidmap= of snapshotters that remap ids. Called by `rootfs`.

What the layers hold is owned by 0 and up; the container's user namespace begins at another id. The lower folders of
the overlay are mounted with their ids mapped, so they show the container's own; the upper folder needs no map, for what
the container writes has its ids already. It runs in the helper that mounts the root file system, never in the shim.
"""

from __future__ import annotations

import os

from teu.linux import mounts
from teu.linux.namespaces import CLONE_NEWUSER, unshare

OPTIONS = ("uidmap=", "gidmap=")


def _map(options: list[str], name: str) -> bytes:
    """uidmap=CONTAINER:HOST:LENGTH,... as a line each for /proc/PID/uid_map."""
    for option in options:
        if option.startswith(name):
            parts = [one.split(":") for one in option[len(name) :].split(",")]
            if any(len(part) != 3 or not all(word.isdigit() for word in part) for part in parts):
                raise ValueError(f"{option}: expected CONTAINER:HOST:LENGTH")
            return "".join(" ".join(part) + "\n" for part in parts).encode()
    raise ValueError(f"an id-mapped mount needs both uidmap and gidmap; {name[:-1]} is missing")


def user_namespace(options: list[str]) -> int:
    """A descriptor of a user namespace with the maps that the options say, without a process in it."""
    uids, gids = _map(options, "uidmap="), _map(options, "gidmap=")
    told, tell = os.pipe2(os.O_CLOEXEC)
    wait, release = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        os.close(release)
        try:
            unshare(CLONE_NEWUSER)
            os.write(tell, b"x")
        except OSError as error:
            os.write(tell, bytes([error.errno or 0]))
        os.read(wait, 1)
        os._exit(0)
    os.close(tell)
    os.close(wait)
    try:
        answer = os.read(told, 1)
        if answer != b"x":
            number = answer[0] if answer else 0
            raise OSError(number, f"a user namespace for an id-mapped mount: {os.strerror(number)}")
        for kind, text in (("uid_map", uids), ("gid_map", gids)):
            file = os.open(f"/proc/{pid}/{kind}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(file, text)
            finally:
                os.close(file)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(told)
        os.close(release)
        os.waitpid(pid, 0)


def _mapped(source: str, userns: int, target: str) -> None:
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

    def __init__(self, options: list[str], target: str) -> None:
        self._all = options
        self._beside = f"{target}-lower"
        self._made: list[str] = []

    def __enter__(self) -> list[str]:
        """The options for mount(2)."""
        userns = user_namespace(self._all)
        options = [option for option in self._all if not option.startswith(OPTIONS)]
        try:
            for at, option in enumerate(options):
                if option.startswith("lowerdir="):
                    folders = option[len("lowerdir=") :].split(":")
                    options[at] = "lowerdir=" + ":".join(self._map(folder, userns) for folder in folders)
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.close(userns)
        return options

    def _map(self, folder: str, userns: int) -> str:
        place = f"{self._beside}{len(self._made)}"
        os.mkdir(place, 0o700)
        self._made.append(place)
        _mapped(folder, userns, place)
        return place

    def __exit__(self, *_: object) -> None:
        for place in self._made:
            try:
                mounts.umount2(place, mounts.MNT_DETACH)
            except OSError:
                pass  # it was not mounted yet
            os.rmdir(place)


def bind(source: str, target: str, options: list[str]) -> None:
    """A bind mount with its ids mapped."""
    userns = user_namespace(options)
    try:
        _mapped(source, userns, target)
    finally:
        os.close(userns)
