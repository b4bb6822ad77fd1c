# SPDX-License-Identifier: Apache-2.0
"""Copies from one root into another, as COPY and ADD mean them (BuildKit's, of fsutil).

Both roots hold still but for what is done here, and both may have been made to hurt: nothing recurses, no link is gone
through, and all is made by the descriptor of the folder that it is in. Folders that no include pattern matches are made
only when something in them is.
"""

from __future__ import annotations

import errno
import logging
import os
import posixpath
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from teu.buildkit.core import errors
from teu.buildkit.ops.later import Later
from teu.buildkit.ops.modes import Mode
from teu.buildkit.ops.roots import FOLDER, NODE, PathError, Root, clean, plain
from teu.linux.copying import copy_contents
from teu.oci.patterns import Patterns

log = logging.getLogger("teu.buildkit")

DEFAULT_MODE = 0o755  # of folders that lead to what is copied
WAITING_MAX = 1000  # folders in folders that are not made yet
LINKED_MAX = 1_000_000  # files with several names that are remembered

Parents = tuple[bool, ...]
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Owner:
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class How:
    """`owner`: of all that is made; None leaves the source's. `mode`: of all that is copied, and `fixed_mode` where it
    is one number. `moment`: nanoseconds since 1970 of all that is made, None for the source's. `later`: what is to be
    as it is in the source may get a second name instead, which is made when the target is no longer mounted."""

    owner: Owner | None = None
    mode: Mode | None = None
    fixed_mode: int | None = None
    moment: int | None = None
    contents_only: bool = False
    follow: bool = False
    replace: bool = False
    include: Patterns = field(default_factory=lambda: Patterns(()))
    exclude: Patterns = field(default_factory=lambda: Patterns(()))
    check: Callable[[], None] = lambda: None
    later: Later | None = None


def set_times(descriptor: int, moment: int | None) -> None:
    if moment is not None:
        os.utime(f"/proc/self/fd/{descriptor}", ns=(moment, moment))


def make_folders(root: Root, real: str, mode: int, owner: Owner | None, moment: int | None) -> list[str]:
    """All folders of a real path that are missing; what was made, the uppermost first. Raises PathError."""
    made: list[str] = []
    here = root.open("/")
    path = ""
    try:
        for name in [part for part in real.split("/") if part]:
            path += "/" + name
            try:
                below = os.open(name, FOLDER, dir_fd=here)
            except FileNotFoundError:
                try:
                    os.mkdir(name, 0o700, dir_fd=here)
                except OSError as error:
                    raise PathError("mkdir", path, error.errno or errno.EIO) from None
                below = os.open(name, FOLDER, dir_fd=here)
                os.fchmod(below, mode & 0o7777)
                if owner is not None:
                    os.fchown(below, owner.uid, owner.gid)
                    os.fchmod(below, mode & 0o7777)
                set_times(below, moment)
                made.append(path)
            except OSError as error:
                number = errno.ENOTDIR if error.errno == errno.ELOOP else error.errno or errno.EIO
                raise PathError("mkdir", path, number) from None
            os.close(here)
            here = below
    finally:
        os.close(here)
    return made


def _fix_times(root: Root, made: list[str], moment: int | None) -> None:
    """Folders whose times what was made in them has changed."""
    if moment is None:
        return
    for path in reversed(made):
        try:
            folder = root.open(path)
        except OSError:
            continue  # it was replaced meanwhile
        try:
            set_times(folder, moment)
        finally:
            os.close(folder)


