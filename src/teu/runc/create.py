# SPDX-License-Identifier: Apache-2.0
"""teu-runc create: make a container up to the point where `start` only has to let its process go."""

from __future__ import annotations

from teu.runc.errors import RuncError, text_of
from teu.runc.launch import LAUNCH_FLAGS, Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "create a container"
USAGE = "<container-id>"
FLAGS = LAUNCH_FLAGS
ARGUMENTS = (1, 1)


def main(arguments: Arguments, settings: Settings) -> int:
    launch = Launch(arguments, settings, arguments.positional[0], with_fifo=True)
    try:
        launch.read(detached=True)
        launch.claim()
        try:
            launch.build()
            launch.release()
        except BaseException:
            launch.abort()
            raise
    except (RuncError, OSError, ValueError) as error:
        raise RuncError(f"runc create failed: {text_of(error)}") from error
    return 0
