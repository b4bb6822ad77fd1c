# SPDX-License-Identifier: Apache-2.0
"""The images of containerd's namespace, which are the engine's: core.snapshots.Images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teu.api.services.images.v1 import images_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Descriptor
from teu.buildkit.worker.client import Client


def descriptor_of(message: Any) -> Descriptor:
    """A containerd.types.Descriptor as OCI's JSON has it."""
    found: Descriptor = {"mediaType": message.media_type, "digest": message.digest, "size": message.size}
    if message.annotations:
        found["annotations"] = dict(message.annotations)
    return found


class ImageStore:
    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, name: str) -> Descriptor | None:
        try:
            return descriptor_of(self._client.images.Get(images_pb2.GetImageRequest(name=name)).image.target)
        except errors.NotFound:
            return None

    def put(self, name: str, target: Descriptor, labels: Mapping[str, str] | None = None) -> None:
        create = images_pb2.CreateImageRequest()
        image = create.image
        image.name = name
        image.target.media_type = target["mediaType"]
        image.target.digest = target["digest"]
        image.target.size = target["size"]
        image.target.annotations.update(target.get("annotations") or {})
        image.labels.update(labels or {})
        while True:
            try:
                self._client.images.Create(create)
                return
            except errors.AlreadyExists:
                pass
            update = images_pb2.UpdateImageRequest(image=image)
            # Labels that others have put on the name stay.
            update.update_mask.paths.extend(["target", *(f"labels.{key}" for key in labels or {})])
            try:
                self._client.images.Update(update)
                return
            except errors.NotFound:
                continue  # somebody removed it in between

    def named(self, digest: str) -> list[str]:
        return [name for name, target in self.all() if target["digest"] == digest]

    def all(self) -> list[tuple[str, Descriptor]]:
        """(name, target) of all."""
        found = self._client.images.List(images_pb2.ListImagesRequest()).images
        return [(one.name, descriptor_of(one.target)) for one in found]
