# SPDX-License-Identifier: Apache-2.0
"""Which API we are. Clients choose features by it, so it is containerd's number, with our own behind."""

from __future__ import annotations

from teu import __version__

COMPATIBLE = "1.7.28"  # the containerd whose API this is, as clients compare it


def advertised() -> str:
    """The version that clients are told."""
    return f"{COMPATIBLE}+teu{__version__}"
