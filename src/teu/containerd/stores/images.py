# SPDX-License-Identifier: Apache-2.0
"""Image records: a name for a descriptor. Each is a root of garbage collection, unless it has expired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from teu.api.events import image_pb2 as image_events
from teu.api.services.images.v1 import images_pb2
from teu.api.types import descriptor_pb2
from teu.containerd.core.database import Database, dump_labels, now, set_labels, set_timestamp
from teu.containerd.core.digests import is_digest
from teu.containerd.core.errors import AlreadyExists, InvalidArgument, NotFound
from teu.containerd.core.events import Exchange
from teu.containerd.core.filters import Adaptor, in_map, parse_all, present
from teu.containerd.core.rows import Row, must_be_whole
from teu.containerd.stores.leases import Leases
from teu.oci.labels import EXPIRE

_COLUMNS = "name, labels, record, created, updated"


def _from_row(row: Any) -> images_pb2.Image:
    read = Row(f"image {row[0]}")
    image = images_pb2.Image(name=read.text(row[0], "name"))
    image.target.CopyFrom(read.message(descriptor_pb2.Descriptor, row[2], "record"))
    if not is_digest(image.target.digest):
        read.faults.append("record has no digest")
        image.target.Clear()
    labels = read.labels(row[1])
    set_timestamp(image.created_at, read.number(row[3], "created"))
    set_timestamp(image.updated_at, read.number(row[4], "updated"))
    image.labels.update(read.told(labels))
    return image


def _validate(image: images_pb2.Image) -> None:
    if not image.name:
        raise InvalidArgument("image name must not be empty")
    if not is_digest(image.target.digest):
        raise InvalidArgument(f'target.Digest "{image.target.digest}" invalid: invalid checksum digest format')
    if image.target.size <= 0:
        raise InvalidArgument("target.Size must be greater than zero")
    if not image.target.media_type:
        raise InvalidArgument("target.MediaType must be set")


def adaptor(image: images_pb2.Image) -> Adaptor:
    """What filters may ask of an image: name, target.digest, target.mediatype, labels, annotations."""

    def adapt(path: Sequence[str]) -> str | None:
        match path[0]:
            case "name":
                return present(image.name)
            case "target" if len(path) > 1:
                fields = {"digest": image.target.digest, "mediatype": image.target.media_type}
                return present(fields.get(path[1], ""))
            case "labels":
                return in_map(path[1:], image.labels)
            case "annotations":
                return in_map(path[1:], image.target.annotations)
        return None

    return adapt


class Images:
    """containerd.services.images.v1, without its wire. An image is containerd.services.images.v1.Image.

    A method raises NotFound for an image that does not exist, InvalidArgument for a message that is none,
    FailedPrecondition for a change to a damaged record."""

    def __init__(self, database: Database, events: Exchange, leases: Leases) -> None:
        self._database = database
        self._events = events
        self._leases = leases

    @property
    def version(self) -> int:
        """A number that grows with whatever is stored, of images or of anything else: what was found before is what
        would be found now, while it is the same."""
        return self._database.committed

    def get(self, namespace: str, name: str) -> images_pb2.Image:
        """The image of that name."""
        row = self._database.one(f"SELECT {_COLUMNS} FROM images WHERE namespace = ? AND name = ?", (namespace, name))
        if row is None:
            raise NotFound(f'image "{name}"')
        return _from_row(row)

    def find(self, namespace: str, filters: Sequence[str] = ()) -> list[images_pb2.Image]:
        """The images that one of the filters lets through, by name; all of them without filters."""
        accept = parse_all(filters)
        rows = self._database.all(f"SELECT {_COLUMNS} FROM images WHERE namespace = ? ORDER BY name", (namespace,))
        return [image for image in map(_from_row, rows) if accept(adaptor(image))]

    def create(
        self, namespace: str, image: images_pb2.Image, *, lease: str = "", stamp: int | None = None
    ) -> images_pb2.Image:
        """Store an image; it is returned with its times. AlreadyExists for a name in use.

        `lease` holds it where it can expire. `stamp`, in nanoseconds since 1970, is its time in place of now."""
        _validate(image)
        stamp = now() if stamp is None else stamp
        with self._database.transaction() as execute:
            self._database.ensure_namespace(namespace)
            if execute("SELECT 1 FROM images WHERE namespace = ? AND name = ?", (namespace, image.name)).fetchone():
                raise AlreadyExists(f'image "{image.name}"')
            self._lease(namespace, lease, image)
            execute(
                "INSERT INTO images (namespace, target, name, labels, record, created, updated) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    namespace,
                    image.target.digest,
                    image.name,
                    dump_labels(image.labels),
                    image.target.SerializeToString(deterministic=True),
                    stamp,
                    stamp,
                ),
            )
        set_timestamp(image.created_at, stamp)
        set_timestamp(image.updated_at, stamp)
        self._events.publish(
            namespace, "/images/create", image_events.ImageCreate(name=image.name, labels=image.labels)
        )
        return image

    def _lease(self, namespace: str, lease: str, image: images_pb2.Image) -> None:
        """Only an image that can expire needs a lease to hold it."""
        if lease and EXPIRE in image.labels:
            self._leases.hold(namespace, lease, "images", image.name)

    def update(
        self,
        namespace: str,
        image: images_pb2.Image,
        paths: Sequence[str],
        *,
        lease: str = "",
        stamp: int | None = None,
    ) -> images_pb2.Image:
        """Change the fields that `paths` name (labels, labels.KEY, target, annotations, annotations.KEY), labels and
        target without any; the changed image. `lease` and `stamp` as in `create`."""
        if not image.name:
            raise InvalidArgument("image name is required for update")
        stamp = now() if stamp is None else stamp
        with self._database.transaction() as execute:
            updated = self.get(namespace, image.name)
            must_be_whole(updated.labels, f'image "{image.name}"')
            for path in paths or ("labels", "target"):
                _apply(updated, image, path)
            _validate(updated)
            self._lease(namespace, lease, updated)
            execute(
                "UPDATE images SET target = ?, labels = ?, record = ?, updated = ? WHERE namespace = ? AND name = ?",
                (
                    updated.target.digest,
                    dump_labels(updated.labels),
                    updated.target.SerializeToString(deterministic=True),
                    stamp,
                    namespace,
                    image.name,
                ),
            )
        set_timestamp(updated.updated_at, stamp)
        self._events.publish(
            namespace, "/images/update", image_events.ImageUpdate(name=updated.name, labels=updated.labels)
        )
        return updated

    def delete(self, namespace: str, name: str, target: str = "") -> None:
        """Remove an image, with `target` only when it still is that digest."""
        with self._database.transaction() as execute:
            row = execute("SELECT target FROM images WHERE namespace = ? AND name = ?", (namespace, name)).fetchone()
            if row is None:
                raise NotFound(f'image "{name}"')
            if target and row[0] != target:
                raise NotFound(f'image "{name}" has target {row[0]}, not {target}')
            execute("DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, name))
            self._leases.release(namespace, "images", name)
        self._database.mutated()
        self._events.publish(namespace, "/images/delete", image_events.ImageDelete(name=name))


def _apply(updated: images_pb2.Image, wanted: images_pb2.Image, path: str) -> None:
    head, _, key = path.partition(".")
    match head, bool(key):
        case "labels", True:
            set_labels(updated.labels, wanted.labels, key)
        case "annotations", True:
            updated.target.annotations[key] = wanted.target.annotations[key]
        case "labels", False:
            set_labels(updated.labels, wanted.labels)
        case "target", False:
            updated.target.CopyFrom(wanted.target)
        case "annotations", False:
            updated.target.annotations.clear()
            updated.target.annotations.update(wanted.target.annotations)
        case _:
            raise InvalidArgument(f'cannot update "{path}" field on image "{updated.name}"')
