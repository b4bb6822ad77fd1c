# SPDX-License-Identifier: Apache-2.0
"""fsutil's protocol: a folder from a sender to a receiver, who already has most of it. Called by filesync.

    sender    STAT, STAT, … in the order of the names, a folder before what is in it; an empty STAT at the end
    receiver  REQ id     for a file whose bytes it wants; id: how many STATs came before the file's own
    sender    DATA id …  its bytes, in any order of files; empty: its end
    receiver  FIN        when it has all it wants
    sender    FIN        and the call ends; ERR with a text ends it from both sides at any time

The receiver compares each entry with what is in its folder (kind, mode, owner, link, device, and of what is no folder
size and time) and asks for files that differ. It goes through its own folder in the same order meanwhile, and removes
what the sender does not have.

The sender is not trusted. A path is relative, clean, after the one before, in a folder that came before; it is opened
by the kernel from the folder's descriptor, through no link and across no mount; what stood in the way is
removed, never written through. A file is made anew, so that no other link to it changes; its time is set last, so that
what a broken transfer left is told from what is whole. Hard links are made at the end, to files of this transfer.
"""

from __future__ import annotations

import collections
import errno
import hashlib
import os
import stat as modes
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from teu.api.buildkit.fsutil import raw_pb2
from teu.buildkit.core import errors
from teu.buildkit.session.rpc import Call
from teu.linux import trees
from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from teu.oci.fsutil import (
    CHUNK,
    DATA,
    ERR,
    FIN,
    GO_CHARACTER,
    GO_DEVICE,
    GO_DIR,
    GO_FIFO,
    GO_SYMLINK,
    GO_TYPE,
    NAME_MAX,
    PATH_MAX,
    REQ,
    STAT,
    Order,
    go_mode,
    permissions,
)

Packet = raw_pb2.Packet
Stat = raw_pb2.Stat

METADATA = b".fsutil-metadata"  # at the root of what was received
METADATA_MAX = 256 << 20  # bytes of it
WANTED_AT_ONCE = 256  # files asked for and not yet here; each may be open
BATCH = 64  # REQs that go out together
XATTRS_MAX, XATTR_SIZE_MAX = 64, 64 << 10
# Others belong to this host (security.selinux), or mean something to overlayfs, on which the folder will lie.
XATTRS = ("user.",)
XATTRS_EXACT = ("security.capability",)
KINDS = (0, GO_DIR, GO_SYMLINK, GO_FIFO, GO_DEVICE, GO_DEVICE | GO_CHARACTER)  # of files that can travel
BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV


class Limits(NamedTuple):
    """What one transfer may be at most."""

    entries: int = 1_000_000
    size: int = 1 << 40  # bytes of all files that were asked for


class How(NamedTuple):
    """How a folder is received. `differ` false: every file travels, whatever is here. `wants`: only what it says of
    travels, with the folders that lead there; of all entries the file METADATA tells, each with its length in front.
    `came`: called with how many bytes have come so far."""

    differ: bool = True
    wants: Callable[[bytes], bool] | None = None
    came: Callable[[int], None] = lambda size: None


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class Change(NamedTuple):
    """One difference between the folder as it was and as it is."""

    kind: str  # add, modify, delete
    path: bytes
    stat: Any  # None of what is deleted
    digest: str  # sha256:… of a file, by the hash that was begun for it; "" of anything else


class Received(NamedTuple):
    entries: int  # in the sender's folder
    files: int  # whose bytes travelled
    size: int  # bytes that travelled
    deleted: int  # entries that went, with what was in them


def found(folder: int) -> Iterator[tuple[bytes, int, bytes, os.stat_result, bytes]]:
    """Everything below an open folder, in the protocol's order: path, the folder that it is in, its name there, its
    status, and where it leads: a symbolic link's target, or the path that came before of the same file."""
    seen: dict[int, bytes] = {}
    for path, parent, name, status in trees.walk(folder, mounts=False):
        link = b""
        if modes.S_ISLNK(status.st_mode):
            try:
                link = os.readlink(name, dir_fd=parent)
            except OSError:
                continue  # it is something else by now
        elif status.st_nlink > 1 and not modes.S_ISDIR(status.st_mode):
            first = seen.setdefault(status.st_ino, path)
            if first != path:
                link = first
        yield path, parent, name, status, link


