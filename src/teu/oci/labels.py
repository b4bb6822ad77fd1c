# SPDX-License-Identifier: Apache-2.0
"""Labels by which containerd's clients and its garbage collector understand each other (containerd's "Garbage
collection" guide). Called by teu-containerd, and by its clients teud, teu-buildkitd and teu-ctr.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

ROOT = "containerd.io/gc.root"  # keeps a blob or a snapshot for its own sake; the value is a moment
FLAT = "containerd.io/gc.flat"  # on a lease: what it names is kept, not what that refers to
EXPIRE = "containerd.io/gc.expire"  # on a lease or an image: when it ends
REFERENCE = "containerd.io/gc.ref."  # on what needs another object: .content…, .snapshot.NAME…, .image…
CONTENT = "containerd.io/gc.ref.content"
SNAPSHOT = "containerd.io/gc.ref.snapshot"
BACKWARD = "containerd.io/gc.bref."  # on the object that is needed
UNCOMPRESSED = "containerd.io/uncompressed"  # on a layer's blob: the digest of what is in it
BUILDER = "io.teu.builder"  # on a container: it is a step of this builder's (its worker's id), and nobody else's
SAME_AS = "io.teu.snapshot.same-as"  # asked of Prepare: what is wanted is that committed snapshot, if it stands there
# Asked of Prepare, of a snapshotter that has the capability SIZES: how many bytes the snapshot may have of its own, in
# decimal digits. The prefix is that of labels which a containerd hands down to its snapshotters.
SIZE, SIZES = "containerd.io/snapshot/teu.size", "teu.size"
LEAN = "io.teu.content.lean"  # on a layer's blob, while its large files are in the snapshot of which it was made alone
SOURCE = "containerd.io/distribution.source"  # .HOST, on a blob: the repositories that it came from


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def expiring(seconds: float) -> dict[str, str]:
    """Of a lease that ends so many seconds from now."""
    return {EXPIRE: _moment(time.time() + seconds)}


def rooted() -> dict[str, str]:
    """Of what stays until it is removed."""
    return {ROOT: _moment(time.time())}


def keeping(
    manifests: Iterable[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
    layers: Iterable[Mapping[str, Any]] = (),
) -> dict[str, str]:
    """Of an index or a manifest, by which it keeps what its descriptors name, under the keys that all clients use."""
    labels = {f"{CONTENT}.m.{number}": child["digest"] for number, child in enumerate(manifests)}
    if config is not None:
        labels[f"{CONTENT}.config"] = config["digest"]
    labels |= {f"{CONTENT}.l.{number}": child["digest"] for number, child in enumerate(layers)}
    return labels