def copy(source: Root, src: str, target: Root, dest: str, how: How) -> None:
    """One source, a path in its root, to a path in the target's. Raises errors.Error and OSError."""
    mode = DEFAULT_MODE if how.fixed_mode is None else how.fixed_mode
    dest = clean(dest)
    name = posixpath.basename(dest)
    ensured = plain(dest) if name in ("", ".") else posixpath.dirname(dest)
    made = make_folders(target, target.real(ensured), mode, how.owner, how.moment)
    place = target.real(dest)
    found = source.real(src, how.follow)
    status = source.status(found)
    folder = stat.S_ISDIR(status.st_mode)
    there = target.find(place)
    into = there is not None and (not how.contents_only if folder else stat.S_ISDIR(there.st_mode))
    if into:
        place = posixpath.join(place, posixpath.basename(plain(src)))
    above = place if folder and how.contents_only and there is None else posixpath.dirname(place)
    made += make_folders(target, above, mode, how.owner, how.moment)
    copier = _Copier(source, target, how)
    if folder:
        copier.tree(found, place, status)
    else:
        copier.file(found, place, status)
    _fix_times(target, made, how.moment)


@dataclass(slots=True)
class _Frame:
    """A folder that is being copied. `made`: its attributes are to be set at its end."""

    name: str
    path: str  # in the source, below what is copied
    status: os.stat_result
    todo: list[str]
    included: Parents = ()
    excluded: Parents = ()
    waits: int = -1  # the folder to be like, while there is none in the target yet
    made: bool = True
    fresh: bool = False  # nothing was in it before
    shared: list[str] = field(default_factory=list)  # files in it that are to be the source's own


