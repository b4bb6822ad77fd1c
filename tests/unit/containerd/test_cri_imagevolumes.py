# SPDX-License-Identifier: Apache-2.0
"""Images that containers of a pod mount: what is refused, what is mounted, and that nothing stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from containerd_parts import make_context

from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import Error, FailedPrecondition, InvalidArgument
from teu.containerd.cri import checks, imagevolumes, namespaces
from teu.containerd.cri.imagevolumes import ImageVolumes, inside_of, mount_image
from teu.containerd.cri.records import NAMESPACE, Pod
from teu.containerd.cri.users import Maps, Range
from teu.containerd.state import Context
from teu.linux import mounts, netns
from teu.linux.namespaces import CLONE_NEWNS, unshare
from teu.linux.trees import is_mount_root

ID = f"sha256:{'a' * 64}"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def apart(body: Callable[[], None]) -> None:
    """In a mount namespace that ends with the test."""

    def run() -> None:
        unshare(CLONE_NEWNS)
        mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
        body()

    netns.in_thread(run)


def layers(context: Context, *contents: str) -> str:
    """Committed snapshots over each other, with a file of each name; the uppermost one's name."""
    above = ""
    for content in contents:
        [mount] = context.snapshots.prepare(NAMESPACE, "overlayfs", f"{content}-active", above, {})
        upper = next((one[9:] for one in mount.options if one.startswith("upperdir=")), mount.source)
        Path(upper, "shared").mkdir()
        Path(upper, "shared", content).write_text(content)
        context.snapshots.commit(NAMESPACE, "overlayfs", content, f"{content}-active", {})
        above = content
    return above


def volumes(context: Context, chain: str) -> ImageVolumes:
    image = SimpleNamespace(id=ID, details=SimpleNamespace(chain=chain))
    images: Any = SimpleNamespace(snapshotter="overlayfs", find=lambda name: image if name == "data" else None)
    return ImageVolumes(context, images)


def config(*given: Any) -> Any:
    plain = {"container_path": "/v", "readonly": True}
    return cri.ContainerConfig(metadata={"name": "c"}, mounts=[{**plain, **one} for one in given])


@pytest.mark.parametrize(
    ("mount", "told"),
    [
        ({"image": {}}, r"mounts\[0\].image must name"),
        ({"image": {"image": "data"}, "host_path": "/x"}, "host_path must be empty"),
        ({"image": {"image": "data"}, "readonly": False}, "readonly must be true"),
        ({"image_sub_path": "a", "host_path": "/x"}, "without an image"),
    ],
)
def test_volumes_that_cannot_be(mount: Any, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        checks.container(config(mount))


def test_a_volume_that_can_be() -> None:
    checks.container(config({"image": {"image": "data"}, "image_sub_path": "a/b"}))


@needs_root
@pytest.mark.parametrize("contents", [("one",), ("one", "two"), tuple(f"layer{number}" for number in range(9))])
def test_an_image_is_mounted_once_for_a_pod(tmp_path: Path, contents: tuple[str, ...]) -> None:
    context = make_context(tmp_path)
    found = volumes(context, layers(context, *contents))
    pod = Pod("p" * 64, cri.PodSandboxConfig())
    wanted = config({"host_path": "/usr"}, {"image": {"image": "data"}}, {"image": {"image": "data"}})
    wanted.mounts[2].image_sub_path = "shared/../shared"

    def body() -> None:
        paths = found.paths(pod, wanted)
        assert set(paths) == {1, 2} and paths[2] == f"{paths[1]}/shared"
        assert paths[1] == os.path.join(found.folder(pod), "a" * 64)
        assert sorted(os.listdir(paths[2])) == sorted(contents)
        with pytest.raises(OSError, match="Read-only"):
            Path(paths[1], "new").touch()
        again = found.paths(pod, wanted)
        assert again == paths
        [kept] = context.leases.resources(NAMESPACE, imagevolumes.lease_of(pod))
        assert context.snapshots.stat(NAMESPACE, "overlayfs", kept.id).parent == contents[-1]
        found.drop(pod)
        assert not is_mount_root(paths[1])
        assert not [one for one in context.snapshots.find(NAMESPACE, "overlayfs") if one.name not in contents]
        assert not context.leases.find(NAMESPACE)
        found.drop(pod)
        assert found.paths(pod, wanted) == paths  # after a failed stop it can be again
        found.drop(pod)

    try:
        apart(body)
    finally:
        context.close()


@needs_root
@pytest.mark.parametrize("contents", [("one",), ("one", "two", "three")])
def test_ids_are_the_pods(tmp_path: Path, contents: tuple[str, ...]) -> None:
    if told := namespaces.user_obstacle(str(tmp_path)):
        pytest.skip(told)
    context = make_context(tmp_path)
    found = volumes(context, layers(context, *contents))
    pod = Pod("p" * 64, cri.PodSandboxConfig())
    userns = str(tmp_path / "user")
    wanted = config({"image": {"image": "data"}})

    def body() -> None:
        namespaces.make({"user": userns}, "h", {}, Maps(Range(65536, 1000), Range(131072, 1000)))
        left = os.path.join(found.folder(pod), f"{'a' * 64}-lower0")
        os.makedirs(left)  # of a daemon that ended while it mounted
        mounts.mount("/usr", left, None, mounts.MS_BIND)
        [path] = found.paths(pod, wanted, userns).values()
        for content in contents:
            status = os.stat(f"{path}/shared/{content}")
            assert (status.st_uid, status.st_gid) == (65536, 131072)
        assert os.listdir(found.folder(pod)) == ["a" * 64]
        found.drop(pod)
        namespaces.drop(userns)

    try:
        apart(body)
    finally:
        context.close()


@needs_root
def test_a_daemon_that_ended_meanwhile_has_left_a_snapshot(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    found = volumes(context, layers(context, "one", "two"))
    pod = Pod("p" * 64, cri.PodSandboxConfig())

    def body() -> None:
        [path] = found.paths(pod, config({"image": {"image": "data"}})).values()
        mounts.umount2(path)
        assert found.paths(pod, config({"image": {"image": "data"}})) == {0: path}
        assert is_mount_root(path)
        found.drop(pod)

    try:
        apart(body)
    finally:
        context.close()


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    try:
        found = volumes(context, "")
        with pytest.raises(FailedPrecondition, match=r'ImageVolumeMountFailed: config.mounts\[0\].*"other"'):
            found.paths(Pod("p", cri.PodSandboxConfig()), config({"image": {"image": "other"}}))
        assert not context.leases.find(NAMESPACE)
    finally:
        context.close()


def test_places_in_an_image(tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "a/b").mkdir(parents=True)
    (image / "file").touch()
    (image / "link").symlink_to("/a")
    (image / "out").symlink_to("../../..")
    assert inside_of(str(image), "a/b") == inside_of(str(image), "/link/b") == str(image / "a/b")
    assert inside_of(str(image), "out") == str(image)
    for bad in ("none", "file"):
        with pytest.raises(Error, match=f"image_sub_path '{bad}'"):
            inside_of(str(image), bad)


def test_a_snapshot_without_folders(tmp_path: Path) -> None:
    other: Any = SimpleNamespace(type="block", source="/dev/x", options=["ro"])
    with pytest.raises(FailedPrecondition, match="no folders"):
        mount_image([other], str(tmp_path))
