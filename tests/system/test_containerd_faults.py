# SPDX-License-Identifier: Apache-2.0
"""teu-containerd under faults: kill -9 and power cuts at random moments, a full disk, damaged blobs, lost clients.

A power cut is ext4's own: FS_IOC_SHUTDOWN without flushing its log loses all that is not on the disk yet, as a machine
does that loses power; mounted again, the file system is what a reboot would find.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import random
import re
import socket
import stat
import struct
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from taskhouse import TeuContainerd

pytestmark = [pytest.mark.needs("containerd", "fast"), pytest.mark.timeout(300)]

FS_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_WITHOUT_FLUSH = 2
LOOP_CTL_GET_FREE = 0x4C82
ROOTED = {"containerd.io/gc.root": "x"}


class Disk:
    """An ext4 file system of its own, in a file."""

    def __init__(self, base: Path, megabytes: int) -> None:
        self.image = base / "disk"
        self.point = base / "mounted"
        self.point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(megabytes << 20)
        peers.run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(self.image))
        self.mount()

    def mount(self) -> None:
        with open("/dev/loop-control") as control:
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
        self.device = Path(f"/dev/loop{number}")
        if not self.device.exists():
            os.mknod(self.device, stat.S_IFBLK | 0o600, os.makedev(7, number))
        peers.run("losetup", str(self.device), str(self.image))
        peers.run("mount", str(self.device), str(self.point))

    def cut(self) -> None:
        fd = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_WITHOUT_FLUSH))
        finally:
            os.close(fd)

    def umount(self) -> None:
        free = lambda: peers.run("umount", str(self.point), code=None).returncode == 0  # noqa: E731
        peers.wait_until(free, "the disk to be in use by nobody", 15)
        peers.run("losetup", "-d", str(self.device))

    def used(self) -> int:
        found = os.statvfs(self.point)
        return (found.f_blocks - found.f_bfree) * found.f_frsize


@contextlib.contextmanager
def disk(megabytes: int) -> Iterator[Disk]:
    if not Path("/dev/loop-control").exists():
        pytest.skip("no loop devices in this lab")
    with tempfile.TemporaryDirectory(dir="/var/lib", prefix="teu-disk-") as base:
        made = Disk(Path(base), megabytes)
        try:
            yield made
        finally:
            with contextlib.suppress(Exception):
                made.umount()


class Daemon(TeuContainerd):
    """Ours, with its root where a test wants it, and a gRPC client of Python's."""

    def __init__(self, root: Path | None = None) -> None:
        super().__init__()
        self.root = root or self.state / "root"

    def launch(self, extra: str = "") -> None:
        self.start(
            [
                "/usr/sbin/teu-containerd",
                "--root",
                str(self.root),
                "--state",
                str(self.run / "state"),
                "--address",
                str(self.address),
            ],
            lambda: self.address.exists() and peers.run(*self.client, "version", code=0),
        )

    @contextlib.contextmanager
    def services(self) -> Iterator[Services]:
        import grpc

        with grpc.insecure_channel(f"unix:{self.address}") as channel:
            yield Services(channel)


