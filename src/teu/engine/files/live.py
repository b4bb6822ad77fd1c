# SPDX-License-Identifier: Apache-2.0
"""Mounts of a container that runs: put into its mount namespace, and taken out. Called by lifecycle/change.py.

What is mounted is a detached tree of the host's (rootfs.source_tree); where it goes is found by the kernel below the
container's root. Both are descriptors before the namespace is entered: a thread enters it, makes one or two system
calls with them, opens nothing by a path, and ends there.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from teu.engine.containers import proc
from teu.engine.core.errors import Conflict, EngineError
from teu.engine.files import rootfs
from teu.linux import inside
from teu.linux.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, move_mount, umount2
from teu.linux.namespaces import CLONE_FS, CLONE_NEWNS, setns, unshare

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.containers.state import MountPoint
    from teu.engine.engine import Engine


def attach(engine: Engine, container: Container, point: MountPoint) -> None:
    """Mount it at its place, which is made where it is missing. EngineError where that cannot be, nothing is left then;
    Conflict where the container has ended."""
    tree = rootfs.source_tree(engine, point)
    if tree < 0:
        raise EngineError(f"there is nothing to be mounted at {point.destination}: {point.source}")
    try:
        kind = "dir" if stat.S_ISDIR(os.fstat(tree).st_mode) else "file"

        def work(root: int) -> None:
            spot = inside.make_in_root(root, point.destination, kind)
            try:
                if stat.S_ISDIR(os.fstat(spot).st_mode) != (kind == "dir"):
                    raise OSError(errno.ENOTDIR if kind == "dir" else errno.EISDIR, "is there, and of another kind")
                move_mount(tree, spot)
            finally:
                os.close(spot)

        _inside(container, work, f"mount at {point.destination} of {container.name}")
    finally:
        os.close(tree)


def detach(container: Container, destination: str) -> None:
    """Take away what is mounted there, also if somebody uses it; who has opened a file of it keeps that. Where nothing
    is mounted any more, that is fine. EngineError, and Conflict where the container has ended."""

    def work(root: int) -> None:
        folder, _, name = inside.real_path(root, destination).rpartition("/")
        parent = inside.open_in_root(root, folder or "/", os.O_PATH | os.O_DIRECTORY)
        try:
            os.fchdir(parent)  # this thread's alone
        finally:
            os.close(parent)
        umount2(name, MNT_DETACH | UMOUNT_NOFOLLOW)

    try:
        _inside(container, work, f"unmount {destination} of {container.name}")
    except EngineError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def _inside(container: Container, work: Callable[[int], None], what: str) -> None:
    """Do it in the container's mount namespace, with a descriptor of its root."""
    try:
        with proc.held(container) as folder:
            root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
            try:
                namespace = os.open("ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            except BaseException:
                os.close(root)
                raise
    except OSError:
        raise Conflict(f"cannot {what}: the container has ended") from None
    done = threading.Event()
    failed: list[OSError] = []

    def run() -> None:
        try:
            unshare(CLONE_FS)
            setns(namespace, CLONE_NEWNS)
            work(root)
        except OSError as error:
            failed.append(error)
        finally:
            os.close(root)
            os.close(namespace)
            done.set()

    threading.Thread(target=run, name="inside", daemon=True).start()
    if not done.wait(rootfs.ANSWER_SECONDS):
        raise EngineError(f"cannot {what}: no answer within {rootfs.ANSWER_SECONDS:.0f} s")
    if failed:
        raise EngineError(f"cannot {what}: {failed[0].strerror}") from failed[0]
