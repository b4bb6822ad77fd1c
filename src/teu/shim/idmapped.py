# SPDX-License-Identifier: Apache-2.0
"""Mounts whose ids are mapped: the options uidmap= and gidmap= of snapshotters that remap ids. Called by `rootfs`.

The mounts themselves are teu.linux.idmapped's. It runs in the helper that mounts the root file system, never in the
shim.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from teu.linux import idmapped
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


@contextmanager
def lowers(options: list[str], target: str) -> Iterator[list[str]]:
    """The options for mount(2) of an overlay at `target`, whose lower folders are mapped meanwhile."""
    userns = user_namespace(options)
    try:
        with idmapped.Lowers([one for one in options if not one.startswith(OPTIONS)], userns, target) as plain:
            yield plain
    finally:
        os.close(userns)


def bind(source: str, target: str, options: list[str]) -> None:
    """A bind mount with its ids mapped."""
    userns = user_namespace(options)
    try:
        idmapped.bind(source, userns, target)
    finally:
        os.close(userns)
