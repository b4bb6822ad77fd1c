# SPDX-License-Identifier: Apache-2.0
"""HostConfig.StorageOpt: how much a container may write into its root. Called by create, which has the snapshotter see
to it.

There is one option, size, as docker's overlay2 has it. What is wrong with it has docker's status, 500.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teu.engine.core.errors import EngineError
from teu.oci.units import parse_bytes

KEY = "default-storage-size"


def size(given: Mapping[str, str] | None, settings: Mapping[str, Any]) -> int:
    """In bytes; 0: as much as there is, which size=0 says where teud.yaml has another default. Raises EngineError."""
    found = int(settings[KEY])
    for key, value in (given or {}).items():
        if key.lower() != "size":
            raise EngineError(f"unknown option {key}: size is the only one that --storage-opt has")
        try:
            found = parse_bytes(value)
        except ValueError as error:
            raise EngineError(f"--storage-opt size: {error}; give one such as 512m or 20g") from None
    return found


def without_limits(given: Mapping[str, str] | None, driver: str) -> EngineError:
    """Where the snapshotter of that name knows none. Its beginning is what clients look for."""
    remedy = "take teu-containerd's snapshotter overlayfs, or put what may grow into a volume with size="
    return EngineError(f"{_asked(given, f'--storage-opt is not supported for {driver}')}: {remedy}")


def without_quotas(given: Mapping[str, str] | None, why: str) -> EngineError:
    """Where it cannot limit anything, and says why. docker's words leave out ext4."""
    words = "--storage-opt is supported only for overlay over xfs or ext4 with 'pquota' mount option"
    return EngineError(f"{_asked(given, words)}: {why}")


def _asked(given: Mapping[str, str] | None, words: str) -> str:
    return words if given else f"{KEY} in teud.yaml asks for what there is not: {words}"
