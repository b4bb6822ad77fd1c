# SPDX-License-Identifier: Apache-2.0
"""How much a container may write into its root, and what is said where there can be no limit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakequota import ProjectQuotas

from teu.api.services.introspection.v1 import introspection_pb2
from teu.api.services.snapshots.v1 import snapshots_pb2
from teu.engine.backend import containerd
from teu.engine.containers import storage
from teu.engine.core.errors import EngineError
from teu.engine.lifecycle import create
from teu.engine.views import system
from teu.oci.labels import SIZE, SIZES

MEGABYTE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectQuotas:
    return ProjectQuotas(monkeypatch, str(tmp_path))


@pytest.mark.parametrize(
    ("given", "default", "size"),
    [
        (None, 0, 0),
        ({}, 5, 5),
        ({"size": "1m"}, 5, MEGABYTE),
        ({"Size": "1.5 GiB"}, 0, 1536 * MEGABYTE),
        ({"size": "0"}, 5, 0),
    ],
)
def test_the_size_of_a_container(given: Any, default: int, size: int) -> None:
    assert storage.size(given, {"default-storage-size": default}) == size


@pytest.mark.parametrize(
    ("given", "says"),
    [({"size": "much"}, "invalid size: 'much'"), ({"size": ""}, "invalid size"), ({"inodes": "5"}, "unknown option")],
)
def test_what_is_no_size_has_dockers_status(given: dict[str, str], says: str) -> None:
    with pytest.raises(EngineError, match=says) as error:
        storage.size(given, {"default-storage-size": 0})
    assert error.value.status == 500


class Containerd:
    """Its snapshots and its introspection; `knows`: whether the snapshotter limits."""

    def __init__(self, knows: bool = True, refuses: str = "") -> None:
        self.asked: list[Any] = []
        self.snapshots = SimpleNamespace(Prepare=self._prepare)
        self.introspection = SimpleNamespace(Plugins=self._plugins)
        self._knows, self._refuses = knows, refuses
        self.root = ""

    def _plugins(self, request: Any, timeout: float) -> Any:
        assert timeout == 5
        assert list(request.filters) == ["type==io.containerd.snapshotter.v1,id==overlayfs"]
        plugin = introspection_pb2.Plugin(id="overlayfs", capabilities=[SIZES] if self._knows else ["rebase"])
        plugin.exports["root"] = self.root
        return introspection_pb2.PluginsResponse(plugins=[plugin])

    def _prepare(self, request: Any, lease: str = "") -> Any:
        self.asked.append(request)
        if self._refuses:
            raise containerd.FailedPrecondition(self._refuses)
        return snapshots_pb2.PrepareSnapshotResponse()


def prepared(behind: Containerd, option: dict[str, str] | None, default: int = 0) -> dict[str, str]:
    """The labels of the snapshot that was asked for."""
    engine: Any = SimpleNamespace(
        containerd=behind, config={"storage-driver": "overlayfs", "default-storage-size": default}
    )
    container: Any = SimpleNamespace(
        id="c1", created="now", snapshot_key="c1", host_config=SimpleNamespace(storage_opt=option)
    )
    create.prepare(engine, container, SimpleNamespace(id="sha256:1", chain_id="sha256:2"))  # type: ignore[arg-type]
    return dict(behind.asked[-1].labels)


def test_the_snapshot_is_asked_for_with_its_size() -> None:
    assert prepared(Containerd(), {"size": "1m"})[SIZE] == str(MEGABYTE)
    assert prepared(Containerd(), None, 4096)[SIZE] == "4096"
    assert SIZE not in prepared(Containerd(), {"size": "0"}, 4096)
    assert SIZE not in prepared(Containerd(knows=False), None)


def test_a_snapshotter_without_sizes_is_not_asked() -> None:
    behind = Containerd(knows=False)
    with pytest.raises(EngineError, match="^--storage-opt is not supported for overlayfs: .*volume") as error:
        prepared(behind, {"size": "1m"})
    assert error.value.status == 500 and not behind.asked
    with pytest.raises(EngineError, match="^default-storage-size in teud.yaml asks for what there is not"):
        prepared(behind, None, 4096)


def test_without_quotas_it_is_said_why() -> None:
    behind = Containerd(refuses="the ext4 at / is without project quotas: mount it")
    with pytest.raises(EngineError) as error:
        prepared(behind, {"size": "1m"})
    assert str(error.value).startswith("--storage-opt is supported only for overlay over xfs")
    assert str(error.value).endswith("the ext4 at / is without project quotas: mount it")
    assert error.value.status == 500
    with pytest.raises(containerd.FailedPrecondition):
        prepared(behind, None)


def told(behind: Containerd, root: str) -> dict[str, str]:
    """DriverStatus of GET /info."""
    behind.root = root
    engine: Any = SimpleNamespace(containerd=behind, config={"storage-driver": "overlayfs"})
    return dict(system._storage(engine))


def test_info_says_whether_there_can_be_limits(tmp_path: Path, disk: ProjectQuotas) -> None:
    assert told(Containerd(), str(tmp_path))["Supports size"] == "true"
    assert told(Containerd(), str(tmp_path))["Backing Filesystem"] in system.FILE_SYSTEMS.values()
    assert told(Containerd(knows=False), str(tmp_path))["Supports size"] == "false"
    disk.state = 0
    assert told(Containerd(), str(tmp_path))["Supports size"] == "false"
    for nowhere in ("", "/nowhere"):
        assert told(Containerd(), nowhere) == {"driver-type": "io.containerd.snapshotter.v1"}