def walk(folder: int) -> Iterator[tuple[Any, int, bytes]]:
    """(Stat, the folder it is in, its name there) of everything below an open folder, as a sender tells it."""
    for path, parent, name, status, link in found(folder):
        mode = go_mode(status.st_mode)
        entry = Stat(path=path, mode=mode, uid=status.st_uid, gid=status.st_gid, modTime=status.st_mtime_ns)
        if link:
            entry.linkname = link
        if not mode & GO_DIR and (not link or mode & GO_SYMLINK):
            entry.size = status.st_size
        if mode & GO_DEVICE:
            entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        yield entry, parent, name


def same(status: os.stat_result, link: bytes, new: Any) -> bool:
    """Is what is here what the sender has, as far as can be told without reading it?"""
    mode = go_mode(status.st_mode)
    if mode != new.mode or status.st_uid != new.uid or status.st_gid != new.gid or link != new.linkname:
        return False
    major, minor = (os.major(status.st_rdev), os.minor(status.st_rdev)) if mode & GO_DEVICE else (0, 0)
    if major != new.devmajor or minor != new.devminor:
        return False
    if mode & GO_DIR:
        return True
    size = status.st_size if not link or mode & GO_SYMLINK else 0
    return bool(size == new.size and status.st_mtime_ns == new.modTime)


def problem(error: OSError, path: bytes) -> errors.Error:
    """What the host's file system said, for the person who waits."""
    kind = errors.ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else errors.Error
    return kind(f"{os.fsdecode(path)}: {error.strerror}")


class _File:
    """A file that was asked for."""

    __slots__ = ("descriptor", "hash", "kind", "stat")

    def __init__(self, entry: Any, kind: str) -> None:
        self.stat = entry
        self.kind = kind
        self.descriptor = -1
        self.hash: Hash | None = None


