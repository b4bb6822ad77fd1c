# SPDX-License-Identifier: Apache-2.0
"""A container's root file system as the engine sees it. Called by create, start (users), cp, export, rm.

`opened` gives a descriptor of the root: of a running container its own view (through /proc/PID/root,
with its volumes), of a stopped one its snapshot, mounted detached: no path of the host ever shows it,
and closing the descriptor unmounts it. All look-ups below it go through `resolve`, which the kernel
confines to that root (openat2 RESOLVE_IN_ROOT): links cannot lead out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import queue
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from teu.engine import containerd
from teu.linux.syscalls import (
    NR_mount,
    NR_move_mount,
    NR_open_tree,
    NR_openat2,
    NR_umount2,
    NR_unshare,
    buffer,
    syscall,
)

if TYPE_CHECKING:
    from teu.engine.container import Container
    from teu.engine.engine import Engine

T = TypeVar("T")

CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
OPEN_TREE_CLONE = 1
AT_RECURSIVE = 0x8000
AT_FDCWD = -100
MOVE_MOUNT_F_EMPTY_PATH = 4
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
LINKS = 40  # that a path may lead through, as the kernel's own limit

FLAGS = {
    "ro": MS_RDONLY, "rw": 0, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC,
    "bind": MS_BIND, "rbind": MS_BIND | MS_REC,
}  # fmt: skip


class _Mounter:
    """A thread in a mount namespace of its own: what it mounts is never seen elsewhere, yet the
    descriptors it opens are the process's."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = False
        self.directory = ""

    def run(self, function: Callable[[], T]) -> T:
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._loop, name="mounter", daemon=True).start()
        future: Future[T] = Future()
        self._work.put((function, future))
        return future.result()

    def _loop(self) -> None:
        problem: Exception | None = None
        try:
            syscall("unshare", NR_unshare, CLONE_NEWNS | CLONE_FS)
            syscall("mount", NR_mount, b"none\0", b"/\0", None, MS_REC | MS_SLAVE, None)
            self.directory = tempfile.mkdtemp(prefix="teud-mounts-")
            syscall("mount", NR_mount, b"tmpfs\0", _path(self.directory), b"tmpfs\0", 0, b"mode=700\0")
        except OSError as error:
            problem = error
        while True:
            function, future = self._work.get()
            try:
                if problem is not None:
                    raise problem
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)


_mounter = _Mounter()


def _path(path: str) -> bytes:
    return os.fsencode(path) + b"\0"


def _mount_detached(mounts: list[Any], readonly: bool) -> int:
    """containerd's mounts as a descriptor of the mounted tree. Runs in the mounter's thread."""
    target = f"{_mounter.directory}/root"
    Path(target).mkdir(exist_ok=True)
    done = 0
    try:
        for mount in mounts:
            flags, data = 0, []
            for option in mount.options:
                if option in FLAGS:
                    flags |= FLAGS[option]
                else:
                    data.append(option)
            if readonly and not flags & MS_BIND:
                flags |= MS_RDONLY
                upper = next((word[9:] for word in data if word.startswith("upperdir=")), None)
                if upper:
                    # As lower layers only: the upper folder may be in use by the container itself.
                    lower = next(word[9:] for word in data if word.startswith("lowerdir="))
                    data = [
                        word for word in data if not word.startswith(("upperdir=", "workdir=", "lowerdir="))
                    ]
                    data.append(f"lowerdir={upper}:{lower}")
            text = ",".join(data)
            syscall(
                f"mount {mount.type} of {mount.source}", NR_mount, _path(mount.source), _path(target),
                _path(mount.type), flags, _path(text),
            )  # fmt: skip
            done += 1
        return syscall("open_tree", NR_open_tree, AT_FDCWD, _path(target), OPEN_TREE_CLONE | os.O_CLOEXEC)
    finally:
        for _ in range(done):
            syscall("umount2", NR_umount2, _path(target), MNT_DETACH)


def snapshot_mounts(engine: Engine, container: Container) -> list[Any]:
    if container.rootfs_mounts is None:
        from teu.api.services.snapshots.v1 import snapshots_pb2

        response = engine.containerd.snapshots.Mounts(
            snapshots_pb2.MountsRequest(
                snapshotter=engine.config["storage-driver"], key=container.snapshot_key
            )
        )
        container.rootfs_mounts = list(response.mounts)
    return container.rootfs_mounts


