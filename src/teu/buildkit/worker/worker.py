# SPDX-License-Identifier: Apache-2.0
"""The one worker of this host: core.snapshots.Worker over containerd and cache.db. Made by the daemon."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from teu.buildkit.cache.store import Store
from teu.buildkit.core import errors
from teu.buildkit.core.op import Record
from teu.buildkit.core.snapshots import Active, Content, Images, Kind, Layer, Snapshot
from teu.buildkit.worker.client import Client


class ContainerdWorker:
    """`root`: a folder of the builder's own, for mounts. `labels` are told to clients beside the worker's own."""

    def __init__(
        self,
        client: Client,
        store: Store,
        root: str,
        *,
        snapshotter: str = "overlayfs",
        labels: Mapping[str, str] | None = None,
        platforms: Sequence[str] = (),
    ) -> None:
        self.client = client
        self.store = store
        self.root = root
        self.snapshotter = snapshotter
        self._labels = dict(labels or {})
        self._platforms = tuple(platforms)

    def start(self) -> None:
        """Bring records and containerd together after a crash. Before anything else is called."""
        raise errors.Unimplemented("start")

    def close(self) -> None:
        """Let go of what is held; nothing is called afterwards."""

    @property
    def id(self) -> str:
        raise errors.Unimplemented("id")

    @property
    def labels(self) -> Mapping[str, str]:
        return self._labels

    @property
    def platforms(self) -> Sequence[str]:
        return self._platforms

    @property
    def content(self) -> Content:
        raise errors.Unimplemented("content")

    @property
    def images(self) -> Images:
        raise errors.Unimplemented("images")

    def load(self, record: Record) -> Snapshot:
        raise errors.Unimplemented("load")

    def find(self, kind: str, **data: Any) -> list[str]:
        raise errors.Unimplemented("find")

    def active(self, parent: Snapshot | None, kind: Kind) -> Active:
        raise errors.Unimplemented("active")

    def reopen(self, id: str) -> Active | None:
        raise errors.Unimplemented("reopen")

    def image(self, layers: Sequence[Layer], kind: Kind) -> Snapshot | None:
        raise errors.Unimplemented("image")

    def merge(self, inputs: Sequence[Snapshot | None], kind: Kind) -> Snapshot | None:
        raise errors.Unimplemented("merge")

    def diff(self, lower: Snapshot | None, upper: Snapshot | None, kind: Kind) -> Snapshot | None:
        raise errors.Unimplemented("diff")

    def open_blob(self, snapshot: Snapshot, descriptor: dict[str, Any]) -> Any:
        raise errors.Unimplemented("open_blob")

    def hold(self) -> AbstractContextManager[Collection[str]]:
        raise errors.Unimplemented("hold")
