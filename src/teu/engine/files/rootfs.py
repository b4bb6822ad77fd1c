# SPDX-License-Identifier: Apache-2.0
"""A container's root file system as the engine sees it. Called by create, start (users), cp, export, rm.

`opened` gives a descriptor of the root: of a running container its own view (the root of its first process, with its
volumes), of a stopped one its snapshot, mounted detached: no path of the host ever shows it, and closing the descriptor
unmounts it. All look-ups below it are confined to that root by the kernel (teu.linux.inside).

What is mounted into a container may be on a server that does not answer, and whoever looks at it then waits in the
kernel. So that is done by threads of which there may be several, and nobody waits for one without an end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from teu.engine.containers import proc
from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.core.managed import KNOWN
from teu.engine.files import snapshots
from teu.linux import copying, inside, mountflags
from teu.linux.mounts import (
    MNT_DETACH,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SLAVE,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    umount2,
)
from teu.linux.namespaces import CLONE_FS, CLONE_NEWNS, unshare

if TYPE_CHECKING:
    from teu.api.types import mount_pb2
    from teu.engine.containers.model import Container
    from teu.engine.containers.state import MountPoint
    from teu.engine.engine import Engine

ANSWER_SECONDS = 30.0  # for what is local at once, and of a server tells whether it is there
WAITING_MOST = 32


class Busy(EngineError):
    """Too many wait already: nothing was begun."""


class Workers:
    """Threads for what may hang. Each job results in a descriptor (or -1), and gets a thread that is free, or a new
    one; one thread is kept for the next job."""

    def __init__(self, name: str, prepare: Callable[[str], None] | None = None) -> None:
        self._name = name
        self._prepare = prepare
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._free = 0
        self._threads = 0

    def run(self, place: str, function: Callable[[], int], what: str, seconds: float = ANSWER_SECONDS) -> int:
        """The function's result. EngineError, with `what`, after so many seconds: what comes later is closed. Busy
        where too many wait already. Threads are prepared with the place."""
        job = _Job(function)
        with self._changed:
            if self._free <= len(self._jobs):
                if self._threads >= WAITING_MOST:
                    raise Busy(f"{what}: {WAITING_MOST} others are waiting for an answer, too")
                self._threads += 1
                threading.Thread(target=self._work, args=(place,), name=self._name, daemon=True).start()
            self._jobs.append(job)
            self._changed.notify()
        if not job.done.wait(seconds) and job.give_up():
            raise EngineError(f"{what}: no answer within {seconds:.0f} s")
        if job.error is not None:
            raise job.error
        return job.result

    def _work(self, place: str) -> None:
        problem: BaseException | None = None
        try:
            if self._prepare is not None:
                self._prepare(place)
        except OSError as error:
            problem = error
        while True:
            with self._changed:
                self._free += 1
                if self._free > 1 and not self._jobs:
                    self._free -= 1
                    self._threads -= 1
                    return
                while not self._jobs:
                    self._changed.wait()
                job = self._jobs.pop(0)
                self._free -= 1
            job.run(problem)
            if problem is not None:
                with self._changed:
                    self._threads -= 1
                return  # the next one may have more luck


class _Job:
    def __init__(self, function: Callable[[], int]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._given_up = False
        self.done = threading.Event()
        self.result = -1
        self.error: BaseException | None = None

    def run(self, problem: BaseException | None) -> None:
        try:
            if problem is not None:
                raise problem
            self.result = self._function()
        except BaseException as error:
            self.error = error
        with self._lock:
            self.done.set()
            if self._given_up and self.result >= 0:
                os.close(self.result)

    def give_up(self) -> bool:
        """Nobody waits any more. False: it has just come to its end."""
        with self._lock:
            self._given_up = not self.done.is_set()
            return self._given_up


def _own_namespace(place: str) -> None:
    """The thread's mounts are never seen elsewhere, yet the descriptors that it opens are the process's."""
    unshare(CLONE_NEWNS | CLONE_FS)
    mount("none", "/", None, MS_REC | MS_SLAVE)
    Path(place).mkdir(mode=0o700, parents=True, exist_ok=True)
    mount("tmpfs", place, "tmpfs", 0, "mode=700")
    for name in ("root", "tree", "scratch"):
        Path(place, name).mkdir()


_outside = Workers("outside")
_mounters = Workers("mounter", _own_namespace)


def _mount_detached(place: str, mounts: list[mount_pb2.Mount], access: str, part: str = "") -> int:
    """containerd's mounts, or a part of them, as a descriptor of the mounted tree. Runs in a mounter's thread.

    access: "rw"; "ro"; "scratch", where what is written is nobody's and gone with the descriptor."""
    target, scratch = f"{place}/root", f"{place}/scratch"
    done: list[str] = []
    try:
        for entry in mounts:
            flags, _, data = mountflags.parse(entry.options)
            kind, source = entry.type, entry.source
            if access == "scratch" and flags & MS_BIND:
                kind, source, flags, data = "overlay", "overlay", 0, [f"lowerdir={source}"]
            if access != "rw" and not flags & MS_BIND:
                # As lower layers only: the upper folder may be in use by the container itself.
                upper = [word[9:] for word in data if word.startswith("upperdir=")]
                lower = [word[9:] for word in data if word.startswith("lowerdir=")]
                data = [word for word in data if not word.startswith(("upperdir=", "workdir=", "lowerdir="))]
                data.append("lowerdir=" + ":".join(upper + lower))
                if access == "ro":
                    flags |= MS_RDONLY
                else:
                    mount("tmpfs", scratch, "tmpfs", 0, "mode=755")
                    done.append(scratch)
                    for name in ("upper", "work"):
                        Path(scratch, name).mkdir()
                    data += [f"upperdir={scratch}/upper", f"workdir={scratch}/work"]
            mount(source, target, kind, flags, ",".join(data))
            done.append(target)
        return _opened_part(target, part) if part else open_tree(-1, target)
    finally:
        for path in reversed(done):
            umount2(path, MNT_DETACH)


