# SPDX-License-Identifier: Apache-2.0
"""Sizes, durations and times: from the user's words to numbers and back, as docker, ctr and runc read and write them.
Called by teu, teu-ctr, teu-runc, teud and the readers of configuration files. Every parser raises ValueError with the
words for the user."""

from __future__ import annotations

import time

# In nanoseconds, by Go's names.
DURATION_UNITS = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "μs": 1000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}


DIGITS = "0123456789"
# Longer numbers are no sizes and no lengths of time of this world; what holds them has 64 bits.
DIGITS_MAX = 18


def parse_bytes(text: str) -> int:
    """`512m`, `1.5g`, `64kb`, `100 KiB`, plain bytes: powers of 1024."""
    number = text.strip().lower()
    factor = 1
    if number.endswith("b"):
        number = number[:-1]
    if number.endswith("i"):
        number = number[:-1]
    if number and number[-1] in "kmgtp":
        factor = 1024 ** ("kmgtp".index(number[-1]) + 1)
        number = number[:-1]
    number = number.rstrip()
    whole, point, fraction = number.partition(".")
    parts = (whole, fraction) if point else (whole,)
    if not all(part and not part.strip(DIGITS) and len(part) <= DIGITS_MAX for part in parts):
        raise ValueError(f"invalid size: '{text[:100]}'")
    return int(float(number) * factor) if "." in number else int(number) * factor


def parse_nano(text: str) -> int:
    """`--cpus`: a decimal number (or a fraction `1/2`) in billionths."""
    number = text.strip()
    try:
        if "/" in number:
            above, below = number.split("/")
            whole, rest = divmod(int(above) * 1_000_000_000, int(below))
        else:
            sign = -1 if number.startswith("-") else 1
            before, _, after = number.lstrip("+-").partition(".")
            if not (before or after) or not (before + after).isdigit():
                raise ValueError
            whole = int(before or 0) * 1_000_000_000 + int((after + "0" * 9)[:9])
            rest = int(after[9:] or 0)
            whole *= sign
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"failed to parse {text} as a rational number") from None
    if rest:
        raise ValueError("value is too precise")
    return whole


def parse_duration(text: str, units: dict[str, int] = DURATION_UNITS) -> int:
    """Go's durations, `1h2m3.5s`, in nanoseconds; with `units`, further ones. They fit into 64 bits, as in Go."""
    rest = text
    sign = 1
    if rest[:1] in ("+", "-"):
        sign = -1 if rest[0] == "-" else 1
        rest = rest[1:]
    if rest == "0":
        return 0
    shown = text[:100]
    if not rest:
        raise ValueError(f'time: invalid duration "{shown}"')
    total = 0.0
    exact = 0
    while rest:
        number, rest = _leading(rest, digits=True)
        unit, rest = _leading(rest, digits=False)
        if not number or number == "." or number.count(".") > 1 or len(number) > 2 * DIGITS_MAX + 1:
            raise ValueError(f'time: invalid duration "{shown}"')
        if not unit:
            raise ValueError(f'time: missing unit in duration "{shown}"')
        if unit not in units:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{shown}"')
        if "." in number:
            total += float(number) * units[unit]
        else:
            exact += int(number) * units[unit]
    found = exact + round(total)
    if found >= 1 << 63:
        raise ValueError(f'time: invalid duration "{shown}"')
    return sign * found


def _leading(text: str, *, digits: bool) -> tuple[str, str]:
    """The number, or what is none, at the start of a text, and the rest."""
    end = 0
    while end < len(text) and (text[end] in DIGITS or text[end] == ".") == digits:
        end += 1
    return text[:end], text[end:]


def duration_text(nanoseconds: int) -> str:
    """A length of time as Go writes it: `1m2.5s`, `340.123ms`, `12.5µs`, `0s`."""
    if not nanoseconds:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 1_000_000)):
        if nanoseconds < 1000 * size:
            return _decimal(nanoseconds, size) + unit
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return text + _decimal(rest, 10**9) + "s"


