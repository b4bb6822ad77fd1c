# SPDX-License-Identifier: Apache-2.0
"""type=image and type=moby: an image in the store of the host's engine, under its names, and in registries.

A name that pointed to another image is taken from it, which stays as one without a name, as the engine itself does it.
moby is what clients of an engine ask for: the image is one to make containers of, and is kept without a name, too. Its
layers are not compressed before somebody pushes them: then the engine does that. With a cache in the image, which is of
the layers' digests, and for several platforms they are compressed at once.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from teu.buildkit.core import errors
from teu.buildkit.core.exports import Answer, Build, Result, Task
from teu.buildkit.core.snapshots import Descriptor, Kind, Layer, Worker
from teu.buildkit.exporters import attributes as given
from teu.buildkit.exporters import images
from teu.buildkit.exporters.attributes import ImageOptions
from teu.buildkit.exporters.images import Image, Manifest
from teu.buildkit.exporters.push import push
from teu.buildkit.sources.registries import Access
from teu.oci import image_spec, labels, reference
from teu.oci.labels import UNCOMPRESSED

DIGEST, CONFIG_DIGEST = "containerimage.digest", "containerimage.config.digest"
DESCRIPTOR, NAME = "containerimage.descriptor", "image.name"
_OWN = (
    *("push", "push-by-digest", "registry.insecure", "name-canonical", "dangling-name-prefix", "unpack", "store"),
    *("danglingNamePrefix", "unsafe-internal-store-allow-incomplete"),
)


@dataclass(frozen=True, slots=True)
class ImageExporter:
    worker: Worker
    access: Access
    options: ImageOptions
    push: bool
    by_digest: bool
    insecure: bool
    canonical: bool
    dangling: str
    unpack: bool
    store: bool
    epoch: int | None
    name: str = "exporting to image"

    @classmethod
    def make(
        cls, worker: Worker, access: Access, attributes: Mapping[str, str], *, engine: bool = False
    ) -> ImageExporter:
        """`engine`: it is moby."""
        options = given.image_options(attributes, True, _OWN)
        by_digest = given.boolean(attributes, "push-by-digest")
        wants_push = given.boolean(attributes, "push") or by_digest
        if wants_push and not options.names:
            raise errors.InvalidArgument("tag is needed when pushing to registry")
        unpack = given.boolean(attributes, "unpack")
        store = given.boolean(attributes, "store", True)
        if engine and not wants_push and "compression" not in attributes:
            options = replace(options, plain=True)
        if unpack and not store:
            raise errors.InvalidArgument("unpack is for an image that is stored: store=false cannot have it")
        return cls(
            worker,
            access,
            options,
            wants_push,
            by_digest,
            given.boolean(attributes, "registry.insecure"),
            given.boolean(attributes, "name-canonical"),
            attributes.get("dangling-name-prefix", attributes.get("danglingNamePrefix", "")),
            unpack,
            store,
            given.epoch(attributes.get("source-date-epoch")),
        )

    def export(self, task: Task, result: Result, build: Build) -> Answer:
        with self.worker.hold():
            image = images.assemble(self.worker, self.options, task, result, build, self.epoch)
            if self.store:
                self._store(task, image)
            if self.push:
                for name in self.options.names:
                    push(self.access, self.worker, task, image, name, by_digest=self.by_digest, insecure=self.insecure)
        return Answer(answer(image, self.options.names), image.target)

    def _store(self, task: Task, image: Image) -> None:
        target = image_spec.plain(image.target)
        names = list(self.options.names)
        if self.canonical:
            canonical = {f"{reference.parse(name).name}@{target['digest']}" for name in names}
            names += sorted(canonical)
        if not names and self.dangling:
            # Attestations make another index of every build: what counts is the image in it.
            one = image.manifests[0].descriptor if len(image.manifests) == 1 else target
            names = [self.dangling + one["digest"]]
        self._complete(task, image)
        for name in names:
            step = f"naming to {name}"
            task.status(step, 0, 0)
            self._name(name, target, image)
            task.status(step, 0, 0, completed=True)
        if self.unpack and names:
            for manifest in image.manifests:
                if str(manifest.platform) in self.worker.platforms[:1] or len(image.manifests) == 1:
                    self._unpack(task, names[0], manifest)

    def _complete(self, task: Task, image: Image) -> None:
        """An image that is kept has all of its layers here."""
        for manifest in image.manifests:
            snapshot = manifest.part.snapshot
            if snapshot is None:
                continue
            for layer in manifest.layers:
                if not self.worker.content.has(layer["digest"]):
                    task.check()
                    held = snapshot
                    self.worker.content.fetch(
                        layer,
                        lambda descriptor, offset, held=held: _from(self.worker.open_blob(held, descriptor), offset),
                    )

    def _name(self, name: str, target: Descriptor, image: Image) -> None:
        before = self.worker.images.get(name)
        self.worker.images.put(name, target)
        if before is None or before["digest"] == target["digest"] or name.startswith(self.dangling_prefix):
            return
        if self.worker.images.named(before["digest"]) or self._configs(before) <= {
            manifest.config["digest"] for manifest in image.manifests
        }:
            return
        self.worker.images.put(self.dangling_prefix + before["digest"], before)

    def _configs(self, target: Descriptor) -> set[str]:
        """The configurations of an image, which are what it is known by; the digest of what cannot be read."""
        try:
            document = self._document(target)
            if image_spec.media_type_of(document, target["mediaType"]) not in image_spec.INDEXES:
                return {image_spec.manifest(document)["config"]["digest"]}
            found = set()
            for entry in image_spec.index(document)["manifests"]:
                if images.REFERENCE_TYPE not in (entry.get("annotations") or {}):
                    found.add(image_spec.manifest(self._document(entry))["config"]["digest"])
            return found
        except (errors.Error, image_spec.SpecError):
            return {target["digest"]}

    def _document(self, target: Descriptor) -> dict[str, Any]:
        data = self.worker.content.read_whole(target["digest"], image_spec.MANIFEST_SIZE_LIMIT)
        return image_spec.decode(data, "manifest")

    @property
    def dangling_prefix(self) -> str:
        """How the engine names what has lost its name."""
        return self.dangling or DANGLING

    def _unpack(self, task: Task, name: str, manifest: Manifest) -> None:
        step = f"unpacking to {name}"
        task.status(step, 0, 0)
        layers = [Layer(layer, layer["annotations"][UNCOMPRESSED]) for layer in manifest.layers]
        snapshot = self.worker.image(layers, Kind(description=f"unpacked {name}"))
        if snapshot is not None:
            try:
                snapshot.mounts()
                chain = image_spec.chain_ids([layer.diff_id for layer in layers])[-1]
                snapshotter = self.worker.labels["org.mobyproject.buildkit.worker.snapshotter"]
                self.worker.content.label(manifest.config["digest"], {f"{labels.SNAPSHOT}.{snapshotter}": chain})
            finally:
                snapshot.release()
        task.status(step, 0, 0, completed=True)


DANGLING = "dangling@"  # the engine's word for an image that no name leads to


def for_the_engine(attributes: Mapping[str, str]) -> Mapping[str, str]:
    """What moby means beside image, where a client says nothing of it."""
    unpack = "true" if given.boolean(attributes, "store", True) else "false"
    return {"dangling-name-prefix": DANGLING, "unpack": unpack, **attributes}


def _from(chunks: Any, offset: int) -> Any:
    """The bytes from an offset on of a stream that has only a begin."""
    for chunk in chunks:
        if offset >= len(chunk):
            offset -= len(chunk)
            continue
        yield chunk[offset:]
        offset = 0


def answer(image: Image, names: tuple[str, ...] = ()) -> dict[str, str]:
    """What the client reads of an image."""
    descriptor = image.target.copy()
    if image.single:
        descriptor["annotations"] = {
            **(descriptor.get("annotations") or {}),
            "config.digest": image.manifests[0].config["digest"],
        }
    values = {
        DIGEST: image.target["digest"],
        DESCRIPTOR: base64.b64encode(json.dumps(descriptor, separators=(",", ":")).encode()).decode(),
    }
    if len(image.manifests) == 1:
        values[CONFIG_DIGEST] = image.manifests[0].config["digest"]
    if names:
        values[NAME] = ",".join(names)
    return values
