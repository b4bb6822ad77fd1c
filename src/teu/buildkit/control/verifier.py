# SPDX-License-Identifier: Apache-2.0
"""A client's own word about each source of its build, as a policy. Called by build, after the rules that came with the
request or stand in the configuration.

The client is told of a source, and allows, denies or replaces it; or it asks first what the source is now: the digest
of an image, the commit of a reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from teu.api.buildkit import gateway_pb2, policy_pb2, policysession_pb2
from teu.buildkit.core import errors

QUESTIONS_MAX = 10  # of a client, about one source
DENIALS_MAX = 100


class Verifier:
    """A llb.load.Policy: whether the client has replaced the source of an op. PermissionDenied where it does not want
    it, and what asking it raises: a build whose client cannot be asked has no sources."""

    def __init__(self, ask: Callable[[Any], Any], meta: Callable[[Any], Any]) -> None:
        """ask: a CheckPolicyRequest to the client; meta: a ResolveSourceMetaRequest to the builder's sources."""
        self._ask = ask
        self._meta = meta

    def __call__(self, op: Any) -> bool:
        source = op.source
        request = policysession_pb2.CheckPolicyRequest()
        if op.HasField("platform"):
            request.Platform.CopyFrom(op.platform)
        request.Source.Source.CopyFrom(source)
        for _ in range(QUESTIONS_MAX):
            answer = self._ask(request)
            if answer.HasField("request"):
                request.Source.CopyFrom(self._told(answer.request, source))
                continue
            if not answer.HasField("decision"):
                raise errors.InvalidArgument("no decision in policy response")
            return _decided(answer.decision, source)
        raise errors.InvalidArgument("too many policy requests")

    def _told(self, asked: Any, source: Any) -> Any:
        """What the source is now. A client that asks about another one would decide about that."""
        name = errors.cut(asked.Source.identifier, 200)
        if asked.Source.identifier != source.identifier:
            raise errors.InvalidArgument(
                f'policy requested different source identifier: "{name}" != "{errors.cut(source.identifier, 200)}"'
            )
        if dict(asked.Source.attrs) != dict(source.attrs):
            raise errors.InvalidArgument(f'policy requested different source attrs of "{name}"')
        wanted = gateway_pb2.ResolveSourceMetaRequest()
        wanted.CopyFrom(asked)
        del wanted.SourcePolicies[:]  # which the frontend's questions have, and the client's have not
        try:
            return self._meta(wanted)
        except errors.Error as error:
            raise error.prefixed("error resolving source metadata from policy request") from None


def _decided(decision: Any, source: Any) -> bool:
    if decision.action == policy_pb2.CONVERT:
        if not decision.HasField("update"):
            raise errors.InvalidArgument("convert action requires updated source")
        source.CopyFrom(decision.update)
        return True
    if decision.action == policy_pb2.ALLOW:
        return False
    name = errors.cut(source.identifier, 200)
    known = decision.action in policy_pb2.PolicyAction.values()
    action = policy_pb2.PolicyAction.Name(decision.action) if known else str(decision.action)
    denied = errors.PermissionDenied(f'source "{name}" not allowed by policy: action {action}')
    if decision.denyMessages:
        why = policysession_pb2.DecisionResponse(
            action=policy_pb2.DENY, denyMessages=decision.denyMessages[:DENIALS_MAX]
        )
        denied.with_detail(why)
    raise denied
