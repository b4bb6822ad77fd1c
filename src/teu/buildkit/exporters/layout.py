# SPDX-License-Identifier: Apache-2.0
"""type=oci and type=docker: an image as an archive that the client receives, or (tar=false) as an OCI layout in a
content store of the client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from teu.buildkit.core import errors
from teu.buildkit.core.exports import Answer, Build, Result, Task
from teu.buildkit.core.snapshots import Worker
from teu.buildkit.exporters import attributes as given
from teu.buildkit.exporters import images
from teu.buildkit.exporters.attributes import ImageOptions
from teu.buildkit.exporters.image import answer
from teu.buildkit.exporters.images import Image
from teu.buildkit.exporters.push import content_of
from teu.buildkit.session import content, filesync
from teu.buildkit.session.manager import Manager
from teu.oci import archive

STORE = "export"  # the name of the client's store; of the export with a number: export-1, …


@dataclass(frozen=True, slots=True)
class LayoutExporter:
    worker: Worker
    sessions: Manager
    options: ImageOptions
    docker: bool
    tar: bool
    number: int
    epoch: int | None
    name: str

    @classmethod
    def make(
        cls, worker: Worker, sessions: Manager, kind: str, number: int, attributes: Mapping[str, str]
    ) -> LayoutExporter:
        docker = kind == "docker"
        options = given.image_options(attributes, not docker, ("tar",))
        tar = given.boolean(attributes, "tar", True)
        if docker and not tar:
            raise errors.InvalidArgument("the docker exporter makes archives only: tar=false is for type=oci")
        epoch = given.epoch(attributes.get("source-date-epoch"))
        name = f"exporting to {'docker' if docker else 'oci'} image format"
        return cls(worker, sessions, options, docker, tar, number, epoch, name)

    def export(self, task: Task, result: Result, build: Build) -> Answer:
        with self.worker.hold():
            image = images.assemble(self.worker, self.options, task, result, build, self.epoch, attested=False)
            if self.docker and len(image.manifests) > 1:
                raise errors.InvalidArgument("docker exporter does not currently support exporting manifest lists")
            if self.tar:
                self._archive(task, image)
            else:
                self._store(task, image)
        return Answer(answer(image, self.options.names), image.target)

    def _client(self, task: Task) -> str:
        sessions = task.sessions()
        if not sessions:
            raise errors.InvalidArgument(f"{self.name} needs a client that takes it: the build has no session")
        return sessions[0]

    def _content(self, image: Image, digest: str) -> Iterator[bytes]:
        for manifest in image.manifests:
            for layer in manifest.layers:
                if layer["digest"] == digest:
                    return content_of(self.worker, layer, manifest)
        return self.worker.content.read(digest)

    def _archive(self, task: Task, image: Image) -> None:
        session = self.sessions.get(self._client(task))
        below = [one for one in image.everything() if one["digest"] != image.target["digest"]]
        first = image.manifests[0]
        exported = archive.ExportImage(
            list(self.options.names),
            image.target,
            below,
            first.config["digest"],
            [layer["digest"] for layer in first.layers],
        )
        step = "sending tarball"

        def chunks() -> Iterator[bytes]:
            sent = 0
            for chunk in archive.write(
                [exported], lambda digest: self._content(image, digest), for_docker=self.docker or image.single
            ):
                task.check()
                yield chunk
                sent += len(chunk)
                task.status(step, sent, 0)

        size = filesync.send_file(session, chunks(), self.number, answer(image, self.options.names))
        task.status(step, size, 0, completed=True)

    def _store(self, task: Task, image: Image) -> None:
        session = self.sessions.get(self._client(task))
        store = content.Store(session, STORE if not self.number else f"{STORE}-{self.number}")
        for one in image.everything():
            task.check()
            digest, size = one["digest"], int(one["size"])
            step = f"copying {digest}"
            task.status(step, 0, size)
            store.write(f"{self.number}-{digest}", self._content(image, digest), size, digest)
            task.status(step, size, size, completed=True)
