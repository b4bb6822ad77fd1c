# SPDX-License-Identifier: Apache-2.0
"""Folders with an OCI layout as content stores of the builder: caches (`type=local`), contexts (`oci-layout://`),
results (`-o type=oci,tar=false`). Called by session for containerd's content service.

    FOLDER/oci-layout, index.json       FOLDER/blobs/ALGORITHM/HEX       FOLDER/ingest/RANDOM while a blob comes
"""

from __future__ import annotations

import os
import threading

from teu.cli.builds.messages import CONTENT, decode, encode
from teu.cli.builds.receiving import replace, write
from teu.cli.builds.wire import ALREADY_EXISTS, INVALID_ARGUMENT, NOT_FOUND, UNIMPLEMENTED, UNKNOWN, BuildError
from teu.cli.errors import CommandError
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.http2.calls import Asked

STORE_KEY = "buildkit-attachable-store-id"
CHUNK = 1 << 20
STAT, WRITE, COMMIT = 0, 1, 2
INDEX_MAX = 16 << 20
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"
ALGORITHMS = {"sha256": 64, "sha384": 96, "sha512": 128}


def blob_path(digest: str) -> str:
    """Where a blob lies below its folder; INVALID_ARGUMENT for what is no digest."""
    algorithm, _, encoded = digest.partition(":")
    if len(encoded) != ALGORITHMS.get(algorithm) or not set(encoded) <= set("0123456789abcdef"):
        raise BuildError(INVALID_ARGUMENT, f"invalid digest {digest[:200]!r}")
    return f"blobs/{algorithm}/{encoded}"


class Store:
    """One folder. `writes`: the builder may put blobs into it."""

    def __init__(self, folder: str, writes: bool) -> None:
        self.folder = folder
        self.writes = writes

    def path(self, digest: str) -> str:
        return f"{self.folder}/{blob_path(digest)}"

    def size(self, digest: str) -> int:
        try:
            return os.stat(self.path(digest)).st_size
        except OSError:
            raise BuildError(NOT_FOUND, f"content {digest}: not found") from None

    def prepare(self) -> None:
        """Make the folder what an OCI layout is. CommandError where it cannot be."""
        try:
            for name in ("blobs/sha256", "ingest"):
                os.makedirs(f"{self.folder}/{name}", exist_ok=True)
        except OSError as error:
            raise CommandError(f"failed to create {self.folder}: {error.strerror}") from None
        if not os.path.exists(f"{self.folder}/oci-layout"):
            replace(f"{self.folder}/oci-layout", '{"imageLayoutVersion":"1.0.0"}')

    def index(self) -> dict[str, Any]:
        """index.json; CommandError where it is none."""
        try:
            with open(f"{self.folder}/index.json", "rb") as file:
                found = jsontext.loads(file.read(INDEX_MAX))
        except FileNotFoundError:
            return {"schemaVersion": 2, "manifests": []}
        except (OSError, ValueError) as error:
            raise CommandError(f"could not read {self.folder}/index.json: {error}") from None
        if not isinstance(found, dict) or not isinstance(found.get("manifests", []), list):
            raise CommandError(f"could not read {self.folder}/index.json: it is no index")
        return found

    def find(self, tag: str) -> str:
        """The digest that a tag of the index names; the only one where there is one. "" where there is none."""
        entries = [entry for entry in self.index().get("manifests") or [] if isinstance(entry, dict)]
        for entry in entries:
            marks = entry.get("annotations") or {}
            if tag in (marks.get(REF_NAME), marks.get(IMAGE_NAME)):
                return str(entry.get("digest", ""))
        return str(entries[0].get("digest", "")) if len(entries) == 1 else ""

    def name(self, descriptor: dict[str, Any], names: list[dict[str, str]]) -> None:
        """Let the index name a manifest by these annotations, and by them nothing else."""
        index = self.index()
        index.setdefault("schemaVersion", 2)
        index.setdefault("mediaType", "application/vnd.oci.image.index.v1+json")
        kept = []
        for entry in index.get("manifests") or []:
            marks = entry.get("annotations") or {}
            if not any(all(marks.get(key) == value for key, value in name.items()) for name in names):
                kept.append(entry)
        for name in names:
            kept.append({**descriptor, "annotations": {**(descriptor.get("annotations") or {}), **name}})
        index["manifests"] = kept
        replace(f"{self.folder}/index.json", jsontext.dumps(index))


