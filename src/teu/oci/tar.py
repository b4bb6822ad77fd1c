# SPDX-License-Identifier: Apache-2.0
"""Reading and writing tar streams at the speed that layers need. Called for layers (teu-containerd's worker) and for
archives of images (`oci.archive`).

The standard library's tarfile builds an object graph per entry; a layer has tens of thousands of entries. Read here are
ustar, GNU (long names, base-256 numbers, old sparse files) and pax (with SCHILY.xattr and GNU.sparse 0.0, 0.1, 1.0).
Global pax headers are passed over, as docker and containerd do. Written is ustar, with a pax header where that cannot
say it.

A stream may have been made to hurt, so nothing here recurses, what is kept is bounded, every number fits what the
kernel takes, and no more is ever given than has come: the holes of a sparse file are told, not written.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 512
PAX_LIMIT = 8 << 20  # of all pax headers and long names of an entry: far above what is sane, far below what hurts
SPARSE_LIMIT = 1 << 18  # pieces of a sparse file
DIGITS_LIMIT = 30  # of a decimal number: more than any has that the kernel takes
ID_LIMIT = (1 << 32) - 2  # the highest user or group; one more is the kernel's "leave it"
OFFSET_LIMIT = (1 << 63) - 1
DEVICE_LIMIT = (1 << 32) - 1
TIME_LIMIT = (1 << 55) * 1_000_000_000  # nanoseconds: what utimensat(2) takes; file systems keep less

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_XATTR = "SCHILY.xattr."


class TarError(ValueError):
    """The stream is not a tar archive, or it ends early."""


class Entry:
    """What a header says, with the pax and GNU records before it. Times are nanoseconds, `sparse` is a list of (offset,
    length)."""

    __slots__ = (
        "devmajor",
        "devminor",
        "gid",
        "link",
        "mode",
        "mtime",
        "name",
        "size",
        "sparse",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(self) -> None:
        self.name = ""
        self.type = REGULAR
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.size = 0  # of the file; for a sparse one, with its holes
        self.mtime = 0  # nanoseconds
        self.link = ""
        self.devmajor = 0
        self.devminor = 0
        self.xattrs: dict[str, bytes] | None = None
        self.sparse: list[tuple[int, int]] | None = None  # (offset, length) of the data that follows


class Source:
    """A byte stream made of chunks, read without copying where a read does not cross a chunk's end."""

    def __init__(self, next_chunk: Callable[[], bytes]) -> None:
        self._next = next_chunk  # b"" at the end; it is not asked again then
        self._chunk = memoryview(b"")
        self._at = 0
        self._ended = False

    def _more(self) -> bytes:
        if self._ended:
            return b""
        chunk = self._next()
        self._ended = not chunk
        return chunk

    def read(self, length: int) -> bytes:
        """Exactly `length` bytes, or fewer at the end of the stream."""
        end = self._at + length
        if end <= len(self._chunk):
            data = self._chunk[self._at : end].tobytes()
            self._at = end
            return data
        return b"".join(self.pieces(length, short=True))

    def pieces(self, length: int, *, short: bool = False) -> Iterator[memoryview]:
        """`length` bytes, in pieces; TarError when the stream ends within, unless `short`."""
        while length:
            left = len(self._chunk) - self._at
            if not left:
                chunk = self._more()
                if not chunk:
                    if short:
                        return
                    raise TarError("unexpected end of the archive")
                self._chunk, self._at, left = memoryview(chunk), 0, len(chunk)
            take = min(left, length)
            piece = self._chunk[self._at : self._at + take]
            self._at += take
            length -= take
            yield piece

    def skip(self, length: int) -> None:
        """Pass over so many bytes and their padding. Raises TarError where the stream ends before."""
        for _ in self.pieces(length):
            pass

    def drain(self) -> bool:
        """Read to the end; whether anything but zeros was left."""
        trailing = any(self._chunk[self._at :].tobytes().strip(b"\0"))
        self._at = len(self._chunk)
        while chunk := self._more():
            trailing = trailing or bool(chunk.strip(b"\0"))
        return trailing


def _number(field: bytes) -> int:
    """An octal number, or GNU's base-256 for what octal cannot hold."""
    first = field[0]
    if first & 0x80:
        value = int.from_bytes(field, "big")
        bits = len(field) * 8
        if first == 0xFF:
            return value - (1 << bits)
        return value & ((1 << (bits - 1)) - 1)
    text = field.strip(b" \0").split(b"\0", 1)[0]
    if text.strip(b"01234567"):  # int() would take signs, prefixes and underscores
        raise TarError(f"bad number {field!r} in a header")
    return int(text, 8) if text else 0


