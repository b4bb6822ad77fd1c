# SPDX-License-Identifier: Apache-2.0
"""Debian's real `ctr` on teu-containerd: every group of its commands.

What ctr prints is compared with what it prints on Debian's own containerd where that says more than a fixed text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from taskhouse import Events, TeuContainerd

pytestmark = [pytest.mark.needs("containerd", "docker-registry", "fast"), pytest.mark.timeout(180)]

IMAGE = peers.IMAGE
# ctr asks for a CPU weight by itself, which a lab without the cpu controller cannot give
FLAGS = ("--cpu-shares", "0")


@pytest.fixture(scope="module")
def ctr() -> Iterator[TeuContainerd]:
    daemon = TeuContainerd()
    try:
        daemon.launch()
        daemon.load_busybox()
        yield daemon
    finally:
        daemon.stop()
        daemon.remove()


def refused(ctr: TeuContainerd, *argv: str, stdin: str | None = None) -> str:
    """What ctr says when it must fail."""
    done = ctr.result(*argv, code=None, stdin=stdin)
    assert done.returncode != 0, argv
    return done.stderr


def column(table: str, number: int = 0) -> list[str]:
    return [line.split()[number] for line in table.splitlines()[1:]]


def test_namespaces(ctr: TeuContainerd) -> None:
    ctr("namespaces", "create", "one", "a=b")
    assert "exists" in refused(ctr, "namespaces", "create", "one")
    ctr("namespaces", "label", "one", "a=", "c=d")
    assert re.search(r"^one\s+c=d", ctr("namespaces", "ls"), re.M)
    ctr("-n", "one", "images", "import", str(peers.archive()))
    assert ctr("-n", "one", "images", "ls", "-q").split() == [IMAGE]
    assert "must be empty, but it still has images" in refused(ctr, "namespaces", "rm", "one")
    ctr("-n", "one", "images", "rm", "--sync", IMAGE)
    ctr("namespaces", "rm", "one")
    assert "one" not in column(ctr("namespaces", "ls"))
    assert ctr("images", "ls", "-q").split() == [IMAGE], "the other namespace has kept its own"


def test_images(ctr: TeuContainerd, tmp_path: Path) -> None:
    assert re.search(rf"^{IMAGE}.*complete.*true", ctr("images", "check"), re.M)
    ctr("images", "tag", IMAGE, "example.org/tagged:1")
    ctr("images", "label", "example.org/tagged:1", "k=v")
    assert column(ctr("images", "ls", "name==example.org/tagged:1")) == ["example.org/tagged:1"]
    assert column(ctr("images", "ls", "labels.k==v")) == ["example.org/tagged:1"]
    ctr("images", "export", str(tmp_path / "out.tar"), "example.org/tagged:1")
    ctr("images", "rm", "example.org/tagged:1")
    ctr("images", "import", str(tmp_path / "out.tar"))
    assert "example.org/tagged:1" in ctr("images", "ls", "-q")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    ctr("images", "mount", IMAGE, str(mounted))
    assert (mounted / "bin/busybox").exists()
    ctr("images", "unmount", "--rm", str(mounted))
    ctr("images", "rm", "--sync", "example.org/tagged:1")
    assert "image not found" in ctr.result("images", "rm", "example.org/none:1").stderr
    usage = ctr.result("images", "usage", IMAGE, code=None)
    assert usage.returncode == 0 or "No help topic" in usage.stdout + usage.stderr


def test_content(ctr: TeuContainerd) -> None:
    digest = column(ctr("images", "ls", f"name=={IMAGE}"), 2)[0]
    manifest = json.loads(ctr("content", "get", digest))
    layer = manifest["layers"][0]["digest"]
    assert {digest, layer, manifest["config"]["digest"]} <= set(ctr("content", "ls", "-q").split())
    assert re.search(rf"{layer}.*containerd.io/uncompressed=sha256:", ctr("content", "ls"))
    ctr("content", "label", layer, "note=x")
    assert re.search(rf"{layer}.*note=x", ctr("content", "ls"))
    ctr("content", "ingest", "--expected-size", "5", "ref", stdin="12345")
    five = "sha256:5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    assert ctr("content", "get", five) == "12345"
    assert "unexpected EOF" in refused(ctr, "content", "ingest", "--expected-size", "9", "r2", stdin="x")
    assert re.search(r"^r2\s+1B", ctr("content", "active"), re.M)
    ctr("content", "rm", five)
    assert "not found" in refused(ctr, "content", "get", five)


def test_snapshots(ctr: TeuContainerd, tmp_path: Path) -> None:
    top = column(ctr("snapshots", "ls"))[-1]
    assert top.startswith("sha256:")
    mount = ctr("snapshots", "prepare", "--target", str(tmp_path), "active", top)
    assert "mount -t overlay" in mount and "upperdir=" in mount
    assert "already exists" in refused(ctr, "snapshots", "prepare", "active", top)
    assert ctr("snapshots", "mounts", str(tmp_path), "active") == mount
    assert json.loads(ctr("snapshots", "info", "active"))["Kind"] == "Active"
    ctr("snapshots", "label", "active", "containerd.io/gc.root=x")
    ctr("snapshots", "commit", "mine", "active")
    ctr("snapshots", "label", "mine", "containerd.io/gc.root=x")
    assert re.search(rf"^mine\s+{top}\s+Committed", ctr("snapshots", "ls"), re.M)
    assert "mine" in ctr("snapshots", "tree")
    assert re.search(r"^mine\s", ctr("snapshots", "usage", "mine"), re.M)
    ctr("snapshots", "view", "looked", "mine")
    assert "cannot remove snapshot with child" in refused(ctr, "snapshots", "rm", "mine")
    for name in ("looked", "mine"):
        ctr("snapshots", "rm", name)
    assert "mine" not in column(ctr("snapshots", "ls"))


def test_leases(ctr: TeuContainerd) -> None:
    assert ctr("leases", "create", "--id", "mine", "--expires", "1h", "k=v").strip() == "mine"
    assert re.search(r"^mine .*containerd.io/gc.expire=.*k=v", ctr("leases", "ls"), re.M)
    ctr("leases", "rm", "--sync", "mine")
    assert "mine" not in column(ctr("leases", "ls"))


def test_containers_and_tasks(ctr: TeuContainerd) -> None:
    events = Events(ctr)
    ctr("run", "-d", *FLAGS, "--label", "k=v", IMAGE, "c1", "sleep", "600")
    try:
        assert column(ctr("containers", "ls", "labels.k==v")) == ["c1"]
        info = json.loads(ctr("containers", "info", "c1"))
        assert (info["ID"], info["Image"], info["Snapshotter"]) == ("c1", IMAGE, "overlayfs")
        assert re.search(r"^c1\s+\d+\s+RUNNING", ctr("tasks", "ls"), re.M)
        assert ctr("tasks", "exec", "--exec-id", "e1", "c1", "echo", "inside") == "inside\n"
        ctr("tasks", "exec", "--exec-id", "e2", "c1", "sh", "-c", "exit 7", code=7)
        assert len(column(ctr("tasks", "ps", "c1"))) == 1
        ctr("tasks", "pause", "c1")
        assert "PAUSED" in ctr("tasks", "ls")
        ctr("tasks", "resume", "c1")
        assert "RUNNING" in ctr("tasks", "ls")
        ctr("containers", "label", "c1", "more=x")
        assert "more=x" in ctr("containers", "ls", "-q") or "c1" in ctr("containers", "ls", "labels.more==x")
        assert "failed precondition" in refused(ctr, "containers", "rm", "c1") or "running" in refused(
            ctr, "containers", "rm", "c1"
        )
    finally:
        ctr("tasks", "kill", "--signal", "SIGKILL", "c1", code=None)
        ctr("tasks", "rm", "c1", code=None)
        ctr("containers", "rm", "c1", code=None)
    assert column(ctr("containers", "ls")) == [] and column(ctr("tasks", "ls")) == []
    peers.wait_until(lambda: "/tasks/delete" in events.topics("c1"), "the deletion to be told")
    topics = [
        topic for topic in events.topics("c1") if not topic.startswith(("/tasks/exec", "/tasks/paus", "/tasks/resum"))
    ]
    assert topics[:2] == ["/tasks/create", "/tasks/start"] and topics[-1] == "/tasks/delete"
    events.close()


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_run(ctr: TeuContainerd, snapshotter: str) -> None:
    if snapshotter != "overlayfs":
        ctr("images", "import", "--snapshotter", snapshotter, str(peers.archive()))
    out = ctr(
        "run",
        "--rm",
        *FLAGS,
        "--snapshotter",
        snapshotter,
        "--read-only",
        IMAGE,
        "r1",
        "sh",
        "-c",
        "touch /x; echo $?",
    )
    assert out.split()[-1] == "1"
    ctr("run", "--rm", *FLAGS, "--snapshotter", snapshotter, IMAGE, "r2", "sh", "-c", "exit 3", code=3)


def test_plugins_and_version(ctr: TeuContainerd) -> None:
    table = ctr("plugins", "ls")
    for kind in ("snapshotter.v1", "content.v1", "runtime.v2", "transfer.v1", "streaming.v1", "gc.v1"):
        assert f"io.containerd.{kind}" in table, kind
    assert all(line.split()[-1] == "ok" for line in table.splitlines()[1:])
    assert "Server:" in ctr("version") and "UUID" in ctr("version")


@pytest.mark.parametrize("local", ["--local=true", "--local=false"])
def test_registry(ctr: TeuContainerd, local: str) -> None:
    """Push and pull, by the client and by the transfer service in the daemon."""
    with peers.registry() as registry:
        name = f"{registry.address}/test/busybox:{'l' if local.endswith('true') else 't'}"
        ctr("images", "tag", IMAGE, name)
        ctr("images", "push", "--plain-http", local, name)
        ctr("images", "rm", "--sync", name)
        ctr("-n", "fresh", "images", "pull", "--plain-http", local, name)
        assert ctr("-n", "fresh", "run", "--rm", *FLAGS, name, "p1", "echo", "pulled") == "pulled\n"
        assert "not found" in refused(ctr, "-n", "fresh", "images", "pull", "--plain-http", local, name + "-none")
        ctr("-n", "fresh", "images", "rm", "--sync", name)
        assert ctr("-n", "fresh", "content", "ls", "-q").split() == []
        assert column(ctr("-n", "fresh", "snapshots", "ls")) == []
        assert column(ctr("-n", "fresh", "leases", "ls")) == []


def test_import_and_export_by_transfer(ctr: TeuContainerd, tmp_path: Path) -> None:
    out = tmp_path / "t.tar"
    ctr("images", "export", "--local=false", str(out), IMAGE)
    ctr("-n", "moved", "images", "import", "--local=false", str(out))
    assert ctr("-n", "moved", "images", "ls", "-q").split() == [IMAGE]
    assert ctr("-n", "moved", "run", "--rm", *FLAGS, IMAGE, "m1", "echo", "moved") == "moved\n"
    ctr("-n", "moved", "images", "rm", "--sync", IMAGE)


def test_layers_keep_their_digest(ctr: TeuContainerd, tmp_path: Path) -> None:
    """What was imported and is unchanged is exported with the same digests."""
    ctr("images", "export", str(tmp_path / "a.tar"), IMAGE)
    before = column(ctr("images", "ls", f"name=={IMAGE}"), 2)
    ctr("images", "rm", "--sync", IMAGE)
    ctr("images", "import", str(tmp_path / "a.tar"))
    assert column(ctr("images", "ls", f"name=={IMAGE}"), 2) == before
