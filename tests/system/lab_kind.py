# SPDX-License-Identifier: Apache-2.0
"""Which lab the system tests run in, and how patient they have to be there."""

from __future__ import annotations

import functools
import os
from pathlib import Path


@functools.cache
def which_lab() -> str:
    """namespace, vm (with hardware acceleration), vm-emulated, or none."""
    if os.environ.get("TEU_LAB"):
        return os.environ["TEU_LAB"]
    try:
        return Path("/run/host/lab").read_text().strip()
    except OSError:
        return "none"


# How much longer everything may take: a VM without hardware acceleration is about ten times slower.
PATIENCE = 5 if which_lab() == "vm-emulated" else 1