def _opened_part(target: str, part: str) -> int:
    """Raises OSError: EXDEV where a link leads out of the whole."""
    base = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = inside.open_beneath(base, part)
    finally:
        os.close(base)
    try:
        return open_tree(found, "")
    finally:
        os.close(found)


def _place(engine: Engine) -> str:
    return f"{engine.exec_root}/mounts"


def detached(engine: Engine, mounts: list[mount_pb2.Mount], what: str, readonly: bool = False) -> int:
    """A descriptor (O_PATH) of what containerd's mounts make, which no path leads to; it is unmounted by its closing.
    `what` names it in errors."""
    place = _place(engine)
    return _mounters.run(place, lambda: _mount_detached(place, mounts, "ro" if readonly else "rw"), what)


def image_tree(engine: Engine, container: Container, point: MountPoint) -> int:
    """The image, or the part of it, that a mount point shows: detached, and read-only. Raises OSError where there is no
    such part (EXDEV: a link leads out of the image), containerd's NotFound."""
    place, made_of = _place(engine), snapshots.image_mounts(engine, container, point)

    def work() -> int:
        tree = _mount_detached(place, made_of, "ro", point.options.subpath)
        try:
            mount_setattr(tree, MOUNT_ATTR_RDONLY, propagation=MS_PRIVATE, recursive=True)
        except BaseException:
            os.close(tree)
            raise
        return tree

    return _mounters.run(place, work, f"the image {point.name}")


@contextlib.contextmanager
def snapshot(engine: Engine, container: Container, readonly: bool = False) -> Iterator[int]:
    """A descriptor (O_PATH) of the container's snapshot, without its volumes."""
    mounts = snapshots.mounts(engine, container)
    descriptor = detached(engine, mounts, f"the root of {container.name}", readonly)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened(engine: Engine, container: Container, readonly: bool = False) -> Iterator[int]:
    """The root as the container sees it: with its volumes and binds, running or not."""
    with contextlib.ExitStack() as closing:
        descriptor = -1
        with contextlib.suppress(OSError), proc.held(container) as folder:
            descriptor = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        if descriptor < 0:
            descriptor = _stopped(engine, container, readonly)
        closing.callback(os.close, descriptor)
        yield descriptor


def _stopped(engine: Engine, container: Container, readonly: bool) -> int:
    """The snapshot with all that is mounted into it at a start. To read, places for that are made in a layer that
    nobody keeps: the container may be started meanwhile."""
    mounts, place = snapshots.mounts(engine, container), _place(engine)
    with contextlib.ExitStack() as sources:
        points = []
        for point in sorted(container.mounts, key=lambda point: point.destination.count("/")):
            if point.type in ("bind", "volume", "image"):
                tree = _shown(engine, container, point)
                if tree >= 0:
                    sources.callback(os.close, tree)
                    points.append((point.destination, tree))
        # The job may outlive this call, and has descriptors of its own.
        own = [(destination, os.dup(tree)) for destination, tree in points]

        def work() -> int:
            if not own:
                return _mount_detached(place, mounts, "ro" if readonly else "rw")
            return _assembled(place, mounts, "scratch" if readonly else "rw", own)

        try:
            return _mounters.run(place, work, f"the root of {container.name}")
        except Busy:
            for _, tree in own:
                os.close(tree)
            raise