class Service:
    """containerd.services.content.v1.Content for several stores; which one stands in the metadata."""

    METHODS = ("Info", "Update", "List", "Delete", "Read", "Status", "ListStatuses", "Write", "Abort")

    def __init__(self, stores: dict[str, Store]) -> None:
        self._stores = stores
        self._lock = threading.Lock()

    def serve(self, method: str, asked: Asked) -> None:
        """Answer one call. Raises BuildError."""
        identifier = (asked.metadata.get(STORE_KEY) or [""])[0]
        store = self._stores.get(identifier)
        if store is None:
            raise BuildError(NOT_FOUND, f"unknown store {identifier!r}")
        if method == "Write":
            self._write(store, asked)
            return
        request = asked.receive() or b""
        if method == "Info":
            digest = decode(f"{CONTENT}InfoRequest", request)["digest"]
            asked.send(encode(f"{CONTENT}InfoResponse", info={"digest": digest, "size": store.size(digest)}))
        elif method == "Update":
            info = decode(f"{CONTENT}UpdateRequest", request)["info"] or {}
            digest = info.get("digest", "")
            asked.send(encode(f"{CONTENT}UpdateResponse", info={"digest": digest, "size": store.size(digest)}))
        elif method == "Read":
            self._read(store, decode(f"{CONTENT}ReadContentRequest", request), asked)
        elif method in ("Status", "Abort"):
            raise BuildError(NOT_FOUND, "no such ingest")
        elif method == "ListStatuses":
            asked.send(b"")
        elif method == "Delete" and store.writes:
            try:
                os.unlink(store.path(decode(f"{CONTENT}DeleteContentRequest", request)["digest"]))
            except OSError as error:
                raise BuildError(NOT_FOUND, f"content: {error.strerror}") from None
            asked.send(b"")
        else:
            raise BuildError(UNIMPLEMENTED, f"method {method} not supported")

    def _read(self, store: Store, request: Any, asked: Asked) -> None:
        size = store.size(request["digest"])
        offset, length = request["offset"], request["size"]
        if not 0 <= offset <= size or length < 0:
            raise BuildError(11, f"offset past content length {size} bytes")
        end = min(size, offset + length) if length else size
        with open(store.path(request["digest"]), "rb") as file:
            file.seek(offset)
            while offset < end:
                data = file.read(min(CHUNK, end - offset))
                if not data:
                    raise BuildError(UNKNOWN, f"{request['digest']}: the blob is shorter than it was")
                asked.send(encode(f"{CONTENT}ReadContentResponse", offset=offset, data=data))
                offset += len(data)

    def _write(self, store: Store, asked: Asked) -> None:
        if not store.writes:
            raise BuildError(UNIMPLEMENTED, "this store is only read")
        temporary = f"{store.folder}/ingest/{os.urandom(8).hex()}"
        offset = total = 0
        expected = ""
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            for message in asked:
                request = decode(f"{CONTENT}WriteContentRequest", message)
                expected, total = request["expected"] or expected, request["total"] or total
                action = request["action"]
                if expected and os.path.exists(store.path(expected)):
                    raise BuildError(ALREADY_EXISTS, f"content {expected}: already exists")
                if action in (WRITE, COMMIT) and request["data"]:
                    if request["offset"] != offset:
                        raise BuildError(11, f"write at {request['offset']}, where {offset} was to come")
                    write(descriptor, request["data"])
                    offset += len(request["data"])
                digest = ""
                if action == COMMIT:
                    digest = self._commit(store, temporary, offset, total, expected)
                asked.send(
                    encode(f"{CONTENT}WriteContentResponse", action=action, offset=offset, total=total, digest=digest)
                )
                if action == COMMIT:
                    return
        except OSError as error:
            raise BuildError(UNKNOWN, f"{store.folder}: {error.strerror}") from None
        finally:
            os.close(descriptor)
            try:
                os.unlink(temporary)
            except FileNotFoundError:
                pass

    def _commit(self, store: Store, temporary: str, offset: int, total: int, expected: str) -> str:
        if total and total != offset:
            raise BuildError(9, f"{offset} bytes came where {total} were promised")
        import hashlib  # 3 ms, for blobs that come alone

        algorithm = expected.partition(":")[0] or "sha256"
        with open(temporary, "rb") as file:
            if algorithm not in ALGORITHMS:
                raise BuildError(INVALID_ARGUMENT, f"invalid digest {expected[:200]!r}")
            digest = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
            if expected and digest != expected:
                raise BuildError(9, f"unexpected commit digest {digest}, expected {expected}: failed precondition")
            os.fsync(file.fileno())
        with self._lock:
            place = store.path(digest)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.rename(temporary, place)
        return digest
