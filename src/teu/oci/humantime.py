# SPDX-License-Identifier: Apache-2.0
"""A length of time in the words that docker and ctr have for it. Called by teu, teud and teu-ctr for their lists."""

from __future__ import annotations


def human_duration(seconds: float) -> str:
    """`5 minutes`, `About an hour`: the words of CREATED, STATUS and AGE, always less exact than the number."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 14:
        return f"{hours // 24} days"
    if hours < 24 * 60:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{whole // 3600 // 24 // 365} years"
