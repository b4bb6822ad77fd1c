# SPDX-License-Identifier: Apache-2.0
"""A containerd in memory, whose snapshots are folders, in place of worker.client.Client: for tests of the worker.

It collects no garbage by itself: `collect` does what containerd's collection does, and tests look at what is left."""

from __future__ import annotations

import gzip
import hashlib
import io
import queue
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from teu.api.services.content.v1 import content_pb2
from teu.api.services.diff.v1 import diff_pb2
from teu.api.services.images.v1 import images_pb2
from teu.api.services.leases.v1 import leases_pb2
from teu.api.services.snapshots.v1 import snapshots_pb2 as sn
from teu.api.types import mount_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import new_id
from teu.linux.trees import remove_tree
from teu.oci.labels import SAME_AS

LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Stream:
    def __init__(self, answers: Iterator[Any]) -> None:
        self._answers = answers

    def __iter__(self) -> Iterator[Any]:
        return self._answers

    def cancel(self) -> None:
        pass

    def alive(self) -> bool:
        return True


class Reading(Stream):
    """A stream whose requests are read as they come, by a thread, as gRPC does."""

    def __init__(self, answers: Iterator[Any]) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(answers,), daemon=True)
        self._thread.start()
        super().__init__(self._come())

    def _run(self, answers: Iterator[Any]) -> None:
        try:
            for answer in answers:
                self._queue.put(answer)
        except Exception as error:
            self._queue.put(error)
        self._queue.put(None)

    def _come(self) -> Iterator[Any]:
        while (answer := self._queue.get(timeout=10)) is not None:
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def alive(self) -> bool:
        return self._thread.is_alive()


class Broken(Exception):
    """The daemon is killed at this call."""


