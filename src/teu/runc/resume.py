# SPDX-License-Identifier: Apache-2.0
"""teu-runc resume: let a paused container run on."""

from __future__ import annotations

from teu.runc import cgroups, state
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "resumes all processes that have been previously paused"
USAGE = "<container-id>"
FLAGS: dict[str, tuple[str, str, object, str]] = {}
ARGUMENTS = (1, 1)


def main(arguments: Arguments, settings: Settings) -> int:
    container = state.load(settings.root, arguments.positional[0])
    with state.Lock(container.folder):
        if container.status() != state.PAUSED:
            raise RuncError("container not paused")
        cgroups.load(container.record["cgroup"]).thaw()
    return 0
