# SPDX-License-Identifier: Apache-2.0
"""A client that decides itself about each source of its build (SolveRequest.SourcePolicySession). Called by control."""

from __future__ import annotations

from typing import Any

from teu.api.buildkit import policysession_pb2
from teu.buildkit.session.manager import Session

METHOD = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy"
SECONDS = 300.0  # a client may look at signatures that are elsewhere


def check(session: Session, request: Any) -> Any:
    """The client's answer to a CheckPolicyRequest: a decision, or what it wants to know of the source before."""
    return session.call(METHOD, request, policysession_pb2.CheckPolicyResponse, timeout=SECONDS)
