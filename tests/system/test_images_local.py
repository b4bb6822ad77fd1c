# SPDX-License-Identifier: Apache-2.0
"""Images without a registry: load, save, tag, rmi, prune, import, history, inspect, commit."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
import whole
from scripted_registry import entry, tar
from whole import out, teu


@pytest.fixture(autouse=True)
def busybox() -> Iterator[None]:
    images.need_busybox()
    before = images.baseline()
    yield
    whole.remove_everything()
    for line in out("teu", "images", "-a", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines():
        name, identity = line.split()
        if name != "busybox:latest":
            teu("rmi", "-f", identity if "<none>" in name else name, check=False)
    images.settle(before)


def identity(name: str) -> str:
    return out("teu", "image", "inspect", "-f", "{{.Id}}", name)


@pytest.mark.needs("fast")
def test_id_is_the_digest_of_the_configuration() -> None:
    target = next(line.split()[2] for line in images.ctr("images", "ls") if "busybox:latest" in line)
    manifest = json.loads("\n".join(images.ctr("content", "get", target)))
    assert identity("busybox") == manifest["config"]["digest"]
    short = identity("busybox").removeprefix("sha256:")[:12]
    assert out("teu", "images", "-q", "busybox") == short
    assert identity(short) == identity("busybox")


@pytest.mark.needs("fast")
def test_tag_and_untag() -> None:
    teu("tag", "busybox", "example.org/team/app:1")
    assert identity("example.org/team/app:1") == identity("busybox")
    done = teu("rmi", "example.org/team/app:1")
    assert done.stdout.splitlines()[0] == "Untagged: example.org/team/app:1"
    assert "Deleted" not in done.stdout
    assert teu("tag", "busybox", "UPPER", check=False).returncode == 1


def test_save_and_load(tmp_path: Path) -> None:
    teu("tag", "busybox", "first:1")
    teu("tag", "busybox", "second:2")
    before = identity("busybox")
    teu("save", "-o", str(tmp_path / "both.tar"), "first:1", "second:2")
    teu("rmi", "first:1", "second:2")
    done = teu("load", "-i", str(tmp_path / "both.tar"))
    assert sorted(done.stdout.splitlines()) == ["Loaded image: first:1", "Loaded image: second:2"]
    assert identity("second:2") == before
    # Debian's containerd reads it too.
    other = whole.call("ctr", "-a", images.CONTAINERD, "-n", "other", "images", "import", str(tmp_path / "both.tar"))
    assert other.returncode == 0
    for name in out("ctr", "-a", images.CONTAINERD, "-n", "other", "images", "ls", "-q").split():
        whole.call("ctr", "-a", images.CONTAINERD, "-n", "other", "images", "rm", "--sync", name)
    whole.call("ctr", "-a", images.CONTAINERD, "namespaces", "rm", "other", check=False)


def test_rmi_of_a_used_image() -> None:
    whole.run_detached("user", "sleep", "600")
    done = teu("rmi", "busybox", check=False)
    assert done.returncode == 1
    assert "conflict: unable to remove repository reference" in done.stderr
    done = teu("rmi", "-f", identity("busybox"), check=False)
    assert "cannot be forced" in done.stderr
    teu("tag", "busybox", "other:1")
    assert "Untagged: other:1" in teu("rmi", "other:1").stdout


@pytest.mark.needs("fast")
def test_unknown_and_malformed() -> None:
    for command in (("rmi",), ("image", "inspect"), ("history",), ("save",)):
        done = teu(*command, "no-such-image", check=False)
        assert done.returncode == 1
        assert "no such image: no-such-image" in done.stderr.lower()
    assert images.api("GET", "/images/UPPER/json")[0] == 400


@pytest.mark.needs("fast")
def test_import_and_history(tmp_path: Path) -> None:
    archive = tmp_path / "root.tar"
    archive.write_bytes(images.busybox_layer(**{"etc/imported": b"yes\n"}))
    change = 'CMD ["sh", "-c", "cat /etc/imported; echo $A"]'
    teu("import", "-c", change, "-c", "ENV A=b", "-m", "from a test", str(archive), "imported:1")
    assert out("teu", "run", "--rm", "imported:1") == "yes\nb"
    assert "from a test" in out("teu", "history", "imported:1")
    assert teu("import", "-c", "FROM x", str(archive), check=False).returncode == 1


def test_commit_makes_a_layer() -> None:
    teu("run", "--name", "changed", "busybox", "sh", "-c", "echo new > /etc/new; rm /etc/shadow")
    teu("commit", "-c", "CMD cat /etc/new", "changed", "committed:1")
    assert out("teu", "run", "--rm", "committed:1") == "new"
    assert teu("run", "--rm", "committed:1", "cat", "/etc/shadow", check=False).returncode == 1
    layers = json.loads(out("teu", "image", "inspect", "-f", "{{json .RootFS.Layers}}", "committed:1"))
    base = json.loads(out("teu", "image", "inspect", "-f", "{{json .RootFS.Layers}}", "busybox"))
    assert layers[:-1] == base
    assert "sh -c" in out("teu", "history", "--no-trunc", "committed:1")


@pytest.mark.needs("fast")
def test_dangling_and_prune(tmp_path: Path) -> None:
    for text in ("one", "two"):
        (tmp_path / "root.tar").write_bytes(images.busybox_layer(**{"etc/text": text.encode()}))
        teu("import", str(tmp_path / "root.tar"), "moving:1")
    dangling = out("teu", "images", "-q", "-f", "dangling=true").split()
    assert len(dangling) == 1
    done = teu("image", "prune", "-f")
    assert f"deleted: sha256:{dangling[0]}" in done.stdout.lower()
    assert out("teu", "images", "-q", "-f", "dangling=true") == ""
    assert out("teu", "run", "--rm", "moving:1", "sh", "-c", "cat /etc/text") == "two"


@pytest.mark.needs("fast")
def test_archives_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    cases = [
        (b"no archive" * 1000, "invalid tar"),
        (tar(("file", b"x")), "not an image archive"),
        (tar(entry("../../../tmp/climbed", size=3)), "leads out of the archive"),
        (tar(("blobs/sha256/" + "0" * 64, b"x")), "has digest"),
    ]
    for data, message in cases:
        path.write_bytes(data)
        done = teu("load", "-i", str(path), check=False)
        assert done.returncode == 1, message
        assert message in done.stderr
    assert not Path("/tmp/climbed").exists()


def test_places_that_every_container_has(tmp_path: Path) -> None:
    """/.dockerenv, /etc/mtab and the mount points, as docker makes them: below the container's own changes. What the
    image has in their place is not seen, but stays the image's."""
    layer = images.busybox_layer(**{"etc/hosts": b"of the image", "etc/own": b"own"})
    (tmp_path / "places.tar").write_bytes(layer)
    teu("import", str(tmp_path / "places.tar"), "places:1")
    look = "ls -l /.dockerenv /etc/mtab | cut -c 1-10; busybox readlink /etc/mtab; busybox touch /etc/new"
    teu("create", "--name", "before", "places:1", "true")
    assert "of the image" not in teu("cp", "before:/etc/hosts", "-").stdout
    shown = out(
        "teu",
        "run",
        "--name",
        "after",
        "places:1",
        "sh",
        "-c",
        look.replace("ls", "busybox ls").replace("cut", "busybox cut"),
    ).split()
    assert shown == ["-rwxr-xr-x", "lrwxrwxrwx", "/proc/mounts"]
    assert out("teu", "diff", "before") == ""
    assert out("teu", "diff", "after").splitlines() == ["C /etc", "A /etc/new"]
    filled = ("-v", "places:/etc:ro", "places:1", "busybox", "ls", "/etc")
    assert out("teu", "run", "--rm", *filled).split() == ["hostname", "hosts", "mtab", "own", "resolv.conf"]
    teu("volume", "rm", "places")
    teu("commit", "after", "places:2")
    teu("rm", "before", "after")
    with tarfile.open(
        fileobj=io.BytesIO(subprocess.run(["teu", "save", "places:2"], capture_output=True, check=True).stdout)
    ) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        top = archive.extractfile(manifest[0]["Layers"][-1])
        assert top is not None
        with tarfile.open(fileobj=io.BytesIO(top.read())) as changes:
            assert sorted(changes.getnames()) == ["etc", "etc/new"]
    assert any(line.startswith("init-") for line in images.ctr("snapshots", "ls"))


def test_the_layer_of_places_goes_with_its_image(tmp_path: Path) -> None:
    (tmp_path / "other.tar").write_bytes(images.busybox_layer(other=b"x"))
    teu("import", str(tmp_path / "other.tar"), "other:1")
    before = sum(line.startswith("init-") for line in images.ctr("snapshots", "ls"))
    for _ in range(2):
        teu("run", "--rm", "other:1", "busybox", "true")
        images.baseline()  # collects what nothing needs
        assert sum(line.startswith("init-") for line in images.ctr("snapshots", "ls")) == before + 1
    teu("rmi", "other:1")
    whole.eventually(
        "it has gone", lambda: sum(line.startswith("init-") for line in images.ctr("snapshots", "ls")) == before
    )
