# SPDX-License-Identifier: Apache-2.0
"""`rmi` and `image prune`: which names go, when the image goes with them, what stands in the way.

Called by routes/images. Snapshots and content follow by containerd's garbage collection, before the
answer is given.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypedDict

from teu.engine.backend import containerd, content
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.core.filters import filter_moment, flag_filter, labels_match
from teu.engine.core.times import moment_of
from teu.engine.images import platforms, unpack
from teu.engine.images.store import DANGLING
from teu.oci import image_spec

if TYPE_CHECKING:
    from collections.abc import Collection

    from teu.engine.containers.model import Container
    from teu.engine.containers.store import Containers
    from teu.engine.images.platforms import Part
    from teu.engine.images.store import Images, Name
    from teu.oci.image_spec import Platform

log = logging.getLogger("teu.engine")

Records = list[dict[str, str]]


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12]


def _untag(images: Images, name: Name, records: Records, image_id: str) -> None:
    reference = name.reference
    if reference is not None:
        shown = reference.familiar()
        records.append({"Untagged": shown})
        images.events.publish("image", "untag", image_id, {"name": shown})


def remove(images: Images, containers: Containers, text: str, force: bool = False, prune: bool = True) -> Records:
    """DELETE /images/{name}. Raises NotFound, Conflict."""
    with unpack.exclusive("image removal"):
        return _remove(images, containers, text, force)


def _remove(images: Images, containers: Containers, text: str, force: bool) -> Records:
    found, by_id = images.lookup(text)
    try:
        image_id = images.of(found).id
    except containerd.Unavailable:
        raise
    except (containerd.Error, NotFound) as error:
        return _remove_broken(images, found, error)
    every = images.by_id()
    names = every.get(image_id, [])
    if not names:
        raise NotFound(f"No such image: {text}: it is a platform of another image; remove it with --platform")
    records: Records = []
    users = containers.using_image(_ids(images, image_id, names, every))
    tagged = [name for name in names if name.reference]
    given = found.reference
    if not by_id and given is not None and not _is_id_prefix(text, image_id):
        same_repository = [n for n in tagged if (r := n.reference) and given and r.name == given.name]
        others = [n for n in tagged if n not in same_repository]
        tags_left = [n for n in same_repository if n.name != found.name and (r := n.reference) and r.tag]
        if not others and not tags_left:
            if users and not force:
                raise Conflict(
                    f'conflict: unable to remove repository reference "{text}" (must force) - container '
                    f"{users[0].id[:12]} is using its referenced image {_short(image_id)}"
                )
            going = same_repository
        else:
            # The digest by which the repository was pulled goes with its last tag.
            going = [found] if tags_left else same_repository
            for name in going:
                _untag(images, name, records, image_id)
                _untag_digests(images, [name], records)
                images.remove_name(name.name)
            return records
        running = [c for c in users if c.running]
        if users:
            # Forced: the image stays for its containers, without a name.
            for name in going:
                _untag(images, name, records, image_id)
            images.set_name(_dangling(found), found.target, found.meant)
            for name in going:
                images.remove_name(name.name)
            if not running:
                _delete(images, containers, image_id, images.of_id(image_id), records)
            return records
        return _delete(images, containers, image_id, names, records)
    repositories = {reference.name for n in tagged if (reference := n.reference)}
    if len(repositories) > 1 and not force:
        raise Conflict(
            f"conflict: unable to delete {_short(image_id)} (must be forced) - image is referenced in multiple"
            " repositories"
        )
    _check_users(image_id, users, force)
    return _delete(images, containers, image_id, names, records)


def _remove_broken(images: Images, name: Name, error: Exception) -> Records:
    """What its name leads to cannot be read, so nothing more than the name is known to be its own."""
    log.info("image %s cannot be read, its name is removed: %s", name.name, error)
    records: Records = []
    _untag(images, name, records, name.target["digest"])
    images.remove_name(name.name, sync=True)
    return records or [{"Untagged": name.name}]


def _ids(images: Images, image_id: str, names: list[Name], every: Collection[str]) -> set[str]:
    """Of the image with these names, by what containers know it; `every` are the ids of all images."""
    return {image_id, *(known for known in images.ids(names) if known not in every)}


def users_of(containers: Containers, part: Part, chains: list[str]) -> list[Container]:
    """The containers that were made of this platform of an image, whose layers have these chain ids."""
    ids = {part.target, *((part.manifest["config"]["digest"],) if part.manifest else ())}
    top = chains[-1] if chains else ""
    return [container for container in containers.using_image(ids) if container.chain_id == top]


def remove_platforms(
    images: Images, containers: Containers, text: str, wanted: list[Platform], force: bool = False
) -> Records:
    """DELETE /images/{name}?platforms=: what is here of the image for these platforms, and what attests it; the image
    stays with the others. Raises NotFound, BadRequest where nothing would be left, and Conflict."""
    with unpack.exclusive("image removal"):
        found, _ = images.lookup(text)
        parts = images.parts(found)
        going = [part for platform in wanted for part in _exactly(parts, platform, text)]
        digests = {part.digest for part in going}
        if not any(part.kind == platforms.IMAGE and part.manifest and part.digest not in digests for part in parts):
            raise BadRequest(f"{text} has no other platform here: remove the image itself")
        for part in going:
            users = users_of(containers, part, platforms.chains(images.client, part))
            _check_users(part.digest, users, force)
        for part in [*going, *(part for part in parts if part.attests in digests)]:
            _forget_part(images, part)
        for name in images.names():
            if name.target["digest"] == found.target["digest"] and name.meant in digests:
                images.unmean(name)
        images.forget(found.target["digest"])
        images.collect()
        records = [{"Deleted": part.digest} for part in going]
        for part in going:
            images.events.publish("image", "delete", part.digest, {"name": text})
        return records


def _exactly(parts: list[Part], platform: Platform, text: str) -> list[Part]:
    found = [
        part
        for part in platforms.fitting(parts, platform)
        if part.manifest and part.platform and image_spec.platform_rank(platform, part.platform) == 0
    ]
    if not found:
        raise NotFound(f"{text} has nothing for {platform} here, but {platforms.names_of(parts)}")
    return found


def _forget_part(images: Images, part: Part) -> None:
    """The index above it keeps it no longer."""
    if not part.manifest or not part.way:
        return
    labels = content.info(images.client, part.way[-1]).labels
    gone = {
        key: "" for key, value in labels.items() if key.startswith(f"{content.GC_CONTENT}.m.") and value == part.digest
    }
    content.label(images.client, part.way[-1], gone)


def _is_id_prefix(text: str, image_id: str) -> bool:
    return image_id.startswith(text) or image_id.removeprefix("sha256:").startswith(text)


def _dangling(name: Name) -> str:
    return DANGLING + str(name.meant or name.target["digest"])


def _check_users(image_id: str, users: list[Container], force: bool) -> None:
    for container in users:
        if container.running:
            raise Conflict(
                f"conflict: unable to delete {_short(image_id)} (cannot be forced) - image is being used by "
                f"running container {container.id[:12]}"
            )
    if users and not force:
        raise Conflict(
            f"conflict: unable to delete {_short(image_id)} (must be forced) - image is being used by stopped "
            f"container {users[0].id[:12]}"
        )


def _untag_digests(images: Images, names: list[Name], records: Records) -> None:
    for shown in images.repo_digests(names):
        if {"Untagged": shown} not in records:
            records.append({"Untagged": shown})


def _delete(images: Images, containers: Containers, image_id: str, names: list[Name], records: Records) -> Records:
    details = images.of(names[0])
    for name in names:
        _untag(images, name, records, image_id)
    _untag_digests(images, [name for name in names if name.reference], records)
    shared: set[str] = set()
    for other_id, (other, _) in images.all().items():
        if other_id != image_id:
            shared.update(other.chains)
    if containers.using_image({image_id}):
        shared.update(details.chains)
    for position, name in enumerate(names):
        images.remove_name(name.name, sync=position == len(names) - 1)
    records.append({"Deleted": image_id})
    records += [{"Deleted": chain} for chain in reversed(details.chains) if chain not in shared]
    images.events.publish("image", "delete", image_id, {"name": image_id})
    return records


class Pruned(TypedDict):
    """The API's ImagePruneResponse."""

    ImagesDeleted: Records | None
    SpaceReclaimed: int


