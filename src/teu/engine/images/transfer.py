# SPDX-License-Identifier: Apache-2.0
"""What pull and push have in common: messages for progress bars, and where a blob is known from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teu.engine.backend import containerd, content

if TYPE_CHECKING:
    from teu.engine.images.store import Images

Message = dict[str, Any]


def short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def status(text: str, digest: str = "", **detail: Any) -> Message:
    message: Message = {"status": text}
    if digest:
        message["progressDetail"] = detail
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
