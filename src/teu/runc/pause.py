# SPDX-License-Identifier: Apache-2.0
"""teu-runc pause: stop every process of a container where it is."""

from __future__ import annotations

from teu.runc import cgroups, state
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "pause suspends all processes inside the container"
USAGE = "<container-id>"
FLAGS: dict[str, tuple[str, str, object, str]] = {}
ARGUMENTS = (1, 1)


def main(arguments: Arguments, settings: Settings) -> int:
    container = state.load(settings.root, arguments.positional[0])
    with state.Lock(container.folder):
        status = container.status()
        if status not in (state.RUNNING, state.CREATED):
            raise RuncError(f"container not running or created: {status}")
        cgroups.load(container.record["cgroup"]).freeze()
    return 0
