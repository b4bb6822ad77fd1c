# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the content store, made and used by Debian's ctr and by teu-ctr, each of what the other one made, on
teu-containerd with our shim and on Debian's.

criu writes to /proc/sys when it restores, which is not to be written to in the namespace lab: the daemons here have a
mount namespace with a /proc of their own.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import peers
import pytest
from taskhouse import OWN_SHIM, TeuContainerd
from test_ctr import TEU_CTR

pytestmark = [pytest.mark.needs("criu", "containerd", "trixie"), pytest.mark.timeout(240)]

IMAGES = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"
SLEEP = ["sleep", "100000"]
# A link, not a file: no descriptor is another for a moment, which a checkpoint would take for what it is.
COUNT = ["sh", "-c", "n=0; while :; do n=$((n+1)); ln -sfn $n /count; echo $n; sleep 0.05; done"]


OWN_PROC = ["unshare", "--mount", "sh", "-c", 'mount -t proc proc /proc && exec "$@"', "sh"]


def started_by(prefix: list[str]) -> Callable[..., None]:
    """Daemon.start, with words before the daemon's own."""
    start = peers.Daemon.start

    def wrapped(
        self: peers.Daemon, argv: list[str], ready: Callable[[], object], env: Mapping[str, str] | None = None
    ) -> None:
        start(self, [*prefix, *argv], ready, env)

    return wrapped


@pytest.fixture(scope="module", autouse=True)
def own_proc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers.Containerd, "start", started_by(OWN_PROC), raising=False)
        yield


@pytest.fixture(scope="module", params=["teu", "debian-on-teu-shim"])
def ctr(request: pytest.FixtureRequest, own_proc: None) -> Iterator[tuple[peers.Containerd, list[str]]]:
    daemon = TeuContainerd() if request.param.startswith("teu") else peers.Containerd()
    flags = ["--runtime", OWN_SHIM, "--cpu-shares", "0", "--null-io"]
    try:
        daemon.launch()
        daemon.load_busybox()
        yield daemon, flags
    finally:
        daemon.stop()
        daemon.remove()


def saved(daemon: peers.Containerd, name: str) -> dict[str, list[str]]:
    """The blobs of a checkpoint's index, by their kind."""
    digest = next(line.split()[2] for line in daemon("images", "ls").splitlines() if line.startswith(name))
    found: dict[str, list[str]] = {}
    for one in json.loads(daemon("content", "get", digest))["manifests"]:
        found.setdefault(one["mediaType"], []).append(one["digest"])
    return found


def blob(daemon: peers.Containerd, digest: str) -> bytes:
    path = Path(peers.run("mktemp").stdout.strip())
    peers.run("sh", "-c", f"{' '.join(daemon.client)} content get {digest} > {path}")
    data = path.read_bytes()
    path.unlink()
    return data


def by(daemon: peers.Containerd, program: str) -> Callable[..., str]:
    """The daemon's client, whichever of the two."""

    def run(*words: str, code: int | None = 0) -> str:
        return peers.run(program, "--address", str(daemon.address), *words, code=code, timeout=240).stdout

    return run


PROGRAMS = pytest.mark.parametrize("program", ["ctr", TEU_CTR], ids=["ctr", "teu-ctr"])


@PROGRAMS
def test_saved_into_the_content_store(ctr: tuple[peers.Containerd, list[str]], program: str) -> None:
    daemon, flags = ctr
    # Each a specification of its own: Debian's containerd fails where the blob of one is there already.
    saved_name = f"saved-by-{Path(program).name}"
    daemon("run", "-d", *flags, peers.IMAGE, saved_name, *SLEEP)
    try:
        name = by(daemon, program)("tasks", "checkpoint", "--exit", saved_name).strip()
        assert re.fullmatch(rf"containerd.io/checkpoint/{saved_name}:\d\d-\d\d-\d{{4}}-\d\d:\d\d:\d\d", name)
        peers.wait_until(lambda: "STOPPED" in daemon("tasks", "ls"), "the task ends")
        line = next(line for line in daemon("images", "ls").splitlines() if line.startswith(name))
        assert line.split()[1] == "application/vnd.oci.image.index.v1+json"
        assert line.split()[-1] == "containerd.io/checkpoint=true"
        index = json.loads(daemon("content", "get", line.split()[2]))
        kinds = [one["mediaType"] for one in index["manifests"]]
        assert kinds == [IMAGES, CONFIG, "application/vnd.oci.image.manifest.v1+json", LAYER]
        assert index["annotations"] == {"image.name": peers.IMAGE}
        held = next(row for row in daemon("content", "ls").splitlines() if row.startswith(line.split()[2]))
        for one in index["manifests"]:
            assert f"={one['digest']}" in held, "the garbage collector would take it"
        found = saved(daemon, name)
        with tarfile.open(fileobj=io.BytesIO(blob(daemon, found[IMAGES][0]))) as tar:
            names = tar.getnames()
        assert {"inventory.img", "pstree.img", "descriptors.json"} <= set(names)
        assert b"ociVersion" in blob(daemon, found[CONFIG][0])
        assert not list(Path("/run").glob("ctrd-checkpoint*")) or not isinstance(daemon, TeuContainerd)
        assert not list((daemon.state / "root/checkpoints").glob("*"))
        daemon("images", "rm", "--sync", name)
    finally:
        daemon("tasks", "rm", "-f", saved_name, code=None)
        daemon("containers", "rm", saved_name, code=None)


