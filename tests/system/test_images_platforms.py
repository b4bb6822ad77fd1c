# SPDX-License-Identifier: Apache-2.0
"""Images of several platforms, made here, at Debian's registry: pulled, run, pushed, saved and loaded by teud with ids
of configurations and of targets, beside dockerd with its own store and with containerd's. And pulls that go on after
the death of a daemon."""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import images
import peers
import pytest
import whole
from scripted_registry import OCI_INDEX, OCI_MANIFEST, ScriptedRegistry, compressed, digest_of, encode, tar
from whole import out, teu

SETTINGS = Path("/etc/teu/teud.yaml.d/test-platforms.yaml")
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
HOST = {"x86_64": "amd64", "aarch64": "arm64"}[out("uname", "-m")]
OTHER, THIRD = "s390x", "riscv64"  # nobody emulates them: their images have the host's programs

pytestmark = [pytest.mark.needs("docker-registry"), pytest.mark.timeout(300)]


def restart(text: str) -> None:
    SETTINGS.parent.mkdir(exist_ok=True)
    if text:
        SETTINGS.write_text(text)
    else:
        SETTINGS.unlink(missing_ok=True)
    whole.call("systemctl", "restart", "teud.service")


@pytest.fixture(scope="module", params=["config", "target"])
def ids(request: pytest.FixtureRequest) -> Iterator[str]:
    images.need_busybox()
    restart(f"image-ids: {request.param}\n")
    yield str(request.param)
    restart("")


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    """Its address."""
    with peers.registry() as real:
        yield real.address


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    whole.remove_everything()
    for name in images.ctr("images", "ls", "-q"):
        if "127.0.0.1" in name or name.startswith("dangling@"):
            images.ctr("images", "rm", "--sync", name)


class Offered(NamedTuple):
    """An image of three platforms at a registry, and the digests of what it has."""

    name: str
    index: str
    manifests: dict[str, str]
    configs: dict[str, str]
    attestation: str


def asked(address: str, method: str, path: str, body: bytes = b"", kind: str = "") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(address, timeout=60)
    headers = {"Content-Type": kind} if kind else {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}"}
    connection.request(method, path, body or None, headers)
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def upload(address: str, repository: str, data: bytes) -> dict[str, Any]:
    """A blob; what a descriptor says of it."""
    begun = asked(address, "POST", f"/v2/{repository}/blobs/uploads/")
    location = str(begun.headers["Location"]).partition(address)[2] or str(begun.headers["Location"])
    mark = "&" if "?" in location else "?"
    done = asked(address, "PUT", f"{location}{mark}digest={digest_of(data)}", data, "application/octet-stream")
    assert done.status == 201, done.status
    return {"digest": digest_of(data), "size": len(data)}


def document(address: str, repository: str, where: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    data = encode(value)
    done = asked(address, "PUT", f"/v2/{repository}/manifests/{where or digest_of(data)}", data, kind)
    assert done.status == 201, done.body  # type: ignore[attr-defined]
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}


def offer(address: str, repository: str) -> Offered:
    """The host's platform and two others, with an attestation of the host's."""
    entries, manifests, configs = [], {}, {}
    for architecture in (OTHER, HOST, THIRD):
        layers = [images.busybox_layer(), tar(("etc/architecture", architecture.encode()))]
        config = {
            "architecture": architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
            "history": [{"created_by": f"{architecture} {number}"} for number in range(2)],
        }
        packed = [upload(address, repository, compressed(layer, "gzip")) for layer in layers]
        value = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": CONFIG, **upload(address, repository, encode(config))},
            "layers": [{"mediaType": LAYER, **layer} for layer in packed],
        }
        made = document(address, repository, "", OCI_MANIFEST, value)
        entries.append({**made, "platform": {"architecture": architecture, "os": "linux"}})
        manifests[architecture], configs[architecture] = made["digest"], value["config"]["digest"]
    unknown = {"architecture": "unknown", "os": "unknown", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
    statement = upload(address, repository, b'{"_type":"https://in-toto.io/Statement/v0.1","predicate":{}}')
    attestation = document(
        address,
        repository,
        "",
        OCI_MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": CONFIG, **upload(address, repository, encode(unknown))},
            "layers": [{"mediaType": "application/vnd.in-toto+json", **statement}],
        },
    )
    annotations = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": manifests[HOST],
    }
    unknown_platform = {"architecture": "unknown", "os": "unknown"}
    entries.append({**attestation, "annotations": annotations, "platform": unknown_platform})
    index = document(
        address, repository, "1", OCI_INDEX, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    )
    name = f"{address}/{repository}:1"
    return Offered(name, index["digest"], manifests, configs, attestation["digest"])


