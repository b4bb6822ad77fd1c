# SPDX-License-Identifier: Apache-2.0
"""The registry of the target of image documents: it answers oddly, and offers images with changed documents."""

from __future__ import annotations

import gzip
import random
import time
from typing import Any

from scripted_registry import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    ScriptedRegistry,
    digest_of,
    encode,
    tar,
)

from fuzz import shapes

STATUSES = (
    200,
    200,
    201,
    204,
    206,
    301,
    302,
    307,
    308,
    304,
    400,
    401,
    403,
    404,
    405,
    416,
    418,
    429,
    500,
    502,
    503,
    599,
    999,
    100,
    199,
)
LAYER = tar(("a", b"x"), ("d/", None), ("d/b", b"y" * 2000))
MEDIA_TYPES = (
    OCI_INDEX,
    OCI_MANIFEST,
    DOCKER_MANIFEST,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/json",
    "text/html",
    "",
    "x",
    "a/b; charset=utf-8",
)


class OddRegistry(ScriptedRegistry):
    """Every so many answers are not what they should be."""

    def __init__(self, random: random.Random) -> None:
        super().__init__()
        self.random = random
        self.odd = 0.0  # the share of answers that are changed
        self.told: list[str] = []

    def _serve(self, handler: Any) -> None:
        if self.random.random() < self.odd:
            self._strange(handler)
        else:
            super()._serve(handler)

    def _strange(self, handler: Any) -> None:
        """An answer written by hand."""
        random = self.random
        path = handler.path.partition("?")[0]
        body = self.blobs.get(path.rpartition("/")[2], b"")
        parts = path.strip("/").split("/")
        kind = "application/octet-stream"
        if len(parts) >= 4 and parts[-2] == "manifests":
            kind, body = self.manifests.get(("/".join(parts[1:-2]), parts[-1]), ("application/json", b"{}"))
        change = random.randrange(6)
        if change == 0:
            body = shapes.damaged(random, body)
        elif change == 1:
            body = encode(shapes.value(random))
        elif change == 2:
            body = encode({"errors": shapes.value(random)})
        elif change == 3:
            body = random.choice(
                (b"", b"[" * 100_000, b'{"errors":[{"code":1,"message":{}}]}', b"\xff\xfe", b"<html>" * 1000)
            )
        status = random.choice(STATUSES)
        headers = {"Content-Type": random.choice((kind, kind, *MEDIA_TYPES)), "Content-Length": str(len(body))}
        for _ in range(random.choice((0, 1, 1, 2))):
            name, value = random.choice(
                (
                    (
                        "Content-Length",
                        random.choice(
                            ("0", "-1", "x", str(len(body) + 10), str(max(0, len(body) - 1)), "9" * 30, "1" + "0" * 18)
                        ),
                    ),
                    (
                        "Docker-Content-Digest",
                        random.choice(("sha256:" + "0" * 64, "x", "", "sha256:", "md5:1", digest_of(body))),
                    ),
                    (
                        "Location",
                        random.choice(
                            (
                                handler.path,
                                "/",
                                "",
                                "//",
                                "http://",
                                "http://127.0.0.1:1/",
                                "https://127.0.0.1:1/x",
                                "ftp://x/",
                                "file:///etc/passwd",
                                "http://[::1",
                                "http://x:99999/",
                                "\x7f",
                                "http://" + "a" * 5000,
                                f"http://{self.address}/v2/",
                                "unix:///run/x",
                            )
                        ),
                    ),
                    (
                        "WWW-Authenticate",
                        random.choice(
                            (
                                "Basic",
                                "Bearer",
                                "Bearer realm=",
                                'Bearer realm="x"',
                                'Bearer realm="file:///etc/passwd"',
                                "Digest x",
                                "Bearer " + "a=b," * 2000,
                                f'Bearer realm="http://{self.address}/token",service="{"s" * 3000}"',
                                'Bearer realm="http://127.0.0.1:1/"',
                                "",
                                '"',
                                "Basic realm",
                            )
                        ),
                    ),
                    ("Transfer-Encoding", random.choice(("chunked", "gzip", "identity", "x"))),
                    ("Content-Encoding", random.choice(("gzip", "deflate", "br", "x"))),
                    (
                        "Content-Range",
                        random.choice(
                            ("bytes 0-1/2", "bytes */0", "x", "bytes 5-1/0", "bytes 0-99999999999999999999/1")
                        ),
                    ),
                    ("Retry-After", random.choice(("0", "1", "-1", "x", "Fri, 31 Dec 9999 23:59:59 GMT"))),
                    ("Link", random.choice(('</v2/>; rel="next"', "<", "x"))),
                    ("Connection", random.choice(("close", "keep-alive", "x"))),
                    ("Set-Cookie", "a=b"),
                    ("X", "y" * random.choice((1, 70000))),
                    ("Docker-Distribution-API-Version", "registry/1.0"),
                )
            )
            headers[name] = value
        how = random.randrange(12)
        self.told.append(f"{handler.command} {handler.path}: {status} {headers} way {how} {body[:300]!r}")
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
        answer = (
            "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + (b"" if handler.command == "HEAD" else body)
        )
        if how == 0:
            answer = answer[: random.randrange(len(answer) + 1)]
        elif how == 1:
            answer = shapes.damaged(random, answer)
        elif how == 2:
            answer = b""
        handler.close_connection = True
        try:
            if how == 3:  # slow
                for at in range(0, min(len(answer), 400), 50):
                    handler.wfile.write(answer[at : at + 50])
                    handler.wfile.flush()
                    time.sleep(0.02)
                answer = answer[400:]
            handler.wfile.write(answer)
            handler.wfile.flush()
            if how == 4:
                time.sleep(0.2)
            handler.connection.close()
        except OSError:
            pass


