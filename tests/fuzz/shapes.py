# SPDX-License-Identifier: Apache-2.0
"""Ways to change what is valid into what may hurt: text, numbers, JSON documents, bytes. Used by the targets.

A change of something valid goes deeper than noise does: noise is refused by the first check that there is."""

from __future__ import annotations

import copy
import gzip
import io
import random
from typing import Any

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    9,
    10,
    100,
    255,
    256,
    511,
    512,
    1023,
    65535,
    65536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 2,
    2**32 - 1,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64 - 1,
    2**64,
    10**30,
    -(10**30),
)
FLOATS = (0.0, -0.5, 0.1, 1e-300, 1e18, 1e308, 3.5)
TEXTS = (
    "",
    " ",
    "a",
    "A",
    "0",
    "-1",
    "true",
    "null",
    ".",
    "..",
    "/",
    "//",
    "/..",
    "../..",
    "a/../..",
    "/etc/passwd",
    "a b",
    "a\nb",
    "a\tb",
    "a\0b",
    "\x1b[31m",
    "ä",
    "中文",
    "\ud800",
    "\udcff",
    "\U0001f600",
    "'",
    '"',
    "%s",
    "%n",
    "{}",
    "{{.}}",
    "$(id)",
    "`id`",
    "--help",
    "-",
    "=",
    "a=b",
    "=b",
    ":",
    "a:b",
    "a:b:c",
    ",",
    "*",
    "?",
    "[",
    "(",
    "\\",
    "x" * 255,
    "x" * 256,
    "x" * 5000,
    "/proc/self/fd/1",
    "/proc/self/exe",
    "sha256:" + "0" * 64,
    "sha256:",
    "sha512:" + "a" * 128,
    "1e9",
    "0x10",
    "1_000",
    "٣",
    "²",
    "v²",
    "v" + "9" * 5000,
    "9" * 5000,
)


def text(random: random.Random) -> str:
    one = random.choice(TEXTS)
    return one if random.random() < 0.8 else one + random.choice(TEXTS)


def number(random: random.Random) -> int:
    one = random.choice(NUMBERS)
    return one if random.random() < 0.8 else one + random.randrange(-3, 4)


def deep(depth: int) -> Any:
    """A document that is nested so many times."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def value(random: random.Random, depth: int = 0) -> Any:
    """Any value that JSON has."""
    kind = random.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return None
    if kind == 1:
        return random.random() < 0.5
    if kind == 2:
        return number(random)
    if kind == 3:
        return random.choice(FLOATS)
    if kind in (4, 5):
        return text(random)
    if kind == 6:
        return [value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 7:
        return {text(random): value(random, depth + 1) for _ in range(random.randrange(4))}
    return deep(random.choice((5, 90)))


def _places(document: Any, found: list[tuple[Any, Any]]) -> None:
    keys: Any = document.keys() if isinstance(document, dict) else range(len(document))
    for key in keys:
        found.append((document, key))
        if isinstance(document[key], (dict, list)):
            _places(document[key], found)


def changed(random: random.Random, document: Any, times: int | None = None, fitting: float = 0.5) -> Any:
    """A copy of a JSON document with so many changes (1 to 4) in it. `fitting` of the new values are of the type of
    what was there, so that more than the check of types is reached."""
    document = copy.deepcopy(document)
    for _ in range(times or random.choice((1, 1, 1, 2, 2, 3, 4))):
        places: list[tuple[Any, Any]] = []
        if isinstance(document, (dict, list)):
            _places(document, places)
        if not places:
            return value(random)
        place, key = random.choice(places)
        kind = random.randrange(8)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        elif kind == 2 and isinstance(place, dict):
            place[text(random)] = place.pop(key)
        elif kind == 3:
            place[key] = copy.deepcopy(random.choice(places)[0])  # something else of the same document
        elif kind == 4:
            place[key] = None
        else:
            place[key] = _fitting(random, place[key]) if random.random() < fitting else value(random)
    return document


def _fitting(random: random.Random, old: Any) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return number(random)
    if isinstance(old, float):
        return random.choice(FLOATS)
    if isinstance(old, str):
        new = text(random)
        kind = random.randrange(4)
        at = random.randrange(len(old) + 1)
        return (new, old[:at] + new + old[at:], old[:at], old + old)[kind]
    if isinstance(old, list):
        kind = random.randrange(3)
        return ([], old * random.choice((2, 50)), old[::-1])[kind]
    if isinstance(old, dict):
        return {} if random.random() < 0.5 else {**old, text(random): value(random)}
    return value(random)


def damaged(random: random.Random, data: bytes, times: int | None = None) -> bytes:
    """Bytes with so many changes (1 to 4): flipped, cut, put in, repeated, moved."""
    changed = bytearray(data)
    for _ in range(times or random.choice((1, 1, 1, 2, 2, 3, 4))):
        if not changed:
            return random.randbytes(random.randrange(64))
        at = random.randrange(len(changed))
        length = random.choice((1, 2, 4, 8, 12, 100, 512, 600))
        kind = random.randrange(8)
        if kind == 0:
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            changed[at] = random.choice((0, 1, 0x20, 0x2F, 0x30, 0x37, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = random.randbytes(min(length, 16))
        elif kind == 5:
            changed[at:at] = changed[at : at + length]
        elif kind == 6:
            changed[at : at + length] = bytes(min(length, len(changed) - at))
        else:
            other = random.randrange(len(changed))
            piece = changed[other : other + length]
            changed[at : at + len(piece)] = piece
    return bytes(changed)


def compressed(random: random.Random, data: bytes) -> bytes:
    """In one of the forms that are read, or in none; now and then as several members, with padding, cut or damaged."""
    import bz2
    import lzma

    kind = random.randrange(6)
    if kind == 1:
        packed = gzip.compress(data, random.choice((0, 1, 9)))
    elif kind == 2:
        packed = bz2.compress(data, 1)
    elif kind == 3:
        packed = lzma.compress(data, preset=0)
    elif kind == 4:
        packed = _zstd(random, data)
    elif kind == 5:
        half = len(data) // 2
        packed = gzip.compress(data[:half], 1) + gzip.compress(data[half:], 1)
    else:
        packed = data
    more = random.randrange(12)
    if more == 0:
        packed += bytes(random.choice((1, 512, 10240)))
    elif more == 1:
        packed = packed[: random.randrange(len(packed) + 1)]
    elif more == 2:
        packed = damaged(random, packed)
    elif more == 3:
        packed += random.randbytes(random.randrange(40))
    elif more == 4:
        packed = gzip.compress(packed, 1)  # twice
    return packed


def _zstd(random: random.Random, data: bytes) -> bytes:
    import zstandard

    packer = zstandard.ZstdCompressor(write_checksum=random.random() < 0.5, write_content_size=random.random() < 0.5)
    if random.random() < 0.5:
        return packer.compress(data)
    out = io.BytesIO()
    with packer.stream_writer(out, closefd=False) as writer:
        writer.write(data)
    return out.getvalue()
