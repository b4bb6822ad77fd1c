# SPDX-License-Identifier: Apache-2.0
"""Garbage collection while images are pulled and removed: what is referenced stays, and nothing else does.

Three clients pull and remove images that share their first layer, each in a way of its own: by the daemon's transfer
service, by Debian's `ctr` in steps of its own under a lease, and by `teu-ctr`. A fourth one asks for a collection as
often as it can, besides those that the daemon makes after every few changes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import queue
import subprocess
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
from test_containerd_faults import ROOTED, Daemon, layer, no_garbage

pytestmark = [pytest.mark.needs("containerd", "docker-registry", "fast"), pytest.mark.timeout(200)]

EAGER = "gc: {threshold: 3, interval: 1s}\n"
ROUNDS = 4
# name of the image -> how it is pulled
CLIENTS: dict[str, list[str]] = {
    "transfer": ["ctr", "images", "pull", "--plain-http"],
    "steps": ["ctr", "images", "pull", "--plain-http", "--local"],
    "ours": ["teu-ctr", "images", "pull", "--plain-http"],
}


class Image:
    """An OCI image of two layers, as an archive; the first one is shared by all."""

    def __init__(self, name: str, base: tuple[bytes, dict[str, str]], own: tuple[bytes, dict[str, str]]) -> None:
        self.name = name
        self.files = {**base[1], **own[1]}
        self.blobs: dict[str, bytes] = {}
        kind = "application/vnd.oci.image."
        layers = [self._blob(one[0], kind + "layer.v1.tar") for one in (base, own)]
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        diff_ids = [one["digest"] for one in layers]
        config = {"architecture": machine, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": kind + "manifest.v1+json",
            "config": self._blob(json.dumps(config).encode(), kind + "config.v1+json"),
            "layers": layers,
        }
        self.entry = self._blob(json.dumps(manifest).encode(), kind + "manifest.v1+json")
        self.entry["annotations"] = {"io.containerd.image.name": name}
        both = hashlib.sha256(" ".join(diff_ids).encode()).hexdigest()
        self.chain = (diff_ids[0], f"sha256:{both}")

    def _blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def archive(self, path: Path) -> Path:
        files = {f"blobs/sha256/{digest[7:]}": data for digest, data in self.blobs.items()}
        files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [self.entry]}).encode()
        with tarfile.open(path, "w") as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        return path


class EagerDaemon(Daemon):
    """It collects after every few changes."""

    def launch(self, extra: str = "") -> None:
        config = self.run / "containerd.yaml"
        config.write_text(extra or EAGER)
        self.start(
            [
                "/usr/sbin/teu-containerd",
                "--config",
                str(config),
                "--root",
                str(self.root),
                "--state",
                str(self.run / "state"),
                "--address",
                str(self.address),
            ],
            lambda: self.address.exists() and peers.run(*self.client, "version", code=0),
        )


def whole(daemon: Daemon, image: Image) -> None:
    """All of the image is there: its name, every blob to the byte, the snapshots and each file in them."""
    with daemon.services() as services:
        assert image.name in services.names()
        for digest, data in image.blobs.items():
            assert services.read(digest) == data, f"{image.name}: {digest}"
        assert set(image.chain) <= services.committed(), image.name
        assert services.layered_files(image.chain[1]) == image.files


def pull(daemon: Daemon, image: Image, how: list[str]) -> None:
    """The real ctr, when it unpacks by itself, asks whether a parent is there and holds it only later: what another
    client's removal has collected in between it has to fetch again. The daemon and our own client hold first."""
    program, *words = how
    for attempt in range(5):
        try:
            peers.run(program, "--address", str(daemon.address), *words, image.name)
            return
        except peers.Failed as error:
            if how is not CLIENTS["steps"] or attempt == 4 or "parent snapshot" not in str(error):
                raise


def pull_and_remove(daemon: Daemon, image: Image, how: list[str]) -> None:
    """Round after round; the image is there at the end."""
    for number in range(ROUNDS):
        pull(daemon, image, how)
        whole(daemon, image)
        if number < ROUNDS - 1:
            daemon("images", "rm", *(["--sync"] if number % 2 else []), image.name)


def collect(daemon: Daemon, until: threading.Event) -> int:
    collections = 0
    while not until.is_set():
        daemon("leases", "create", "--id", "passing")
        daemon("leases", "rm", "--sync", "passing")
        collections += 1
    return collections


class Job(threading.Thread):
    """A thread whose result, or exception, is asked for."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self._work = work
        self._result: object = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> object:
        self.join()
        if self._error is not None:
            raise self._error
        return self._result


def test_collections_during_pulls(tmp_path: Path) -> None:
    daemon = EagerDaemon()
    try:
        with peers.registry() as registry:
            daemon.launch()
            base = layer(0)
            images = [
                Image(f"{registry.address}/{client}:1", base, layer(number)) for number, client in enumerate(CLIENTS, 1)
            ]
            for number, image in enumerate(images):
                archive = image.archive(tmp_path / f"{number}.tar")
                daemon("images", "import", "--no-unpack", str(archive))
                daemon("images", "push", "--plain-http", image.name)
                daemon("images", "rm", "--sync", image.name)
            done = threading.Event()
            collector = Job(lambda: collect(daemon, done))
            jobs = [
                Job(lambda image=image, how=how: pull_and_remove(daemon, image, how))  # type: ignore[misc]
                for image, how in zip(images, CLIENTS.values(), strict=True)
            ]
            for job in jobs:
                job.join()
            done.set()
            for job in (*jobs, collector):
                job.result()
            for image in images:
                whole(daemon, image)
            kept = set[str]().union(*(image.blobs for image in images))
            settled(daemon, kept, {name for image in images for name in image.chain})
            for image in images:
                daemon("images", "rm", image.name)
            settled(daemon, set(), set())
    finally:
        daemon.stop()
        daemon.remove()


def test_a_blob_that_another_client_writes(tmp_path: Path) -> None:
    """teu-ctr waits for it, and then has it as well."""
    data = os.urandom(1000)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    file = tmp_path / "blob"
    file.write_bytes(data)
    ingest = ["teu-ctr", "--address", "", "content", "ingest", "--expected-size", "1000"]
    daemon = Daemon()
    requests: queue.Queue[Any] = queue.Queue()
    try:
        daemon.launch()
        ingest[2] = str(daemon.address)
        with daemon.services() as services, file.open("rb") as source:
            ask = services.content.WriteContentRequest
            answers = services.stream(iter(requests.get, None))
            requests.put(ask(action=1, ref="both", total=1000, expected=digest, data=data[:500]))
            next(answers)
            waiting = subprocess.Popen([*ingest, "--expected-digest", digest, "both"], stdin=source)
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    waiting.wait(1)
                requests.put(ask(action=1, ref="both", offset=500, total=1000, expected=digest, data=data[500:]))
                requests.put(ask(action=2, ref="both", offset=1000, total=1000, expected=digest, labels=ROOTED))
                next(answers), next(answers)
                assert waiting.wait(60) == 0
            finally:
                requests.put(None)
                waiting.kill()
                waiting.wait()
            assert services.read(digest) == data
    finally:
        daemon.stop()
        daemon.remove()


def settled(daemon: Daemon, blobs: set[str], snapshots: set[str]) -> None:
    """After a collection exactly these are there, and neither an ingest nor a lease."""
    no_garbage(daemon)
    with daemon.services() as services:
        assert services.digests() == blobs
        assert services.kept() == snapshots
    assert daemon("leases", "ls", "-q") == ""
    assert daemon("content", "active").splitlines()[1:] == []
