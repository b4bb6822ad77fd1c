# SPDX-License-Identifier: Apache-2.0
"""Capabilities of LLB: what a definition may ask of this builder, name by name (BuildKit's solver/pb).

A client marks each operation with the names of what it needs, so that an old builder refuses it instead of building
something else. The same list is told to clients (LLBBridge.Ping) as `moby.buildkit.v1.apicaps.APICap`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from teu.api.buildkit import caps_pb2


class CapError(ValueError):
    """A definition needs what this builder cannot do; `cap` is its name."""

    def __init__(self, cap: str, message: str) -> None:
        super().__init__(message)
        self.cap = cap


@dataclass(frozen=True, slots=True)
class Cap:
    """One capability. `stage` is its word in errors ("experimental", "prerelease"); `refused` says why it is not
    to be had here, and is empty where it is."""

    name: str
    title: str = ""
    stage: str = "experimental"
    refused: str = ""


_HAS = """
source.image source.image.resolvemode source.image.layerlimit source.image.checksum
source.local source.local.unique source.local.sessionid source.local.includepatterns source.local.followpaths
source.local.excludepatterns source.local.sharedkeyhint source.local.differ source.local.metadatatransfer
source.git source.git.keepgitdir source.git.fullurl source.git.httpauth source.git.knownsshhosts
source.git.mountsshsock source.git.subdir source.git.checksum source.git.skipsubmodules source.git.mtime
source.git.fetchbycommit
source.http source.http.auth source.http.checksum source.http.perm soruce.http.uidgid source.http.header
source.ocilayout source.buildop.llbfilename
exec.meta.base exec.meta.cgroup.parent exec.meta.network exec.meta.proxyenv exec.meta.security
exec.meta.security.devices.v1 exec.meta.setsdefaultpath exec.meta.ulimit exec.meta.cdi
exec.meta.removemountstubs.recursive exec.meta.linux.resources
exec.mount.bind exec.mount.bind.readwrite-nooutput exec.mount.cache exec.mount.cache.sharing exec.mount.selector
exec.mount.tmpfs exec.mount.tmpfs.size exec.mount.secret exec.mount.ssh exec.mount.cache.content
exec.cgroup exec.secretenv exec.validexitcode
file.rm.wildcard file.copy.includeexcludepatterns file.copy.requiredpaths file.rm.nofollowsymlink
file.copy.alwaysreplaceexistingdestpaths file.copy.modestring file.symlink.create
constraints platform meta.ignorecache meta.description meta.exportcache mergeop diffop passthroughop
exporter.image.annotations exporter.image.attestations exporter.multiple exporter.session
source.policy source.policy.session gc.freespacefilter history.filter
"""

_REFUSED = {
    "source.git.signatureverify": "signatures of commits are not verified by this builder",
    "source.git.bundle": "bundles of git are not read by this builder",
    "source.git.checkoutbundle": "bundles of git are not read by this builder",
    "source.http.signatureverify": "signatures of downloads are not verified by this builder",
    "source.imageblob": "single blobs of images are no source of this builder",
    "exec.meta.network.proxy": "this builder has no recording proxy",
    "cache.gha": "this builder keeps its remote cache inline, in registries or in a local folder",
    "cache.s3": "this builder keeps its remote cache inline, in registries or in a local folder",
    "cache.azblob": "this builder keeps its remote cache inline, in registries or in a local folder",
}

CAPS: dict[str, Cap] = {name: Cap(name) for name in _HAS.split()}
CAPS["file.base"] = Cap("file.base", stage="prerelease")
CAPS["exporter.sourcedateepoch"] = Cap("exporter.sourcedateepoch", "source date epoch")
CAPS.update({name: Cap(name, refused=why) for name, why in _REFUSED.items()})


def check(names: Iterable[str]) -> None:
    """Raise CapError for the first of `names` (in their order) that this builder does not have."""
    for name in names:
        cap = CAPS.get(name)
        if cap is None:
            raise CapError(name, f"unknown API capability {name}")
        if cap.refused:
            stage = f"{cap.stage} " if cap.stage else ""
            title = f"({cap.title})" if cap.title else ""
            raise CapError(
                name,
                f"requested {stage}feature {name} {title} has been disabled on the build server: {cap.refused}",
            )


def listing() -> list[Any]:
    """All capabilities as APICap messages, by name."""
    return [
        caps_pb2.APICap(ID=cap.name, Enabled=not cap.refused, DisabledReasonMsg=cap.refused)
        for _, cap in sorted(CAPS.items())
    ]
