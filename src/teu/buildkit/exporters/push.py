# SPDX-License-Identifier: Apache-2.0
"""Images to registries (OCI distribution specification, "Push"). Blobs first, each once, those that are there already
are not sent; then the manifests, the top one last and under its tag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from teu.buildkit.core import errors
from teu.buildkit.core.exports import Task
from teu.buildkit.core.snapshots import Descriptor, Worker
from teu.buildkit.exporters.images import Image, Manifest
from teu.buildkit.sources.registries import Access, told
from teu.oci import image_spec, reference

PARALLEL = 4


def push(
    access: Access,
    worker: Worker,
    task: Task,
    image: Image,
    name: str,
    *,
    by_digest: bool = False,
    insecure: bool = False,
) -> None:
    """Push an image under a name. Raises core.errors.Error, with the registry's own words."""
    parsed = reference.parse(name).with_default_tag()
    snapshots = {layer["digest"]: manifest for manifest in image.manifests for layer in manifest.layers}
    documents = [one for one in image.everything() if one["mediaType"] in (*image_spec.MANIFESTS, *image_spec.INDEXES)]
    rest = [one for one in image.everything() if one not in documents]
    step = f"pushing manifest for {name}@{image.target['digest']}"
    with access.open(parsed.domain, task, insecure=insecure) as registries, task.on_cancel(registries.abort):
        try:
            with told(f"failed to push {name}"):
                _blobs(registries, worker, task, parsed.path, rest, snapshots)
                task.status(step, 0, 0)
                for one in documents:
                    top = one["digest"] == image.target["digest"]
                    wanted = parsed.tag if top and not by_digest else one["digest"]
                    data = worker.content.read_whole(one["digest"])
                    registries.put_manifest(parsed.path, wanted, one["mediaType"], data)
                task.status(step, 0, 0, completed=True)
        except errors.Error:
            task.check()  # nobody waits: that is the reason, whatever else was said
            raise


def _blobs(
    registries: Any,
    worker: Worker,
    task: Task,
    repository: str,
    wanted: Sequence[Descriptor],
    snapshots: dict[str, Manifest],
) -> None:
    task.status("pushing layers", 0, 0)
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="push") as pool:
        futures = [
            pool.submit(_blob, registries, worker, task, repository, one, snapshots.get(one["digest"]))
            for one in wanted
        ]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    task.status("pushing layers", 0, 0, completed=True)


def _blob(
    registries: Any, worker: Worker, task: Task, repository: str, descriptor: Descriptor, manifest: Manifest | None
) -> None:
    digest, size = descriptor["digest"], int(descriptor["size"])
    task.check()
    if registries.has_blob(repository, digest):
        task.status(f"pushing {digest}", size, size, action="already exists", completed=True)
        return

    def content() -> Iterator[bytes]:
        at = 0
        for chunk in content_of(worker, descriptor, manifest):
            task.check()
            at += len(chunk)
            task.status(f"pushing {digest}", at, size)
            yield chunk

    registries.upload(repository, descriptor, content)
    task.status(f"pushing {digest}", size, size, completed=True)


def content_of(worker: Worker, descriptor: Descriptor, manifest: Manifest | None) -> Iterator[bytes]:
    """A blob's bytes; a layer that was never fetched comes from where it is."""
    snapshot = manifest.part.snapshot if manifest is not None else None
    if snapshot is not None and not worker.content.has(descriptor["digest"]):
        return worker.open_blob(snapshot, descriptor)
    return worker.content.read(descriptor["digest"])
