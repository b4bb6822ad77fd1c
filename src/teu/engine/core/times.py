# SPDX-License-Identifier: Apache-2.0
"""Moments as clients write them: UNIX time (with a fraction), RFC 3339, or a duration before now."""

from __future__ import annotations

import datetime
import re
import time

from teu.engine.core.errors import BadRequest

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"([0-9]{1,18}(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(r"(?:[0-9]{1,18}(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h))+")


def parse(text: str, name: str) -> int:
    """Nanoseconds since the epoch; 0 for nothing."""
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
