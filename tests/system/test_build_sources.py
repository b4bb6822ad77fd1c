# SPDX-License-Identifier: Apache-2.0
"""The builder's sources on the real worker: teu-containerd's snapshots, docker's registry, git, folders of a client."""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peers
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "buildkit"))
from fakeworker import Asker
from githttp import Served, run
from scripted_registry import ScriptedRegistry, digest_of, encode, tar
from tunnel import client

from teu.api.buildkit import ops_pb2
from teu.buildkit.cache.keys import root
from teu.buildkit.cache.remote import Chain
from teu.buildkit.cache.store import Store
from teu.buildkit.core.op import Gone, Record
from teu.buildkit.core.selection import Selection
from teu.buildkit.core.snapshots import Compression, Kind
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.ops.source import SourceOp
from teu.buildkit.session import filesync, fsutil
from teu.buildkit.session.fsutil import DATA, FIN, REQ, STAT, Packet
from teu.buildkit.session.manager import Manager
from teu.buildkit.sources.base import Sources
from teu.buildkit.sources.caches import Caches
from teu.buildkit.sources.git import Repositories
from teu.buildkit.sources.http import Downloads
from teu.buildkit.sources.image import Images
from teu.buildkit.sources.local import Locals
from teu.buildkit.sources.registries import Access
from teu.buildkit.worker.client import Client
from teu.buildkit.worker.worker import ContainerdWorker
from teu.oci import distribution

