# SPDX-License-Identifier: Apache-2.0
"""Images that are mounted into containers: --mount type=image, of the API since 1.48."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import images
import pytest
import whole
from whole import out, teu

pytestmark = pytest.mark.needs("fast")

SHOW = "type=image,source=shown,target=/shown"


@pytest.fixture(scope="module", autouse=True)
def shown() -> Iterator[None]:
    """An image with files, a link out of it, and a layer over busybox's."""
    images.need_busybox()
    whole.remove_everything()
    script = "mkdir -p /deep/er; echo inside >/deep/er/file; ln -s /etc /deep/out; chmod 4755 /bin/busybox"
    teu("run", "--name", "maker", "--network", "none", whole.IMAGE, "sh", "-c", script)
    teu("commit", "maker", "shown")
    whole.remove_everything()
    yield
    whole.remove_everything()
    teu("rmi", "-f", "shown")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    whole.remove_everything()
    whole.eventually("what was mounted is given back", lambda: not views())


def views() -> list[str]:
    """Snapshots of images that are mounted."""
    return [line for line in images.ctr("snapshots", "ls") if len(line.split()[0]) == 81]


def box(*argv: str, mount: str = SHOW) -> str:
    return out("teu", "run", "--rm", "--network", "none", "--mount", mount, whole.IMAGE, *argv)


def refused(mount: str) -> str:
    done = teu("run", "--rm", "--network", "none", "--mount", mount, whole.IMAGE, "true", check=False)
    assert done.returncode in (125, 127), done  # the latter where something is not there, as docker's client has it
    return done.stderr


def test_an_image_is_there_to_be_read() -> None:
    assert box("cat", "/shown/deep/er/file") == "inside"
    assert "Read-only file system" in box("sh", "-c", "touch /shown/deep/new 2>&1 || true")
    assert "Read-only" in box("sh", "-c", "mount -o remount,rw /shown 2>&1; touch /shown/deep/new 2>&1 || true")
    teu("create", "--name", "one", "--network", "none", "--mount", SHOW, whole.IMAGE, "true")
    (mount,) = json.loads(out("teu", "inspect", "-f", "{{json .Mounts}}", "one"))
    identity = out("teu", "image", "inspect", "-f", "{{.Id}}", "shown")
    assert mount == {
        "Type": "image",
        "Name": "shown",
        "Source": identity,
        "Destination": "/shown",
        "Mode": "",
        "RW": False,
        "Propagation": "rprivate",
    }


def test_a_part_of_it() -> None:
    assert box("ls", "/shown", mount=f"{SHOW},image-subpath=deep/er") == "file"
    assert box("cat", "/shown", mount=f"{SHOW},image-subpath=deep/er/file") == "inside"
    assert "cannot access path nowhere" in refused(f"{SHOW},image-subpath=nowhere")
    assert "escapes the base directory" in refused(f"{SHOW},image-subpath=deep/out")
    assert "subpath must be a relative path within the image" in refused(f"{SHOW},image-subpath=../x")
    assert "subpath must be a relative path within the image" in refused(f"{SHOW},image-subpath=/etc")


def test_what_is_refused() -> None:
    assert "No such image: nobody" in refused("type=image,source=nobody,target=/x")
    assert "field Source must not be empty" in refused("type=image,target=/x")
    body = {"Image": whole.IMAGE, "HostConfig": {"Mounts": [{"Type": "image", "Source": "shown", "Target": "/x"}]}}
    status, said = images.api("POST", "/containers/create", body, version="1.47")
    assert (status, said["message"]) == (400, 'Mount type "image" needs API v1.48 or newer')
    teu("create", "--name", "there", "--network", "none", "--mount", SHOW, whole.IMAGE, "true")
    done = teu("update", "--unmount", "/shown", "there", check=False)
    assert "an image is mounted for as long as the container is there" in done.stderr
    done = teu("update", "--mount", "type=image,source=shown,target=/more", "there", check=False)
    assert "is mounted when a container is made" in done.stderr


def test_two_at_once_and_by_others() -> None:
    more = ("--mount", "type=image,source=shown,target=/part,image-subpath=deep")
    teu("run", "-d", "--name", "first", "--network", "none", "--mount", SHOW, *more, whole.IMAGE, "sleep", "600")
    assert out("teu", "exec", "first", "cat", "/shown/deep/er/file", "/part/er/file") == "inside\ninside"
    run = ("run", "--rm", "--network", "none", "--volumes-from", "first", whole.IMAGE, "cat", "/part/er/file")
    assert out("teu", *run) == "inside"
    # A container is gone for those who wait for it before its snapshots are.
    whole.eventually("only those of the first are left", lambda: len(views()) == 2)


def test_it_stays_when_its_name_goes() -> None:
    teu("tag", "shown", "other")
    teu("run", "-d", "--name", "stays", "--network", "none", "--mount", SHOW, whole.IMAGE, "sleep", "600")
    teu("commit", "stays", "kept")
    teu(
        "create",
        "--name",
        "later",
        "--network",
        "none",
        "--mount",
        SHOW.replace("shown,", "kept,"),
        whole.IMAGE,
        "true",
    )
    teu("rmi", "-f", "kept")
    images.collect()
    whole.call("systemctl", "restart", "teud", "teu-containerd")
    assert out("teu", "exec", "stays", "cat", "/shown/deep/er/file") == "inside"
    teu("restart", "-t", "0", "stays")
    assert out("teu", "exec", "stays", "cat", "/shown/deep/er/file") == "inside"
    assert teu("start", "-a", "later").returncode == 0
    teu("rmi", "other")


def test_cp_sees_it() -> None:
    """Of a container that runs, and of one that does not."""
    teu("run", "-d", "--name", "seen", "--network", "none", "--mount", SHOW, whole.IMAGE, "sleep", "600")
    for _ in range(2):
        tar = subprocess.run(
            ["teu", "cp", "seen:/shown/deep/er/file", "-"], capture_output=True, check=True, timeout=60
        ).stdout
        assert b"inside\n" in tar
        teu("stop", "-t", "0", "seen")
    done = teu("cp", "/etc/hostname", "seen:/shown/deep/er/new", check=False)
    assert done.returncode != 0


def test_a_single_layer_is_read_only_too() -> None:
    """The snapshot of one layer is a folder, and no overlay."""
    assert "Read-only" in box(
        "sh", "-c", "touch /x/new 2>&1 || true", mount=f"type=image,source={whole.IMAGE},target=/x"
    )
