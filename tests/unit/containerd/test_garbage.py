# SPDX-License-Identifier: Apache-2.0
"""Garbage collection: what each label keeps, and that nothing referenced goes while others write."""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from layertools import digest
from test_content import put
from test_stores import container

from teu.api.services.content.v1 import content_pb2
from teu.api.services.images.v1 import images_pb2
from teu.api.services.leases.v1 import leases_pb2
from teu.api.types import descriptor_pb2, sandbox_pb2
from teu.containerd.core.errors import Error, NotFound
from teu.containerd.state import Context

PAST, FUTURE = "2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"


def image(context: Context, name: str, target: str, namespace: str = "n", **labels: str) -> None:
    wanted = descriptor_pb2.Descriptor(media_type="m", digest=target, size=1)
    context.images.create(namespace, images_pb2.Image(name=name, target=wanted, labels=labels))


def blobs(context: Context, namespace: str = "n") -> set[str]:
    return {info.digest for info in context.content.find(namespace)}


def snapshot(context: Context, key: str, parent: str = "", **labels: str) -> None:
    context.snapshots.prepare("n", "overlayfs", f"tmp-{key}", parent, {"containerd.io/gc.root": "x"})
    context.snapshots.commit("n", "overlayfs", key, f"tmp-{key}", labels)


def snapshots(context: Context) -> set[str]:
    return {info.name for info in context.snapshots.find("n", "overlayfs")}


def test_an_image_keeps_its_tree(context: Context) -> None:
    layer, lost = put(context, b"layer"), put(context, b"lost")
    snapshot(context, "base")
    snapshot(context, "top", "base")
    snapshot(context, "alone")
    labels = {"containerd.io/gc.ref.snapshot.overlayfs": "top"}
    config = put(context, b"config", **labels)
    manifest = put(
        context, b"m", **{"containerd.io/gc.ref.content.config": config, "containerd.io/gc.ref.content.l.0": layer}
    )
    index = put(context, b"i", **{"containerd.io/gc.ref.content/m.0": manifest})
    image(context, "i", index)
    context.collector.collect()
    assert blobs(context) == {index, manifest, config, layer}
    assert snapshots(context) == {"base", "top"}
    assert not os.path.exists(context.content.path(lost))
    assert len(os.listdir(context.snapshots.snapshotters["overlayfs"].root)) == 2  # type: ignore[attr-defined]
    context.images.delete("n", "i")
    context.collector.collect()
    assert blobs(context) == snapshots(context) == set()
    assert os.listdir(os.path.join(context.content.blobs, "sha256")) == []


def test_back_references(context: Context) -> None:
    one = put(context, b"1", **{"containerd.io/gc.bref.content": digest(b"parent")})
    two = put(context, b"2", **{"containerd.io/gc.bref.image.x": "img"})
    three = put(context, b"3", **{"containerd.io/gc.bref.container": "c"})
    four = put(context, b"4", **{"containerd.io/gc.bref.container": "nobody"})
    parent = put(context, b"parent")
    image(context, "img", parent)
    context.containers.create("n", container("c"))
    snapshot(context, "snap-c")
    context.collector.collect()
    assert blobs(context) == {one, two, three, parent}
    assert four not in blobs(context) and snapshots(context) == {"snap-c"}


def test_expiry(context: Context) -> None:
    kept, gone, odd = put(context, b"kept"), put(context, b"gone"), put(context, b"odd")
    image(context, "kept", kept, **{"containerd.io/gc.expire": FUTURE})
    image(context, "gone", gone, **{"containerd.io/gc.expire": PAST})
    image(context, "odd", odd, **{"containerd.io/gc.expire": "next week"})
    context.leases.create("n", "old", {"containerd.io/gc.expire": PAST})
    context.collector.collect()
    assert {one.name for one in context.images.find("n")} == {"kept", "odd"} and blobs(context) == {kept, odd}
    assert context.leases.find("n") == []


def test_flat_lease_holds_only_what_it_names(context: Context) -> None:
    child = put(context, b"child")
    parent = put(context, b"parent", **{"containerd.io/gc.ref.content": child})
    snapshot(context, "base")
    snapshot(context, "top", "base", **{"containerd.io/gc.ref.content": child})
    context.leases.create("n", "flat", {"containerd.io/gc.flat": "x"})
    for kind, id in (("content", parent), ("snapshots/overlayfs", "top")):
        context.leases.add("n", "flat", leases_pb2.Resource(type=kind, id=id))
    context.collector.collect()
    assert blobs(context) == {parent} and snapshots(context) == {"base", "top"}


def test_sandboxes_and_other_namespaces(context: Context) -> None:
    one, two = put(context, b"1"), put(context, b"2")
    sandbox = sandbox_pb2.Sandbox(sandbox_id="s", labels={"containerd.io/gc.ref.content": one})
    sandbox.runtime.name = "r"
    context.sandboxes.create("n", sandbox)
    image(context, "i", two, namespace="other")  # a reference from elsewhere keeps nothing here
    context.collector.collect()
    assert blobs(context) == {one}


