# SPDX-License-Identifier: Apache-2.0
"""A folder of ours to the builder, by fsutil's protocol (told in teu.buildkit.session.fsutil). Called by session.

The builder names patterns, and paths whose links it wants followed; it hears of every entry that is left, and asks for
the files that it does not have. All is opened from the folder's descriptor, name by name, through no link.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat as modes
import threading

from teu.cli.builds.messages import decode, encode
from teu.cli.builds.places import Places
from teu.cli.builds.wire import UNKNOWN, BuildError
from teu.oci.fsutil import CHUNK, DATA, ERR, FIN, GO_DEVICE, GO_DIR, GO_SYMLINK, GO_TYPE, REQ, go_mode
from teu.oci.patterns import BadPattern, Patterns, has_wildcards, wildcard
from teu.ttrpc.codec import put_varint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from teu.http2.calls import Asked

PACKET = "teu.fsutil.Packet"
BATCH = 128  # STATs that go out together
READ = 8 * CHUNK  # bytes that are read at once
LINKS_MAX = 255  # that are followed for one path


class Unreadable(Exception):
    """The folder cannot be sent as it is; the text is for a person."""


class Entry:
    """One entry: its path below the folder, the open folder that it is in, its name there."""

    __slots__ = ("link", "name", "parent", "path", "status")

    def __init__(self, path: str, parent: int, name: str, status: os.stat_result) -> None:
        self.path = path
        self.parent = parent
        self.name = name
        self.status = status
        self.link = b""


def _prefix(pattern: str) -> list[str]:
    """The names at a pattern's begin that hold no wildcard."""
    names = []
    for name in pattern.split("/"):
        if has_wildcards(name):
            break
        names.append(name)
    return names


def _below(prefixes: list[list[str]], path: str) -> bool:
    """May any pattern with these begins match something in the folder `path`?"""
    names = path.split("/")
    return any(all(one == other for one, other in zip(prefix, names)) for prefix in prefixes)


class Selection:
    """Which entries of a folder the builder wants to hear of."""

    def __init__(self, include: list[str], exclude: list[str]) -> None:
        """Raises Unreadable for what is no pattern."""
        try:
            self._include, self._exclude = Patterns(include), Patterns(exclude)
        except BadPattern as error:
            raise Unreadable(str(error)) from None
        self._wanted = [_prefix(posixpath.normpath(text)) for text in include]
        self._back = [_prefix(posixpath.normpath(text[1:].strip())) for text in exclude if text.startswith("!")]
        self._all = not self._include

    def walk(self, folder: int) -> Iterator[Entry]:
        """The entries in the protocol's order. A folder that nobody wants for itself comes before the first entry in it
        that somebody wants. The entry's parent is open until the next step."""
        stack = [_Level("", os.dup(folder), None, (), ())]
        try:
            while stack:
                level = stack[-1]
                item = next(level.items, None)
                if item is None:
                    os.close(level.descriptor)
                    stack.pop()
                    continue
                path = f"{level.path}/{item.name}" if level.path else item.name
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                entry = Entry(path, level.descriptor, item.name, status)
                included, in_parents = (True, ()) if self._all else self._include.matches(path, level.included)
                excluded, ex_parents = self._exclude.matches(path, level.excluded) if self._exclude else (False, ())
                wanted = included and not excluded
                if modes.S_ISDIR(status.st_mode):
                    if (included or _below(self._wanted, path)) and (not excluded or _below(self._back, path)):
                        if wanted:
                            yield from _waiting(stack)
                            yield entry
                        inner = _open(level.descriptor, item.name, path)
                        if inner >= 0:
                            stack.append(_Level(path, inner, None if wanted else entry, in_parents, ex_parents))
                elif wanted:
                    yield from _waiting(stack)
                    yield entry
        finally:
            for level in stack:
                os.close(level.descriptor)


class _Level:
    """A folder that is being walked."""

    __slots__ = ("descriptor", "excluded", "included", "items", "path", "untold")

    def __init__(
        self, path: str, descriptor: int, untold: Entry | None, included: tuple[bool, ...], excluded: tuple[bool, ...]
    ) -> None:
        self.path = path
        self.descriptor = descriptor
        self.untold = untold  # the folder itself, where it comes only with something in it
        self.included = included
        self.excluded = excluded
        try:
            with os.scandir(descriptor) as found:
                self.items = iter(sorted(found, key=lambda item: os.fsencode(item.name)))
        except OSError as error:
            raise Unreadable(f"open {path or '.'}: {str(error.strerror).lower()}") from None


