# SPDX-License-Identifier: Apache-2.0
"""A software bill of materials: a scanner image runs over the result, and what it writes is an attestation."""

from __future__ import annotations

from collections.abc import Mapping

from teu.buildkit.frontends.dockerfile.client import Client, ImageConfig
from teu.buildkit.frontends.dockerfile.errors import DockerfileError
from teu.buildkit.frontends.dockerfile.image import Image
from teu.buildkit.llb import build
from teu.buildkit.llb.build import Marks, Mount, State
from teu.buildkit.llb.platforms import Platform

CORE = "sbom"
PREDICATE = "https://spdx.dev/Document"
_SOURCES = "/run/src/"
_RESULT = "/run/out/"


class Scanner:
    """A scanner that is known to have a command. Raises DockerfileError for one without."""

    def __init__(
        self, name: str, parameters: Mapping[str, str], platform: Platform, resolve_mode: str, client: Client
    ) -> None:
        log = f"[internal] load metadata for {name}"
        found: ImageConfig = client.resolve_image_config(name, platform, resolve_mode, log)
        self.name = found.reference
        self.parameters = dict(parameters)
        self.platform = platform
        self.image = Image.parse(found.config)
        self.args: list[str] = [
            *(self.image.config.get("Entrypoint") or []),
            *(self.image.config.get("Cmd") or []),
        ]
        if not self.args:
            raise DockerfileError(f"scanner {self.name} does not have cmd")

    def scan(self, platform: str, state: State, others: Mapping[str, State], ignore_cache: bool) -> State:
        """What the scanner writes of a result, and of what else it is to look at."""
        mounts = [Mount("/tmp", tmpfs=0), Mount(f"{_SOURCES}core/{CORE}", state, readonly=True)]
        mounts += [
            Mount(f"{_SOURCES}extras/{CORE}-{name}", other, readonly=True) for name, other in sorted(others.items())
        ]
        result = Mount(_RESULT, build.scratch())
        base = build.image(self.name, self.platform).dir(self.image.text("WorkingDir") or "/")
        for entry in self.image.env:
            key, _, value = entry.partition("=")
            base = base.env(key, value)
        base = base.env("BUILDKIT_SCAN_DESTINATION", _RESULT).env("BUILDKIT_SCAN_SOURCE", f"{_SOURCES}core/{CORE}")
        if others:
            base = base.env("BUILDKIT_SCAN_SOURCE_EXTRAS", f"{_SOURCES}extras")
        for key, value in sorted(self.parameters.items()):
            base = base.env("BUILDKIT_SCAN_" + key, value)
        marks = Marks(name=f"[{platform}] generating sbom using {self.name}", ignore_cache=ignore_cache)
        return base.run(self.args, [*mounts, result], marks=marks).output(result)
