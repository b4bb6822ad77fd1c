# SPDX-License-Identifier: Apache-2.0
"""tar archives of every dialect, made header by header, so that what no library would write can be written: v7, ustar,
GNU (long names, base-256 numbers, old sparse files) and pax (with every key that is read, and some that are not)."""

from __future__ import annotations

import random

from fuzz import shapes

KINDS = b"0\0 7123456SLKxgVMNXA"
NAMES = (
    "a",
    "b",
    "d/",
    "d/a",
    "d/e/f",
    "link",
    "link/x",
    "link/../y",
    "./",
    ".",
    "",
    "/",
    "..",
    "../x",
    "../../x",
    "/etc/passwd",
    "/tmp/fuzz-escaped",
    "../../../../../../tmp/fuzz-escaped",
    "d/../../x",
    "./a",
    "a//b",
    "a/.",
    "a/..",
    ".wh.a",
    ".wh.",
    ".wh..",
    ".wh..wh..opq",
    "d/.wh..wh..opq",
    ".wh..wh.plnk/1",
    "d/.wh.a",
    "manifest.json",
    "index.json",
    "oci-layout",
    "repositories",
    "blobs/sha256/" + "0" * 64,
    "blobs/sha256/x",
    "x" * 99,
    "x" * 100,
    "x" * 101,
    "x" * 255,
    "x" * 256,
    "x" * 4095 + "/y",
    "d/" * 200 + "z",
    "ä",
    "\udcff\udcfe",
    "a\nb",
    "dev",
    "proc/self/root/x",
    "tmp/x",
)
LINKS = (
    "a",
    "d",
    "d/a",
    "link",
    ".",
    "..",
    "/",
    "../..",
    "/etc",
    "/tmp",
    "/tmp/fuzz-target",
    "../../../../../../tmp/fuzz-target",
    "/proc/self/root",
    "/proc/self/cwd",
    "/proc/1/root",
    "/dev/null",
    "",
    "nowhere",
    "x" * 255,
    "x" * 4096,
    "/d",
    "link/a",
)
XATTRS = (
    "user.a",
    "security.capability",
    "security.selinux",
    "trusted.overlay.opaque",
    "user.overlay.opaque",
    "trusted.x",
    "system.posix_acl_access",
    "",
    "a",
    "user.a\0b",
    "user." + "x" * 300,
)


def _octal(random: random.Random, value: int, width: int) -> bytes:
    kind = random.randrange(12)
    if kind == 0:
        return b" " * (width - 1) + b"\0"
    if kind == 1 and value >= 0:
        return (value & ((1 << (8 * width - 1)) - 1) | 1 << (8 * width - 1)).to_bytes(width, "big")
    if kind == 2:
        return (value % (1 << (8 * width))).to_bytes(width, "big")
    if kind == 3:
        return random.choice((b"-1", b"0o17", b"0x1f", b"1_0", b"8", b"+7", b"7 7", b"\xff" * width)).ljust(
            width, b"\0"
        )[:width]
    return (b"%0*o" % (width - 1, abs(value) % 8 ** (width - 1)) + random.choice((b"\0", b" ")))[:width]


def header(
    random: random.Random,
    name: bytes,
    kind: bytes,
    size: int,
    link: bytes = b"",
    dialect: str = "ustar",
    odd: float = 0.05,
) -> bytes:
    """One block; `odd` of its numbers are such as no writer writes, and one checksum of a hundred is wrong."""

    def field(value: int, width: int) -> bytes:
        if random.random() < odd:
            return _octal(random, shapes.number(random), width)
        return b"%0*o\0" % (width - 1, value % 8 ** (width - 1))

    magic = {"ustar": b"ustar\x0000", "pax": b"ustar\x0000", "gnu": b"ustar  \0", "v7": bytes(8)}[dialect]
    prefix = b""
    if len(name) > 100 and dialect in ("ustar", "pax") and (at := name.rfind(b"/", 0, 155)) > 0:
        prefix, name = name[:at], name[at + 1 :]
    block = bytearray(
        b"".join(
            (
                name[:100].ljust(100, b"\0"),
                field(random.choice((0o644, 0o755, 0o4755, 0o1777, 0)), 8),
                field(0, 8),
                field(0, 8),
                field(size, 12),
                field(random.choice((0, 1, 1700000000)), 12),
                b"        ",
                kind,
                link[:100].ljust(100, b"\0"),
                magic,
                b"root".ljust(32, b"\0"),
                b"root".ljust(32, b"\0"),
                field(1, 8),
                field(3, 8),
                prefix.ljust(155, b"\0"),
            )
        ).ljust(512, b"\0")
    )
    if kind == b"S":
        _old_sparse(random, block, size)
    total = sum(block) + (1 if random.random() < 0.01 else 0)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def _old_sparse(random: random.Random, block: bytearray, size: int) -> None:
    for index in range(random.randrange(5)):
        at = 386 + 24 * index
        block[at : at + 12] = _octal(random, random.choice((0, 512, 4096, size, shapes.number(random))), 12)
        block[at + 12 : at + 24] = _octal(random, random.choice((0, 1, size, 512, shapes.number(random))), 12)
    block[482] = random.choice((0, 0, 0, 1))
    block[483:495] = _octal(random, random.choice((size, 8192, shapes.number(random))), 12)


