# SPDX-License-Identifier: Apache-2.0
"""A container's changes as a new image: containerd's diff of its snapshot becomes the top layer.

Called by the containers' side of `docker commit`, which pauses the container and makes the configuration.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, cast

from teu.engine.backend import containerd, content
from teu.engine.core.errors import NotFound
from teu.engine.core.fields import CONFIG
from teu.engine.core.times import timestamp
from teu.engine.images import instructions, load, unpack
from teu.oci import image_spec, reference
from teu.oci.labels import UNCOMPRESSED

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.core.fields import Config
    from teu.engine.images.store import Images
    from teu.oci.image_spec import ContainerConfig, Descriptor, ImageConfig


def commit(
    images: Images,
    container: Container,
    config: ContainerConfig,
    snapshot_key: str,
    tag: str | None,
    author: str = "",
    comment: str = "",
) -> str:
    """Returns the new image's id. `config` is the container configuration that the image shall have."""
    from teu.api.services.diff.v1 import diff_pb2
    from teu.api.services.snapshots.v1 import snapshots_pb2

    client, snapshotter = images.client, images.snapshotter
    name = str(reference.parse(tag).with_default_tag()) if tag else ""
    try:
        base = images.of_container(container.image_id, container.chain_id)
        base_config, base_layers = base.config, list(base.details.manifest["layers"])
    except (NotFound, containerd.NotFound) as error:
        if container.chain_id:
            raise containerd.NotFound(f"the image of container {container.name} is gone: {error}") from None
        base_config, base_layers = {"rootfs": {"type": "layers", "diff_ids": []}}, []
    with client.lease() as lease:
        for layer in base_layers:
            content.keep(client, layer["digest"], lease)
        mounts = client.snapshots.Mounts(snapshots_pb2.MountsRequest(snapshotter=snapshotter, key=snapshot_key)).mounts
        # Not the image's: the places that every container has (places.py) are between the two.
        stat = client.snapshots.Stat(snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key=snapshot_key))
        view = f"commit-{uuid.uuid4().hex}"
        with client.making(view), client.making(f"teu-{view}"):
            left = client.snapshots.View(
                snapshots_pb2.ViewSnapshotRequest(snapshotter=snapshotter, key=view, parent=stat.info.parent),
                lease=lease,
            ).mounts
            try:
                request = diff_pb2.DiffRequest(
                    left=left, right=mounts, media_type=image_spec.OCI_LAYER_GZIP, ref=f"teu-{view}"
                )
                descriptor = client.diff.Diff(request, timeout=unpack.LAYER_SECONDS, lease=lease).diff
            finally:
                with contextlib.suppress(containerd.Error):
                    client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=view))
        diff_id = content.info(client, descriptor.digest).labels.get(UNCOMPRESSED)
        if not diff_id:
            raise containerd.Error(f"containerd did not say what {descriptor.digest} is uncompressed")
        now = timestamp()
        top: Descriptor = {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}
        history = list(base_config.get("history") or [])
        command = " ".join([container.path, *container.args]).strip()
        history.append({"created": now, "created_by": command, "author": author, "comment": comment})
        host = image_spec.host_platform()
        new: ImageConfig = {
            "created": now,
            "author": author,
            "architecture": base_config.get("architecture", host.architecture),
            "os": base_config.get("os", host.os),
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [*base_config["rootfs"]["diff_ids"], diff_id]},
            "history": history,
        }
        if container.image_id:
            new["parent"] = container.image_id
        if base_config.get("variant"):
            new["variant"] = base_config["variant"]
        docker = any("docker" in la["mediaType"] for la in base_layers)
        if docker:
            top["mediaType"] = image_spec.DOCKER_LAYER_GZIP
        target = load.store_image(images, new, [*base_layers, top], lease, docker)
        details = load.settle(images, target, lease)
        images.add(target, [name] if name else [], details)
        images.events.publish("image", "create", details.id, {"name": details.id})
        if name:
            images.events.publish("image", "tag", details.id, {"name": reference.parse(name).familiar()})
    return details.id


IMAGE_KEYS = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "StopTimeout",
    "Healthcheck",
    "OnBuild",
    "Shell",
)


def image_config(container: Container, asked: Config, changes: list[str]) -> ContainerConfig:
    """The configuration of the new image: what the request gives, over the container's, with the changes."""
    own, given = CONFIG.write(container.config), CONFIG.write(asked)
    base = {key: own[key] for key in IMAGE_KEYS if own.get(key)}
    result = {**base, **{key: given[key] for key in IMAGE_KEYS if given.get(key)}}
    if given.get("Env"):
        names = {item.partition("=")[0] for item in given["Env"]}
        result["Env"] = [*given["Env"], *(e for e in base.get("Env", []) if e.partition("=")[0] not in names)]
    config = cast("ContainerConfig", result)
    instructions.apply(config, changes)
    return config
