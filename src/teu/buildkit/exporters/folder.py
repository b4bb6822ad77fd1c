# SPDX-License-Identifier: Apache-2.0
"""type=local and type=tar: the files of a result, in a folder or in an archive of the client."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from teu.buildkit.core import errors
from teu.buildkit.core.exports import EPOCH, Answer, Build, Result, Task
from teu.buildkit.core.snapshots import Worker
from teu.buildkit.exporters import attributes as given
from teu.buildkit.exporters import images, statements, trees
from teu.buildkit.exporters.attributes import KNOWN_ELSEWHERE
from teu.buildkit.session import filesync
from teu.buildkit.session.fsutil import Folder
from teu.buildkit.session.manager import Manager
from teu.linux import inside
from teu.oci.fsutil import GO_TYPE

_OWN = ("platform-split", "attestation-prefix", "source-date-epoch", "mode", *KNOWN_ELSEWHERE)


@dataclass(frozen=True, slots=True)
class FolderExporter:
    worker: Worker
    sessions: Manager
    tar: bool
    number: int
    split: bool | None
    prefix: str
    delete: bool
    epoch: int | None
    unknown: tuple[str, ...]
    name: str

    @classmethod
    def make(
        cls, worker: Worker, sessions: Manager, kind: str, number: int, attributes: Mapping[str, str]
    ) -> FolderExporter:
        prefix = attributes.get("attestation-prefix", "")
        if "/" in prefix or "\0" in prefix:
            raise errors.InvalidArgument(f"invalid attestation-prefix {prefix!r}")
        mode = attributes.get("mode", "")
        if mode not in ("", "copy", "delete"):
            raise errors.InvalidArgument(f"invalid local exporter mode {mode!r}")
        return cls(
            worker,
            sessions,
            kind == "tar",
            number,
            given.maybe(attributes, "platform-split"),
            prefix,
            mode == "delete",
            given.epoch(attributes.get("source-date-epoch")),
            tuple(name for name in attributes if name not in _OWN and not name.startswith("containerimage")),
            "exporting to client tarball" if kind == "tar" else "exporting to client directory",
        )

    def export(self, task: Task, result: Result, build: Build) -> Answer:
        for name in self.unknown:
            task.warn(f"the exporter does not know the attribute {name}")
        sessions = task.sessions()
        if not sessions:
            raise errors.InvalidArgument(f"{self.name} needs a client that takes it: the build has no session")
        session = self.sessions.get(sessions[0])
        with ExitStack() as stack:
            whole = self._whole(stack, result, build)
            if self.tar:
                self._archive(task, session, whole)
            else:
                step = "copying files"
                sent = 0

                def progress(size: int) -> None:
                    nonlocal sent
                    task.check()
                    sent += size
                    task.status(step, sent, 0)

                filesync.send_tree(session, whole, self.number, self.delete, progress)
                task.status(step, sent, 0, completed=True)
        return Answer()

    def _archive(self, task: Task, session: object, whole: trees.Whole) -> None:
        step = "sending tarball"

        def chunks() -> Iterator[bytes]:
            sent = 0
            for chunk in trees.archive(whole):
                task.check()
                yield chunk
                sent += len(chunk)
                task.status(step, sent, 0)

        size = filesync.send_file(session, chunks(), self.number)  # type: ignore[arg-type]
        task.status(step, size, 0, completed=True)

    def _whole(self, stack: ExitStack, result: Result, build: Build) -> trees.Whole:
        named = images.parts_of(result)
        several = bool(set(result.parts) - {""})
        split = self.split if self.split is not None else several and len(named) > 1
        epoch = self.epoch if self.epoch is not None else given.epoch(result.metadata.get(EPOCH))
        roots = []
        for one in named:
            folder: int | None = None
            if one.part.snapshot is not None:
                place = stack.enter_context(one.part.snapshot.mounted())
                folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, folder)
            files: dict[bytes, bytes] = {}
            made = statements.of_part(self.worker, result, build, one.id, one.platform, (), inline=False)
            if made:
                subjects = tuple(_subjects(folder)) if folder is not None else ()
                for attested in made:
                    data = statements.with_files(attested, subjects).statement()
                    suffix = f".{str(one.platform).replace('/', '_')}" if several and not split else ""
                    stem, dot, ending = attested.file.partition(".")
                    files[f"{self.prefix}{stem}{suffix}{dot}{ending}".encode()] = data
            prefix = str(one.platform).replace("/", "_").encode() if split else b""
            roots.append(trees.Root(prefix, folder, files))
        return trees.Whole(roots, epoch, time.time_ns())


def _subjects(folder: int) -> Iterator[statements.Json]:
    """Each file of a result with its digest: whom its statements are of."""
    import hashlib  # with OpenSSL; only attested files need it

    for entry in Folder(folder).entries():
        if entry.mode & GO_TYPE or entry.linkname:
            continue
        digest = hashlib.sha256()
        try:
            descriptor = inside.open_file(folder, os.fsdecode(entry.path))
        except OSError:
            continue
        with open(descriptor, "rb", buffering=0) as file:
            while data := file.read(1 << 20):
                digest.update(data)
        yield {
            "name": os.fsdecode(entry.path).encode("utf-8", "replace").decode(),
            "digest": {"sha256": digest.hexdigest()},
        }