def record(random: random.Random, key: bytes, value: bytes) -> bytes:
    """A pax record; its length is sometimes wrong."""
    length = len(key) + len(value) + 3
    total = length + len(str(length))
    total = length + len(str(total))
    if random.random() < 0.03:
        told = random.choice(
            (b"0", b"-1", b"1", b"%d" % (total + 1), b"%d" % (total - 1), b"99999999999999999999", b"x", b"")
        )
        return told + b" " + key + b"=" + value + b"\n"
    return b"%d %s=%s\n" % (total, key, value)


def _records(random: random.Random, name: bytes, link: bytes, size: int) -> tuple[bytes, bytes]:
    """(the records, what precedes the data: the map of a sparse file of GNU's form 1.0)"""
    pairs: list[tuple[bytes, bytes]] = []
    before = b""

    def some_number() -> bytes:
        return random.choice(
            (
                b"%d" % abs(shapes.number(random)),
                b"%d" % shapes.number(random),
                b"0",
                b"1.5",
                b"",
                b"1_0",
                b" 1",
                b"9" * 5000,
                "٣".encode(),
            )
        )

    for _ in range(random.choice((1, 1, 2, 3, 6))):
        kind = random.randrange(12)
        if kind == 0:
            pairs.append((b"path", name))
        elif kind == 1:
            pairs.append((b"linkpath", link))
        elif kind == 2:
            pairs.append((b"size", b"%d" % size if random.random() < 0.7 else some_number()))
        elif kind == 3:
            pairs.append((random.choice((b"uid", b"gid")), some_number()))
        elif kind == 4:
            pairs.append(
                (
                    random.choice((b"mtime", b"atime", b"ctime")),
                    random.choice(
                        (b"1700000000.123456789", b"-1.5", b"-0.5", b".5", b"1.", b"1e9", b"nan", b"inf", some_number())
                    ),
                )
            )
        elif kind in (5, 6):
            attribute = random.choice(XATTRS).encode()
            pairs.append((b"SCHILY.xattr." + attribute, random.randbytes(random.choice((0, 1, 20, 70000)))))
        elif kind == 7:
            pairs += [
                (b"GNU.sparse.size", b"%d" % (size * 2)),
                (b"GNU.sparse.numblocks", b"1"),
                (b"GNU.sparse.offset", some_number()),
                (b"GNU.sparse.numbytes", some_number()),
            ]
        elif kind == 8:
            spans = b",".join(some_number() for _ in range(random.randrange(5)))
            pairs += [(b"GNU.sparse.size", b"%d" % (size * 2)), (b"GNU.sparse.map", spans), (b"GNU.sparse.name", name)]
        elif kind == 9:
            pairs += [
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", name),
                (b"GNU.sparse.realsize", random.choice((b"%d" % (size * 2), some_number()))),
            ]
            numbers = [random.choice((0, 1, size, shapes.number(random))) for _ in range(2 * random.randrange(4))]
            count = random.choice((len(numbers) // 2, len(numbers), 10**12, -1))
            before = b"".join(b"%d\n" % one for one in (count, *numbers))
            before += bytes(-len(before) % 512)
        elif kind == 10:
            pairs.append(
                (
                    shapes.text(random).encode("utf-8", "surrogatepass"),
                    shapes.text(random).encode("utf-8", "surrogatepass"),
                )
            )
        else:
            pairs.append(
                (random.choice((b"hdrcharset", b"comment", b"GNU.sparse.x", b"LIBARCHIVE.xattr.user.a")), b"BINARY")
            )
    return b"".join(record(random, key, value) for key, value in pairs), before


def archive(random: random.Random, most: int = 10, names: tuple[str, ...] = NAMES, odd: float = 0.05) -> bytes:
    """A whole archive; mostly valid, as far as its entries are."""
    out = []
    for _ in range(random.randrange(1, most + 1)):
        out.append(entry(random, names, odd))
    if random.random() < 0.9:
        out.append(bytes(1024))
    if random.random() < 0.1:
        out.append(random.randbytes(random.choice((1, 512, 2000))))
    return b"".join(out)


def entry(random: random.Random, names: tuple[str, ...] = NAMES, odd: float = 0.05) -> bytes:
    dialect = random.choice(("v7", "ustar", "gnu", "pax"))
    name = random.choice(names).encode("utf-8", "surrogateescape")
    link = random.choice(LINKS).encode("utf-8", "surrogateescape")
    if random.random() < 0.75:
        kind = random.choice((b"0", b"0", b"0", b"5", b"5", b"2", b"2", b"1", b"3", b"6", b"S"))
    else:
        at = random.randrange(len(KINDS))
        kind = KINDS[at : at + 1]
    data = random.randbytes(random.choice((0, 0, 1, 5, 511, 512, 513, 2000))) if kind in b"0\0 7SLKxgVMNXA" else b""
    out = b""
    before = b""
    if dialect == "pax" and random.random() < 0.7:
        records, before = _records(random, name, link, len(data))
        out += header(random, b"PaxHeaders/x", random.choice((b"x", b"x", b"x", b"g")), len(records), odd=odd / 5)
        out += records + bytes(-len(records) % 512)
    elif dialect == "gnu" and (len(name) > 100 or random.random() < 0.1):
        for long, sign in ((name, b"L"), (link, b"K")):
            if random.random() < 0.8:
                out += header(random, b"././@LongLink", sign, len(long) + 1, dialect="gnu", odd=odd / 5)
                out += long + b"\0" + bytes(-(len(long) + 1) % 512)
    data = before + data
    out += header(random, name, kind, len(data), link, dialect, odd)
    return out + data + bytes(-len(data) % 512)