class _Receiver:
    def __init__(
        self,
        call: Call[Any],
        folder: int,
        limits: Limits,
        notify: Callable[[Change], None] | None,
        hash_of: Callable[[Any], Hash],
        how: How,
    ) -> None:
        self._call = call
        self._how = how
        self._listing = bytearray()
        self._above: list[tuple[int, Any]] = []  # folders that lead here and were not made
        self._folder = folder
        self._limits = limits
        self._notify = notify
        self._hash_of = hash_of
        self._order = Order()
        self._here = found(folder)
        self._next = next(self._here, None)
        self._parent: tuple[bytes, int] = (b"", -1)
        self._files: set[bytes] = set()  # that hard links may lead to
        self._made: set[bytes] = set()  # of these, those that are not what was here
        self._wanted: collections.deque[tuple[int, _File]] = collections.deque()
        self._coming: dict[int, _File] = {}
        self._asks: list[Any] = []
        self._links: list[tuple[Any, str]] = []
        self._times: dict[bytes, int] = {}
        self._entries = self._count = self._size = self._deleted = 0
        self._told = self._finished = False

    def run(self) -> Received:
        try:
            while (packet := self._call.receive()) is not None:
                self._packet(packet)
                if self._asks and (len(self._asks) >= BATCH or not self._call.waiting()):
                    self._call.send_many(self._asks)
                    self._asks.clear()
                if self._told and not self._coming and not self._wanted and not self._finished:
                    self._finish()
        finally:
            self._here.close()  # type: ignore[attr-defined]
            if self._parent[1] >= 0:
                os.close(self._parent[1])
            for file in self._coming.values():
                if file.descriptor >= 0:
                    os.close(file.descriptor)
        if not self._finished:
            raise errors.Unavailable("the client ended the transfer before it was whole")
        return Received(self._entries, self._count, self._size, self._deleted)

    def _packet(self, packet: Any) -> None:
        if packet.type == STAT:
            if self._told:
                raise errors.InvalidArgument("the client tells of entries after it told the last one")
            if packet.HasField("stat"):
                self._stat(packet.stat)
            else:
                self._told = True
                while self._next is not None:
                    self._delete_next()
        elif packet.type == DATA:
            self._data(packet.ID, packet.data)
        elif packet.type == ERR:
            raise errors.Error(f"error from sender: {errors.cut(packet.data.decode(errors='replace'), 4096)}")
        elif packet.type == FIN and not self._finished:
            raise errors.InvalidArgument("the client finished before it was asked to")

    # Entries.

    def _tell(self, kind: str, path: bytes, entry: Any, digest: str = "") -> None:
        if self._notify is not None:
            self._notify(Change(kind, path, entry, digest))

    def _delete_next(self) -> None:
        assert self._next is not None
        path = self._next[0]
        self._remove(path)
        self._deleted += 1
        self._tell("delete", path, None)
        self._next = next(self._here, None)

    def _stat(self, entry: Any) -> None:
        number = self._entries
        self._entries += 1
        if self._entries > self._limits.entries:
            raise errors.ResourceExhausted(f"the context has more than {self._limits.entries} entries")
        path, kind = entry.path, entry.mode & GO_TYPE
        try:
            names = self._order.check(path, bool(kind & GO_DIR))
        except ValueError as error:
            raise errors.InvalidArgument(str(error)) from None
        if kind not in KINDS:
            raise errors.InvalidArgument(
                f"{os.fsdecode(entry.path)}: a kind of file that cannot travel ({entry.mode:#x})"
            )
        if entry.size < 0:
            raise errors.InvalidArgument(f"{os.fsdecode(entry.path)}: {entry.size} bytes")
        if self._how.wants is None:
            self._entry(number, entry, path, names, kind)
        elif path != METADATA:
            self._named(number, entry, names, kind, self._how.wants)

    def _named(self, number: int, entry: Any, names: list[bytes], kind: int, wants: Callable[[bytes], bool]) -> None:
        """An entry of a transfer of names: it is listed, and made where it is wanted all the same."""
        data = entry.SerializeToString()
        self._listing += struct.pack("<I", len(data)) + data
        if len(self._listing) > METADATA_MAX:
            raise errors.ResourceExhausted(f"the names of the context have more than {METADATA_MAX} bytes")
        while self._above and not entry.path.startswith(self._above[-1][1].path + b"/"):
            self._above.pop()
        if not wants(entry.path):
            if kind == GO_DIR:
                self._above.append((number, entry))
            return
        above, self._above = self._above, []
        for place, folder in above:
            self._entry(place, folder, folder.path, folder.path.split(b"/"), GO_DIR)
        self._entry(number, entry, entry.path, names, kind)

    def _entry(self, number: int, entry: Any, path: bytes, names: list[bytes], kind: int) -> None:
        if kind == GO_DIR:
            self._times[path] = entry.modTime
        elif kind != GO_SYMLINK:
            if not entry.linkname:
                self._files.add(path)
            elif entry.linkname not in self._files:
                target = os.fsdecode(entry.linkname)
                raise errors.InvalidArgument(f"invalid link {os.fsdecode(path)} to unknown path: {target!r}")
        while self._next is not None and self._next[0] != path and self._next[0].split(b"/") < names:
            self._delete_next()
        old: os.stat_result | None = None
        if self._next is not None and self._next[0] == path:
            _, _, _, old, link = self._next
            unchanged = same(old, link, entry) and not (entry.linkname and entry.linkname in self._made)
            unchanged = unchanged and (self._how.differ or kind == GO_DIR)
            if not unchanged and not (kind == GO_DIR and modes.S_ISDIR(old.st_mode)):
                self._remove(path)
            self._next = next(self._here, None)
            if unchanged:
                return
        try:
            self._make(number, entry, kind, old)
        except OSError as error:
            raise problem(error, path) from error

    def _make(self, number: int, entry: Any, kind: int, old: os.stat_result | None) -> None:
        path, change = entry.path, "add" if old is None else "modify"
        if kind not in (GO_DIR, GO_SYMLINK):
            self._made.add(path)
            if entry.linkname:
                self._links.append((entry, change))
                return
        if not kind:
            self._wanted.append((number, _File(entry, change)))
            self._ask()
            return
        parent, name = self._place(path)
        if kind == GO_DIR:
            if old is None or not modes.S_ISDIR(old.st_mode):
                os.mkdir(name, 0o700, dir_fd=parent)
            descriptor = openat2(parent, os.fsdecode(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, BENEATH)
            try:
                self._attributes(descriptor, entry)
            finally:
                os.close(descriptor)
        elif kind == GO_SYMLINK:
            if not entry.linkname or len(entry.linkname) > PATH_MAX or b"\0" in entry.linkname:
                raise errors.InvalidArgument(f"{os.fsdecode(path)}: a symbolic link to what cannot be a path")
            os.symlink(entry.linkname, name, dir_fd=parent)
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            _set_time(name, entry.modTime, parent)
        else:
            self._special(parent, name, entry, kind)
        self._tell(change, path, entry)

    def _special(self, parent: int, name: bytes, entry: Any, kind: int) -> None:
        device = 0
        if kind == GO_FIFO:
            mode = modes.S_IFIFO
        else:
            mode = modes.S_IFCHR if kind & GO_CHARACTER else modes.S_IFBLK
            if not (0 <= entry.devmajor < 1 << 12 and 0 <= entry.devminor < 1 << 20):
                raise errors.InvalidArgument(f"{os.fsdecode(entry.path)}: no such device")
            device = os.makedev(entry.devmajor, entry.devminor)
            if not device:
                # overlayfs takes such a file for the mark that what is below it was removed.
                raise errors.InvalidArgument(f"{os.fsdecode(entry.path)}: device 0:0 cannot be in a context")
        os.mknod(name, mode | 0o600, device, dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        # Nothing else works here, and a link cannot be here; chmod without following one is not to be had.
        os.chmod(f"/proc/self/fd/{parent}/{os.fsdecode(name)}", permissions(entry.mode))
        _set_time(name, entry.modTime, parent)

    def _attributes(self, descriptor: int, entry: Any) -> None:
        os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, permissions(entry.mode))
        if len(entry.xattrs) > XATTRS_MAX:
            raise errors.InvalidArgument(f"{os.fsdecode(entry.path)}: {len(entry.xattrs)} extended attributes")
        for name, value in entry.xattrs.items():
            wanted = name.startswith(XATTRS) or name in XATTRS_EXACT
            if wanted and "\0" not in name and len(name) <= NAME_MAX and len(value) <= XATTR_SIZE_MAX:
                try:
                    os.setxattr(descriptor, name, value)
                except OSError as error:
                    if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EINVAL, errno.ERANGE):
                        raise

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """The open folder that path is in, good until the next call, and its name there."""
        folder, _, name = path.rpartition(b"/")
        if self._parent[1] < 0 or self._parent[0] != folder:
            opened = openat2(self._folder, os.fsdecode(folder) or ".", os.O_PATH | os.O_DIRECTORY, BENEATH)
            if self._parent[1] >= 0:
                os.close(self._parent[1])
            self._parent = (folder, opened)
        return self._parent[1], name

    def _remove(self, path: bytes) -> None:
        try:
            parent, name = self._place(path)
            trees.remove_tree(b"/proc/self/fd/%d/%s" % (parent, name))
        except (FileNotFoundError, NotADirectoryError):
            pass  # it went with the folder that it was in
        except OSError as error:
            raise problem(error, path) from error

    # Files.

    def _ask(self) -> None:
        while self._wanted and len(self._coming) < WANTED_AT_ONCE:
            number, file = self._wanted.popleft()
            self._coming[number] = file
            self._asks.append(Packet(type=REQ, ID=number))

    def _data(self, number: int, data: bytes) -> None:
        file = self._coming.get(number)
        if file is None:
            raise errors.InvalidArgument(f"invalid file request {number}")
        self._size += len(data)
        if self._size > self._limits.size:
            raise errors.ResourceExhausted(f"the context has more than {self._limits.size} bytes")
        self._how.came(self._size)
        try:
            if file.descriptor < 0:
                parent, name = self._place(file.stat.path)
                how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                file.descriptor = os.open(name, how, 0o600, dir_fd=parent)
                if self._notify is not None:
                    file.hash = self._hash_of(file.stat)
            if data:
                if file.hash is not None:
                    file.hash.update(data)
                _write(file.descriptor, data)
                return
            self._attributes(file.descriptor, file.stat)
            _set_time(file.descriptor, file.stat.modTime)
        except OSError as error:
            raise problem(error, file.stat.path) from error
        os.close(file.descriptor)
        del self._coming[number]
        self._count += 1
        digest = f"sha256:{file.hash.hexdigest()}" if file.hash is not None else ""
        self._tell(file.kind, file.stat.path, file.stat, digest)
        self._ask()

    def _finish(self) -> None:
        """All is here: links, then the times of folders, which everything before has changed."""
        for entry, change in self._links:
            try:
                source, source_name = self._place(entry.linkname)
                source = os.dup(source)
                try:
                    parent, name = self._place(entry.path)
                    os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                finally:
                    os.close(source)
            except OSError as error:
                raise problem(error, entry.path) from error
            self._tell(change, entry.path, entry)
        if self._how.wants is not None:
            self._list()
        for path, time in self._times.items():
            try:
                parent, name = self._place(path)
                if os.stat(name, dir_fd=parent, follow_symlinks=False).st_mtime_ns != time:
                    _set_time(name, time, parent)
            except OSError as error:
                raise problem(error, path) from error
        self._finished = True
        self._call.send(Packet(type=FIN))
        self._call.end()

    def _list(self) -> None:
        """The names of all entries, as a file; what was here under its name has been removed."""
        try:
            how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(METADATA, how, 0o644, dir_fd=self._folder)
            try:
                _write(descriptor, bytes(self._listing))
                os.fchmod(descriptor, 0o644)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise problem(error, METADATA) from error
        self._tell("modify", METADATA, None)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _set_time(file: int | bytes, time: int, parent: int | None = None) -> None:
    """Both times, in nanoseconds since 1970. What a file system cannot hold, it holds as it can."""
    time = max(-(1 << 62), min(1 << 62, time))
    if isinstance(file, int):
        os.utime(file, ns=(time, time))
    else:
        os.utime(file, ns=(time, time), dir_fd=parent, follow_symlinks=False)


