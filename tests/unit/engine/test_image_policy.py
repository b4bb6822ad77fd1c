# SPDX-License-Identifier: Apache-2.0
"""The policy for images, where teud pulls: it is asked before anything is stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import signatures as made
from system.scripted_registry import ScriptedRegistry, tar

from teu.engine.core.errors import EngineError, Forbidden
from teu.engine.images import pull, registries
from teu.engine.images.platforms import Choice
from teu.engine.plugins import bundles
from teu.oci import distribution, reference


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRegistry]:
    monkeypatch.setattr(distribution, "BACKOFF_SECONDS", 0.01)
    with ScriptedRegistry() as started:
        yield started


class Stored(Exception):
    """Something was asked of containerd."""


class Nothing:
    """A client of containerd's that is not to be asked anything."""

    def __getattr__(self, name: str) -> Any:
        raise Stored(name)


def images(policy: Path, **more: Any) -> Any:
    return SimpleNamespace(settings={"image-policy": str(policy)}, client=Nothing(), by_target=False, **more)


def pulled(server: ScriptedRegistry, policy: Path, tag: str = "1", every: bool = False, **more: Any) -> list[Any]:
    wanted = reference.parse(f"{server.address}/app:{tag}")
    return list(pull.pull(images(policy, **more), wanted, Choice(), "", every))


def test_a_refused_image_leaves_nothing(server: ScriptedRegistry, tmp_path: Path) -> None:
    server.image("app", "1", tar(("file", b"x")))
    policy = tmp_path / "policy.yaml"
    policy.write_text("default: {require: reject}\n")
    with pytest.raises(Forbidden) as caught:
        pulled(server, policy)
    assert str(caught.value) == f"{server.address}/app:1 is refused by {policy}:1: default: it lets no image in"
    assert not [path for _, path, _ in server.requests if "/blobs/" in path]


def test_a_signed_image_goes_on(server: ScriptedRegistry, tmp_path: Path) -> None:
    key, image = made.new_key(), server.image("app", "1", tar(("file", b"x")))
    (tmp_path / "k.pub").write_bytes(made.public_pem(key))
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"default: {{cosign: {{keys: [{tmp_path}/k.pub]}}}}\n")
    with pytest.raises(Forbidden, match=r"policy.yaml:1: default.cosign: there is nothing of that kind"):
        pulled(server, policy)
    manifest, blobs = made.artifact([made.simple_layer(key, made.payload(image["digest"], f"{server.address}/app"))])
    for data in blobs:
        server.put(data)
    server.manifest("app", image["digest"].replace(":", "-") + ".sig", made.OCI_MANIFEST, manifest)
    with pytest.raises(Stored):
        pulled(server, policy)


def test_one_that_is_here_is_looked_at_again(server: ScriptedRegistry, tmp_path: Path) -> None:
    """Without a policy what is here is up to date, and nobody looks further."""
    image = server.image("app", "1", tar(("file", b"x")))
    policy = tmp_path / "policy.yaml"
    here = {"get_name": lambda name: SimpleNamespace(target=image), "of": lambda name: details}
    details = SimpleNamespace(manifest_digest=image["digest"], chain_id="")
    assert pulled(server, policy, **here)[-1]["status"] == f"Status: Image is up to date for {server.address}/app:1"
    policy.write_text("default: {require: reject}\n")
    with pytest.raises(Forbidden):
        pulled(server, policy, **here)


def test_a_registry_that_does_not_tell_is_an_error(server: ScriptedRegistry, tmp_path: Path) -> None:
    server.image("app", "1", tar(("file", b"x")))
    (tmp_path / "k.pub").write_bytes(made.public_pem(made.new_key()))
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"default: {{cosign: {{keys: [{tmp_path}/k.pub]}}}}\n")
    server.hook = lambda _method, path: 1 // 0 if path.endswith(".sig") else None
    with pytest.raises(EngineError, match="EOF"):
        pulled(server, policy)


def test_what_is_only_to_be_told_is_logged(
    server: ScriptedRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.image("app", "1", tar(("file", b"x")))
    store = tmp_path / "x509/ca/acme"
    store.mkdir(parents=True)
    (store / "root.pem").write_bytes(made.Certified(authority=True).pem)
    policy = tmp_path / "policy.yaml"
    notation = "{trust-stores: ['ca:acme'], identities: ['*'], level: audit}"
    policy.write_text(f"trust-store: {tmp_path}\ndefault: {{notation: {notation}}}\n")
    with caplog.at_level(logging.WARNING, "teu.engine"), pytest.raises(Stored):
        pulled(server, policy)
    assert "the policy lets it in, and: there is no signature of the Notary Project's" in caplog.text


def test_plugins_are_images_of_registries_too(server: ScriptedRegistry, tmp_path: Path) -> None:
    document = {
        "schemaVersion": 2,
        "mediaType": made.OCI_MANIFEST,
        "config": {"mediaType": bundles.CONFIG_TYPE, "digest": server.put(b"{}"), "size": 2},
        "layers": [],
    }
    server.manifest("plug", "1", made.OCI_MANIFEST, document)
    policy = tmp_path / "policy.yaml"
    policy.write_text("default: {require: reject}\n")
    wanted = reference.parse(f"{server.address}/plug:1")
    settings: Any = {"image-policy": str(policy)}
    with registries.to_pull(settings, wanted.domain, "", bundles.RESOURCE) as source:
        with pytest.raises(Forbidden, match="it lets no image in"):
            bundles.look(settings, source, wanted)
