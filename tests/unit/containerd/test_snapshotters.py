# SPDX-License-Identifier: Apache-2.0
"""One conformance suite for everything that is a snapshotter (see snapshotters/interface.py): what is registered runs
in it, and so does the proxy.

Content goes into mounts and is read out of them as the daemon does it: by applying and comparing layers.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import make_context, root_only
from layertools import apply, compare, content, names, tar
from places import DISK

from teu.containerd.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from teu.containerd.snapshotters import registry
from teu.containerd.snapshotters.interface import ACTIVE, COMMITTED, VIEW, Place, Snapshotter
from teu.containerd.snapshotters.local import spread
from teu.containerd.state import Context

pytestmark = root_only


@pytest.fixture(params=[*registry.BUILT_IN, "proxy"])
def snapshotter(request: Any, context: Context) -> Iterator[Snapshotter]:
    if request.param != "proxy":
        yield context.snapshots.snapshotters[request.param]
        return
    import grpc

    from teu.api.services.snapshots.v1 import snapshots_pb2_grpc
    from teu.containerd.snapshotters.proxy import Proxy

    server = grpc.server(futures.ThreadPoolExecutor(4))
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(Remote(context.snapshots.snapshotters["overlayfs"]), server)
    address = os.path.join(context.state, "proxy.sock")
    server.add_insecure_port(f"unix:{address}")
    server.start()
    proxy = Proxy("far", address)
    yield proxy
    proxy.close()
    server.stop(0)


class Remote:
    """A proxy plugin's server: another snapshotter behind containerd's snapshots API."""

    def __init__(self, inner: Snapshotter) -> None:
        self.inner = inner

    def __getattr__(self, method: str) -> Any:
        from google.protobuf import empty_pb2

        from teu.api.services.snapshots.v1 import snapshots_pb2 as pb
        from teu.containerd.core.errors import Error
        from teu.containerd.stores.snapshots import to_wire

        inner = self.inner
        calls = {
            "Prepare": lambda r: pb.PrepareSnapshotResponse(mounts=inner.prepare(r.key, r.parent, dict(r.labels))),
            "View": lambda r: pb.ViewSnapshotResponse(mounts=inner.view(r.key, r.parent, dict(r.labels))),
            "Mounts": lambda r: pb.MountsResponse(mounts=inner.mounts(r.key)),
            "Commit": lambda r: inner.commit(r.name, r.key, dict(r.labels), r.parent) or empty_pb2.Empty(),
            "Remove": lambda r: inner.remove(r.key) or empty_pb2.Empty(),
            "Stat": lambda r: pb.StatSnapshotResponse(info=to_wire(inner.stat(r.key))),
            "Update": lambda r: pb.UpdateSnapshotResponse(info=to_wire(inner.update(r.info.name, dict(r.info.labels)))),
            "List": lambda r: iter([pb.ListSnapshotsResponse(info=[to_wire(one) for one in inner.walk()])]),
            "Usage": lambda r: pb.UsageResponse(size=inner.usage(r.key).size, inodes=inner.usage(r.key).inodes),
            "Cleanup": lambda r: inner.cleanup() or empty_pb2.Empty(),
        }
        if method not in calls:
            raise AttributeError(method)

        def serve(request: Any, call: Any) -> Any:
            import grpc

            assert request.snapshotter == "far"
            try:
                return calls[method](request)
            except Error as error:
                code = next(one for one in grpc.StatusCode if one.value[0] == error.code)
                call.abort(code, error.wire_message())

        return serve


def layer(context: Context, snapshotter: Snapshotter, name: str, parent: str, *members: Any) -> None:
    mounts = snapshotter.prepare(f"tmp-{name}", parent, {})
    apply(context, tar(*members), mounts)
    snapshotter.commit(name, f"tmp-{name}", {})


def tree(context: Context, snapshotter: Snapshotter, parent: str) -> bytes:
    """All that a view of `parent` shows, as a tar."""
    mounts = snapshotter.view("look", parent, {})
    try:
        return compare(context, [], mounts)
    finally:
        snapshotter.remove("look")


def test_layers_stack(context: Context, snapshotter: Snapshotter) -> None:
    layer(
        context,
        snapshotter,
        "one",
        "",
        ("etc/", None),
        ("etc/a", b"1"),
        ("etc/b", b"1"),
        ("gone/", None),
        ("gone/x", b""),
    )
    layer(context, snapshotter, "two", "one", ("etc/b", b"2"), (".wh.gone", b""))
    layer(context, snapshotter, "three", "two", ("etc/c", b"3"))
    seen = tree(context, snapshotter, "three")
    assert sorted(name for name in names(seen) if name != "etc") == ["etc/a", "etc/b", "etc/c"]
    assert (content(seen, "etc/a"), content(seen, "etc/b")) == (b"1", b"2")
    # the layers below are as they were
    assert content(tree(context, snapshotter, "one"), "etc/b") == b"1"
    assert "gone/x" in names(tree(context, snapshotter, "one"))


def test_kinds_and_parents(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("a", "", {"containerd.io/snapshot/x": "y"})
    assert (snapshotter.stat("a").kind, snapshotter.stat("a").parent) == (ACTIVE, "")
    snapshotter.commit("base", "a", {})
    with pytest.raises(NotFound):
        snapshotter.stat("a")
    snapshotter.view("v", "base", {})
    snapshotter.prepare("w", "base", {})
    assert [snapshotter.stat(name).kind for name in ("base", "v", "w")] == [COMMITTED, VIEW, ACTIVE]
    assert snapshotter.stat("w").parent == "base"
    order = [info.name for info in snapshotter.walk()]
    assert sorted(order) == ["base", "v", "w"] and order[0] == "base"


def test_mounts_stay_the_same(snapshotter: Snapshotter) -> None:
    layer_mounts = snapshotter.prepare("a", "", {})
    assert [str(one) for one in snapshotter.mounts("a")] == [str(one) for one in layer_mounts]
    snapshotter.commit("base", "a", {})
    with pytest.raises(FailedPrecondition):
        snapshotter.mounts("base")
    for make, key in ((snapshotter.prepare, "b"), (snapshotter.view, "c")):
        assert [str(one) for one in make(key, "base", {})] == [str(one) for one in snapshotter.mounts(key)]


def test_what_it_says_of_itself(context: Context, snapshotter: Snapshotter) -> None:
    """As the introspection service and the stores read it."""
    assert isinstance(snapshotter.name, str) and snapshotter.name
    assert isinstance(snapshotter.capabilities, tuple)
    assert snapshotter.local == (snapshotter.name in registry.BUILT_IN)
    if snapshotter.local:
        assert snapshotter.root == os.path.join(context.root, "snapshots", snapshotter.name)
        assert os.stat(snapshotter.root).st_mode & 0o7777 == 0o700
    else:
        assert snapshotter.root == ""


def test_what_is_settled_is_committed_as_it_is(context: Context, snapshotter: Snapshotter) -> None:
    apply(context, tar(("x", b"1")), snapshotter.prepare("a", "", {}))
    snapshotter.settle("a")
    assert snapshotter.stat("a").kind == ACTIVE
    snapshotter.commit("base", "a", {})
    assert content(tree(context, snapshotter, "base"), "x") == b"1"


def test_a_refused_call_has_changed_nothing(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("a", "", {})
    snapshotter.commit("base", "a", {})
    snapshotter.prepare("b", "base", {})
    before = [(info.name, info.kind, info.parent) for info in snapshotter.walk()]
    for refused in (
        lambda: snapshotter.prepare("b", "base", {}),
        lambda: snapshotter.view("base", "", {}),
        lambda: snapshotter.view("c", "nowhere", {}),
        lambda: snapshotter.prepare("c", "b", {}),
        lambda: snapshotter.commit("base", "b", {}),
        lambda: snapshotter.remove("base"),
        lambda: snapshotter.update("nowhere", {}),
    ):
        with pytest.raises((AlreadyExists, NotFound, InvalidArgument, FailedPrecondition)):
            refused()
        assert [(info.name, info.kind, info.parent) for info in snapshotter.walk()] == before


def test_a_name_is_free_again(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("a", "", {})
    snapshotter.remove("a")
    with pytest.raises(NotFound):
        snapshotter.mounts("a")
    snapshotter.prepare("a", "", {})
    snapshotter.commit("b", "a", {})
    snapshotter.view("a", "b", {})
    assert (snapshotter.stat("a").kind, snapshotter.stat("a").parent) == (VIEW, "b")


def test_registered_snapshotters_and_proxies(context: Context, tmp_path: Any) -> None:
    place = Place(str(tmp_path), context.database, sync=False, remap=True)
    proxies = {"far": {"address": "/nowhere.sock", "capabilities": ["rebase"]}}
    found = registry.opened(place, proxies)
    try:
        assert sorted(found) == sorted([*registry.BUILT_IN, "far"])
        assert {name: one.name for name, one in found.items()} == {name: name for name in found}
        assert found["far"].capabilities == ("rebase",)
        assert found["overlayfs"].capabilities == ("remap-ids", "teu.size")
        assert found["native"].capabilities == ()
        with pytest.raises(Unavailable):
            found["far"].stat("a")
    finally:
        for one in found.values():
            one.close()


def test_refusals(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("a", "", {})
    with pytest.raises(AlreadyExists):
        snapshotter.prepare("a", "", {})
    with pytest.raises(NotFound):
        snapshotter.prepare("b", "nowhere", {})
    with pytest.raises(InvalidArgument, match="not committed"):
        snapshotter.prepare("b", "a", {})
    with pytest.raises(NotFound):
        snapshotter.commit("c", "nowhere", {})
    snapshotter.commit("base", "a", {})
    snapshotter.view("v", "base", {})
    with pytest.raises(FailedPrecondition):
        snapshotter.commit("c", "v", {})
    with pytest.raises(FailedPrecondition, match="child"):
        snapshotter.remove("base")
    snapshotter.prepare("again", "", {})
    with pytest.raises(AlreadyExists):
        snapshotter.commit("base", "again", {})
    assert snapshotter.stat("again").kind == ACTIVE
    with pytest.raises(NotFound):
        snapshotter.remove("nowhere")


def test_labels(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("a", "", {"containerd.io/snapshot/one": "1"})
    assert snapshotter.stat("a").labels == {"containerd.io/snapshot/one": "1"}
    assert snapshotter.update("a", {"containerd.io/snapshot/two": "2"}).labels == {"containerd.io/snapshot/two": "2"}
    snapshotter.commit("b", "a", {"containerd.io/snapshot/three": "3"})
    assert snapshotter.stat("b").labels == {"containerd.io/snapshot/three": "3"}


def test_commit_can_set_the_parent(context: Context, snapshotter: Snapshotter) -> None:
    layer(context, snapshotter, "base", "", ("low", b"1"))
    apply(context, tar(("high", b"2")), snapshotter.prepare("a", "", {}))
    snapshotter.commit("top", "a", {}, "base")
    assert snapshotter.stat("top").parent == "base"


def test_usage_is_of_the_layer_alone(context: Context, snapshotter: Snapshotter) -> None:
    if snapshotter.name == "native":
        pytest.skip("native copies its parent: its own share is the whole")
    layer(context, snapshotter, "base", "", ("big", os.urandom(400_000)))
    layer(context, snapshotter, "top", "base", ("small", os.urandom(5_000)))
    assert snapshotter.usage("base").size >= 400_000
    assert 5_000 <= snapshotter.usage("top").size < 100_000
    assert (snapshotter.usage("base").inodes, snapshotter.usage("top").inodes) == (2, 2)


def test_cleanup_removes_the_folders(context: Context, snapshotter: Snapshotter) -> None:
    root = context.snapshots.snapshotters["native" if snapshotter.name == "native" else "overlayfs"].root
    snapshotter.prepare("a", "", {})
    snapshotter.prepare("b", "", {})
    snapshotter.remove("a")
    os.mkdir(f"{root}/999999")  # as a crash leaves one
    snapshotter.cleanup()
    assert len(os.listdir(root)) == 1
    snapshotter.mounts("b")


def test_snapshots_are_spread_over_the_disk() -> None:
    """The hint of chattr +T on ext4; a file system that has none does without."""
    spread("/proc/self")
    with tempfile.TemporaryDirectory(dir=DISK, prefix="teu-unit-") as top:
        context = make_context(Path(top))
        for name in ("native", "overlayfs"):
            folder = context.snapshots.snapshotters[name].root
            kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout
            if kind.strip() == "ext2/ext3":
                shown = subprocess.run(["lsattr", "-d", folder], capture_output=True, text=True, check=True).stdout
                assert "T" in shown.split()[0]
        context.close()


def test_missing_folder_is_made_again(context: Context, snapshotter: Snapshotter) -> None:
    """A power cut may keep the record of an active snapshot and lose its folder."""
    if not snapshotter.local:
        pytest.skip("the far end's own business")
    snapshotter.prepare("a", "", {})
    for name in os.listdir(snapshotter.root):
        os.rename(f"{snapshotter.root}/{name}", f"{snapshotter.root}/../lost-{snapshotter.name}")
    snapshotter.recover()
    apply(context, tar(("x", b"")), snapshotter.mounts("a"))


def test_root_attributes_go_up(context: Context, snapshotter: Snapshotter) -> None:
    layer(context, snapshotter, "base", "", ("./", None, {"mode": 0o750, "uid": 11, "gid": 12}), ("x", b""))
    mounts = snapshotter.prepare("top", "base", {})
    apply(context, tar(("y", b"")), mounts)
    folder = mounts[0].source
    if mounts[0].type == "overlay":
        folder = next(one for one in mounts[0].options if one.startswith("upperdir=")).removeprefix("upperdir=")
    found = os.stat(folder)
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o750, 11, 12)


def test_many_at_once(snapshotter: Snapshotter) -> None:
    with futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: snapshotter.prepare(f"k{n}", "", {}), range(40)))
        list(pool.map(lambda n: snapshotter.commit(f"c{n}", f"k{n}", {}), range(40)))
        list(pool.map(lambda n: snapshotter.remove(f"c{n}"), range(40)))
    assert list(snapshotter.walk()) == []
