# SPDX-License-Identifier: Apache-2.0
"""Containers in a user namespace over an image whose owners are the host's: a snapshotter that remaps ids, and none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from taskhouse import OWN_SHIM, TeuContainerd
from test_ctr import TEU_CTR

pytestmark = pytest.mark.needs("containerd", "trixie")

UID, GID = 100000, 200000
MAPS = ["--uidmap", f"0:{UID}:65536", "--gidmap", f"0:{GID}:65536", "--remap-labels"]
# What the container itself sees of a file of the image, of its root, and of what it makes.
LOOK = """stat -c "%u:%g %a" /bin/busybox /etc/passwd /
touch /new; chown 5:6 /etc/passwd; stat -c %u:%g /new /etc/passwd"""
SEEN = "0:0 755\n0:0 644\n0:0 755\n0:0\n5:6\n"


@pytest.fixture(scope="module", params=["remapping", "plain"])
def daemon(request: pytest.FixtureRequest) -> Iterator[tuple[TeuContainerd, bool]]:
    made = TeuContainerd()
    # The container's root is nobody on the host, and has to come through.
    made.run.chmod(0o711)
    made.state.chmod(0o711)
    remapping = request.param == "remapping"
    try:
        made.launch("snapshots: {remap: true}\n" if remapping else "")
        made.load_busybox()
        yield made, remapping
    finally:
        made.stop()
        made.remove()


@pytest.mark.parametrize("program", ["ctr", TEU_CTR])
def test_ids_are_remapped(daemon: tuple[TeuContainerd, bool], program: str) -> None:
    containerd, remapping = daemon
    if remapping and program == "ctr":
        # Clients of 1.x cannot mount what is to be mapped, as its shims cannot: hence the setting's default.
        done = containerd.result("run", *MAPS, peers.IMAGE, "mapped", "true", code=1)
        assert "failed to mount" in done.stderr
        containerd("snapshots", "rm", "mapped")
        return
    more = ["--cpu-shares", "0"] if program == "ctr" else []

    def call(*words: str, code: int | None = 0) -> str:
        return peers.run(program, "--address", str(containerd.address), *words, code=code).stdout

    before = set(containerd("snapshots", "ls").splitlines())
    call("run", "-d", "--null-io", "--runtime", OWN_SHIM, *more, *MAPS, peers.IMAGE, "mapped", "sleep", "100000")
    try:
        assert containerd("tasks", "exec", "--exec-id", "look", "mapped", "sh", "-c", LOOK) == SEEN
        made = set(containerd("snapshots", "ls").splitlines()) - before
        copies = [line for line in made if f"-{UID}-{GID} " in line and "Committed" in line]
        mounts = containerd("snapshots", "mounts", "/mnt", "mapped")
        upper = Path(mounts.partition("upperdir=")[2].partition(",")[0].split()[0])
        if remapping:
            assert not copies and f"uidmap=0:{UID}:65536,gidmap=0:{GID}:65536" in mounts
        found = {name: os.lstat(upper / name) for name in ("new", "etc/passwd")}
        assert {name: (one.st_uid, one.st_gid) for name, one in found.items()} == {
            "new": (UID, GID),
            "etc/passwd": (UID + 5, GID + 6),
        }
        assert (upper.stat().st_uid, upper.stat().st_gid) == (UID, GID)
        # The layers themselves are as they were.
        lowest = mounts.rpartition("/snapshots/")[2].split()[0]
        assert os.lstat(upper.parents[1] / lowest.partition("/")[2] / "bin/busybox").st_uid == 0
    finally:
        containerd("tasks", "rm", "-f", "mapped", code=None)
        containerd("containers", "rm", "mapped")
    assert not list((containerd.run / "state").rglob("rootfs-lower*"))
    with open("/proc/self/mounts") as table:
        assert "-lower" not in table.read()
