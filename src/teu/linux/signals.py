# SPDX-License-Identifier: Apache-2.0
"""Signals by the names that people give them. Called by all that take one from a command line, a request or a spec."""

from __future__ import annotations

# Of Linux; without Python's signal module, which a cold start spares. RTMIN and RTMAX are the C library's.
NUMBERS = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "ILL": 4,
    "TRAP": 5,
    "ABRT": 6,
    "IOT": 6,
    "BUS": 7,
    "FPE": 8,
    "KILL": 9,
    "USR1": 10,
    "SEGV": 11,
    "USR2": 12,
    "PIPE": 13,
    "ALRM": 14,
    "TERM": 15,
    "STKFLT": 16,
    "CHLD": 17,
    "CLD": 17,
    "CONT": 18,
    "STOP": 19,
    "TSTP": 20,
    "TTIN": 21,
    "TTOU": 22,
    "URG": 23,
    "XCPU": 24,
    "XFSZ": 25,
    "VTALRM": 26,
    "PROF": 27,
    "WINCH": 28,
    "IO": 29,
    "POLL": 29,
    "PWR": 30,
    "SYS": 31,
    "UNUSED": 31,
    "RTMIN": 34,
    "RTMAX": 64,
}
MAX = 64


def named(text: str) -> int:
    """The number of "KILL", "SIGKILL", "kill" or "rtmin+3". ValueError for what is no name of a signal."""
    name = text.upper().removeprefix("SIG")
    if name in NUMBERS:
        return NUMBERS[name]
    base, sign, offset = name[:5], name[5:6], name[6:]
    if base in ("RTMIN", "RTMAX") and sign in ("+", "-") and len(offset) <= 2 and offset.isascii() and offset.isdigit():
        number = NUMBERS[base] + int(sign + offset)
        if NUMBERS["RTMIN"] <= number <= NUMBERS["RTMAX"]:
            return number
    raise ValueError(f"unknown signal {text[:100]!r}")


def number(text: str) -> int:
    """As `named`, and "9" is 9. ValueError for what is no signal."""
    if text.isascii() and text.isdigit():
        if len(text) <= 9 and 0 < int(text) <= MAX:
            return int(text)
        raise ValueError(f"unknown signal {text[:100]!r}")
    return named(text)
