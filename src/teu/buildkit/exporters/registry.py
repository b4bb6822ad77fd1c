# SPDX-License-Identifier: Apache-2.0
"""The exporters there are, by the names that clients have for them (core.exports.Make)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from teu.buildkit.core import errors
from teu.buildkit.core.exports import Exporter
from teu.buildkit.core.snapshots import Worker
from teu.buildkit.exporters.folder import FolderExporter
from teu.buildkit.exporters.image import ImageExporter, for_the_engine
from teu.buildkit.exporters.layout import LayoutExporter
from teu.buildkit.session.manager import Manager
from teu.buildkit.sources.registries import Access

KINDS = ("image", "moby", "local", "tar", "oci", "docker")


@dataclass(frozen=True, slots=True)
class Exporters:
    worker: Worker
    sessions: Manager
    access: Access

    def __call__(self, kind: str, number: int, attributes: Mapping[str, str]) -> Exporter:
        """`number`: which of the request's exporters it is. Raises InvalidArgument, NotFound for no such kind."""
        if kind == "moby":
            attributes = for_the_engine(attributes)
        if kind in ("image", "moby"):
            return ImageExporter.make(self.worker, self.access, attributes, engine=kind == "moby")
        if kind in ("local", "tar"):
            return FolderExporter.make(self.worker, self.sessions, kind, number, attributes)
        if kind in ("oci", "docker"):
            return LayoutExporter.make(self.worker, self.sessions, kind, number, attributes)
        raise errors.NotFound(f"exporter {kind!r} could not be found: there are {', '.join(KINDS)}")
