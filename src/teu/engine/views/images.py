# SPDX-License-Identifier: Apache-2.0
"""What the API tells of images: the list, one in full, its history. Called by routes/images and df."""

from __future__ import annotations

import contextlib
import fnmatch
import time
from typing import TYPE_CHECKING, cast

from teu.engine.backend import containerd, content
from teu.engine.core import versions
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.filters import filter_moment, flag_filter, labels_match
from teu.engine.core.times import moment_of, seconds
from teu.engine.images import platforms, removal
from teu.oci import image_spec
from teu.oci import labels as labels_of

if TYPE_CHECKING:
    from typing import NotRequired, TypedDict

    from teu.engine.engine import Engine
    from teu.engine.images.platforms import Part
    from teu.engine.images.store import Details, Image, Name
    from teu.oci.image_spec import ContainerConfig, Descriptor, ImageConfig

    class ImageSummary(TypedDict):
        """The API's, as in a list."""

        Containers: int
        Created: int
        Id: str
        Labels: dict[str, str] | None
        ParentId: str
        RepoDigests: list[str]
        RepoTags: list[str]
        SharedSize: int
        Size: int
        VirtualSize: NotRequired[int]
        Descriptor: NotRequired[Descriptor]
        Manifests: NotRequired[list[dict[str, object]]]

    class HistoryItem(TypedDict):
        """The API's: a step of an image's making."""

        Comment: str
        Created: int
        CreatedBy: str
        Id: str
        Size: int
        Tags: list[str] | None


NEVER = "0001-01-01T00:00:00Z"
COUNTED = (1, 51)  # since when the containers of listed images are counted
IDENTITY = (1, 53)  # since when one is told in full
LIST_FILTERS = {"dangling", "label", "label!", "before", "since", "reference", "until"}


def listing(
    engine: Engine,
    filters: dict[str, list[str]],
    every: bool = False,
    digests: bool = True,
    shared: bool = False,
    targets: bool = False,
    manifests: bool = False,
    identity: bool = False,
    version: versions.Version = versions.LAST,
    counted: bool = False,
) -> list[ImageSummary]:
    """GET /images/json, as this version of the API has it; with the descriptors of `targets`, and with the `manifests`
    below them, and the `identity` of each. `counted`: with the number of containers in any version."""
    for name in filters:
        if name not in LIST_FILTERS:
            raise BadRequest(f"invalid filter '{name}'")
    dangling = flag_filter(filters, "dangling")
    images = engine.images.all()
    created = {image_id: moment_of(details.config.get("created")) for image_id, (details, _) in images.items()}
    before = [moment_of(engine.images.resolve(ref).config.get("created")) for ref in filters.get("before", ())]
    since = [moment_of(engine.images.resolve(ref).config.get("created")) for ref in filters.get("since", ())]
    until = [filter_moment(text) for text in filters.get("until", ())]
    users: dict[str, int] = {}
    layer_users: dict[str, int] = {}
    counted = counted or version >= COUNTED
    if shared or counted:
        owner = {known: image_id for image_id, (_, names) in images.items() for known in engine.images.ids(names)}
        for container in engine.containers.all():
            known = container.image_id if container.image_id in images else owner.get(container.image_id, "")
            users[known] = users.get(known, 0) + 1
        for details, _ in images.values():
            for chain in details.chains:
                layer_users[chain] = layer_users.get(chain, 0) + 1
    result: list[ImageSummary] = []
    for image_id, (details, names) in images.items():
        labels = (details.config.get("config") or {}).get("Labels") or {}
        tags = engine.images.repo_tags(names)
        digest_names = engine.images.repo_digests(names) if digests else []
        wanted = filters.get("reference")
        if wanted:
            # What is left out here must not be told as a digest either: docker shows a row for each repository.
            tags = [tag for tag in tags if any(reference_matches(pattern, tag) for pattern in wanted)]
            digest_names = [name for name in digest_names if any(reference_matches(each, name) for each in wanted)]
            if not tags and not digest_names:
                continue
        if dangling is not None and dangling == bool(tags or any(n.reference for n in names)):
            continue
        if not labels_match(labels, filters.get("label", [])):
            continue
        if any(labels_match(labels, [text]) for text in filters.get("label!", ())):
            continue
        moment = created[image_id]
        if any(moment >= limit for limit in [*before, *until]) or any(moment <= limit for limit in since):
            continue
        size = total_size(engine, details, names[0])
        result.append(
            {
                **_below(engine, names[0], targets, manifests, identity),
                "Containers": users.get(image_id, 0) if counted else -1,
                "Created": moment // 10**9,
                "Id": image_id,
                "Labels": labels or None,
                "ParentId": parent(engine, details.config),
                "RepoDigests": digest_names,
                "RepoTags": tags,
                "SharedSize": sum(
                    engine.images.layer_size(chain) for chain in details.chains if layer_users.get(chain, 0) > 1
                )
                if shared
                else -1,
                "Size": size,
                "VirtualSize": size,
            }
        )
    result.sort(key=lambda item: (-item["Created"], item["Id"]))
    versions.fit("images", result, version)
    return result


