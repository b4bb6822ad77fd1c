# SPDX-License-Identifier: Apache-2.0
"""How a push sends layers: several at a time, no more than it may, and not one more after a failure."""

from __future__ import annotations

import threading
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from teu.engine.core.departure import NOBODY
from teu.engine.images import push
from teu.engine.images.store import Name
from teu.oci import distribution
from teu.oci.reference import Reference

if TYPE_CHECKING:
    from teu.oci.image_spec import Descriptor


def descriptor(number: int) -> Descriptor:
    return {"mediaType": "layer", "digest": f"sha256:{number:064x}", "size": 10}


class Registry:
    """Keeps what is sent once `together` are under way at the same time."""

    def __init__(self, together: int, refused: str = "") -> None:
        self.barrier = threading.Barrier(together)
        self.refused = refused
        self.sent: list[str] = []
        self.busy = self.most = 0
        self.lock = threading.Lock()
        self.aborted = threading.Event()

    def has_blob(self, path: str, digest: str) -> bool:
        return digest == descriptor(9)["digest"]

    def upload(self, path: str, blob: Descriptor, chunks: Any, address: str) -> None:
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        if blob["digest"] == self.refused:
            raise distribution.Unauthorized("no")
        if self.refused:
            assert self.aborted.wait(10)
            raise distribution.Aborted("aborted")
        self.barrier.wait(10)
        with self.lock:
            self.sent.append(blob["digest"])
            self.busy -= 1

    def abort(self) -> None:
        self.aborted.set()


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Any:
    content = types.SimpleNamespace(
        exists=lambda *_: True,
        info=lambda *_: types.SimpleNamespace(labels={}),
        label=lambda *_: None,
        chunks=lambda *_, **__: iter(()),
        source_label=lambda domain, path: {f"source.{domain}": path},
        SOURCE_LABEL="source.",
    )
    monkeypatch.setattr(push, "content", content)
    monkeypatch.setattr(push, "sources", lambda *_: {})
    return types.SimpleNamespace(client=None, settings={"max-concurrent-uploads": 2})


def messages(images: Any, registry: Registry, numbers: list[int]) -> Iterator[Any]:
    layers = [descriptor(number) for number in numbers]
    wanted = Reference("r.example", "app", "1", "")
    name = Name("r.example/app:1", descriptor(0), {}, 0.0)
    sent: Any = registry
    return push._Blobs(images, sent, wanted, name, push.Parts(layers, [descriptor(100)], []), NOBODY).messages()


def test_layers_go_together_as_many_as_may(images: Any) -> None:
    registry = Registry(2)
    told = list(messages(images, registry, [1, 2, 3, 1, 9]))
    assert registry.most == 2
    assert sorted(registry.sent) == [descriptor(number)["digest"] for number in (1, 2, 3, 100)]
    assert [one["status"] for one in told].count("Pushed") == 3, "nobody is told of the configuration"
    assert [one["status"] for one in told].count("Layer already exists") == 1


def test_the_first_failure_ends_the_others(images: Any) -> None:
    registry = Registry(1, refused=descriptor(2)["digest"])
    with pytest.raises(distribution.Unauthorized):
        list(messages(images, registry, [1, 2, 3, 4, 5]))
    assert registry.most <= 2 and not registry.sent


def test_who_stops_listening_stops_it(images: Any) -> None:
    registry = Registry(1, refused="none of these")
    going = messages(images, registry, [1, 2, 3])
    assert next(going)["status"] == "Pushing"
    going.close()  # type: ignore[attr-defined]
    assert registry.aborted.is_set() and not registry.sent
