# SPDX-License-Identifier: Apache-2.0
"""Runtime handlers: what a RuntimeClass of Kubernetes names. Each is an OCI runtime with runc's command line, run by
the pods' own shims, or by another shim that takes containerd's options for runc; the one without a name is teu-runc.
Called by `service`, `pods` and `containers`.

What a runtime can, it says itself (`RUNTIME features`, of the runtime specification); one that does not say it can
nothing of what is asked for by name.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from teu.containerd.core.errors import Error, FailedPrecondition, InvalidArgument
from teu.containerd.cri import namespaces
from teu.containerd.runtime.bootstrap import find_binary
from teu.oci import jsontext

log = logging.getLogger("teu.containerd.cri")

RUNC = "runc"  # where another shim is named, and no runtime
_FOLDERS = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
FEATURES_SECONDS = 10.0  # for a runtime to say what it can


@dataclass(frozen=True, slots=True)
class Features:
    """What a runtime can of what Kubernetes asks runtimes for."""

    recursive_read_only: bool = False  # mounts, with all below them
    id_mapped: bool = False  # mounts whose ids are mapped, which user namespaces need


@dataclass(frozen=True, slots=True)
class Handler:
    """A runtime, by the name that pods know it by."""

    name: str
    binary: str = ""  # the runtime's program; "" is our own
    shim: str = ""  # the name of another shim; "" is the pod's own
    features: Features = Features(recursive_read_only=True, id_mapped=True)


def read_features(binary: str) -> Features:
    """What the runtime of that path says of itself. Blocks."""
    try:
        done = subprocess.run(
            [binary, "features"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FEATURES_SECONDS,
            check=True,
        )
        told = jsontext.loads(done.stdout)
        mapped = ((told.get("linux") or {}).get("mountExtensions") or {}).get("idmap") or {}
        return Features("rro" in (told.get("mountOptions") or ()), mapped.get("enabled") is True)
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError) as error:
        log.warning("the runtime %s does not say what it can: %s", binary, error)
        return Features()


class Handlers:
    """All of a node's."""

    def __init__(self, configured: Mapping[str, Mapping[str, Any]]) -> None:
        """`configured` is `cri.runtimes` of the configuration: by name, the program and the shim, "" for our own."""
        self._shims = {name: str(told["shim"]) for name, told in configured.items()}
        self._binaries = {
            name: str(told["binary"]) or RUNC
            for name, told in configured.items()
            if told["binary"] or told["shim"]  # another shim has another runtime
        }
        self._known = {name: Handler(name) for name in ("", *configured) if name not in self._binaries}
        self._obstacle = "it is not known yet"  # why the kernel and the file systems let no pod have users of its own

    def probe(self, folder: str) -> None:
        """See what the runtimes can, and this host with a folder of snapshots. Blocks."""
        self._obstacle = namespaces.user_obstacle(folder)
        if self._obstacle:
            log.info("pods get no user namespaces: %s", self._obstacle)
        found = {name: self._path(name) for name in self._binaries}
        for name in sorted(name for name, path in found.items() if not path):
            log.error("the runtime of the handler %s is not there: %s", name, self._binaries[name])
        there = sorted({path for path in found.values() if path})
        if not there:
            return
        with ThreadPoolExecutor(len(there)) as pool:
            can = dict(zip(there, pool.map(read_features, there), strict=True))
        for name, path in sorted(found.items()):
            if path:
                shim, features = self._shims[name], can[path]
                if shim:  # of a root file system whose ids are mapped older ones know nothing
                    features = replace(features, id_mapped=False)
                self._known[name] = Handler(name, path, shim, features)

    def _path(self, name: str) -> str:
        """That of a handler's runtime; "" where it, or its shim, is not there."""
        if self._shims[name]:
            try:
                find_binary(self._shims[name])
            except Error as error:
                log.error("the shim of the handler %s: %s", name, error.message)
                return ""
        return shutil.which(self._binaries[name], path=_FOLDERS) or ""

    def all(self) -> list[Handler]:
        """Those whose runtimes are there, the one without a name first."""
        return list(self._known.values())

    def named(self, name: str) -> Handler:
        """By its name. InvalidArgument for one that nobody has configured, FailedPrecondition for one whose runtime is
        not there."""
        if name in self._known:
            return self._known[name]
        if name in self._binaries:
            needed = " by ".join(filter(None, (self._binaries[name], self._shims[name])))
            raise FailedPrecondition(f'the runtime of "{name}" is not there: {needed}')
        raise InvalidArgument(f'no runtime for "{name}" is configured')

    def has_users(self, handler: Handler) -> bool:
        """Whether pods of a handler may have user namespaces."""
        return not self._obstacle and handler.features.id_mapped

    def check_users(self, handler: Handler) -> None:
        """That they may. FailedPrecondition."""
        if not self.has_users(handler):
            why = self._obstacle if handler.features.id_mapped else "its mounts cannot have their ids mapped"
            raise FailedPrecondition(f'the runtime of "{handler.name}" has no user namespaces: {why}')

    def check_container(self, name: str, config: Any) -> None:
        """That the runtime of a pod can what a ContainerConfig asks for. FailedPrecondition, in kubelet's words."""
        if self.named(name).features.recursive_read_only:
            return
        for number, mount in enumerate(config.mounts):
            if mount.recursive_read_only:
                raise FailedPrecondition(f'RROUnsupported: config.mounts[{number}]: not by the runtime of "{name}"')
