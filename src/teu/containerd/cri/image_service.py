# SPDX-License-Identifier: Apache-2.0
"""runtime.v1.ImageService: `images` on the wire."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import InvalidArgument, Unavailable, Unknown
from teu.containerd.cri.handlers import Handlers
from teu.containerd.cri.images import Image, Images, user_of
from teu.containerd.server.rpc import Call

PIECE = 100  # images in each message of a stream


class ImageService:
    """runtime.v1.ImageService."""

    def __init__(self, images: Images, place: str, handlers: Handlers) -> None:
        """`place` is the folder of the snapshots."""
        self._handlers = handlers
        self._images = images
        self._place = place

    def _message(self, image: Image) -> cri.Image:
        uid, name = user_of(image.details.config)
        return cri.Image(
            id=image.id,
            repo_tags=image.tags,
            repo_digests=image.digests,
            size=image.details.size,
            uid=None if uid is None else cri.Int64Value(value=uid),
            username=name,
            pinned=self._images.pinned(image),
        )

    def ListImages(self, request: cri.ListImagesRequest, call: Call) -> cri.ListImagesResponse:
        """All images, or the one that the filter names."""
        return cri.ListImagesResponse(images=self._listed(request.filter))

    def StreamImages(self, request: cri.StreamImagesRequest, call: Call) -> Iterator[cri.StreamImagesResponse]:
        """The same in pieces: no message is too long."""
        found = self._listed(request.filter)
        for begin in range(0, len(found), PIECE):
            yield cri.StreamImagesResponse(images=found[begin : begin + PIECE])

    def _listed(self, wanted: Any) -> list[Any]:
        if wanted.image.image:
            found = self._images.find(wanted.image.image)
            return [self._message(found)] if found else []
        return [self._message(one) for one in self._images.all().values()]

    def ImageStatus(self, request: cri.ImageStatusRequest, call: Call) -> cri.ImageStatusResponse:
        """One image, by its id or a name; an answer without one where there is none."""
        self._handlers.named(request.image.runtime_handler)
        image = self._images.find(request.image.image)
        if image is None:
            return cri.ImageStatusResponse()
        info: dict[str, Any] = {}
        if request.verbose:
            told = {"chainID": image.details.chain, "imageSpec": self._images.configuration(image)}
            info["info"] = json.dumps(told)
        return cri.ImageStatusResponse(image=self._message(image), info=info)

    async def PullImage(self, request: cri.PullImageRequest, call: Call) -> cri.PullImageResponse:
        """Get an image from its registry, and unpack it; its id, by which kubelet knows it from then on. Of a registry
        that does not answer kubelet reads in the text of an error without a code."""
        self._handlers.named(request.image.runtime_handler)
        try:
            return cri.PullImageResponse(image_ref=await self._images.pull(request.image.image, request.auth))
        except Unavailable as error:
            raise Unknown(f"RegistryUnavailable: {error.message}") from None

    def RemoveImage(self, request: cri.RemoveImageRequest, call: Call) -> cri.RemoveImageResponse:
        """Remove an image with all its names, and what only it needed; nothing where there is none."""
        self._handlers.named(request.image.runtime_handler)
        if not request.image.image:
            raise InvalidArgument("image must name what is to be removed")
        self._images.remove(request.image.image)
        return cri.RemoveImageResponse()

    def ImageFsInfo(self, request: cri.ImageFsInfoRequest, call: Call) -> cri.ImageFsInfoResponse:
        """What all layers take, as it was counted when they were unpacked: nothing is walked through."""
        size, inodes = self._images.usage()
        usage = cri.FilesystemUsage(
            timestamp=time.time_ns(),
            fs_id=cri.FilesystemIdentifier(mountpoint=os.path.realpath(self._place)),
            used_bytes=cri.UInt64Value(value=size),
            inodes_used=cri.UInt64Value(value=inodes),
        )
        return cri.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])
