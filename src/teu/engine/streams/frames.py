# SPDX-License-Identifier: Apache-2.0
"""What goes to a client of a process without a terminal: frames, which say of which stream their bytes are (Docker
Engine API, "Stream format" of ContainerAttach). For the hub, for logs, and for what a route says itself."""

from __future__ import annotations

import struct

STDOUT, STDERR = 1, 2
_HEAD = struct.Struct(">BxxxI")


def frame(kind: int, data: bytes) -> bytes:
    """One frame with the data of that stream."""
    return _HEAD.pack(kind, len(data)) + data
