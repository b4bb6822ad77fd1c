# SPDX-License-Identifier: Apache-2.0
"""Moments and durations as clients, images and the API write them. Moments are nanoseconds since the epoch inside."""

from __future__ import annotations

import calendar
import contextlib
import datetime
import re
import time

from teu.engine.core.errors import BadRequest

NEVER = "0001-01-01T00:00:00Z"
_OURS = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}")
_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"([0-9]{1,18}(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(r"(?:[0-9]{1,18}(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h))+")


def parse(text: str, name: str) -> int:
    """What a client says: UNIX time (with a fraction), RFC 3339, or a duration before now. In nanoseconds since the
    epoch; 0 for nothing. Raises BadRequest, which calls it by its name."""
    text = text.strip()
    if text in ("", "0"):
        return 0
    if re.fullmatch(r"[0-9]{1,18}(\.[0-9]+)?", text):
        whole, _, fraction = text.partition(".")
        return int(whole) * 10**9 + int((fraction + "0" * 9)[:9])
    if _DURATION.fullmatch(text):
        return time.time_ns() - sum(int(float(number) * _UNITS[unit]) for number, unit in _PART.findall(text))
    try:
        match = re.fullmatch(r"(.*?)(\.[0-9]+)?(Z|[+-][0-9]{2}:?[0-9]{2})?", text.replace(" ", "T", 1))
        if match is None:  # a line break
            raise ValueError
        moment = datetime.datetime.fromisoformat(match[1])
        if match[3] and match[3] != "Z":
            offset = datetime.datetime.strptime(match[3], "%z").tzinfo
        elif match[3]:
            offset = datetime.UTC
        else:
            offset = None
        moment = moment.replace(tzinfo=offset) if offset else moment.astimezone()
        return int(moment.timestamp()) * 10**9 + int(((match[2] or ".")[1:] + "0" * 9)[:9])
    except ValueError:
        raise BadRequest(f'invalid value for "{name}": {text[:100]!r} is neither a time nor a duration') from None


def timestamp(nanoseconds: int | None = None) -> str:
    """RFC 3339 with nanoseconds, UTC, as the API writes moments."""
    if nanoseconds is None:
        nanoseconds = time.time_ns()
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def nanoseconds(moment: str) -> int:
    """The reverse; 0 for NEVER."""
    if not moment or moment == NEVER:
        return 0
    head, _, tail = moment.rstrip("Z").partition(".")
    fraction = int((tail + "000000000")[:9])
    if _OURS.fullmatch(head):  # strptime takes 8 µs, for each container that is loaded, listed or made; this takes 1
        with contextlib.suppress(ValueError):
            return int(datetime.datetime.fromisoformat(f"{head}+00:00").timestamp()) * 1_000_000_000 + fraction
    return calendar.timegm(time.strptime(head, "%Y-%m-%dT%H:%M:%S")) * 1_000_000_000 + fraction


def seconds(moment: str | None) -> int:
    """RFC 3339 to seconds; 0 for nothing or what cannot be read."""
    if not moment or moment.startswith("0001"):
        return 0
    try:
        base = calendar.timegm(time.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S"))
        zone = moment[-6:]
        if zone[0] in "+-" and zone[3] == ":":
            offset = int(zone[1:3]) * 3600 + int(zone[4:]) * 60
            base -= offset if zone[0] == "+" else -offset
    except ValueError:
        return 0
    return base


def moment_of(text: str | None) -> int:
    """RFC 3339 to nanoseconds; 0 for nothing or what cannot be read."""
    whole = seconds(text)
    if not whole or not text or text[19:20] != ".":
        return whole * 10**9
    digits = text[20:].rstrip("Zz").partition("+")[0].partition("-")[0]
    return whole * 10**9 + (int(digits[:9].ljust(9, "0")) if digits.isascii() and digits.isdigit() else 0)
