# SPDX-License-Identifier: Apache-2.0
"""Pull and push: Debian's registry, and one that lies, breaks off and offers hostile layers."""

from __future__ import annotations

import gzip
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import images
import peers
import pytest
import whole
from scripted_registry import ScriptedRegistry, digest_of, entry, tar
from whole import out, teu


@pytest.fixture(scope="module", autouse=True)
def busybox() -> None:
    images.need_busybox()


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    """A registry that does as told; afterwards containerd holds what it held before."""
    before = images.baseline()
    with ScriptedRegistry() as made:
        yield made
        whole.remove_everything()
        for name in out("teu", "images", "--format", "{{.Repository}}:{{.Tag}}@{{.Digest}}").splitlines():
            if name.startswith(made.address):
                tag, _, digest = name.partition("@")
                teu("rmi", "-f", tag if "<none>" not in tag else f"{tag.rpartition(':')[0]}@{digest}", check=False)
    images.settle(before)


@pytest.fixture(scope="module")
def shell() -> bytes:
    return images.busybox_layer(**{"etc/first": b"1\n", "etc/gone": b"2\n"})


@pytest.mark.needs("fast")
@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
def test_pull_and_run(registry: ScriptedRegistry, shell: bytes, docker: bool, compression: str) -> None:
    second = tar(("etc/.wh.gone", b""), ("etc/second", b"3\n"))
    registry.image("app", "1", shell, second, docker=docker, compression=compression)
    name = f"{registry.address}/app:1"
    done = teu("pull", name)
    assert f"Status: Downloaded newer image for {name}" in done.stdout
    assert out("teu", "run", "--rm", name, "sh", "-c", "cat /etc/first /etc/second; cat /etc/gone || true") == "1\n3"
    assert f"Status: Image is up to date for {name}" in teu("pull", name).stdout


@pytest.mark.parametrize("docker", [False, True])
def test_index_and_digest_references(registry: ScriptedRegistry, shell: bytes, docker: bool) -> None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[out("uname", "-m")]
    right = registry.image("app", "right", shell, architecture=machine, docker=docker)
    wrong = registry.image("app", "wrong", tar(("x", b"")), architecture="s390x", docker=docker)
    index = registry.index("app", "1", docker, **{machine: right, "s390x": wrong})
    name = f"{registry.address}/app"
    assert f"Digest: {index['digest']}" in teu("pull", f"{name}:1").stdout
    assert out("teu", "run", "--rm", f"{name}@{index['digest']}", "busybox", "cat", "/etc/first") == "1"
    teu("rmi", "-f", f"{name}:1")
    teu("pull", f"{name}@{right['digest']}")
    assert out("teu", "run", "--rm", f"{name}@{right['digest']}", "busybox", "cat", "/etc/first") == "1"
    only = registry.index("app", "2", docker, s390x=wrong)
    assert only
    done = teu("pull", f"{name}:2", check=False)
    assert done.returncode == 1
    assert f"no matching manifest for linux/{machine}" in done.stderr


@pytest.mark.needs("fast")
def test_progress_messages(registry: ScriptedRegistry, shell: bytes) -> None:
    registry.image("app", "1", shell, tar(("etc/second", b"x" * 300_000)))
    status, lines = images.api("POST", f"/images/create?fromImage={registry.address}/app&tag=1")
    assert status == 200
    assert lines[0] == {"status": "Pulling from app", "id": "1"}
    by_layer: dict[str, list[str]] = {}
    for line in lines[1:]:
        if "id" in line:
            by_layer.setdefault(line["id"], []).append(line["status"])
    assert len(by_layer) == 2
    for words in by_layer.values():
        order = [w for n, w in enumerate(words) if w not in ("Waiting", *words[:n])]
        assert order == [
            "Pulling fs layer",
            "Downloading",
            "Verifying Checksum",
            "Download complete",
            "Extracting",
            "Pull complete",
        ]
    assert lines[-2]["status"].startswith("Digest: sha256:")
    assert lines[-1]["status"].startswith("Status: Downloaded newer image")


def refused(registry: ScriptedRegistry, message: str, tag: str = "1") -> None:
    done = teu("pull", f"{registry.address}/app:{tag}", check=False)
    assert done.returncode == 1, done.stdout
    assert message.lower() in done.stderr.lower(), done.stderr
    assert "Traceback" not in done.stderr
    assert teu("image", "inspect", f"{registry.address}/app:{tag}", check=False).returncode == 1


def test_corrupt_layer(registry: ScriptedRegistry, shell: bytes) -> None:
    registry.image("app", "1", shell)
    layer = json.loads(registry.manifests["app", "1"][1])["layers"][0]["digest"]
    registry.corrupt.add(layer)
    refused(registry, f"filesystem layer verification failed for digest {layer}")
    # What was broken is not gone on from.
    registry.corrupt.clear()
    teu("pull", f"{registry.address}/app:1")


