# SPDX-License-Identifier: Apache-2.0
"""How what the builder has in containerd is called, so that a later start knows it, and takes nobody else's for it.

Each name has the builder's own word in it, which its cache.db's path gives: two builders on one daemon, in one
namespace, leave each other's alone.
"""

from __future__ import annotations

import hashlib
import os

FETCH = "buildkit-fetch-"  # ingests that are of a known digest: who comes next goes on with them, whoever it is


class Names:
    """Beginnings of names. `place`: the path of cache.db."""

    def __init__(self, place: str) -> None:
        own = hashlib.sha256(os.fsencode(os.path.abspath(place))).hexdigest()[:8]
        self.prefix = f"buildkit-{own}-"
        self.committed = self.lease = self.prefix  # and the record's id
        self.active = f"{self.prefix}active-"
        self.view = f"{self.prefix}view-"
        self.extract = f"{self.prefix}extract-"
        self.work = f"{self.prefix}work-"  # leases of builds
        self.write = f"{self.prefix}write-"  # ingests
        self.diff = f"{self.prefix}diff-"
