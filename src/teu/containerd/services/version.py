# SPDX-License-Identifier: Apache-2.0
"""Version: which API we are. Clients choose features by it, so it is containerd's number, with our own behind."""

from __future__ import annotations

from google.protobuf import empty_pb2

from teu import __version__
from teu.api.services.version.v1 import version_pb2
from teu.containerd.server.rpc import Call, Server, quick
from teu.containerd.state import Context

COMPATIBLE = "1.7.28"  # the containerd whose API this is, as clients compare it


class Version:
    """containerd.services.version.v1.Version."""

    @quick
    def Version(self, request: empty_pb2.Empty, call: Call) -> version_pb2.VersionResponse:
        """The version of containerd whose API this is, with ours behind it."""
        return version_pb2.VersionResponse(version=f"{COMPATIBLE}+teu{__version__}", revision=f"teu-{__version__}")


def register(server: Server, context: Context) -> None:
    server.add(version_pb2.DESCRIPTOR.services_by_name["Version"], Version())
