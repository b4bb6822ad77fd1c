# SPDX-License-Identifier: Apache-2.0
"""Images as volumes: what a container mounts of an image that is not its own (KEP 4639). Called by `containers` and
`pods`, on threads.

An image is mounted once for all containers of a pod, by a snapshot of its own that a lease of the pod keeps. In a pod
with a user namespace the layers' ids are mapped by it, so that the files are as the image has them for those inside.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from teu.containerd.core.errors import AlreadyExists, Error, FailedPrecondition, NotFound
from teu.containerd.core.messages import Mount
from teu.containerd.cri.images import Images
from teu.containerd.cri.records import NAMESPACE, Pod
from teu.containerd.layers.mounting import overlay_directories
from teu.containerd.state import Context
from teu.linux import idmapped, inside, mounts, netns
from teu.linux.trees import is_mount_root, unmount

FAILED = "ImageVolumeMountFailed"  # by which kubelet knows why a container could not be made
LEASE_PREFIX = "cri-images-"  # before the pod's id
SNAPSHOTS = "snapshots/"


def lease_of(pod: Pod) -> str:
    """The lease that keeps the snapshots of a pod's image volumes."""
    return LEASE_PREFIX + pod.id


def drop_lease(context: Context, lease: str) -> None:
    """Let go of a lease and of the snapshots that it keeps; again does nothing."""
    try:
        kept = context.leases.resources(NAMESPACE, lease)
    except NotFound:
        return
    for one in kept:
        if one.type.startswith(SNAPSHOTS):
            with suppress(NotFound):
                context.snapshots.remove(NAMESPACE, one.type.removeprefix(SNAPSHOTS), one.id)
    with suppress(NotFound):
        context.leases.delete(NAMESPACE, lease)


def mount_image(listed: Sequence[Mount], target: str, userns: str = "") -> None:
    """Mount a view of a snapshot, read only; with its ids mapped by the user namespace at the path, if one is given.
    Raises OSError, and FailedPrecondition for a snapshot that is no overlay of folders."""
    plain: list[dict[str, object]] = [
        {"type": one.type, "source": one.source, "options": list(one.options)} for one in listed
    ]
    _, folders = overlay_directories(plain)
    if not folders:
        raise FailedPrecondition("its snapshotter has no folders that can be mounted for several containers")
    option = f"lowerdir={':'.join(folders)}"
    # In a thread of its own: a mount with long options is made in another mount namespace.
    if not userns:
        tree = netns.in_thread(lambda: _tree(option, folders))
        try:
            _put(tree, target)
        finally:
            os.close(tree)
        return
    namespace = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _clear_beside(target)
        with idmapped.Lowers([option], namespace, target) as [mapped]:
            tree = netns.in_thread(lambda: _tree(mapped, mapped.partition("=")[2].split(":")))
            try:
                _put(tree, target)
            finally:
                os.close(tree)
    finally:
        os.close(namespace)


def _clear_beside(target: str) -> None:
    """Remove what a daemon has left that ended while it mounted: its mapped layers."""
    folder, name = os.path.split(target)
    for one in os.listdir(folder):
        if one.startswith(name) and one != name:
            unmount(os.path.join(folder, one))
            os.rmdir(os.path.join(folder, one))


def _tree(option: str, folders: Sequence[str]) -> int:
    if len(folders) > 1:
        return mounts.new_filesystem("overlay", "overlay", [option], mounts.MOUNT_ATTR_RDONLY)
    tree = mounts.open_tree(mounts.AT_FDCWD, folders[0])
    mounts.mount_setattr(tree, mounts.MOUNT_ATTR_RDONLY)
    return tree


def _put(tree: int, target: str) -> None:
    place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mounts.move_mount(tree, place, target)
    finally:
        os.close(place)


def inside_of(folder: str, sub_path: str) -> str:
    """The path of a folder of a mounted image. Raises FailedPrecondition where the image has none there; links do not
    lead out of it."""
    root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(inside.open_in_root(root, sub_path, os.O_PATH | os.O_DIRECTORY))
        return folder + inside.real_path(root, sub_path).rstrip("/")
    except OSError as error:
        told = (error.strerror or "").lower()
        raise FailedPrecondition(f"image_sub_path {sub_path!r}: {told}; it must be a folder of the image") from None
    finally:
        os.close(root)


class ImageVolumes:
    """The images that pods mount."""

    def __init__(self, context: Context, images: Images) -> None:
        self._context = context
        self._images = images
        self._mounting = threading.Lock()  # two containers of a pod may want the same image

    def folder(self, pod: Pod) -> str:
        """Where the images of a pod are mounted, by their ids."""
        return os.path.join(self._context.state, "cri", pod.id, "images")

    def paths(self, pod: Pod, config: Any, userns: str = "") -> dict[int, str]:
        """What is to be mounted for those mounts of a ContainerConfig that are of images: paths on the host, by the
        numbers of the mounts. `userns` is the path of the pod's user namespace. Raises FailedPrecondition, by whose
        text kubelet knows what has failed."""
        found: dict[int, str] = {}
        for number, one in enumerate(config.mounts):
            if not one.HasField("image"):
                continue
            try:
                with self._mounting:
                    place = self._mounted(pod, one.image.image, userns)
                found[number] = inside_of(place, one.image_sub_path) if one.image_sub_path else place
            except (Error, OSError) as error:
                told = error.message if isinstance(error, Error) else str(error)
                raise FailedPrecondition(f"{FAILED}: config.mounts[{number}].image: {told}") from None
        return found

    def _mounted(self, pod: Pod, name: str, userns: str) -> str:
        context, snapshotter = self._context, self._images.snapshotter
        image = self._images.find(name)
        if image is None:
            raise NotFound(f'failed to resolve image "{name}"')
        place = os.path.join(self.folder(pod), image.id.removeprefix("sha256:"))
        if is_mount_root(place):
            return place
        os.makedirs(place, 0o755, exist_ok=True)
        key, lease = f"{lease_of(pod)}-{image.id}", lease_of(pod)
        with suppress(AlreadyExists):
            context.leases.create(NAMESPACE, lease, {})
        try:
            listed = context.snapshots.view(NAMESPACE, snapshotter, key, image.details.chain, {}, lease)
        except AlreadyExists:  # of a daemon that ended before it had mounted it
            listed = context.snapshots.mounts(NAMESPACE, snapshotter, key)
        mount_image(listed, place, userns)
        return place

    def drop(self, pod: Pod) -> None:
        """Unmount all images of a pod, and let go of their snapshots; again does nothing. Raises OSError."""
        with self._mounting:
            with suppress(FileNotFoundError):
                for name in os.listdir(self.folder(pod)):
                    unmount(os.path.join(self.folder(pod), name))
            drop_lease(self._context, lease_of(pod))
