# SPDX-License-Identifier: Apache-2.0
"""Images as the engine sees them: names in containerd's image store, ids as docker's users know them.

containerd keeps names, each with a target (a manifest or an index). With `image-ids: config` an image's id is the
digest of its configuration, as docker's users have known it; with `image-ids: target` it is the target's digest, as
since docker keeps images in containerd. Ids are found by looking through the targets, whose documents never change and
are remembered.
An image that lost its last tag, or that never had one, is kept under the name `dangling@DIGEST`.

    docker.io/library/busybox:latest          a tag
    docker.io/library/busybox@sha256:...      pulled by digest
    dangling@sha256:...                       <none>

Where a target is an index, any number of its manifests may be here (platforms.py). With ids of configurations a name
is one image, of one platform: the label io.teu.image.manifest of the name says which of them is meant: the one that was
pulled or loaded last. Names that other clients of containerd have made have no such label: there the host's platform
counts, then whichever is here. So it is for every name with ids of targets, where the label is written and not read.

Called by routes/images, by create and commit of containers, and by info and df.
"""

from __future__ import annotations

import contextlib
import re
import threading
import uuid
from typing import TYPE_CHECKING, NamedTuple, cast

from teu import grpcclient
from teu.engine.backend import containerd, content
from teu.engine.core.errors import BadRequest, NotFound
from teu.engine.images import platforms, unpack
from teu.engine.images.platforms import INDEX_DEPTH
from teu.oci import digest as digests
from teu.oci import image_spec, reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from teu.api.services.images.v1 import images_pb2
    from teu.config import Settings
    from teu.engine.core.events import Events
    from teu.oci.image_spec import Descriptor, ImageConfig, Manifest, PlatformMembers
    from teu.oci.jsontext import Json

DANGLING = "dangling@"
MEANT_LABEL = "io.teu.image.manifest"
_HEX = re.compile(r"(?:sha256:)?[0-9a-f]{1,64}\Z")


class Details(NamedTuple):
    """What a target's documents say. `manifest_digest` is the target itself where that is no index."""

    id: str
    config: ImageConfig
    manifest: Manifest
    manifest_digest: str
    chains: list[str]

    @property
    def config_digest(self) -> str:
        """Of the configuration, whatever the id is."""
        return self.manifest["config"]["digest"]

    @property
    def chain_id(self) -> str:
        """The name of the snapshot with all layers; "" for an image without layers."""
        return self.chains[-1] if self.chains else ""


class Name(NamedTuple):
    """One name in containerd's image store."""

    name: str
    target: Descriptor
    labels: dict[str, str]
    updated: float
    chosen: str = ""  # a manifest that the user has named by its digest

    @property
    def meant(self) -> str:
        """Digest of the manifest that is meant of an index; "" where nobody has said."""
        return self.labels.get(MEANT_LABEL, "")

    @property
    def reference(self) -> reference.Reference | None:
        """The name as a reference; None for an image that has lost its names, and for a name that is none."""
        if self.name.startswith(DANGLING):
            return None
        try:
            return reference.parse(self.name)
        except reference.ReferenceError_:
            return None


class Image(NamedTuple):
    """An image by one of its names, for one platform. `size` is what its snapshots take, in bytes."""

    id: str
    config: ImageConfig
    chain_id: str
    name: str
    size: int
    target: Descriptor
    details: Details


def parse_reference(text: str) -> reference.Reference:
    """The reference in a request. Raises BadRequest."""
    try:
        return reference.parse(text)
    except reference.ReferenceError_ as error:
        raise BadRequest(str(error)) from None


def _name(image: images_pb2.Image) -> Name:
    target: Descriptor = {
        "mediaType": image.target.media_type,
        "digest": image.target.digest,
        "size": image.target.size,
    }
    return Name(image.name, target, dict(image.labels), image.updated_at.seconds + image.updated_at.nanos / 1e9)