def _blobs(images: Images, names: list[Name]) -> dict[str, int]:
    """What an image takes beside its layers that are unpacked, where its size has that, too."""
    if not images.by_target:
        return {}
    return {digest: size for part in images.parts(names[0], sizes=True) for digest, size in part.blobs.items()}


PRUNE_FILTERS = {"dangling", "label", "label!", "until"}


def prune(images: Images, containers: Containers, filters: dict[str, list[str]]) -> Pruned:
    """POST /images/prune: images that no container uses; dangling ones only, unless dangling=false. Where no filter
    chooses, also what has come of layers whose pull ended early."""
    for name in filters:
        if name not in PRUNE_FILTERS:
            raise BadRequest(f"invalid filter '{name}'")
    only_dangling = flag_filter(filters, "dangling")
    until = [filter_moment(text) for text in filters.get("until", ())]
    records: Records = []
    freed = 0
    with unpack.exclusive("image removal"):
        every = images.all()
        for image_id, (details, names) in every.items():
            if only_dangling is not False and any(name.reference for name in names):
                continue
            labels = (details.config.get("config") or {}).get("Labels") or {}
            if not labels_match(labels, filters.get("label", [])):
                continue
            if any(labels_match(labels, [text]) for text in filters.get("label!", ())):
                continue
            if any(moment_of(details.config.get("created")) > limit for limit in until):
                continue
            if containers.using_image(_ids(images, image_id, names, every)):
                continue
            sizes = {chain: images.layer_size(chain) for chain in details.chains}
            blobs = _blobs(images, names)
            try:
                gone = _delete(images, containers, image_id, names, [])
            except EngineError:
                continue
            freed += sum(sizes.get(record.get("Deleted", ""), 0) for record in gone)
            freed += sum(size for digest, size in blobs.items() if not content.exists(images.client, digest))
            records += gone
        if not filters.keys() - {"dangling"}:
            freed += content.abort_layers(images.client)
    images.events.publish("image", "prune", "", {"reclaimed": str(freed)})
    return {"ImagesDeleted": records or None, "SpaceReclaimed": freed}
