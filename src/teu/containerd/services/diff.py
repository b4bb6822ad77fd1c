# SPDX-License-Identifier: Apache-2.0
"""Diff: layers onto mounts, and changes into layers."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from teu.api.services.diff.v1 import diff_pb2
from teu.api.types import descriptor_pb2
from teu.containerd.core.digests import is_digest
from teu.containerd.core.errors import AlreadyExists, NotFound, Unimplemented
from teu.containerd.layers.run import mounts_as_json
from teu.containerd.server.rpc import Call, Server
from teu.containerd.state import Context
from teu.containerd.stores.lean import Lent
from teu.oci.labels import UNCOMPRESSED

TAR = "application/vnd.oci.image.layer.v1.tar"
_APPLIED = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.oci.image.layer.nondistributable.",
)
_COMPRESSIONS = {
    TAR: "",
    TAR + "+gzip": "gzip",
    TAR + "+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}


class Diff:
    """containerd.services.diff.v1.Diff: `layers.run` over the content store."""

    def __init__(self, context: Context) -> None:
        self._content = context.content
        self._layers = context.layers
        self._snapshots = context.snapshots

    def Apply(self, request: diff_pb2.ApplyRequest, call: Call) -> diff_pb2.ApplyResponse:
        """Unpack a layer, a blob of this namespace, into the mounts; the descriptor of its content without compression.
        NOT_FOUND without the blob; UNIMPLEMENTED for a media type that is no layer's; INVALID_ARGUMENT for a damaged
        layer, of which a part may be there."""
        kind, digest = request.diff.media_type, request.diff.digest
        if not is_digest(digest):
            raise NotFound(f"content digest {digest}")
        blob = self._content.open(call.namespace, digest)
        try:
            return self._apply(blob, digest, kind, request, call)
        finally:
            os.close(blob)

    def _apply(
        self, blob: int, digest: str, kind: str, request: diff_pb2.ApplyRequest, call: Call
    ) -> diff_pb2.ApplyResponse:
        if (kind and not kind.startswith(_APPLIED)) or "encrypted" in kind:
            raise Unimplemented(f"unsupported layer media type: {kind}")
        answer = self._layers.apply(blob, digest, request.mounts, sync=request.sync_fs, cancelled=call.cancelled)
        applied = descriptor_pb2.Descriptor(media_type=TAR, digest=answer["digest"], size=answer["size"])
        return diff_pb2.ApplyResponse(applied=applied)

    def Diff(self, request: diff_pb2.DiffRequest, call: Call) -> diff_pb2.DiffResponse:
        """Store what `right` has changed over `left`, both given as mounts, as a layer; its descriptor. The blob has
        the labels of the request, and one with the digest of its content. UNIMPLEMENTED for another media type than a
        layer's."""
        kind = request.media_type or TAR + "+gzip"
        compression = _COMPRESSIONS.get(kind)
        if compression is None:
            raise Unimplemented(f"unsupported diff media type: {kind}")
        namespace, lease = call.namespace, call.lease
        snapshotter, snapshot = self._lender(request) if not compression else ("", "")
        ref = request.ref or f"diff-{time.time_ns()}-{os.urandom(4).hex()}"
        with self._content.writer(namespace, ref, lease=lease) as writer:
            try:
                writer.truncate()
                answer = self._layers.compare(
                    request.left,
                    request.right,
                    compression,
                    writer.fd,
                    lean=bool(snapshot),
                    cancelled=call.cancelled,
                )
                lent = Lent(snapshotter, snapshot, answer["parts"]) if answer["parts"] else None
                writer.adopt(answer["blob"], answer["length"], lent)
            except BaseException:
                writer.truncate()
                writer.close()
                if not request.ref:
                    with suppress(NotFound):
                        self._content.abort(namespace, ref)
                raise
            digest, size = writer.digest, writer.offset
            labels = dict(request.labels)
            if compression:
                labels[UNCOMPRESSED] = answer["digest"]
            with suppress(AlreadyExists):
                writer.commit(size, digest, labels)
        made = descriptor_pb2.Descriptor(media_type=kind, digest=digest, size=size)
        return diff_pb2.DiffResponse(diff=made)

    def _lender(self, request: diff_pb2.DiffRequest) -> tuple[str, str]:
        """(Snapshotter, snapshot) where the change is all that a committed snapshot has: what it has need not be
        written again. Two times "" elsewhere."""
        from teu.containerd.layers import compare  # 4 ms, and most daemons make no layers

        found = compare.change(mounts_as_json(request.left), mounts_as_json(request.right))
        return self._snapshots.lender(found[0]) if found is not None else ("", "")


def register(server: Server, context: Context) -> None:
    server.add(diff_pb2.DESCRIPTOR.services_by_name["Diff"], Diff(context))
