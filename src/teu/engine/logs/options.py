# SPDX-License-Identifier: Apache-2.0
"""--log-opt: names and checks that several log drivers have in common."""

from __future__ import annotations

from teu.engine.core.errors import BadRequest
from teu.engine.core.kinds import natural
from teu.engine.core.units import size

COMMON = frozenset({"mode", "max-buffer-size"})
"""Known to every driver, whatever it makes of them."""
ATTRIBUTES = frozenset({"labels", "labels-regex", "env", "env-regex"})
ROTATION = frozenset({"max-size", "max-file", "compress"})


def check_common(options: dict[str, str]) -> None:
    """Output waits for its log, and that is the one mode there is. Raises BadRequest."""
    if options.get("mode", "blocking") != "blocking":
        if options["mode"] != "non-blocking":
            raise BadRequest(f"logger: logging mode not supported: {options['mode']}; there is blocking")
        raise BadRequest("logger: mode=non-blocking is not supported; leave it out, and output waits for its log")
    if "max-buffer-size" in options:
        raise BadRequest("logger: max-buffer-size belongs to mode=non-blocking, which is not supported; leave it out")


def check_rotation(options: dict[str, str]) -> None:
    """Of drivers that write files. Raises BadRequest."""
    if "max-size" in options and options["max-size"] != "-1":
        size(options["max-size"], "max-size")
    if "max-file" in options and not natural(options["max-file"]):
        raise BadRequest("max-file cannot be less than 1")


def check_nothing(options: dict[str, str]) -> None:
    """Any value will do."""