class Containerd:
    """All services are this one object. `fail` names a method that breaks at its next call."""

    namespace = "teu"
    address = "/nowhere"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.snaps: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.ingests: dict[str, bytes] = {}
        self.leased: dict[str, set[tuple[str, str]]] = {}
        self.names: dict[str, Any] = {}
        self.calls: list[str] = []
        self.fail = ""
        self.applied = 0
        self.lock = threading.RLock()
        self.writing: set[str] = set()
        self.shares = True  # one snapshot may have two keys
        self.meeting: threading.Barrier | None = None  # where those who make layers meet

    def __getattr__(self, name: str) -> Any:
        if name in ("snapshots", "content", "leases", "images", "diff"):
            return _Service(self, name)
        raise AttributeError(name)

    def ensure_namespace(self) -> None:
        pass

    def hold(self, lease: str | None, kind: str, name: str) -> None:
        if lease:
            self.leased[lease].add((kind, name))

    def collect(self) -> None:
        """Remove what no lease and no image leads to."""
        kept = {name for held in self.leased.values() for kind, name in held if kind.startswith("snapshots/")}
        todo = list(kept)
        while todo:
            parent = self.snaps.get(todo.pop(), {}).get("parent")
            if parent and parent not in kept:
                kept.add(parent)
                todo.append(parent)
        for name in [name for name in self.snaps if name not in kept]:
            del self.snaps[name]
        blobs = {name for held in self.leased.values() for kind, name in held if kind == "content"}
        for name in [name for name in self.blobs if name not in blobs]:
            del self.blobs[name]

    def put(self, data: bytes) -> dict[str, Any]:
        self.blobs[digest(data)] = data
        return {"mediaType": LAYER, "digest": digest(data), "size": len(data)}

    # Snapshots

    def _new(self, key: str, parent: str, kind: int) -> dict[str, Any]:
        if key in self.snaps:
            raise errors.AlreadyExists(f"snapshot {key}")
        if parent and self.snaps.get(parent, {}).get("kind") != sn.COMMITTED:
            raise errors.NotFound(f"parent snapshot {parent}")
        place = self.root / new_id()
        if parent:
            shutil.copytree(self.snaps[parent]["place"], place, symlinks=True)
        else:
            place.mkdir()
        found = self.snaps[key] = {"parent": parent, "kind": kind, "place": place}
        return found

    def _stands_on(self, found: dict[str, Any], parent: str) -> bool:
        if not parent or not found["parent"]:
            return parent == found["parent"]
        return bool(self.snaps[parent]["place"] == self.snaps[found["parent"]]["place"])

    @staticmethod
    def _mounts(found: dict[str, Any]) -> list[Any]:
        way = "ro" if found["kind"] == sn.VIEW else "rw"
        return [mount_pb2.Mount(type="bind", source=str(found["place"]), options=[way, "rbind"])]

    def snapshots_Prepare(self, request: Any, lease: str | None) -> Any:
        same = self.snaps.get(request.labels.get(SAME_AS, "")) if self.shares else None
        if same is not None and self._stands_on(same, request.parent):
            wanted = request.labels["containerd.io/snapshot.ref"]
            self.snaps[wanted] = {**same, "parent": request.parent}
            self.hold(lease, f"snapshots/{request.snapshotter}", wanted)
            raise errors.AlreadyExists(wanted)
        found = self._new(request.key, request.parent, sn.ACTIVE)
        self.hold(lease, f"snapshots/{request.snapshotter}", request.key)
        return sn.PrepareSnapshotResponse(mounts=self._mounts(found))

    def snapshots_View(self, request: Any, lease: str | None) -> Any:
        found = self._new(request.key, request.parent, sn.VIEW)
        self.hold(lease, f"snapshots/{request.snapshotter}", request.key)
        return sn.ViewSnapshotResponse(mounts=self._mounts(found))

    def _found(self, key: str) -> dict[str, Any]:
        if key not in self.snaps:
            raise errors.NotFound(f"snapshot {key} does not exist")
        return self.snaps[key]

    def snapshots_Mounts(self, request: Any, lease: str | None) -> Any:
        return sn.MountsResponse(mounts=self._mounts(self._found(request.key)))

    def snapshots_Commit(self, request: Any, lease: str | None) -> Any:
        if request.name in self.snaps:
            raise errors.AlreadyExists(request.name)
        self.snaps[request.name] = {**self._found(request.key), "kind": sn.COMMITTED}
        del self.snaps[request.key]
        self.hold(lease, f"snapshots/{request.snapshotter}", request.name)

    def snapshots_Remove(self, request: Any, lease: str | None) -> Any:
        self._found(request.key)
        if any(one["parent"] == request.key for one in self.snaps.values()):
            raise errors.FailedPrecondition("cannot remove snapshot with child")
        place = self.snaps.pop(request.key)["place"]
        if not any(one["place"] == place for one in self.snaps.values()):
            remove_tree(place)

    def snapshots_Stat(self, request: Any, lease: str | None) -> Any:
        found = self._found(request.key)
        info = sn.Info(name=request.key, parent=found["parent"], kind=found["kind"])
        return sn.StatSnapshotResponse(info=info)

    def snapshots_Usage(self, request: Any, lease: str | None) -> Any:
        place = self._found(request.key)["place"]
        return sn.UsageResponse(size=sum(path.lstat().st_size for path in place.rglob("*") if path.is_file()))

    def snapshots_List(self, request: Any, lease: str | None) -> Any:
        infos = [sn.Info(name=name, parent=one["parent"], kind=one["kind"]) for name, one in self.snaps.items()]
        return iter([sn.ListSnapshotsResponse(info=infos)])

    # Content

    def content_Info(self, request: Any, lease: str | None) -> Any:
        if request.digest not in self.blobs:
            raise errors.NotFound(f"content {request.digest}: not found")
        info = content_pb2.Info(digest=request.digest, size=len(self.blobs[request.digest]))
        info.labels.update(self.labels.get(request.digest, {}))
        return content_pb2.InfoResponse(info=info)

    def content_Read(self, request: Any, lease: str | None) -> Any:
        if request.digest not in self.blobs:
            raise errors.NotFound(f"content {request.digest}: not found")
        data = self.blobs[request.digest][request.offset :]
        return Stream(content_pb2.ReadContentResponse(data=data[at : at + 1000]) for at in range(0, len(data), 1000))

    def content_Write(self, requests: Any, lease: str | None) -> Any:
        def answers() -> Iterator[Any]:
            ref = ""
            try:
                for request in requests:
                    if request.action == content_pb2.STAT:
                        if request.ref in self.writing:
                            raise errors.Unavailable(f"ref {request.ref} locked")
                        ref = request.ref
                        self.writing.add(ref)
                    yield self._written(request, lease)
            finally:
                self.writing.discard(ref)

        return Reading(answers())

    def _written(self, request: Any, lease: str | None) -> Any:
        if request.action == content_pb2.STAT:
            if request.expected in self.blobs:
                raise errors.AlreadyExists(request.expected)
            data = self.ingests.setdefault(request.ref, b"")
            return content_pb2.WriteContentResponse(action=request.action, offset=len(data))
        if request.action == content_pb2.WRITE:
            assert request.offset == len(self.ingests[request.ref])
            self.ingests[request.ref] += request.data
            return content_pb2.WriteContentResponse(action=request.action)
        data = self.ingests[request.ref]
        if request.expected and digest(data) != request.expected:
            raise errors.FailedPrecondition(f"unexpected commit digest {digest(data)}")
        if request.total and len(data) != request.total:
            raise errors.FailedPrecondition(f"unexpected commit size {len(data)}")
        del self.ingests[request.ref]
        self.blobs[digest(data)] = data
        self.labels[digest(data)] = dict(request.labels)
        self.hold(lease, "content", digest(data))
        return content_pb2.WriteContentResponse(action=request.action, digest=digest(data))

    def content_Abort(self, request: Any, lease: str | None) -> Any:
        self.ingests.pop(request.ref, None)

    def content_Update(self, request: Any, lease: str | None) -> Any:
        self.labels.setdefault(request.info.digest, {}).update(request.info.labels)

    def content_ListStatuses(self, request: Any, lease: str | None) -> Any:
        return content_pb2.ListStatusesResponse(statuses=[content_pb2.Status(ref=ref) for ref in self.ingests])

    # Leases

    def leases_Create(self, request: Any, lease: str | None) -> Any:
        if request.id in self.leased:
            raise errors.AlreadyExists(request.id)
        self.leased[request.id] = set()

    def leases_Delete(self, request: Any, lease: str | None) -> Any:
        if self.leased.pop(request.id, None) is None:
            raise errors.NotFound(request.id)
        if request.sync:
            self.collect()

    def leases_AddResource(self, request: Any, lease: str | None) -> Any:
        self.leased[request.id].add((request.resource.type, request.resource.id))

    def leases_List(self, request: Any, lease: str | None) -> Any:
        return leases_pb2.ListResponse(leases=[leases_pb2.Lease(id=name) for name in self.leased])

    # Images

    def images_Get(self, request: Any, lease: str | None) -> Any:
        if request.name not in self.names:
            raise errors.NotFound(request.name)
        return images_pb2.GetImageResponse(image=self.names[request.name])

    def images_Create(self, request: Any, lease: str | None) -> Any:
        if request.image.name in self.names:
            raise errors.AlreadyExists(request.image.name)
        self.names[request.image.name] = request.image

    def images_Update(self, request: Any, lease: str | None) -> Any:
        self.names[request.image.name] = request.image

    def images_List(self, request: Any, lease: str | None) -> Any:
        return images_pb2.ListImagesResponse(images=list(self.names.values()))

    # Diff

    def diff_Apply(self, request: Any, lease: str | None) -> Any:
        data = self.blobs[request.diff.digest]
        plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            # From Python 3.14 on not everything would come out as it is in the archive.
            archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", lambda member, _: member)
            archive.extractall(request.mounts[0].source)
        self.applied += 1
        response = diff_pb2.ApplyResponse()
        response.applied.digest = digest(plain)
        return response

    def diff_Diff(self, request: Any, lease: str | None) -> Any:
        if self.meeting is not None:
            self.meeting.wait(10)
        lower = Path(request.left[0].source) if request.left else None
        upper = Path(request.right[0].source)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for path in sorted(upper.rglob("*")):
                name = path.relative_to(upper)
                if path.is_file() and (lower is None or not (lower / name).exists()):
                    archive.add(path, str(name))
        plain = out.getvalue()
        data = gzip.compress(plain, mtime=0) if request.media_type.endswith("gzip") else plain
        self.blobs[digest(data)] = data
        self.labels[digest(data)] = {"containerd.io/uncompressed": digest(plain)}
        self.hold(lease, "content", digest(data))
        response = diff_pb2.DiffResponse()
        response.diff.media_type = request.media_type
        response.diff.digest = digest(data)
        response.diff.size = len(data)
        return response


class _Service:
    def __init__(self, daemon: Containerd, name: str) -> None:
        self._daemon = daemon
        self._name = name

    def __getattr__(self, method: str) -> Any:
        daemon, name = self._daemon, f"{self._name}_{method}"
        call = getattr(Containerd, name)

        def run(request: Any, timeout: float | None = None, lease: str | None = None) -> Any:
            daemon.calls.append(name)
            if daemon.fail == name:
                daemon.fail = ""
                raise Broken(name)
            if name == "diff_Diff":  # takes its time
                return call(daemon, request, lease)
            with daemon.lock:
                return call(daemon, request, lease)

        return run
