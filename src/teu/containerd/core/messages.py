# SPDX-License-Identifier: Apache-2.0
"""Shapes of the API's messages that go from room to room, for type checkers: generated modules have no types.

A message of protos/teu/api/types fits its shape as it is, and so does a plain object with these attributes.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Protocol


class Mount(Protocol):
    """containerd.types.Mount: what mount(8) is to be told, and where below the root file system (`target`)."""

    type: str
    source: str
    target: str

    @property
    def options(self) -> MutableSequence[str]: ...


class Packed(Protocol):
    """google.protobuf.Any: a message, and the name of its type."""

    type_url: str
    value: bytes

    def SerializeToString(self) -> bytes: ...


class Descriptor(Protocol):
    """containerd.types.Descriptor: a blob of the content store, by its digest; `size` in bytes."""

    media_type: str
    digest: str
    size: int
