# SPDX-License-Identifier: Apache-2.0
"""What is found in the store stays there: it is held before anybody looks. A collection that another client's removal
begins may come at any moment, so the order is what counts, here and in the two daemons' own pulls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from teu.containerd.transfer.job import Job
from teu.ctr import blobs
from teu.ctr.client import Client
from teu.engine.backend import containerd
from teu.engine.images import unpack


class Store:
    """A client's stubs, whose blob and snapshot are collected as soon as somebody has looked without holding them."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.lease = "mine"
        self.leases = SimpleNamespace(AddResource=self._hold)
        self.content = SimpleNamespace(Info=lambda request: self._look(request.digest))
        self.snapshots = SimpleNamespace(Stat=lambda request: self._look(request.key))
        self.missing: set[str] = set()

    def _hold(self, request: Any) -> None:
        assert request.id == "mine"
        self.held.append(f"{request.resource.type} {request.resource.id}")

    def _look(self, name: str) -> None:
        assert any(held.endswith(" " + name) for held in self.held), "it may be collected now"
        if name in self.missing:
            raise containerd.NotFound(name)

    hold = Client.hold


@pytest.fixture
def store() -> Any:
    return Store()


def test_a_blob(store: Any) -> None:
    assert blobs.kept(store, "sha256:1")
    assert store.held == ["content sha256:1"]
    store.lease, store.held = "", ["content sha256:1"]
    store.hold("content", "sha256:2")  # without a lease nothing can be held
    assert store.held == ["content sha256:1"]


def test_snapshots_of_the_engine(store: Any) -> None:
    """Each is held once, also those that are still to be made."""
    assert unpack.unpacked(store, "overlayfs", ["one", "two", "three"], "mine") == 2
    assert sorted(store.held) == [f"snapshots/overlayfs {chain}" for chain in ("one", "three", "two")]
    store.missing, store.held = {"two", "three"}, []
    assert unpack.unpacked(store, "overlayfs", ["one", "two", "three"], "mine") == 0
    assert sorted(store.held) == [f"snapshots/overlayfs {chain}" for chain in ("one", "three", "two")]
    store.missing = {"one", "two", "three"}
    assert unpack.unpacked(store, "overlayfs", ["one", "two", "three"], "mine") == -1
    assert unpack.unpacked(store, "overlayfs", [], "mine") == -1


def test_a_snapshot_of_a_transfer(store: Any) -> None:
    def add(namespace: str, lease: str, resource: Any) -> None:
        store._hold(SimpleNamespace(id=lease, resource=resource))

    parts = SimpleNamespace(
        snapshots=SimpleNamespace(stat=lambda namespace, snapshotter, chain: store._look(chain)),
        leases=SimpleNamespace(add=add),
    )
    job: Any = SimpleNamespace(namespace="default", lease="mine", parts=parts)
    assert Job._snapshot_exists(job, "overlayfs", "chain")
    assert store.held == ["snapshots/overlayfs chain"]
