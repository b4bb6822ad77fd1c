# SPDX-License-Identifier: Apache-2.0
"""What a frontend sees of its build: definitions are read, other frontends are asked, sources are looked at.

Called by the built-in frontend, and by bridge for those of clients and containers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from teu.api.buildkit import gateway_pb2, ops_pb2
from teu.buildkit.control.build import Build, Tree
from teu.buildkit.core import errors
from teu.buildkit.core.progress import Step
from teu.buildkit.frontends import builtin
from teu.buildkit.frontends.bridge import Request, Result
from teu.buildkit.llb import caps
from teu.buildkit.llb.load import Invalid, NotAllowed, load
from teu.buildkit.llb.platforms import Platform, host

DEPTH_MAX = 8  # frontends that ask frontends
BUILTIN, GATEWAY = "dockerfile.v0", "gateway.v0"


class BuildBridge:
    """frontends.bridge.Bridge over a build: the client's view of it, or (`depth`) that of a frontend in a container."""

    def __init__(self, build: Build, depth: int = 0) -> None:
        self.build = build
        self._depth = depth

    @property
    def session(self) -> str:
        return self.build.session

    @property
    def platforms(self) -> Sequence[Platform]:
        return self.build.rooms.platforms

    @property
    def cancelled(self) -> bool:
        return self.build.cancellation.cancelled

    @property
    def trusted(self) -> bool:
        """Whether it is the client that asks, or the builder itself, and no container."""
        return self._depth == 0

    def step(self, name: str) -> AbstractContextManager[Step]:
        return self.build.step(name)

    def warn(self, warning: Any) -> None:
        self.build.progress.warn(warning)

    def solve(self, request: Request) -> Result:
        self.build.cancellation.check()
        given = request.definition is not None and len(getattr(request.definition, "def")) > 0
        if given and request.frontend:
            raise errors.InvalidArgument("cannot solve with both Definition and Frontend specified")
        if request.frontend:
            result = self._frontend(request)
        elif given:
            result = Result({"": self._definition(request)})
        else:
            result = Result({"": None})
        if request.evaluate:
            trees = [tree for tree in result.trees.values() if tree is not None]
            for tree in trees:
                if isinstance(tree, Tree):
                    tree.start()
            for tree in trees:
                tree.snapshot()
        return result

    def _definition(self, request: Request) -> Tree:
        try:
            graph = load(
                request.definition,
                policy=self.build.policy(request.policies, regexes=self.trusted),
                platform=_message(self.platforms[0] if self.platforms else host()),
                entitlements=self.build.entitlements.given,
                devices=self.build.rooms.devices,
            )
        except NotAllowed as error:
            denied = errors.PermissionDenied(f"failed to load LLB: {error}")
            denied.code = errors.Error.code  # clients show a code in front of the words, and BuildKit has none here
            raise denied from None
        except caps.CapError as error:
            raise errors.Unimplemented(f"failed to load LLB: {error}") from None
        except Invalid as error:
            raise errors.InvalidArgument(f"failed to load LLB: {error}") from None
        return self.build.tree(request.definition, graph, self.build.caches(request.caches))

    def _frontend(self, request: Request) -> Result:
        if self._depth >= DEPTH_MAX:
            raise errors.InvalidArgument(f"more than {DEPTH_MAX} frontends one upon the other")
        if self.trusted:
            self.build.note_frontend(request.frontend, request.options)
        if request.frontend == BUILTIN:
            with _told(BUILTIN, request.options):
                try:
                    return builtin.solve(self, request, is_builtin=self.build.rooms.is_builtin)
                except builtin.Forward as error:
                    options = {**request.options, "source": error.reference, "cmdline": error.command_line}
                    return self._gateway(request, options)
        if request.frontend == GATEWAY:
            if not self.build.rooms.is_builtin(request.options.get("source", "")):
                return self._gateway(request, request.options)
            with _told(GATEWAY, request.options):
                return builtin.solve(self, _with(request, request.options, BUILTIN), is_builtin=lambda _: True)
        raise errors.NotFound(f"invalid frontend: {errors.cut(request.frontend, 100)}")

    def _gateway(self, request: Request, options: Mapping[str, str]) -> Result:
        inner = BuildBridge(self.build, self._depth + 1)
        with _told(GATEWAY, options):
            return self.build.rooms.gateway.solve(inner, _with(request, options, GATEWAY))

    def source_meta(self, request: Any) -> Any:
        asked = gateway_pb2.ResolveSourceMetaRequest()
        asked.CopyFrom(request)
        policy = self.build.policy(asked.SourcePolicies, regexes=self.trusted)
        if policy is not None:
            op = ops_pb2.Op(source=asked.Source)
            if asked.HasField("Platform"):
                op.platform.CopyFrom(asked.Platform)
            policy(op)
            asked.Source.CopyFrom(op.source)
        return self.build.meta(asked)


@contextmanager
def _told(frontend: str, options: Mapping[str, str]) -> Iterator[None]:
    """What fails says in which frontend, as BuildKit does since docker 28: the outermost one last."""
    try:
        yield
    except errors.Error as error:
        error.at_frontend(frontend, options.get("source", ""))
        raise


def _with(request: Request, options: Mapping[str, str], frontend: str) -> Request:
    return Request(None, frontend, options, request.inputs, request.caches, request.policies, request.evaluate)


def _message(platform: Platform) -> Any:
    return ops_pb2.Platform(OS=platform.os, Architecture=platform.architecture, Variant=platform.variant)