def _shown(engine: Engine, container: Container, point: MountPoint) -> int:
    """As source_tree, of an image, too."""
    if point.type != "image":
        return source_tree(engine, point)
    try:
        return image_tree(engine, container, point)
    except OSError:
        return -1  # there is no such part: a start says so


def check_source(path: str, create: bool, kind: str) -> None:
    """Something is there to be mounted; with `create`, a folder is made if not. BadRequest where there is nothing."""

    def work() -> int:
        if create and not os.path.lexists(path):
            Path(path).mkdir(parents=True, exist_ok=True)
        if not os.path.exists(path):
            raise BadRequest(f'invalid mount config for type "{kind}": bind source path does not exist: {path}')
        return -1

    _outside.run("", work, f"what is to be mounted, {path}")


def _assembled(place: str, mounts: list[mount_pb2.Mount], access: str, points: list[tuple[str, int]]) -> int:
    """The snapshot and detached mounts at their places in it, as one detached tree. Runs in a mounter's thread."""
    target = f"{place}/tree"
    with contextlib.ExitStack() as undo:
        for _, tree in points:
            undo.callback(os.close, tree)
        root = _mount_detached(place, mounts, access)
        undo.callback(os.close, root)
        spot = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            move_mount(root, spot)
        finally:
            os.close(spot)
        undo.callback(umount2, target, MNT_DETACH)
        for destination, tree in points:
            kind = "dir" if stat.S_ISDIR(os.fstat(tree).st_mode) else "file"
            spot = inside.make_in_root(root, destination, kind)
            try:
                move_mount(tree, spot, destination)
            finally:
                os.close(spot)
        return open_tree(-1, target, recursive=True)


def source_tree(engine: Engine, point: MountPoint) -> int:
    """What the mount point of a bind or a volume shows, as a detached mount with the access that it gives; -1: there is
    nothing.

    It is found in the host's own mounts, where a volume with options is mounted for that moment."""
    name, user = point.name or "", f"look {threading.get_ident()}"

    def work() -> int:
        try:
            if point.type == "volume":
                found = open_volume(point)
            else:
                found = os.open(point.source, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.ELOOP):
                return -1  # a part whose way leads out of its volume: a start says so
            raise
        try:
            tree = open_tree(found, "", recursive=not point.options.nonrecursive)
        finally:
            os.close(found)
        try:
            mount_setattr(tree, 0, propagation=MS_PRIVATE, recursive=True)
            if not point.rw:
                mount_setattr(tree, MOUNT_ATTR_RDONLY, recursive=not point.options.shallow)
        except BaseException:
            os.close(tree)
            raise
        return tree

    if point.type == "volume":
        try:
            point.source = engine.volumes.hold(name, user)
        except NotFound:
            return -1
    try:
        return _outside.run("", work, f"what is mounted at {point.destination}")
    finally:
        if point.type == "volume":
            engine.volumes.let_go(name, user)


def copy_up(engine: Engine, container: Container) -> None:
    """Fill new, empty volumes with what the image has at their place, as docker does."""
    points = [
        point
        for point in container.mounts
        if point.type == "volume"
        and point.options.copy_image
        and (engine.volumes.has_options(point.name or "") or _is_empty(point))
    ]
    if not points:
        return
    with snapshot(engine, container, readonly=True) as root:
        for point in points:
            try:
                source = inside.open_in_root(root, point.destination, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue
            try:
                _fill(engine, container, point, source)
            finally:
                os.close(source)


def _is_empty(point: MountPoint) -> bool:
    """False where there is no folder, too: the start will say so."""
    try:
        folder = open_volume(point, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        return not os.listdir(folder)
    finally:
        os.close(folder)


def _fill(engine: Engine, container: Container, point: MountPoint, source: int) -> None:
    """Into what is behind the volume, where that is mounted."""
    user = f"create {container.id}"
    try:
        point.source = engine.volumes.hold(point.name or "", user)
    except EngineError as error:
        raise EngineError(f"failed to populate volume: {error}") from error
    try:
        try:
            folder = open_volume(point, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return  # the start will say so
        try:
            if not os.listdir(folder):
                copying.copy_tree(source, folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise EngineError(
            f"failed to populate volume: {point.destination} of the image cannot be copied: {error.strerror}"
        ) from error
    finally:
        engine.volumes.let_go(point.name or "", user)


def open_volume(point: MountPoint, flags: int = os.O_PATH) -> int:
    """What a volume's mount shows: its folder, or the subpath of it that was asked for. Containers that have the volume
    can change what is in it at any moment, so it is found by the kernel, and only what was opened is used.

    OSError: EXDEV where a link leads out of the volume."""
    base = KNOWN.open_folder(point.source)
    try:
        subpath = point.options.subpath or "."
        return inside.open_beneath(base, subpath, flags)
    finally:
        os.close(base)
