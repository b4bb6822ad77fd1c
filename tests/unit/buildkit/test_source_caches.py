# SPDX-License-Identifier: Apache-2.0
"""Caches on their way: to a registry and back, to a client's folder and back, inside of an image."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakeworker import Asker, Worker
from tunnel import client

from teu.api.services.content.v1 import content_pb2
from teu.buildkit.cache.keys import root
from teu.buildkit.cache.remote import Chain
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Compression, History, Kind
from teu.buildkit.session.manager import Manager
from teu.buildkit.sources import caches as source
from teu.buildkit.sources.registries import Access
from teu.oci import distribution

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DATA = {"base": b"base" * 1000, "run": b"run" * 1000}


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """A registry that takes what it is given."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets: the second would wait 40 ms
    blobs: dict[str, bytes]
    manifests: dict[str, tuple[str, bytes]]
    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(f"{self.command} {self.path}")
        name = self.path.rpartition("/")[2]
        if "/manifests/" in self.path:
            kind, data = self.manifests.get(name, ("", b""))
        else:
            kind, data = "application/octet-stream", self.blobs.get(name, b"")
        self.send_response(200 if data else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Content-Digest", sha(data))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.seen.append(f"{self.command} {self.path}")
        self.send_response(202)
        self.send_header("Location", f"/v2/upload/{len(self.seen)}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_PUT(self) -> None:
        self.seen.append(f"{self.command} {self.path}")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if "/manifests/" in self.path:
            pair = (self.headers["Content-Type"], data)
            self.manifests[self.path.rpartition("/")[2]] = self.manifests[sha(data)] = pair
        else:
            assert sha(data).replace(":", "%3A") in self.path
            self.blobs[sha(data)] = data
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


def offer(registry: Any, tag: str, kind: str, document: Any) -> dict[str, Any]:
    data = json.dumps(document).encode()
    registry.manifests[tag] = registry.manifests[sha(data)] = (kind, data)
    return {"mediaType": kind, "digest": sha(data), "size": len(data)}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(distribution, "BACKOFF_SECONDS", 0.01)
    made = type("Own", (Handler,), {"blobs": {}, "manifests": {}, "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), made)
    server.socket.settimeout(5)  # select may tell of one who has gone again: accept would wait for ever
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made.address = f"127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield made
    server.shutdown()
    server.server_close()


class Layered(Worker):
    """A worker whose results have layers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[tuple[str, bool]] = []
        for name in ("base", "run"):
            self.content.write([DATA[name]])
        for name, parts in (("r-base", ["base"]), ("r-run", ["base", "run"])):
            self.kinds[name], self.known[name] = Kind(), {}
            self.committed.add(name)
            self.parts = {**getattr(self, "parts", {}), name: parts}

    def load(self, record: Any) -> Any:
        snapshot = super().load(record)

        def layers(compression: Any, *, make: bool = True) -> Any:
            self.asked.append((record.id, make))
            return [
                {
                    "mediaType": GZIP,
                    "digest": sha(DATA[part]),
                    "size": len(DATA[part]),
                    "annotations": {"containerd.io/uncompressed": sha(part.encode())},
                }
                for part in self.parts[record.id]
            ]

        snapshot.layers = layers  # type: ignore[method-assign]
        snapshot.history = lambda: [History(f"RUN {part}", 5.0) for part in self.parts[record.id]]  # type: ignore[method-assign]
        return snapshot


CHAINS = [
    Chain(root("image", 0), "image", 0, (), "r-base", 1.0),
    Chain("derived:run", "run", 0, (((root("image", 0), ""),),), "r-run", 2.0),
]


@pytest.fixture
def worker(tmp_path: Path) -> Layered:
    (tmp_path / "worker").mkdir()
    return Layered(tmp_path / "worker")


def caches(worker: Worker, manager: Manager | None = None) -> source.Caches:
    manager = manager or Manager()
    return source.Caches(worker, Access(manager), manager)  # type: ignore[arg-type]


def found(keys: Any) -> Any:
    (run,) = keys.linked([(root("image", 0), "")], 0, "run", 0)
    (record,) = keys.results(run)
    return record


@pytest.mark.parametrize("attributes", [{}, {"image-manifest": "false"}, {"oci-mediatypes": "false"}])
def test_to_a_registry_and_back(registry: Any, worker: Layered, attributes: dict[str, str]) -> None:
    name = f"{registry.address}/cache:1"
    export = caches(worker).exporting("registry", {"ref": name, "mode": "max", **attributes})
    asker = Asker()
    answer = export.write(CHAINS, asker)
    descriptor = json.loads(answer["cache.manifest"])
    assert sha(registry.manifests["1"][1]) == descriptor["digest"]
    assert registry.manifests["1"][0] == descriptor["mediaType"]
    assert set(registry.blobs) >= {sha(DATA["base"]), sha(DATA["run"])}
    assert [told[0] for told in asker.told if told[4]][-1] == "preparing build cache for export"
    assert any(told[0].startswith("writing layer sha256:") for told in asker.told)
    # Once more: what is there is not sent again.
    registry.seen.clear()
    export.write(CHAINS, Asker())
    assert not any("/blobs/uploads/" in one for one in registry.seen)
    # On another host it is found, and fetched when it is needed.
    (worker.folder / "other").mkdir()
    other = Worker(worker.folder / "other")
    importing = caches(other).importing("registry", {"ref": name})
    assert importing.id == importing.name == name
    registry.seen.clear()
    (keys,) = importing.read(Asker())
    record = found(keys)
    assert not any(sha(DATA["run"]) in one for one in registry.seen)
    assert [layer.diff_id for layer in record.remote] == [sha(b"base"), sha(b"run")]
    assert [layer.history for layer in record.remote] == ["RUN base", "RUN run"]
    layer = record.remote[1]
    assert layer.descriptor["annotations"]["buildkit/createdat"] == "1970-01-01T00:00:05.000000Z"
    assert b"".join(layer.fetch(layer.descriptor, 0)) == DATA["run"]
    assert all(held == 0 for held in worker.holders.values())


def test_mode_min_makes_only_what_the_result_has(registry: Any, worker: Layered) -> None:
    name = f"{registry.address}/cache:1"
    caches(worker).exporting("registry", {"ref": name}).write(CHAINS, Asker())
    assert ("r-run", True) in worker.asked and ("r-base", True) not in worker.asked


def test_what_is_gone_is_not_exported(registry: Any, worker: Layered) -> None:
    worker.committed.clear()
    asker = Asker()
    export = caches(worker).exporting("registry", {"ref": f"{registry.address}/cache"})
    assert export.write(CHAINS, asker) == {}
    assert "skipping cache export for empty result" in [told[0] for told in asker.told]
    assert not registry.manifests


class FolderOfClient:
    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.asked: set[str] = set()

    def _id(self, context: Any) -> None:
        self.asked.add(dict(context.invocation_metadata())["buildkit-attachable-store-id"])

    def info(self, request: Any, context: Any) -> Any:
        self._id(context)
        if request.digest not in self.blobs:
            context.abort(grpc.StatusCode.NOT_FOUND, "not found")
        answer = content_pb2.InfoResponse()
        answer.info.digest, answer.info.size = request.digest, len(self.blobs[request.digest])
        return answer

    def read(self, request: Any, context: Any) -> Iterator[Any]:
        self._id(context)
        yield content_pb2.ReadContentResponse(offset=request.offset, data=self.blobs[request.digest][request.offset :])

    def write(self, requests: Any, context: Any) -> Iterator[Any]:
        self._id(context)
        data = bytearray()
        for request in requests:
            data += request.data
            if request.action == content_pb2.WriteAction.COMMIT:
                assert sha(bytes(data)) == request.expected
                self.blobs[request.expected] = bytes(data)
            yield content_pb2.WriteContentResponse(action=request.action, offset=len(data))

    @property
    def methods(self) -> Any:
        prefix, pb = "/containerd.services.content.v1.Content/", content_pb2
        return {
            f"{prefix}Info": (False, False, pb.InfoRequest, pb.InfoResponse, self.info),
            f"{prefix}Read": (False, True, pb.ReadContentRequest, pb.ReadContentResponse, self.read),
            f"{prefix}Write": (True, True, pb.WriteContentRequest, pb.WriteContentResponse, self.write),
        }


def test_to_a_folder_of_the_client_and_back(worker: Layered) -> None:
    folder = FolderOfClient()
    manager = Manager()
    with client(folder.methods, manager):
        export = caches(worker, manager).exporting("local", {"dest": "/cache", "mode": "max"})
        digest = json.loads(export.write(CHAINS, Asker("one"))["cache.manifest"])["digest"]
        assert folder.asked == {"local:/cache"}
        (worker.folder / "other").mkdir()
        other = Worker(worker.folder / "other")
        importing = caches(other, manager).importing("local", {"src": "/cache", "digest": digest})
        (keys,) = importing.read(Asker("one"))
        layer = found(keys).remote[0]
        assert b"".join(layer.fetch(layer.descriptor, 0)) == DATA["base"]
        folder.blobs[digest] = b"[]"
        other.content.blobs.clear()
        with pytest.raises(errors.Error):
            caches(other, manager).importing("local", {"src": "/cache", "digest": digest}).read(Asker("one"))


def image(worker: Worker, registry: Any, inline: bytes) -> dict[str, Any]:
    """An image of both layers with an inline cache, in the registry; the descriptor of its manifest."""
    config = json.dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [sha(b"base"), sha(b"run")]},
            "moby.buildkit.cache.v0": base64.b64encode(inline).decode(),
        }
    ).encode()
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha(config), "size": len(config)},
        "layers": [{"mediaType": GZIP, "digest": sha(DATA[one]), "size": len(DATA[one])} for one in ("base", "run")],
    }
    registry.blobs.update({sha(config): config, **{sha(one): one for one in DATA.values()}})
    return offer(registry, "1", str(document["mediaType"]), document)


def test_inside_of_an_image(registry: Any, worker: Layered) -> None:
    layers = [sha(DATA["base"]), sha(DATA["run"])]
    inline = caches(worker).inline(CHAINS, layers)
    assert inline and caches(worker).inline(CHAINS, [sha(b"other")]) == b""
    target = image(worker, registry, inline)
    name = f"{registry.address}/app:1"
    (worker.folder / "other").mkdir()
    other = Worker(worker.folder / "other")
    for kind in ("registry", "inline"):
        (keys,) = caches(other).importing(kind, {"ref": name}).read(Asker())
        record = found(keys)
        assert [layer.diff_id for layer in record.remote] == [sha(b"base"), sha(b"run")]
        assert b"".join(record.remote[1].fetch(record.remote[1].descriptor, 0)) == DATA["run"]
    # An index of such images has those of all of them.
    index = {
        "schemaVersion": 2,
        "manifests": [{**target, "platform": {"os": "linux", "architecture": "amd64"}}],
    }
    offer(registry, "2", "application/vnd.oci.image.index.v1+json", index)
    (keys,) = caches(other).importing("registry", {"ref": f"{registry.address}/app:2"}).read(Asker())
    assert found(keys) and keys.id.endswith(target["digest"])
    # An image of this host is looked at first.
    other.images.put(name, target)
    registry.seen.clear()
    (keys,) = caches(other).importing("registry", {"ref": name}).read(Asker())
    assert found(keys) and not registry.seen


def test_an_image_without_a_cache(registry: Any, worker: Layered) -> None:
    image(worker, registry, b"")
    assert caches(worker).importing("registry", {"ref": f"{registry.address}/app:1"}).read(Asker()) == []
    with pytest.raises(errors.NotFound):
        caches(worker).importing("registry", {"ref": f"{registry.address}/app:nothing"}).read(Asker())


def test_a_layer_that_cannot_be_checked(registry: Any, worker: Layered) -> None:
    name = f"{registry.address}/cache:1"
    caches(worker).exporting("registry", {"ref": name, "mode": "max"}).write(CHAINS, Asker())
    kind, data = registry.manifests["1"]
    document = json.loads(data)
    del document["layers"][0]["annotations"]
    offer(registry, "1", kind, document)
    (worker.folder / "other").mkdir()
    (keys,) = caches(Worker(worker.folder / "other")).importing("registry", {"ref": name}).read(Asker())
    assert len(keys) < 2
    offer(registry, "1", kind, {"schemaVersion": 2})
    with pytest.raises(errors.InvalidArgument, match="cache "):
        caches(worker).importing("registry", {"ref": name}).read(Asker())


def test_kinds_and_attributes(worker: Layered) -> None:
    one = caches(worker)
    for kind in ("gha", "s3", "azblob", "nothing"):
        with pytest.raises(errors.InvalidArgument, match=f"unknown cache importer: {kind}"):
            one.importing(kind, {"ref": "x"})
        with pytest.raises(errors.InvalidArgument, match=f'unknown cache exporter: "{kind}"'):
            one.exporting(kind, {"ref": "x"})
    for attributes in (
        {},
        {"ref": "UPPER"},
        {"ref": "x", "mode": "some"},
        {"ref": "x", "image-manifest": "true", "oci-mediatypes": "false"},
        {"ref": "x", "ignore-error": "perhaps"},
        {"ref": "x", "compression": "lz4"},
        {"ref": "x", "compression-level": "x"},
        {"ref": "x", "registry.insecure": "x"},
    ):
        with pytest.raises(errors.InvalidArgument):
            one.exporting("registry", attributes)
    for kind, attributes in (("local", {"src": "x"}), ("local", {"digest": sha(b"")}), ("registry", {})):
        with pytest.raises(errors.InvalidArgument):
            one.importing(kind, attributes)
    with pytest.raises(errors.InvalidArgument, match="requires dest"):
        one.exporting("local", {})
    export = one.exporting(
        "registry",
        {"ref": "x", "mode": "max", "ignore-error": "true", "compression": "zstd", "compression-level": "3"},
    )
    assert export.options.mode == "max" and export.options.ignore_error
    assert export.compression == Compression("zstd", 3, False, True)
    assert one.exporting("registry", {"ref": "x", "force-compression": ""}).compression.force
    inline = one.exporting("inline", {})
    assert inline.inline and inline.write(CHAINS, Asker()) == {} and inline.options.mode == "min"


def test_it_ends_with_the_build(registry: Any, worker: Layered) -> None:
    asker = Asker()
    asker.cancel()
    with pytest.raises(errors.Cancelled):
        caches(worker).exporting("registry", {"ref": f"{registry.address}/cache"}).write(CHAINS, asker)
    assert all(held == 0 for held in worker.holders.values())