def test_old_ingest_without_lease_goes(context: Context) -> None:
    context.content.writer("n", "old").close()
    context.content.writer("n", "young").close()
    with context.database.transaction() as execute:
        execute("UPDATE ingests SET expires = 1 WHERE ref = 'old'")
    context.collector.collect()
    assert [one.ref for one in context.content.statuses("n")] == ["young"]
    assert len(os.listdir(context.content.ingests)) == 1


def test_deletions_bring_a_collection(context: Context) -> None:
    """What was deleted goes soon; what is only unreferenced now, after the interval or enough changes."""

    def wait(probe: Any) -> None:
        deadline = time.monotonic() + 10
        while not probe():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    name, kept = put(context, b"x"), put(context, b"kept")
    image(context, "i", name)
    image(context, "k", kept)
    context.collector.start()
    wait(lambda: context.collector.runs == 1)
    context.snapshots.prepare("n", "overlayfs", "mine", "", {})
    deleted = put(context, b"deleted")
    context.content.delete("n", deleted)
    wait(lambda: not os.path.exists(context.content.path(deleted)))
    assert context.collector.runs == 1 and context.snapshots.stat("n", "overlayfs", "mine"), "in use, with no lease"
    context.collector.interval = 0.05
    context.images.delete("n", "i")
    wait(lambda: not os.path.exists(context.content.path(name)))
    context.collector.interval, context.collector.threshold = 1000.0, 10
    for number in range(10):
        context.leases.create("n", f"l{number}", {})
    context.images.delete("n", "k")
    wait(lambda: not os.path.exists(context.content.path(kept)))


def test_only_what_has_files_sends_somebody_to_the_disk(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build deletes a container after each step, and leases by the dozen: none of them has files."""
    swept: list[float] = []
    collect = context.snapshots.collect
    monkeypatch.setattr(context.snapshots, "collect", lambda: (swept.append(time.monotonic()), collect())[1])
    context.collector.threshold = 1000
    context.collector.start()
    deadline = time.monotonic() + 10
    while not swept or not context.collector.idle():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = len(swept)
    for number in range(3):
        context.leases.create("n", f"l{number}", {})
        context.leases.delete("n", f"l{number}")
        context.containers.create("n", container(f"c{number}"))
        context.containers.delete("n", f"c{number}")
        time.sleep(0.1)
    assert len(swept) == before
    context.content.delete("n", put(context, b"x"))
    while len(swept) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_snapshot_removal_is_told(context: Context) -> None:
    told: list[Any] = []
    context.events.listen(told.append)
    context.snapshots.prepare("n", "overlayfs", "x", "", {})
    context.collector.collect()
    assert [one.topic for one in told] == ["/snapshot/prepare", "/snapshot/remove"]


def test_collections_beside_pulls(context: Context) -> None:
    """Pulls under leases, deletions and collections at the same time: no image ever lacks a part."""
    stop = threading.Event()
    failures: list[str] = []
    counts = {"pulls": 0, "collections": 0}

    def pull(worker: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            name, lease = f"i{worker}-{number % 3}", f"l{worker}-{number}"
            context.leases.create("n", lease, {})
            parts = []
            for data in (b"shared layer", f"{worker} {number}".encode()):
                with suppress(Error):
                    with context.content.writer("n", f"{lease}-{data!r}", lease=lease, expected=digest(data)) as writer:
                        writer.truncate()
                        writer.write(data)
                        writer.commit(len(data), digest(data), {})
                parts.append(digest(data))
            with suppress(NotFound):
                context.images.delete("n", name)
            info = content_pb2.Info(digest=parts[1], labels={"containerd.io/gc.ref.content.l.0": parts[0]})
            context.content.update("n", info, ["labels"])
            image(context, name, parts[1])
            context.leases.delete("n", lease)
            counts["pulls"] += 1
            for part in parts:
                try:
                    os.close(context.content.open("n", part))
                except NotFound as error:
                    failures.append(f"{name}: {error}")
            if random.random() < 0.3:
                context.images.delete("n", name)

    def collect() -> None:
        while not stop.is_set():
            context.collector.collect()
            counts["collections"] += 1

    threads = [threading.Thread(target=pull, args=(number,)) for number in range(3)]
    threads.append(threading.Thread(target=collect))
    for thread in threads:
        thread.start()
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    print(counts)
    assert not failures and counts["pulls"] > 10 and counts["collections"] > 5
    for name in [one.name for one in context.images.find("n")]:
        context.images.delete("n", name)
    context.collector.collect()
    assert blobs(context) == set() and os.listdir(os.path.join(context.content.blobs, "sha256")) == []


def test_invalid_labels_are_no_references(context: Context) -> None:
    name = put(context, b"x", **{"containerd.io/gc.ref.contents": "y", "containerd.io/gc.rooted": "z"})
    context.collector.collect()
    with pytest.raises(NotFound):
        context.content.info("n", name)


def test_a_stop_right_after_a_deletion_is_heard(context: Context) -> None:
    """While the collector waits for more of a burst: unheard, it holds up the daemon's stop."""
    collector = context.collector
    collector.delay = 0.5
    collector.start()  # it begins with a look for what a crash left, after the delay
    time.sleep(0.1)
    collector.stop()
    assert not any(thread.name == "gc" for thread in threading.enumerate())
