# SPDX-License-Identifier: Apache-2.0
"""Images that were made to hurt, or by sloppy programs, and clients that leave: through import, load and pull."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images
import pytest
import whole
from scripted_registry import OCI_INDEX, ScriptedRegistry, digest_of, encode, entry, tar
from whole import out, teu

SETTINGS = Path("/etc/teu/teud.yaml.d/test-images.yaml")


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Iterator[None]:
    images.need_busybox()
    before = images.baseline()
    yield
    images.settle(before)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    whole.remove_everything()
    while names := [name for name in out("teu", "images", "-aq", "--no-trunc").split() if name not in _kept()]:
        for name in dict.fromkeys(names):
            teu("rmi", "-f", name, check=False)


def _kept() -> list[str]:
    return [out("teu", "images", "-q", "--no-trunc", "busybox:latest")]


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as made:
        yield made


def archive(*layers: bytes, name: str = "app:1", **changes: Any) -> bytes:
    config = encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
    )
    paths = [f"{number}/layer.tar" for number in range(len(layers))]
    row = {"Config": "c.json", "RepoTags": [name], "Layers": paths, **changes}
    return tar(("c.json", config), *zip(paths, layers), ("manifest.json", encode([row])))


def header(name: str, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.USTAR_FORMAT)


def ways(tmp_path: Path, registry: ScriptedRegistry) -> dict[str, Callable[[bytes], subprocess.CompletedProcess[str]]]:
    """How a layer comes in."""
    path = tmp_path / "in.tar"

    def imported(layer: bytes) -> subprocess.CompletedProcess[str]:
        path.write_bytes(layer)
        return teu("import", str(path), "imported:1", check=False)

    def loaded(layer: bytes) -> subprocess.CompletedProcess[str]:
        path.write_bytes(archive(layer, name="loaded:1"))
        return teu("load", "-i", str(path), check=False)

    def pulled(layer: bytes) -> subprocess.CompletedProcess[str]:
        registry.image("app", "1", layer)
        return teu("pull", f"{registry.address}/app:1", check=False)

    return {"import": imported, "load": loaded, "pull": pulled}


@pytest.mark.needs("fast")
@pytest.mark.parametrize("way", ["import", "load", "pull"])
def test_layers_without_an_end(registry: ScriptedRegistry, tmp_path: Path, way: str) -> None:
    """More of them than workers run at a time; cut at a block they are whole, within an entry they are told."""
    bring = ways(tmp_path, registry)[way]
    for number in range(4 if way == "import" else 1):
        layer = header(f"f{number}", size=1) + b"x".ljust(512, b"\0")
        assert bring(layer).returncode == 0
    done = bring(header("f", size=5000) + b"x" * 1024)
    assert done.returncode == 1 and "unexpected end of the archive" in done.stderr
    assert bring(images.busybox_layer()).returncode == 0


@pytest.mark.needs("fast")
@pytest.mark.parametrize("way", ["import", "load", "pull"])
def test_reasons_arrive(registry: ScriptedRegistry, tmp_path: Path, way: str) -> None:
    """However long a name is, and whatever number the kernel does not know."""
    bring = ways(tmp_path, registry)[way]
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as made:
        made.addfile(tarfile.TarInfo("n" * 8000))
    done = bring(output.getvalue())
    assert done.returncode == 1 and "File name too long" in done.stderr
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as made:
        info = tarfile.TarInfo("f")
        info.uid = 1 << 40
        made.addfile(info)
    done = bring(output.getvalue())
    assert done.returncode == 1 and "has the owner" in done.stderr


@pytest.mark.needs("fast")
def test_load_of_what_is_no_image(tmp_path: Path) -> None:
    """A root file system, and an archive that would give more than it brings: told at once, and nothing is kept."""
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * (32 << 20))  # refused when most of it is still to be sent
    done = teu("load", "-i", str(path), check=False)
    assert done.returncode == 1 and "invalid tar archive" in done.stderr
    path.write_bytes(tar(*((f"usr/share/{number}", b"%d" % number) for number in range(10_000))))
    done = teu("load", "-i", str(path), check=False)
    assert done.returncode == 1 and "not an image archive" in done.stderr and "import" in done.stderr
    info = tarfile.TarInfo("f")
    info.pax_headers = {"GNU.sparse.size": str(1 << 50), "GNU.sparse.map": "0,1", "GNU.sparse.name": "f"}
    info.size = 1
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as made:
        made.addfile(info, io.BytesIO(b"x"))
    path.write_bytes(output.getvalue())
    done = teu("load", "-i", str(path), check=False)
    assert done.returncode == 1 and "sparse" in done.stderr
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes([0x00, (31 - 10) << 3]) + bytes(100))
    for command in (("load", "-i", str(path)), ("import", str(path))):
        done = teu(*command, check=False)
        assert done.returncode == 1 and "corrupt zstd stream" in done.stderr


@pytest.mark.needs("fast")
def test_forms_that_docker_loads(tmp_path: Path) -> None:
    """Absolute links to layers, archives from before manifest.json, and what is said of a name that moves."""
    path = tmp_path / "a.tar"
    layer = images.busybox_layer(**{"etc/which": b"linked\n"})
    link = entry("m/layer.tar", tarfile.SYMTYPE, "/l/layer.tar")
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer)]}
    config = encode({"architecture": "amd64", "os": "linux", "rootfs": rootfs})
    row = {"Config": "c.json", "RepoTags": ["old:1"], "Layers": ["m/layer.tar"]}
    path.write_bytes(tar(("l/layer.tar", layer), link, ("c.json", config), ("manifest.json", encode([row]))))
    assert teu("load", "-i", str(path)).stdout == "Loaded image: old:1\n"
    before = out("teu", "image", "inspect", "-f", "{{.Id}}", "old:1")
    layer = images.busybox_layer(**{"etc/which": b"older\n"})
    lower, upper = "a" * 64, "b" * 64
    own = {"os": "linux", "architecture": "amd64", "config": {"Cmd": ["cat", "/etc/which"], "Env": ["PATH=/bin"]}}
    own_cat = images.busybox_layer()
    path.write_bytes(
        tar(
            (f"{lower}/json", encode({"id": lower, **own})),
            (f"{lower}/layer.tar", own_cat),
            (f"{upper}/json", encode({"id": upper, "parent": lower, **own})),
            (f"{upper}/layer.tar", layer),
            ("repositories", encode({"old": {"1": upper}})),
        )
    )
    told = teu("load", "-i", str(path)).stdout
    assert told == (
        f"The image old:1 already exists, renaming the old one with ID {before} to empty string\nLoaded image: old:1\n"
    )
    assert out("teu", "run", "--rm", "--network", "none", "old:1", "busybox", "cat", "/etc/which") == "older"


def test_deep_folders_of_a_container_become_a_layer() -> None:
    script = "cd /tmp; i=0; p=; while [ $i -lt 1100 ]; do p=${p}d/; i=$((i+1)); done; mkdir -p $p; echo deep > ${p}f"
    teu("run", "--name", "deep", "--network", "none", "busybox", "sh", "-c", script)
    teu("commit", "deep", "deep:1")
    found = out(
        "teu",
        "run",
        "--rm",
        "--network",
        "none",
        "deep:1",
        "sh",
        "-c",
        "cd /tmp; while cd d 2>/dev/null; do :; done; cat f",
    )
    assert found == "deep"


def workers() -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if b"layers.worker import main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
        except OSError:
            pass
    return found


@pytest.mark.needs("fast")
def test_who_leaves_while_a_layer_is_unpacked(tmp_path: Path) -> None:
    """The worker has stopped, so it will never be done: it ends with the client."""
    path = tmp_path / "a.tar"
    path.write_bytes(tar(*((f"d{number % 50}/{number}", b"x") for number in range(20_000))))
    client = subprocess.Popen(["teu", "import", str(path), "left:1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        found = whole.eventually("a worker is at work", workers)
        assert isinstance(found, list)
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
    finally:
        client.kill()
        client.communicate()
    whole.eventually("the worker has gone with the client", lambda: not workers())
    assert teu("image", "inspect", "left:1", check=False).returncode == 1


@pytest.mark.needs("fast")
def test_who_leaves_a_silent_registry(registry: ScriptedRegistry) -> None:
    """The registry says nothing any more; the pull ends with its client, not with a time limit."""
    registry.image("app", "1", images.busybox_layer())
    held, go = threading.Event(), threading.Event()

    def hook(_method: str, path: str) -> None:
        if "/blobs/" in path:
            held.set()
            go.wait(100)

    registry.hook = hook
    client = subprocess.Popen(["teu", "pull", f"{registry.address}/app:1"], stdout=subprocess.PIPE)
    try:
        assert held.wait(30)
        client.kill()
        client.communicate()
        whole.eventually("the pull's lease is gone", lambda: not images.pulling(), timeout=15)
    finally:
        go.set()


@pytest.mark.needs("fast", "ctr")
def test_transfers_of_a_hostile_registry(registry: ScriptedRegistry) -> None:
    """teu-containerd's own pull: indexes in indexes, forty deep, and a client that leaves a silent registry."""
    ctr = ("ctr", "-a", images.CONTAINERD, "-n", "hostile")
    pull = (*ctr, "images", "pull", "--local=false", "--plain-http")
    top = registry.image("app", "1", images.busybox_layer())
    for _ in range(40):
        entries = [{**top, "platform": {"os": "linux", "architecture": "amd64"}}] * 2
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        top = registry.manifest("app", "2", OCI_INDEX, index)
    held, go = threading.Event(), threading.Event()

    def hook(_method: str, path: str) -> None:
        if "/blobs/" in path:
            held.set()
            go.wait(100)

    def leases() -> list[str]:
        return out(*ctr, "leases", "ls", "-q").split()

    try:
        done = whole.call(*pull, f"{registry.address}/app:2", check=False)
        assert done.returncode == 1 and "more than 32 deep" in done.stderr
        assert len(registry.requests) < 100  # each document once, however often it is named
        registry.hook = hook
        client = subprocess.Popen([*pull, f"{registry.address}/app:1"], stdout=subprocess.DEVNULL)
        assert held.wait(30)
        assert any(name.startswith("transfer-") for name in leases())
        client.kill()
        client.wait()
        whole.eventually(
            "the transfer is gone", lambda: not any(name.startswith("transfer-") for name in leases()), timeout=15
        )
    finally:
        go.set()
        for name in leases():
            whole.call(*ctr, "leases", "rm", "--sync", name)
        whole.call("ctr", "-a", images.CONTAINERD, "namespaces", "rm", "hostile", check=False)