class Services:
    def __init__(self, channel: Any) -> None:
        from teu.api.services.content.v1 import content_pb2, content_pb2_grpc
        from teu.api.services.diff.v1 import diff_pb2, diff_pb2_grpc
        from teu.api.services.images.v1 import images_pb2, images_pb2_grpc
        from teu.api.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc

        self.content, self.diff, self.images, self.snapshots = content_pb2, diff_pb2, images_pb2, snapshots_pb2
        self._content = content_pb2_grpc.ContentStub(channel)
        self._diff = diff_pb2_grpc.DiffStub(channel)
        self._images = images_pb2_grpc.ImagesStub(channel)
        self._snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        self._call: dict[str, Any] = {"metadata": [("containerd-namespace", "default")], "timeout": 20}

    def write(self, ref: str, data: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        pieces = [data[at : at + 200_000] for at in range(0, len(data), 200_000)]
        requests = [self.content.WriteContentRequest(action=0, ref=ref, total=len(data))]
        at = 0
        for piece in pieces:
            requests.append(self.content.WriteContentRequest(action=1, ref=ref, offset=at, data=piece))
            at += len(piece)
        requests.append(
            self.content.WriteContentRequest(action=2, ref=ref, offset=at, total=at, expected=digest, labels=ROOTED)
        )
        for answer in self._content.Write(iter(requests), **self._call):
            last = answer
        assert last.action == 2
        return digest

    def stream(self, requests: Iterator[Any]) -> Iterator[Any]:
        """The answers to a Write whose requests come one by one."""
        answers: Iterator[Any] = self._content.Write(requests, **self._call)
        return answers

    def read(self, digest: str) -> bytes:
        request = self.content.ReadContentRequest(digest=digest)
        return b"".join(one.data for one in self._content.Read(request, **self._call))

    def digests(self) -> set[str]:
        answers = self._content.List(self.content.ListContentRequest(), **self._call)
        return {info.digest for answer in answers for info in answer.info}

    def tag(self, name: str, digest: str) -> None:
        image = self.images.Image(name=name, target={"media_type": "m", "digest": digest, "size": 1})
        self._images.Create(self.images.CreateImageRequest(image=image), **self._call)

    def names(self) -> set[str]:
        return {one.name for one in self._images.List(self.images.ListImagesRequest(), **self._call).images}

    def unpack(self, digest: str, size: int, name: str) -> None:
        """A committed snapshot of the layer."""
        key = f"extract-{name}"
        mounts = self._snapshots.Prepare(
            self.snapshots.PrepareSnapshotRequest(snapshotter="overlayfs", key=key, labels=ROOTED), **self._call
        ).mounts
        layer = {"media_type": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}
        self._diff.Apply(self.diff.ApplyRequest(diff=layer, mounts=mounts), **self._call)
        self._snapshots.Commit(
            self.snapshots.CommitSnapshotRequest(snapshotter="overlayfs", key=key, name=name, labels=ROOTED),
            **self._call,
        )

    def files(self, name: str) -> dict[str, str]:
        """path -> hash of every file of a committed snapshot."""
        key = f"look-{name}-{time.monotonic_ns()}"
        (mount,) = self._snapshots.View(
            self.snapshots.ViewSnapshotRequest(snapshotter="overlayfs", key=key, parent=name, labels=ROOTED),
            **self._call,
        ).mounts
        found = {}
        for path in Path(mount.source).rglob("*"):
            if path.is_file():
                found[str(path.relative_to(mount.source))] = hashlib.sha256(path.read_bytes()).hexdigest()
        self._snapshots.Remove(self.snapshots.RemoveSnapshotRequest(snapshotter="overlayfs", key=key), **self._call)
        return found

    def layered_files(self, name: str) -> dict[str, str]:
        """The same of a committed snapshot that has parents; no file is hidden by another."""
        key = f"look-{name}-{time.monotonic_ns()}"
        (mount,) = self._snapshots.View(
            self.snapshots.ViewSnapshotRequest(snapshotter="overlayfs", key=key, parent=name, labels=ROOTED),
            **self._call,
        ).mounts
        (lower,) = (option.partition("=")[2] for option in mount.options if option.startswith("lowerdir="))
        found = {}
        for folder in lower.split(":"):
            for path in Path(folder).rglob("*"):
                if path.is_file():
                    found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        self._snapshots.Remove(self.snapshots.RemoveSnapshotRequest(snapshotter="overlayfs", key=key), **self._call)
        return found

    def kept(self, *filters: str) -> set[str]:
        """The names of the snapshots, all or of those that a filter matches."""
        request = self.snapshots.ListSnapshotsRequest(snapshotter="overlayfs", filters=filters)
        return {info.name for answer in self._snapshots.List(request, **self._call) for info in answer.info}

    def committed(self) -> set[str]:
        return self.kept("kind==committed")

    def remove_image(self, name: str) -> None:
        self._images.Delete(self.images.DeleteImageRequest(name=name), **self._call)

    def remove_snapshot(self, name: str) -> None:
        self._snapshots.Remove(self.snapshots.RemoveSnapshotRequest(snapshotter="overlayfs", key=name), **self._call)

    def remove_blob(self, digest: str) -> None:
        self._content.Delete(self.content.DeleteContentRequest(digest=digest), **self._call)


def layer(number: int) -> tuple[bytes, dict[str, str]]:
    """A tar with files, and the hash of each."""
    files = {f"d{index % 3}/f{number}-{index}": os.urandom(random.choice((10, 5_000, 300_000))) for index in range(8)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue(), {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


class Work:
    """Does what a pull does, over and over, and keeps account of what was acknowledged."""

    def __init__(self) -> None:
        self.digests: dict[int, str] = {}
        self.blobs: set[str] = set()
        self.images: set[str] = set()
        self.snapshots: dict[str, dict[str, str]] = {}
        self.forgotten: set[str] = set()
        self.cut_off = 0
        self.number = 0

    def until_cut(self, daemon: Daemon) -> None:
        import grpc

        try:
            with daemon.services() as services:
                while True:
                    self.number += 1
                    data, files = layer(self.number)
                    self.digests[self.number] = "sha256:" + hashlib.sha256(data).hexdigest()
                    digest = services.write(f"ref-{self.number}", data)
                    self.blobs.add(digest)
                    services.unpack(digest, len(data), f"layer-{self.number}")
                    self.snapshots[f"layer-{self.number}"] = files
                    services.tag(f"image-{self.number}", digest)
                    self.images.add(f"image-{self.number}")
        except grpc.RpcError:
            self.cut_off += 1

    def verify(self, daemon: Daemon) -> None:
        """Nothing acknowledged is lost, everything there is whole."""
        with daemon.services() as services:
            missing = self.blobs - services.digests()
            assert not missing, f"{len(missing)} of {len(self.blobs)} blobs are lost"
            assert not self.images - services.names(), "an image is lost"
            assert not self.snapshots.keys() - services.committed(), "a snapshot is lost"
            for digest in services.digests():
                assert "sha256:" + hashlib.sha256(services.read(digest)).hexdigest() == digest
            for name in sorted(self.snapshots, key=number_of)[-12:]:
                assert services.files(name) == self.snapshots[name], f"{name} is damaged"
            there = services.digests() | services.names() | services.kept()
            assert not self.forgotten & there, "what was removed is there again"

    def forget(self, daemon: Daemon, keep: int) -> None:
        """Remove all but the newest, so that the disk holds whatever a fast machine makes in all rounds."""
        last = self.number - keep
        with daemon.services() as services:
            mine = re.compile(r"(image|layer|extract)-\d+")
            for name in {name for name in services.names() if mine.fullmatch(name) and number_of(name) <= last}:
                services.remove_image(name)
                self.images.discard(name)
                self.forgotten.add(name)
            for name in {name for name in services.kept() if mine.fullmatch(name) and number_of(name) <= last}:
                services.remove_snapshot(name)
                self.snapshots.pop(name, None)
                self.forgotten.add(name)
            for number in [number for number in self.digests if number <= last]:
                digest = self.digests.pop(number)
                if digest in services.digests():
                    services.remove_blob(digest)
                    self.forgotten.add(digest)
                self.blobs.discard(digest)


def number_of(name: str) -> int:
    """Of "layer-12": 12."""
    return int(name.rpartition("-")[2])


def no_garbage(daemon: Daemon) -> None:
    """No blob's file and no snapshot's folder without a record, once the collection has run."""
    daemon("leases", "create", "--id", "last")
    daemon("leases", "rm", "--sync", "last")

    def clean() -> bool:
        with daemon.services() as services:
            blobs = {f"sha256:{name}" for name in os.listdir(daemon.root / "content/blobs/sha256")}
            folders = os.listdir(daemon.root / "snapshots/overlayfs")
            return blobs == services.digests() and len(folders) == len(services.kept())

    peers.wait_until(clean, "files without a record to be gone", 20)


class Pulls:
    """Pulls images, over and over, and keeps account of those that were pulled."""

    def __init__(self, daemon: Daemon, registry: str, count: int) -> None:
        self._daemon = daemon
        self._names = [f"{registry}/pulled:{number}" for number in range(count)]
        self.kept: set[str] = set()
        self.acknowledged = 0
        self.cut_off = 0

    def fill(self, folder: Path) -> None:
        """Put the images into the registry."""
        with contextlib.ExitStack() as undo:
            helper = Daemon()
            undo.callback(helper.remove)
            undo.callback(helper.stop)
            helper.launch()
            for number, name in enumerate(self._names):
                image = folder / f"{number}.tar"
                image.write_bytes(one_layer_image(name, layer(-number)[0]))
                helper("images", "import", "--no-unpack", str(image))
                helper("images", "push", "--plain-http", name)

    def until_cut(self) -> None:
        client = ["teu-ctr", "--address", str(self._daemon.address), "images"]
        while True:
            name = random.choice(self._names)
            if name in self.kept:
                self.kept.discard(name)
                done = peers.run(*client, "rm", "--sync", name, code=None)
            else:
                done = peers.run(*client, "pull", "--plain-http", name, code=None)
                if done.returncode == 0:
                    self.kept.add(name)
                    self.acknowledged += 1
            if done.returncode:
                self.cut_off += 1
                return

    def verify(self) -> None:
        found = {line.split()[0]: line for line in self._daemon("images", "check", 'name~="/pulled:"').splitlines()[1:]}
        for name in self.kept:
            assert name in found, f"{name} is lost"
            assert "complete" in found[name] and "incomplete" not in found[name], found[name]
            assert found[name].split()[-1] == "true", f"not unpacked: {found[name]}"


@pytest.mark.timeout(600)
@pytest.mark.needs("docker-registry")
def test_power_cuts(rounds: Callable[[int], int], tmp_path: Path) -> None:
    """In the middle of what a client's pull does, and of pulls by the daemon itself."""
    count = rounds(15)
    work = Work()
    with peers.registry() as registry, disk(2000) as place:
        daemon = Daemon(place.point / "root")
        pulls = Pulls(daemon, registry.address, 6)
        pulls.fill(tmp_path)
        try:
            daemon.launch()
            for _ in range(count):
                workers = [
                    threading.Thread(target=work.until_cut, args=(daemon,)),
                    threading.Thread(target=pulls.until_cut),
                ]
                for worker in workers:
                    worker.start()
                if not (work.images and pulls.acknowledged):  # the first round
                    peers.wait_until(lambda: work.images and pulls.acknowledged, "something to be acknowledged")
                time.sleep(random.uniform(0.05, 1.2))
                place.cut()
                daemon.kill()
                for worker in workers:
                    worker.join()
                place.umount()
                place.mount()
                daemon.launch()
                work.verify(daemon)
                pulls.verify()
                work.forget(daemon, 24)
                no_garbage(daemon)
        finally:
            daemon.stop()
            daemon.remove()
    print(
        f"{count} power cuts: {len(work.blobs)} blobs, {len(work.images)} images, {len(work.snapshots)} snapshots "
        f"kept, {len(work.forgotten)} removed; {pulls.acknowledged} images pulled, "
        f"{pulls.cut_off} pulls or removals cut off"
    )
    assert pulls.cut_off


def test_kills(rounds: Callable[[int], int]) -> None:
    """The same under kill -9, with a collection going on all the time."""
    count = rounds(15)
    work = Work()
    daemon = Daemon()
    try:
        daemon.launch()
        for _ in range(count):
            worker = threading.Thread(target=work.until_cut, args=(daemon,))
            worker.start()
            time.sleep(random.uniform(0.02, 0.4))
            daemon.result("leases", "create", "--id", f"l{time.monotonic_ns()}", code=None)
            daemon.result("images", "rm", "--sync", "none", code=None)
            daemon.kill()
            worker.join()
            daemon.launch()
            with daemon.services() as services:
                assert not work.blobs - services.digests()
        work.verify(daemon)
        no_garbage(daemon)
        left = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(daemon.run) in line]
        assert left == [], "the worker's mounts ended with it"
    finally:
        daemon.stop()
        daemon.remove()
    print(f"{count} kills: {len(work.blobs)} blobs, {len(work.images)} images, {len(work.snapshots)} snapshots kept")


@pytest.mark.needs("docker-registry")
def test_full_disk(tmp_path: Path) -> None:
    """A pull that does not fit is refused with the reason, leaves nothing, and the daemon goes on."""
    big = {f"f{index}": os.urandom(4 << 20) for index in range(14)}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in big.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with peers.registry() as registry, disk(96) as place:
        helper, daemon = Daemon(), Daemon(place.point / "root")
        name = f"{registry.address}/big:1"
        try:
            helper.launch()
            image = tmp_path / "big.tar"
            image.write_bytes(one_layer_image(name, data.getvalue()))
            helper("images", "import", "--no-unpack", str(image))
            helper("images", "push", "--plain-http", name)
            daemon.launch()
            daemon.load_busybox()
            before = place.used()
            failed = daemon.result("images", "pull", "--plain-http", name, code=None)
            assert failed.returncode != 0 and "no space left on device" in failed.stderr.lower(), failed.stderr
            daemon("images", "rm", "--sync", name)  # ctr makes the record before it unpacks
            assert daemon("images", "ls", "-q").split() == [peers.IMAGE]
            for lease in [line.split()[0] for line in daemon("leases", "ls").splitlines()[1:]]:
                daemon("leases", "rm", "--sync", lease)
            daemon("leases", "create", "--id", "x")
            daemon("leases", "rm", "--sync", "x")
            peers.wait_until(lambda: place.used() < before + (8 << 20), f"the disk to be as before: {before}", 20)
            assert "echoed" in daemon("run", "--rm", "--cpu-shares", "0", peers.IMAGE, "c", "echo", "echoed")
        finally:
            for one in (daemon, helper):
                one.stop()
                one.remove()


def one_layer_image(name: str, layer: bytes) -> bytes:
    def blob(data: bytes) -> dict[str, Any]:
        files["blobs/sha256/" + hashlib.sha256(data).hexdigest()] = data
        return {"digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)}

    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    kind = "application/vnd.oci.image."
    diff_id = "sha256:" + hashlib.sha256(layer).hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {"architecture": machine, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind + "manifest.v1+json",
        "config": {"mediaType": kind + "config.v1+json", **blob(json.dumps(config).encode())},
        "layers": [{"mediaType": kind + "layer.v1.tar", **blob(layer)}],
    }
    entry: dict[str, Any] = {"mediaType": kind + "manifest.v1+json", **blob(json.dumps(manifest).encode())}
    entry["annotations"] = {"io.containerd.image.name": name}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_damaged_blob() -> None:
    """Found when it is used, said by its digest, and healed by removing and pulling it again."""
    daemon = Daemon()
    try:
        daemon.launch()
        daemon("images", "import", "--no-unpack", str(peers.archive()))
        target = daemon("images", "ls").splitlines()[1].split()[2]
        digest = json.loads(daemon("content", "get", target))["layers"][0]["digest"]
        path = daemon.root / "content/blobs/sha256" / digest.partition(":")[2]
        whole = path.read_bytes()
        path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
        failed = daemon.result("images", "import", str(peers.archive()), code=None)
        assert failed.returncode != 0 and digest in failed.stderr and "damaged" in failed.stderr, failed.stderr
        assert daemon("snapshots", "ls").splitlines()[1:] == []
        daemon("images", "rm", "--sync", peers.IMAGE)
        daemon.load_busybox()
        assert path.read_bytes() == whole
    finally:
        daemon.stop()
        daemon.remove()


def test_damaged_database() -> None:
    """The daemon does not start on it and says what to do; with the database put back all is as it was."""
    daemon = Daemon()
    try:
        daemon.launch()
        daemon.load_busybox()
        daemon.stop()
        database = daemon.root / "metadata.db"
        whole = database.read_bytes()
        database.write_bytes(whole[:8192] + os.urandom(len(whole) - 8192))
        with pytest.raises((AssertionError, SystemError)) as refused:
            daemon.launch()
        assert "metadata.db" in str(refused.value) and "move it away" in str(refused.value)
        database.write_bytes(whole)
        daemon.launch()
        assert "echoed" in daemon("run", "--rm", "--cpu-shares", "0", peers.IMAGE, "c", "echo", "echoed")
    finally:
        daemon.stop()
        daemon.remove()


def test_locked_database() -> None:
    """Held by somebody else, it is waited for; a call that has waited too long says what it waits for."""
    import sqlite3

    daemon = Daemon()
    try:
        daemon.launch()
        daemon.load_busybox()
        with contextlib.closing(sqlite3.connect(daemon.root / "metadata.db", isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            assert peers.IMAGE in daemon("images", "ls", "-q"), "reading goes on"
            refused = daemon.result("namespaces", "create", "late", code=None)
            assert refused.returncode != 0 and "metadata.db: database is locked" in refused.stderr, refused.stderr
            holder.execute("ROLLBACK")
        daemon("namespaces", "create", "late")
        assert "echoed" in daemon("run", "--rm", "--cpu-shares", "0", peers.IMAGE, "c", "echo", "echoed")
    finally:
        daemon.stop()
        daemon.remove()


def test_two_containerds_side_by_side() -> None:
    """Ours and Debian's on one host, the same names in both, undisturbed."""
    ours = Daemon()
    try:
        ours.launch()
        with peers.containerd() as real:
            for one in (ours, real):
                one.load_busybox()
            for one in (ours, real):
                one("run", "-d", "--cpu-shares", "0", peers.IMAGE, f"side-{one.name}", "sleep", "600")
            ours.kill()
            assert f"side-{real.name}" in real("tasks", "ls") and "RUNNING" in real("tasks", "ls")
            ours.launch()
            assert "RUNNING" in ours("tasks", "ls")
            assert len(ours("tasks", "ls").splitlines()) == len(real("tasks", "ls").splitlines()) == 2
    finally:
        ours.stop()
        ours.remove()


def test_hung_event_reader() -> None:
    """A subscriber that never reads holds nobody up, and what waits for it is bounded."""
    daemon = Daemon()
    try:
        daemon.launch()
        reader = subprocess.Popen([*daemon.client, "events"], stdout=subprocess.PIPE)
        os.kill(reader.pid, 19)
        before = rss(daemon)
        with daemon.services() as services:
            for number in range(400):
                services.tag(f"i{number}", "sha256:" + "a" * 64)
        assert rss(daemon) - before < 40 << 20
        reader.kill()
        reader.wait()
    finally:
        daemon.stop()
        daemon.remove()


def rss(daemon: Daemon) -> int:
    assert daemon.process
    text = Path(f"/proc/{daemon.process.pid}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGESIZE")


def frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
    """One of HTTP/2."""
    return struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data


def test_a_burst_of_calls_that_are_reset() -> None:
    """One connection has a limit of calls at once, and the memory of a burst is given back after it."""
    settings, headers, data, reset, end_of_headers, end_of_stream, concurrent_streams = 4, 1, 0, 3, 4, 1, 3
    names = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/containerd.services.version.v1.Version/Version",
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    fields = b"".join(
        bytes([0, len(key)]) + key.encode() + bytes([len(value)]) + value.encode() for key, value in names.items()
    )
    daemon = TeuContainerd()

    def resident() -> int:
        assert daemon.process
        return int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    try:
        daemon.launch()
        before = resident()
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(daemon.address))
            peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings, 0, 0, b""))
            first = peer.recv(9, socket.MSG_WAITALL)
            assert first[3] == settings
            told = peer.recv(int.from_bytes(first[:3]), socket.MSG_WAITALL)
            limits = dict(struct.iter_unpack(">HI", told))
            assert limits[concurrent_streams] == 10_000
            drain = threading.Thread(target=lambda: [None for _ in iter(lambda: received(peer), b"")])
            drain.start()
            for number in range(100):
                burst = b""
                for stream in range(200 * number + 1, 200 * number + 201, 2):
                    burst += frame(headers, end_of_headers, stream, fields)
                    burst += frame(data, end_of_stream, stream, bytes(5)) + frame(reset, 0, stream, b"\0\0\0\x08")
                peer.sendall(burst)
            most = resident()
            peer.shutdown(socket.SHUT_RDWR)
            drain.join()
        assert most - before > 30 << 20, "no burst at all"
        peers.wait_until(lambda: resident() - before < (most - before) / 3, "the memory to be given back", 60)
    finally:
        daemon.stop()
        daemon.remove()


def received(peer: socket.socket) -> bytes:
    try:
        return peer.recv(65536)
    except OSError:
        return b""
