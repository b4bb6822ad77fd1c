# SPDX-License-Identifier: Apache-2.0
"""What pull and push have in common: messages for progress bars, and where a blob is known from."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from teu.engine.backend import containerd, content

if TYPE_CHECKING:
    from teu.engine.images.store import Images


class Detail(TypedDict, total=False):
    """How far a transfer is, in bytes."""

    current: int
    total: int


class Pushed(TypedDict):
    """What a push has made."""

    Tag: str
    Digest: str
    Size: int


class Message(TypedDict, total=False):
    """A line of what pull, push, load and import tell their client."""

    status: str
    id: str
    progressDetail: Detail
    stream: str
    aux: Pushed


def short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def status(text: str, digest: str = "", detail: Detail | None = None) -> Message:
    """Of the blob with the digest."""
    message: Message = {"status": text}
    if digest:
        message["progressDetail"] = detail or {}
        message["id"] = short(digest)
    return message


def sources(images: Images, digest: str, source: dict[str, str]) -> dict[str, str]:
    """The source label with the repositories that the blob is known from already."""
    ((key, path),) = source.items()
    try:
        before = content.info(images.client, digest).labels.get(key, "")
    except containerd.NotFound:
        before = ""
    paths = sorted({path, *(part for part in before.split(",") if part)})
    return {key: ",".join(paths)}
