# SPDX-License-Identifier: Apache-2.0
"""Namespaces, containers, images, leases, sandboxes, snapshots: rules, masks, messages, isolation, durability."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import make_context

from teu.api.services.containers.v1 import containers_pb2
from teu.api.services.images.v1 import images_pb2
from teu.api.services.leases.v1 import leases_pb2
from teu.api.services.snapshots.v1 import snapshots_pb2
from teu.api.types import descriptor_pb2, sandbox_pb2
from teu.containerd.core import database as database_module
from teu.containerd.core.database import Database
from teu.containerd.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
    from_code,
)
from teu.containerd.snapshotters.interface import COMMITTED
from teu.containerd.state import Context
from teu.oci.labels import SAME_AS

DIGEST = "sha256:" + "a" * 64


def container(id: str, **fields: Any) -> Any:
    made = containers_pb2.Container(id=id, image="img", snapshotter="overlayfs", snapshot_key=f"snap-{id}", **fields)
    made.runtime.name = "io.containerd.teu.v2"
    made.spec.type_url, made.spec.value = "spec", b"{}"
    return made


def image(name: str, **labels: str) -> Any:
    target = descriptor_pb2.Descriptor(media_type="m", digest=DIGEST, size=5, annotations={"k": "v"})
    return images_pb2.Image(name=name, target=target, labels=labels)


def test_namespaces(context: Context) -> None:
    store = context.namespaces
    store.create("a", {"x": "1"})
    with pytest.raises(AlreadyExists, match='namespace "a"'):
        store.create("a", {})
    with pytest.raises(InvalidArgument, match='identifier "b/c" must match'):
        store.create("b/c", {})
    store.update("a", {"x": "", "y": "2"}, ["labels.x", "labels.y"])
    assert store.labels("a") == {"y": "2"}
    with pytest.raises(InvalidArgument, match='cannot update "labels" field'):
        store.update("a", {}, ["labels"])
    context.containers.create("a", container("c"))
    with pytest.raises(FailedPrecondition, match='namespace "a" must be empty, but it still has containers'):
        store.delete("a")
    context.containers.delete("a", "c")
    store.delete("a")
    assert "a" not in store.all()
    assert store.labels("a") == {}, "dockerd asks for its namespace before there is one"
    with pytest.raises(NotFound):
        store.delete("a")


def test_objects_make_their_namespace(context: Context) -> None:
    context.containers.create("fresh", container("c"))
    assert "fresh" in context.namespaces.all()


def test_containers(context: Context) -> None:
    store = context.containers
    store.create("n", container("one", labels={"a": "1"}))
    with pytest.raises(AlreadyExists, match='container "one"'):
        store.create("n", container("one"))
    with pytest.raises(NotFound, match='container "one" in namespace "other"'):
        store.get("other", "one")
    found = store.get("n", "one")
    assert (found.runtime.name, found.spec.value, found.snapshot_key) == ("io.containerd.teu.v2", b"{}", "snap-one")
    assert found.created_at.seconds == found.updated_at.seconds > 0
    store.create("n", container("two", labels={"a": "2"}))
    assert [one.id for one in store.find("n", ["labels.a==2"])] == ["two"]
    assert [one.id for one in store.find("n", ["id==one", "id==two"])] == ["one", "two"]
    assert [one.id for one in store.find("n", ["runtime.name==io.containerd.teu.v2,image==img"])] == ["one", "two"]


def test_container_masks(context: Context) -> None:
    store = context.containers
    store.create("n", container("one", labels={"a": "1", "b": "2"}))
    change = container("one", labels={"a": "9"})
    change.extensions["e"].value = b"x"
    updated = store.update("n", change, ["labels.a", "extensions.e"])
    assert dict(updated.labels) == {"a": "9", "b": "2"} and updated.extensions["e"].value == b"x"
    assert dict(store.get("n", "one").labels) == {"a": "9", "b": "2"}
    updated = store.update("n", change, [])
    assert dict(updated.labels) == {"a": "9"}
    with pytest.raises(InvalidArgument, match='cannot update "runtime" field'):
        store.update("n", change, ["runtime"])
    change.snapshotter = "native"
    with pytest.raises(InvalidArgument, match="Snapshotter field is immutable"):
        store.update("n", change, [])


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("id", "identifier must not be empty"),
        ("runtime", "Runtime.Name must be set"),
        ("snapshotter", "Snapshotter must be set"),
    ],
)
def test_container_validation(context: Context, field: str, words: str) -> None:
    bad = container("x")
    bad.ClearField(field)
    with pytest.raises(InvalidArgument, match=words):
        context.containers.create("n", bad)


def test_images(context: Context) -> None:
    store = context.images
    store.create("n", image("i", a="1"))
    with pytest.raises(AlreadyExists, match='image "i"'):
        store.create("n", image("i"))
    assert store.get("n", "i").target.annotations["k"] == "v"
    assert [one.name for one in store.find("n", [f"target.digest=={DIGEST}"])] == ["i"]
    assert [one.name for one in store.find("n", ["name~=|^i$|,labels.a==1"])] == ["i"]
    changed = image("i", b="2")
    changed.target.size = 6
    assert dict(store.update("n", changed, ["labels.b"]).labels) == {"a": "1", "b": "2"}
    assert store.update("n", changed, []).target.size == 6
    with pytest.raises(NotFound, match="has target sha256:a"):
        store.delete("n", "i", "sha256:" + "b" * 64)
    store.delete("n", "i", DIGEST)
    with pytest.raises(NotFound):
        store.get("n", "i")
    for field, value in (("digest", "sha256:x"), ("size", 0), ("media_type", "")):
        bad = image("bad")
        setattr(bad.target, field, value)
        with pytest.raises(InvalidArgument, match="target"):
            store.create("n", bad)
    epoch = store.create("n", image("old"), stamp=7_000_000_000)
    assert epoch.created_at.seconds == 7


def test_leases(context: Context) -> None:
    store = context.leases
    store.create("n", "l", {"a": "b"})
    with pytest.raises(AlreadyExists):
        store.create("n", "l", {})
    store.add("n", "l", leases_pb2.Resource(type="content", id=f"sha256:{'0' * 64}"))
    for kind in ("ingests", "images", "snapshots/overlayfs"):
        store.add("n", "l", leases_pb2.Resource(type=kind, id="r"))
    assert [one.type for one in store.resources("n", "l")] == ["content", "images", "ingests", "snapshots/overlayfs"]
    store.remove("n", "l", leases_pb2.Resource(type="images", id="r"))
    assert len(store.resources("n", "l")) == 3
    with pytest.raises(Unimplemented):
        store.add("n", "l", leases_pb2.Resource(type="tasks", id="r"))
    with pytest.raises(InvalidArgument):
        store.add("n", "l", leases_pb2.Resource(type="snapshots", id="r"))
    with pytest.raises(InvalidArgument, match="invalid content resource id"):
        store.add("n", "l", leases_pb2.Resource(type="content", id="r"))
    assert [one.id for one in store.find("n", ["labels.a==b"])] == ["l"] and not store.find("other")
    store.delete("n", "l")
    with pytest.raises(NotFound):
        store.resources("n", "l")


def test_sandboxes(context: Context) -> None:
    store = context.sandboxes
    wanted = sandbox_pb2.Sandbox(sandbox_id="s", labels={"a": "1"}, sandboxer="shim")
    with pytest.raises(InvalidArgument, match="Runtime.Name"):
        store.create("n", wanted)
    wanted.runtime.name = "r"
    made = store.create("n", wanted)
    assert (made.sandboxer, made.created_at.seconds > 0) == ("shim", True)
    wanted.labels["a"] = "2"
    assert store.update("n", wanted, ["labels.a"]).labels["a"] == "2"
    assert [one.sandbox_id for one in store.find("n", ["labels.a==2"])] == ["s"]
    store.delete("n", "s")
    with pytest.raises(NotFound):
        store.get("n", "s")


def test_snapshots_of_namespaces_are_apart(context: Context) -> None:
    store = context.snapshots
    for namespace in ("a", "b"):
        store.prepare(namespace, "overlayfs", "key", "", {"mine": namespace})
    assert store.stat("a", "overlayfs", "key").labels == {"mine": "a"}
    assert store.mounts("a", "overlayfs", "key")[0].source != store.mounts("b", "overlayfs", "key")[0].source
    rooted = snapshots_pb2.Info(name="key", labels={"containerd.io/gc.root": "x"})
    assert store.update("b", "overlayfs", rooted, ["labels"]).labels == {"containerd.io/gc.root": "x"}
    store.remove("a", "overlayfs", "key")
    context.collector.collect()
    with pytest.raises(NotFound, match="snapshot key does not exist"):
        store.stat("a", "overlayfs", "key")
    assert store.mounts("b", "overlayfs", "key")
    with pytest.raises(InvalidArgument, match="snapshotter not loaded: none"):
        store.stat("b", "none", "key")


def test_snapshot_messages(context: Context) -> None:
    store = context.snapshots
    context.leases.create("n", "l", {})
    store.prepare("n", "overlayfs", "a", "", {}, "l")
    with pytest.raises(AlreadyExists, match='snapshot "a"'):
        store.prepare("n", "overlayfs", "a", "", {})
    store.commit("n", "overlayfs", "base", "a", {"x": "y"}, lease="l")
    with pytest.raises(NotFound, match="parent snapshot nope does not exist"):
        store.prepare("n", "overlayfs", "b", "nope", {})
    with pytest.raises(AlreadyExists, match='target snapshot "base"'):  # as clients ask whether a layer is there
        store.prepare("n", "overlayfs", "extract", "", {"containerd.io/snapshot.ref": "base"})
    store.prepare("n", "overlayfs", "b", "base", {}, "l")
    with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
        store.remove("n", "overlayfs", "base")
    assert [info.name for info in store.find("n", "overlayfs", ["kind==active,parent==base"])] == ["b"]
    assert [info.name for info in store.find("n", "overlayfs", ["labels.x==y"])] == ["base"]


def test_two_keys_of_one_snapshot(context: Context, tmp_path: Path) -> None:
    """What stands on the same and has the same files is not made twice: its files go with the last of the keys."""
    store, ref = context.snapshots, "containerd.io/snapshot.ref"
    context.leases.create("n", "l", {})

    def made(key: str, parent: str = "") -> Path:
        (mount,) = store.prepare("n", "overlayfs", "active", parent, {})
        upper = next((o.partition("=")[2] for o in mount.options if o.startswith("upperdir=")), mount.source)
        Path(upper, key).write_text(key)
        store.commit("n", "overlayfs", key, "active", {}, lease="l")
        return Path(upper)

    def prepare(target: str, same: str, parent: str = "") -> None:
        labels = {ref: target, SAME_AS: same, "own": "1"}
        store.prepare("n", "overlayfs", f"extract {target}", parent, labels, "l")

    folder = made("one")
    made("two", "one")
    made("other")
    with pytest.raises(AlreadyExists, match='target snapshot "first" from "one"'):
        prepare("first", "one")
    with pytest.raises(AlreadyExists, match='target snapshot "second" from "two"'):
        prepare("second", "two", "first")
    info = store.stat("n", "overlayfs", "second")
    assert (info.parent, info.kind, info.labels) == ("first", COMMITTED, {ref: "second", "own": "1"})
    # Nothing is taken for the same that is not there, is not committed, or stands on something else.
    for target, same, parent in (("a", "none", ""), ("b", "extract a", ""), ("c", "two", "other"), ("d", "two", "")):
        prepare(target, same, parent)
        with pytest.raises(NotFound):
            store.stat("n", "overlayfs", target)
        store.remove("n", "overlayfs", f"extract {target}")
    store.remove("n", "overlayfs", "two")
    store.remove("n", "overlayfs", "one")
    context.collector.collect()
    assert (folder / "one").read_text() == "one", "the other key has it"
    (mount,) = store.view("n", "overlayfs", "view", "second", {})
    assert str(folder) in mount.options[-1]
    for key in ("view", "second", "first"):
        store.remove("n", "overlayfs", key)
    context.collector.collect()
    assert not folder.exists()


def test_wire_messages_end_with_containerds_words() -> None:
    assert NotFound('image "x"').wire_message() == 'image "x": not found'
    assert NotFound("x: not found").wire_message() == "x: not found"
    assert type(from_code(6, "x")) is AlreadyExists and type(from_code(99, "x")).__name__ == "Unknown"


def test_database_survives_and_migrates(tmp_path: Path) -> None:
    first = make_context(tmp_path)
    first.containers.create("n", container("c", labels={"a": "b"}))
    uuid = first.database.uuid
    first.close()
    second = make_context(tmp_path)
    assert second.containers.get("n", "c").labels["a"] == "b" and second.database.uuid == uuid
    with pytest.raises(FailedPrecondition, match="is in use by another teu-containerd, process"):
        make_context(tmp_path)
    second.close()


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.db")
    Database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '999' WHERE key = 'version'")
    with pytest.raises(FailedPrecondition, match="written by a newer teu-containerd"):
        Database(path)


def test_migration_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "metadata.db")
    database = Database(path)
    with database.transaction() as execute:
        execute("INSERT INTO namespaces (name) VALUES ('kept')")
    database.close()
    more = (*database_module.MIGRATIONS, "ALTER TABLE namespaces ADD COLUMN note TEXT; CREATE TABLE later (x)")
    monkeypatch.setattr(database_module, "MIGRATIONS", more)
    database = Database(path)
    assert database.one("SELECT name, note FROM namespaces") == ("kept", None)
    assert database.one("SELECT value FROM meta WHERE key = 'version'") == (str(len(more)),)
    database.close()


def test_damaged_database_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(b"this is not a database, not at all" * 100)
    with pytest.raises(FailedPrecondition, match="metadata.db: file is not a database; move it away"):
        Database(str(path))


def test_locked_database_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.db")
    Database(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(FailedPrecondition, match="locked; stop the process that holds it"):
        Database(path, patience=0.1)
    holder.close()


def test_transactions_undo_and_nest(context: Context) -> None:
    database = context.database
    with pytest.raises(KeyError), database.transaction() as execute:
        execute("INSERT INTO namespaces (name) VALUES ('gone')")
        with database.transaction() as inner:
            inner("INSERT INTO namespaces (name) VALUES ('gone too')")
        raise KeyError
    assert database.all("SELECT * FROM namespaces") == []


def test_writers_side_by_side(context: Context) -> None:
    """Each thread sees its own commits, and all of them arrive."""

    def work(number: int) -> None:
        for index in range(25):
            context.containers.create("n", container(f"c{number}-{index}"))
            assert context.containers.get("n", f"c{number}-{index}").id
            if index % 2:
                context.containers.delete("n", f"c{number}-{index}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(context.containers.find("n")) == 8 * 13