@pytest.mark.needs("fast")
def test_truncated_layer(registry: ScriptedRegistry, shell: bytes) -> None:
    registry.image("app", "1", shell)
    layer = json.loads(registry.manifests["app", "1"][1])["layers"][0]["digest"]
    registry.broken[layer] = 1000
    refused(registry, "bytes: ")
    registry.broken[layer] = 2
    teu("pull", f"{registry.address}/app:1")


@pytest.mark.needs("fast")
def test_truncated_inside(registry: ScriptedRegistry, shell: bytes) -> None:
    """The digest is right, the compressed stream is not whole."""
    cut = gzip.compress(shell, 1)[:-2000]
    registry.image("app", "1", shell)
    kind, data = registry.manifests["app", "1"]
    manifest = json.loads(data)
    manifest["layers"][0].update(digest=registry.put(cut), size=len(cut))
    registry.manifest("app", "1", kind, manifest)
    refused(registry, "failed to register layer")


@pytest.mark.needs("fast")
def test_wrong_diff_id(registry: ScriptedRegistry, shell: bytes) -> None:
    registry.image("app", "1", shell, diff_ids=["sha256:" + "0" * 64])
    refused(registry, "failed to register layer")


@pytest.mark.needs("fast")
def test_manifest_that_lies(registry: ScriptedRegistry, shell: bytes) -> None:
    registry.image("app", "1", shell)
    kind, data = registry.manifests["app", "1"]
    manifest = json.loads(data)
    for change, message in (
        ({"layers": [*manifest["layers"], manifest["layers"][0]]}, "its manifest 2"),
        ({"config": {**manifest["config"], "mediaType": "application/x"}}, "is no container image"),
        ({"schemaVersion": 1}, "schema"),
        ({"layers": "x"}, "not a list"),
    ):
        registry.manifest("app", "2", kind, {**manifest, **change})
        refused(registry, message, "2")


@pytest.mark.needs("fast")
def test_unknown_tag_and_repository(registry: ScriptedRegistry, shell: bytes) -> None:
    registry.image("app", "1", shell)
    refused(registry, f"manifest for {registry.address}/app:2 not found: manifest unknown", "2")
    done = teu("run", "--rm", f"{registry.address}/app:2", check=False)
    assert done.returncode == 125


HOSTILE = {
    "parent": entry("../../../../tmp/escaped-parent", size=4),
    "absolute": entry("/tmp/escaped-absolute", size=4),
    "whiteout of the root": entry(".wh..", size=0),
    "whiteout outside": entry("../../../../tmp/.wh.canary", size=0),
    "opaque root": entry(".wh..wh..opq", size=0),
    "device": entry("dev/kmsg-copy", tarfile.CHRTYPE),
    "hard link outside": entry("linked", tarfile.LNKTYPE, "../../../../tmp/canary"),
    "hard link absolute": entry("linked", tarfile.LNKTYPE, "/tmp/canary"),
}


@pytest.mark.needs("fast")
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_entries(registry: ScriptedRegistry, shell: bytes, kind: str) -> None:
    """Refused, or held inside the image: never anything outside of it."""
    canary = Path("/tmp/canary")
    canary.write_text("host\n")
    links = canary.stat().st_nlink
    try:
        registry.image("app", "1", shell, tar(HOSTILE[kind]))
        done = teu("pull", f"{registry.address}/app:1", check=False)
        assert done.returncode in (0, 1)
        if done.returncode:
            assert "failed to register layer" in done.stderr
        assert not list(Path("/tmp").glob("escaped-*"))
        assert canary.read_text() == "host\n"
        assert canary.stat().st_nlink == links
    finally:
        canary.unlink()


def test_links_do_not_lead_out(registry: ScriptedRegistry, shell: bytes) -> None:
    """A link of a lower layer, or of the same one, is not a way for the files written through it."""
    outside = Path("/tmp/outside")
    outside.mkdir(exist_ok=True)
    try:
        link = tar(entry("way", tarfile.SYMTYPE, "/tmp/outside"), ("way/through", b"x"))
        climb = tar(entry("up", tarfile.SYMTYPE, "../../../../../../tmp/outside"), ("up/through", b"x"))
        registry.image("app", "1", shell, link, tar(("way/later", b"x")), climb)
        teu("pull", f"{registry.address}/app:1", check=False)
        assert not list(outside.iterdir())
    finally:
        for path in outside.iterdir():
            path.unlink()
        outside.rmdir()


