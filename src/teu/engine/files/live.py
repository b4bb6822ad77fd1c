# SPDX-License-Identifier: Apache-2.0
"""Mounts of a container that runs: put into its mount namespace, and taken out. Called by lifecycle/change.py.

What is mounted is a detached tree of the host's (rootfs.source_tree); where it goes is found by the kernel below the
container's root. Both are descriptors before the namespace is entered: a thread enters it, makes one or two system
calls with them, opens nothing by a path, and ends there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from teu.engine.containers import proc
from teu.engine.core.errors import Conflict, EngineError
from teu.engine.files import rootfs
from teu.linux import inside, trees
from teu.linux.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, move_mount, umount2
from teu.linux.namespaces import CLONE_FS, CLONE_NEWNS, setns, unshare
from teu.linux.syscalls import PROC_SUPER_MAGIC, fstatfs_type

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.containers.state import MountPoint
    from teu.engine.engine import Engine

_WITHOUT_LINKS = inside.RESOLVE_IN_ROOT | inside.RESOLVE_NO_SYMLINKS


def attach(engine: Engine, container: Container, point: MountPoint) -> None:
    """Mount it at its place, which is made where it is missing. EngineError where that cannot be, nothing is left then;
    Conflict where the container has ended."""
    tree = rootfs.source_tree(engine, point)
    if tree < 0:
        raise EngineError(f"there is nothing to be mounted at {point.destination}: {point.source}")

    def work(root: int, wanted: Callable[[], None]) -> None:
        kind = "dir" if stat.S_ISDIR(os.fstat(tree).st_mode) else "file"
        spot = inside.make_in_root(root, point.destination, kind)
        try:
            if stat.S_ISDIR(os.fstat(spot).st_mode) != (kind == "dir"):
                raise OSError(errno.ENOTDIR if kind == "dir" else errno.EISDIR, "is there, and of another kind")
            if fstatfs_type(spot) == PROC_SUPER_MAGIC:  # where a link of the container's may lead: CVE-2025-52881
                raise OSError(errno.EPERM, "it is inside /proc")
            wanted()
            if kind == "dir" and trees.is_mount_root(spot) and os.path.sameopenfile(spot, tree):
                # of a change in whose middle the engine has died: a second one on it would stay when the first goes
                os.fchdir(spot)
                umount2(".", MNT_DETACH)
                os.close(spot)
                spot = -1
                spot = inside.open_in_root(root, point.destination)
            move_mount(tree, spot)
        finally:
            if spot >= 0:
                os.close(spot)

    _inside(container, work, f"mount at {point.destination} of {container.name}", tree)


def detach(engine: Engine, container: Container, point: MountPoint) -> None:
    """Take away what is mounted there, also if somebody uses it; who has opened a file of it keeps that. Where nothing
    is mounted any more, that is fine. EngineError, and Conflict where the container has ended.

    The way there is the container's, which may have put a link into it: behind one, only what the mount point shows is
    taken away, and not what keeps the container from the host's settings in /proc."""
    linked = False
    shown: tuple[int, int] | None = None

    def work(root: int, wanted: Callable[[], None]) -> None:
        nonlocal linked
        place = inside.real_path(root, point.destination)
        folder, _, name = place.rpartition("/")
        linked = place != point.destination
        if linked and shown is None:
            return
        parent = inside.openat2(root, folder.lstrip("/") or ".", os.O_PATH | os.O_DIRECTORY, _WITHOUT_LINKS)
        try:
            if linked:
                _check(parent, name, shown)
            wanted()
            os.fchdir(parent)  # this thread's alone
        finally:
            os.close(parent)
        umount2(name, MNT_DETACH | UMOUNT_NOFOLLOW)

    what = f"unmount {point.destination} of {container.name}"
    try:
        _inside(container, work, what)
        if linked and shown is None:
            shown = _identity(engine, point)
            _inside(container, work, what)
    except EngineError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def _check(parent: int, name: str, shown: tuple[int, int] | None) -> None:
    spot = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        found = os.fstat(spot)
        if trees.is_mount_root(spot) and (found.st_dev, found.st_ino) != shown:
            raise OSError(errno.ESTALE, "a link leads to another mount")
    finally:
        os.close(spot)


def _identity(engine: Engine, point: MountPoint) -> tuple[int, int]:
    """(device, inode) of what a mount point shows; of nothing where that is gone."""
    tree = rootfs.source_tree(engine, point)
    if tree < 0:
        return -1, -1
    try:
        found = os.fstat(tree)
    finally:
        os.close(tree)
    return found.st_dev, found.st_ino


def _inside(container: Container, work: Callable[[int, Callable[[], None]], None], what: str, tree: int = -1) -> None:
    """Do it in the container's mount namespace, with a descriptor of its root. What is to be done calls what it is
    given before it changes anything: that raises TimeoutError when nobody waits any more. `tree` is closed at its end,
    which may come long after that."""
    with contextlib.ExitStack() as opened:
        if tree >= 0:
            opened.callback(os.close, tree)
        try:
            with proc.held(container) as folder:
                root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
                opened.callback(os.close, root)
                namespace = os.open("ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
                opened.callback(os.close, namespace)
        except OSError:
            raise Conflict(f"cannot {what}: the container has ended") from None
        needed = opened.pop_all()
    done, given_up = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def wanted() -> None:
        if given_up.is_set():
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def run() -> None:
        try:
            with needed:
                unshare(CLONE_FS)
                setns(namespace, CLONE_NEWNS)
                work(root, wanted)
        except Exception as error:
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="inside", daemon=True).start()
    if not done.wait(rootfs.ANSWER_SECONDS):
        given_up.set()
        raise EngineError(f"cannot {what}: no answer within {rootfs.ANSWER_SECONDS:.0f} s")
    if failed:
        raise EngineError(f"cannot {what}: {getattr(failed[0], 'strerror', None) or failed[0]}") from failed[0]