class _Copier:
    def __init__(self, source: Root, target: Root, how: How) -> None:
        self._target = target
        self._source = source
        self._how = how
        self._here = self._there = -1  # where the walk is, in the source and in the target
        self._found = self._place = ""  # what is copied, in the source, and where it goes, in the target
        self._later: Later | None = None
        # Of files with several names: what they are in the source -> where the first one was made, and what that is.
        self._linked: dict[tuple[int, int], tuple[str, tuple[int, int]]] = {}

    def file(self, found: str, place: str, status: os.stat_result) -> None:
        """What is no folder."""
        with ExitStack() as closing:
            here, name = self._source.parent(found)
            closing.callback(os.close, here)
            there, own = self._target.parent(place)
            closing.callback(os.close, there)
            self._leaf(here, name, there, own, status, place)

    def tree(self, found: str, place: str, status: os.stat_result) -> None:
        """A folder with what of it is selected."""
        self._found, self._place = "" if found == "/" else found, "" if place == "/" else place
        frames: list[_Frame] = []
        try:
            self._here = self._source.open(found)
            frames.append(_Frame("", "", status, _names(self._here)))
            self._top(frames[0], place)
            while frames:
                self._how.check()
                if frames[-1].todo:
                    self._one(frames, frames[-1].todo.pop())
                    continue
                frame = frames.pop()
                self._leave(frame, not frames)
                if frames:
                    self._here = _up(self._here)
        finally:
            for descriptor in (self._here, self._there, *(frame.waits for frame in frames)):
                if descriptor >= 0:
                    os.close(descriptor)
            self._here = self._there = -1

    def _top(self, frame: _Frame, place: str) -> None:
        if place == "/":
            frame.made = False
            self._there = self._target.open("/")
            return
        folder, name = self._target.parent(place)
        try:
            frame.made = frame.fresh = self._folder(folder, name, place)
            self._there = os.open(name, FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        frame.fresh = frame.fresh or not os.listdir(self._there)
        # All folders below one in which nothing was are new. So no file with several names, which stay one file, has
        # one where it is copied and another where it is not.
        later = self._how.later
        if frame.fresh and later is not None and later.serves(self._source):
            self._later = later

    def _one(self, frames: list[_Frame], name: str) -> None:
        """One entry of the folder that the walk is in."""
        above, how = frames[-1], self._how
        path = f"{above.path}/{name}" if above.path else name
        status = os.stat(name, dir_fd=self._here, follow_symlinks=False)
        selected, out = True, False
        included: Parents = ()
        excluded: Parents = ()
        if how.include:
            selected, included = how.include.matches(path, above.included)
        if how.exclude:
            out, excluded = how.exclude.matches(path, above.excluded)
        selected = selected and not out
        if not stat.S_ISDIR(status.st_mode):
            if selected:
                self._make_waiting(frames)
                if self._later is not None and self._as_it_is(status) and not self._later.full():
                    above.shared.append(name)
                else:
                    self._leaf(self._here, name, self._there, name, status, f"{self._place}/{path}", above.fresh)
            return
        if out and not how.exclude.exceptions:
            return  # nothing of it can be selected
        below = os.open(name, FOLDER, dir_fd=self._here)
        frame = _Frame(name, path, status, [], included, excluded)
        try:
            frame.todo = _names(below)
            if selected:
                self._make_waiting(frames)
                frame.fresh = self._enter(frame)
            else:
                if sum(one.waits >= 0 for one in frames) >= WAITING_MAX:
                    raise PathError("copy", path, errno.ENAMETOOLONG)
                frame.waits = os.dup(below)
        except BaseException:
            os.close(below)
            raise
        os.close(self._here)
        self._here = below
        frames.append(frame)

    def _make_waiting(self, frames: list[_Frame]) -> None:
        """Something in them is selected: the folders that lead there are made."""
        for frame in frames:
            if frame.waits >= 0:
                frame.made = frame.fresh = self._enter(frame)
                os.close(frame.waits)
                frame.waits = -1

    def _enter(self, frame: _Frame) -> bool:
        """The folder in the target; whether it was made."""
        place = f"{self._place}/{frame.path}"
        made = self._folder(self._there, frame.name, place)
        below = os.open(frame.name, FOLDER, dir_fd=self._there)
        os.close(self._there)
        self._there = below
        if not made:
            os.fchmod(below, stat.S_IMODE(frame.status.st_mode))
        return made

    def _folder(self, parent: int, name: str, place: str) -> bool:
        """Have a folder of this name; whether it was made."""
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        if status is not None and not stat.S_ISDIR(status.st_mode):
            if not self._how.replace:
                raise errors.Error(f"cannot copy to non-directory: {place}")
            self._target.remove(parent, name)
            status = None
        if status is None:
            os.mkdir(name, 0o700, dir_fd=parent)
        return status is None

    def _leave(self, frame: _Frame, top: bool) -> None:
        if frame.waits >= 0:
            os.close(frame.waits)
            frame.waits = -1
            return
        if frame.made:
            self._attributes(self._here, self._there, frame.status)
        elif top:
            self._times(self._there, frame.status)
        if frame.shared and self._later is not None:
            below = f"/{frame.path}" if frame.path else ""
            self._later.take(self._source, self._found + below, self._place + below, frame.shared, self._copied)
        if not top:
            self._there = _up(self._there)

    # Leaves

    def _as_it_is(self, status: os.stat_result) -> bool:
        """Whether it is a file whose copy would be like it in all that counts."""
        how, mode = self._how, stat.S_IMODE(status.st_mode)
        return (
            stat.S_ISREG(status.st_mode)
            and (how.owner is None or (how.owner.uid == status.st_uid and how.owner.gid == status.st_gid))
            and (how.mode is None or how.mode(mode, False) == mode)
            and (how.moment is None or how.moment == status.st_mtime_ns)
        )

    def _copied(self, here: int, name: str, there: int, status: os.stat_result, place: str) -> None:
        """later.Copy: one that cannot have one more name."""
        self._leaf(here, name, there, name, status, place, fresh=True)

    def _leaf(
        self, here: int, name: str, there: int, own: str, status: os.stat_result, place: str, fresh: bool = False
    ) -> None:
        """Anything but a folder, in place of what is there; `fresh`: nothing is."""
        self._how.check()
        if not fresh:
            self._clear(there, own, place)
        key = status.st_dev, status.st_ino
        several = status.st_nlink > 1 and stat.S_ISREG(status.st_mode)
        if several and key in self._linked and self._link(there, own, *self._linked[key]):
            return
        origin = os.open(name, _READ if stat.S_ISREG(status.st_mode) else NODE, dir_fd=here)
        try:
            made = self._make(origin, there, own, status)
            try:
                self._attributes(origin, made, status)
                if several and len(self._linked) < LINKED_MAX:
                    found = os.fstat(made)
                    self._linked[key] = place, (found.st_dev, found.st_ino)
            finally:
                os.close(made)
        finally:
            os.close(origin)

    def _clear(self, there: int, own: str, place: str) -> None:
        try:
            before = os.stat(own, dir_fd=there, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(before.st_mode):
            os.unlink(own, dir_fd=there)
        elif self._how.replace:
            self._target.remove(there, own)
        else:
            raise errors.Error(f"cannot replace to directory {place} with file")

    def _link(self, there: int, own: str, place: str, expected: tuple[int, int]) -> bool:
        """One more name for what was made before; False where that is no longer there."""
        try:
            folder, name = self._target.parent(place)
        except OSError:
            return False
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if (found.st_dev, found.st_ino) != expected:
                return False
            os.link(name, own, src_dir_fd=folder, dst_dir_fd=there, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EMLINK):
                raise
            return False
        finally:
            os.close(folder)
        return True

    def _make(self, origin: int, there: int, own: str, status: os.stat_result) -> int:
        """The new one, open."""
        kind = stat.S_IFMT(status.st_mode)
        if kind in (stat.S_IFREG, stat.S_IFSOCK):
            # A socket is nobody's any more: an empty file says that there was one.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            made = os.open(own, flags, 0o600, dir_fd=there)
            try:
                if kind == stat.S_IFREG and status.st_size:
                    _contents(origin, made, status)
            except BaseException:
                os.close(made)
                raise
            return made
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(b"", dir_fd=origin), os.fsencode(own), dir_fd=there)
        else:
            os.mknod(own, kind | 0o600, status.st_rdev, dir_fd=there)
        return os.open(own, NODE, dir_fd=there)

    # Attributes

    def _attributes(self, origin: int, made: int, status: os.stat_result) -> None:
        """Owner, mode, times and extended attributes, in the order in which none undoes another."""
        how, kind = self._how, stat.S_IFMT(status.st_mode)
        before: int | str = origin
        after: int | str = made
        if kind not in (stat.S_IFREG, stat.S_IFDIR):  # what was not opened to be read has only a name
            before, after = f"/proc/self/fd/{origin}", f"/proc/self/fd/{made}"
        owner = how.owner or Owner(status.st_uid, status.st_gid)
        os.chown(after, owner.uid, owner.gid)
        if kind != stat.S_IFLNK:
            mode = stat.S_IMODE(status.st_mode)
            os.chmod(after, how.mode(mode, kind == stat.S_IFDIR) if how.mode is not None else mode)
        try:
            names = os.listxattr(before)
        except OSError:
            names = []
        for name in names:
            try:
                os.setxattr(after, name, os.getxattr(before, name))
            except OSError as error:
                log.debug("attribute %s is not copied: %s", name, error.strerror)
        self._times(after, status)

    def _times(self, made: int | str, status: os.stat_result) -> None:
        moment = self._how.moment
        times = (status.st_atime_ns, status.st_mtime_ns) if moment is None else (moment, moment)
        os.utime(made, ns=times)


def _contents(origin: int, made: int, status: os.stat_result) -> None:
    """The bytes of an open file. One with holes goes the way that keeps them."""
    left = status.st_size
    if status.st_blocks * 512 < left:
        copy_contents(origin, made, left)
        return
    while left:
        count = os.sendfile(made, origin, None, min(left, 1 << 30))
        if not count:
            return
        left -= count


def _names(folder: int) -> list[str]:
    """The last one first: they are taken from the end."""
    return sorted(os.listdir(folder), key=os.fsencode, reverse=True)


def _up(folder: int) -> int:
    above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    os.close(folder)
    return above