def _string(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _decimal(text: str | bytes) -> int:
    """A decimal number with or without a sign, and nothing else of what int() takes; ValueError, which quotes nothing:
    the text may be MiBs long."""
    digits = text.removeprefix(b"-") if isinstance(text, bytes) else text.removeprefix("-")
    if not (digits.isdigit() and digits.isascii() and len(digits) <= DIGITS_LIMIT):
        raise ValueError("no decimal number where one must be")
    return int(text)


def _pax_time(text: str) -> int:
    """Decimal seconds, to nanoseconds."""
    whole, _, fraction = text.partition(".")
    try:
        value = _decimal(whole or "0") * 1_000_000_000
        nanoseconds = _decimal((fraction + "000000000")[:9].replace("-", "x")) if fraction else 0
    except ValueError:
        raise TarError(f"bad time {short(text)!r} in a pax header") from None
    return value - nanoseconds if whole.startswith("-") else value + nanoseconds


def _pax_records(data: bytes) -> list[tuple[str, bytes]]:
    records = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        try:
            length = _decimal(data[at:space])
        except ValueError:
            raise TarError("bad length in a pax header") from None
        if space < 0 or length < space - at + 3 or at + length > len(data) or data[at + length - 1] != 0x0A:
            raise TarError("bad record in a pax header")
        key, equals, value = data[space + 1 : at + length - 1].partition(b"=")
        if not equals or b"\0" in key:
            raise TarError("bad record in a pax header")
        records.append((key.decode("utf-8", "surrogateescape"), value))
        at += length
    return records


class _Extensions:
    """What extended headers have said about the next entry."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes]] = []
        self.name = ""
        self.link = ""
        self.size = 0

    def add(self, kind: bytes, data: bytes) -> None:
        """One extended header: of type x (pax), or L or K (GNU's long name and link)."""
        self.size += len(data)
        if self.size > PAX_LIMIT:
            raise TarError("extended headers too long")
        if kind == b"x":
            self.records += _pax_records(data)
        elif kind == b"L":
            self.name = _string(data)
        else:
            self.link = _string(data)

    def apply(self, entry: Entry, source: Source, stored: int) -> int:
        """Bytes of data that follow in the stream."""
        if self.name:
            entry.name = self.name
        if self.link:
            entry.link = self.link
        sparse: dict[str, str] = {}
        offsets: list[int] = []
        for key, value in self.records:
            if key.startswith(_XATTR):
                if entry.xattrs is None:
                    entry.xattrs = {}
                entry.xattrs[key[len(_XATTR) :]] = value
                continue
            text = value.decode("utf-8", "surrogateescape")
            try:
                if key == "size":
                    entry.size = stored = _decimal(text)
                elif key in ("GNU.sparse.offset", "GNU.sparse.numbytes"):
                    offsets.append(_decimal(text))
                elif key.startswith("GNU.sparse."):
                    sparse[key[len("GNU.sparse.") :]] = text
                else:
                    _set_field(entry, key, text)
            except ValueError:
                raise TarError(f"bad value of {short(key)} in a pax header") from None
        if sparse or offsets:
            stored = _pax_sparse(entry, source, stored, sparse, offsets)
        return stored


def _set_field(entry: Entry, key: str, text: str) -> None:
    """One record of a pax header that is about the entry alone; what it does not know it passes over."""
    if key == "path":
        entry.name = text
    elif key == "linkpath":
        entry.link = text
    elif key == "uid":
        entry.uid = _decimal(text)
    elif key == "gid":
        entry.gid = _decimal(text)
    elif key == "mtime":
        entry.mtime = _pax_time(text)


def _pairs(numbers: list[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise TarError("odd sparse map")
    return list(zip(numbers[::2], numbers[1::2]))


def _pax_sparse(entry: Entry, source: Source, stored: int, sparse: dict[str, str], offsets: list[int]) -> int:
    try:
        if sparse.get("major") == "1":
            entry.name = sparse.get("name", entry.name)
            entry.size = _decimal(sparse["realsize"])
            data = bytearray()
            lines, wanted = 0, -1  # of numbers, each on its line; the first tells how many pairs follow
            while not 0 <= wanted < lines:
                if len(data) > PAX_LIMIT:
                    raise TarError("sparse map too long")
                more = source.read(BLOCK)
                if len(more) < BLOCK:
                    raise TarError("unexpected end of the archive")
                data += more
                stored -= BLOCK
                lines += more.count(b"\n")
                if wanted < 0 and lines:
                    wanted = _decimal(bytes(data[: data.index(b"\n")])) * 2
                    if wanted < 0:
                        raise TarError("bad sparse map: negative length")
            numbers = [_decimal(line) for line in bytes(data).split(b"\n", wanted + 1)[1 : wanted + 1]]
        else:
            entry.name = sparse.get("name", entry.name)
            entry.size = _decimal(sparse.get("size") or sparse["realsize"])
            numbers = offsets or [_decimal(one) for one in sparse["map"].split(",")]
    except KeyError as error:
        raise TarError(f"bad sparse map: it has no {error.args[0]}") from None
    except TarError:
        raise
    except ValueError as error:
        raise TarError(f"bad sparse map: {error}") from None
    entry.sparse = _pairs(numbers)
    return stored


def _old_sparse(entry: Entry, block: bytes, source: Source) -> None:
    """GNU's type S: the map stands in the header and in blocks after it."""
    found: list[int] = []

    def take(data: bytes, count: int) -> None:
        for index in range(count):
            offset = data[index * 24 : index * 24 + 12]
            if not offset.strip(b"\0 "):
                break
            found.extend((_number(offset), _number(data[index * 24 + 12 : index * 24 + 24])))

    take(block[386:482], 4)
    more = block[482]
    while more:
        extra = source.read(BLOCK)
        if len(extra) < BLOCK:
            raise TarError("unexpected end of the archive")
        take(extra[:504], 21)
        more = extra[504]
        if len(found) > 2 * SPARSE_LIMIT:
            raise TarError("sparse map too long")
    entry.size = _number(block[483:495])
    entry.sparse = _pairs(found)
    entry.type = REGULAR


def entries(source: Source) -> Iterator[tuple[Entry, int]]:
    """Each entry with the number of bytes of its data in the stream, which the caller reads from `source` before it
    asks for the next; padding is skipped here."""
    extensions: _Extensions | None = None
    while block := _header_block(source):
        kind = block[156:157]
        stored = _number(block[124:136])
        if stored < 0:
            raise TarError("negative size in a header")
        if kind in b"xgLK":
            data = _extended_header(source, stored)
            if kind != b"g":
                extensions = extensions or _Extensions()
                extensions.add(kind, data)
            continue
        entry = _entry(block, kind, stored)
        if extensions is not None:
            stored = extensions.apply(entry, source, stored)
            extensions = None
        if kind == b"S":
            _old_sparse(entry, block, source)
        if entry.type == REGULAR and entry.name.endswith("/"):
            entry.type = DIRECTORY  # as the oldest writers tell one
        if entry.type in (HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO):
            stored = 0  # they have no data, whatever their size field says
        padding = -stored % BLOCK
        if stored < 0:
            raise TarError("negative size in a header")
        _check(entry)
        yield entry, stored
        if padding:
            source.skip(padding)


def _header_block(source: Source) -> bytes:
    """The next header, whose checksum is right; empty at the archive's end."""
    block = source.read(BLOCK)
    if not block:
        return b""  # without the two blocks of zeros: many writers forget them
    if len(block) < BLOCK:
        raise TarError("unexpected end of the archive")
    if block[0] == 0 and not block.strip(b"\0"):
        return b""
    checksum = block[148:156].strip(b" \0")
    if checksum.strip(b"01234567") or not checksum or int(checksum, 8) != sum(block) - sum(block[148:156]) + 256:
        raise TarError("bad checksum of a header: not a tar archive, or damaged")
    return block


def _extended_header(source: Source, size: int) -> bytes:
    if size > PAX_LIMIT:
        raise TarError("extended header too long")
    data = source.read(size)
    if len(data) < size:
        raise TarError("unexpected end of the archive")
    source.skip(-size % BLOCK)
    return data


def _entry(block: bytes, kind: bytes, size: int) -> Entry:
    """What the header itself says."""
    entry = Entry()
    entry.name = _string(block[:100])
    entry.mode = _number(block[100:108]) & 0o7777
    entry.uid = _number(block[108:116])
    entry.gid = _number(block[116:124])
    entry.size = size
    entry.mtime = _number(block[136:148]) * 1_000_000_000
    entry.type = REGULAR if kind in (b"\0", b"7") else kind
    entry.link = _string(block[157:257])
    if block[257:263] == b"ustar\0":
        prefix = _string(block[345:500])
        if prefix:
            entry.name = f"{prefix}/{entry.name}"
    if kind in b"34":
        entry.devmajor, entry.devminor = _number(block[329:337]), _number(block[337:345])
    return entry


def _check(entry: Entry) -> None:
    """That the kernel can be asked for it; a time that it does not know is the epoch, as for containerd."""
    name = short(entry.name)
    if not (0 <= entry.uid <= ID_LIMIT and 0 <= entry.gid <= ID_LIMIT):
        raise TarError(f"entry {name!r} has the owner {entry.uid}:{entry.gid}: users and groups are 0 to {ID_LIMIT}")
    if not 0 <= entry.size <= OFFSET_LIMIT:
        raise TarError(f"entry {name!r} has the size {entry.size}")
    if not (0 <= entry.devmajor <= DEVICE_LIMIT and 0 <= entry.devminor <= DEVICE_LIMIT):
        raise TarError(f"entry {name!r} is the device {entry.devmajor}:{entry.devminor}, which cannot be")
    if "\0" in entry.name or "\0" in entry.link:
        raise TarError(f"entry {name!r} has a zero byte in its name or its link")
    if abs(entry.mtime) > TIME_LIMIT:
        entry.mtime = 0


def short(name: str) -> str:
    """A name for an error's text."""
    return name if len(name) <= 256 else f"{name[:120]}…{name[-120:]}"


# Writing


def _octal(value: int, width: int) -> bytes | None:
    """`width` - 1 octal digits and a zero byte, or None when it does not fit."""
    if value < 0 or value >= 1 << 3 * (width - 1):
        return None
    return b"%0*o\0" % (width - 1, value) if value else _ZERO8 if width == 8 else _ZERO12


def _pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    total = length + len(str(length))
    total = length + len(str(total))
    return b"%d %s=%s\n" % (total, key, value)


_ZERO8, _ZERO12 = b"0000000\0", b"00000000000\0"


def _header(
    name: bytes,
    kind: bytes,
    mode: int,
    size: bytes,
    *,
    uid: bytes = _ZERO8,
    gid: bytes = _ZERO8,
    mtime: bytes = _ZERO12,
    link: bytes = b"",
    major: bytes = _ZERO8,
    minor: bytes = _ZERO8,
    prefix: bytes = b"",
) -> bytes:
    """One header; numbers are octal digits with the zero byte at their end."""
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0" % mode,
            uid,
            gid,
            size,
            mtime,
            b"        ",
            kind,
            link.ljust(100, b"\0"),
            b"ustar\x00" + b"00",  # the version is two digits, no part of the NUL
            bytes(64),
            major,
            minor,
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block.translate(None, b"\0")) + block[156:]  # zeros, most of it, add nothing


def pack(entry: Entry) -> bytes:
    """The header, or headers, of an entry; its data and padding follow."""
    records = b""
    name = entry.name.encode("utf-8", "surrogateescape")
    link = entry.link.encode("utf-8", "surrogateescape")
    short, prefix = name, b""
    if len(name) > 100:
        cut = name.rfind(b"/", 0, 156)
        if cut > 0 and len(name) - cut - 1 <= 100 and cut < len(name) - 1:
            prefix, short = name[:cut], name[cut + 1 :]
        else:
            records += _pax_record(b"path", name)
            short = name[:100]
    short_link = link
    if len(link) > 100:
        records += _pax_record(b"linkpath", link)
        short_link = link[:100]
    seconds, nanoseconds = divmod(entry.mtime, 1_000_000_000)
    mtime = _octal(seconds, 12)
    if mtime is None or nanoseconds:
        # pax times are decimal: below zero the fraction counts away from zero
        text = f"{seconds}.{nanoseconds:09d}" if seconds >= 0 else f"{entry.mtime / 1e9:.9f}"
        records += _pax_record(b"mtime", (text.rstrip("0").rstrip(".") if "." in text else text).encode())
    numbers: dict[bytes, bytes] = {}
    for key, value, width in ((b"uid", entry.uid, 8), (b"gid", entry.gid, 8), (b"size", entry.size, 12)):
        octal = _octal(value, width)
        if octal is None:
            records += _pax_record(key, b"%d" % value)
        numbers[key] = octal or (_ZERO8 if width == 8 else _ZERO12)
    for attribute, content in sorted((entry.xattrs or {}).items()):
        records += _pax_record((_XATTR + attribute).encode("utf-8", "surrogateescape"), content)
    block = _header(
        short,
        entry.type,
        entry.mode & 0o7777,
        numbers[b"size"],
        uid=numbers[b"uid"],
        gid=numbers[b"gid"],
        mtime=mtime or _ZERO12,
        link=short_link,
        major=_octal(entry.devmajor, 8) or _ZERO8,
        minor=_octal(entry.devminor, 8) or _ZERO8,
        prefix=prefix,
    )
    if not records:
        return block
    base = name.rsplit(b"/", 1)[-1][:80]
    size = _octal(len(records), 12) or _ZERO12
    extended = _header(b"PaxHeaders.0/" + base, b"x", 0o644, size)
    return extended + records + bytes(-len(records) % BLOCK) + block


END = bytes(2 * BLOCK)