def at_registry(address: str, repository: str, tag: str = "1") -> str:
    """The digest of a tag."""
    found = asked(address, "HEAD", f"/v2/{repository}/manifests/{tag}")
    assert found.status == 200, found.status
    return str(found.headers["Docker-Content-Digest"])


def inspected(name: str, *flags: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out("teu", "image", "inspect", *flags, name))[0]
    return found


def here(name: str) -> set[str]:
    """Which architectures are here as a whole, and "attestation"."""
    status, found = images.api("GET", f"/images/{name}/json?manifests=1")
    assert status == 200, found
    return {
        one["ImageData"]["Platform"]["architecture"] if one["Kind"] == "image" else one["Kind"]
        for one in found["Manifests"]
        if one["Available"]
    }


def test_pull_run_and_remove(ids: str, registry: str) -> None:
    box = offer(registry, "box")
    teu("pull", box.name)
    assert here(box.name) == {HOST}
    read = ("busybox", "cat", "/etc/architecture")
    assert out("teu", "run", "--rm", box.name, *read) == HOST
    # What is not here is said, and what is here then.
    run = ("run", "--rm", "--pull", "never", "--platform", f"linux/{OTHER}", box.name, *read)
    done = teu(*run, check=False)
    assert done.returncode == 125
    assert f"wanted linux/{OTHER}, actual: linux/{HOST}" in done.stderr
    teu("pull", "--platform", f"linux/{OTHER}", "--platform", f"linux/{HOST}", box.name)
    assert here(box.name) == {HOST, OTHER, "attestation"}
    assert out("teu", *run) == OTHER
    assert out("teu", "run", "--rm", box.name, *read) == HOST
    teu("pull", "--platform", "all", box.name)
    assert here(box.name) == {HOST, OTHER, THIRD, "attestation"}
    assert "Image is up to date" in teu("pull", "--platform", "all", box.name).stdout
    tree = out("teu", "images", "--tree")
    assert all(f" linux/{architecture} " in tree for architecture in (HOST, OTHER, THIRD))
    assert inspected(box.name, "--platform", OTHER)["Architecture"] == OTHER
    assert f"{OTHER} 1" in out("teu", "history", "--no-trunc", "--platform", OTHER, box.name)
    # A container of it keeps its platform.
    teu("create", "--name", "other", "--platform", OTHER, box.name)
    done = teu("rmi", "--platform", OTHER, box.name, check=False)
    assert "is being used by stopped container" in done.stderr
    assert out("teu", "ps", "-a", "--format", "{{.Image}}") == box.name
    teu("commit", "other", f"{registry}/committed:1")
    assert inspected(f"{registry}/committed:1")["Architecture"] == OTHER
    teu("rmi", f"{registry}/committed:1")
    teu("rm", "other")
    assert out("teu", "rmi", "--platform", OTHER, box.name) == f"Deleted: {box.manifests[OTHER]}"
    assert here(box.name) == {HOST, THIRD, "attestation"}
    assert box.manifests[OTHER] not in images.ctr("content", "ls", "-q")
    teu("rmi", box.name)
    left = images.ctr("content", "ls", "-q")
    assert not {box.index, box.attestation, *box.manifests.values(), *box.configs.values()} & set(left)


