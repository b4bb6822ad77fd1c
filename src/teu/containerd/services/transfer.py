# SPDX-License-Identifier: Apache-2.0
"""Transfer: images between registries, archives and stores, inside the daemon, with progress on a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from google.protobuf import empty_pb2

from teu.api.services.transfer.v1 import transfer_pb2
from teu.api.types.transfer import imagestore_pb2, importexport_pb2, registry_pb2
from teu.containerd.core.errors import Error, NotFound, Unimplemented
from teu.containerd.core.events import decode
from teu.containerd.server.rpc import Call, Server
from teu.containerd.state import Context
from teu.containerd.transfer import archives, registry
from teu.containerd.transfer.job import Job, Parts, from_wire, own_names

Move = Callable[[Job, Any, Any], object]


def _tag(job: Job, source: Any, destination: Any) -> None:
    image = job.parts.images.get(job.namespace, source.name)
    target = from_wire(image.target)
    target["annotations"] = dict(image.target.annotations)
    names = own_names(destination, target["digest"])
    if not names:
        raise NotFound("no image name found")
    for name in names:
        job.store(name, target, dict(destination.labels))


_MOVES: dict[tuple[Any, Any], Move] = {
    (registry_pb2.OCIRegistry, imagestore_pb2.ImageStore): registry.pull,
    (imagestore_pb2.ImageStore, registry_pb2.OCIRegistry): registry.push,
    (importexport_pb2.ImageImportStream, imagestore_pb2.ImageStore): archives.load,
    (importexport_pb2.ImageImportStream, importexport_pb2.ImageExportStream): archives.echo,
    (imagestore_pb2.ImageStore, importexport_pb2.ImageExportStream): archives.save,
    (imagestore_pb2.ImageStore, imagestore_pb2.ImageStore): _tag,
}


class Transfer:
    """containerd.services.transfer.v1.Transfer: finds the move for a source and a destination, and runs it on a thread.

    UNIMPLEMENTED for a pair that has none."""

    def __init__(self, context: Context) -> None:
        self._pool = context.pool
        self._parts = Parts(
            content=context.content,
            images=context.images,
            leases=context.leases,
            snapshots=context.snapshots,
            layers=context.layers,
            streams=context.streams,
            snapshotter=context.config["snapshots"]["default"],
            policy=context.config["image-policy"],
        )

    async def Transfer(self, request: transfer_pb2.TransferRequest, call: Call) -> empty_pb2.Empty:
        """Move an image from one kind of place to another: registry, store, archive, or another name. Progress goes to
        the stream that the options name. UNIMPLEMENTED for two kinds between which nothing moves; errors of the
        registry, the store and the layers as they are."""
        namespace = call.namespace
        source, destination = decode(request.source), decode(request.destination)
        if source is None or destination is None:
            unknown = request.source if source is None else request.destination
            raise Unimplemented(f"method Transfer not implemented for {unknown.type_url or 'a request without type'}")
        move = _MOVES.get((type(source), type(destination)))
        if move is None:
            raise Unimplemented(
                f"method Transfer not implemented for {source.DESCRIPTOR.full_name} to "
                f"{destination.DESCRIPTOR.full_name}"
            )
        progress = None
        if request.options.progress_stream:
            progress = self._parts.streams.get(namespace, request.options.progress_stream)
        gone = False
        loop = asyncio.get_running_loop()
        job = Job(self._parts, namespace, loop, progress, lambda: gone or call.cancelled())
        try:
            await loop.run_in_executor(self._pool, move, job, source, destination)
        except OSError as error:
            if error.errno == 28:
                raise
            raise Error(str(error)) from None
        except asyncio.CancelledError:
            gone = True
            raise
        finally:
            if progress is not None:
                with suppress(NotFound):
                    await progress.close()
        return empty_pb2.Empty()


def register(server: Server, context: Context) -> None:
    server.add(transfer_pb2.DESCRIPTOR.services_by_name["Transfer"], Transfer(context))