SOCKET = "/run/teu/containerd.sock"
AMD64 = Platform("linux", "amd64")
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Host:
    """A builder's worker with a cache of its own; `again` is what a restart makes."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.namespace = f"sources-{name}-{os.urandom(3).hex()}"
        self.manager = Manager()
        self.begin()

    def begin(self) -> None:
        self.client = Client(SOCKET, self.namespace)
        self.store = Store(str(self.folder / "cache.db"))
        self.worker = ContainerdWorker(self.client, self.store, str(self.folder))
        self.worker.start()
        access = Access(self.manager)
        self.caches = Caches(self.worker, access, self.manager)
        self.sources = Sources(
            {
                "docker-image": Images(self.worker, access),
                "local": Locals(self.worker, self.manager),
                "git": Repositories(self.worker, self.manager, str(self.folder)),
                "http": Downloads(self.worker, self.manager, "http"),
            }
        )

    def end(self) -> None:
        self.worker.close()
        self.store.close()
        self.client.close()

    def again(self) -> None:
        self.end()
        self.begin()

    def remove(self) -> None:
        for entry in self.worker.records.all():
            self.worker.keeping.remove(entry)
        self.end()

    def op(self, identifier: str, **attributes: str) -> SourceOp:
        op = ops_pb2.Op()
        op.source.identifier = identifier
        op.source.attrs.update({key.replace("_", "."): value for key, value in attributes.items()})
        op.platform.OS, op.platform.Architecture = "linux", "amd64"
        return SourceOp(SimpleNamespace(op=op), self.worker, self.sources)

    def result(self, op: SourceOp, asker: Any) -> Any:
        op.cache_key(asker)
        (result,) = op.execute(asker, [])
        op.close()
        return result


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path, "one")
    yield made
    made.remove()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path, "two")
    yield made
    made.remove()


@pytest.fixture
def registry() -> Iterator[peers.Registry]:
    with peers.registry() as daemon:
        yield daemon


def push(registry: peers.Registry, name: str, *layers: bytes) -> str:
    """An index with one image of these tars; its digest."""
    with distribution.Registry(registry.address) as there:

        def blob(data: bytes, kind: str) -> dict[str, Any]:
            descriptor = {"mediaType": kind, "digest": digest_of(data), "size": len(data)}
            there.upload(name, descriptor, lambda: [data])
            return descriptor

        config = {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob(encode(config), CONFIG),
            "layers": [blob(gzip.compress(layer, mtime=0), LAYER) for layer in layers],
        }
        data = encode(manifest)
        there.put_manifest(name, digest_of(data), MANIFEST, data)
        entry = {"mediaType": MANIFEST, "digest": digest_of(data), "size": len(data)}
        entry["platform"] = {"os": "linux", "architecture": "amd64"}
        index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
        there.put_manifest(name, "1", INDEX, index)
    return digest_of(index)


def tree(snapshot: Any) -> dict[str, bytes]:
    with snapshot.mounted() as place:
        return {
            str(path.relative_to(place)): path.read_bytes()
            for path in sorted(Path(place).rglob("*"))
            if path.is_file() and not path.is_symlink()
        }


@pytest.mark.needs("docker-registry")
def test_an_image_is_pulled_when_its_files_are_needed(host: Host, registry: peers.Registry) -> None:
    new, over = os.urandom(100_000), os.urandom(10)  # a blob that another namespace has does not travel
    digest = push(registry, "app", tar(("a", new)), tar(("b", new), ("a", over)))
    asker = Asker()
    op = host.op(f"docker-image://{registry.address}/app:1")
    snapshot = host.result(op, asker)
    assert op.material().pin == digest
    blobs = [descriptor["digest"] for descriptor in snapshot.layers(None, make=False)]
    assert not any(host.worker.content.has(blob) for blob in blobs)
    assert tree(snapshot) == {"a": over, "b": new}
    told = {name for name, *_ in asker.told}
    assert set(blobs) <= told, told
    # Once more, and after a restart: it is here, though the registry has gone.
    host.store.save("key", "digest", 0, [], snapshot.id)
    name = snapshot.id
    snapshot.release()
    host.again()
    host.worker.leases.collect()  # which goes on by itself, too: what leads to the image is held by its record
    registry.stop()
    loaded = host.worker.load(Record(name, 0.0))
    assert tree(loaded) == {"a": over, "b": new}
    again = host.op(f"docker-image://{registry.address}/app:1@{digest}")
    assert host.result(again, Asker()).id == name
    loaded.release()


@pytest.mark.needs("docker-registry")
def test_many_ask_for_one_image(host: Host, registry: peers.Registry) -> None:
    push(registry, "app", *(tar((f"file{number}", os.urandom(200_000))) for number in range(5)))
    found: list[Any] = []

    def one() -> None:
        snapshot = host.result(host.op(f"docker-image://{registry.address}/app:1"), Asker())
        found.append((snapshot.id, len(tree(snapshot))))
        snapshot.release()

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6 and {count for _, count in found} == {5}


def test_a_pull_that_breaks_off_goes_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "BACKOFF_SECONDS", 0.01)
    with ScriptedRegistry() as registry:
        registry.image("app", "1", tar(("a", os.urandom(3_000_000))))
        op = host.op(f"docker-image://{registry.address}/app:1")
        snapshot = host.result(op, Asker())
        (blob,) = [descriptor["digest"] for descriptor in snapshot.layers(None, make=False)]
        registry.broken[blob] = 2
        assert len(tree(snapshot)["a"]) == 3_000_000
        snapshot.release()
        # What comes changed is no layer: the step fails, and nothing of it stays.
        registry.image("app", "2", tar(("a", os.urandom(1000))))
        snapshot = host.result(host.op(f"docker-image://{registry.address}/app:2"), Asker())
        (blob,) = [descriptor["digest"] for descriptor in snapshot.layers(None, make=False)]
        registry.corrupt.add(blob)
        with pytest.raises(Exception, match="sha256"):
            tree(snapshot)
        registry.corrupt.clear()
        assert tree(snapshot)["a"]
        snapshot.release()


def sender(source: Path, sent: list[str]) -> Any:
    def script(requests: Any, context: Any) -> Iterator[Any]:
        folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
        try:
            paths = []
            for entry, _, _ in fsutil.walk(folder):
                paths.append(entry.path)
                yield Packet(type=STAT, stat=entry)
            yield Packet(type=STAT)
            for request in requests:
                if request.type == REQ:
                    sent.append(os.fsdecode(paths[request.ID]))
                    yield Packet(type=DATA, ID=request.ID, data=(source / sent[-1]).read_bytes())
                    yield Packet(type=DATA, ID=request.ID)
                elif request.type == FIN:
                    yield Packet(type=FIN)
                    return
        finally:
            os.close(folder)

    return {filesync.DIFF_COPY: (True, True, Packet, Packet, script)}


def test_a_folder_travels_once(host: Host, tmp_path: Path) -> None:
    source = tmp_path / "context"
    (source / "sub").mkdir(parents=True)
    for number in range(200):
        (source / f"sub/{number}").write_bytes(os.urandom(1000))
    sent: list[str] = []
    with client(sender(source, sent), host.manager):
        first = host.result(host.op("local://context"), Asker("one"))
        assert len(sent) == 200 and len(tree(first)) == 200
        whole, part = first.checksum([Selection()]), first.checksum([Selection("/sub/7")])
        first.release()
        sent.clear()
        second = host.result(host.op("local://context"), Asker("one"))
        assert not sent and second.checksum([Selection()]) == whole
        second.release()
        # After a restart it is still there.
        host.again()
        (source / "sub/8").write_text("new")
        third = host.result(host.op("local://context"), Asker("one"))
        assert sent == ["sub/8"]
        assert third.checksum([Selection("/sub/7")]) == part and third.checksum([Selection()]) != whole
        # One that is held is not written to: another build gets a tree of its own.
        sent.clear()
        fourth = host.result(host.op("local://context"), Asker("one"))
        assert len(sent) == 200 and fourth.checksum([Selection()]) == third.checksum([Selection()])
        third.release()
        fourth.release()


@pytest.mark.needs("git")
def test_a_repository(host: Host, tmp_path: Path) -> None:
    served = Served(tmp_path / "served")
    try:
        folder = served.repository("a.git", {"one": "1", "sub/two": "2"})
        address = f"{served.address}/a.git"
        for subdir, found in (("", {"one": b"1", "sub/two": b"2"}), ("sub", {"two": b"2"})):
            op = host.op(f"git://{address.partition('://')[2]}#main:{subdir}", **{"git.fullurl": address})
            snapshot = host.result(op, Asker())
            assert tree(snapshot) == found
            snapshot.release()
        head = run(folder, "rev-parse", "HEAD")
        before = len(served.handler.seen)
        host.again()
        op = host.op(
            f"git://{address.partition('://')[2]}#{head}", **{"git.fullurl": address, "git.keepgitdir": "true"}
        )
        snapshot = host.result(op, Asker())
        with snapshot.mounted() as place:
            assert run(Path(place), "-c", "safe.directory=*", "rev-parse", "HEAD") == head
        snapshot.release()
        assert len(served.handler.seen) == before  # the repository was kept
    finally:
        served.server.shutdown()
        served.server.server_close()


def test_a_download(host: Host) -> None:
    with ScriptedRegistry() as server:
        digest = server.put(b"data" * 1000)
        address = f"http://{server.address}/v2/app/blobs/{digest}"
        asker = Asker()
        op = host.op(address, **{"http.filename": "file", "http.perm": "0640"})
        snapshot = host.result(op, asker)
        with snapshot.mounted() as place:
            file = Path(place) / "file"
            assert file.read_bytes() == b"data" * 1000 and file.stat().st_mode & 0o777 == 0o640
        host.store.save("key", "digest", 0, [], snapshot.id)
        name = snapshot.id
        snapshot.release()
        pinned = host.op(address, **{"http.filename": "file", "http.perm": "0640", "http.checksum": digest})
        before = len(server.requests)
        again = host.result(pinned, Asker())
        assert tree(again) == {"file": b"data" * 1000}
        again.release()
        assert len(server.requests) <= before + 1
        host.worker.load(Record(name, 0.0)).release()
        # One that nothing leads to goes with its operation.
        other = host.op(address, **{"http.filename": "other"})
        other.cache_key(Asker())
        found = [one for one in host.worker.find("regular") if (host.worker.data(one) or {}).get("name") == "other"]
        assert len(found) == 1
        other.close()
        with pytest.raises(Gone):
            host.worker.load(Record(found[0], 0.0))


@pytest.mark.needs("docker-registry")
@pytest.mark.parametrize("kind", ["gzip", "zstd", "uncompressed"])
def test_a_cache_goes_to_a_registry_and_comes_back(
    host: Host, other: Host, registry: peers.Registry, kind: str
) -> None:
    push(registry, "app", tar(("base", b"base")))
    base = host.result(host.op(f"docker-image://{registry.address}/app:1"), Asker())
    active = host.worker.active(base, Kind(description="RUN make"))
    with active.mounted() as place:
        (Path(place) / "made").write_bytes(b"made" * 10_000)
    made = active.commit()
    chains = [
        Chain(root("image", 0), "image", 0, (), base.id, 1.0),
        Chain("derived:run", "run", 0, (((root("image", 0), ""),),), made.id, 2.0),
    ]
    name = f"{registry.address}/cache:1"
    export = host.caches.exporting("registry", {"ref": name, "mode": "max", "compression": kind})
    asker = Asker()
    assert "cache.manifest" in export.write(chains, asker)
    (keys,) = other.caches.importing("registry", {"ref": name}).read(Asker())
    (run_key,) = keys.linked([(root("image", 0), "")], 0, "run", 0)
    (record,) = keys.results(run_key)
    loaded = other.worker.load(record)
    assert tree(loaded) == {"base": b"base", "made": b"made" * 10_000}
    assert loaded.history()[-1].description == "RUN make"
    for one in (loaded, made, base):
        one.release()
    assert export.compression == Compression(kind)


def test_nothing_is_left(host: Host) -> None:
    """A build that nobody waits for leaves no tree that is half there."""
    with ScriptedRegistry() as registry:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("a"))
        registry.image("app", "1", data.getvalue())
        asker = Asker()
        registry.hook = lambda method, path: asker.cancel()
        with pytest.raises(Exception, match="cancel"):
            host.op(f"docker-image://{registry.address}/app:1").cache_key(asker)
    assert not host.worker.records.all()