def receive(
    call: Call[Any],
    folder: int,
    limits: Limits = Limits(),  # noqa: B008 (it is immutable)
    notify: Callable[[Change], None] | None = None,
    hash_of: Callable[[Any], Hash] = lambda entry: hashlib.sha256(),
    how: How = How(),  # noqa: B008 (it is immutable)
) -> Received:
    """Make the open folder what the sender's is. Errors are told to the sender, too; what has come stays, and the next
    transfer goes on from there.

    notify: called with each change, a file's once it is whole, with the digest of what `hash_of` (its Stat, before its
    first byte) began and its bytes went through."""
    try:
        return _Receiver(call, folder, limits, notify, hash_of, how).run()
    except errors.Error as error:
        try:
            call.send(Packet(type=ERR, data=error.message.encode(errors="replace")))
        except errors.Error:
            pass  # there is nobody to be told
        raise


class Tree(Protocol):
    """What can be sent: entries in the order of `walk`, and the bytes of a file among them."""

    def entries(self) -> Iterator[Any]: ...

    def read(self, path: bytes) -> Iterator[bytes]:
        """Nothing for a file that has gone meanwhile."""


class Folder:
    """An open folder as a Tree."""

    def __init__(self, folder: int) -> None:
        self.folder = folder

    def entries(self) -> Iterator[Any]:
        for entry, parent, name in walk(self.folder):
            if not entry.mode & GO_TYPE:
                for key, value in _xattrs(parent, name):
                    entry.xattrs[key] = value
            yield entry

    def read(self, path: bytes) -> Iterator[bytes]:
        try:
            descriptor = openat2(self.folder, os.fsdecode(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, BENEATH)
        except OSError:
            return
        with open(descriptor, "rb", buffering=0) as file:
            if modes.S_ISREG(os.fstat(descriptor).st_mode):
                while data := file.read(CHUNK):
                    yield data


def send(call: Call[Any], tree: Tree, progress: Callable[[int], None] = lambda size: None) -> None:
    """Send a tree to a receiver at the call's other end; returns when it has what it wants.

    progress: called with the bytes of each packet. A file that has gone meanwhile arrives empty, as fsutil has it."""
    files: dict[int, bytes] = {}
    batch: list[Any] = []
    for number, entry in enumerate(tree.entries()):
        if not entry.mode & GO_TYPE:
            files[number] = entry.path
        batch.append(Packet(type=STAT, stat=entry))
        if len(batch) >= BATCH:
            call.send_many(batch)
            batch.clear()
    call.send_many([*batch, Packet(type=STAT)])
    while (packet := call.receive()) is not None:
        if packet.type == ERR:
            raise errors.Error(f"error from receiver: {errors.cut(packet.data.decode(errors='replace'), 4096)}")
        if packet.type == REQ:
            path = files.pop(packet.ID, None)
            if path is None:
                raise errors.InvalidArgument(f"invalid file id {packet.ID}")
            for data in tree.read(path):
                call.send(Packet(type=DATA, ID=packet.ID, data=data))
                progress(len(data))
            call.send(Packet(type=DATA, ID=packet.ID))
        elif packet.type == FIN:
            call.send(Packet(type=FIN))
            call.end()


def _xattrs(parent: int, name: bytes) -> list[tuple[str, bytes]]:
    path = f"/proc/self/fd/{parent}/{os.fsdecode(name)}"
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return [(key, os.getxattr(path, key, follow_symlinks=False)) for key in names if key.startswith("user.")]
    except (OSError, UnicodeError):
        return []
