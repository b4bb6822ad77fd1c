# SPDX-License-Identifier: Apache-2.0
"""linux.memoryPolicy as the arguments of set_mempolicy(2), for teu-runc-init. Called by teu.runc.launch."""

from __future__ import annotations

from struct import pack

from teu.runc.errors import InvalidSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
FLAGS = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}


def encode(policy: dict[str, Any]) -> bytes:
    mode = MODES.get(policy.get("mode", ""))
    if mode is None:
        raise InvalidSpec(f"linux.memoryPolicy.mode: {policy.get('mode')!r} is not known")
    for name in policy.get("flags") or ():
        if name not in FLAGS:
            raise InvalidSpec(f"linux.memoryPolicy.flags: {name!r} is not known")
        mode |= FLAGS[name]
    nodes = 0
    for part in (policy.get("nodes") or "").replace(" ", "").split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        if not part.isascii() or not first.isdigit() or (dash and not last.isdigit()) or int(last or first) > 4095:
            raise InvalidSpec(f"linux.memoryPolicy.nodes: {policy['nodes']!r} is not a list of nodes")
        for node in range(int(first), int(last or first) + 1):
            nodes |= 1 << node
    words = max(1, (nodes.bit_length() + 63) // 64)
    return pack("II", mode, 0) + nodes.to_bytes(words * 8, "little")