def _waiting(stack: list[_Level]) -> Iterator[Entry]:
    """Folders on the way that were not told yet."""
    for level in stack:
        if level.untold is not None:
            yield level.untold
            level.untold = None


def _open(parent: int, name: str, path: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    except OSError as error:
        if error.errno == errno.ELOOP:
            return -1
        raise Unreadable(f"open {path}: {str(error.strerror).lower()}") from None


def stat_packet(entry: Entry, mode: int) -> bytes:
    """The packet that tells of an entry. By hand: there is one for each file of the context."""
    status = entry.status
    out = bytearray(b"\x0a")
    path = os.fsencode(entry.path)
    put_varint(out, len(path))
    out += path
    for number, value in ((0x10, mode), (0x18, status.st_uid), (0x20, status.st_gid)):
        if value:
            out.append(number)
            put_varint(out, value)
    if status.st_size and not mode & (GO_DIR | GO_DEVICE) and not (entry.link and not mode & GO_SYMLINK):
        out.append(0x28)
        put_varint(out, status.st_size)
    if status.st_mtime_ns:
        out.append(0x30)
        put_varint(out, status.st_mtime_ns)
    if entry.link:
        out.append(0x3A)
        put_varint(out, len(entry.link))
        out += entry.link
    if mode & GO_DEVICE:
        for number, value in ((0x40, os.major(status.st_rdev)), (0x48, os.minor(status.st_rdev))):
            out.append(number)
            put_varint(out, value)
    if not mode & GO_TYPE:
        for name, content in _xattrs(entry):
            pair = encode("teu.fsutil.Stat.XattrsEntry", key=name, value=content)
            out.append(0x52)
            put_varint(out, len(pair))
            out += pair
    packet = bytearray(b"\x12")
    put_varint(packet, len(out))
    return bytes(packet + out)


def _xattrs(entry: Entry) -> list[tuple[str, bytes]]:
    """Those that belong to the file itself, not to this host."""
    place = f"/proc/self/fd/{entry.parent}/{entry.name}"
    try:
        names = os.listxattr(place, follow_symlinks=False)
        return [
            (name, os.getxattr(place, name, follow_symlinks=False))
            for name in names
            if name.startswith("user.") or name == "security.capability"
        ]
    except (OSError, UnicodeError):
        return []


def data_packets(number: int, data: bytes) -> list[bytes]:
    """The packets with a part of a file."""
    head = bytearray(b"\x08\x02")
    if number:
        head.append(0x18)
        put_varint(head, number)
    packets = []
    for at in range(0, len(data), CHUNK):
        part = data[at : at + CHUNK]
        out = bytearray(head)
        out.append(0x22)
        put_varint(out, len(part))
        packets.append(bytes(out + part))
    return packets


def follow(folder: int, paths: list[str]) -> list[str]:
    """These paths and what links in them lead to, inside the folder; no path where all of the folder is meant."""
    found: set[str] = set()
    work = [(posixpath.normpath("/" + path).lstrip("/"), "") for path in paths]
    steps = 0
    while work:
        rest, done = work.pop()
        steps += 1
        if not rest or steps > LINKS_MAX * (len(paths) + 1):
            if not rest:
                return []
            continue
        name, _, rest = rest.partition("/")
        current = f"{done}/{name}" if done else name
        targets = _targets(folder, done, name)
        if targets is None:
            if rest:
                work.append((rest, current))
            else:
                found.add(current)
            continue
        if current in found:
            continue
        found.add(current)
        work += [(posixpath.normpath(f"/{target}/{rest}").lstrip("/"), "") for target in targets]
    kept: list[str] = []
    for path in sorted(found):
        if not kept or not path.startswith(kept[-1] + "/"):
            kept.append(path)
    return kept


def _targets(folder: int, parent: str, name: str) -> list[str] | None:
    """Where a name leads that is a link, or a pattern of names; None for anything else."""
    places = Places(folder)
    try:
        descriptor = places.parent(f"{parent}/{name}" if parent else name)[0]
        if has_wildcards(name):
            return _matching(descriptor, parent, name)
        link = _link(descriptor, parent, name)
        return None if link is None else [link]
    except OSError:
        return None
    finally:
        places.close()


def _matching(descriptor: int, parent: str, name: str) -> list[str] | None:
    try:
        expression = wildcard(name)
        names = [other for other in os.listdir(f"/proc/self/fd/{descriptor}") if expression.fullmatch(other)]
    except (OSError, BadPattern):
        return None
    found = []
    for other in names:
        here = f"{parent}/{other}" if parent else other
        found.append(_link(descriptor, parent, other) or here)
        if found[-1] != here:
            found.append(here)
    return found or None


def _link(descriptor: int, parent: str, name: str) -> str | None:
    try:
        target = os.readlink(name, dir_fd=descriptor)
    except OSError:
        return None
    return posixpath.normpath(f"/{target}" if target.startswith("/") else f"/{parent}/{target}").lstrip("/")


class Sender:
    """One transfer: the builder's call DiffCopy for one of our folders."""

    def __init__(self, asked: Asked, folder: int, selection: Selection, failed: Callable[[str], None]) -> None:
        """failed: is told what cannot be read, before the builder is."""
        self._asked = asked
        self._say_failed = failed
        self._folder = folder
        self._places = Places(folder)
        self._selection = selection
        self._files: dict[int, str] = {}
        self._failed: Unreadable | BuildError | None = None

    def run(self) -> None:
        """Send what is wanted; ends when the builder has it. Raises Unreadable and BuildError."""
        telling = threading.Thread(target=self._tell, daemon=True)
        telling.start()
        try:
            for message in self._asked:
                packet = decode(PACKET, message)
                if packet["type"] == REQ:
                    self._send_file(packet["ID"])
                elif packet["type"] == FIN:
                    telling.join()
                    self._asked.send(encode(PACKET, type=FIN))
                    break  # the builder's last word, though its end of the stream stays open
                elif packet["type"] == ERR:
                    raise BuildError(UNKNOWN, f"error from receiver: {packet['data'].decode('utf-8', 'replace')}")
        finally:
            self._places.close()
        if self._failed is not None:
            raise self._failed

    def _tell(self) -> None:
        """The walk, while files are asked for already."""
        try:
            self._walk()
        except Unreadable as error:
            self._failed = error
            self._complain(str(error))
        except OSError as error:
            self._failed = Unreadable(f"{error.filename or 'context'}: {error.strerror}")
            self._complain(str(self._failed))
        except BuildError as error:
            self._failed = error

    def _complain(self, text: str) -> None:
        self._say_failed(text)
        try:
            self._asked.send(encode(PACKET, type=ERR, data=text.encode("utf-8", "replace")))
            self._asked.finish(UNKNOWN, text)
        except BuildError:
            pass  # there is nobody to be told

    def _walk(self) -> None:
        seen: dict[tuple[int, int], bytes] = {}
        batch: list[bytes] = []
        number = 0
        for entry in self._selection.walk(self._folder):
            status = entry.status
            mode = go_mode(status.st_mode)
            if mode & GO_SYMLINK:
                try:
                    entry.link = os.readlink(os.fsencode(entry.name), dir_fd=entry.parent)
                except OSError:
                    continue
            elif status.st_nlink > 1 and not mode & GO_DIR:
                path = os.fsencode(entry.path)
                first = seen.setdefault((status.st_dev, status.st_ino), path)
                if first != path:
                    entry.link = first
            if not mode & GO_TYPE:
                self._files[number] = entry.path
            batch.append(stat_packet(entry, mode))
            number += 1
            if len(batch) >= BATCH:
                self._asked.send(*batch)
                batch.clear()
        self._asked.send(*batch, b"")

    def _send_file(self, number: int) -> None:
        path = self._files.pop(number, None)
        if path is None:
            raise BuildError(UNKNOWN, f"invalid file id {number}")
        how = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        try:
            descriptor = self._places.open(path, how)
        except (FileNotFoundError, NotADirectoryError):
            self._end_file(number, [])  # it has gone since it was told of
            return
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EXDEV, errno.ENXIO):  # another kind of file by now
                self._end_file(number, [])
                return
            raise Unreadable(f"open {path}: {str(error.strerror).lower()}") from None
        try:
            if not modes.S_ISREG(os.fstat(descriptor).st_mode):
                self._end_file(number, [])
                return
            data = os.read(descriptor, READ)
            while len(data) == READ:
                self._asked.send(*data_packets(number, data))
                data = os.read(descriptor, READ)
            while more := os.read(descriptor, READ):
                data += more
            self._end_file(number, data_packets(number, data))
        except OSError as error:
            raise Unreadable(f"read {path}: {str(error.strerror).lower()}") from None
        finally:
            os.close(descriptor)

    def _end_file(self, number: int, packets: list[bytes]) -> None:
        self._asked.send(*packets, encode(PACKET, type=DATA, ID=number))
