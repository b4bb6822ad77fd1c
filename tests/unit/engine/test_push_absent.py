# SPDX-License-Identifier: Apache-2.0
"""A push of an index of which not all is here: the registry has the rest where the index came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from system.scripted_registry import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of, encode

from teu.engine.core.errors import EngineError
from teu.engine.images import absent, push
from teu.engine.images.store import Name
from teu.oci import distribution
from teu.oci.reference import Reference


class Registry:
    """Of many repositories; `mounts`: whether it gives one what another has, `denied` are closed to us."""

    def __init__(self, mounts: bool = True) -> None:
        self.mounts = mounts
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.denied: set[str] = set()
        self.moved: list[str] = []

    def resolve(self, repository: str, reference: str) -> Any:
        return self.manifest(repository, reference)[0]

    def manifest(self, repository: str, reference: str) -> tuple[Any, bytes]:
        if repository in self.denied:
            raise distribution.Unauthorized("denied", 403)
        if (repository, reference) not in self.manifests:
            raise distribution.NotFound("manifest unknown", 404)
        kind, data = self.manifests[repository, reference]
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}, data

    def has_blob(self, repository: str, digest: str) -> bool:
        return (repository, digest) in self.blobs

    def mount_blob(self, repository: str, digest: str, source: str) -> str:
        if not self.mounts:
            return "an address"
        self.blobs[repository, digest] = self.blobs[source, digest]
        return ""

    def blob(self, repository: str, descriptor: Any) -> Iterator[bytes]:
        yield self.blobs[repository, descriptor["digest"]]

    def upload(self, repository: str, descriptor: Any, content: Callable[[], Iterable[bytes]], address: str) -> None:
        assert address == "an address"
        self.moved.append(descriptor["digest"])
        self.blobs[repository, descriptor["digest"]] = b"".join(content())

    def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> None:
        assert reference == digest_of(data)
        self.manifests[repository, reference] = media_type, data

    def offer(self, repository: str, kind: str = OCI_MANIFEST) -> Any:
        blobs = b"{}", b"layer"
        for data in blobs:
            self.blobs[repository, digest_of(data)] = data
        parts = [
            {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
            for media_type, data in zip((OCI_CONFIG, OCI_LAYER), blobs, strict=True)
        ]
        document = {"schemaVersion": 2, "mediaType": kind, "config": parts[0], "layers": parts[1:]}
        if kind == OCI_INDEX:
            document = {"schemaVersion": 2, "mediaType": kind, "manifests": []}
        data = encode(document)
        self.manifests[repository, digest_of(data)] = kind, data
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}


@pytest.mark.parametrize("mounts", [True, False])
def test_it_comes_from_where_the_index_is_from(mounts: bool) -> None:
    registry: Any = Registry(mounts)
    wanted = registry.offer("box")
    registry.denied.add("closed")
    assert absent.brought(registry, "copy", wanted, ["none", "closed", "box"]) == "box"
    assert registry.manifests["copy", wanted["digest"]] == registry.manifests["box", wanted["digest"]]
    assert {digest for place, digest in registry.blobs if place == "copy"} == {
        digest for place, digest in registry.blobs if place == "box"
    }
    assert bool(registry.moved) is not mounts
    registry.moved.clear()
    assert absent.brought(registry, "copy", wanted, ["box"]) == ""
    assert not registry.moved


def test_nobody_has_it() -> None:
    registry: Any = Registry()
    wanted = registry.offer("box")
    assert absent.brought(registry, "copy", wanted, []) is None
    assert absent.brought(registry, "copy", wanted, ["other"]) is None
    index = registry.offer("box", OCI_INDEX)
    assert absent.brought(registry, "copy", index, ["box"]) is None


def test_what_the_push_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Any = Registry()
    wanted = registry.offer("box")
    labels = {"source.r.example": "app,box"}
    content = SimpleNamespace(info=lambda *_: SimpleNamespace(labels=labels), SOURCE_LABEL="source.")
    monkeypatch.setattr(push, "content", content)
    images: Any = SimpleNamespace(client=None)
    name = Name("r.example/app:1", wanted, {}, 0.0)
    reference = Reference("r.example", "app", "1", "")
    (message,) = push._bring(images, registry, reference, name, wanted)
    assert (message["status"], message["id"]) == ("Mounted from box", wanted["digest"][7:19])
    assert list(push._bring(images, registry, reference, name, wanted)) == []
    labels.clear()
    missing = {**wanted, "digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "s390x"}}
    with pytest.raises(EngineError, match=r"its manifest sha256:0+ \(linux/s390x\) is not here, nor at the registry"):
        list(push._bring(images, registry, reference, name, missing))