def test_pushes(ids: str, registry: str) -> None:
    box = offer(registry, "box")
    copy = f"{registry}/copy-{ids}:1"
    teu("pull", box.name)
    teu("tag", box.name, copy)
    if ids == "config":  # what is here of the index is one manifest
        teu("push", copy)
        assert at_registry(registry, f"copy-{ids}") == box.manifests[HOST]
    else:
        # What is not here the registry has where the index came from.
        done = teu("push", copy)
        assert box.index in done.stdout and done.stdout.count("Mounted from box") >= 3
        for digest in (*box.manifests.values(), box.attestation):
            assert at_registry(registry, f"copy-{ids}", digest) == digest
        with peers.registry() as other:
            teu("tag", box.name, f"{other.address}/copy:1")
            done = teu("push", f"{other.address}/copy:1", check=False)
            assert done.returncode == 1
            assert "is not here, nor at the registry: pull the image with --platform all" in done.stderr
            teu("rmi", f"{other.address}/copy:1")
        assert box.index in teu("push", box.name).stdout
    teu("push", "--platform", f"linux/{HOST}", copy)
    assert at_registry(registry, f"copy-{ids}") == box.manifests[HOST]
    done = teu("push", "--platform", f"linux/{OTHER}", copy, check=False)
    assert done.returncode == 1 and f"wanted linux/{OTHER}" in done.stderr
    teu("pull", "--platform", "all", box.name)
    teu("tag", box.name, copy)
    assert box.index in teu("push", copy).stdout
    assert at_registry(registry, f"copy-{ids}") == box.index
    for digest in (*box.manifests.values(), box.attestation):
        assert at_registry(registry, f"copy-{ids}", digest) == digest
    assert f"{registry}/copy-{ids}@{box.index}" in inspected(copy)["RepoDigests"]
    teu("push", "--platform", f"linux/{OTHER}", copy)
    assert at_registry(registry, f"copy-{ids}") == box.manifests[OTHER]


def layout(path: Path) -> tuple[list[str], set[str]]:
    """Of an archive: the digests in its index.json, and those of its blobs."""
    with tarfile.open(path) as opened:
        file = opened.extractfile("index.json")
        assert file is not None
        index = json.load(io.BytesIO(file.read()))
        blobs = {f"sha256:{name.rpartition('/')[2]}" for name in opened.getnames() if name.startswith("blobs/sha256/")}
    return [entry["digest"] for entry in index["manifests"]], blobs


def test_archives(ids: str, registry: str, tmp_path: Path) -> None:
    box = offer(registry, "box")
    teu("pull", "--platform", "all", box.name)
    path = tmp_path / "box.tar"
    teu("save", "-o", str(path), "--platform", OTHER, box.name)
    assert layout(path)[0] == [box.manifests[OTHER]]
    teu("save", "-o", str(path), box.name)
    assert layout(path)[0] == [box.index if ids == "target" else box.manifests[HOST]]
    teu("save", "-o", str(path), "--platform", OTHER, "--platform", HOST, box.name)
    digests, blobs = layout(path)
    assert digests == [box.index] and box.attestation in blobs and box.manifests[THIRD] not in blobs
    teu("rmi", box.name)
    teu("load", "--platform", OTHER, "-i", str(path))
    assert here(box.name) == {OTHER}
    teu("load", "-i", str(path))
    assert here(box.name) == {OTHER, HOST, "attestation"}
    assert out("teu", "run", "--rm", box.name, "busybox", "cat", "/etc/architecture") == HOST
    done = teu("load", "--platform", THIRD, "-i", str(path), check=False)
    assert done.returncode == 1 and f"has nothing for linux/{THIRD} in this archive" in done.stderr


@pytest.mark.needs("docker")
def test_beside_docker(ids: str, registry: str, tmp_path: Path) -> None:
    """With ids of configurations as dockerd with its own store, with those of targets as with containerd's."""
    box = offer(registry, "box")
    with peers.dockerd(config={"features": {"containerd-snapshotter": ids == "target"}}) as docker:
        for left in docker("images", "-q").split():  # by others, in the host's containerd
            docker("rmi", "-f", left, code=None)
        docker("pull", box.name)
        teu("pull", box.name)
        theirs, ours = json.loads(docker("image", "inspect", box.name))[0], inspected(box.name)
        for key in ("Id", "RepoTags", "RepoDigests", "Architecture", "Os", "RootFS", "Created"):
            assert ours[key] == theirs[key], key
        if ids == "target":
            assert ours["Size"] == theirs["Size"]
            teu("tag", box.name, f"{registry}/tagged:2")
            docker("tag", box.name, f"{registry}/tagged:2")
            digests = ("image", "inspect", "-f", "{{json .RepoDigests}}", box.name)
            assert json.loads(out("teu", *digests)) == sorted(json.loads(docker(*digests)))
            docker("rmi", f"{registry}/tagged:2")
            teu("rmi", f"{registry}/tagged:2")
        listed = "{{.ID}} {{.Repository}} {{.Tag}} {{.Digest}}"
        flags = ("images", "--no-trunc", "--digests", "--format", listed)
        assert set(docker(*flags).splitlines()) <= set(out("teu", *flags).splitlines())
        if ids == "target":
            assert ours["Id"] == box.index
            # Each loads what the other has saved, and the digest stays.
            path = tmp_path / "box.tar"
            docker("save", "-o", str(path), box.name)
            teu("rmi", box.name)
            teu("load", "-i", str(path))
            assert inspected(box.name)["Id"] == box.index
            teu("pull", "--platform", "all", box.name)
            teu("save", "-o", str(path), box.name)
            docker("rmi", box.name)
            docker("load", "-i", str(path))
            assert json.loads(docker("image", "inspect", box.name))[0]["Id"] == box.index
            teu("run", "-d", "--name", "one", box.name, "busybox", "sleep", "60")
            docker("create", "--name", "one", box.name)
            found = json.loads(docker("inspect", "one"))[0]["Image"]
            assert json.loads(out("teu", "inspect", "one"))[0]["Image"] == found == box.index
        else:
            assert ours["Id"] == box.configs[HOST]


