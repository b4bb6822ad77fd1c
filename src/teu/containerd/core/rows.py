# SPDX-License-Identifier: Apache-2.0
"""Rows of metadata.db as they are read, where anything may have happened to them. Called by all stores.

A column that is not as it was written is replaced by an empty one and told of. What a client gets is then what is left
of the record, with the label teu.io/damaged, which says what is wrong: it can be listed, looked at and deleted, and
stands in nobody's way. It cannot be changed: what would be written back is not what was there.

    row = Row("container web")
    container = row.message(containers_pb2.Container, data, "record")
    container.labels.update(row.told(row.labels(text)))
"""

from __future__ import annotations

import json
import logging
from typing import Any

from google.protobuf.message import DecodeError

from teu.containerd.core.errors import FailedPrecondition

log = logging.getLogger("teu.containerd")

DAMAGED_LABEL = "teu.io/damaged"
LONGEST = 1 << 62  # nanoseconds
_logged: set[tuple[str, str]] = set()


class Row:
    """One row being read."""

    __slots__ = ("faults", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.faults: list[str] = []

    def text(self, value: Any, column: str) -> str:
        """A column that is text; "" where it is not."""
        if type(value) is str:
            return value
        self.faults.append(f"{column} is no text")
        return ""

    def number(self, value: Any, column: str) -> int:
        """A column that is a number; 0 where it is not."""
        if type(value) is int and -LONGEST < value < LONGEST:
            return value
        self.faults.append(f"{column} is no number")
        return 0

    def labels(self, value: Any) -> dict[str, str]:
        """A column of labels; none where they cannot be read."""
        if value == "{}":
            return {}
        found = plain_labels(value)
        if found is None:
            self.faults.append("labels are no object of texts")
        return found or {}

    def message(self, kind: Any, data: Any, column: str) -> Any:
        """A protobuf message; an empty one where it cannot be read."""
        try:
            if type(data) is bytes:
                return kind.FromString(data)
        except DecodeError:
            pass
        self.faults.append(f"{column} is no {kind.DESCRIPTOR.name}")
        return kind()

    def told(self, labels: dict[str, str]) -> dict[str, str]:
        """The labels, with one more where something was wrong. What is read after this is not told of."""
        if not self.faults:
            labels.pop(DAMAGED_LABEL, None)
            return labels
        reason = "; ".join(self.faults)
        if (self.what, reason) not in _logged:
            _logged.add((self.what, reason))
            log.error("the record of %s in metadata.db is damaged: %s", self.what, reason)
        return {**labels, DAMAGED_LABEL: reason}


def plain_labels(value: Any) -> dict[str, str] | None:
    """The labels of a column; None where it has none that can be read."""
    try:
        labels = json.loads(value)
        if type(labels) is not dict:
            return None
        for key, label in labels.items():
            if type(label) is not str:
                return None
            if "\\u" in value:  # JSON's escapes can say halves of characters, UTF-8 cannot
                key.encode()
                label.encode()
    except (ValueError, TypeError, RecursionError):
        return None
    return labels


def must_be_whole(labels: Any, what: str) -> None:
    """Before a change."""
    if DAMAGED_LABEL in labels:
        raise FailedPrecondition(f"{what} is damaged and can only be deleted: {labels[DAMAGED_LABEL]}")