@pytest.mark.needs("fast")
def test_a_refused_upload_gets_its_answer() -> None:
    """More than any buffer holds is on its way when the answer comes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(images.SOCKET)
        client.sendall(b"POST /v1.45/nowhere HTTP/1.1\r\nHost: teu\r\nContent-Length: 33554432\r\n\r\n")
        client.sendall(bytes(32 << 20))
        assert client.recv(4096).startswith(b"HTTP/1.1 404 ")


def architectures(registry: ScriptedRegistry) -> tuple[str, str, dict[str, bytes]]:
    """The host's, another, and an index of both at app:1."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    other = "s390x"
    layers = {one: images.busybox_layer(**{"etc/which": one.encode()}) for one in (machine, other)}
    made = {one: registry.image("app", one, layer, architecture=one) for one, layer in layers.items()}
    registry.index("app", "1", **made)
    return machine, other, layers


def shown(name: str, what: str) -> str:
    return out("teu", "image", "inspect", "-f", "{{" + what + "}}", name)


@pytest.mark.needs("fast")
def test_a_name_is_one_image_of_one_platform(registry: ScriptedRegistry, tmp_path: Path) -> None:
    machine, other, _ = architectures(registry)
    name = f"{registry.address}/app:1"
    assert "Downloaded newer" in teu("pull", "--platform", f"linux/{other}", name).stdout
    assert shown(name, ".Architecture") == other
    assert "up to date" in teu("pull", "--platform", f"linux/{other}", name).stdout
    status, answer = images.api("POST", "/containers/create?name=warned", {"Image": name, "Cmd": ["sh"]})
    assert status == 201
    (warning,) = answer["Warnings"]
    assert f"platform (linux/{other}) does not match the detected host platform (linux/{machine}" in warning
    status, answer = images.api("POST", f"/containers/create?platform=linux/{other}", {"Image": name, "Cmd": ["sh"]})
    assert status == 201 and not answer["Warnings"]
    status, answer = images.api("POST", f"/containers/create?platform=linux/{machine}", {"Image": name})
    assert status == 404 and f"wanted linux/{machine}, actual: linux/{other}" in answer["message"]
    first = shown(name, ".Id")
    assert "Downloaded newer" in teu("pull", name).stdout  # nobody asks for another one: the host's
    assert shown(name, ".Architecture") == machine
    assert first in out("teu", "images", "-q", "--no-trunc", "-f", "dangling=true")
    # The other one again: tag, save and push mean it.
    teu("pull", "--platform", f"linux/{other}", name)
    teu("tag", name, "tagged:1")
    assert shown("tagged:1", ".Architecture") == other
    teu("save", "-o", str(tmp_path / "a.tar"), "tagged:1")
    with tarfile.open(tmp_path / "a.tar") as saved:
        table = saved.extractfile("manifest.json")
        assert table is not None
        config = saved.extractfile(json.load(table)[0]["Config"])
        assert config is not None and json.load(config)["architecture"] == other
    assert sorted(out("teu", "images", "--format", "{{.ID}}", registry.address + "/app").split()) == [first[7:19]]
    # What no name means any more goes, though its index stays.
    held = len(images.ctr("content", "ls", "-q"))
    teu("rm", "-f", *out("teu", "ps", "-aq").split())
    teu("image", "prune", "-f")
    whole.eventually("the other platform's parts are collected", lambda: len(images.ctr("content", "ls", "-q")) < held)
    assert shown(name, ".Architecture") == other