@pytest.mark.needs("ctr")
def test_full_disk(registry: ScriptedRegistry, shell: bytes) -> None:
    """containerd's folder on a file system of 24 MB; the layer has 40."""
    big = tar(*((f"file{n}", bytes([n]) * (1 << 20)) for n in range(40)))
    registry.image("app", "packed", shell, big)
    registry.image("app", "plain", big, compression="")
    root = "/var/lib/teu/containerd"
    units = ["teud.socket", "teud.service", "teu-containerd.socket", "teu-containerd.service"]
    whole.call("systemctl", "stop", *units)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", root], check=True)
    try:
        whole.call("systemctl", "start", "teu-containerd.socket", "teud.socket")
        for tag in ("packed", "plain"):
            refused(registry, "no space left on device", tag)
            whole.eventually("the space is free again", lambda: not images.held()["content"], timeout=20)
            assert not any(images.held().values()), images.held()
        registry.image("app", "small", tar(("file", b"x")))
        teu("pull", f"{registry.address}/app:small")
    finally:
        whole.call("systemctl", "stop", *units)
        subprocess.run(["umount", "-l", root], check=True)
        whole.call("systemctl", "start", "teu-containerd.socket", "teud.socket")
    teu("images")


@pytest.mark.needs("fast")
def test_client_that_goes_away(registry: ScriptedRegistry) -> None:
    big = tar(("file", bytes(range(256)) * 40_000))
    registry.image("app", "1", big, compression="")
    import threading

    reached, go = threading.Event(), threading.Event()

    def hook(_method: str, path: str) -> None:
        if "/blobs/" in path and digest_of(big) in path:
            reached.set()
            go.wait(20)

    registry.hook = hook
    client = subprocess.Popen(["teu", "pull", f"{registry.address}/app:1"], stdout=subprocess.DEVNULL)
    assert reached.wait(20)
    client.kill()
    client.wait()
    go.set()
    registry.hook = None
    whole.eventually("nothing is being written", lambda: not images.pulling(), timeout=30)
    teu("rmi", f"{registry.address}/app:1", check=False)


@pytest.mark.needs("fast")
def test_two_clients_pull_the_same(registry: ScriptedRegistry, shell: bytes) -> None:
    registry.image("app", "1", shell, tar(("etc/second", bytes(range(256)) * 20_000)), compression="")
    name = f"{registry.address}/app:1"
    clients = [subprocess.Popen(["teu", "pull", name], stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [client.wait(60) for client in clients] == [0, 0, 0]
    assert out("teu", "run", "--rm", name, "sh", "-c", "cat /etc/first") == "1"
    fetched = [path for method, path, _ in registry.requests if method == "GET" and "/blobs/" in path]
    assert len(fetched) <= 2 + 3  # the layers once; the configuration is small


@pytest.mark.parametrize("way", ["basic", "token"])
def test_login(registry: ScriptedRegistry, shell: bytes, tmp_path: Path, way: str) -> None:
    """The registry is asked, by the way it wants; what it took is used for a pull, and forgotten at logout."""
    registry.image("app", "1", shell)
    if way == "basic":
        registry.basic = "me:secret"
    else:
        registry.token, registry.credentials = "a-token", "me:secret"
    config = ["--config", str(tmp_path)]
    name = f"{registry.address}/app:1"
    login = [*config, "login", "-u", "me", "-p"]
    done = teu(*login, "wrong", registry.address, check=False)
    assert done.returncode == 1 and "unauthorized" in done.stderr.lower(), done.stderr
    assert not (tmp_path / "config.json").exists()
    assert teu(*config, "pull", name, check=False).returncode == 1
    assert "Login Succeeded" in teu(*login, "secret", registry.address).stdout
    teu(*config, "pull", name)
    teu(*config, "logout", registry.address)
    teu("rmi", name)
    assert teu(*config, "pull", name, check=False).returncode == 1
    done = teu(*login, "secret", "127.0.0.1:9", check=False)
    assert done.returncode == 1 and "connection refused" in done.stderr


@pytest.mark.needs("docker-registry")
def test_push_and_pull_with_a_real_registry() -> None:
    with peers.registry() as real:
        name = f"{real.address}/team/box"
        teu("tag", whole.IMAGE, f"{name}:1")
        pushed = teu("push", f"{name}:1").stdout
        digest = next(word for word in pushed.split() if word.startswith("sha256:"))
        assert "Layer already exists" in teu("push", f"{name}:1").stdout
        identity = out("teu", "image", "inspect", "-f", "{{.Id}}", f"{name}:1")
        assert f"{name}@{digest}" in out("teu", "image", "inspect", "-f", "{{.RepoDigests}}", f"{name}:1")
        teu("rmi", f"{name}:1")
        teu("pull", f"{name}@{digest}")
        assert out("teu", "image", "inspect", "-f", "{{.Id}}", f"{name}@{digest}") == identity
        teu("rmi", f"{name}@{digest}")
        done = teu("pull", f"{name}:none", check=False)
        assert "manifest unknown" in done.stderr
        # Debian's ctr reads what was pushed.
        done = whole.call("ctr", "-a", images.CONTAINERD, "-n", "other", "images", "pull", "--plain-http", f"{name}:1")
        whole.call("ctr", "-a", images.CONTAINERD, "-n", "other", "images", "rm", "--sync", f"{name}:1")
