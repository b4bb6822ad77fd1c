# SPDX-License-Identifier: Apache-2.0
"""What a daemon has left that ended in the middle of something: folders and image volumes of pods and containers of
which there is no record. Called by `pods`, on threads.

They are found before anything new is made, and removed aside. What has a record stays, also a damaged one.
"""

from __future__ import annotations

import logging
import os
import re

from teu.containerd.cri.imagevolumes import LEASE_PREFIX, drop_lease
from teu.containerd.cri.records import NAMESPACE
from teu.containerd.state import Context
from teu.linux.trees import discard_tree, mounts_below, unmount

log = logging.getLogger("teu.containerd.cri")

_ID = re.compile(r"[0-9a-f]{64}")


def find(context: Context) -> tuple[list[str], list[str]]:
    """(folders, leases)."""
    known = {one.sandbox_id for one in context.sandboxes.find(NAMESPACE)}
    known |= {one.id for one in context.containers.find(NAMESPACE)}
    folders = []
    for above in (os.path.join(context.state, "cri"), os.path.join(context.root, "cri")):
        try:
            names = os.listdir(above)
        except FileNotFoundError:
            continue
        folders += [os.path.join(above, name) for name in names if _ID.fullmatch(name) and name not in known]
    leases = [one.id for one in context.leases.find(NAMESPACE) if one.id.startswith(LEASE_PREFIX)]
    return folders, [id for id in leases if id.removeprefix(LEASE_PREFIX) not in known]


def remove(context: Context, folders: list[str], leases: list[str]) -> None:
    """Take them away. What cannot be is logged, and stays for the next start."""
    for folder in folders:
        log.info("%s is of no pod and no container any more: it is removed", folder)
        try:
            for place in reversed(mounts_below(folder)):
                unmount(place)
        except OSError as error:
            log.error("%s stays: %s", folder, error)
            continue
        discard_tree(folder)
    for lease in leases:
        drop_lease(context, lease)
