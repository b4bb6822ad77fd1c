# SPDX-License-Identifier: Apache-2.0
"""Images as the CRI has them: one for each configuration, by whose digest it is known, with all its names. Called by
`image_service`, and by `containers` and `restore`.

An image has three kinds of names in the image store: its tags, its digests (NAME@sha256:…), and its own id. Images that
came by other ways (ctr, nerdctl) are as good, as long as their content is there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from teu.api.types import platform_pb2
from teu.api.types.transfer import imagestore_pb2, registry_pb2
from teu.containerd.core.errors import Error, InvalidArgument, NotFound, Unknown
from teu.containerd.cri.records import NAMESPACE
from teu.containerd.stores.garbage import Collector
from teu.containerd.transfer import registry
from teu.containerd.transfer.job import Job, Parts, from_wire
from teu.oci import distribution, image_spec, reference

log = logging.getLogger("teu.containerd.cri")

MANAGED = {"io.cri-containerd.image": "managed"}
# Annotations of images that are archives of checkpoints: checkpointctl's, of before, and CRI-O's of before.
CHECKPOINT_ANNOTATIONS = (
    "org.criu.checkpoint.container.name",
    "checkpointctl.annotation.checkpoint.name",
    "io.kubernetes.cri-o.annotations.checkpoint.name",
)


@dataclass(slots=True)
class Details:
    """What is in the content store of one image, for this host's platform."""

    id: str
    size: int  # bytes of the configuration, the manifest and the layers, as they are packed
    chain: str  # the uppermost layer's snapshot; "" without layers
    config: Mapping[str, Any]  # the `config` of the configuration: User, Cmd, ...
    document: image_spec.Descriptor  # of the configuration
    saved: list[str] | None = None  # digests of the layers of an image that is the archive of a checkpoint


@dataclass(slots=True)
class Image:
    """One image with its names in the store."""

    details: Details
    names: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        """sha256:…, of the configuration."""
        return self.details.id


def user_of(config: Mapping[str, Any]) -> tuple[int | None, str]:
    """(uid, name) of an image's user: one of them, or neither where it names none."""
    name = str(config.get("User") or "").partition(":")[0]
    if not name:
        return None, ""
    if name.isascii() and name.isdigit() and len(name) < 19:
        return int(name), ""
    return None, name


def is_checkpoint(document: Mapping[str, Any]) -> bool:
    """Whether a manifest or an index says that its image is the archive of a checkpoint."""
    annotations = document.get("annotations")
    return isinstance(annotations, dict) and any(name in annotations for name in CHECKPOINT_ANNOTATIONS)


def normalized(text: str) -> str:
    """The whole name of what was asked for: with its registry, and a digest or a tag. Raises InvalidArgument."""
    try:
        found = reference.parse(text).with_default_tag()
    except ValueError as error:
        raise InvalidArgument(f'failed to parse image reference "{text}": {error}') from None
    return str(found._replace(tag="") if found.digest else found)


def credentials(auth: Any, domain: str) -> distribution.Credentials:
    """Those of an AuthConfig, unless it is for another registry. Raises InvalidArgument."""
    if auth.server_address:
        host = auth.server_address.partition("://")[2] or auth.server_address
        if host.partition("/")[0] not in (domain, *(("index.docker.io",) if domain == "docker.io" else ())):
            return distribution.Credentials()
    if auth.username:
        return distribution.Credentials(auth.username, auth.password)
    if auth.identity_token:
        return distribution.Credentials(identity_token=auth.identity_token)
    if auth.auth:
        try:
            user, colon, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            raise InvalidArgument("invalid auth config: auth is not base64") from None
        if not colon:
            raise InvalidArgument("invalid auth config: auth has no user and password")
        return distribution.Credentials(user, password.strip("\0"))
    return distribution.Credentials(registry_token=auth.registry_token)