def _decimal(number: int, unit: int) -> str:
    """`number / unit`, exactly; `unit` is a power of ten."""
    whole, fraction = divmod(number, unit)
    digits = str(fraction).rjust(len(str(unit)) - 1, "0").rstrip("0") if fraction else ""
    return f"{whole}.{digits}" if digits else str(whole)


def _size(size: float, base: float, names: tuple[str, ...], digits: int) -> str:
    index = 0
    while size >= base and index < len(names) - 1:
        size /= base
        index += 1
    return f"{size:.{digits}g}{names[index]}"


def human_size(size: float, digits: int = 4) -> str:
    """Powers of 1000: `4.27MB`."""
    return _size(float(size), 1000.0, ("B", "kB", "MB", "GB", "TB", "PB", "EB"), digits)


def binary_size(size: float) -> str:
    """Powers of 1024: `1.5MiB`."""
    return _size(float(size), 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"), 4)


def ago(created: float) -> str:
    """How long ago that was (seconds since 1970), as docker says it: "3 hours ago"."""

    from teu.oci.humantime import human_duration  # 0.2 ms, and few commands show an age

    return human_duration(time.time() - created) + " ago"


def civil_days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar."""
    year -= month <= 2
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


def parse_time(text: str) -> tuple[int, int]:
    """An RFC 3339 time as (seconds since 1970, nanoseconds)."""
    date, _, clock = text.partition("T")
    year, month, day = (int(part) for part in date.split("-"))
    offset = 0
    for mark in "Z+-":
        if mark in clock:
            clock, zone = clock.split(mark)
            if mark != "Z":
                hours, _, minutes = zone.partition(":")
                offset = (int(hours) * 60 + int(minutes or 0)) * (60 if mark == "+" else -60)
            break
    hour, minute, second = (clock + ":0:0").split(":")[:3] if clock else ("0", "0", "0")
    whole, _, fraction = second.partition(".")
    seconds = civil_days(year, month, day) * 86400 + int(hour) * 3600 + int(minute) * 60 + int(whole) - offset
    return seconds, int((fraction + "0" * 9)[:9])


def seconds_of(text: str) -> float:
    """An RFC 3339 time as seconds since 1970; 0 for Go's zero time and for what is not a time."""
    try:
        seconds, nano = parse_time(text)
    except ValueError:
        return 0.0
    return max(seconds + nano / 1e9, 0.0)


def timestamp(text: str) -> str:
    """The value of --since and --until for the API, `seconds[.nanoseconds]`. Understands Go's durations
    (into the past), RFC 3339 times whole or cut short (then in local time), and the API's own form."""
    if text == "0":
        return text  # no limit, not this moment
    try:
        past = parse_duration(text)
    except ValueError:
        pass
    else:
        now = time.time_ns() - past
        return f"{now // 1_000_000_000}.{now % 1_000_000_000:09d}"
    before, point, after = text.partition(".")
    if text.isascii() and before.lstrip("-").isdigit() and (not point or after.isdigit()):
        return text if point else f"{text}.000000000"
    try:
        seconds, nano = parse_time(text)
        if len(text.partition("-")[0]) != 4:
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f'failed to parse value as time or duration: "{text}"') from None
    clock = text.partition("T")[2]
    if not any(mark in clock for mark in "Z+-"):
        local = time.gmtime(seconds)
        seconds = int(time.mktime((*local[:8], -1)))
    return f"{seconds}.{nano:09d}"


def local_time(seconds: float, nano: int = 0) -> str:
    """As Go prints a time: `2026-11-23 21:01:15 +0000 UTC`."""
    local = time.localtime(int(seconds))
    fraction = f".{nano:09d}".rstrip("0") if nano else ""
    return time.strftime("%Y-%m-%d %H:%M:%S", local) + fraction + time.strftime(" %z %Z", local)
