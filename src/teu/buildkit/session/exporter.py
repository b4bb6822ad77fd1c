# SPDX-License-Identifier: Apache-2.0
"""Exporters that a client adds to its build once the result is known (SolveRequest.EnableSessionExporter).

Called by control when the frontend has returned: a client that shows builds in an interface, or loads them elsewhere,
decides by the result's metadata what is to be exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from teu.api.buildkit.session import exporter_pb2
from teu.buildkit.core import errors
from teu.buildkit.session.manager import Session

PREFIX = "/moby.exporter.v1.Exporter/"
EXPORTERS_MAX = 100
SECONDS = 60.0


class Request(NamedTuple):
    kind: str  # image, local, tar, oci, docker …
    attributes: Mapping[str, str]


def find(session: Session, metadata: Mapping[str, bytes], refs: Sequence[str]) -> list[Request]:
    """What the client wants exported of a result; nothing where it does not say."""
    if not session.supports(f"{PREFIX}FindExporters"):
        return []
    request = exporter_pb2.FindExportersRequest(metadata=metadata, refs=refs)
    answer = session.call(f"{PREFIX}FindExporters", request, exporter_pb2.FindExportersResponse, timeout=SECONDS)
    if len(answer.exporters) > EXPORTERS_MAX:
        raise errors.InvalidArgument(f"the client wants {len(answer.exporters)} exporters")
    return [Request(exporter.Type, dict(exporter.Attrs)) for exporter in answer.exporters]


def finalize(session: Session, response: Mapping[str, str]) -> None:
    """Tell the client what the exporters answered; nothing where it does not want to know."""
    if session.supports(f"{PREFIX}FinalizeExport"):
        request = exporter_pb2.FinalizeExportRequest(exporter_response=response)
        session.call(f"{PREFIX}FinalizeExport", request, exporter_pb2.FinalizeExportResponse, timeout=SECONDS)
