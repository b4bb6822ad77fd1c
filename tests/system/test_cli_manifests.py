# SPDX-License-Identifier: Apache-2.0
"""`teu manifest` beside `docker manifest`, on Debian's registry: the same lists by digest, each other's stores, and
what other clients then find."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest

TEU = "/usr/bin/teu"
DOCKER = "application/vnd.docker."
OCI = "application/vnd.oci.image."

pytestmark = pytest.mark.needs("docker", "trixie")


def put(address: str, repository: str, data: bytes) -> dict[str, Any]:
    """A blob, and its descriptor without a type."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    begin = urllib.request.Request(f"http://{address}/v2/{repository}/blobs/uploads/", b"", method="POST")
    with urllib.request.urlopen(begin) as answer:
        place = answer.headers["Location"]
    place += ("&" if "?" in place else "?") + f"digest={digest}"
    kind = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(place, data, kind, method="PUT")).close()
    return {"size": len(data), "digest": digest}


def image(address: str, name: str, architecture: str, oci: bool) -> None:
    """A small image of that architecture, at REPOSITORY:TAG."""
    repository, _, tag = name.partition(":")
    config = json.dumps({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}})
    layer = put(address, repository, f"layer of {architecture}".encode())
    kinds = ("config.v1+json", "layer.v1.tar") if oci else ("container.image.v1+json", "image.rootfs.diff.tar.gzip")
    prefix, kind = (OCI, OCI + "manifest.v1+json") if oci else (DOCKER, DOCKER + "distribution.manifest.v2+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {"mediaType": prefix + kinds[0], **put(address, repository, config.encode())},
        "layers": [{"mediaType": prefix + kinds[1], **layer}],
    }
    data = json.dumps(manifest, indent=3).encode()
    url = f"http://{address}/v2/{repository}/manifests/{tag}"
    request = urllib.request.Request(url, data, {"Content-Type": kind}, method="PUT")
    urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    with peers.registry() as daemon:
        for kind in ("docker", "oci"):
            for architecture in ("amd64", "arm64"):
                image(daemon.address, f"{kind}/web:{architecture}", architecture, kind == "oci")
            image(daemon.address, f"{kind}/other:s390x", "s390x", kind == "oci")
        yield daemon.address


def run(program: str, config: Path, *words: str, code: int | None = 0) -> tuple[str, str, int]:
    done = peers.run(program, "manifest", *words, env={"DOCKER_CONFIG": str(config)}, code=code)
    return done.stdout, done.stderr, done.returncode


@pytest.mark.parametrize("kind", ["docker", "oci"])
def test_the_same_list(registry: str, kind: str, tmp_path: Path) -> None:
    found = []
    for program in ("docker", TEU):
        config = tmp_path / Path(program).name
        base = f"{registry}/{kind}"

        def call(*words: str, program: str = program, config: Path = config) -> str:
            return run(program, config, *words)[0]

        said = [call("create", "--insecure", f"{base}/web:all", f"{base}/web:amd64", f"{base}/web:arm64")]
        said.append(call("create", "--insecure", "-a", f"{base}/web:all", f"{base}/other:s390x"))
        words = ("--variant", "v8", "--os-features", "a", "--os-version", "1")
        said.append(call("annotate", *words, f"{base}/web:all", f"{base}/web:arm64"))
        said.append(call("inspect", f"{base}/web:all"))
        said.append(call("inspect", f"{base}/web:all", f"{base}/web:arm64"))
        said.append(
            json.dumps(json.loads(call("inspect", "-v", f"{base}/web:all", f"{base}/web:amd64")), sort_keys=True)
        )
        said.append(call("push", "--insecure", f"{base}/web:all"))
        said.append(call("inspect", "--insecure", f"{base}/web:amd64"))
        said.append(call("push", "--insecure", "-p", f"{base}/web:all"))
        said.append(call("inspect", "--insecure", f"{base}/web:all"))
        found.append(said)
    for theirs, ours in zip(*found, strict=True):
        assert ours == theirs
    raw = peers.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry}/{kind}/web:all").stdout
    pushed = json.loads(raw)
    assert [each["platform"]["architecture"] for each in pushed["manifests"]] == ["s390x", "amd64", "arm64"]
    assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" in found[0][6]


def test_a_list_of_one_is_the_others(registry: str, tmp_path: Path) -> None:
    base = f"{registry}/docker/web"
    for number, (maker, user) in enumerate((("docker", TEU), (TEU, "docker"))):
        config, name = tmp_path / str(number), f"{base}:shared{number}"
        run(maker, config, "create", "--insecure", name, f"{base}:amd64")
        run(user, config, "annotate", "--variant", "v2", name, f"{base}:amd64")
        run(user, config, "create", "--insecure", "--amend", name, f"{base}:arm64")
        assert run(maker, config, "inspect", name) == run(user, config, "inspect", name)
        digest = run(maker, config, "push", "--insecure", name)[0]
        assert run(user, config, "push", "--insecure", "--purge", name)[0] == digest
        assert "No such manifest" in run(maker, config, "rm", name, code=1)[1]


@pytest.mark.parametrize(
    "words",
    [
        "create --insecure BASE:twice BASE:amd64 | create --insecure BASE:twice BASE:arm64",
        "create --insecure BASE:none BASE:nosuch",
        "annotate --arch arm BASE:nolist BASE:amd64",
        "create --insecure BASE:odd BASE:amd64 | annotate --arch odd BASE:odd BASE:amd64",
        "rm BASE:nolist",
        "push --insecure BASE:nolist",
        "inspect --insecure BASE:nosuch",
        "create BASE:x",
        "create BASE:UPPER/x BASE:amd64",
    ],
)
def test_what_cannot_be(registry: str, words: str, tmp_path: Path) -> None:
    said = []
    for program in ("docker", TEU):
        last: tuple[str, str, int] = ("", "", 0)
        for line in words.replace("BASE", f"{registry}/docker/web").split(" | "):
            last = run(program, tmp_path / Path(program).name, *line.split(), code=None)
        said.append((last[0], re.sub(r"\b(docker|teu)\b(?!/)", "PROGRAM", last[1]), last[2]))
    assert said[1][2] == said[0][2] == 1
    assert said[1][0] == said[0][0]
    if "requires" not in said[0][1] and "invalid reference" not in said[0][1]:
        assert said[1][1] == said[0][1]