def documents(random: random.Random, registry: OddRegistry, repository: str) -> str:
    """Offer an image whose documents are changed; they are named by their right digests. What was offered."""

    def maybe(document: Any, share: float = 0.4) -> Any:
        return shapes.changed(random, document) if random.random() < share else document

    packed = random.choice((LAYER, gzip.compress(LAYER, 1)))
    media = OCI_LAYER + ("+gzip" if packed is not LAYER else "")
    config = encode(
        maybe(
            {
                "architecture": "amd64",
                "os": "linux",
                "created": "2020-01-01T00:00:00Z",
                "author": "x",
                "variant": "v1",
                "config": {
                    "Cmd": ["sh"],
                    "Env": ["PATH=/bin"],
                    "Labels": {"a": "b"},
                    "User": "0",
                    "WorkingDir": "/",
                    "ExposedPorts": {"80/tcp": {}},
                    "Volumes": {"/v": {}},
                    "Entrypoint": ["a"],
                    "StopSignal": "SIGTERM",
                    "OnBuild": [],
                    "Shell": ["sh"],
                    "Healthcheck": {"Test": ["CMD", "x"], "Interval": 1000000000, "Retries": 3},
                },
                "rootfs": {"type": "layers", "diff_ids": [digest_of(LAYER)]},
                "history": [
                    {"created": "2020-01-01T00:00:00Z", "created_by": "x", "empty_layer": False, "comment": "y"}
                ],
            }
        )
    )
    manifest = encode(
        maybe(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": registry.put(config), "size": len(config)},
                "layers": [
                    {
                        "mediaType": media,
                        "digest": registry.put(packed),
                        "size": len(packed),
                        "annotations": {"a": "b"},
                        "urls": [],
                    }
                ],
                "annotations": {"x": "y"},
            },
            0.3,
        )
    )
    top, kind = manifest, OCI_MANIFEST
    registry.manifests[repository, digest_of(manifest)] = (OCI_MANIFEST, manifest)
    if random.random() < 0.6:
        platform = {"os": "linux", "architecture": "amd64", "variant": "v1", "os.version": "1", "os.features": ["x"]}
        if random.random() < 0.3:
            platform["variant"] = random.choice(("v²", "v" + "9" * 5000, "8", "v-1", "٣"))
        other = {**platform, "architecture": random.choice(("arm64", "386", "amd64"))}
        one = {"mediaType": OCI_MANIFEST, "digest": digest_of(manifest), "size": len(manifest), "platform": platform}
        top = encode(
            maybe(
                {
                    "schemaVersion": 2,
                    "mediaType": OCI_INDEX,
                    "manifests": [one, {**one, "platform": other}],
                    "annotations": {"x": "y"},
                }
            )
        )
        kind = OCI_INDEX
        if random.random() < 0.1:  # an index of itself cannot be, but one of many of the same can
            outer = {
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [
                    {"mediaType": OCI_INDEX, "digest": digest_of(top), "size": len(top), "platform": platform}
                ]
                * 20,
            }
            registry.manifests[repository, digest_of(top)] = (OCI_INDEX, top)
            top = encode(outer)
    if random.random() < 0.1:
        kind = random.choice(MEDIA_TYPES)
    registry.manifests[repository, "1"] = registry.manifests[repository, digest_of(top)] = (kind, top)
    return f"index or manifest {top!r}\nmanifest {manifest!r}\nconfiguration {config!r}"
