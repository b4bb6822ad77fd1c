# SPDX-License-Identifier: Apache-2.0
"""oci-layout://NAME@DIGEST: an image in a folder of the client, read through its session.

oci.session      the session that has it; any of the build's where it is not told
oci.store        the client's name for the folder; NAME where it is not told
oci.layerlimit   so many layers of it, from below
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Descriptor, Kind, Worker
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.session.content import Store
from teu.buildkit.session.manager import Manager
from teu.buildkit.sources.base import Asker, Material, ask_any, no_meta, number
from teu.buildkit.sources.image import LAYERS_MAX
from teu.buildkit.sources.manifests import Documents, Image, ImageAsSource
from teu.oci import digest as digests
from teu.oci import image_spec

PREFIX = "oci:"
REFERENCE = re.compile(r"(?P<name>[^@\s]{1,512})@(?P<digest>[A-Za-z0-9_+.-]+:[0-9a-fA-F]{32,})\Z")
VALUE = TypeVar("VALUE")


class Layouts:
    """The scheme oci-layout."""

    def __init__(self, worker: Worker, sessions: Manager, documents: Documents | None = None) -> None:
        self.worker = worker
        self.sessions = sessions
        self.documents = documents or Documents(worker.content)

    def open(self, text: str, attributes: Mapping[str, str], platform: Platform) -> LayoutSource:
        match = REFERENCE.match(text)
        if match is None:
            raise errors.InvalidArgument(f"reference {errors.cut(text, 300)!r} must have digest")
        if not digests.is_digest(match["digest"]):
            raise errors.InvalidArgument(f"invalid digest in reference {errors.cut(text, 300)!r}")
        # As BuildKit has it, a name may be written like an image's, with a tag that says nothing.
        name = re.sub(r":[^/:]*\Z", "", match["name"])
        store = attributes.get("oci.store") or name
        limit = number(attributes, "oci.layerlimit", 1, LAYERS_MAX)
        place = (store, attributes.get("oci.session", ""))
        return LayoutSource(self, text, match["digest"], place, platform, limit)

    def meta(self, request: Any, text: str, platform: Platform, asker: Asker) -> Any:
        source = self.open(text, dict(request.Source.attrs), platform)
        answer = no_meta()
        image = source.image(asker)
        answer.Image.Digest = image.root["digest"]
        if not request.Image.NoConfig:
            answer.Image.Config = image.config
        return answer


class ClientStore:
    """A content store of the client as a place of blobs: of the session that has it."""

    def __init__(self, sessions: Manager, name: str, session: str, asker: Asker) -> None:
        self._sessions = sessions
        self._name = name
        self._session = session
        self._asker = asker

    def _store(self, function: Callable[[Store], VALUE]) -> VALUE:
        return ask_any(self._sessions, self._asker, lambda session: function(Store(session, self._name)), self._session)

    def size(self, digest: str) -> int:
        return self._store(lambda store: store.info(digest).size)

    def manifest(self, digest: str) -> bytes:
        return self._store(lambda store: store.read_whole(digest, image_spec.MANIFEST_SIZE_LIMIT))

    def blob(self, descriptor: Descriptor, offset: int = 0) -> Iterator[bytes]:
        self._asker.check()
        if offset >= descriptor["size"]:
            return
        at = offset
        first, chunks = self._store(lambda store: _begun(store.read(descriptor["digest"], offset)))
        for chunk in chain([first], chunks):
            self._asker.check()
            at += len(chunk)
            if at > descriptor["size"]:
                raise errors.DataLoss(f"{descriptor['digest']}: the client sent more than {descriptor['size']} bytes")
            yield chunk
        if at < descriptor["size"]:
            raise errors.DataLoss(f"{descriptor['digest']} ends after {at} of {descriptor['size']} bytes")


def _begun(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first piece is asked for while another session can still be asked in its place."""
    return next(chunks, b""), chunks


class LayoutSource(ImageAsSource):
    """One image for one platform."""

    def __init__(
        self,
        layouts: Layouts,
        text: str,
        digest: str,
        place: tuple[str, str],
        platform: Platform,
        limit: int | None,
    ) -> None:
        super().__init__(layouts.worker, text, platform, limit)
        self._layouts = layouts
        self._digest = digest
        self._place = place

    def find(self, asker: Asker) -> Image:
        blobs, documents = self.blobs(asker), self._layouts.documents
        return documents.find(documents.root(self._digest, blobs), self.platform, blobs, self.name)

    def blobs(self, asker: Asker) -> ClientStore:
        name, session = self._place
        return ClientStore(self._layouts.sessions, PREFIX + name, session, asker)

    def kind(self, image: Image) -> Kind:
        return Kind(description=f"pulled from {self.name}")

    def material(self) -> Material:
        return Material("oci-layout", self.name, self._digest, self.platform)

    def close(self) -> None:
        """It holds nothing."""
