# SPDX-License-Identifier: Apache-2.0
"""Containers that go on from checkpoints: which archives are taken, which are refused, and what must fit them."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import make_context, root_only
from test_cri_users import MAPPED

from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import Cancelled, DataLoss, Error, FailedPrecondition, InvalidArgument, NotFound
from teu.containerd.cri import checkpoint, podcheckpoint, restore
from teu.containerd.cri.handlers import Handler
from teu.containerd.cri.images import CHECKPOINT_ANNOTATIONS, Details, Image, is_checkpoint
from teu.containerd.cri.records import NAMESPACE
from teu.containerd.cri.restore import Restores, Saved, base_names, begin_log, compare, read, whiteouts
from teu.containerd.layers.checkpoint import ENTRIES_MAX, Archive
from teu.containerd.state import Context
from teu.oci import tar

ID = "sha256:" + "a" * 64
SPEC: dict[str, Any] = {
    "process": {
        "args": ["sleep", "1"],
        "env": ["A=1", "B=2"],
        "cwd": "/",
        "user": {"uid": 5, "gid": 6},
        "capabilities": {"bounding": ["CAP_KILL"]},
        "apparmorProfile": "x",
    },
    "mounts": [{"destination": "/proc"}, {"destination": "/data/"}],
    "linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/of/the/old"}], "seccomp": {"a": 1}},
}
MADE: dict[str, Any] = {
    "process": {**SPEC["process"], "env": ["B=2", "A=1"], "terminal": False, "noNewPrivileges": False},
    "mounts": [{"destination": "/data"}, {"destination": "/proc"}],
    "linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/of/the/new"}], "seccomp": {"b": 1}},
}
FILES: dict[str, bytes] = {
    "checkpoint/inventory.img": b"i",
    "checkpoint/pstree.img": b"p",
    "checkpoint/descriptors.json": b"[]",
    "checkpoint/pages-1.img": b"x" * 70_000,
    "config.dump": json.dumps({"rootfsImageRef": ID, "checkpointedTime": "2026-01-01T00:00:00Z"}).encode(),
    "spec.dump": json.dumps(SPEC).encode(),
    "container.log": b"line\n",
    "dump.log": b"of no meaning here",
    "artifacts/x": b"y",
}


def archive(files: Mapping[str, bytes], *more: tarfile.TarInfo) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as out:
        folder = tarfile.TarInfo("./checkpoint")
        folder.type = tarfile.DIRTYPE
        for info in (folder, *more):
            out.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return made.getvalue()


def entry(name: str, kind: bytes, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def taken(folder: Path, data: bytes, memory: int = 1 << 20) -> Archive:
    chunks = iter([data, b""])
    found = Archive(str(folder), memory)
    found.run(tar.Source(lambda: next(chunks)))
    return found


def test_what_is_taken_of_an_archive(tmp_path: Path) -> None:
    found = taken(tmp_path, archive({**FILES, "rootfs-diff.tar": b"d"}))
    names = {str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*") if one.is_file()}
    assert names == {name for name in FILES if name not in ("dump.log", "artifacts/x")} | {"rootfs-diff.tar"}
    assert found.difference == "sha256:18ac3e7343f016890c510e93f935261169d9e3f565436429830faf0934f4f8e4"
    assert (tmp_path / "checkpoint/pages-1.img").read_bytes() == FILES["checkpoint/pages-1.img"]
    assert all(one.stat().st_mode & 0o77 == 0 for one in tmp_path.rglob("*"))
    saved = read(str(tmp_path), found.difference)
    assert saved.arguments == ["sleep", "1"] and saved.at == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (entry("config.dump", tarfile.SYMTYPE, linkname="/etc/shadow"), "no plain file"),
        (entry("rootfs-diff.tar", tarfile.LNKTYPE, linkname="config.dump"), "no plain file"),
        (entry("checkpoint/pages-1.img", tarfile.BLKTYPE, devmajor=8), "no plain file"),
        (entry("checkpoint/x.img", tarfile.CHRTYPE, devmajor=1, devminor=3), "no plain file"),
        (entry("checkpoint/x.img", tarfile.FIFOTYPE), "no plain file"),
        (entry("checkpoint/parent", tarfile.SYMTYPE, linkname="../.."), "no plain file"),
        (entry("checkpoint/x.img", tarfile.DIRTYPE), "no plain file"),
        (entry("checkpoint/../../x.img", tarfile.REGTYPE), "climbs out"),
        (entry("checkpoint/a/b.img", tarfile.REGTYPE), "no name of a file of criu's"),
        (entry("checkpoint/.x", tarfile.REGTYPE), "no name of a file of criu's"),
        (entry("checkpoint/" + "x" * 201, tarfile.REGTYPE), "no name of a file of criu's"),
        (entry("config.dump", tarfile.REGTYPE), "twice"),
        (entry("./checkpoint//inventory.img", tarfile.REGTYPE), "twice"),
    ],
)
def test_archives_that_were_made_to_hurt(tmp_path: Path, more: tarfile.TarInfo, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        taken(tmp_path, archive(FILES, more))


@pytest.mark.parametrize(
    "files",
    [
        {"config.dump": b"x" * ((1 << 20) + 1)},
        {"checkpoint/pages-1.img": b"x" * (1 << 20), "checkpoint/pages-2.img": b"x" * (1 << 19)},
        {f"more/{number}": b"" for number in range(ENTRIES_MAX + 1)},
    ],
    ids=["document", "memory", "entries"],
)
def test_archives_that_ask_for_too_much(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="more than"):
        taken(tmp_path, archive(files))


def test_an_archive_that_ends_early(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unexpected end"):
        taken(tmp_path, archive(FILES)[:3000])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"config.dump": None}, "it has no config.dump"),
        ({"spec.dump": None}, "it has no spec.dump"),
        ({"spec.dump": b"{"}, "damaged: spec.dump"),
        ({"spec.dump": b"[" * 100_000}, "damaged: spec.dump"),
        ({"config.dump": b"[]"}, "config.dump is no object"),
        ({"checkpoint/inventory.img": None}, "inventory.img is missing"),
        ({"checkpoint/descriptors.json": None}, "descriptors.json is missing"),
    ],
)
def test_what_is_no_archive_of_a_checkpoint(tmp_path: Path, changed: dict[str, bytes | None], told: str) -> None:
    files = {name: data for name, data in {**FILES, **changed}.items() if data is not None}
    taken(tmp_path, archive(files))
    with pytest.raises(InvalidArgument, match=told):
        read(str(tmp_path), "")


def saved(spec: Any = None, **config: Any) -> Saved:
    return Saved("/x", "", config, SPEC if spec is None else spec)


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path; None: without it."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    *above, last = path.split(".")
    inside = copy
    for name in above:
        inside = inside[name]
    inside.pop(last, None)
    if value is not None:
        inside[last] = value
    return copy


def test_what_fits() -> None:
    compare(saved(), MADE, whole=True)
    compare(saved(), changed(changed(MADE, "process.args", ["other"]), "linux.seccomp", None))


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("process.terminal", True, "terminal"),
        ("process.user", {"uid": 0, "gid": 6}, "uid was 5, and is to be 0"),
        ("process.capabilities", {"bounding": []}, "CAP_KILL"),
        ("process.noNewPrivileges", True, "no_new_privs"),
        ("process.apparmorProfile", "y", "AppArmor"),
        ("linux.namespaces", [{"type": "mount"}, {"type": "network"}], "network namespace was 'a shared one'"),
        ("linux.namespaces", [{"type": "network", "path": "/x"}], "mount namespace was 'its own'"),
        ("mounts", [{"destination": "/proc"}], "needs mounts at /data"),
        ("mounts", [*MADE["mounts"], {"destination": "/new"}], "has no mounts at /new"),
    ],
)
def test_what_does_not_fit(path: str, value: Any, told: str) -> None:
    with pytest.raises(FailedPrecondition, match=told):
        compare(saved(), changed(MADE, path, value))


@pytest.mark.parametrize(("path", "value"), [("args", ["sleep", "2"]), ("env", ["A=1"]), ("cwd", "/tmp")])
def test_a_process_that_is_described_must_be_that_one(path: str, value: Any) -> None:
    with pytest.raises(FailedPrecondition, match=path):
        compare(saved(), changed(MADE, f"process.{path}", value), whole=True)


def test_less_than_the_checkpoint_says_is_not_given_back() -> None:
    with pytest.raises(FailedPrecondition, match="without a seccomp profile"):
        compare(saved(changed(SPEC, "linux.seccomp", None)), MADE)


@pytest.mark.parametrize(
    "path",
    ["process", "process.args", "process.user", "process.capabilities", "linux", "linux.namespaces", "mounts"],
)
@pytest.mark.parametrize("value", [7, "text", [7], {"a": 1}, ["\ud800"], ["a\0b"]])
def test_specifications_that_were_made_to_hurt(path: str, value: Any) -> None:
    found = saved(changed(SPEC, path, value))
    try:
        compare(found, MADE, whole=True)
        _ = found.arguments
    except (InvalidArgument, FailedPrecondition):
        pass


def test_texts_that_no_message_can_have() -> None:
    for bad in ("\ud800", "a\0b"):
        assert saved(checkpointedTime=bad).at == "" == saved(checkpointedTime=7).at
        with pytest.raises(InvalidArgument, match="no text"):
            _ = saved(changed(SPEC, "process.args", ["sh", bad])).arguments


def test_of_which_image_a_checkpoint_is() -> None:
    name = f"docker.io/library/x@{ID}"
    assert base_names({"rootfsImageRef": ID, "rootfsImageName": "x:1"}) == [ID]
    assert base_names({"rootfsImageRef": "a" * 64, "rootfsImageName": name}) == ["a" * 64, name]  # CRI-O's
    for bad in ({}, {"rootfsImageRef": "x:latest"}, {"rootfsImageRef": 7}, {"rootfsImageRef": "sha256:" + "g" * 64}):
        with pytest.raises(InvalidArgument, match="no image by its digest"):
            base_names(bad)


def test_files_that_were_deleted() -> None:
    with tarfile.open(fileobj=io.BytesIO(whiteouts(b'["/etc/x", "y", "a/./b/../c", "/"]'))) as layer:
        assert layer.getnames() == ["etc/.wh.x", ".wh.y", "a/.wh.c"]
    for bad in (b"{}", b'"x"', b"[7]", b'["../x"]', b"[", b'["a/../../x"]'):
        with pytest.raises(InvalidArgument, match=r"deleted\.files"):
            whiteouts(bad)


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (Handler("r", "/usr/sbin/runc"), "/usr/sbin/runc"),
        (Handler("c", "/usr/bin/crun"), "RuntimeClass"),
        (Handler("s", "/usr/sbin/runc", "io.containerd.runc.v2"), "under io.containerd.runc.v2"),
        (Handler("t", "/usr/sbin/teu-runc", "io.containerd.runc.v2"), "io.containerd.runc.v2"),
    ],
)
def test_runtimes_that_lose_what_criu_restores(handler: Handler, told: str) -> None:
    with pytest.raises(FailedPrecondition, match=told):
        restore.check(handler, cri.NamespaceOption())


def test_what_a_checkpoint_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CRIU", "sh")
    for handler in (Handler(""), Handler("t", "/usr/sbin/teu-runc")):
        restore.check(handler, cri.NamespaceOption())
    with pytest.raises(FailedPrecondition, match="user namespace"):
        restore.check(Handler(""), cri.NamespaceOption(userns_options=cri.UserNamespace(**MAPPED)))
    monkeypatch.setattr(checkpoint, "CRIU", "no-such-program")
    with pytest.raises(FailedPrecondition, match="install it"):
        restore.check(Handler(""), cri.NamespaceOption())


def test_logs_go_on(tmp_path: Path) -> None:
    folder, path = tmp_path / "c", tmp_path / "0.log"
    begin_log(str(folder), str(path))
    assert not path.exists()
    (folder / "saved").mkdir(parents=True)
    (folder / "saved/container.log").write_text("before\n")
    begin_log(str(folder), "")
    Path(f"{path}.restored").write_text("of a daemon that ended meanwhile")
    begin_log(str(folder), str(path))
    assert path.read_text() == "before\n" and path.stat().st_mode & 0o777 == 0o640
    path.write_text("of another start")
    begin_log(str(folder), str(path))
    assert path.read_text() == "of another start"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["0.log", "c"]


# With the stores


class Pulls:
    """Images that are here, and one that a registry has."""

    def __init__(self, here: Image | None, remote: Image | Error | None = None) -> None:
        self.here = here
        self.remote = remote
        self.pulled: list[str] = []

    def find(self, _name: str) -> Image | None:
        return self.here

    async def pull(self, name: str, _auth: Any) -> str:
        self.pulled.append(name)
        if isinstance(self.remote, Error):
            raise self.remote
        self.here = self.remote
        return ID


def image(layers: list[str] | None = None) -> Image:
    return Image(Details(ID, 1, "", {}, {}, layers))


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    made = make_context(tmp_path)
    yield made
    made.close()


def restores(context: Context, images: Any = None) -> Restores:
    return Restores(context, images)


@root_only
def test_an_archive_and_an_image_of_one(context: Context, tmp_path: Path) -> None:
    data = archive(FILES)
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    found = restores(context).take_apart(str(tmp_path / "c"), str(path), None)
    assert found.difference == "" and found.config["rootfsImageRef"] == ID
    packed = gzip.compress(data)
    with context.content.writer(NAMESPACE, "layer") as writer:
        writer.write(packed)
        digest = writer.digest
        writer.commit(len(packed), digest, {})
    found = restores(context).take_apart(str(tmp_path / "d"), "name", image([digest]))
    assert found.arguments == ["sleep", "1"]
    blob = context.content.path(digest)
    os.chmod(blob, 0o600)
    Path(blob).write_bytes(gzip.compress(archive({**FILES, "more": b""})))
    with pytest.raises(DataLoss):
        restores(context).take_apart(str(tmp_path / "e"), "name", image([digest]))
    for layers in ([], [digest, digest]):
        with pytest.raises(InvalidArgument, match="layers, and not one"):
            restores(context).take_apart(str(tmp_path / "f"), "name", image(layers))


@root_only
def test_paths_that_are_no_archives(context: Context, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("no archive, but longer than a header of one is" * 100)
    for name, kind in (
        ("none", NotFound),
        ("fifo", InvalidArgument),
        (".", InvalidArgument),
        ("text", InvalidArgument),
    ):
        with pytest.raises(kind, match=r"^checkpoint /"):
            restores(context).take_apart(str(tmp_path / f"to-{name}"), f"{tmp_path}/{name}", None)


@root_only
def test_a_root_file_system_becomes_that_of_the_checkpoint(context: Context, tmp_path: Path) -> None:
    snapshots = context.snapshots
    [mount] = snapshots.prepare(NAMESPACE, "overlayfs", "base-active", "", {})
    for name in ("kept", "white", "deleted"):
        Path(mount.source, name).write_text("old")
    snapshots.commit(NAMESPACE, "overlayfs", "base", "base-active", {})
    mounts = snapshots.prepare(NAMESPACE, "overlayfs", "c", "base", {})
    difference = archive({"new": b"new", ".wh.white": b""})
    files = {**FILES, "rootfs-diff.tar": difference, "deleted.files": b'["/deleted", "/none/at/all"]'}
    (tmp_path / "a.tar").write_bytes(archive(files))
    found = restores(context).take_apart(str(tmp_path / "c"), str(tmp_path / "a.tar"), None)
    restores(context).apply(found, mounts)
    after = snapshots.view(NAMESPACE, "overlayfs", "look", "base", {})
    out = tmp_path / "changes"
    with out.open("wb") as file:
        context.layers.compare(after, mounts, "", file.fileno())
    with tarfile.open(out) as layer:
        assert {"new", ".wh.white", ".wh.deleted"} <= set(layer.getnames()) and "kept" not in layer.getnames()
    assert not {"rootfs-diff.tar", "deleted.tar"} & set(os.listdir(found.folder))


def test_the_image_of_a_checkpoint(context: Context) -> None:
    named = f"x.example/y@{ID}"
    here, from_registry = Pulls(image()), Pulls(None, image())
    assert restores(context, here).found(saved(rootfsImageRef=ID)) is here.here
    assert restores(context, from_registry).found(saved(rootfsImageRef=named)) is None
    asyncio.run(restores(context, from_registry).pull_base(saved(rootfsImageRef="a" * 64, rootfsImageName=named)))
    assert from_registry.pulled == [named]
    refused = Pulls(None, FailedPrecondition("SignatureValidationFailed: by the policy"))
    with pytest.raises(FailedPrecondition, match="SignatureValidationFailed"):
        asyncio.run(restores(context, refused).pull_base(saved(rootfsImageRef=named)))
    with pytest.raises(NotFound, match="pull sha256"):
        asyncio.run(restores(context, refused).pull_base(saved(rootfsImageRef=ID)))
    with pytest.raises(InvalidArgument, match="one of a checkpoint itself"):
        restores(context, Pulls(image([ID]))).found(saved(rootfsImageRef=ID))


# Pods


def pack(folder: str, location: str) -> None:
    Path(location).write_text(Path(folder).name)


def configs(*names: str) -> list[Any]:
    return [cri.ContainerConfig(metadata={"name": name}) for name in names]


def test_a_folder_with_a_pod(tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.mkdir()
    podcheckpoint.check_empty(str(place))
    podcheckpoint.write(str(place), "p", [("a", "1"), ("b", "2")], ["/x/1", "/x/2"], pack, lambda: True)
    found = podcheckpoint.read(str(place), configs("b", "a"))
    assert [(config.metadata.name, Path(path).read_text()) for config, path in found] == [("b", "2"), ("a", "1")]
    with pytest.raises(InvalidArgument, match="empty"):
        podcheckpoint.check_empty(str(place))
    for names, kind in (
        (["a"], FailedPrecondition),
        (["a", "c"], FailedPrecondition),
        (["a", "a"], InvalidArgument),
        ([], InvalidArgument),
    ):
        with pytest.raises(kind, match="container_configs"):
            podcheckpoint.read(str(place), configs(*names))


def test_nothing_is_left_of_a_pod_that_nobody_wants(tmp_path: Path) -> None:
    answers = iter([True, True, False])
    with pytest.raises(Cancelled):
        podcheckpoint.write(str(tmp_path), "p", [("a", "1"), ("b", "2")], ["/1", "/2"], pack, lambda: next(answers))
    assert not os.listdir(tmp_path)

    def full(_folder: str, location: str) -> None:
        if len(os.listdir(tmp_path)) == 1:
            raise OSError(28, "full")
        Path(location).touch()

    with pytest.raises(OSError, match="full"):
        podcheckpoint.write(str(tmp_path), "p", [("a", "1"), ("b", "2")], ["/1", "/2"], full, lambda: True)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b'{"version": 2, "containers": []}',
        b'{"version": 1, "containers": {}}',
        b'{"version": 1, "containers": [7]}',
        b'{"version": 1, "containers": [{"name": "a", "id": 7}]}',
        b'{"version": 1, "containers": [{"name": "a", "id": "1"}, {"name": "a", "id": "2"}]}',
        b" " * (podcheckpoint.MANIFEST_MAX + 1),
    ],
)
def test_folders_that_are_no_pod(tmp_path: Path, text: bytes) -> None:
    (tmp_path / podcheckpoint.MANIFEST).write_bytes(text)
    with pytest.raises(InvalidArgument, match="checkpoint_path"):
        podcheckpoint.read(str(tmp_path), configs("a"))


def test_paths_of_pods(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    look: list[Callable[[str], object]] = [
        podcheckpoint.check_empty,
        lambda path: podcheckpoint.read(path, configs("a")),
    ]
    for bad in ("", "relative", f"{tmp_path}/none", f"{tmp_path}/link", f"{tmp_path}/file"):
        for function in look:
            with pytest.raises(InvalidArgument, match="_path"):
                function(bad)
    with pytest.raises(InvalidArgument, match="options: a, b"):
        podcheckpoint.check_options({"b": "1", "a": "2"})


def test_images_that_are_checkpoints() -> None:
    assert all(is_checkpoint({"annotations": {name: "c"}}) for name in CHECKPOINT_ANNOTATIONS)
    assert not any(map(is_checkpoint, ({}, {"annotations": None}, {"annotations": {"a": "b"}})))
