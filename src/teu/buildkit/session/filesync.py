# SPDX-License-Identifier: Apache-2.0
"""Folders of the client to the builder (FileSync), results of the builder to the client (FileSend).

Called by sources.local and by the exporters local, tar, oci and docker. Names and patterns travel as metadata; where
one is not printable ASCII, the whole list is escaped as in a URL, and `KEY-encoded: 1` says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote_plus

from teu.api.buildkit.session import filesync_pb2
from teu.buildkit.core import errors
from teu.buildkit.session import fsutil
from teu.buildkit.session.manager import Session

DIFF_COPY = "/moby.filesync.v1.FileSync/DiffCopy"
SEND = "/moby.filesync.v1.FileSend/DiffCopy"
EXPORTER_ID = "buildkit-attachable-exporter-id"
EXPORTER_METADATA = "exporter-md-"
MULTI_PLATFORM = "buildkit-exporter-multi-platform"
MESSAGE = 1 << 20  # bytes of a result in one message; grpc-go takes 4 MiB


def encoded(key: str, values: Sequence[str]) -> list[tuple[str, str]]:
    """A list as metadata. What is no text (halves of surrogate pairs for bytes of names) travels as those bytes."""
    if all(value.isascii() and value.isprintable() and value == value.strip() for value in values):
        return [(key, value) for value in values]
    return [*((key, quote_plus(value, errors="surrogateescape")) for value in values), (f"{key}-encoded", "1")]


def diff_copy(
    session: Session,
    name: str,
    folder: int,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow: Sequence[str] = (),
    limits: fsutil.Limits = fsutil.Limits(),  # noqa: B008 (it is immutable)
    notify: Callable[[fsutil.Change], None] | None = None,
    hash_of: Callable[[Any], fsutil.Hash] = lambda entry: hashlib.sha256(),
    begun: Callable[[Callable[[], None]], None] = lambda cancel: None,
    how: fsutil.How = fsutil.How(),  # noqa: B008 (it is immutable)
) -> fsutil.Received:
    """Make an open folder what the client's folder `name` is (context, dockerfile, a named one), as far as patterns let
    it be seen. What is there already does not travel again.

    include, exclude: patterns as in .dockerignore; follow: paths whose links are followed and included.
    begun: called with a function that cancels the transfer, from any thread. NotFound: the client has no such folder.
    """
    session.require(DIFF_COPY, "no local sources enabled")
    metadata = encoded("dir-name", [name])
    for key, values in (("include-patterns", include), ("exclude-patterns", exclude), ("followpaths", follow)):
        metadata += encoded(key, values)
    with session.stream(DIFF_COPY, fsutil.Packet, metadata) as call:
        begun(call.cancel)
        return fsutil.receive(call, folder, limits, notify, hash_of, how)


def send_file(
    session: Session, chunks: Iterable[bytes], identifier: int = 0, metadata: Mapping[str, str] | None = None
) -> int:
    """One file, such as a tar archive, to the client's exporter of this number; the bytes that were sent.

    AlreadyExists where the client wants it not to be written; the client's own error where it cannot."""
    session.require(SEND, "the client takes no files")
    headers = [(EXPORTER_ID, str(identifier))]
    for key, value in (metadata or {}).items():
        headers += encoded(f"{EXPORTER_METADATA}{key}", [value])
    sent = 0
    with session.stream(SEND, filesync_pb2.BytesMessage, headers) as call:
        for chunk in chunks:
            if call.answered:
                break
            for at in range(0, len(chunk), MESSAGE):
                part = chunk[at : at + MESSAGE]
                call.send(filesync_pb2.BytesMessage(data=part))
                sent += len(part)
        stopped = call.answered
        call.end()
        if call.receive() is not None:
            raise errors.Internal("the client answers a file with data")
        if stopped:
            raise errors.Unavailable("the client took only the begin of the file")
    return sent


def send_tree(
    session: Session,
    tree: fsutil.Tree,
    identifier: int = 0,
    multi_platform: bool = False,
    progress: Callable[[int], None] = lambda size: None,
) -> None:
    """A tree of files to the client's exporter of this number; the client asks for the files that it wants.

    multi_platform: this is the whole result in one transfer, so the client may remove what else it has there."""
    session.require(SEND, "the client takes no folders")
    headers = [(EXPORTER_ID, str(identifier))]
    if multi_platform:
        headers.append((MULTI_PLATFORM, "1"))
    with session.stream(SEND, fsutil.Packet, headers) as call:
        fsutil.send(call, tree, progress)
