# SPDX-License-Identifier: Apache-2.0
"""Archives of containers that are saved while they run: what is in them, and what cannot be saved."""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from containerd_parts import make_context
from test_cri_users import MAPPED

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.services.containers.v1 import containers_pb2
from teu.api.types.runc.options import oci_pb2
from teu.containerd.core.errors import DeadlineExceeded, Error, FailedPrecondition, InvalidArgument, Unknown
from teu.containerd.cri import checkpoint
from teu.containerd.cri.checkpoint import Checkpointer, described, go_json, moment, pack
from teu.containerd.cri.records import EXITED, NAMESPACE, RUNNING, Container, Pod
from teu.containerd.state import Context

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def container(state: int = RUNNING, **fields: Any) -> Container:
    pod = Pod("p" * 64, cri.PodSandboxConfig(metadata={"name": "p", "namespace": "n", "uid": "u"}))
    config = cri.ContainerConfig(metadata={"name": "c", "attempt": 2})
    made = Container("c" * 64, pod, config, created=1_700_000_000_000_000_005, state=state, snapshotter="overlayfs")
    for name, value in fields.items():
        setattr(made, name, value)
    return made


STATUS = cri.ContainerStatus(
    id="c",
    metadata={"name": "c", "attempt": 2},
    state=cri.CONTAINER_RUNNING,
    created_at=1 << 60,
    image={"image": "name:tag"},
    image_ref="name@sha256:x",
    labels={"a": "b"},
    mounts=[{"container_path": "/x", "readonly": True}],
    user={"linux": {"uid": 5, "supplemental_groups": [1, 2]}},
)


def test_moments() -> None:
    assert moment(1_700_000_000_000_000_005) == "2023-11-14T22:13:20.000000005Z"


def test_structures_as_go_writes_them() -> None:
    assert go_json(STATUS) == {
        "id": "c",
        "metadata": {"name": "c", "attempt": 2},
        "state": 1,
        "created_at": 1 << 60,
        "image": {"image": "name:tag"},
        "image_ref": "name@sha256:x",
        "labels": {"a": "b"},
        "mounts": [{"container_path": "/x", "readonly": True}],
        "user": {"linux": {"uid": 5, "supplemental_groups": [1, 2]}},
    }
    json.dumps(go_json(STATUS))


def test_whose_it_is() -> None:
    told = described(container(), STATUS, 1_700_000_001_000_000_000)["config.dump"]
    assert told["id"] == "c" * 64 and told["name"] == "c_p_n_u_2" and told["rootfsImageRef"] == "name@sha256:x"
    assert told["createdTime"] < told["checkpointedTime"] == "2023-11-14T22:13:21.000000000Z"


