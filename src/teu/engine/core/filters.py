# SPDX-License-Identifier: Apache-2.0
"""Docker's filters that more than one kind of object has: `until`, `label`, and those that are true or false."""

from __future__ import annotations

import calendar
import re
import time

from teu.engine.core.errors import BadRequest
from teu.engine.core.kinds import natural
from teu.engine.core.times import moment_of
from teu.oci.units import parse_duration


def filter_moment(text: str) -> int:
    """An `until` filter in nanoseconds: seconds since the epoch, a date, or a duration back from now."""
    whole, _, fraction = text.partition(".")
    number = natural(whole, 18)
    if number is not None and (not fraction or natural(fraction[:9]) is not None):
        return number * 10**9 + int(fraction[:9].ljust(9, "0"))
    try:
        return time.time_ns() - parse_duration(text)
    except ValueError:
        pass
    for length, form in ((19, "%Y-%m-%dT%H:%M:%S"), (16, "%Y-%m-%dT%H:%M"), (10, "%Y-%m-%d")):
        if len(text) >= length:
            try:
                time.strptime(text[:length], form)
            except ValueError:
                continue
            return moment_of(text) if length == 19 else calendar.timegm(time.strptime(text[:length], form)) * 10**9
    raise BadRequest(f"invalid filter 'until={text}': it is no moment and no duration")


def flag_filter(filters: dict[str, list[str]], name: str) -> bool | None:
    """None where the filter is not given. Raises BadRequest."""
    values = filters.get(name)
    if not values:
        return None
    if all(v in ("1", "true", "True") for v in values):
        return True
    if all(v in ("0", "false", "False") for v in values):
        return False
    raise BadRequest(f"invalid filter '{name}={values}'")


def text_matches(text: str, wanted: list[str]) -> bool:
    """Whether it is one of those texts, or one of those regular expressions is found in it, as docker's filters of
    names are. One that is no expression says nothing."""
    if text in wanted:
        return True
    for pattern in wanted:
        try:
            if re.search(pattern, text):
                return True
        except re.error:
            continue
    return False


def labels_match(labels: dict[str, str], wanted: list[str]) -> bool:
    """Whether all of KEY and KEY=VALUE are there."""
    for text in wanted:
        key, equals, value = text.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True
