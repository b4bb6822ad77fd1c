# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the content store. Called by the tasks service.

What criu saves of a task is a folder. Tasks.Checkpoint packs it as a layer and stores the container's specification
beside it; Tasks.Create takes such a layer and unpacks it for the shim, which restores from it at Start:

    ROOT/checkpoints/RANDOM/       criu's images while they are being packed; emptied at start
    BUNDLE/work/checkpoint/        criu's images to restore from, until the task is deleted
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress

from teu.api.types import descriptor_pb2, mount_pb2
from teu.containerd.core.digests import parse_digest
from teu.containerd.core.errors import AlreadyExists, InvalidArgument
from teu.containerd.core.messages import Descriptor, Mount, Packed
from teu.containerd.layers.run import Layers
from teu.containerd.stores.content import Content, Writer
from teu.linux import trees

IMAGES = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
SPECIFICATION = "application/vnd.containerd.container.checkpoint.config.v1+proto"
FOLDER = "checkpoint"


def _bound(folder: str, *options: str) -> list[Mount]:
    return [mount_pb2.Mount(type="bind", source=folder, options=["rbind", *options])]


class Checkpoints:
    """Checkpoints of tasks, as blobs. Everything here blocks."""

    def __init__(self, root: str, content: Content, layers: Layers) -> None:
        self._folder = os.path.join(root, "checkpoints")
        self._content = content
        self._layers = layers
        trees.discard_tree(self._folder)  # of a daemon that was killed over it

    def folder(self) -> str:
        """A new folder for criu's images. `store` or `drop` it."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        return tempfile.mkdtemp(dir=self._folder)

    @staticmethod
    def drop(folder: str) -> None:
        """Remove a folder, whatever is in it."""
        trees.discard_tree(folder)

    def store(self, namespace: str, folder: str, specification: Packed, lease: str) -> list[Descriptor]:
        """The two blobs of a checkpoint, as descriptors (blocking)."""

        def pack(writer: Writer) -> None:
            answer = self._layers.compare([], _bound(folder, "ro"), "", writer.fd)
            writer.adopt(answer["blob"], answer["length"])

        def spell(writer: Writer) -> None:
            writer.write(specification.SerializeToString())

        return [
            self._blob(namespace, IMAGES, folder, pack, lease),
            self._blob(namespace, SPECIFICATION, os.path.join(folder, "spec"), spell, lease),
        ]

    def _blob(self, namespace: str, kind: str, ref: str, fill: Callable[[Writer], None], lease: str) -> Descriptor:
        with self._content.writer(namespace, ref, lease=lease) as writer:
            try:
                writer.truncate()
                fill(writer)
                digest, size = writer.digest, writer.offset
                with suppress(AlreadyExists):
                    writer.commit(size, digest, {})
            except BaseException:
                writer.close()
                self._content.abort(namespace, ref)
                raise
        stored: Descriptor = descriptor_pb2.Descriptor(media_type=kind, digest=digest, size=size)
        return stored

    def restorer(self, namespace: str, descriptor: Descriptor) -> Callable[[str], str]:
        """What unpacks a checkpoint into a bundle's work folder, for `Shims.create` (blocking)."""
        if descriptor.media_type != IMAGES:
            raise InvalidArgument(f'unsupported checkpoint type "{descriptor.media_type}"')
        digest = parse_digest(descriptor.digest)
        self._content.info(namespace, digest)

        def unpack(work: str) -> str:
            folder = os.path.join(work, FOLDER)
            os.mkdir(folder, 0o700)
            blob = self._content.open(namespace, digest)
            try:
                self._layers.apply(blob, digest, _bound(folder, "rw"))
            finally:
                os.close(blob)
            return folder

        return unpack
