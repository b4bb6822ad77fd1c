# SPDX-License-Identifier: Apache-2.0
"""Lean blobs: layers whose large files are not written a second time while the snapshot that they are made of is here.

    content/lean/HEX/data     the tar, with holes where the content of large files belongs
    content/lean/HEX/parts    JSON: {"snapshotter": NAME, "snapshot": its name there, "parts": [[PLACE, BYTES, PATH]]}

Called by `content`, which is in front of this: who opens such a blob has it made whole first, once, and it is checked
by its digest then. `snapshots` removes no snapshot that a lean blob is of. A snapshot does not change after its commit,
and is on disk; so a lean blob is as durable as a whole one.

A folder appears by a rename, complete. What lacks a part is of a blob that was made whole, or removed, by a daemon that
was killed over it: it is removed at the start.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from teu.containerd.core.errors import DataLoss, NotFound
from teu.linux import trees
from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

log = logging.getLogger("teu.containerd.content")

DATA, PARTS, TRASH = "data", "parts", "trash-"
_CHUNK = 1 << 20
Part = tuple[int, int, str]  # place in the blob, bytes, path in the folder of the snapshot's changes


@dataclass(frozen=True, slots=True)
class Lent:
    """Where the missing parts of a blob are: in a committed snapshot of a built-in snapshotter."""

    snapshotter: str
    snapshot: str
    parts: Sequence[Part]


def _on_disk(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(path: str) -> Lent:
    """OSError, ValueError for what is none."""
    with open(path, "rb") as file:
        found = json.load(file)
    try:
        parts = [(int(place), int(length), str(name)) for place, length, name in found["parts"]]
        return Lent(str(found["snapshotter"]), str(found["snapshot"]), parts)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a member is missing: {error}") from None


class Lean:
    """Lock order: Content's own, then `lock`, then the database."""

    def __init__(self, root: str) -> None:
        self.root = os.path.join(root, "content", "lean")
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        self.lock = threading.Lock()  # held while snapshots are removed, and while a blob begins to need one
        # The folder of the changes of a committed snapshot (snapshotter, name); NotFound without it.
        self.changes: Callable[[str, str], str] = _nowhere
        self._lent: dict[str, Lent] = {}  # digest -> where its parts are
        self._load()

    def _load(self) -> None:
        for name in os.listdir(self.root):
            folder = os.path.join(self.root, name)
            if name.startswith(TRASH):
                trees.discard_tree(folder)
                continue
            try:
                lent = _read(os.path.join(folder, PARTS))
                os.stat(os.path.join(folder, DATA))
            except FileNotFoundError:
                trees.discard_tree(folder)
            except (OSError, ValueError) as error:
                log.error("content sha256:%s is damaged, its %s: %s", name, PARTS, error)
            else:
                self._lent[f"sha256:{name}"] = lent

    def _folder(self, digest: str) -> str:
        return os.path.join(self.root, digest.partition(":")[2])

    def __contains__(self, digest: str) -> bool:
        return digest in self._lent

    def digests(self) -> list[str]:
        """Of all that there are, damaged ones, too."""
        return [f"sha256:{name}" for name in os.listdir(self.root) if not name.startswith(TRASH)]

    def needed(self, snapshotter: str) -> set[str]:
        """The snapshots that must stay. The caller holds `lock`."""
        return {lent.snapshot for lent in self._lent.values() if lent.snapshotter == snapshotter}

    def put(self, digest: str, ingest: str, lent: Lent) -> None:
        """An ingest's folder, whose data is on disk, becomes the blob. NotFound where the snapshot has gone."""
        path = os.path.join(ingest, PARTS)
        with open(path, "w") as file:
            json.dump({"snapshotter": lent.snapshotter, "snapshot": lent.snapshot, "parts": lent.parts}, file)
            file.flush()
            os.fsync(file.fileno())
        _on_disk(ingest)
        with self.lock:
            self.changes(lent.snapshotter, lent.snapshot)
            trees.discard_tree(self._folder(digest))  # a damaged one
            os.rename(ingest, self._folder(digest))
            _on_disk(self.root)
            self._lent[digest] = lent

    def fill(self, digest: str) -> str:
        """The file of the blob, whole, checked and on disk: for the caller to put in place. One at a time. NotFound for
        what is no lean blob any more, DataLoss where it is not what its digest says."""
        lent = self._lent.get(digest)
        if lent is None:
            raise NotFound(f"content digest {digest}")
        path = os.path.join(self._folder(digest), DATA)
        folder = os.open(self.changes(lent.snapshotter, lent.snapshot), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with open(path, "r+b", buffering=0) as file:
                for place, length, name in lent.parts:
                    _copy(folder, name, file.fileno(), place, length)
                os.fsync(file.fileno())
                found = _digest(file.fileno())
                os.fchmod(file.fileno(), 0o444)
        except FileNotFoundError:
            raise NotFound(f"content digest {digest}") from None  # it was removed meanwhile
        finally:
            os.close(folder)
        if found != digest:
            raise DataLoss(
                f"content {digest} is damaged: with the files of snapshot {lent.snapshot} its digest is {found}"
            )
        return path

    def forget(self, digest: str) -> None:
        """It is whole now, or nobody's: what is left of it goes."""
        with self.lock:
            self._lent.pop(digest, None)
            trash = os.path.join(self.root, f"{TRASH}{time.monotonic_ns()}")
            try:
                os.rename(self._folder(digest), trash)
            except FileNotFoundError:
                return
        trees.discard_tree(trash)

    def size(self, digest: str) -> int:
        """Bytes that it takes; 0 where it is not there."""
        try:
            return os.stat(os.path.join(self._folder(digest), DATA)).st_blocks * 512
        except FileNotFoundError:
            return 0


def _nowhere(snapshotter: str, name: str) -> str:
    raise NotFound(f"snapshot {name} does not exist")


def _copy(folder: int, name: str, out: int, place: int, length: int) -> None:
    """The content of a file into its place. What it lacks shows in the digest."""
    source = openat2(folder, name, os.O_RDONLY | os.O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    try:
        at = 0
        while at < length:
            try:
                done = os.copy_file_range(source, out, length - at, at, place + at)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                done = os.pwrite(out, os.pread(source, min(length - at, _CHUNK), at), place + at)
            if not done:
                return
            at += done
    finally:
        os.close(source)


def _digest(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