@PROGRAMS
def test_saved_into_a_folder(ctr: tuple[peers.Containerd, list[str]], program: str, tmp_path: Path) -> None:
    """With --image-path no image is made. Debian's containerd and ctr know such a folder of runc's runtimes only."""
    daemon, flags = ctr
    if not (isinstance(daemon, TeuContainerd) and program == TEU_CTR):
        flags = ["--runtime", "io.containerd.runc.v2", *flags[2:]]
    name = f"kept-by-{Path(program).name}"
    daemon("run", "-d", *flags, peers.IMAGE, name, *SLEEP)
    try:
        folder = tmp_path / "images"
        folder.mkdir()
        assert by(daemon, program)("tasks", "checkpoint", "--image-path", str(folder), name) == ""
        assert (folder / "inventory.img").exists()
        assert name not in daemon("images", "ls", "-q")
    finally:
        daemon("tasks", "rm", "-f", name, code=None)
        daemon("containers", "rm", name, code=None)


@PROGRAMS
def test_a_checkpoint_that_is_none(ctr: tuple[peers.Containerd, list[str]], program: str) -> None:
    daemon, flags = ctr
    client = by(daemon, program)
    assert "not found" in daemon.result("tasks", "checkpoint", "nobody", code=1).stderr
    daemon("containers", "create", *flags[:2], peers.IMAGE, "plain", *SLEEP)
    assert daemon.result("containers", "restore", "--live", "other", peers.IMAGE, code=None).returncode != 0
    client("containers", "checkpoint", "nobody", "local/none:1", code=1)
    client("containers", "checkpoint", "plain", code=1)
    client("containers", "restore", "--live", "other", peers.IMAGE, code=1)
    assert "other" not in daemon("tasks", "ls")
    daemon("containers", "rm", "other", code=None)
    # Without the memory there is no specification: it can be saved, and not be made a container of.
    client("containers", "checkpoint", "--rw", "--image", "plain", "local/plain:1")
    kinds = set(saved(daemon, "local/plain:1"))
    assert kinds >= {LAYER, "application/vnd.oci.image.manifest.v1+json"} and CONFIG not in kinds
    client("containers", "restore", "--rw", "other", "local/plain:1", code=1)
    # ctr leaves the snapshot that it has made for the container.
    daemon("snapshots", "rm", "other", code=None if program == "ctr" else 1)
    daemon("images", "rm", "local/plain:1")
    daemon("containers", "rm", "plain")


@pytest.mark.parametrize(
    ("saver", "restorer"),
    [("ctr", "ctr"), ("ctr", TEU_CTR), (TEU_CTR, "ctr")],
    ids=["ctr-to-ctr", "ctr-to-teu-ctr", "teu-ctr-to-ctr"],
)
def test_there_and_back(ctr: tuple[peers.Containerd, list[str]], saver: str, restorer: str) -> None:
    """A container goes on counting where it was, from image, layer and memory of the checkpoint."""
    daemon, flags = ctr
    name = f"{Path(saver).name}-{Path(restorer).name}"

    def count(name: str) -> int:
        text = daemon("tasks", "exec", "--exec-id", "look", name, "readlink", "/count", code=None).strip()
        return int(text) if re.fullmatch(r"\d+", text) else 0

    daemon("run", "-d", *flags, peers.IMAGE, name, *COUNT)
    try:
        peers.wait_until(lambda: count(name) > 3, "it counts")
        by(daemon, saver)("containers", "checkpoint", "--rw", "--image", "--task", name, f"local/{name}:1")
        before = count(name)
        daemon("tasks", "rm", "-f", name, code=None)
        daemon("containers", "rm", name)
        by(daemon, restorer)("containers", "restore", "--rw", "--live", name, f"local/{name}:1")
        peers.wait_until(lambda: count(name) > before, "it goes on counting", 120)
    finally:
        daemon("tasks", "rm", "-f", name, code=None)
        daemon("containers", "rm", name, code=None)
        daemon("images", "rm", "--sync", f"local/{name}:1", code=None)


@pytest.mark.needs("docker")
@pytest.mark.parametrize("runtime", ["runc", "teu"])
def test_docker_checkpoint(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """dockerd saves into our content store, takes it out for its own folder, and brings it back to restore from."""
    containerd = TeuContainerd()
    try:
        containerd.launch()
        assert containerd.process
        # What dockerd mounts, the shims must see.
        enter = ["nsenter", "--target", str(containerd.process.pid), "--mount"]
        monkeypatch.setattr(peers.Dockerd, "start", started_by(enter), raising=False)
        with peers.dockerd(
            runtimes={"teu": "io.containerd.teu.v2"},
            containerd_address=str(containerd.address),
            config={"experimental": True},
        ) as docker:
            docker.load_busybox()

            def told() -> list[int]:
                return [int(line) for line in docker("logs", "counter").splitlines()]

            # Nearly always its 1 is another than the one it was given.
            count = "n=0; while :; do n=$((n+1)); echo $n; { sleep 0.05; } > /dev/null; done"
            given = ("--name=counter", "--network=none", f"--runtime={runtime}", peers.NAME, "sh", "-c", count)
            docker("run", "-d", *given)
            peers.wait_until(lambda: len(told()) > 3, "it counts")
            docker("checkpoint", "create", "counter", "one")
            if runtime == "teu":
                docker("kill", "counter")  # docker has only runtimes named runc end what they have saved
            peers.wait_until(
                lambda: docker("inspect", "-f", "{{.State.Running}}", "counter") == "false\n", "the container has ended"
            )
            assert docker("checkpoint", "ls", "counter").split()[-1] == "one"
            before = len(told())
            docker("start", "--checkpoint", "one", "counter")
            peers.wait_until(lambda: len(told()) > before + 3, "it goes on counting and is heard", 120)
            assert told().count(1) == 1, "it went on, it did not begin again"
            docker("rm", "-f", "counter")
    finally:
        containerd.stop()
        containerd.remove()
