# SPDX-License-Identifier: Apache-2.0
"""--log-opt: names and checks that several log drivers have in common."""

from __future__ import annotations

from teu.engine.core.errors import BadRequest
from teu.engine.core.kinds import natural
from teu.engine.core.units import size
from teu.oci.units import parse_duration

COMMON = frozenset({"mode", "max-buffer-size"})
"""Known to every driver."""
CACHE = frozenset({"cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"})
"""Of drivers that log elsewhere. For the others they have no meaning, and docker takes them in silence: they may stand
among the options of all containers."""
ATTRIBUTES = frozenset({"labels", "labels-regex", "env", "env-regex", "tag"})
ROTATION = frozenset({"max-size", "max-file", "compress"})


def check_common(options: dict[str, str]) -> None:
    """Whether output waits for its log, or is dropped while the log is behind. Raises BadRequest."""
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise BadRequest(f"logger: logging mode not supported: {mode}; there are blocking and non-blocking")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise BadRequest("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        size(options["max-buffer-size"], "max-buffer-size")


def check_cache(options: dict[str, str]) -> None:
    """Of the copy that can be read. Raises BadRequest."""
    boolean(options, "cache-disabled")
    check_rotation(cache_options(options))


def cache_options(options: dict[str, str]) -> dict[str, str]:
    """Those of the copy, as the driver local has them."""
    found = {key.removeprefix("cache-"): value for key, value in options.items() if key in CACHE}
    found.pop("disabled", None)
    return found


def boolean(options: dict[str, str], name: str, default: bool = False) -> bool:
    """As Go reads one. Raises BadRequest."""
    text = options.get(name, "")
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    if text:
        raise BadRequest(f"invalid value for log opt {name}: {text}: it is true or false")
    return default


def seconds(options: dict[str, str], name: str, default: float) -> float:
    """A duration of Go's, 0 or longer. Raises BadRequest."""
    text = options.get(name, "")
    if not text:
        return default
    try:
        found = parse_duration(text)
    except ValueError as error:
        raise BadRequest(f"invalid value for log opt {name}: {error}") from None
    if found < 0:
        raise BadRequest(f"invalid value for log opt {name}: value must be a duration that is non-negative")
    return found / 1e9


def check_rotation(options: dict[str, str]) -> None:
    """Of drivers that write files. Raises BadRequest."""
    if "max-size" in options and options["max-size"] != "-1":
        size(options["max-size"], "max-size")
    boolean(options, "compress")
    if "max-file" in options and not natural(options["max-file"]):
        raise BadRequest("max-file cannot be less than 1")


def check_nothing(options: dict[str, str]) -> None:
    """Any value will do."""
