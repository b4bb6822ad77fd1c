# SPDX-License-Identifier: Apache-2.0
"""Subnets for networks that name none. Called by the engine's networks and by the builder's."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

# Tried in this order; Docker's own first choices come late, so that both can live on a host.
POOLS = (
    *(IPv4Network(f"172.{number}.0.0/16") for number in (30, 31, *range(18, 30), 17)),
    *(IPv4Network(f"192.168.{number}.0/20") for number in range(0, 256, 16)),
)


def choose(taken: Iterable[IPv4Network | IPv6Network], pools: Iterable[IPv4Network] = POOLS) -> IPv4Network | None:
    """The first pool that overlaps nothing of what is taken: what the host routes, what other networks have."""
    used = [network for network in taken if isinstance(network, IPv4Network)]
    return next((pool for pool in pools if not any(pool.overlaps(network) for network in used)), None)
