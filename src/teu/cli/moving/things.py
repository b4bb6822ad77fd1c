# SPDX-License-Identifier: Apache-2.0
"""What can be taken over from another engine, as plain records, and what cannot. Made by `dockerstore` and
`podmanstore`, read by `importing`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

# Fields of HostConfig that may say container:ID.
MODES = ("NetworkMode", "PidMode", "IpcMode")


class Image:
    """`id`: sha256:... of its configuration. `archive`: the bytes for POST /images/load."""

    def __init__(self, identity: str, names: list[str], archive: Callable[[], Iterator[bytes]]) -> None:
        self.id = identity
        self.names = names
        self.archive = archive

    def label(self) -> str:
        return self.names[0] if self.names else self.id.removeprefix("sha256:")[:12]


class Volume:
    """A volume of the driver local: `options` as its driver has them, `folder` with its files, "" where a mount that
    the options name has them."""

    def __init__(self, name: str, options: dict[str, str], labels: dict[str, str], folder: str) -> None:
        self.name = name
        self.options = options
        self.labels = labels
        self.folder = folder


class Network:
    """`body`: for POST /networks/create. `bridge`: the interface that the other engine leaves on the host, or ""."""

    def __init__(self, name: str, body: dict[str, Any], bridge: str) -> None:
        self.name = name
        self.body = body
        self.bridge = bridge


class Container:
    """`body`: for POST /containers/create, without its Image. `image`: the id of it, `called` how it was named.
    `changes`: the folder with what it has changed, "" where it has changed nothing. `told`: what of it is not taken
    over. `starts`: whether its restart policy would have it running."""

    def __init__(
        self,
        name: str,
        image: str,
        called: str,
        body: dict[str, Any],
        changes: str = "",
        told: list[str] | None = None,
        starts: bool = False,
    ) -> None:
        self.name = name
        self.image = image
        self.called = called
        self.body = body
        self.changes = changes
        self.told = told or []
        self.starts = starts


class Left:
    """Something that stays where it is, and why."""

    def __init__(self, kind: str, name: str, why: str) -> None:
        self.kind = kind
        self.name = name
        self.why = why


class Belongings:
    """All that an engine has. `ids`: containers' names by their ids there."""

    def __init__(self) -> None:
        self.images: list[Image] = []
        self.volumes: list[Volume] = []
        self.networks: list[Network] = []
        self.containers: list[Container] = []
        self.left: list[Left] = []
        self.ids: dict[str, str] = {}

    def name_the_shared(self) -> None:
        """A shared namespace names its container by the id that it has with the other engine: put its name there."""
        for container in self.containers:
            host = container.body.get("HostConfig") or {}
            for mode in MODES:
                kind, _, other = str(host.get(mode)).partition(":")
                if kind == "container" and other in self.ids:
                    host[mode] = f"container:{self.ids[other]}"
