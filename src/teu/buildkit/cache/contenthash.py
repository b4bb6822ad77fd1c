# SPDX-License-Identifier: Apache-2.0
"""The digest of a tree of files, or of what a step selects of it: the slow cache key (BuildKit's cache/contenthash).

What counts of a file: mode, owner, size, type, target of a link, number of a device, extended attributes, and what is
in it. Times, inodes and hard links do not. The digests are BuildKit's own, byte for byte, so that keys of a cache that
it exported are found:

    file, link, device   sha256("mode" + decimal, "uid" .., "gid" .., "size" .., "typeflag" .., "linkname" .., "uname",
                         "gname", "devmajor" .., "devminor" .., each extended attribute and its value; the content)
    folder's header      the same of the folder itself
    folder               sha256(NUL, its header; for each entry, names in order: NUL + name, its digest), as text
    selection            sha256(for each path: path with NUL for "/", its digest), as text

A Tree remembers what it has found, and what changed is told to it: then only that file is read again, and only the
folders above it are added up again. Links are followed inside the root only, by what the tree knows; nothing is opened
but below the root, without following any link (openat2), so a tree that somebody changes meanwhile shows no file of
the host.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from teu.buildkit.core.patterns import Patterns, has_wildcards, wildcard
from teu.buildkit.core.selection import Selection as Selection
from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from teu.linux.trees import walk
from teu.oci import digest as digests

LINKS_MAX = 255  # of one path, as BuildKit has it
PIECE = 1 << 20
DEPTH_MAX = 10_000  # folders in folders
NOTHING = digests.of(b"")

FILE, FOLDER, LINK = 0, 1, 2

_WAY = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PATH_MAX = 4000


class NotInTree(FileNotFoundError):
    """There is no such path in the tree."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOENT, "no such file or directory", path)


