# SPDX-License-Identifier: Apache-2.0
"""Which snapshotters there are: the built-in ones by name, and those of other programs. Called by `state`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from teu.containerd.snapshotters import native, overlayfs, proxy
from teu.containerd.snapshotters.interface import Place, Snapshotter

BUILT_IN: dict[str, Callable[[Place], Snapshotter]] = {
    "overlayfs": overlayfs.Overlayfs,
    "native": native.Native,
}


def opened(place: Place, proxies: Mapping[str, Mapping[str, Any]]) -> dict[str, Snapshotter]:
    """All snapshotters of a daemon, by name. `proxies` is `snapshots.proxies` of the configuration: by name, the
    `address` of a socket and the `capabilities` to tell; one of them may take the place of a built-in one."""
    found = {name: make(place) for name, make in BUILT_IN.items()}
    for name, told in proxies.items():
        found[name] = proxy.Proxy(name, told["address"], tuple(told["capabilities"]))
    return found
