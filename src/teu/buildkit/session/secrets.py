# SPDX-License-Identifier: Apache-2.0
"""The client's secrets. Called by the executor for secret mounts and variables, and by the git and http sources.

A secret is held in memory alone, by who asked for it; it is in no log, no error and no key of the cache.
"""

from __future__ import annotations

from teu.api.buildkit.session import secrets_pb2
from teu.buildkit.core import errors
from teu.buildkit.session.manager import Session

METHOD = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
SIZE_MAX = 500 << 10  # bytes; what clients refuse themselves beyond
SECONDS = 60.0


def get(session: Session, identifier: str) -> bytes:
    """The secret of this id. NotFound where the client has none of it, or no secrets at all."""
    request = secrets_pb2.GetSecretRequest(ID=identifier)
    try:
        answer = session.call(METHOD, request, secrets_pb2.GetSecretResponse, timeout=SECONDS)
    except (errors.NotFound, errors.Unimplemented):
        raise errors.NotFound(f"secret {identifier}: not found") from None
    if len(answer.data) > SIZE_MAX:
        raise errors.InvalidArgument(f"invalid secret {identifier}: {len(answer.data)} bytes; {SIZE_MAX} are the most")
    return bytes(answer.data)
