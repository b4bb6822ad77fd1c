# SPDX-License-Identifier: Apache-2.0
"""Images: names for content. Deleting one with sync answers when its garbage is gone."""

from __future__ import annotations

from google.protobuf import empty_pb2

from teu.api.services.images.v1 import images_pb2
from teu.containerd.core.errors import InvalidArgument
from teu.containerd.core.rows import LONGEST
from teu.containerd.server.rpc import Call, Server, quick
from teu.containerd.state import Context


def _epoch(request: images_pb2.CreateImageRequest | images_pb2.UpdateImageRequest) -> int | None:
    """SOURCE_DATE_EPOCH of the request, in nanoseconds, for reproducible records. InvalidArgument for a moment that no
    record can hold, and that was in no year of people."""
    if not request.HasField("source_date_epoch"):
        return None
    stamp = request.source_date_epoch
    moment = int(stamp.seconds * 1_000_000_000 + stamp.nanos)
    if not -LONGEST < moment < LONGEST:
        raise InvalidArgument(f"source_date_epoch of {stamp.seconds} seconds is out of range")
    return moment


class Images:
    """containerd.services.images.v1.Images over `stores.images`, whose errors it answers."""

    def __init__(self, context: Context) -> None:
        self._store = context.images
        self._collector = context.collector

    @quick
    def Get(self, request: images_pb2.GetImageRequest, call: Call) -> images_pb2.GetImageResponse:
        """An image's record. NOT_FOUND."""
        return images_pb2.GetImageResponse(image=self._store.get(call.namespace, request.name))

    def List(self, request: images_pb2.ListImagesRequest, call: Call) -> images_pb2.ListImagesResponse:
        """The records that one of the filters fits."""
        return images_pb2.ListImagesResponse(images=self._store.find(call.namespace, request.filters))

    def Create(self, request: images_pb2.CreateImageRequest, call: Call) -> images_pb2.CreateImageResponse:
        """Keep a name for a descriptor: durable when this answers. ALREADY_EXISTS, INVALID_ARGUMENT. The blob need not
        be there yet."""
        image = self._store.create(call.namespace, request.image, lease=call.lease, stamp=_epoch(request))
        return images_pb2.CreateImageResponse(image=image)

    def Update(self, request: images_pb2.UpdateImageRequest, call: Call) -> images_pb2.UpdateImageResponse:
        """Take over the fields that the mask names, or target and labels without a mask; the record then. NOT_FOUND,
        INVALID_ARGUMENT."""
        image = self._store.update(
            call.namespace, request.image, list(request.update_mask.paths), lease=call.lease, stamp=_epoch(request)
        )
        return images_pb2.UpdateImageResponse(image=image)

    def Delete(self, request: images_pb2.DeleteImageRequest, call: Call) -> empty_pb2.Empty:
        """Remove a name, with `target` only if it means that digest still; with `sync` what it kept is collected before
        this answers. NOT_FOUND."""
        target = request.target.digest if request.HasField("target") else ""
        self._store.delete(call.namespace, request.name, target)
        if request.sync:
            self._collector.collect()
        return empty_pb2.Empty()


def register(server: Server, context: Context) -> None:
    server.add(images_pb2.DESCRIPTOR.services_by_name["Images"], Images(context))