def test_archives_are_whole(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint/pages-1.img").write_bytes(b"x" * 100_000)
    (folder / "config.dump").write_text("{}")
    place = tmp_path / "a.tar"
    Path(f"{place}.tmp").write_text("of a daemon that ended while it wrote")
    pack(str(folder), str(place))
    assert place.stat().st_mode & 0o777 == 0o600
    with tarfile.open(place) as archive:
        assert archive.getnames() == ["checkpoint", "checkpoint/pages-1.img", "config.dump"]
    with pytest.raises(FileNotFoundError):
        pack(str(tmp_path / "none"), str(tmp_path / "b.tar"))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.tar", "folder"]


@pytest.fixture
def criu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CRIU", "sh")


def refused(made: Container, location: str = "/x/y.tar", timeout: int = 0) -> Error:
    context: Any = SimpleNamespace()
    with pytest.raises(Error) as caught:
        asyncio.run(Checkpointer(context).save(made, STATUS, location, timeout))
    return caught.value


def test_containers_that_cannot_be_saved(criu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(refused(container(EXITED)), FailedPrecondition)
    mapped = container()
    mapped.pod.config.linux.security_context.namespace_options.userns_options.CopyFrom(cri.UserNamespace(**MAPPED))
    assert "user namespace" in refused(mapped).message
    for bad in ("", "y.tar", "/x/"):
        assert isinstance(refused(container(), bad), InvalidArgument)
    assert isinstance(refused(container(), timeout=-1), InvalidArgument)
    monkeypatch.setattr(checkpoint, "CRIU", "no-such-program")
    assert "install it" in refused(container()).message


class Tasks:
    """What is asked of the tasks, in its order."""

    def __init__(self, seconds: float = 0.0, failure: Error | None = None) -> None:
        self.asked: list[str] = []
        self._seconds = seconds
        self._failure = failure

    async def get(self, _namespace: str, _id: str) -> Any:
        return SimpleNamespace(pid=77)

    async def pause(self, _namespace: str, _id: str) -> None:
        self.asked.append("pause")

    async def resume(self, _namespace: str, _id: str) -> None:
        self.asked.append("resume")

    async def checkpoint(self, _namespace: str, _id: str, packed: Any) -> None:
        self.asked.append("checkpoint")
        options = oci_pb2.CheckpointOptions.FromString(packed.value)
        assert not options.exit and options.image_path == f"{options.work_path}/checkpoint"
        Path(options.image_path, "core-1.img").write_text("x")
        Path(options.work_path, "dump.log").write_text("log")
        await asyncio.sleep(self._seconds)
        if self._failure:
            raise self._failure


class Rig:
    """A container over an image, with a change and a log; its tasks are those above."""

    def __init__(self, folder: Path, tasks: Tasks) -> None:
        self.context: Context = make_context(folder)
        snapshots = self.context.snapshots
        [mount] = snapshots.prepare(NAMESPACE, "overlayfs", "base-active", "", {})
        Path(mount.source, "old").write_text("old")
        snapshots.commit(NAMESPACE, "overlayfs", "base", "base-active", {})
        (folder / "log").write_text("line\n")
        self.container = container(log_path=str(folder / "log"))
        [mount] = snapshots.prepare(NAMESPACE, "overlayfs", self.container.id, "base", {})
        upper = next(one[9:] for one in mount.options if one.startswith("upperdir="))
        Path(upper, "new").write_text("new")
        record = containers_pb2.Container(id=self.container.id)
        record.runtime.name, record.spec.value = "x", b'{"ociVersion": "1.1.0"}'
        self.context.containers.create(NAMESPACE, record)
        self.context.tasks = tasks  # type: ignore[assignment]
        self.checkpointer = Checkpointer(self.context)

    def close(self) -> None:
        assert [one.name for one in self.context.snapshots.find(NAMESPACE, "overlayfs")] == ["base", "c" * 64]
        assert not self.context.leases.find(NAMESPACE)
        assert os.listdir(os.path.join(self.context.root, "checkpoints")) == []
        self.context.close()


@needs_root
def test_an_archive(criu: None, tmp_path: Path) -> None:
    tasks = Tasks()
    rig = Rig(tmp_path, tasks)
    place = tmp_path / "a.tar"
    asyncio.run(rig.checkpointer.save(rig.container, STATUS, str(place), 30))
    assert tasks.asked == ["pause", "checkpoint", "resume"]
    with tarfile.open(place) as archive:
        names = set(archive.getnames())
        assert names >= {"checkpoint/core-1.img", "config.dump", "spec.dump", "status.dump", "status", "dump.log"}

        def text(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

        assert json.loads(text("spec.dump")) == {"ociVersion": "1.1.0"} and text("container.log") == b"line\n"
        assert json.loads(text("status"))["Pid"] == 77 and json.loads(text("status.dump"))["image_ref"]
        (tmp_path / "diff.tar").write_bytes(text("rootfs-diff.tar"))
    with tarfile.open(tmp_path / "diff.tar") as archive:
        assert "new" in archive.getnames() and "old" not in archive.getnames()
    rig.close()


@needs_root
def test_a_container_goes_on_after_a_failure(criu: None, tmp_path: Path) -> None:
    tasks = Tasks(failure=Unknown("criu failed"))
    rig = Rig(tmp_path, tasks)
    for _ in range(2):  # it may be tried again
        with pytest.raises(Unknown, match="criu failed"):
            asyncio.run(rig.checkpointer.save(rig.container, STATUS, str(tmp_path / "a.tar"), 0))
    assert tasks.asked == ["pause", "checkpoint", "resume"] * 2 and not (tmp_path / "a.tar").exists()
    rig.close()


@needs_root
def test_one_that_takes_too_long(criu: None, tmp_path: Path) -> None:
    tasks = Tasks(seconds=1.3)
    rig = Rig(tmp_path, tasks)

    async def run() -> None:
        save = rig.checkpointer.save
        with pytest.raises(DeadlineExceeded):
            await save(rig.container, STATUS, str(tmp_path / "a.tar"), 1)
        with pytest.raises(FailedPrecondition, match="another checkpoint"):
            await save(rig.container, STATUS, str(tmp_path / "b.tar"), 1)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others)

    asyncio.run(run())
    assert tasks.asked == ["pause", "checkpoint", "resume"]
    assert not (tmp_path / "a.tar").exists()  # nobody wants it any more
    rig.close()
