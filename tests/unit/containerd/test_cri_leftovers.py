# SPDX-License-Identifier: Apache-2.0
"""What a daemon has left that ended in the middle of something: it goes, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from containerd_parts import make_context
from test_cri_users import apart

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.services.containers.v1 import containers_pb2
from teu.containerd.cri import leftovers
from teu.containerd.cri.records import NAMESPACE, Pod, Records
from teu.linux import mounts

KNOWN, DAMAGED, GONE, OTHER = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_leftovers(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    state, root = Path(context.state, "cri"), Path(context.root, "cri")
    Records(context.sandboxes, context.containers).create_pod(Pod(KNOWN, cri.PodSandboxConfig()), {})
    record = containers_pb2.Container(id=DAMAGED)
    record.runtime.name = "x"
    record.extensions["io.teu.cri.container"].value = b"{"
    context.containers.create(NAMESPACE, record)
    for above in (state, root):
        for name in (KNOWN, DAMAGED, GONE, "note"):
            (above / name / "sub").mkdir(parents=True)
    (root / OTHER / "volumes/0").mkdir(parents=True)
    (root / OTHER / "volumes/0/file").touch()
    for id in (f"cri-images-{KNOWN}", f"cri-images-{GONE}", f"cri-{GONE}"):
        context.leases.create(NAMESPACE, id, {})
    context.snapshots.prepare(NAMESPACE, "overlayfs", "base-active", "", {})
    context.snapshots.commit(NAMESPACE, "overlayfs", "base", "base-active", {})
    context.snapshots.view(NAMESPACE, "overlayfs", "volume", "base", {}, f"cri-images-{GONE}")

    def body() -> None:
        mounts.mount("shm", str(state / GONE / "sub"), "tmpfs", 0)
        (state / GONE / "sub/file").touch()
        folders, leases = leftovers.find(context)
        assert set(folders) == {str(state / GONE), str(root / GONE), str(root / OTHER)}
        assert leases == [f"cri-images-{GONE}"]
        leftovers.remove(context, folders, leases)
        assert leftovers.find(context) == ([], [])

    try:
        apart(body)
        for above in (state, root):
            assert sorted(one.name for one in above.iterdir()) == [KNOWN, DAMAGED, "note"]
        assert [one.id for one in context.leases.find(NAMESPACE)] == [f"cri-{GONE}", f"cri-images-{KNOWN}"]
        assert [one.name for one in context.snapshots.find(NAMESPACE, "overlayfs")] == ["base"]
    finally:
        context.close()


def test_there_is_nothing_yet(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    try:
        assert leftovers.find(context) == ([], [])
    finally:
        context.close()
