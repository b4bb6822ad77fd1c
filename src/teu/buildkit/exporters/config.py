# SPDX-License-Identifier: Apache-2.0
"""An image's configuration (OCI image specification, "Image Configuration"): what the frontend says of it, with the
layers that it has got, and a history that has an entry for each of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from teu.buildkit.cache.remote import INLINE_KEY, inline_value
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Descriptor, History
from teu.buildkit.llb.platforms import Platform
from teu.oci import image_spec, jsontext
from teu.oci.labels import UNCOMPRESSED

COMMENT = "buildkit.exporter.image.v0"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Json = dict[str, Any]


def moment(seconds: float) -> str:
    """RFC 3339 as Go writes it: without the zeros at its end."""
    whole, nanoseconds = divmod(round(seconds * 1_000_000_000), 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + fraction + "Z"


def empty(platform: Platform) -> Json:
    """The configuration of a result whose frontend says nothing of one."""
    document: Json = {"architecture": platform.architecture, "os": platform.os, "config": {"Env": [PATH]}}
    if platform.variant:
        document["variant"] = platform.variant
    return document


def parsed(data: bytes) -> Json:
    try:
        document = jsontext.loads(data)
    except ValueError as error:
        raise errors.InvalidArgument(f"failed to parse image config: {error}") from None
    if not isinstance(document, dict):
        raise errors.InvalidArgument("failed to parse image config: it is no JSON object")
    return document


def finished(
    document: Json,
    layers: Sequence[Descriptor],
    made: Sequence[History],
    epoch: int | None,
    inline_cache: bytes | None = None,
    base: Json | None = None,
) -> bytes:
    """The document with these layers, lowest first, and what `made` each: JSON, the same for the same arguments.

    `epoch`: no moment in it is later (seconds since 1970), but for what it has in common with the history of `base`,
    the image that it was made from: those moments are the same in every build."""
    document = {key: value for key, value in document.items() if key != "moby.buildkit.buildinfo.v1"}
    diff_ids = [layer["annotations"][UNCOMPRESSED] for layer in layers]
    document["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    document["history"] = history = _history(document.get("history"), made)
    if epoch is not None:
        limit = moment(epoch)
        for entry in history[_shared(history, base) :]:
            entry["created"] = _not_after(entry.get("created"), limit)
        document["created"] = _not_after(document.get("created"), limit)
    elif not document.get("created"):
        created = [entry["created"] for entry in history if entry.get("created")]
        if created:
            document["created"] = created[-1]
    document.pop(INLINE_KEY, None)
    if inline_cache is not None:
        document[INLINE_KEY] = inline_value(inline_cache)
    return image_spec.encode(document)


def _shared(history: Sequence[Json], base: Json | None) -> int:
    """How many entries, from the first on, are those of the base."""
    known = (base or {}).get("history")
    same = 0
    for entry, other in zip(history, known if isinstance(known, list) else []):
        if not isinstance(other, dict) or _said(entry) != _said(other):
            break
        same += 1
    return same


def _said(entry: Json) -> Json:
    """An entry of a history without the members that say nothing: writers leave those out or not."""
    return {key: value for key, value in entry.items() if value}


def _not_after(text: Any, limit: str) -> str:
    """The earlier of two moments; one that is missing or none is the limit."""
    if not isinstance(text, str) or not text:
        return limit
    return min(text, limit, key=_sortable)


def _sortable(text: str) -> tuple[str, str]:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return whole, fraction.ljust(9, "0")


def _history(given: Any, made: Sequence[History]) -> list[Json]:
    """An entry for each layer, those that the frontend does not know at the end; each with its moment."""
    history = [dict(entry) for entry in given or [] if isinstance(entry, dict)]
    with_layer = [entry for entry in history if not entry.get("empty_layer")]
    for entry in with_layer[len(made) :]:
        entry["empty_layer"] = True  # it made nothing
    del with_layer[len(made) :]
    for one in made[len(with_layer) :]:
        entry = {"created_by": one.description, "comment": COMMENT}
        history.append(entry)
        with_layer.append(entry)
    for entry, one in zip(with_layer, made, strict=True):
        if not entry.get("created") and one.created:
            entry["created"] = moment(one.created)
    return _timed(history)


def _timed(history: list[Json]) -> list[Json]:
    """Entries without a moment have that of the entry before; the first ones that of the first new layer, for else a
    base image's age would be told of what was made of it now."""
    known: str | None = None
    missing = False
    for entry in history:
        if entry.get("created"):
            known = entry["created"]
            if missing:
                break
        else:
            missing = True
    missing = False
    for entry in history:
        if entry.get("created"):
            if missing:
                known = entry["created"]
        else:
            missing = True
            if known:
                entry["created"] = known
    return history