@pytest.mark.needs("docker")
def test_docker_on_teud(ids: str, registry: str) -> None:
    """docker's own client, which knows nothing of either."""
    box = offer(registry, "box")
    docker = ("docker", "-H", f"unix://{images.SOCKET}")
    out(*docker, "pull", box.name)
    identity = box.index if ids == "target" else box.configs[HOST]
    assert out(*docker, "images", "-q", "--no-trunc", box.name) == identity
    assert out(*docker, "run", "--rm", identity, "busybox", "cat", "/etc/architecture") == HOST
    assert (
        out(*docker, "run", "--rm", identity.removeprefix("sha256:")[:12], "busybox", "cat", "/etc/architecture")
        == HOST
    )
    assert f"Deleted: {identity}" in out(*docker, "rmi", box.name)


def test_the_ids_change(registry: str) -> None:
    """A store that was made with the other ids is taken over, with its containers, in both directions."""
    images.need_busybox()
    box = offer(registry, "box")
    try:
        for before, after in (("config", "target"), ("target", "config")):
            restart(f"image-ids: {before}\n")
            teu("run", "-d", "--name", "web", box.name, "busybox", "sleep", "600")
            old = inspected(box.name)["Id"]
            assert json.loads(out("teu", "inspect", "web"))[0]["Image"] == old
            restart(f"image-ids: {after}\n")
            new = inspected(box.name)["Id"]
            assert new != old and inspected(old)["Id"] == new
            assert out("teu", "ps", "--format", "{{.Image}} {{.State}}") == f"{box.name} running"
            assert out("teu", "ps", "-q", "--filter", f"ancestor={box.name}")
            assert "is being used by running container" in teu("rmi", "-f", new, check=False).stderr
            teu("stop", "-t", "0", "web")
            teu("start", "web")
            assert out("teu", "exec", "web", "busybox", "cat", "/etc/architecture") == HOST
            teu("rm", "-f", "web")
            teu("rmi", box.name)
    finally:
        restart("")


@pytest.mark.parametrize("unit", ["teud.service", "teu-containerd.service"])
@pytest.mark.parametrize("way", ["kill", "restart"])
def test_a_pull_goes_on_after_a_death(unit: str, way: str) -> None:
    """The daemon goes in the middle of a layer; the next pull asks for the rest of it."""
    images.need_busybox()
    data = tar(*((f"file{number}", bytes(range(256)) * 4096) for number in range(40)))
    with ScriptedRegistry() as registry:
        registry.image("app", "1", data, compression="", architecture=HOST)
        (layer,) = json.loads(registry.manifests["app", "1"][1])["layers"]
        name = f"{registry.address}/app:1"
        registry.slow[layer["digest"]] = 0.1
        client = subprocess.Popen(["teu", "pull", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        written = Path("/var/lib/teu/containerd/content/ingest")
        whole.eventually(
            "some of the layer is there", lambda: any(f.stat().st_size > 3 << 20 for f in written.glob("*/data"))
        )
        if way == "kill":
            whole.call("systemctl", "kill", "-s", "KILL", unit)
        else:
            whole.call("systemctl", "restart", unit)
        client.wait(60)
        registry.slow.clear()
        registry.requests.clear()
        teu("images")
        assert any(layer["digest"] in ref for ref in images.ingests())
        teu("pull", name)
        ranges = [headers.get("range", "") for _, path, headers in registry.requests if layer["digest"] in path]
        assert len(ranges) == 1 and int(ranges[0].removeprefix("bytes=").rstrip("-")) >= 3 << 20, ranges
        assert not images.ingests()
        teu("rmi", name)