@contextlib.contextmanager
def snapshot(engine: Engine, container: Container, readonly: bool = False) -> Iterator[int]:
    """A descriptor (O_PATH) of the container's snapshot, without its volumes."""
    mounts = snapshot_mounts(engine, container)
    descriptor = _mounter.run(lambda: _mount_detached(mounts, readonly))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened(engine: Engine, container: Container, readonly: bool = False) -> Iterator[int]:
    """The root as the container sees it: with its volumes and binds, running or not."""
    pid = container.pid
    if container.running and pid:
        try:
            descriptor = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            descriptor = -1
        if descriptor >= 0:
            try:
                yield descriptor
            finally:
                os.close(descriptor)
            return
    mounts = snapshot_mounts(engine, container)
    points = sorted(
        (
            point for point in container.mounts
            if point["Type"] in ("bind", "volume") and os.path.exists(point["Source"])
        ),
        key=lambda point: point["Destination"].count("/"),
    )  # fmt: skip

    def work() -> int:
        if not points:
            return _mount_detached(mounts, readonly)
        # Volumes are mounted on the tree in the mounter's namespace, then all is cloned away.
        # Writable, because places for them may have to be made, as the runtime does at a start.
        tree = _mount_detached(mounts, False)
        target = f"{_mounter.directory}/tree"
        Path(target).mkdir(exist_ok=True)
        try:
            syscall(
                "move_mount", NR_move_mount, tree, b"\0", AT_FDCWD, _path(target), MOVE_MOUNT_F_EMPTY_PATH
            )
            for point in points:
                inside = make_place(tree, point["Destination"], os.path.isdir(point["Source"]))
                try:
                    syscall(
                        "bind mount", NR_mount, _path(point["Source"]), _path(f"/proc/self/fd/{inside}"), None,
                        MS_BIND | MS_REC, None,
                    )  # fmt: skip
                    if not point["RW"]:
                        again = resolve(tree, point["Destination"], os.O_PATH)
                        syscall(
                            "remount", NR_mount, None, _path(f"/proc/self/fd/{again}"), None,
                            MS_BIND | MS_REMOUNT | MS_RDONLY, None,
                        )  # fmt: skip
                        os.close(again)
                finally:
                    os.close(inside)
            return syscall(
                "open_tree",
                NR_open_tree,
                AT_FDCWD,
                _path(target),
                OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC,
            )
        finally:
            os.close(tree)
            syscall("umount2", NR_umount2, _path(target), MNT_DETACH)

    descriptor = _mounter.run(work)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def resolve(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path below the root; every link and `..` stays inside."""
    return _look_up(root, path.lstrip("/") or ".", flags, RESOLVE_IN_ROOT, mode)


def _look_up(folder: int, path: str, flags: int, way: int, mode: int = 0) -> int:
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, way | RESOLVE_NO_MAGICLINKS)
    for _ in range(64):
        try:
            return syscall(path, NR_openat2, folder, _path(path), buffer(how), len(how))
        except BlockingIOError:  # EAGAIN: a rename raced with the look-up
            continue
    raise OSError(errno.EAGAIN, "the path keeps changing", path)


def make_place(root: int, path: str, directory: bool, links: int = 0) -> int:
    """Open a path below the root; where it does not exist, make it: folders, and at its end a folder or file. A link
    that leads nowhere gets a place to lead to, inside."""
    if links > LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    parts = [part for part in path.split("/") if part]
    for count in range(1, len(parts) + 1):
        here = "/".join(parts[:count])
        try:
            os.close(resolve(root, here, os.O_PATH))
        except FileNotFoundError:
            parent = resolve(root, "/".join(parts[: count - 1]), os.O_PATH | os.O_DIRECTORY)
            try:
                if directory or count < len(parts):
                    os.mkdir(parts[count - 1], 0o755, dir_fd=parent)
                else:
                    os.close(os.open(parts[count - 1], os.O_CREAT | os.O_EXCL, 0o755, dir_fd=parent))
            except FileExistsError:
                there = os.readlink(parts[count - 1], dir_fd=parent)
                there = posixpath.normpath(posixpath.join("/", *parts[: count - 1], there))
                os.close(make_place(root, there, directory or count < len(parts), links + 1))
            finally:
                os.close(parent)
    return resolve(root, path, os.O_PATH)


def read_file(root: int, path: str, limit: int = 16 << 20) -> bytes:
    """A regular file's content; b"" when there is none."""
    try:
        descriptor = resolve(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        return file.read(limit)


def remove_snapshot(engine: Engine, container: Container) -> None:
    from teu.api.services.snapshots.v1 import snapshots_pb2

    try:
        engine.containerd.snapshots.Remove(
            snapshots_pb2.RemoveSnapshotRequest(
                snapshotter=engine.config["storage-driver"], key=container.snapshot_key
            )
        )
    except containerd.NotFound:
        pass


def copy_up(engine: Engine, container: Container) -> None:
    """Fill new, empty volumes with what the image has at their place, as docker does."""
    with contextlib.ExitStack() as opened_folders:
        fresh = []
        for point in container.mounts:
            if point["Type"] == "volume" and (point.get("Options") or {}).get("copy"):
                with contextlib.suppress(OSError):  # none, or not a folder: the start will say so
                    folder = open_volume(point, os.O_RDONLY | os.O_DIRECTORY)
                    opened_folders.callback(os.close, folder)
                    if not os.listdir(folder):
                        fresh.append((point["Destination"], folder))
        if not fresh:
            return
        with snapshot(engine, container, readonly=True) as root:
            for destination, folder in fresh:
                try:
                    descriptor = resolve(root, destination, os.O_RDONLY | os.O_DIRECTORY)
                except OSError:
                    continue
                try:
                    _copy_tree(descriptor, folder)
                finally:
                    os.close(descriptor)


def open_volume(point: dict[str, Any], flags: int = os.O_PATH) -> int:
    """What a volume's mount shows: its folder, or the subpath of it that was asked for. Containers that have the volume
    can change what is in it at any moment, so it is found by the kernel, and only what was opened is used.

    OSError: EXDEV where a link leads out of the volume."""
    base = os.open(point["Source"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        subpath = (point.get("Options") or {}).get("subpath") or "."
        return _look_up(base, subpath, flags, RESOLVE_BENEATH)
    finally:
        os.close(base)


def _copy_tree(source: int, target: int) -> None:
    """Everything below a folder, with owners, modes, times, links, devices and attributes.

    cp works on the descriptors' own trees; the folders were found safely, and cp -a follows no links below.
    """
    import subprocess

    subprocess.run(
        ["cp", "-a", "--", f"/proc/self/fd/{source}/.", f"/proc/self/fd/{target}/"],
        check=True, pass_fds=(source, target), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
