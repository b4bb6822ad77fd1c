# SPDX-License-Identifier: Apache-2.0
"""The table of commands. A command's module is imported when its command is called, and no other: exec's with what it
needs, for one, takes 2.3 ms, and create's 4.5. As all through teu-runc, typing (8 ms), socket (5), signal (4) and
dataclasses (12) are not imported, only the C modules below them.

Each module defines

    SUMMARY: str        one line for the help
    USAGE: str          the arguments, for the help
    FLAGS: dict         see teu.runc.arguments
    ARGUMENTS: (least, most)    how many positional arguments (most None: any number)
    STOP_AT: int        (optional) see teu.runc.arguments; the rest is appended to positional
    main(arguments, settings) -> int        the exit code; errors are raised (teu.runc.errors)
"""

from __future__ import annotations

COMMANDS = {
    "checkpoint": "teu.runc.checkpoint",
    "create": "teu.runc.create",
    "delete": "teu.runc.delete",
    "events": "teu.runc.events",
    "exec": "teu.runc.exec",
    "features": "teu.runc.features",
    "kill": "teu.runc.kill",
    "list": "teu.runc.list",
    "pause": "teu.runc.pause",
    "ps": "teu.runc.ps",
    "restore": "teu.runc.restore",
    "resume": "teu.runc.resume",
    "run": "teu.runc.run",
    "spec": "teu.runc.spec",
    "start": "teu.runc.start",
    "state": "teu.runc.state_command",
    "update": "teu.runc.update",
}


class Settings:
    """The global options, as parsed by teu.runc.main."""

    root = "/run/teu-runc"
    root_given = False  # by --root, not by default
    systemd_cgroup = False
    debug = False
    log = ""
    rootless = "auto"  # "true": ignore cgroup permission errors; "auto": when not root
    program = "teu-runc"