@pytest.mark.needs("fast")
def test_indexes_in_indexes(registry: ScriptedRegistry) -> None:
    machine, _, _ = architectures(registry)
    media_type, data = registry.manifests["app", "1"]
    inner = {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
    empty = registry.manifest("app", "empty", OCI_INDEX, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
    registry.manifest("app", "2", OCI_INDEX, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [empty, inner]})
    name = f"{registry.address}/app:2"
    teu("pull", name)
    assert shown(name, ".Architecture") == machine
    assert out("teu", "run", "--rm", "--network", "none", name, "busybox", "cat", "/etc/which") == machine
    assert "up to date" in teu("pull", name).stdout
    assert "no matching manifest" in teu("pull", "--platform", "linux/riscv64", name, check=False).stderr
    top = registry.manifest("app", "3", OCI_INDEX, {"schemaVersion": 2, "manifests": [inner]})
    for _ in range(40):
        top = registry.manifest("app", "3", OCI_INDEX, {"schemaVersion": 2, "manifests": [top]})
    assert teu("pull", f"{registry.address}/app:3", check=False).returncode == 1


@pytest.mark.needs("fast")
@pytest.mark.parametrize("status", [403, 405])
def test_registries_that_refuse_head(registry: ScriptedRegistry, status: int) -> None:
    registry.head = status
    registry.image("app", "1", images.busybox_layer())
    assert "Downloaded newer" in teu("pull", f"{registry.address}/app:1").stdout


@pytest.mark.needs("fast")
def test_mirrors(registry: ScriptedRegistry) -> None:
    """Each blob comes from the first that has it; /info and /distribution know them, too."""
    layers = [images.busybox_layer(), tar(("etc/second", b"x" * 100_000))]
    target = registry.image("library/mirrored", "1", *layers)
    with ScriptedRegistry() as second:
        second.image("library/mirrored", "1", *layers)
        del registry.blobs[list(registry.blobs)[-1]]
        SETTINGS.parent.mkdir(parents=True, exist_ok=True)
        SETTINGS.write_text(
            f'registry-mirrors: ["http://{registry.address}", "http://{second.address}"]\n'
            'insecure-registries: ["10.9.0.0/16", "plain.example:5000"]\n'
        )
        try:
            whole.call("systemctl", "restart", "teud")
            known = images.api("GET", "/info")[1]["RegistryConfig"]
            assert known["Mirrors"] == [f"http://{registry.address}/", f"http://{second.address}/"]
            assert known["InsecureRegistryCIDRs"] == ["::1/128", "127.0.0.0/8", "10.9.0.0/16"]
            assert known["IndexConfigs"]["docker.io"]["Mirrors"] == known["Mirrors"]
            assert known["IndexConfigs"]["plain.example:5000"]["Secure"] is False
            found = images.api("GET", "/distribution/mirrored:1/json")[1]
            assert found["Descriptor"]["digest"] == target["digest"]
            teu("pull", "mirrored:1")
            asked = [path for _, path, _ in second.requests]
            assert len(asked) == 1 and "/blobs/" in asked[0]
            count = out("teu", "run", "--rm", "--network", "none", "mirrored:1", "busybox", "wc", "-c", "/etc/second")
            assert count.startswith("100000 ")
        finally:
            SETTINGS.unlink()
            whole.call("systemctl", "restart", "teud")


@pytest.mark.needs("fast")
def test_names_that_have_become_other_images() -> None:
    """`ps` shows the name while it is the container's image, else the id; commit tells of its tag."""
    since = out("date", "+%s")
    teu("tag", "busybox", "moving:1")
    teu("create", "--name", "user", "--network", "none", "moving:1", "true")
    listed = images.api("GET", "/containers/json?all=1")[1]
    assert [one["Image"] for one in listed] == ["moving:1"]
    teu("commit", "user", "moving:1")
    until = str(int(out("date", "+%s")) + 1)
    told = out("teu", "events", "--since", since, "--until", until, "--format", "{{json .}}").splitlines()
    events = [json.loads(line) for line in told]
    events = events[[event["Action"] for event in events].index("create") :]
    assert [event["Actor"]["Attributes"]["name"] for event in events if event["Action"] == "tag"] == ["moving:1"]
    assert [event["Actor"]["Attributes"]["imageRef"] for event in events if event["Action"] == "commit"] == ["moving:1"]
    listed = images.api("GET", "/containers/json?all=1")[1]
    assert [one["Image"] for one in listed] == [listed[0]["ImageID"]]
    assert out("teu", "ps", "-a", "--format", "{{.Image}}") == listed[0]["ImageID"][7:19]
