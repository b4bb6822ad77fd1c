# SPDX-License-Identifier: Apache-2.0
"""Mutations that targets share: a valid thing with one or several places of it changed beats noise."""

from __future__ import annotations

import copy
import random
from typing import Any

# What texts have gone wrong with, anywhere: ends, separators, other alphabets, what shells, paths and formats mean.
TEXTS = (
    "",
    " ",
    "\t",
    "\n",
    "a\nb",
    "\r\n",
    "\0",
    "a\0b",
    "/",
    "//",
    ".",
    "..",
    "../..",
    "/../../etc/passwd",
    "/proc/self/fd/3",
    "a/b",
    "a:b",
    ":",
    "::",
    ":::",
    "a=b",
    "=",
    "=a",
    ",",
    ",,",
    "a,b",
    "-",
    "--",
    "-1",
    "0",
    "00",
    "1e9",
    "0x10",
    "+5",
    "1_0",
    "99999999999999999999",
    "-9223372036854775809",
    "NaN",
    "Infinity",
    "true",
    "null",
    "none",
    "host",
    "default",
    "{}",
    "[]",
    "{{",
    "{{.}}",
    "%s",
    "%n",
    "%(a)s",
    "${A}",
    "$(id)",
    "`id`",
    "'",
    '"',
    "\\",
    "\\x00",
    "*",
    "?",
    "[a",
    "^(a+)+$",
    "é",
    "ß",
    "İ",
    "ı",
    "\u202e",
    "\ufeff",
    "\ufffd",
    "\U0001f6a2",
    "\ud800",
    "\udc80",
    "٣",
    "a" * 64,
    "a" * 65,
    "a" * 256,
    "a" * 4097,
    "a" * 70000,
    "sha256:" + "0" * 64,
    "sha256:" + "g" * 64,
    "sha256:",
    "f" * 64,
    "f" * 12,
    "UPPER",
    "tcp",
    "80/tcp",
    "80/",
    "/80",
    "80-70/tcp",
    "0-65536",
    "1-65535",
    "10.0.0.0/8",
    "10.0.0.1/33",
    "::1",
    "fe80::1%lo",
    "::/0",
    "256.0.0.1",
    "1.2.3",
    "02:42:ac:11:00:02",
    "zz:zz:zz:zz:zz:zz",
    "10m",
    "10mm",
    "1h1h",
    "-5s",
    "1.5h",
    "9" * 400,
)

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    100,
    255,
    256,
    1000,
    1024,
    65535,
    65536,
    -65536,
    1 << 20,
    1 << 30,
    (1 << 31) - 1,
    1 << 31,
    -(1 << 31),
    1 << 32,
    1 << 53,
    (1 << 63) - 1,
    1 << 63,
    -(1 << 63),
    -(1 << 63) - 1,
    (1 << 64) - 1,
    1 << 64,
    10**30,
    0.5,
    -0.0,
    1e9,
    1e308,
    1e-308,
)


def text(dice: random.Random) -> str:
    """A hostile text."""
    choice = dice.random()
    if choice < 0.8:
        return dice.choice(TEXTS)
    if choice < 0.9:
        return dice.choice(TEXTS)[:200] + dice.choice(TEXTS)[:200]
    points = (dice.choice((dice.randrange(128), dice.randrange(0x110000))) for _ in range(dice.randrange(1, 24)))
    return "".join(map(chr, points))


def anything(dice: random.Random, depth: int = 2) -> Any:
    """Any JSON value."""
    kind = dice.randrange(9 if depth else 7)
    if kind < 3:
        return text(dice)
    if kind < 5:
        return dice.choice(NUMBERS)
    if kind == 5:
        return None
    if kind == 6:
        return dice.random() < 0.5
    if kind == 7:
        return [anything(dice, depth - 1) for _ in range(dice.randrange(4))]
    return {text(dice)[:40]: anything(dice, depth - 1) for _ in range(dice.randrange(4))}


def changed_text(dice: random.Random, value: str) -> str:
    """A text that is nearly the given one."""
    if not value or dice.random() < 0.3:
        return text(dice)
    at, to = sorted((dice.randrange(len(value) + 1), dice.randrange(len(value) + 1)))
    return dice.choice(
        (
            value[:at] + dice.choice(TEXTS)[:100] + value[at:],
            value[:at] + value[to:],
            value[:to] + value[at:],
            value[:at],
            value[at:],
            value.upper(),
            value.swapcase(),
            value + value,
            value * dice.choice((3, 50)),
            f" {value} ",
            value[:at] + chr(dice.randrange(1, 300)) + value[at + 1 :],
        )
    )


def other(dice: random.Random, value: Any) -> Any:
    """Another value in the place of this one: mostly of its type."""
    if dice.random() < 0.15:
        return anything(dice)
    if isinstance(value, bool):
        return dice.choice((not value, None, "true", 1))
    if isinstance(value, (int, float)):
        return dice.choice((dice.choice(NUMBERS), -value, value + 1, value - 1, str(value)))
    if isinstance(value, str):
        return changed_text(dice, value)
    if isinstance(value, list):
        kind = dice.randrange(5)
        if kind == 0 or not value:
            return [*value, anything(dice)]
        if kind == 1:
            return value + value
        if kind == 2:
            return value[:-1]
        if kind == 3:
            return value * dice.choice((2, 300))
        return {str(number): item for number, item in enumerate(value)}
    if isinstance(value, dict):
        kind = dice.randrange(4)
        if kind == 0:
            return {**value, text(dice)[:60]: anything(dice)}
        if kind == 1:
            return {changed_text(dice, str(key)): item for key, item in value.items()}
        if kind == 2:
            return list(value)
        return {}
    return anything(dice)


def json_value(dice: random.Random, value: Any, times: int | None = None) -> Any:
    """A copy of a JSON value with one or several places of it changed, added, or taken away."""
    holder = {"": copy.deepcopy(value)}
    for _ in range(times or dice.choice((1, 1, 1, 2, 2, 3, 6))):
        places = list(_places(holder))
        node, key = dice.choice(places)
        if dice.random() < 0.08 and node is not holder:
            del node[key]
        else:
            node[key] = other(dice, node[key])
    return holder[""]


def _places(node: Any) -> Any:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, item in list(pairs):
        yield node, key
        yield from _places(item)


def data(dice: random.Random, value: bytes, times: int | None = None) -> bytes:
    """Bytes with a few of them changed: flipped, cut, put in, said twice, moved; lengths and numbers exaggerated."""
    result = bytearray(value)
    for _ in range(times or dice.choice((1, 1, 2, 3, 8))):
        at = dice.randrange(len(result) + 1)
        to = min(len(result), at + dice.choice((1, 1, 2, 4, 8, 64, 512, 4096)))
        kind = dice.randrange(9)
        if kind == 0 and at < len(result):
            result[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del result[at:to]
        elif kind == 2:
            result[at:at] = dice.randbytes(dice.choice((1, 2, 4, 8, 100)))
        elif kind == 3:
            result[at:at] = result[at:to]
        elif kind == 4:
            del result[at:]
        elif kind == 5:
            result[at:to] = bytes(to - at)
        elif kind == 6:
            result[at:to] = b"\xff" * (to - at)
        elif kind == 7:
            result[at:to] = dice.choice(TEXTS)[:200].encode("utf-8", "surrogatepass")
        elif at < len(result):
            result[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x0D, 0x20, 0x2F, 0x30, 0x39))
    return bytes(result)
