# SPDX-License-Identifier: Apache-2.0
"""teu-ctr's commands against a daemon in memory: the requests they make, and what they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("grpc")

from memorydaemon import MemoryDaemon, digest_of

from teu.api.services.containers.v1 import containers_pb2
from teu.api.services.snapshots.v1 import snapshots_pb2
from teu.api.types.task import task_pb2
from teu.ctr import blobs, main, run
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import parse, parse_table
from teu.oci import image_spec

HOST = (image_spec.host_platform().os, image_spec.host_platform().architecture)
Run = Callable[..., str]


@pytest.fixture
def daemon() -> MemoryDaemon:
    return MemoryDaemon()


@pytest.fixture
def ctr(daemon: MemoryDaemon, capfd: pytest.CaptureFixture[str]) -> Run:
    """`ctr(name, *argv)`: what the command prints; its errors are raised."""

    def call(name: str, *argv: str) -> str:
        command = main.load(name)
        above, _ = parse(parse_table(main.GLOBAL_FLAGS), [])
        options, operands = parse(main.all_flags(name, command), list(argv))
        context = main.Ctr(above)
        context._client = daemon  # type: ignore[assignment]
        capfd.readouterr()
        command.function(context, options, operands)
        return capfd.readouterr().out

    return call


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def task(daemon: MemoryDaemon, identity: str, status: int, **more: Any) -> None:
    daemon.processes[identity] = task_pb2.Process(id=identity, pid=7, status=status, **more)


def container(daemon: MemoryDaemon, identity: str, **more: Any) -> Any:
    found = containers_pb2.Container(
        id=identity, image="busybox", snapshot_key=identity, snapshotter="overlayfs", **more
    )
    found.runtime.name = "io.containerd.teu.v2"
    found.spec.value = json.dumps({"process": {"args": ["sh"]}, "root": {"path": "rootfs"}}).encode()
    daemon.container_store.kept[identity] = found
    daemon.snapshot_store.kept[identity] = snapshots_pb2.Info(name=identity, kind=snapshots_pb2.Kind.ACTIVE)
    return found


# Namespaces and leases -------------------------------------------------------------------------------------


def test_namespaces(daemon: MemoryDaemon, ctr: Run) -> None:
    ctr("namespaces create", "b", "k=v")
    ctr("namespaces create", "a")
    assert rows(ctr("namespaces list")) == [["NAME", "LABELS"], ["a"], ["b", "k=v"]]
    assert ctr("namespaces list", "-q") == "a\nb\n"
    ctr("namespaces label", "b", "k=", "x=y")
    assert dict(daemon.namespace_store.kept["b"].labels) == {"x": "y"}
    assert ctr("namespaces remove", "a", "gone") == "a\ngone\n"  # one that is not there is removed too
    assert set(daemon.namespace_store.kept) == {"b"}
    with pytest.raises(CommandError, match="please specify a namespace"):
        ctr("namespaces create")


def test_leases(daemon: MemoryDaemon, ctr: Run) -> None:
    assert ctr("leases create", "--id", "l1", "k=v") == "l1\n"
    assert set(daemon.lease_store.kept["l1"].labels) == {"k", "containerd.io/gc.expire"}
    made = ctr("leases create", "-x", "0").strip()
    assert not daemon.lease_store.kept[made].labels
    assert ctr("leases list", "-q").split() == ["l1", made]
    assert rows(ctr("leases list"))[0] == ["ID", "CREATED", "AT", "LABELS"]
    assert ctr("leases delete", "--sync", "l1", made) == f"l1\n{made}\n"
    assert daemon.request("leases.Delete").sync
    with pytest.raises(CommandError, match='lease "l1": not found'):
        ctr("leases delete", "l1")


# Content ---------------------------------------------------------------------------------------------------


def test_content_is_listed_read_labelled_and_deleted(daemon: MemoryDaemon, ctr: Run) -> None:
    digest = daemon.blob(b"hello", {"a": "1"})
    assert rows(ctr("content list"))[1][:2] == [digest, "5B"]
    assert ctr("content list", "-q") == digest + "\n"
    assert ctr("content get", digest) == "hello"
    assert ctr("content label", digest, "b=2", "a=") == "b=2\n"
    assert ctr("content delete", digest, digest_of(b"none")) == digest + "\n"
    assert not daemon.blobs
    with pytest.raises(CommandError, match="invalid checksum digest length"):
        ctr("content get", "sha256:1")


def test_labels_that_keep_layers_are_dropped(daemon: MemoryDaemon, ctr: Run, capfd: Any) -> None:
    kept = {"containerd.io/gc.ref.content.l.0": "x", "containerd.io/gc.ref.content.config": "y"}
    digest = daemon.blob(b"manifest", kept)
    ctr("content prune references", "--dry")
    assert dict(daemon.infos.kept[digest].labels) == kept
    ctr("content prune references")
    assert set(daemon.infos.kept[digest].labels) == {"containerd.io/gc.ref.content.config"}
    assert daemon.request("leases.Delete").sync


def test_an_edited_blob_is_a_new_one(daemon: MemoryDaemon, ctr: Run) -> None:
    digest = daemon.blob(b"old")
    assert ctr("content edit", "--editor", "printf new >", digest) == digest_of(b"new") + "\n"
    assert daemon.blobs[digest_of(b"new")] == b"new"
    with pytest.raises(CommandError, match="editor is required"):
        ctr("content edit", "--editor", "", digest)
    with pytest.raises(CommandError, match="ended with status 3"):
        ctr("content edit", "--editor", "exit 3;", digest)


def test_a_blob_that_is_there_already_is_not_read_again(daemon: MemoryDaemon) -> None:
    digest = daemon.blob(b"data")

    def source(offset: int) -> list[bytes]:
        raise AssertionError("it is there")

    blobs.write(daemon, "ref", 4, digest, source, {"k": "v"})  # type: ignore[arg-type]
    assert dict(daemon.infos.kept[digest].labels) == {"k": "v"}
    made = blobs.write_unknown(daemon, "ref", [b"a", b"b"], {"l": "1"})  # type: ignore[arg-type]
    assert made == (digest_of(b"ab"), 2) and daemon.infos.kept[digest_of(b"ab")].labels["l"] == "1"


def test_what_an_index_and_a_manifest_keep() -> None:
    below = [{"digest": "c"}, {"digest": "l0"}, {"digest": "l1"}]
    kind = "application/vnd.oci.image."
    assert blobs.reference_labels({"mediaType": kind + "manifest.v1+json"}, below) == {
        "containerd.io/gc.ref.content.config": "c",
        "containerd.io/gc.ref.content.l.0": "l0",
        "containerd.io/gc.ref.content.l.1": "l1",
    }
    assert list(blobs.reference_labels({"mediaType": kind + "index.v1+json"}, below)) == [
        f"containerd.io/gc.ref.content.m.{number}" for number in range(3)
    ]


# Images ----------------------------------------------------------------------------------------------------


def test_images_are_listed_tagged_labelled_and_deleted(daemon: MemoryDaemon, ctr: Run, capfd: Any) -> None:
    target = daemon.image("x:1", [b"layer"], HOST)
    row = rows(ctr("images list"))[1]
    assert row[:3] == ["x:1", target["mediaType"], target["digest"]]
    assert row[-2:] == ["/".join(HOST), "-"] or row[-2].startswith("/".join(HOST))
    assert ctr("images tag", "x:1", "y:1") == "y:1\n"
    with pytest.raises(CommandError, match="already exists"):
        ctr("images tag", "x:1", "y:1")
    assert ctr("images tag", "--force", "x:1", "y:1") == "y:1\n"
    assert ctr("images label", "y:1", "a=b") == "a=b\n"
    assert ctr("images label", "--replace-all", "y:1", "c=d") == "c=d\n"
    assert ctr("images list", "-q") == "x:1\ny:1\n"
    assert ctr("images delete", "--sync", "x:1", "gone", "y:1") == "x:1\ny:1\n"
    assert daemon.request("images.Delete").sync


def test_what_is_missing_of_an_image_is_told(daemon: MemoryDaemon, ctr: Run) -> None:
    daemon.image("x:1", [b"one", b"two"], HOST)
    assert rows(ctr("images check"))[1][3:5] == ["complete", "(3/3)"]
    assert rows(ctr("images check"))[1][-1] == "false"
    del daemon.infos.kept[digest_of(b"two")]
    assert rows(ctr("images check"))[1][3:5] == ["incomplete", "(2/3)"]
    daemon.infos.kept.clear()
    assert rows(ctr("images check"))[1][3:5] == ["unavailable", "(0/?)"]


def test_unused_images_are_pruned(daemon: MemoryDaemon, ctr: Run) -> None:
    daemon.image("used", [], HOST)
    daemon.image("unused", [], HOST)
    container(daemon, "c").image = "used"
    ctr("images prune")
    assert set(daemon.image_store.kept) == {"used", "unused"}
    ctr("images prune", "--all")
    assert set(daemon.image_store.kept) == {"used"}


def test_layers_are_unpacked_once_each_on_the_one_below(daemon: MemoryDaemon, ctr: Run) -> None:
    target = daemon.image("x:1", [b"one", b"two"], HOST)
    _, manifest = blobs.manifests(daemon, target)[0]  # type: ignore[arg-type]
    top = blobs.unpack(daemon, manifest, "overlayfs")  # type: ignore[arg-type]
    first, second = image_spec.chain_ids([digest_of(b"one"), digest_of(b"two")])
    assert top == second
    assert {name: info.parent for name, info in daemon.snapshot_store.kept.items()} == {first: "", second: first}
    config = daemon.infos.kept[manifest["config"]["digest"]]
    assert config.labels["containerd.io/gc.ref.snapshot.overlayfs"] == second
    before = daemon.called().count("diff.Apply")
    assert blobs.unpack(daemon, manifest, "overlayfs") == top  # type: ignore[arg-type]
    assert daemon.called().count("diff.Apply") == before == 2
    assert [row[0] for row in rows(ctr("images usage", "x:1"))] == ["KEY", second, first]


def test_a_layer_with_another_digest_leaves_nothing(daemon: MemoryDaemon) -> None:
    target = daemon.image("x:1", [b"one"], HOST)
    _, manifest = blobs.manifests(daemon, target)[0]  # type: ignore[arg-type]
    daemon.diff = daemon.service("diff", {"Apply": lambda _: SimpleNamespace(applied=SimpleNamespace(digest="other"))})
    with pytest.raises(CommandError, match="wrong diff id other"):
        blobs.unpack(daemon, manifest, "overlayfs")  # type: ignore[arg-type]
    assert not daemon.snapshot_store.kept


def test_an_image_for_another_machine_is_not_at_hand(daemon: MemoryDaemon) -> None:
    kind = "application/vnd.oci.image.index.v1+json"
    foreign = {**daemon.image("x", [], ("linux", "s390x")), "platform": {"os": "linux", "architecture": "s390x"}}
    data = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [foreign]}).encode()
    index = {"mediaType": kind, "digest": daemon.blob(data), "size": len(data)}
    with pytest.raises(NotFound, match="no manifest of"):
        blobs.manifests(daemon, index)  # type: ignore[arg-type]
    assert blobs.manifests(daemon, index, "linux/s390x")[0][0]["digest"] == foreign["digest"]  # type: ignore[arg-type]
    assert blobs.platforms(daemon, index) == ["linux/s390x"]  # type: ignore[arg-type]
    with pytest.raises(CommandError, match="cannot parse platform specifier"):
        blobs.parse_platform("a/b/c/d")


def test_an_image_is_converted_to_other_media_types(daemon: MemoryDaemon, ctr: Run) -> None:
    target = daemon.image("x:1", [b"one"], HOST)
    assert ctr("images convert", "x:1", "y:1") == target["digest"] + "\n"  # nothing to change
    assert daemon.image_store.kept["y:1"].target.digest == target["digest"]
    with pytest.raises(CommandError, match="src and target image"):
        ctr("images convert", "x:1")


# Snapshots -------------------------------------------------------------------------------------------------


def test_snapshots(daemon: MemoryDaemon, ctr: Run) -> None:
    assert ctr("snapshots prepare", "-t", "/mnt", "a") == "mount -t bind /s/a /mnt -o rbind,rw\n"
    ctr("snapshots commit", "base", "a")
    assert json.loads(ctr("snapshots view", "--mounts", "v", "base"))[0]["Source"] == "/s/v"
    assert rows(ctr("snapshots list")) == [
        ["KEY", "PARENT", "KIND"],
        ["base", "Committed"],
        ["v", "base", "View"],
    ]
    assert ctr("snapshots tree") == " base\n  \\_ v\n"
    assert ctr("snapshots label", "base", "k=v", "containerd.io/gc.root=") == "k=v\n"
    assert json.loads(ctr("snapshots info", "v"))["Parent"] == "base"
    assert rows(ctr("snapshots usage", "-b", "base"))[1] == ["base", "2048", "3"]
    assert ctr("snapshots mounts", "/t", "v").startswith("mount -t bind /s/v /t")
    ctr("snapshots delete", "v")
    with pytest.raises(CommandError, match='failed to remove "v"'):
        ctr("snapshots delete", "v")
    with pytest.raises(CommandError, match="key must be provided"):
        ctr("snapshots prepare")


# Containers and tasks --------------------------------------------------------------------------------------


def test_containers(daemon: MemoryDaemon, ctr: Run) -> None:
    container(daemon, "b", labels={"k": "v"})
    container(daemon, "a")
    assert rows(ctr("containers list"))[1] == ["a", "busybox", "io.containerd.teu.v2"]
    assert ctr("containers list", "-q") == "a\nb\n"
    shown = json.loads(ctr("containers info", "b"))
    assert (shown["ID"], shown["Labels"], shown["Spec"]["process"]["args"]) == ("b", {"k": "v"}, ["sh"])
    assert json.loads(ctr("containers info", "--spec", "b"))["root"] == {"path": "rootfs"}
    assert ctr("containers label", "b", "k=", "x=y") == "x=y\n"
    ctr("containers delete", "a")
    assert "a" not in daemon.container_store.kept and "a" not in daemon.snapshot_store.kept
    task(daemon, "b", 2)
    with pytest.raises(CommandError, match=r"cannot delete a non stopped container: \{running 0"):
        ctr("containers delete", "b")


def test_tasks(daemon: MemoryDaemon, ctr: Run) -> None:
    container(daemon, "a")
    task(daemon, "a", 2)
    assert rows(ctr("tasks list")) == [["TASK", "PID", "STATUS"], ["a", "7", "RUNNING"]]
    ctr("tasks pause", "a")
    ctr("tasks resume", "a")
    ctr("tasks kill", "-s", "HUP", "--all", "a")
    sent = daemon.request("tasks.Kill")
    assert (sent.container_id, sent.signal, sent.all) == ("a", 1, True)
    with pytest.raises(CommandError, match="task must be stopped before deletion: running"):
        ctr("tasks delete", "a")
    ctr("tasks delete", "--force", "a")
    assert daemon.called()[-3:] == ["tasks.Kill", "tasks.Wait", "tasks.Delete"]
    with pytest.raises(CommandError, match="no running task found"):
        ctr("tasks delete", "a")


def test_a_container_of_an_image(daemon: MemoryDaemon, ctr: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "mount_all", lambda mounts, target: (_ for _ in ()).throw(OSError("no lab")))
    daemon.image("x:1", [b"one"], HOST, Cmd=["sh"], Env=["A=1"], Labels={"from": "image"}, StopSignal="SIGQUIT")
    ctr("containers create", "--label", "own=1", "--snapshotter-label", "s=t", "x:1", "c1", "date", "-u")
    made = daemon.container_store.kept["c1"]
    assert dict(made.labels) == {"own": "1", "from": "image", "io.containerd.image.config.stop-signal": "SIGQUIT"}
    spec = json.loads(made.spec.value)
    assert (spec["process"]["args"], spec["process"]["env"][-1]) == (["date", "-u"], "A=1")
    snapshot = daemon.snapshot_store.kept["c1"]
    assert (snapshot.parent, dict(snapshot.labels)) == (digest_of(b"one"), {"s": "t"})
    assert daemon.called().index("leased") < daemon.called().index("snapshots.Prepare")
    with pytest.raises(CommandError, match="already exists"):
        ctr("containers create", "x:1", "c1")


def test_a_container_that_cannot_be_made_leaves_no_snapshot(
    daemon: MemoryDaemon, ctr: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "mount_all", lambda mounts, target: (_ for _ in ()).throw(OSError("no lab")))
    daemon.image("x:1", [b"one"], HOST)
    with pytest.raises(CommandError, match="neither the image nor the command line names one"):
        ctr("containers create", "x:1", "c1")
    with pytest.raises(CommandError, match="'CAP_' prefix"):
        ctr("containers create", "--cap-add", "CHOWN", "x:1", "c1", "sh")
    assert "c1" not in daemon.snapshot_store.kept and not daemon.container_store.kept


def test_a_container_of_a_folder_or_of_a_specification(daemon: MemoryDaemon, ctr: Run, tmp_path: Path) -> None:
    ctr("containers create", "--rootfs", str(tmp_path), "c1", "sh")
    spec = json.loads(daemon.container_store.kept["c1"].spec.value)
    assert (spec["root"]["path"], spec["process"]["args"]) == (str(tmp_path), ["sh"])
    (tmp_path / "config.json").write_text('{"ociVersion": "1.0.0"}')
    ctr("containers create", "--config", str(tmp_path / "config.json"), "c2")
    assert json.loads(daemon.container_store.kept["c2"].spec.value) == {"ociVersion": "1.0.0"}
    with pytest.raises(CommandError, match="cannot load spec config file: open"):
        ctr("containers create", "--config", str(tmp_path / "none"), "c3")
    with pytest.raises(CommandError, match="container id must be provided"):
        ctr("containers create", "x:1")


def test_options_of_the_runtime() -> None:
    table = parse_table(main.load("run").table)
    given = parse(table, ["--runc-binary", "crun", "--runc-systemd-cgroup"])[0]
    assert b"crun" in run.runtime_options(given).value
    given["runtime"] = "io.containerd.kata.v2"
    with pytest.raises(CommandError, match="is only supported for"):
        run.runtime_options(given)
    other = parse(table, ["--runtime", "other", "--runtime-config-path", "/x"])[0]
    assert run.runtime_options(other).type_url == "runtimeoptions.v1.Options"
    assert run.runtime_options(parse(table, ["--runtime", "other"])[0]) is None