class TooManyLinks(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(errno.ELOOP, "too many links", path)


@dataclass(slots=True, eq=False)
class _Node:
    """What is known of one path. `own`: digest of the file, or of the folder's header; `whole`: of the folder with all
    that is in it. `listed`: the entries are those that are there."""

    kind: int
    target: bytes = b""
    own: bytes | None = None
    whole: bytes | None = None
    listed: bool = False
    entries: dict[bytes, _Node] = field(default_factory=dict)


class Tree:
    """What is known of the content of one snapshot. Methods may be called by several threads.

    `bare`: the root itself has no mode and no owner that count, as that of a client's folder."""

    def __init__(self, *, bare: bool = False) -> None:
        self._lock = threading.RLock()
        self._root = _Node(FOLDER)
        self._bare = bare
        self.dirty = False  # there is more than dump() last said
        self.hashed = 0  # files that were read, and links and devices that were looked at, so far
        if bare:
            self._root.own = hashlib.sha256(b"").digest()

    # Keeping it

    def dump(self) -> bytes:
        """All of it, for `load`."""
        with self._lock:
            out = [b"\1" if self._bare else b"\0"]
            todo: list[tuple[bytes, _Node]] = [(b"", self._root)]
            while todo:
                name, node = todo.pop()
                flags = node.kind | node.listed << 2 | (node.own is not None) << 3 | (node.whole is not None) << 4
                out.append(struct.pack("<BHHI", flags, len(name), len(node.target), len(node.entries)))
                out += [name, node.target, node.own or b"", node.whole or b""]
                todo.extend(sorted(node.entries.items(), reverse=True))
            self.dirty = False
            return zlib.compress(b"".join(out), 1)

    @classmethod
    def load(cls, data: bytes) -> Tree:
        """What `dump` said. Raises ValueError where it is damaged: then nothing is known, which is no loss."""
        try:
            raw = zlib.decompress(data)
            tree = cls(bare=raw[:1] == b"\1")
            at = 1
            open_: list[tuple[_Node, int]] = []
            while True:
                flags, size, linked, count = struct.unpack_from("<BHHI", raw, at)
                at += 9
                name = raw[at : at + size]
                target = raw[at + size : at + size + linked]
                at += size + linked
                node = _Node(flags & 3, target, listed=bool(flags & 4))
                for bit in (8, 16):
                    if flags & bit:
                        if at + 32 > len(raw):
                            raise ValueError("cut off")
                        setattr(node, "own" if bit == 8 else "whole", raw[at : at + 32])
                        at += 32
                if open_:
                    above, left = open_[-1]
                    above.entries[name] = node
                    open_[-1] = (above, left - 1)
                else:
                    tree._root = node
                open_.append((node, count))
                while open_ and not open_[-1][1]:
                    open_.pop()
                if not open_:
                    return tree
        except (zlib.error, struct.error) as error:
            raise ValueError(f"the record of a tree is damaged: {error}") from None

    def fork(self) -> Tree:
        """The same knowledge, for a snapshot that was made of this one; what differs is to be told to it."""
        return Tree.load(self.dump())

    def changed(self, path: str | bytes) -> None:
        """What is at the path, and in it, is not what it was: made, changed or removed."""
        with self._lock:
            self.dirty = True
            parts = [part for part in os.fsencode(path).split(b"/") if part not in (b"", b".")]
            node = self._root
            if not parts:
                self._root = _Node(FOLDER, own=node.own if self._bare else None)
                return
            for part in parts[:-1]:
                node.whole = None
                below = node.entries.get(part)
                if below is None or below.kind != FOLDER:
                    # Nothing is known there: neither of what was there before.
                    node.entries.pop(part, None)
                    node.listed = False
                    return
                node = below
            node.whole = None
            node.listed = False
            node.entries.pop(parts[-1], None)

    # Asking it

    def checksum(self, root: int, selection: Selection) -> str:
        """The digest of what is selected; `root` is the open root of the tree. Raises NotInTree, TooManyLinks,
        BadPattern, or another OSError where something cannot be read."""
        with self._lock:
            asking = _Asking(self, root)
            try:
                return asking.checksum(selection)
            finally:
                asking.close()

    def checksums(self, root: int, selections: Sequence[Selection]) -> str:
        """One digest for several selections: the slow key of an input, for a step that selects them."""
        found = [self.checksum(root, one) for one in (selections or (Selection(),))]
        return digests.of(b"\0".join(one.encode() for one in found))


class _Asking:
    """One question to a tree, which is locked."""

    def __init__(self, tree: Tree, root: int) -> None:
        self.tree = tree
        self.root = root
        # The folder that was last looked into: what a selection has of one folder comes in a row.
        self.open_path: list[bytes] | None = None
        self.open = -1

    def close(self) -> None:
        if self.open >= 0:
            os.close(self.open)
            self.open, self.open_path = -1, None

    def checksum(self, selection: Selection) -> str:
        path = os.fsencode(selection.path)
        if not selection.wildcard and not selection.include and not selection.exclude and not selection.required:
            return self.of(path, selection.follow)
        prefix, found = self.select(selection)
        if not found:
            return NOTHING
        if len(found) == 1 and _last(path) == _last(found[0][0]):
            return _text(found[0][1])
        whole = hashlib.sha256()
        for name, own in found:
            whole.update(name.removeprefix(prefix).replace(b"/", b"\0") or b"\0")
            whole.update(_text(own).encode())
        return "sha256:" + whole.hexdigest()

    def of(self, path: bytes, follow: bool) -> str:
        real, node = self.resolve(path, follow)
        if node.kind == FOLDER:
            return _text(self.whole(real, node))
        return _text(self.own(real, node))

    # Where things are

    def listing(self, path: list[bytes], node: _Node) -> dict[bytes, _Node]:
        """The entries of a folder."""
        if not node.listed:
            descriptor = self.open_folder(path)
            try:
                self.fill(node, descriptor)
            finally:
                os.close(descriptor)
        return node.entries

    def fill(self, node: _Node, descriptor: int) -> None:
        before, node.entries = node.entries, {}
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                kind = FOLDER if entry.is_dir(follow_symlinks=False) else LINK if entry.is_symlink() else FILE
                node.entries[name] = self.entry(before.get(name), kind, descriptor, name)
        node.listed = True
        self.tree.dirty = True

    def entry(self, known: _Node | None, kind: int, folder: int, name: bytes) -> _Node:
        if known is not None and known.kind == kind:
            return known
        return _Node(kind, os.readlink(name, dir_fd=folder) if kind == LINK else b"")

    def resolve(self, path: bytes, follow: bool) -> tuple[list[bytes], _Node]:
        """Where the path leads in the tree, and what is there. Links and ".." end at the root."""
        todo = _parts(path)
        todo.reverse()
        way: list[tuple[bytes, _Node]] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                if way:
                    way.pop()
                continue
            above = way[-1][1] if way else self.tree._root
            node = None
            if above.kind == FOLDER:
                node = self.listing([name for name, _ in way], above).get(part)
            if node is None:
                raise NotInTree(os.fsdecode(path))
            if node.kind != LINK or (not todo and not follow):
                way.append((part, node))
                continue
            links += 1
            if links > LINKS_MAX:
                raise TooManyLinks(os.fsdecode(path))
            if node.target.startswith(b"/"):
                way.clear()
            todo.extend(reversed(_parts(node.target)))
        return [name for name, _ in way], way[-1][1] if way else self.tree._root

    # What is there

    def open_folder(self, path: Sequence[bytes]) -> int:
        """Open a folder of the tree. A path too long for one system call is gone in steps."""
        here = os.open(".", _FOLDER | os.O_CLOEXEC, dir_fd=self.root)
        at = 0
        while at < len(path):
            step = [path[at]]
            length = len(path[at])
            at += 1
            while at < len(path) and length + len(path[at]) < _PATH_MAX:
                length += len(path[at]) + 1
                step.append(path[at])
                at += 1
            try:
                below = openat2(here, os.fsdecode(b"/".join(step)), _FOLDER, _WAY)
            finally:
                os.close(here)
            here = below
        return here

    def own(self, path: list[bytes], node: _Node) -> bytes:
        """The digest of a file, a link, a device, or a folder's header."""
        if node.own is None:
            if self.open_path != path[:-1]:
                self.close()
                self.open = self.open_folder(path[:-1])
                self.open_path = path[:-1]
            self.hash(node, self.open, path[-1] if path else b".")
        assert node.own is not None
        return node.own

    def hash(self, node: _Node, folder: int, name: bytes) -> None:
        node.own = _digest(folder, name)
        self.tree.hashed += 1
        self.tree.dirty = True

    def whole(self, path: list[bytes], node: _Node) -> bytes:
        """The digest of a folder with all that is in it."""
        if node.whole is None:
            self.own(path, node)
            self.sweep(path, node)
            self.add_up(node)
        assert node.whole is not None
        return node.whole

    def sweep(self, path: list[bytes], top: _Node) -> None:
        """Give all below a folder their digests; folders that are known as a whole are not entered."""
        # The way to where the walk is, and what each folder of it was found to have.
        way: list[tuple[_Node, dict[bytes, _Node]]] = [(top, {})]

        def close(depth: int) -> None:
            while len(way) > depth:
                node, found = way.pop()
                node.entries = found
                node.listed = True

        def known(inner: bytes) -> bool:
            node = way[-1][1][inner.rpartition(b"/")[2]]
            if node.whole is None:
                way.append((node, {}))
                return False
            return True

        descriptor = self.open_folder(path)
        try:
            for inner, folder, name, status in walk(descriptor, mounts=False, skip=known):
                depth = inner.count(b"/") + 1
                if depth > DEPTH_MAX:
                    raise OSError(errno.ENAMETOOLONG, "folders in folders without an end", os.fsdecode(inner[:200]))
                close(depth)
                above, found = way[-1]
                mode = status.st_mode
                kind = FOLDER if stat.S_ISDIR(mode) else LINK if stat.S_ISLNK(mode) else FILE
                node = found[name] = self.entry(above.entries.get(name), kind, folder, name)
                if node.own is None:
                    self.hash(node, folder, name)
        finally:
            os.close(descriptor)
        close(0)
        self.tree.dirty = True

    def add_up(self, top: _Node) -> None:
        """The digests of a folder and the folders in it, from those of their entries."""
        todo = [(top, False)]
        while todo:
            node, ready = todo.pop()
            if node.whole is not None:
                continue
            if not ready:
                todo.append((node, True))
                todo.extend((below, False) for below in node.entries.values() if below.kind == FOLDER)
                continue
            assert node.own is not None
            whole = hashlib.sha256(b"\0" + _text(node.own).encode())
            for name, below in sorted(node.entries.items()):
                known = below.whole if below.kind == FOLDER else below.own
                assert known is not None
                whole.update(b"\0" + name + _text(known).encode())
            node.whole = whole.digest()

    # A selection

    def select(self, selection: Selection) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """What is selected, in order: (the beginning of all their paths that does not count, [(path, digest)])."""
        asked = b"/" + b"/".join(_parts(os.fsencode(selection.path)))
        asked = asked if asked != b"/" else b""
        header_counts = not selection.path.endswith("/")
        include, exclude = Patterns(selection.include), Patterns(selection.exclude)
        prefix, follow = asked, False
        expression = None
        if selection.wildcard:
            fixed: list[bytes] = []
            for part in _parts(asked):
                if has_wildcards(os.fsdecode(part)):
                    follow = True
                    break
                fixed.append(part)
            prefix = b"".join(b"/" + part for part in fixed)
            expression = wildcard(os.fsdecode(asked)) if asked else None
        found: list[_Selected] = []
        try:
            real, top = self.resolve(prefix, follow)
        except NotInTree:
            top, real = None, []
        if top is not None:
            for one in self._candidates(prefix, real, top, asked, expression, include, exclude):
                if one.folder and one.path == asked and not header_counts:
                    one.counts = False
                found.append(one)
        for required in selection.required:
            text = os.fsencode(required)
            if not any(one.selected and one.path.startswith(text) for one in found):
                raise NotInTree(required)
        result = []
        for one in found:
            if not one.selected:
                continue
            if one.node.kind == LINK and selection.follow and one.top:
                own = bytes.fromhex(self.of(one.path, True)[7:])
            else:
                own = self.own(one.real, one.node)
            result.append((one.path, own))
        return prefix, result

    def _candidates(
        self,
        prefix: bytes,
        real: list[bytes],
        top: _Node,
        asked: bytes,
        expression: re.Pattern[str] | None,
        include: Patterns,
        exclude: Patterns,
    ) -> Iterator[_Selected]:
        """Everything that the path selects, folders before what is in them; `selected` is right once all are there."""
        todo: list[tuple[bytes, list[bytes], _Node, _Selected | None, bytes | None]] = [(prefix, real, top, None, None)]
        while todo:
            path, place, node, above, base = todo.pop()
            if expression is None:
                base = asked if base is None else base
            elif base is None and expression.fullmatch(os.fsdecode(path)):
                base = path
            one = None
            if base is not None:
                one = _Selected(path, place, node, above)
                candidate = os.fsdecode(path[len(base) :].removeprefix(b"/"))
                wanted = True
                if include:
                    wanted, one.included = include.matches(candidate, above.included if above else ())
                if exclude:
                    out, one.excluded = exclude.matches(candidate, above.excluded if above else ())
                    wanted = wanted and not out
                if wanted:
                    one.mark()
                yield one
            if node.kind == FOLDER:
                entries = self.listing(place, node)
                for name in sorted(entries, reverse=True):
                    todo.append((path + b"/" + name, [*place, name], entries[name], one, base))


@dataclass(slots=True, eq=False)
class _Selected:
    path: bytes
    real: list[bytes]
    node: _Node
    above: _Selected | None  # the folder that it is in, where that is looked at too
    wanted: bool = False
    counts: bool = True
    included: tuple[bool, ...] = ()
    excluded: tuple[bool, ...] = ()

    @property
    def folder(self) -> bool:
        return self.node.kind == FOLDER

    @property
    def top(self) -> bool:
        return self.above is None

    @property
    def selected(self) -> bool:
        return self.wanted and self.counts

    def mark(self) -> None:
        """This is wanted, and with it the folders that lead to it."""
        one: _Selected | None = self
        while one is not None and not one.wanted:
            one.wanted = True
            one = one.above


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _last(path: bytes) -> bytes:
    """The last name of a path, "/" for the root, as Go's path.Base has it."""
    return path.rstrip(b"/").rpartition(b"/")[2] or b"/"


def _text(raw: bytes) -> str:
    return "sha256:" + raw.hex()


_TYPES = {stat.S_IFDIR: b"5", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFIFO: b"6"}


def header(status: os.stat_result, target: bytes, attributes: Sequence[tuple[bytes, bytes]]) -> bytes:
    """What of an entry is hashed before its content."""
    kind = stat.S_IFMT(status.st_mode)
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    mode = 0o777 if kind == stat.S_IFLNK else status.st_mode & 0o7777
    out = b"name" + b"mode%d" % mode + b"uid%d" % status.st_uid + b"gid%d" % status.st_gid
    out += b"size%d" % (status.st_size if kind == stat.S_IFREG else 0)
    out += b"typeflag" + _TYPES.get(kind, b"0") + b"linkname" + target + b"uname" + b"gname"
    out += b"devmajor%d" % (os.major(status.st_rdev) if device else 0)
    out += b"devminor%d" % (os.minor(status.st_rdev) if device else 0)
    for name, value in sorted(attributes):
        if name == b"security.capability" or not name.startswith((b"security.", b"system.")):
            out += name + value
    return out


def _attributes(place: int | str) -> list[tuple[bytes, bytes]]:
    try:
        names = os.listxattr(place) if isinstance(place, int) else os.listxattr(place, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA):
            return []
        raise
    found = []
    for name in names:
        try:
            value = (
                os.getxattr(place, name) if isinstance(place, int) else os.getxattr(place, name, follow_symlinks=False)
            )
        except OSError:
            continue
        found.append((os.fsencode(name), value))
    return found


def _digest(folder: int, name: bytes) -> bytes:
    """The digest of one entry of an open folder; of the folder itself for ".". No link is followed."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        # Not to be opened: a device may do anything then, a pipe waits. The kernel goes the path from the folder.
        target = os.readlink(name, dir_fd=folder) if kind == stat.S_IFLNK else b""
        attributes = _attributes(f"/proc/self/fd/{folder}/{os.fsdecode(name)}")
        return hashlib.sha256(header(status, target, attributes)).digest()
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(name, flags | (os.O_DIRECTORY if kind == stat.S_IFDIR else 0), dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if stat.S_IFMT(status.st_mode) != kind:
            raise OSError(errno.ESTALE, "it was exchanged while it was read", os.fsdecode(name))
        whole = hashlib.sha256(header(status, b"", _attributes(descriptor)))
        if kind == stat.S_IFREG and status.st_size:
            while piece := os.read(descriptor, PIECE):
                whole.update(piece)
        return whole.digest()
    finally:
        os.close(descriptor)
