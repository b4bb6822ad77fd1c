# SPDX-License-Identifier: Apache-2.0
"""Version: which API we are."""

from __future__ import annotations

from google.protobuf import empty_pb2

from teu import __version__
from teu.api.services.version.v1 import version_pb2
from teu.containerd.core.version import advertised
from teu.containerd.server.rpc import Call, Server, quick
from teu.containerd.state import Context


class Version:
    """containerd.services.version.v1.Version."""

    @quick
    def Version(self, request: empty_pb2.Empty, call: Call) -> version_pb2.VersionResponse:
        """The version of containerd whose API this is, with ours behind it."""
        return version_pb2.VersionResponse(version=advertised(), revision=f"teu-{__version__}")


def register(server: Server, context: Context) -> None:
    server.add(version_pb2.DESCRIPTOR.services_by_name["Version"], Version())
