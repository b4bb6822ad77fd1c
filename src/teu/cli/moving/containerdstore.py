# SPDX-License-Identifier: Apache-2.0
"""Images and containers' changes that a dockerd keeps in containerd (the image store of Docker 29, a feature before).
Called by `dockerstore`. Read from the folder of a stopped containerd:

    io.containerd.metadata.v1.bolt/meta.db            v1/NAMESPACE/images/NAME/target: digest
    io.containerd.content.v1.content/blobs/sha256/    indexes, manifests, configurations, layers
    io.containerd.snapshotter.v1.overlayfs/metadata.db v1/snapshots/NAMESPACE\\/NUMBER\\/KEY: id, a varint
    io.containerd.snapshotter.v1.overlayfs/snapshots/ID/fs
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os

from teu.cli.moving import layers
from teu.cli.moving.boltdb import Bolt
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

METADATA = "io.containerd.metadata.v1.bolt/meta.db"
CONTENT = "io.containerd.content.v1.content/blobs"
SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs"
NAMESPACE = "moby"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm", "riscv64": "riscv64"}
LARGEST_DOCUMENT = 8 << 20
BLOCK = 1 << 18


def varint(data: bytes) -> int:
    """Seven bits in each byte, the lowest first."""
    value = 0
    for shift, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            break
    return value


def blob(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


class Stored:
    """An image: the names that containerd has for it, its configuration as it stands, its layers."""

    def __init__(self, config: bytes, stack: list[layers.Layer]) -> None:
        self.names: list[str] = []
        self.config = config
        self.layers = stack
        self.id = "sha256:" + hashlib.sha256(config).hexdigest()


class Store:
    """A containerd's folder; a context manager, while which is open no containerd starts on it. Raises BoltError."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._open = contextlib.ExitStack()
        self.images: dict[str, Stored] = {}
        """By the digest that a name leads to, and by the image's id."""
        self.incomplete: dict[str, str] = {}
        """Names of what is not an image of this machine, or not wholly here; and why."""
        try:
            self._metadata = self._open.enter_context(Bolt(f"{root}/{METADATA}"))
            snapshots = f"{root}/{SNAPSHOTS}/metadata.db"
            self._snapshots = self._open.enter_context(Bolt(snapshots)) if os.path.exists(snapshots) else None
            self._read()
        except BaseException:
            self._open.close()
            raise

    def close(self) -> None:
        self._open.close()

    def _read(self) -> None:
        where = (b"v1", NAMESPACE.encode(), b"images")
        for key in self._metadata.buckets(*where):
            digest = dict(self._metadata.items(*where, key, b"target")).get(b"digest", b"").decode()
            name = os.fsdecode(key)
            try:
                found = self.images.get(digest) or self._image(digest)
            except FileNotFoundError as error:
                self.incomplete[name] = f"containerd has no {os.path.basename(str(error.filename))[:12]} of it"
                continue
            if found is None:
                self.incomplete[name] = "it is of another platform"
                continue
            found = self.images.setdefault(found.id, found)
            self.images[digest] = found
            if "@" not in name and not name.startswith("moby-dangling"):
                found.names.append(name)

    def _path(self, digest: str) -> str:
        return f"{self.root}/{CONTENT}/{digest.replace(':', '/')}"

    def _document(self, digest: str) -> tuple[bytes, dict[str, Any]]:
        with open(self._path(digest), "rb") as file:
            data = file.read(LARGEST_DOCUMENT)
        return data, jsontext.loads(data)

    def _image(self, digest: str) -> Stored | None:
        """That of this machine's platform; None where there is none. Raises FileNotFoundError for what is missing."""
        _, document = self._document(digest)
        if "manifests" in document:
            for entry in document["manifests"]:
                platform = entry.get("platform") or {}
                if platform and platform.get("architecture") != ARCHITECTURES.get(os.uname().machine):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if found := self._image(entry["digest"]):
                        return found
            return None
        if "config" not in document:
            return None
        config, parsed = self._document(document["config"]["digest"])
        if not (parsed.get("rootfs") or {}).get("diff_ids"):
            return None  # an attestation, or an artifact
        stack = []
        for layer in document["layers"]:
            path = self._path(layer["digest"])
            stack.append(layers.Layer(os.stat(path).st_size, functools.partial(blob, path)))
        return Stored(config, stack)

    def upper(self, container: str) -> str:
        """The folder with what a container has changed; "" where there is none."""
        if self._snapshots is None:
            return ""
        for key in self._snapshots.buckets(b"v1", b"snapshots"):
            if key.endswith(b"/" + container.encode()):
                identity = varint(dict(self._snapshots.items(b"v1", b"snapshots", key)).get(b"id", b"\0"))
                return f"{self.root}/{SNAPSHOTS}/snapshots/{identity}/fs"
        return ""
