# SPDX-License-Identifier: Apache-2.0
"""A registry on loopback that misbehaves as told, and images made for it. For what Debian's registry will not do:
broken transfers, wrong digests, redirects, token servers, hostile layers. Used by system and by unit tests."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


def tar(*entries: tuple[str, bytes | None] | tarfile.TarInfo) -> bytes:
    """A tar of (name, contents) files, (name/, None) folders, or entries as they are."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry, io.BytesIO(b"\0" * entry.size))
                continue
            name, data = entry
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if data is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return output.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, size, 0o644
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = 1, 3
    return info


class ScriptedRegistry:
    """Use as a context manager; `address` is HOST:PORT. The switches may be changed at any time.

    broken[digest] = n      the next n answers for the blob end in the middle
    slow[digest] = s        so many seconds between two pieces of 1 MiB of the blob
    corrupt                 digests whose bytes come changed
    token                   a token that is demanded, given by the token server for user:password (or for nothing)
    basic                   "user:password" that is demanded by basic authentication
    redirect                blobs come from this other ScriptedRegistry
    no_ranges               answer Range requests with everything
    head                    the status that every HEAD of a manifest gets
    referrers               whether it knows which manifests refer to another one
    writable                whether it takes blobs and manifests
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.broken: dict[str, int] = {}
        self.slow: dict[str, float] = {}
        self.corrupt: set[str] = set()
        self.token = ""
        self.credentials = ""
        self.basic = ""
        self.redirect: ScriptedRegistry | None = None
        self.no_ranges = False
        self.head = 0
        self.referrers = False
        self.writable = False
        self.hook: Callable[[str, str], None] | None = None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two packets: the second would wait 40 ms

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                registry._serve(self)

            do_HEAD = do_GET

            def do_POST(self) -> None:
                """A token server of before OAuth 2: clients ask again with GET."""
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if registry.writable:
                    registry._take(self, data)
                    return
                registry._error(self, 405, "UNSUPPORTED", "no POST")

            do_PUT = do_POST

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """Clients that go away are part of the tests."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.socket.settimeout(5)  # select may tell of one who has gone again: accept would wait for ever
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ScriptedRegistry:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # -- images ------------------------------------------------------------------------------

    def put(self, data: bytes) -> str:
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def image(
        self,
        repository: str,
        tag: str,
        *layers: bytes,
        docker: bool = False,
        compression: str = "gzip",
        architecture: str = "amd64",
        diff_ids: list[str] | None = None,
        config: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Offer an image of these layers (tars) and return its descriptor."""
        kind = DOCKER_LAYER if docker else OCI_LAYER
        suffix = {"gzip": ".gzip" if docker else "+gzip", "zstd": "+zstd", "": ""}[compression]
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest_of(layer) for layer in layers]},
            "history": [{"created_by": f"layer {n}"} for n in range(len(layers))],
        }
        packed = [compressed(layer, compression) for layer in layers]
        config_data = encode(document)
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
            "config": {
                "mediaType": DOCKER_CONFIG if docker else OCI_CONFIG,
                "digest": self.put(config_data),
                "size": len(config_data),
            },
            "layers": [{"mediaType": kind + suffix, "digest": self.put(p), "size": len(p)} for p in packed],
        }
        return self.manifest(repository, tag, str(manifest["mediaType"]), manifest)

    def manifest(self, repository: str, tag: str, media_type: str, document: Any) -> dict[str, Any]:
        data = encode(document)
        digest = digest_of(data)
        self.manifests[repository, digest] = self.manifests[repository, tag] = (media_type, data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def index(self, repository: str, tag: str, docker: bool = False, **platforms: dict[str, Any]) -> dict[str, Any]:
        """An index of {architecture: descriptor}."""
        kind = DOCKER_LIST if docker else OCI_INDEX
        entries = [{**d, "platform": {"os": "linux", "architecture": a}} for a, d in platforms.items()]
        return self.manifest(repository, tag, kind, {"schemaVersion": 2, "mediaType": kind, "manifests": entries})

    # -- serving -----------------------------------------------------------------------------

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {key.lower(): value for key, value in handler.headers.items()}
        self.requests.append((handler.command, handler.path, headers))
        path = handler.path.partition("?")[0]
        if self.hook:
            self.hook(handler.command, path)
        if path == "/token":
            expected = "Basic " + base64.b64encode(self.credentials.encode()).decode()
            if self.credentials and headers.get("authorization") != expected:
                self._error(handler, 401, "UNAUTHORIZED", "wrong credentials")
            else:
                self._send(handler, 200, encode({"token": self.token}), "application/json")
            return
        given = headers.get("authorization", "")
        if self.token and given != f"Bearer {self.token}":
            realm = f'Bearer realm="http://{self.address}/token",service="test",scope="repository:x:pull"'
            self._error(handler, 401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": realm})
            return
        if self.basic and given != "Basic " + base64.b64encode(self.basic.encode()).decode():
            self._error(
                handler, 401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": 'Basic realm="test"'}
            )
            return
        parts = path.strip("/").split("/")
        if parts == ["v2"]:
            self._send(handler, 200, b"{}", "application/json")
        elif len(parts) >= 4 and parts[-2] == "manifests" and self.head and handler.command == "HEAD":
            self._error(handler, self.head, "UNSUPPORTED", "no HEAD")
        elif len(parts) >= 4 and parts[-2] == "manifests":
            found = self.manifests.get(("/".join(parts[1:-2]), parts[-1]))
            if found is None:
                self._error(handler, 404, "MANIFEST_UNKNOWN", "manifest unknown")
            else:
                self._send(handler, 200, found[1], found[0], {"Docker-Content-Digest": digest_of(found[1])})
        elif len(parts) >= 4 and parts[-2] == "blobs":
            self._blob(handler, parts[-1], headers)
        elif len(parts) >= 4 and parts[-2] == "referrers" and self.referrers:
            self._send(handler, 200, encode(self._referrers("/".join(parts[1:-2]), parts[-1])), OCI_INDEX)
        else:
            self._error(handler, 404, "NAME_UNKNOWN", "repository name not known to registry")

    def _take(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        path, _, query = handler.path.partition("?")
        self.requests.append((handler.command, handler.path, {}))
        parts, asked = path.strip("/").split("/"), dict(parse_qsl(query))
        headers = {"Location": f"{path}1"}
        if parts[-2] == "manifests":
            repository, kind = "/".join(parts[1:-2]), str(handler.headers["Content-Type"])
            self.manifests[repository, digest_of(data)] = self.manifests[repository, parts[-1]] = kind, data
            self._send(handler, 201, b"", kind)
        elif handler.command == "PUT":
            self.blobs[asked["digest"]] = data
            self._send(handler, 201, b"", "")
        else:  # an upload begins, or a blob is mounted
            self._send(handler, 201 if asked.get("mount") in self.blobs else 202, b"", "", headers)

    def _referrers(self, repository: str, digest: str) -> Any:
        entries = []
        for (place, reference), (kind, data) in list(self.manifests.items()):
            document = json.loads(data)
            if place == repository and ":" in reference and document.get("subject", {}).get("digest") == digest:
                more = {key: document[key] for key in ("artifactType", "annotations") if key in document}
                entries.append({"mediaType": kind, "digest": reference, "size": len(data), **more})
        return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}

    def _blob(self, handler: BaseHTTPRequestHandler, digest: str, headers: dict[str, str]) -> None:
        if self.redirect is not None:
            handler.send_response(307)
            handler.send_header("Location", f"http://{self.redirect.address}{handler.path}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        data = self.blobs.get(digest)
        if data is None:
            self._error(handler, 404, "BLOB_UNKNOWN", "blob unknown to registry")
            return
        if digest in self.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = 0
        status, more = 200, {"Docker-Content-Digest": digest}
        if "range" in headers and not self.no_ranges:
            start = int(headers["range"].removeprefix("bytes=").rstrip("-"))
            status = 206
            more["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if self.broken.get(digest, 0) and handler.command == "GET":
            self.broken[digest] -= 1
            handler.send_response(status)
            for key, value in more.items():
                handler.send_header(key, value)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.close()
            return
        if digest in self.slow and handler.command == "GET":
            self._trickle(handler, digest, body)
            return
        self._send(handler, status, body, "application/octet-stream", more)

    def _trickle(self, handler: BaseHTTPRequestHandler, digest: str, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for start in range(0, len(body), 1 << 20):
            handler.wfile.write(body[start : start + (1 << 20)])
            handler.wfile.flush()
            time.sleep(self.slow.get(digest, 0))

    def _error(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        code: str,
        message: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = encode({"errors": [{"code": code, "message": message}]})
        self._send(handler, status, data, "application/json", headers)

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        for key, value in (headers or {}).items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)


def compressed(data: bytes, kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if kind == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return data