def total_size(engine: Engine, details: Details, name: Name) -> int:
    """Bytes that an image takes: with ids of configurations its unpacked layers, as docker has told ever since; with
    ids of targets all blobs that are here as well, and every platform's layers that are unpacked."""
    images = engine.images
    if not images.by_target:
        return images.size(details)
    parts = images.parts(name, sizes=True)
    chains = {chain for part in parts for chain in platforms.chains(engine.containerd, part)}
    blobs = {digest: size for part in parts for digest, size in part.blobs.items()}
    return sum(blobs.values()) + sum(images.layer_size(chain) for chain in chains)


def disk_usage(engine: Engine) -> int:
    """Bytes that all images take: what several of them have is counted once."""
    images = engine.images
    chains: dict[str, int] = {}
    blobs: dict[str, int] = {}
    for details, names in images.all().values():
        for chain, layer in zip(details.chains, details.manifest["layers"], strict=True):
            chains[chain] = images.layer_size(chain, layer["size"])
        if images.by_target:
            for part in images.parts(names[0], sizes=True):
                blobs.update(part.blobs)
                chains.update((chain, images.layer_size(chain)) for chain in platforms.chains(images.client, part))
    return sum(chains.values()) + sum(blobs.values())


def _below(engine: Engine, name: Name, targets: bool, manifests: bool, identity: bool = False) -> ImageSummary:
    """Descriptor (since 1.48) and Manifests (since 1.47, where they were asked for) of a name's target."""
    more: dict[str, object] = {}
    if targets:
        more["Descriptor"] = image_spec.plain(name.target)
    if manifests:
        found = engine.images.parts(name, sizes=True)
        more["Manifests"] = [
            {**_manifest_summary(engine, part), **(_identity(engine, part.digest) if identity else {})}
            for part in found
        ]
    return cast("ImageSummary", more)


def _identity(engine: Engine, *blobs: str) -> dict[str, object]:
    """Where manifests, or an index and one of them, have come from, as far as their labels say: repositories that they
    were pulled from."""
    found: set[str] = set()
    for digest in blobs:
        with contextlib.suppress(containerd.NotFound):
            for key, value in content.info(engine.containerd, digest).labels.items():
                if key.startswith(f"{labels_of.SOURCE}."):
                    host = key.removeprefix(f"{labels_of.SOURCE}.")
                    found |= {f"{host}/{name}" for name in value.split(",") if name}
    return {"Identity": {"Pull": [{"Repository": name} for name in sorted(found)]}} if found else {}


def _manifest_summary(engine: Engine, part: Part) -> dict[str, object]:
    """The API's ImageManifestSummary."""
    chains = platforms.chains(engine.containerd, part)
    unpacked = sum(engine.images.layer_size(chain) for chain in chains)
    size: dict[str, int] = {"Content": part.size, "Total": part.size + unpacked}
    result: dict[str, object] = {
        "ID": part.digest,
        "Descriptor": part.descriptor,
        "Available": part.whole,
        "Size": size,
        "Kind": part.kind,
    }
    if part.kind == platforms.IMAGE:
        users = [one.id for one in removal.users_of(engine.containers, part, chains)]
        result["ImageData"] = {
            "Platform": platforms.shown(part.platform) if part.platform else {},
            "Containers": users,
            "Size": {"Unpacked": unpacked},
        }
    elif part.kind == platforms.ATTESTATION:
        result["AttestationData"] = {"For": part.attests}
    return result


def reference_matches(pattern: str, tag: str) -> bool:
    """docker's reference filter: a shell pattern for the name, or for name:tag; `*` ends at a slash."""
    name = tag.partition("@")[0] if "@" in tag else tag.rpartition(":")[0]
    for candidate in (tag, name):
        if pattern.count("/") == candidate.count("/") and all(
            fnmatch.fnmatchcase(part, glob) for part, glob in zip(candidate.split("/"), pattern.split("/"))
        ):
            return True
    return False