def _create_request(name: str, target: Descriptor, meant: str) -> images_pb2.CreateImageRequest:
    from teu.api.services.images.v1 import images_pb2

    request = images_pb2.CreateImageRequest()
    request.image.name = name
    request.image.target.media_type = target["mediaType"]
    request.image.target.digest = target["digest"]
    request.image.target.size = target["size"]
    if meant:
        request.image.labels[MEANT_LABEL] = meant
    return request


class Images:
    """The store. Its client, events and settings are also for those who bring and remove images."""

    def __init__(self, client: containerd.Client, events: Events, settings: Settings) -> None:
        self.client = client
        self.events = events
        self.settings = settings
        self.snapshotter: str = settings["storage-driver"]
        self.by_target = settings["image-ids"] == "target"
        self._lock = threading.Lock()
        self._details: dict[tuple[str, str, str], Details] = {}
        self._sizes: dict[str, int] = {}
        self._manifest_sizes: dict[str, int] = {}

    # -- documents ---------------------------------------------------------------------------

    def document(self, digest: str, what: str) -> dict[str, Json]:
        """A JSON object of the content store, of which nobody has looked yet at what it says."""
        return platforms.document(self.client, digest, what)

    def of(self, name: Name) -> Details:
        """What a name stands for. Raises NotFound."""
        return self.details(name.target, meant=self._meant(name))

    def _meant(self, name: Name) -> str:
        return name.chosen or ("" if self.by_target else name.meant)

    def details(self, target: Descriptor, platform: image_spec.Platform | None = None, meant: str = "") -> Details:
        """Of the manifest that is meant, unless it is not for the platform that is asked for; else of the one for the
        platform. Raises NotFound where that is not here."""
        key = (target["digest"], meant, str(platform or ""))
        known = self._details.get(key)
        if known:
            return known
        try:
            found = self._find_details(target, platform, meant)
        except image_spec.SpecError as error:
            raise containerd.Error(f"image {target['digest']}: {error}") from None
        if self.by_target:
            found = found._replace(id=target["digest"])
        with self._lock:
            self._details[key] = found
        return found

    def _find_details(self, target: Descriptor, platform: image_spec.Platform | None, meant: str) -> Details:
        if not meant or meant == target["digest"]:
            return self._read_details(target, platform)
        try:
            return self._of_manifest(self.document(meant, "manifest"), meant, platform)
        except (containerd.NotFound, NotFound):
            if platform is None:
                raise
            return self._read_details(target, platform)

    def _read_details(self, target: Descriptor, platform: image_spec.Platform | None) -> Details:
        waiting = [(target, 0)]
        seen: set[str] = set()
        while waiting:
            entry, depth = waiting.pop()
            if entry["digest"] in seen:
                continue
            seen.add(entry["digest"])
            try:
                document = self.document(entry["digest"], "manifest")
                if image_spec.media_type_of(document, entry["mediaType"]) not in image_spec.INDEXES:
                    return self._of_manifest(document, entry["digest"], platform)
                entries = image_spec.index(document)["manifests"]
            except (containerd.NotFound, NotFound, image_spec.SpecError):
                if entry is target:
                    raise
                continue
            if depth < INDEX_DEPTH:
                candidates = image_spec.choose(entries, platform or image_spec.host_platform())
                if not platform:
                    others = [one for one in entries if one not in candidates and not platforms.attested(one)]
                    candidates += others
                waiting += [(one, depth + 1) for one in reversed(candidates)]
        raise NotFound(f"no manifest of {target['digest']} for {platform or image_spec.host_platform()} is here")

    def _of_manifest(self, document: dict[str, Json], digest: str, platform: image_spec.Platform | None) -> Details:
        manifest = image_spec.manifest(document)
        config_digest = manifest["config"]["digest"]
        config = image_spec.config(self.document(config_digest, "image configuration"), len(manifest["layers"]))
        if platform and image_spec.platform_rank(platform, image_spec.platform_of(config)) is None:
            raise NotFound(f"actual: {image_spec.platform_of(config)}")
        chains = image_spec.chain_ids(config["rootfs"]["diff_ids"])
        return Details(config_digest, config, manifest, digest, chains)

    # -- names -------------------------------------------------------------------------------

    def names(self, timeout: float = grpcclient.DEADLINE) -> list[Name]:
        """All names that containerd has, within `timeout` seconds. Raises containerd's errors."""

        from teu.api.services.images.v1 import images_pb2

        answer = self.client.images.List(images_pb2.ListImagesRequest(), timeout=timeout)
        return [_name(image) for image in answer.images]

    def get_name(self, name: str) -> Name | None:
        """The name, None where containerd has none like it. Raises containerd's other errors."""

        from teu.api.services.images.v1 import images_pb2

        try:
            return _name(self.client.images.Get(images_pb2.GetImageRequest(name=name)).image)
        except containerd.NotFound:
            return None

    def set_name(self, name: str, target: Descriptor, meant: str = "") -> None:
        """Let `name` be the target, of an index the manifest that is meant; an image that this takes the last name
        from stays as a dangling one."""
        from teu.api.services.images.v1 import images_pb2

        request = _create_request(name, target, meant)
        self.forget(target["digest"])
        with unpack.exclusive("image names"):
            try:
                self.client.images.Create(request)
                return
            except containerd.AlreadyExists:
                pass
            before = self.get_name(name)
            if before and (before.target["digest"], before.meant) != (target["digest"], meant):
                self.keep_dangling(before, self.details(target, meant=meant).id)
            update = images_pb2.UpdateImageRequest(image=request.image)
            update.update_mask.paths.extend(["target", f"labels.{MEANT_LABEL}"])
            self.client.images.Update(update)

    def exchange(self, before: Descriptor, target: Descriptor, manifests: Mapping[str, str]) -> None:
        """Let all names that are `before` be the target, which is the same image. `manifests`: which of those that are
        meant have become which."""
        from teu.api.services.images.v1 import images_pb2

        with unpack.exclusive("image names"):
            for name in self.names():
                if name.target["digest"] == before["digest"]:
                    create = _create_request(name.name, target, manifests.get(name.meant, name.meant))
                    update = images_pb2.UpdateImageRequest(image=create.image)
                    update.update_mask.paths.extend(["target", f"labels.{MEANT_LABEL}"])
                    self.client.images.Update(update)

    def unmean(self, name: Name) -> None:
        """The manifest that a name means is no longer here: the host's platform counts, or one without a tag goes."""
        from teu.api.services.images.v1 import images_pb2

        if name.reference is None:
            self.remove_name(name.name)
            return
        request = images_pb2.UpdateImageRequest(image=_create_request(name.name, name.target, "").image)
        request.update_mask.paths.append(f"labels.{MEANT_LABEL}")
        self.client.images.Update(request)

    def keep_dangling(self, lost: Name, instead: str = "") -> None:
        """`lost` is about to be the image `instead`: keep the one that it is, unless another name still has it."""
        try:
            image_id = self.of(lost).id
            if instead == image_id:
                return
        except containerd.Unavailable:
            raise  # what cannot be asked may be worth keeping
        except (containerd.Error, NotFound):
            return
        for other in self.of_id(image_id):
            if other.name != lost.name:
                return
        try:
            name = DANGLING + (lost.meant or lost.target["digest"])
            self.client.images.Create(_create_request(name, lost.target, lost.meant))
        except containerd.AlreadyExists:
            pass

    def remove_name(self, name: str, sync: bool = False) -> None:
        """Remove a name, if it is there; with `sync` the space is free when this returns."""

        from teu.api.services.images.v1 import images_pb2

        found = self.get_name(name)
        if found is None:
            return
        self._release(found)
        kin = self._kin(found.target)
        try:
            request = images_pb2.DeleteImageRequest(name=name, sync=sync)
            self.client.images.Delete(request, timeout=containerd.COLLECT_SECONDS)
        except containerd.NotFound:
            pass
        with self._lock:
            for key, details in list(self._details.items()):
                if key[0] == found.target["digest"] or kin is None or details.manifest_digest in kin:
                    del self._details[key]

    def collect(self) -> None:
        """Have containerd free now what nothing keeps any more."""
        from teu.api.services.leases.v1 import leases_pb2

        identity = f"teud-{uuid.uuid4().hex}"
        with self.client.making(identity):
            self.client.leases.Create(leases_pb2.CreateRequest(id=identity))
            request = leases_pb2.DeleteRequest(id=identity, sync=True)
            self.client.leases.Delete(request, timeout=containerd.COLLECT_SECONDS)

    def forget(self, target: str) -> None:
        """What is here of a target has changed, so what was found for a platform may no longer be the best."""
        with self._lock:
            for key in [key for key in self._details if key[0] == target]:
                del self._details[key]

    def _kin(self, target: Descriptor) -> set[str] | None:
        """The manifests that may go with a target; None where nobody can say. An index that has one of them may be
        another platform's image then. What was read of all others stays true: else many removals would each read all
        that is left."""
        try:
            document = self.document(target["digest"], "manifest")
            if image_spec.media_type_of(document, target["mediaType"]) not in image_spec.INDEXES:
                return {target["digest"]}
            entries = image_spec.index(document)["manifests"]
        except (containerd.Error, NotFound, image_spec.SpecError):
            return None
        if any(one.get("mediaType") in image_spec.INDEXES for one in entries):
            return None
        return {one["digest"] for one in entries}

    def _release(self, name: Name) -> None:
        """An index keeps those of its manifests that were pulled: no longer the one of a name that goes."""
        if self.by_target or not name.meant or name.meant == name.target["digest"]:
            return
        for other in self.names():
            same = other.target["digest"] == name.target["digest"]
            if same and other.name != name.name and other.meant in ("", name.meant):
                return
        with contextlib.suppress(containerd.NotFound):
            labels = content.info(self.client, name.target["digest"]).labels
            gone = {
                key: ""
                for key, value in labels.items()
                if key.startswith(f"{content.GC_CONTENT}.m.") and value == name.meant
            }
            if gone:
                content.label(self.client, name.target["digest"], gone)

    def add(self, target: Descriptor, names: list[str], details: Details) -> None:
        """Make a stored and unpacked image known by its names, or as a dangling one."""
        meant = details.manifest_digest if details.manifest_digest != target["digest"] else ""
        for name in names:
            self.set_name(name, target, meant)
        dangling = DANGLING + (meant or target["digest"])
        if not names and not self.of_id(details.id):
            self.set_name(dangling, target, meant)
        elif names:
            self.remove_name(dangling)

    def of_id(self, image_id: str) -> list[Name]:
        """All names of the image with this very id."""
        return self.by_id().get(image_id, [])

    def by_id(self) -> dict[str, list[Name]]:
        """All images: id to names, tags in order of their text. Broken and foreign entries are left out."""
        return {image_id: names for image_id, (_, names) in self.all().items()}

    def all(self) -> dict[str, tuple[Details, list[Name]]]:
        """As `by_id`, with what each of them is: who asks for that afterwards may find it removed."""
        result: dict[str, tuple[Details, list[Name]]] = {}
        all_ = self.names()
        for name in all_:
            try:
                details = self.of(name)
            except containerd.Unavailable:
                raise
            except (containerd.Error, NotFound):
                continue
            result.setdefault(details.id, (details, []))[1].append(name)
        for _, names in result.values():
            names.sort(key=lambda name: name.name)
        self._remember({name.target["digest"] for name in all_})
        return result

    def _remember(self, targets: set[str]) -> None:
        """Of no other targets: other clients of containerd take names away, too."""
        with self._lock:
            for key in [key for key in self._details if key[0] not in targets]:
                del self._details[key]

    # -- lookup ------------------------------------------------------------------------------

    def resolve(self, text: str, platform: str | None = None) -> Image:
        """What a user's reference, id or id prefix stands for. Raises NotFound, BadRequest."""
        name, _ = self.lookup(text)
        wanted = None
        if platform:
            try:
                wanted = image_spec.parse_platform(platform)
            except image_spec.SpecError as error:
                raise BadRequest(str(error)) from None
        return self.image(name, wanted, text)

    def of_container(self, image_id: str, chain_id: str) -> Image:
        """What a container was made of: of the image with this id, the platform whose layers are this chain. Raises
        NotFound, BadRequest."""
        name, _ = self.lookup(image_id)
        image = self.image(name, asked=image_id)
        if image.chain_id == chain_id:
            return image
        for part in self.parts(name):
            chains = platforms.chains(self.client, part)
            if chains and chains[-1] == chain_id:
                return self.image(name._replace(chosen=part.digest))
        return image

    def manifest_of(self, image: Image) -> Descriptor:
        """The descriptor of an image's manifest, with its platform. Raises containerd's NotFound."""
        platform = image_spec.platform_of(image.config)
        members = {key: value for key in ("architecture", "os", "variant") if (value := getattr(platform, key))}
        digest = image.details.manifest_digest
        found = image.target
        if digest != found["digest"]:
            with self._lock:
                size = self._manifest_sizes.get(digest)
            if size is None:
                size = self._manifest_sizes[digest] = int(content.info(self.client, digest).size)
            media_type = image.details.manifest.get("mediaType") or image_spec.OCI_MANIFEST
            found = {"mediaType": media_type, "digest": digest, "size": size}
        return {**image_spec.plain(found), "platform": cast("PlatformMembers", members)}

    def image(self, name: Name, platform: image_spec.Platform | None = None, asked: str = "") -> Image:
        """The image that a name stands for on a platform (this host's, unless given); `asked` is the user's word for
        it. Raises NotFound."""
        try:
            details = self.details(name.target, platform, self._meant(name))
        except (containerd.NotFound, NotFound) as error:
            if platform:
                here = platforms.names_of(self.parts(name))
                raise NotFound(
                    f"image with reference {asked or name.name} was found but does not match the specified "
                    f"platform: wanted {platform}, actual: {here}"
                ) from None
            raise NotFound(f"No such image: {asked or name.name}: {error}") from None
        size = self.size(details)
        return Image(details.id, details.config, details.chain_id, name.name, size, name.target, details)

    def lookup(self, text: str) -> tuple[Name, bool]:
        """The name that `text` stands for, and whether `text` is an id. Raises NotFound, BadRequest."""
        full = text if text.startswith("sha256:") else f"sha256:{text}"
        if digests.is_digest(full):
            names = self.of_id(full)
            if names:
                return names[0], True
            for name in self.names():
                if name.target["digest"] == full:
                    return name, True
            return self._by_part(full, text), True
        if text.startswith("sha256:"):
            return self._by_prefix(text, text)
        try:
            parsed = reference.parse(text)
        except reference.ReferenceError_ as error:
            raise BadRequest(str(error)) from None
        if parsed.digest:
            return self._by_digest(parsed), False
        found = self.get_name(str(parsed.with_default_tag()))
        if found:
            return found, False
        return self._by_prefix(text, parsed.with_default_tag().familiar())

    def _by_part(self, digest: str, shown: str) -> Name:
        """The name of whose target a manifest or its configuration has the digest: as an image of that platform."""
        for name in self.names():
            for part in self.parts(name):
                if part.manifest and digest in (part.digest, part.manifest["config"]["digest"]):
                    return name._replace(chosen=part.digest)
        raise NotFound(f"No such image: {shown}")

    def parts(self, name: Name, sizes: bool = False) -> list[platforms.Part]:
        """The manifests below a name's target; none where that cannot be read."""
        try:
            return platforms.parts(self.client, name.target, sizes)
        except containerd.Unavailable:
            raise
        except (containerd.Error, NotFound, image_spec.SpecError):
            return []

    def ids(self, names: Iterable[Name]) -> set[str]:
        """By which ids containers may know what these names have: of targets and of configurations, whichever
        `image-ids` said when they were made, and of each platform that is here."""
        found: set[str] = set()
        for name in {name.target["digest"]: name for name in names}.values():
            found.add(name.target["digest"])
            known = self._details.get((name.target["digest"], self._meant(name), ""))
            if known and known.manifest_digest == name.target["digest"]:
                found.add(known.config_digest)
            else:
                found.update(part.manifest["config"]["digest"] for part in self.parts(name) if part.manifest)
        return found

    def _by_digest(self, parsed: reference.Reference) -> Name:
        found = self.get_name(f"{parsed.name}@{parsed.digest}")
        if found:
            return found
        for name in self.names():
            own = name.reference
            if own and own.name == parsed.name:
                if name.target["digest"] == parsed.digest:
                    return name
                part = next((part for part in self.parts(name) if part.manifest and part.digest == parsed.digest), None)
                if part:
                    return name._replace(chosen=part.digest)
        raise NotFound(f"No such image: {parsed.familiar()}")

    def _by_prefix(self, text: str, shown: str) -> tuple[Name, bool]:
        if _HEX.match(text):
            prefix = text if text.startswith("sha256:") else f"sha256:{text}"
            found = [names[0] for image_id, names in self.by_id().items() if image_id.startswith(prefix)]
            if len(found) == 1:
                return found[0], True
            if found:
                raise NotFound(f"No such image: {shown}: more than one image id starts with it")
        raise NotFound(f"No such image: {shown}")

    def size(self, details: Details) -> int:
        """Bytes that the snapshots of all layers take."""
        layers = details.manifest["layers"]
        return sum(self.layer_size(chain, layer["size"]) for chain, layer in zip(details.chains, layers, strict=True))

    def layer_size(self, chain: str, packed: int = 0) -> int:
        """Bytes of one unpacked layer; those of its blob, `packed`, where it is not unpacked yet."""
        known = self._sizes.get(chain)
        if known is not None:
            return known
        from teu.api.services.snapshots.v1 import snapshots_pb2

        try:
            usage = self.client.snapshots.Usage(snapshots_pb2.UsageRequest(snapshotter=self.snapshotter, key=chain))
        except containerd.Error:
            return packed
        self._sizes[chain] = int(usage.size)
        return int(usage.size)

    def repo_digests(self, names: list[Name]) -> list[str]:
        """name@digest for the repositories that the targets are known to come from or have gone to; with ids of targets
        for all, as what a push would make of them is known."""
        result = set()
        if self.by_target:
            names_of = {(own.familiar_name, name.target["digest"]) for name in names if (own := name.reference)}
            return sorted(f"{name}@{digest}" for name, digest in names_of)
        for target in {name.target["digest"] for name in names}:
            try:
                labels = content.info(self.client, target).labels
            except containerd.Error:
                continue
            for key, value in labels.items():
                if key.startswith(content.SOURCE_LABEL):
                    for path in value.split(","):
                        source = reference.Reference(key[len(content.SOURCE_LABEL) :], path)
                        if any((own := name.reference) and own.name == source.name for name in names):
                            result.add(f"{source.familiar_name}@{target}")
        for name in names:
            own = name.reference
            if own and own.digest:
                result.add(f"{own.familiar_name}@{own.digest}")
        return sorted(result)

    @staticmethod
    def repo_tags(names: list[Name]) -> list[str]:
        """Of these names those with a tag, as docker shows them."""
        return [own.familiar() for name in names if (own := name.reference) and own.tag and not own.digest]

    # -- for containers ----------------------------------------------------------------------

    def prepare_parent(self, image: Image) -> None:
        """Make sure that the image's top snapshot exists."""
        if not image.chain_id or unpack.snapshot_exists(self.client, self.snapshotter, image.chain_id):
            return
        with self.client.lease() as lease:
            unpack.layers(self.client, self.snapshotter, image.details.manifest, image.config, lease)
            self.keep_snapshot(image.details)

    def keep_snapshot(self, details: Details) -> None:
        """The configuration keeps the unpacked chain from now on."""
        if details.chain_id:
            label = content.GC_SNAPSHOT + self.snapshotter
            content.label(self.client, details.config_digest, {label: details.chain_id})

    def count(self) -> int:
        """How many images there are, whatever their names."""
        return len(self.by_id())
