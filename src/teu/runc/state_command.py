# SPDX-License-Identifier: Apache-2.0
"""teu-runc state: the state of a container as JSON, in runc's layout."""

from __future__ import annotations

import os

from teu.oci import jsontext
from teu.runc import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "output the state of a container"
USAGE = "<container-id>"
FLAGS: dict[str, tuple[str, str, object, str]] = {}
ARGUMENTS = (1, 1)


def describe(container: state.Container) -> dict[str, object]:
    """runc's containerState, which `list --format json` prints too."""
    status = container.status()
    record = container.record
    described: dict[str, object] = {
        "ociVersion": record["ociVersion"],
        "id": record["id"],
        "pid": 0 if status == state.STOPPED else container.pid,
        "status": status,
        "bundle": record["bundle"],
        "rootfs": record["rootfs"],
        "created": record["created"],
    }
    if record.get("annotations"):
        described["annotations"] = record["annotations"]
    described["owner"] = ""
    return described


def main(arguments: Arguments, settings: Settings) -> int:
    container = state.load(settings.root, arguments.positional[0])
    os.write(1, jsontext.to_bytes(describe(container), "  "))
    return 0
