# SPDX-License-Identifier: Apache-2.0
"""Manifests, indexes, configurations, platforms, chain ids."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from teu.oci import image_spec
from teu.oci.image_spec import Platform, SpecError

DIGEST = "sha256:" + "ab" * 32
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "config": {"mediaType": image_spec.OCI_CONFIG, "digest": DIGEST, "size": 2},
    "layers": [{"mediaType": image_spec.OCI_LAYER_GZIP, "digest": DIGEST, "size": 3}],
}


def test_chain_ids_are_those_of_the_specification() -> None:
    first, second = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    import hashlib

    joined = hashlib.sha256(f"{first} {second}".encode()).hexdigest()
    assert image_spec.chain_ids([first, second]) == [first, f"sha256:{joined}"]
    assert image_spec.chain_ids([]) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schemaVersion",), 1),
        (("config",), None),
        (("config", "digest"), "sha256:x"),
        (("config", "digest"), "md5:" + "a" * 32),
        (("config", "size"), -1),
        (("config", "size"), True),
        (("config", "size"), 1 << 40),
        (("layers",), {}),
        (("layers", 0, "digest"), "../../etc/passwd"),
        (("layers", 0, "mediaType"), None),
        (("layers", 0, "annotations"), {"a": 1}),
        (("manifests",), []),
    ],
)
def test_bad_manifests(path: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(MANIFEST)
    image_spec.manifest(document)
    where: Any = document
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    with pytest.raises(SpecError):
        image_spec.manifest(document)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"rootfs": {"type": "other"}},
        {"rootfs": {"diff_ids": ["x"]}},
        {"rootfs": {"diff_ids": [DIGEST]}},
        {"rootfs": {"diff_ids": []}, "config": {"Env": "x"}},
        {"rootfs": {"diff_ids": []}, "history": [1]},
    ],
)
def test_bad_configurations(document: Any) -> None:
    with pytest.raises(SpecError):
        image_spec.config(document, 0)


def test_platforms() -> None:
    assert image_spec.parse_platform("linux/aarch64") == Platform("linux", "arm64")
    assert image_spec.parse_platform("linux/arm64/v8") == Platform("linux", "arm64")
    assert image_spec.parse_platform("arm") == Platform("linux", "arm", "v7")
    for bad in ("", "a/b/c/d", "linux/", "linux/a b"):
        with pytest.raises(SpecError):
            image_spec.parse_platform(bad)


@pytest.mark.parametrize("variant", ["v²", "v٣", "v" + "9" * 5000, "v-1", "v", "v1_0"], ids=range(6))
def test_variants_that_are_no_number_run_nowhere(variant: str) -> None:
    offered = {"platform": {"os": "linux", "architecture": "amd64", "variant": variant}}
    assert image_spec.choose([offered], Platform("linux", "amd64", "v3")) == []
    arm = {"platform": {"os": "linux", "architecture": "arm", "variant": variant}}
    assert image_spec.choose([arm], Platform("linux", "arm", "v7")) == []


def test_choice_of_an_index() -> None:
    def entry(architecture: str, variant: str = "", **more: Any) -> dict[str, Any]:
        return {"platform": {"os": "linux", "architecture": architecture, "variant": variant}, **more}

    v6, v7, v5 = entry("arm", "v6"), entry("arm", "v7"), entry("arm", "v5")
    assert image_spec.choose([v5, v6, v7], Platform("linux", "arm", "v7")) == [v7, v6, v5]
    assert image_spec.choose([v5, v7], Platform("linux", "arm", "v6")) == [v5]
    assert image_spec.choose([entry("arm64", "v8")], Platform("linux", "arm64"))
    assert not image_spec.choose([entry("amd64", "v3")], Platform("linux", "amd64"))
    amd64, i386, arm64 = entry("amd64"), entry("386"), entry("arm64")
    assert image_spec.choose([i386, arm64, amd64], Platform("linux", "amd64")) == [amd64, i386]
    assert image_spec.choose([v5, i386, v7, arm64], Platform("linux", "arm64")) == [arm64, v7, v5]
    assert not image_spec.choose([amd64, arm64], Platform("linux", "386"))
    attestation = entry("amd64", annotations={"vnd.docker.reference.type": "attestation-manifest"})
    assert not image_spec.choose([attestation], Platform("linux", "amd64"))


@pytest.mark.parametrize("size", [-1, 1 << 63, 10**30, 1.0, True, "1", None])
def test_a_size_that_no_blob_has(size: object) -> None:
    """One of 64 bits ended a load in an internal error."""
    with pytest.raises(image_spec.SpecError, match="no valid size"):
        image_spec.check_descriptor({"mediaType": "a/b", "digest": "sha256:" + "0" * 64, "size": size}, "layer")