class Images:
    """The images of the namespace k8s.io."""

    def __init__(self, parts: Parts, collector: Collector, folder: str, pinned: Sequence[str]) -> None:
        """`folder` has a registry's places (hosts.toml), `pinned` names images that are never to be collected."""
        self._parts = parts
        self._collector = collector
        self._folder = folder
        self._pinned = [normalized(name) for name in pinned]
        self._known: dict[str, Details | None] = {}  # by the digest of what an image's name stands for
        self._all: tuple[int, dict[str, Image]] = -1, {}  # with the version of the store that it was read from
        self._pulls: dict[bytes, Pull] = {}

    @property
    def snapshotter(self) -> str:
        """By which containers get their root file systems."""
        return self._parts.snapshotter

    def _job(self, cancelled: Callable[[], bool] = lambda: False, loop: Any = None) -> Job:
        return Job(self._parts, NAMESPACE, loop, None, cancelled)

    def _details(self, target: image_spec.Descriptor) -> Details | None:
        """None for what is no image of this platform, or not all there."""
        try:
            job = self._job()
            manifest = job.manifest_for(target, image_spec.host_platform())
            document = image_spec.manifest(job.document(manifest))
            if not image_spec.is_image(document):
                return None
            config = image_spec.config(job.document(document["config"]), len(document["layers"]))
            noted = [document] if manifest["digest"] == target["digest"] else [document, job.document(target)]
        except (Error, OSError, ValueError) as error:
            log.debug("image %s: %s", target["digest"], error)
            return None
        chains = image_spec.chain_ids(config["rootfs"]["diff_ids"])
        size = manifest["size"] + document["config"]["size"] + sum(one["size"] for one in document["layers"])
        saved = [one["digest"] for one in document["layers"]] if any(map(is_checkpoint, noted)) else None
        chain, described = chains[-1] if chains else "", document["config"]
        return Details(described["digest"], size, chain, config.get("config") or {}, described, saved)

    @property
    def at_hand(self) -> bool:
        """Whether `all` and `find` answer at once."""
        return self._all[0] == self._parts.images.version

    def all(self) -> dict[str, Image]:
        """By their ids; not to be changed. Blocks, unless it is at hand."""
        version, kept = self._all
        if version == self._parts.images.version:
            return kept
        version = self._parts.images.version
        found: dict[str, Image] = {}
        targets = set()
        for record in self._parts.images.find(NAMESPACE):
            digest = record.target.digest
            targets.add(digest)
            if (details := self._known.get(digest)) is None:
                details = self._known[digest] = self._details(from_wire(record.target))
            if details is None:
                continue
            image = found.setdefault(details.id, Image(details))
            image.names.append(record.name)
            if "@" in record.name:
                image.digests.append(record.name)
            elif not record.name.startswith("sha256:"):
                image.tags.append(record.name)
        for digest in self._known.keys() - targets:
            self._known.pop(digest, None)
        self._all = version, found
        return found

    def find(self, text: str) -> Image | None:
        """By an id, a part that only it begins with, or a name. Raises InvalidArgument for what is none of these.
        Blocks, unless they are at hand."""
        images = self.all()
        if text in images:
            return images[text]
        plain = text.removeprefix("sha256:")
        if plain and all(sign in "0123456789abcdef" for sign in plain):
            found = [image for id, image in images.items() if id.removeprefix("sha256:").startswith(plain)]
            if len(found) == 1:
                return found[0]
            if text.startswith("sha256:") or len(plain) == 64:
                return None
        name = normalized(text)
        return next((image for image in images.values() if name in image.names), None)

    def configuration(self, image: Image) -> dict[str, Any]:
        """All of it, as it is in the content store. NotFound where it has been removed meanwhile. Blocks."""
        return self._job().document(image.details.document)

    def pinned(self, image: Image) -> bool:
        """Whether kubelet is to leave it."""
        return any(name in image.names for name in self._pinned)

    def remove(self, text: str) -> None:
        """All names of an image, and what nobody needs then; nothing where there is none. Blocks."""
        image = self.find(text)
        if image is None:
            return
        for name in image.names:
            try:
                self._parts.images.delete(NAMESPACE, name)
            except NotFound:
                pass
        self._collector.collect()

    def usage(self) -> tuple[int, int]:
        """(bytes, inodes) of all layers, from what was counted when they were unpacked. Blocks."""
        size = inodes = 0
        snapshots = self._parts.snapshots
        for info in snapshots.find(NAMESPACE, self.snapshotter, ["kind==committed"]):
            try:
                usage = snapshots.usage(NAMESPACE, self.snapshotter, info.name)
            except NotFound:
                continue
            size += usage.size
            inodes += usage.inodes
        return size, inodes

    async def pull(self, text: str, auth: Any) -> str:
        """From its registry, unpacked; the image's id. Requests that are equal are one pull, which ends early when the
        last of their clients has left."""
        name = normalized(text)
        key = name.encode() + b"\0" + auth.SerializeToString(deterministic=True)
        pull = self._pulls.get(key)
        if pull is None:
            given = credentials(auth, reference.parse(name).domain)
            pull = self._pulls[key] = Pull()
            pull.task = asyncio.create_task(
                asyncio.to_thread(self._pull, name, given, pull, asyncio.get_running_loop())
            )
            pull.task.add_done_callback(lambda done: self._pulled(key, done))
        pull.clients += 1
        try:
            assert pull.task is not None
            return await asyncio.shield(pull.task)
        finally:
            pull.clients -= 1

    def _pulled(self, key: bytes, done: asyncio.Task[str]) -> None:
        self._pulls.pop(key, None)
        if not done.cancelled():
            done.exception()  # it is told to those who wait, if any still do

    def _pull(self, name: str, given: distribution.Credentials, pull: Pull, loop: Any) -> str:
        job = self._job(lambda: not pull.clients, loop)
        parsed = reference.parse(name)
        host = image_spec.host_platform()
        platform = platform_pb2.Platform(os=host.os, architecture=host.architecture, variant=host.variant)
        source = registry_pb2.OCIRegistry(reference=name)
        source.resolver.host_dir = self._folder
        destination = imagestore_pb2.ImageStore(name=name, labels=MANAGED, platforms=[platform])
        destination.unpacks.add(platform=platform, snapshotter=self.snapshotter)
        try:
            target = registry.pull(job, source, destination, given)
        except registry.NotAllowed as error:
            # By this word, in an error without a code, kubelet tells a pod why it waits (k8s.io/cri-api, errors).
            raise Unknown(f"SignatureValidationFailed: {error.message}") from None
        details = self._known[target["digest"]] = self._details(target)
        if details is None:
            raise InvalidArgument(f"{name} is no image that can run here")
        job.store(details.id, target, MANAGED)
        job.store(f"{parsed.name}@{target['digest']}", target, MANAGED)
        return details.id


@dataclass(slots=True)
class Pull:
    """One that is under way, and how many wait for it."""

    task: asyncio.Task[str] | None = None
    clients: int = 0