def inspect(
    engine: Engine,
    image: Image,
    names: list[Name],
    targets: bool = False,
    manifests: bool = False,
    platform: bool = False,
    version: versions.Version = versions.LAST,
) -> dict[str, object]:
    """GET /images/{name}/json; `targets`, `manifests` and `version` as of `listing`. With `platform` one was asked for,
    and the descriptor is of its manifest."""
    config = image.config
    updated = max((name.updated for name in names if name.reference), default=0.0)
    root: dict[str, object] = {"Type": "layers"}
    if config["rootfs"]["diff_ids"]:
        root["Layers"] = config["rootfs"]["diff_ids"]
    size = _packed(engine, image) if engine.images.by_target else image.size
    identity = version >= IDENTITY
    result: dict[str, object] = {
        **(_identity(engine, image.target["digest"], image.details.manifest_digest) if identity else {}),
        **(_below(engine, names[0], targets, manifests) if names else {}),
        **({"Descriptor": _descriptor(engine, image, names)} if targets and platform else {}),
        "Id": image.id,
        "RepoTags": engine.images.repo_tags(names),
        "RepoDigests": engine.images.repo_digests(names),
        "Parent": parent(engine, config),
        "Comment": _last_comment(config),
        "Created": config.get("created") or "",
        "Container": _text(config, "container"),
        "ContainerConfig": container_config(_older_config(config)),
        "DockerVersion": config.get("docker_version", ""),
        "Author": config.get("author", ""),
        "Config": container_config(config.get("config") or {}),
        "Architecture": config.get("architecture", ""),
        "Os": config.get("os", ""),
        "Size": size,
        "VirtualSize": size,
        "GraphDriver": {"Data": None, "Name": engine.images.snapshotter},
        "RootFS": root,
        "Metadata": {
            "LastTagTime": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(updated)) + f".{int(updated % 1 * 1e9):09d}Z"
            if updated
            else NEVER
        },
    }
    if config.get("variant"):
        result["Variant"] = config["variant"]
    versions.fit("image", result, version)
    if result.get("Created") == "":
        result["Created"] = NEVER
    return result


def _text(config: ImageConfig, key: str) -> str:
    value = cast("dict[str, object]", config).get(key)
    return value if isinstance(value, str) else ""


def _older_config(config: ImageConfig) -> ContainerConfig:
    """That of the container which the image was committed from, which builders of old have written down."""
    value = cast("dict[str, object]", config).get("container_config")
    return cast("ContainerConfig", value) if isinstance(value, dict) else {}


def _descriptor(engine: Engine, image: Image, names: list[Name]) -> Descriptor:
    """Of the image's manifest, as its index has it."""
    parts = (part for name in names[:1] for part in engine.images.parts(name))
    found = (part.descriptor for part in parts if part.digest == image.details.manifest_digest)
    return next(found, image_spec.plain(image.target))


def _packed(engine: Engine, image: Image) -> int:
    """Bytes of what a registry has of it, for one platform, as docker with ids of targets says."""
    details = image.details
    size = image.target["size"] + details.manifest["config"]["size"]
    if details.manifest_digest != image.target["digest"]:
        size += int(content.info(engine.containerd, details.manifest_digest).size)
    return size + sum(layer["size"] for layer in details.manifest["layers"])


def parent(engine: Engine, config: ImageConfig) -> str:
    """The image that this one was committed from, while it is here."""
    known = str(config.get("parent") or "")
    return known if known and engine.images.of_id(known) else ""


def container_config(inner: ContainerConfig) -> dict[str, object]:
    """An image's config in the API's form, with the members that docker always shows."""
    return {
        "Hostname": "",
        "Domainname": "",
        "User": "",
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "Env": None,
        "Cmd": None,
        "Image": "",
        "Volumes": None,
        "WorkingDir": "",
        "Entrypoint": None,
        "OnBuild": None,
        "Labels": None,
        **inner,
    }


def _last_comment(config: ImageConfig) -> str:
    history = config.get("history") or []
    return str(history[-1].get("comment", "")) if history else str(config.get("comment", ""))


def history(engine: Engine, image: Image, names: list[Name]) -> list[HistoryItem]:
    """GET /images/{name}/history, newest first."""
    details: Details = image.details
    rows: list[HistoryItem] = []
    chains = iter(zip(details.chains, details.manifest["layers"], strict=True))
    entries = image.config.get("history") or [{} for _ in details.chains]
    for entry in entries:
        size = 0
        if not entry.get("empty_layer"):
            layer = next(chains, None)
            if layer is None:
                raise EngineError(f"too many non-empty layers in History section of {image.id}")
            size = engine.images.layer_size(layer[0], layer[1]["size"])
        rows.append(
            {
                "Comment": entry.get("comment", ""),
                "Created": seconds(entry.get("created")),
                "CreatedBy": entry.get("created_by", ""),
                "Id": "<missing>",
                "Size": size,
                "Tags": None,
            }
        )
    rows.reverse()
    if rows:
        rows[0]["Id"] = image.id
        rows[0]["Tags"] = engine.images.repo_tags(names) or None
    return rows
